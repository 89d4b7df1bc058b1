"""Matrix products of a block of rows with a constant weight."""
# ruff: noqa: C901, PLR0915, PLR0917
# Emitters nest like the loops that they emit: one function is one loop nest.

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from tvm import tirx

from gnnquant.backends.tvm import lookups, tiles
from gnnquant.backends.tvm.codes import clear
from gnnquant.backends.tvm.context import fail
from gnnquant.backends.tvm.emit import (
    cast,
    choose,
    const,
    intrinsic,
    number,
    product,
    reinterpret,
    shift_left,
    shift_right,
    shuffle,
    span,
    splat,
    transposed,
    vector_type,
)
from gnnquant.backends.tvm.layout import (
    CHUNK,
    WeightLayout,
    divisor,
    interleaved,
    pack_weight,
    panels,
    quad_places,
    quads_of,
    round_up,
)
from gnnquant.backends.tvm.lookahead import Stream
from gnnquant.backends.tvm.partition import resolve
from gnnquant.backends.tvm.values import Codes, Rows

if TYPE_CHECKING:
    from collections.abc import Callable

    from gnnquant.backends.tvm.context import Context
    from gnnquant.backends.tvm.emit import Machine
    from gnnquant.backends.tvm.rows import RowKernel
    from gnnquant.integer_graph import Node, PackedWeight

SPARSE_INPUTS = 64
"""Fewest inputs of a weight for which zero codes are skipped."""
SPARSE_SHARE = 3
"""Zero codes are skipped where at most one code in this many is not zero."""
SPARSE_SHARE_OF_TILES = 16
"""The same where tiles multiply all codes."""
MASKED = 64
"""Codes whose zeros are found at a time."""
BATCH = 8
"""Positions that are written at a time."""
PARTS = 4
"""int32 of 128 bits, within which bytes of rows are interleaved."""
FLOAT_PANEL = 256
"""Inputs of a float panel: 256 by 16 floats are half of a first-level cache."""


def dot_words(machine: Machine, x: Any, y: Any) -> Any:
    """Sums of products of adjacent int16 pairs: int16x2V by int16x2V to int32xV."""
    lanes = machine.lanes
    if machine.words:
        return intrinsic(machine.words, vector_type("int32", lanes), x, y)
    if all(machine.halves):
        multiply, add = machine.halves
        kind = vector_type("int32", lanes)
        parts = (range(lanes), range(lanes, 2 * lanes))
        products = (intrinsic(multiply, kind, shuffle([x], part), shuffle([y], part)) for part in parts)
        return intrinsic(add, kind, *products)
    x, y = reinterpret(x, "int32", lanes), reinterpret(y, "int32", lanes)

    def low(v: Any) -> Any:
        return shift_right(shift_left(v, 16, "int32", lanes), 16, "int32", lanes)

    def high(v: Any) -> Any:
        return shift_right(v, 16, "int32", lanes)

    return low(x) * low(y) + high(x) * high(y)


def dot_bytes(machine: Machine, x: Any, y: Any) -> Any:
    """Sums of products of adjacent byte pairs, x unsigned: bytes x4V to int16x2V."""
    return intrinsic(machine.bytes, vector_type("int16", 2 * machine.lanes), x, y)


def dot_quads(machine: Machine, sums: Any, x: Any, y: Any) -> Any:
    """``sums`` plus sums of products of four adjacent bytes, x unsigned: bytes x4V to int32xV."""
    return intrinsic(machine.quads, vector_type("int32", machine.lanes), sums, x, y)


