"""How many products this processor makes a second at most: on vectors, with operands in registers."""

from __future__ import annotations

import ctypes
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gnnquant.config import FLOAT_BITS
from gnnquant.runtime import tvm_abi
from gnnquant.runtime.memory import address_of, aligned_array

if TYPE_CHECKING:
    from gnnquant.backends.tvm.emit import Machine

SUMS = 12
"""Sums that do not depend on each other: more than the latency of a product."""
TURNS = 1 << 18
REPEATS = 20


@dataclass(frozen=True)
class _Kind:
    """Vectors of products: type and lanes of operands and of sums, and products of an instruction."""

    dtype: str
    lanes: int
    sums: str
    sums_lanes: int
    products: int


def _kind(machine: Machine, bits: int) -> _Kind | None:
    from gnnquant.backends.tvm.lookups import CODES, GROUP

    lanes = machine.lanes
    if bits == FLOAT_BITS:
        return _Kind("float32", lanes, "float32", lanes, lanes)
    if machine.by_lookups(bits):
        return _Kind("uint8", CODES, "uint8", CODES, GROUP * CODES)
    if machine.quads:
        return _Kind("uint8", 4 * lanes, "int32", lanes, 4 * lanes)
    if machine.bytes and bits < 8:
        # sums of two products fit 16 bits
        return _Kind("uint8", 4 * lanes, "int16", 2 * lanes, 4 * lanes)
    return _Kind("int16", 2 * lanes, "int32", lanes, 2 * lanes) if machine.words else None


def products_per_second(bits: int) -> float | None:
    """Products of codes of 8, 4 or 2 bits, or of float32, with an addition; the best of some measurements.

    Of one core, by what kernels use: products of four bytes where the processor has them (AVX512-VNNI,
    AVX-VNNI, dotprod), else of two bytes, or words where codes have 8 bits. Those of 2 bits are looked up
    where kernels do so. None for codes where the processor has none of these.
    """
    from gnnquant.backends.tvm import compile as compiler
    from gnnquant.backends.tvm import targets

    resolved = targets.resolve_target("native")
    machine, _ = targets.describe(resolved)
    kind = _kind(machine, bits)
    if kind is None:
        return None
    library = compiler.build_library({"peak": _kernel(machine, kind)}, resolved)
    tvm = tvm_abi.runtime()
    with tempfile.NamedTemporaryFile(suffix=".so") as file:
        Path(file.name).write_bytes(library)
        loaded = tvm.load_library(file.name)
    function = tvm_abi.find_function(loaded, "peak")
    assert function is not None
    shapes = ((kind.dtype, kind.lanes), (kind.dtype, kind.lanes), (kind.sums, SUMS * kind.sums_lanes))
    arrays = [aligned_array((size,), np.dtype(dtype)) for dtype, size in shapes]
    for array in arrays:
        array[:] = 0
    views = [tvm_abi.tensor_view(array.dtype.name, array.shape, address_of(array)) for array in arrays]
    packed, result = tvm_abi.tensor_arguments(views), tvm_abi.AnyValue()
    best = float("inf")
    for _ in range(REPEATS):
        start = time.perf_counter()
        status = function(None, ctypes.addressof(packed), len(views), ctypes.addressof(result))
        best = min(best, time.perf_counter() - start)
        tvm.check(status, "peak")
    return TURNS * SUMS * kind.products / best


def _kernel(machine: Machine, kind: _Kind) -> Any:
    """A PrimFunc that adds the same products again and again."""
    from gnnquant.backends.tvm.dots import dot_bytes, dot_quads, dot_words
    from gnnquant.backends.tvm.emit import Builder, intrinsic, reinterpret, span

    b = Builder("peak")
    first, second = (b.argument(name, (kind.lanes,), kind.dtype) for name in "xy")
    out = b.argument("sums", (SUMS * kind.sums_lanes,), kind.sums)

    def added(total: Any, x: Any, y: Any) -> Any:
        # where only operands were multiplied, that would be done once
        if kind.sums == "float32":
            return total * x + y
        if kind.sums == "uint8":
            return total + intrinsic(machine.lookup, f"uint8x{kind.lanes}", x, total)
        if kind.sums_lanes * 4 == kind.lanes:
            return dot_quads(machine, total, x, reinterpret(y, "int8", kind.lanes))
        pairs = dot_bytes if kind.sums == "int16" else dot_words
        operand = reinterpret(total, "int8" if kind.sums == "int16" else "int16", kind.lanes)
        return pairs(machine, x, operand) + reinterpret(y, kind.sums, kind.sums_lanes)

    def body() -> None:
        sums = b.registers(SUMS, kind.sums, kind.sums_lanes)
        places = [span(index * kind.sums_lanes, kind.sums_lanes) for index in range(SUMS)]
        for index, place in enumerate(places):
            b.store(sums, out[place], index)
        x, y = b.let(first[span(0, kind.lanes)]), b.let(second[span(0, kind.lanes)])
        with b.loop(TURNS):
            for index in range(SUMS):
                b.store(sums, added(sums[index], x, y), index)
        for index, place in enumerate(places):
            b.store(out, sums[index], place)

    return b.function(body)
