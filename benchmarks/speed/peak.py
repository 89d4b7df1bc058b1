"""How many products this processor makes a second at most: on vectors, with operands in registers."""

from __future__ import annotations

import ctypes
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gnnquant.runtime import tvm_abi
from gnnquant.runtime.memory import address_of, aligned_array

if TYPE_CHECKING:
    from gnnquant.backends.tvm.emit import Machine

SUMS = 12
"""Sums that do not depend on each other: more than the latency of a product."""
TURNS = 1 << 18
REPEATS = 20


def products_per_second(*, integer: bool) -> float | None:
    """Products of bytes, or of float32 with an addition, on one core; the best of some measurements.

    None for bytes where the processor lacks products of four (AVX512-VNNI, AVX-VNNI, dotprod).
    """
    from gnnquant.backends.tvm import compile as compiler
    from gnnquant.backends.tvm import targets

    resolved = targets.resolve_target("native")
    machine, _ = targets.describe(resolved)
    if integer and not machine.quads:
        return None
    library = compiler.build_library({"peak": _kernel(machine, integer)}, resolved)
    tvm = tvm_abi.runtime()
    with tempfile.NamedTemporaryFile(suffix=".so") as file:
        Path(file.name).write_bytes(library)
        loaded = tvm.load_library(file.name)
    function = tvm_abi.find_function(loaded, "peak")
    assert function is not None
    wide = 4 if integer else 1
    kinds = ("uint8", "uint8", "int32") if integer else ("float32",) * 3
    lanes = (4 * machine.lanes, 4 * machine.lanes, SUMS * machine.lanes)
    arrays = [
        aligned_array((size if integer or index == 2 else machine.lanes,), np.dtype(kind))
        for index, (kind, size) in enumerate(zip(kinds, lanes, strict=True))
    ]
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
    return TURNS * SUMS * machine.lanes * wide / best


def _kernel(machine: Machine, integer: bool) -> Any:
    """A PrimFunc that adds the same products again and again."""
    from gnnquant.backends.tvm.emit import Builder, reinterpret, span
    from gnnquant.backends.tvm.gemm import dot_quads

    b, lanes = Builder("peak"), machine.lanes
    size, kind = (4 * lanes, "uint8") if integer else (lanes, "float32")
    sums_kind = "int32" if integer else "float32"
    first, second = b.argument("x", (size,), kind), b.argument("y", (size,), kind)
    out = b.argument("sums", (SUMS * lanes,), sums_kind)

    def body() -> None:
        sums = b.registers(SUMS, sums_kind, lanes)
        for index in range(SUMS):
            b.store(sums, out[span(index * lanes, lanes)], index)
        x, y = b.let(first[span(0, size)]), b.let(second[span(0, size)])
        if integer:
            y = b.let(reinterpret(y, "int8", size))
        with b.loop(TURNS):
            for index in range(SUMS):
                # a float sum is its own factor, or the product would be made once
                value = dot_quads(machine, sums[index], x, y) if integer else sums[index] * x + y
                b.store(sums, value, index)
        for index in range(SUMS):
            b.store(out, sums[index], span(index * lanes, lanes))

    return b.function(body)
