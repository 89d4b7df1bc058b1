"""Products of rows of codes most of which are 0 with a constant weight."""
# ruff: noqa: C901, PLR0917
# Emitters nest like the loops that they emit: one function is one loop nest.

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tvm import tirx

from gnnquant.backends.tvm import bitsums
from gnnquant.backends.tvm.dots import dot_bytes, dot_quads, dot_words
from gnnquant.backends.tvm.emit import cast, choose, const, reinterpret, shuffle, span, splat, transposed
from gnnquant.backends.tvm.layout import divisor, interleaved, quad_places, quads_of
from gnnquant.backends.tvm.nonzeros import MASKED, compress, nonzero, ones

if TYPE_CHECKING:
    from collections.abc import Callable

    from gnnquant.backends.tvm.emit import Machine
    from gnnquant.backends.tvm.layout import WeightLayout
    from gnnquant.backends.tvm.rows import RowKernel
    from gnnquant.backends.tvm.values import Codes

LEAST_INPUTS = 64
"""Fewest inputs of a weight for which zero codes are skipped."""
SHARE = 3
"""Zero codes are skipped where at most one code in this many is not zero."""
SHARE_OF_TILES = 16
"""The same where tiles multiply all codes."""
SHARE_OF_FEW = 8
"""The same for at most ``FEW`` columns where positions are found one by one: that takes as long as sums."""
FEW = 64
PARTS = 4
"""int32 of 128 bits, within which bytes of rows are interleaved."""


