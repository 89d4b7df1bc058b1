"""Integer matrix products on Intel's tile registers (AMX-INT8).

A tile holds 16 rows of 64 bytes. Two tiles of codes, two of weights and the four of their products take all
eight registers. Weights lie as other kernels have them (``WeightLayout`` with words of 4 bytes): 16 words of
16 columns are the 64 rows of a product that a tile holds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from tvm import tirx

from gnnquant.backends.tvm.emit import const, effect

if TYPE_CHECKING:
    from gnnquant.backends.tvm.layout import WeightLayout
    from gnnquant.backends.tvm.rows import RowKernel
    from gnnquant.backends.tvm.values import Codes

SIDE = 16
"""Rows of a tile, and its columns of 32 bits."""
DEPTH = 64
"""Bytes of a row of a tile."""
TALL = 2
"""Tiles of codes, one below the other."""
CODES, WEIGHTS = 4, 6
"""First register of codes and of weights; products have those before."""


def configuration() -> np.ndarray[Any, Any]:
    """The operand of ``ldtilecfg``, as int32 [16]: palette 1, all eight tiles of full size."""
    data = np.zeros(64, dtype=np.uint8)
    data[0] = 1
    data[16:32].view(np.uint16)[:] = DEPTH
    data[48:56] = SIDE
    return data.view(np.int32)


def begin(kernel: RowKernel) -> None:
    """Set the tiles up; once in each thread, before the first product."""
    effect("llvm.x86.ldtilecfg", tirx.address_of(kernel.kept(kernel.keep(configuration()))))


def end() -> None:
    """Free the tiles: threads with live ones cost more to switch."""
    effect("llvm.x86.tilerelease")


def _register(number: int) -> Any:
    return const(number, "int8")


def tiled_gemm(kernel: RowKernel, q: Codes, layout: WeightLayout, dense: Any, sums: tuple[int, int]) -> None:
    """Sums of all codes of the block times weights, into int32 scratch.

    Args:
        kernel: Where.
        q: The codes; as many rows as ``TALL`` tiles have, or a multiple.
        layout: Of the weight, with whole tiles of words.
        dense: The buffer of its words.
        sums: Offset of the sums, and numbers between their rows.
    """
    b = kernel.b
    total, stride = sums
    wide = layout.block // SIDE
    products = [(r, c) for r in range(TALL) for c in range(wide)]

    def tile(above: Any, panel: Any) -> None:
        for number in range(len(products)):
            effect("llvm.x86.tilezero", _register(number))
        with b.loop(layout.words // SIDE) as k:
            for r in range(TALL):
                place = q.start + (above * TALL + r) * SIDE * q.stride + k * DEPTH
                _move("tileloadd64", CODES + r, kernel.element("uint8", place), q.stride)
            for c in range(wide):
                _move("tileloadd64", WEIGHTS + c, dense[panel, k * SIDE, c * SIDE], 4 * layout.block)
            for number, (r, c) in enumerate(products):
                effect("llvm.x86.tdpbusd", *map(_register, (number, CODES + r, WEIGHTS + c)))
        for number, (r, c) in enumerate(products):
            place = total + (above * TALL + r) * SIDE * stride + panel * layout.block + c * SIDE
            _move("tilestored64", number, kernel.element("int32", place), 4 * stride)

    kernel.each(
        -(-layout.outputs // layout.block),
        lambda panel: kernel.each(q.size // (TALL * SIDE), lambda above: tile(above, panel)),
    )


def _move(name: str, number: int, element: Any, stride: int) -> None:
    """Load or store a tile, whose rows begin ``stride`` bytes after each other."""
    effect(f"llvm.x86.{name}", _register(number), tirx.address_of(element), const(stride, "int64"))
