"""Kernels that unpack weights at the start of a call."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gnnquant.backends.tvm.bitsums import row_bytes
from gnnquant.backends.tvm.emit import (
    Builder,
    cast,
    const,
    reinterpret,
    shift_left,
    shift_right,
    shuffle,
    span,
    splat,
)
from gnnquant.backends.tvm.layout import CHUNK
from gnnquant.backends.tvm.lookups import CODES, GROUP, LANES, column_order
from gnnquant.integer_graph import integer_steps

if TYPE_CHECKING:
    from gnnquant.backends.tvm.emit import Machine
    from gnnquant.backends.tvm.layout import WeightLayout


def unpack(name: str, bits: int, zero2: int) -> Any:
    """``name(packed uint8 [bytes], unpacked int8 [size])``: codes to signed integers."""
    b = Builder(name)
    groups = 8 // bits
    chunks = b.size("bytes")
    packed = b.argument("packed", (chunks,), "uint8")
    unpacked = b.argument("unpacked", (b.size("size"),), "int8")
    step, zero = integer_steps(zero2)

    def body() -> None:
        with b.loop(chunks // CHUNK) as c:
            data = b.let(packed[span(c * CHUNK, CHUNK)])
            for group in range(groups):
                u = shift_right(data, group * bits, "uint8", CHUNK)
                if bits < 8:
                    u = u & splat(const(2**bits - 1, "uint8"), CHUNK)
                u = u + u if step == 2 else u
                u = u - splat(const(zero % 256, "uint8"), CHUNK)
                place = span((c * groups + group) * CHUNK, CHUNK)
                b.store(unpacked, reinterpret(u, "int8", CHUNK), place)

    return b.function(body)


def interleave(name: str, group: int, machine: Machine) -> Any:
    """``name(unpacked int8 [size], dense int32 [panels, words, block])``.

    A word holds ``group`` consecutive k of a column: 4 int8 or 2 int16, the first in the low bits.
    """
    b = Builder(name)
    lanes = machine.lanes
    bits = 32 // group
    unpacked = b.argument("unpacked", (b.size("size"),), "int8")
    panels, words, block = b.size("panels"), b.size("words"), b.size("block")
    dense = b.argument("dense", (panels, words, block), "int32")

    def body() -> None:
        padded = b.let(panels * block)
        with b.loop(panels) as panel, b.loop(words) as k, b.loop(block // lanes) as c:
            column = c * lanes
            word = None
            for i in range(group):
                place = (k * group + i) * padded + panel * block + column
                part = unpacked[span(place, lanes)]
                if i < group - 1:
                    part = cast(part, f"int{bits}", lanes)
                    part = cast(reinterpret(part, f"uint{bits}", lanes), "int32", lanes)
                else:
                    part = cast(part, "int32", lanes)
                part = shift_left(part, i * bits, "int32", lanes)
                word = part if word is None else word | part
            b.store(dense, word, panel, k, span(column, lanes))

    return b.function(body)


def join(name: str, layout: WeightLayout) -> Any:
    """``name(unpacked int8 [size], dense int32 [panels, words, 16])``: integers to codes, three to a byte.

    What is read behind the last input and the last column is met by codes of 0, or by nobody.
    """
    b = Builder(name)
    unpacked = b.argument("unpacked", (b.size("size"),), "int8")
    dense = b.argument("dense", (layout.panels, layout.words, LANES), "int32")

    def body() -> None:
        with b.loop(layout.panels) as panel, b.loop(layout.words) as k:
            word = None
            for i in range(GROUP):
                place = (k + i * layout.words) * layout.padded + panel * CODES
                codes = shift_left(_codes(unpacked[span(place, CODES)], layout), 2 * i, "int32", LANES)
                word = codes if word is None else word | codes
            ordered = shuffle([reinterpret(word, "int8", CODES)], column_order())
            b.store(dense, reinterpret(ordered, "int32", LANES), panel, k, span(0, LANES))

    return b.function(body)


def nibbles(name: str, layout: WeightLayout) -> Any:
    """``name(unpacked int8 [size], rows uint8 [inputs + 1, bytes])``: integers to codes, 4 bits apart.

    The upper codes of bytes are those of the 64 columns after the lower ones'. The last row is of zeros.
    """
    b = Builder(name)
    unpacked = b.argument("unpacked", (b.size("size"),), "int8")
    rows = b.argument("rows", (layout.inputs + 1, row_bytes(layout)), "uint8")

    def body() -> None:
        for first in range(0, layout.padded, 2 * CODES):
            place = span(first // 2, CODES)
            with b.loop(layout.inputs) as k:
                both = None
                for i, column in enumerate(range(first, min(first + 2 * CODES, layout.padded), CODES)):
                    codes = _codes(unpacked[span(k * layout.padded + column, CODES)], layout)
                    codes = shift_left(codes, 4 * i, "int32", LANES)
                    both = codes if both is None else both | codes
                b.store(rows, shuffle([reinterpret(both, "uint8", CODES)], column_order()), k, place)
            b.store(rows, splat(const(0, "uint8"), CODES), layout.inputs, place)

    return b.function(body)


def _codes(integers: Any, layout: WeightLayout) -> Any:
    """int32 [16]: the 2-bit codes of 64 integers of a weight, in the bytes of the lanes."""
    step, zero = integer_steps(layout.zero2)
    codes = reinterpret(integers + splat(const(zero, "int8"), CODES), "int32", LANES)
    return shift_right(codes, step - 1, "int32", LANES) & splat(const(0x03030303), LANES)