def gemm(
    kernel: RowKernel,
    q: Codes,
    layout: WeightLayout,
    name: str,
    reach: int,
    sums: tuple[int, int],
    dense: Callable[[], None],
) -> None:
    """Skip zero codes where most codes of the block are zero, else do all.

    Args:
        kernel: Where.
        q: The codes.
        layout: Of the weight.
        name: Of the weight.
        reach: Pairs of products whose int16 sums cannot overflow; 0 where pairs are of 16 bits.
        sums: Offset of the int32 sums, and numbers between their rows.
        dense: Does all.
    """
    b = kernel.b
    total, stride = sums
    parts = -(-layout.inputs // MASKED)
    by_bits = bitsums.sums_bits(kernel.machine, layout)
    masks = kernel.reserve("int64", q.size * parts) if kernel.machine.words and not by_bits else None
    found = b.registers(1, "int32")
    b.store(found, const(0), 0)

    def count(r: Any) -> None:
        start = q.start + r * q.stride
        if not kernel.machine.words:
            with b.loop(layout.inputs) as k:
                code = kernel.load("uint8", start + k)
                b.store(found, found[0] + choose(code != const(0, "uint8"), const(1), const(0)), 0)
            return
        with b.loop(parts) as part:
            mask = b.let(nonzero(kernel, start + part * MASKED))
            if masks is not None:
                kernel.save("int64", mask, masks + r * parts + part)
            b.store(found, found[0] + ones(mask), 0)

    q.each_row(b, count)
    if by_bits:
        some = bitsums.row_sums(kernel, q, layout, name)
    else:
        some = _row_sums(kernel, q, layout, name, reach, masks)

    def skip() -> None:
        def row(r: Any) -> None:
            if kernel.stream is not None:
                kernel.stream.ask(r, q.size)
            some(r, total + r * stride)

        q.each_row(b, row)

    b.branch(found[0] * _share(kernel.machine, layout) <= q.rows * layout.inputs, skip, dense)


def _share(machine: Machine, layout: WeightLayout) -> int:
    """Zero codes are skipped where at most one code in this many is not zero."""
    if machine.tiles:
        return SHARE_OF_TILES
    return SHARE if machine.front or layout.outputs > FEW else SHARE_OF_FEW


def _row_sums(
    kernel: RowKernel, q: Codes, layout: WeightLayout, name: str, reach: int, masks: int | None
) -> Callable[[Any, Any], None]:
    """Emits the sums of a row of codes, times their rows of the weight, and where they go.

    ``masks`` tell which codes are not 0, from that offset on; None where nobody has found them.
    """
    together = 4 if kernel.machine.by_quads(q.bits) else 2
    dtype = "uint8" if reach or together == 4 else "uint16"
    index = kernel.reserve("uint16", layout.inputs + MASKED)
    value = kernel.reserve(dtype, layout.inputs + MASKED)

    def row(r: Any, total: Any) -> None:
        mine = None if masks is None else masks + r * -(-layout.inputs // MASKED)
        count = compress(kernel, layout, q.start + r * q.stride, mine, (index, value, dtype), together)
        places = (index, value, count, total)
        if together == 4:
            _fours(kernel, layout, name, places)
        else:
            _pairs(kernel, layout, name, reach, places)

    return row


def _fours(kernel: RowKernel, layout: WeightLayout, name: str, places: tuple[Any, Any, Any, Any]) -> None:
    """Sum weight rows times codes, four rows at a time."""
    b, machine, lanes = kernel.b, kernel.machine, kernel.lanes
    index, value, fours, total = places
    weights = kernel.buffer(f"unpacked.{name}")
    width = 4 * lanes
    steps = divisor(layout.padded // width, machine.sums // 4)
    order = quad_places(width, lanes)

    def by_column(sums: list[Any]) -> list[Any]:
        if lanes == PARTS * PARTS:
            # parts of 128 bits change places; LLVM takes three times as many shuffles of four vectors
            return transposed(sums, lanes, PARTS)
        columns = [order.index(column) for column in range(width)]
        return [shuffle(sums, columns[first : first + lanes]) for first in range(0, width, lanes)]

    def panel(number_: Any) -> None:
        first = number_ * (steps * width)
        acc = b.registers(4 * steps, "int32", lanes)
        for i in range(4 * steps):
            b.store(acc, splat(const(0), lanes), i)
        with b.loop(fours) as four:
            rows = [cast(kernel.load("uint16", index + 4 * four + i), "int32") for i in range(4)]
            rows = [b.let(row * layout.padded + first) for row in rows]
            codes = splat(reinterpret(kernel.load("uint8", value + 4 * four, 4), "int32"), lanes)
            x = b.let(reinterpret(codes, "uint8", width))
            for step in range(steps):
                parts = [b.let(weights[span(row + step * width, width)]) for row in rows]
                quads = quads_of(parts, width, lanes, lambda vectors, lanes_: b.let(shuffle(vectors, lanes_)))
                for v, quad in enumerate(quads):
                    b.store(acc, dot_quads(machine, acc[4 * step + v], x, quad), 4 * step + v)
        for step in range(steps):
            place = total + first + step * width
            for part, sums in enumerate(by_column([b.let(acc[4 * step + v]) for v in range(4)])):
                kernel.save("int32", sums, place + part * lanes, lanes)

    kernel.each(layout.padded // (steps * width), panel)


def _pairs(
    kernel: RowKernel,
    layout: WeightLayout,
    name: str,
    reach: int,
    places: tuple[Any, Any, Any, Any],
) -> None:
    """Sum weight rows times codes, two rows at a time; bytes where ``reach`` pairs fit int16."""
    b, machine, lanes = kernel.b, kernel.machine, kernel.lanes
    index, value, pairs, total = places
    weights = kernel.buffer(f"unpacked.{name}")
    narrow = reach > 0
    width = (4 if narrow else 2) * lanes  # columns of one step
    steps = min(4, layout.padded // width)
    while layout.padded // width % steps:
        steps -= 1
    half = width // 2
    order_low, order_high = interleaved(width, 16 if narrow else 8)

    def load(k: Any, column: Any) -> Any:
        data = weights[span(k * layout.padded + column, width)]
        return data if narrow else cast(data, "int16", width)

    def panel(number_: Any) -> None:
        first = number_ * (steps * width)
        kind = "int16" if narrow else "int32"
        acc = b.registers(2 * steps, kind, half)

        def clear() -> None:
            for i in range(2 * steps):
                b.store(acc, splat(const(0, kind), half), i)

        def pair(p: Any) -> None:
            k1 = b.let(cast(kernel.load("uint16", index + 2 * p), "int32"))
            k2 = b.let(cast(kernel.load("uint16", index + 2 * p + 1), "int32"))
            two = kernel.load("uint8" if narrow else "uint16", value + 2 * p, 2)
            both = splat(reinterpret(two, "int16" if narrow else "int32"), half)
            x = b.let(reinterpret(both, "uint8" if narrow else "int16", width))
            for step in range(steps):
                one = b.let(load(k1, first + step * width))
                other = b.let(load(k2, first + step * width))
                for side, order in enumerate((order_low, order_high)):
                    mixed = shuffle([one, other], order)
                    dot = dot_bytes(machine, x, mixed) if narrow else dot_words(machine, x, mixed)
                    b.store(acc, acc[2 * step + side] + dot, 2 * step + side)

        def flush(add: bool) -> None:
            for step in range(steps):
                low, high = b.let(acc[2 * step]), b.let(acc[2 * step + 1])
                _store_sums(kernel, low, high, narrow, total + first + step * width, add)

        if not narrow:
            clear()
            with b.loop(pairs) as p:
                pair(p)
            flush(False)
            return
        clear()
        with b.loop(tirx.min(pairs, const(reach))) as p:
            pair(p)
        flush(False)
        if 2 * reach < layout.inputs:
            with b.loop((pairs + (reach - 1)) // reach - 1) as more:
                clear()
                begin = b.let((more + 1) * reach)
                with b.loop(tirx.min(pairs - begin, const(reach))) as p:
                    pair(begin + p)
                flush(True)

    kernel.each(layout.padded // (steps * width), panel)


def _store_sums(kernel: RowKernel, low: Any, high: Any, narrow: bool, place: Any, add: bool) -> None:
    """Write two interleaved accumulators as int32 in column order."""
    lanes = kernel.lanes
    size = 2 * lanes if narrow else lanes  # lanes of an accumulator
    run = 8 if narrow else 4  # columns that an accumulator holds of each 128-bit part
    order = []
    for part in range(size // run):
        order += list(range(part * run, part * run + run))
        order += list(range(size + part * run, size + part * run + run))
    for begin in range(0, 2 * size, lanes):
        value = shuffle([low, high], order[begin : begin + lanes])
        if narrow:
            value = cast(value, "int32", lanes)
        if add:
            value = value + kernel.load("int32", place + begin, lanes)
        kernel.save("int32", value, place + begin, lanes)