def weight_layout(context: Context, name: str, group: int) -> WeightLayout:
    """The layout of a weight, declaring its buffers on first use."""
    key = f"{group}.{name}"
    if key not in context.weights:
        weight = context.graph.weights[name]
        lanes = context.machine.lanes
        inputs, outputs = weight.shape
        block = lanes if outputs <= lanes else 2 * lanes
        if lanes == 16 and not context.machine.tiles and 2 * lanes < outputs <= 3 * lanes:
            block = 3 * lanes  # there are registers for it: no fourth vector of padding
        padded = round_up(outputs, 4 * lanes if outputs >= 4 * lanes else block)
        depth = tiles.SIDE if context.machine.tiles and group == 4 else 1
        if group == lookups.GROUP:
            block, depth = lookups.CODES, lookups.FOUR
        layout = WeightLayout(inputs, outputs, padded, block, group, weight.zero2, depth)
        context.weights[key] = layout
        packed = pack_weight(weight, padded)
        context.constants[f"weight.{name}"] = packed
        context.add(f"weight.{name}", "uint8", packed.shape, "constant")
        unpacked = packed.size * (8 // weight.bits)
        # rows for words of any group, and vectors of bytes begin at any column
        rows = max(round_up(layout.rows, 4), round_up(inputs, lookups.GROUP * lookups.FOUR))
        size = max(unpacked, rows * padded + lookups.CODES)
        context.add(f"unpacked.{name}", "int8", (round_up(size, CHUNK),), "workspace")
        words = block if group != lookups.GROUP else lookups.LANES
        shape = (layout.panels, layout.words, words)
        context.add(f"dense{group}.{name}", "int32", shape, "workspace")
    return context.weights[key]


def integer_gemm(kernel: RowKernel, node: Node) -> Rows:
    """The op ``gemm``: ``(f32(sum_k (2u - zero2) w) * (s / 2)) * c``."""
    context, machine, lanes = kernel.context, kernel.machine, kernel.lanes
    name = node.attrs["weight"]
    weight = context.graph.weights[name]
    q = kernel.codes(node.inputs[0])
    parts = int(np.prod(context.nodes[node.inputs[0]].shape[:-1]))
    if parts != 1:
        q = _split(kernel, q, parts)
    integers = weight.integers.astype(np.int64)
    levels, largest = 2**q.bits - 1, _largest(weight)
    _check(node, weight, integers, q)
    # pairs of bytes are exact while their int16 sums cannot overflow, for at least 4 words; 0: not so
    reach = 32767 // max(2 * levels * largest, 1)
    reach = reach if machine.bytes and reach >= 4 else 0
    group = 4 if reach or machine.by_quads(q.bits) else 2
    group = lookups.GROUP if lookups.looks_up(machine, q.bits, weight) else group
    layout = weight_layout(context, name, group)
    stride = round_up(layout.padded, 16)
    total = kernel.reserve("int32", q.size * stride)
    sparse = q.zero2 == 0 and layout.inputs >= SPARSE_INPUTS and layout.outputs >= 4 * lanes
    product_of = _sparse if sparse else _dense
    product_of(kernel, q, layout, name, reach, total, stride)
    kernel.stream = None
    scale = kernel.keep(_padded(weight.column_scale, layout.padded))
    correction = None
    if q.zero2:
        sums = (q.zero2 * integers.sum(axis=0)).astype(np.int32)
        correction = kernel.keep(_padded(sums, layout.padded))

    def at(r: Any, j: Any, width: int) -> Any:
        value = kernel.load("int32", total + r * stride + j, width)
        value = value + value
        if correction is not None:
            value = value - reinterpret(kernel.kept(correction + j, width), "int32", width)
        half = splat(q.scale(r) * number(0.5), width)
        return product(cast(value, "float32", width) * half, kernel.kept(scale + j, width), width)

    if parts == 1:
        return Rows(layout.outputs, True, at)
    return _join(kernel, parts, layout.outputs, at)


def _split(kernel: RowKernel, q: Codes, parts: int) -> Codes:
    """Every row of codes as ``parts`` rows, with zeros behind each."""
    columns = q.columns // parts
    stride = round_up(columns + 64, 64)
    start = kernel.reserve("uint8", q.size * parts * stride)

    def row(r: Any) -> None:
        def part(a: Any) -> None:
            place, origin = start + (r * parts + a) * stride, q.start + r * q.stride + a * columns
            clear(kernel, place + columns, stride - columns)
            kernel.columns(
                columns,
                False,
                lambda j, lanes: kernel.save(
                    "uint8", kernel.load("uint8", origin + j, lanes), place + j, lanes
                ),
                width=4,
            )

        kernel.each(parts, part)

    kernel.each_row(row)
    return Codes(
        columns,
        q.bits,
        q.zero2,
        start,
        stride,
        q.size * parts,
        q.rows * parts,
        lambda r: q.scale(r // parts),
        q.fixed,
    )


def _join(kernel: RowKernel, parts: int, outputs: int, at: Callable[[Any, Any, int], Any]) -> Rows:
    """Rows of which each is ``parts`` rows of ``at``."""
    rows, save = kernel.local(parts * outputs)

    def row(r: Any) -> None:
        def part(a: Any) -> None:
            kernel.columns(
                outputs,
                False,
                lambda j, lanes: save(r, a * outputs + j, at(r * parts + a, j, lanes), lanes),
            )

        kernel.each(parts, part)

    kernel.each_row(row)
    return rows


def _padded(values: Any, size: int) -> Any:
    out = np.zeros(size, dtype=values.dtype)
    out[: values.size] = values
    return out


def _largest(weight: PackedWeight) -> int:
    """The largest magnitude that integers of this width and zero point can have."""
    top = 2**weight.bits - 1
    low, high = weight.zero2, 2 * top - weight.zero2
    return max(low, high) // (1 if weight.zero2 % 2 else 2)


def _check(node: Node, weight: PackedWeight, integers: Any, q: Codes) -> None:
    codes = weight.codes.astype(np.int64)
    exact = 2 * codes - weight.zero2 if weight.zero2 % 2 else codes - weight.zero2 // 2
    if (exact != integers).any():
        raise fail(node, f"weight {node.attrs['weight']!r} has integers beyond 8 signed bits")
    if weight.shape[0] != q.columns:
        raise fail(node, f"its weight has {weight.shape[0]} inputs, its operand {q.columns} columns")
    levels = max(2 * (2**q.bits - 1), q.zero2)
    if int(np.abs(integers).sum(axis=0).max(initial=0)) * levels >= 2**31:
        raise fail(
            node,
            f"{weight.shape[0]} inputs can exceed a 32-bit accumulator; use fewer bits or split it",
        )


def _dense(
    kernel: RowKernel,
    q: Codes,
    layout: WeightLayout,
    name: str,
    reach: int,
    total: int,
    stride: int,
) -> None:
    """All codes of the block, ``tall`` rows by ``wide`` vectors at a time."""
    b, machine, lanes = kernel.b, kernel.machine, kernel.lanes
    group = layout.group
    dense = kernel.buffer(f"dense{group}.{name}")
    if machine.tiles and group == 4:
        tiles.tiled_gemm(kernel, q, layout, dense, (total, stride))
        return
    if group == lookups.GROUP:
        lookups.gemm(kernel, q, layout, dense, (total, stride))
        return
    tall = next(rows for rows in (4, 3, 2, 1) if q.size % rows == 0)
    wide = layout.block // lanes
    words = kernel.reserve("uint16", q.size * q.stride) if group == 2 else 0
    if group == 2:
        _widen(kernel, q, layout, words)

    def factor(row: Any, k: Any) -> Any:
        """4 codes, or 2 widened ones, of a row in all lanes."""
        if group == 4:
            four = kernel.load("uint8", q.start + row * q.stride + k * 4, 4)
            return reinterpret(splat(reinterpret(four, "int32"), lanes), "uint8", 4 * lanes)
        two = kernel.load("uint16", words + row * q.stride + k * 2, 2)
        return reinterpret(splat(reinterpret(two, "int32"), lanes), "int16", 2 * lanes)

    narrow = group == 4 and not machine.by_quads(q.bits)
    slices = -(-layout.words // reach) if narrow else 1
    length = min(reach, layout.words) if slices > 1 else layout.words

    def tile(above: Any, panel: Any) -> None:
        acc = b.registers(tall * wide, "int16" if narrow else "int32", (2 if narrow else 1) * lanes)
        size = (2 if narrow else 1) * lanes
        ones = splat(const(1, "int16"), 2 * lanes)

        def place(r: int, c: int) -> Any:
            return total + (above * tall + r) * stride + panel * layout.block + c * lanes

        def part(index: Any) -> None:
            for i in range(tall * wide):
                b.store(acc, splat(const(0, "int16" if narrow else "int32"), size), i)
            first = index * length
            count: Any = length
            if slices > 1:
                count = tirx.min(const(length), layout.words - first)
            with b.loop(count) as step:
                k = first + step
                columns = [
                    b.let(
                        reinterpret(
                            dense[panel, k, span(c * lanes, lanes)],
                            "int8" if group == 4 else "int16",
                            group * lanes,
                        )
                    )
                    for c in range(wide)
                ]
                for r in range(tall):
                    x = b.let(factor(above * tall + r, k))
                    for c in range(wide):
                        slot = r * wide + c
                        if narrow:
                            value = acc[slot] + dot_bytes(machine, x, columns[c])
                        elif group == 4:
                            value = dot_quads(machine, acc[slot], x, columns[c])
                        else:
                            value = acc[slot] + dot_words(machine, x, columns[c])
                        b.store(acc, value, slot)
            for r in range(tall):
                for c in range(wide):
                    value = acc[r * wide + c]
                    if narrow:
                        value = dot_words(machine, value, ones)
                    if slices > 1:
                        value = value + kernel.load("int32", place(r, c), lanes)
                    kernel.save("int32", value, place(r, c), lanes)

        if slices > 1:
            for r in range(tall):
                for c in range(wide):
                    kernel.save("int32", splat(const(0), lanes), place(r, c), lanes)
        kernel.each(slices, part)

    # what is padded for products that skip zeros has panels of nothing else
    wide_panels, tall_panels = -(-layout.outputs // layout.block), q.size // tall

    def one(above: Any, panel: Any) -> None:
        if kernel.stream is not None:
            kernel.stream.ask(panel * tall_panels + above, wide_panels * tall_panels)
        tile(above, panel)

    kernel.each(wide_panels, lambda panel: kernel.each(tall_panels, lambda above: one(above, panel)))


def _widen(kernel: RowKernel, q: Codes, layout: WeightLayout, words: int) -> None:
    """16-bit copies of the codes."""
    width = 2 * kernel.lanes
    count = round_up(layout.rows, 8)

    def row(r: Any) -> None:
        def some(index: Any) -> None:
            value = kernel.load("uint8", q.start + r * q.stride + index * width, width)
            place = words + r * q.stride + index * width
            kernel.save("uint16", cast(value, "uint16", width), place, width)

        kernel.each(-(-count // width), some)

    q.each_row(kernel.b, row)


def _sparse(
    kernel: RowKernel,
    q: Codes,
    layout: WeightLayout,
    name: str,
    reach: int,
    total: int,
    stride: int,
) -> None:
    """Skip zero codes where most codes of the block are zero, else do all."""
    b = kernel.b
    together = 4 if kernel.machine.by_quads(q.bits) else 2
    dtype = "uint8" if reach or together == 4 else "uint16"
    index = kernel.reserve("uint16", layout.inputs + MASKED)
    value = kernel.reserve(dtype, layout.inputs + MASKED)
    parts = -(-layout.inputs // MASKED)
    masks = kernel.reserve("int64", q.size * parts) if kernel.machine.words else None
    found = b.registers(1, "int32")
    b.store(found, const(0), 0)

    def count(r: Any) -> None:
        start = q.start + r * q.stride
        if masks is None:
            with b.loop(layout.inputs) as k:
                code = kernel.load("uint8", start + k)
                b.store(found, found[0] + choose(code != const(0, "uint8"), const(1), const(0)), 0)
            return
        with b.loop(parts) as part:
            mask = b.let(_nonzero(kernel, start + part * MASKED))
            kernel.save("int64", mask, masks + r * parts + part)
            b.store(found, found[0] + _ones(mask), 0)

    q.each_row(b, count)

    def skip() -> None:
        def row(r: Any) -> None:
            if kernel.stream is not None:
                kernel.stream.ask(r, q.size)
            mine = None if masks is None else masks + r * parts
            count = _compress(kernel, layout, q.start + r * q.stride, mine, (index, value, dtype), together)
            places = (index, value, count, total + r * stride)
            if together == 4:
                _fours(kernel, layout, name, places)
            else:
                _pairs(kernel, layout, name, reach, places)

        q.each_row(b, row)

    b.branch(
        found[0] * (SPARSE_SHARE_OF_TILES if kernel.machine.tiles else SPARSE_SHARE)
        <= q.rows * layout.inputs,
        skip,
        lambda: _dense(kernel, q, layout, name, reach, total, stride),
    )


def _ones(mask: Any) -> Any:
    """How many bits of an int64 are set."""
    return cast(intrinsic("llvm.ctpop.i64", "int64", mask), "int32")


def _compress(
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
            place, total = b.let(found[0]), b.let(_ones(mask))
            here = (index + place, value + place, dtype)
            if kernel.machine.front:
                _move_to_front(kernel, start + part * MASKED, part * MASKED, here, total)
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


def _move_to_front(
    kernel: RowKernel, start: Any, first: Any, places: tuple[Any, Any, str], total: Any
) -> None:
    """The same of the ``MASKED`` codes at ``start``, all at once."""
    b = kernel.b
    index, value, dtype = places
    codes = b.let(kernel.load("uint8", start, MASKED))
    none = splat(const(0, "uint8"), MASKED)
    counted = tirx.Ramp(const(0, "uint8"), const(1, "uint8"), MASKED)
    values, positions = (
        b.let(intrinsic(kernel.machine.front, f"uint8x{MASKED}", moved, none, codes != none))
        for moved in (codes, counted)
    )
    kernel.save(dtype, cast(values, dtype, MASKED), value, MASKED)
    half = MASKED // 2

    def some(at: int) -> None:
        these = cast(shuffle([positions], range(at, at + half)), "uint16", half)
        kernel.save("uint16", these + splat(cast(first, "uint16"), half), index + at, half)

    some(0)
    with b.when(total > half):
        some(half)


def _nonzero(kernel: RowKernel, start: Any) -> Any:
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


def float_gemm(kernel: RowKernel, node: Node) -> Rows:
    """The op ``float_gemm``, with fused multiply-adds: the baseline that low bits are measured against."""
    b, context, lanes = kernel.b, kernel.context, kernel.lanes
    array = context.graph.constants[node.attrs["array"]]
    inputs, outputs = array.shape
    x = kernel.solid(kernel.float_rows(node.inputs[0]))
    shape = context.nodes[node.inputs[0]].shape
    if shape[-1] != inputs:
        raise fail(node, f"its weight has {inputs} inputs, its operand {shape[-1]} columns")
    parts = int(np.prod(shape[:-1]))
    size = kernel.block * parts
    block = lanes if outputs <= lanes else 2 * lanes
    padded = round_up(outputs, block)
    name = f"panels.{node.attrs['array']}"
    context.constants[name] = panels(array, padded, block)
    context.add(name, "float32", context.constants[name].shape, "constant")
    weight = kernel.buffer(name)
    tall, wide = next(rows for rows in (6, 4, 3, 2, 1) if size % rows == 0), block // lanes
    stride = round_up(padded, 16) + 16
    start = kernel.reserve("float32", size * stride)

    def place(above: Any, r: int, panel: Any, c: int) -> Any:
        return start + (above * tall + r) * stride + panel * block + c * lanes

    def tile(above: Any, panel: Any, first: Any, count: Any) -> None:
        acc = b.registers(tall * wide, "float32", lanes)
        for r in range(tall):
            for c in range(wide):
                b.store(acc, kernel.load("float32", place(above, r, panel, c), lanes), r * wide + c)
        # rows beyond the last are computed again from it: they are never stored
        places = []
        for r in range(tall):
            row = above * tall + r
            outer, part_ = (row, 0) if parts == 1 else (row // parts, row % parts)
            places.append((b.let(tirx.min(outer, kernel.last - kernel.base)), part_ * inputs))
        with b.loop(count) as step:
            k = first + step
            columns = [b.let(weight[panel, k, span(c * lanes, lanes)]) for c in range(wide)]
            for r in range(tall):
                outer, begin = places[r]
                value = b.let(splat(x.at(outer, begin + k, 1), lanes))
                for c in range(wide):
                    b.store(acc, acc[r * wide + c] + value * columns[c], r * wide + c)
        for r in range(tall):
            for c in range(wide):
                kernel.save("float32", acc[r * wide + c], place(above, r, panel, c), lanes)

    def empty(i: Any) -> None:
        kernel.save("float32", splat(number(0.0), lanes), start + i * lanes, lanes)

    kernel.each(size * stride // lanes, empty)

    across, along, slices = padded // block, size // tall, -(-inputs // FLOAT_PANEL)
    given = context.nodes[resolve(context.graph, node.inputs[0])].op == "input"
    stream = Stream(kernel, x) if given else None

    def part(index: Any) -> None:
        first = index * FLOAT_PANEL
        count: Any = inputs
        if inputs > FLOAT_PANEL:
            count = b.let(tirx.min(const(FLOAT_PANEL), inputs - first))

        def one(panel: Any, above: Any) -> None:
            if stream is not None:
                stream.ask((index * across + panel) * along + above, slices * across * along)
            tile(above, panel, first, count)

        kernel.each(across, lambda panel: kernel.each(along, lambda above: one(panel, above)))

    kernel.each(slices, part)

    def at(r: Any, j: Any, width: int) -> Any:
        return kernel.load("float32", start + r * stride + j, width)

    return Rows(outputs, True, at, True) if parts == 1 else _join(kernel, parts, outputs, at)
