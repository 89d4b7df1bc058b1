"""Which codes of a row are not 0: masks, positions, and values side by side."""
# ruff: noqa: PLR0917
# Emitters read where codes are and where their positions and values go.

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tvm import tirx

from gnnquant.backends.tvm.emit import cast, choose, const, intrinsic, reinterpret, shift_left, shuffle, splat

if TYPE_CHECKING:
    from gnnquant.backends.tvm.layout import WeightLayout
    from gnnquant.backends.tvm.rows import RowKernel

MASKED = 64
"""Codes whose zeros are found at a time."""
BATCH = 8
"""Positions that are written at a time."""


def ones(mask: Any) -> Any:
    """How many bits of an int64 are set."""
    return cast(intrinsic("llvm.ctpop.i64", "int64", mask), "int32")


def nonzero(kernel: RowKernel, start: Any) -> Any:
    """int64: which of ``MASKED`` bytes are not 0."""
    width = 32 if kernel.lanes >= 8 else 16
    name = "llvm.x86.avx2.pmovmskb" if width == 32 else "llvm.x86.sse2.pmovmskb.128"
    result = None
    for part in range(0, MASKED, width):
        data = kernel.load("uint8", start + part, width)
        empty = choose(
            data == splat(const(0, "uint8"), width),
            splat(const(-1, "int8"), width),
            splat(const(0, "int8"), width),
        )
        bits = cast(reinterpret(intrinsic(name, "int32", empty), "uint32"), "int64")
        bits = shift_left(bits, part, "int64", 1)
        result = bits if result is None else result | bits
    return kernel.b.let(result ^ const(-1, "int64"))


def compress(
    kernel: RowKernel,
    layout: WeightLayout,
    start: Any,
    masks: Any,
    places: tuple[Any, Any, str],
    together: int,
) -> Any:
    """Positions and values of the codes that are not 0, in groups, the last one padded; how many groups.

    Args:
        kernel: Where.
        layout: Of the weight.
        start: Of the codes.
        masks: Of the bits that say which are not 0; None where nobody has found them.
        places: Where positions go, where values go, and the type of these.
        together: Codes of a group.
    """
    b = kernel.b
    index, value, dtype = places
    found = b.registers(1, "int32")
    b.store(found, const(0), 0)
    if masks is not None:
        # what is written beyond the last position is overwritten or not read
        with b.loop(-(-layout.inputs // MASKED)) as part:
            mask = b.let(kernel.load("int64", masks + part))
            place, total = b.let(found[0]), b.let(ones(mask))
            here = (index + place, value + place, dtype)
            if kernel.machine.front:
                _values_to_front(kernel, start + part * MASKED, part * MASKED, here, total)
            else:
                _write_each(kernel, start, part * MASKED, here, mask, total)
            b.store(found, place + total, 0)
    else:
        with b.loop(layout.inputs) as k:
            place = b.let(found[0])
            code = b.let(kernel.load("uint8", start + k))
            kernel.save("uint16", cast(k, "uint16"), index + place)
            kernel.save(dtype, cast(code, dtype), value + place)
            b.store(found, place + choose(code != const(0, "uint8"), const(1), const(0)), 0)
    kernel.save("uint16", splat(const(0, "uint16"), together), index + found[0], together)
    kernel.save(dtype, splat(const(0, dtype), together), value + found[0], together)
    return b.let((found[0] + (together - 1)) // together)


def _write_each(
    kernel: RowKernel, start: Any, first: Any, places: tuple[Any, Any, str], bits: Any, total: Any
) -> None:
    """Positions and values of the ``total`` codes from ``first`` on that ``bits`` tell."""
    b = kernel.b
    index, value, dtype = places
    mask = b.registers(1, "int64")
    b.store(mask, bits, 0)
    # a fixed number at a time, so that the loop ends where it is expected to
    with b.loop((total + (BATCH - 1)) // BATCH) as batch:
        for i in range(BATCH):
            low = intrinsic("llvm.cttz.i64", "int64", mask[0], const(0, "bool"))
            k = b.let(first + cast(low, "int32"))
            at = batch * BATCH + i
            kernel.save("uint16", cast(k, "uint16"), index + at)
            kernel.save(dtype, cast(kernel.load("uint8", start + k), dtype), value + at)
            b.store(mask, mask[0] & (mask[0] - const(1, "int64")), 0)


def _values_to_front(
    kernel: RowKernel, start: Any, first: Any, places: tuple[Any, Any, str], total: Any
) -> None:
    """The same of the ``MASKED`` codes at ``start``, all at once."""
    index, value, dtype = places
    codes = kernel.b.let(kernel.load("uint8", start, MASKED))
    there = codes != splat(const(0, "uint8"), MASKED)
    values = kernel.b.let(_to_front(kernel, codes, there))
    kernel.save(dtype, cast(values, dtype, MASKED), value, MASKED)
    positions_to_front(kernel, there, first, index, total)


def positions_to_front(kernel: RowKernel, there: Any, first: Any, index: Any, total: Any) -> None:
    """Positions from ``first`` on of those ``total`` among ``MASKED`` codes that a condition tells.

    They go to ``index``, where there must be room for ``MASKED``.
    """
    counted = tirx.Ramp(const(0, "uint8"), const(1, "uint8"), MASKED)
    positions = kernel.b.let(_to_front(kernel, counted, there))
    half = MASKED // 2

    def some(at: int) -> None:
        these = cast(shuffle([positions], range(at, at + half)), "uint16", half)
        kernel.save("uint16", these + splat(cast(first, "uint16"), half), index + at, half)

    some(0)
    with kernel.b.when(total > half):
        some(half)


def _to_front(kernel: RowKernel, values: Any, there: Any) -> Any:
    """Those of ``MASKED`` bytes that a condition tells, one after the other."""
    none = splat(const(0, "uint8"), MASKED)
    return intrinsic(kernel.machine.front, f"uint8x{MASKED}", values, none, there)
