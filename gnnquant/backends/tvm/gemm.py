"""Matrix products of a block of rows with a constant weight."""
# ruff: noqa: C901, PLR0915, PLR0917
# Emitters nest like the loops that they emit: one function is one loop nest.

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from tvm import tirx

from gnnquant.backends.tvm import lookups, sparse, tiles
from gnnquant.backends.tvm.codes import clear, halves_exactly, quantizer_of
from gnnquant.backends.tvm.context import fail
from gnnquant.backends.tvm.dots import dot_bytes, dot_quads, dot_words
from gnnquant.backends.tvm.emit import (
    cast,
    const,
    number,
    product,
    reinterpret,
    shuffle,
    span,
    splat,
)
from gnnquant.backends.tvm.layout import (
    CHUNK,
    WeightLayout,
    pack_weight,
    panels,
    round_up,
)
from gnnquant.backends.tvm.partition import resolve
from gnnquant.backends.tvm.stream import Stream
from gnnquant.backends.tvm.values import Codes, Rows
from gnnquant.integer_graph import integer_steps

if TYPE_CHECKING:
    from collections.abc import Callable

    from gnnquant.backends.tvm.context import Context
    from gnnquant.backends.tvm.rows import RowKernel
    from gnnquant.integer_graph import Node, PackedWeight

FLOAT_PANEL = 256
"""Inputs of a float panel: 256 by 16 floats are half of a first-level cache."""


def weight_layout(context: Context, name: str, group: int) -> WeightLayout:
    """The layout of a weight, declaring its buffers on first use."""
    key = f"{group}.{name}"
    if key not in context.weights:
        weight = context.graph.weights[name]
        lanes = context.machine.lanes
        inputs, outputs = weight.shape
        block = _panel(outputs, lanes, three=not context.machine.tiles)
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


def _panel(outputs: int, lanes: int, *, three: bool = True) -> int:
    """Columns of a panel: of ``three`` vectors where that spares a fourth and there are registers for it."""
    if three and lanes == 16 and 2 * lanes < outputs <= 3 * lanes:
        return 3 * lanes
    return lanes if outputs <= lanes else 2 * lanes


def _widths(outputs: int, block: int, lanes: int, *, halves: bool) -> list[int]:
    """Lanes of the vectors of a panel; the last of a single panel may have half, at half the cost."""
    widths = [lanes] * (block // lanes)
    if halves and outputs <= block - lanes // 2:
        widths[-1] = lanes // 2
    return widths


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
    # sums of codes less half the doubled zero point, where it is an integer, take the whole scale
    even = q.zero2 % 2 == 0 and halves_exactly(quantizer_of(kernel, node.inputs[0]))
    zero, by_quads = q.zero2 // 2 if even else q.zero2, machine.by_quads(q.bits) and not machine.tiles
    begins = even and group == 4 and by_quads
    offset = _Offset(kernel, integers.sum(axis=0) * zero, layout, begins=begins)

    def dense() -> None:
        _dense(kernel, q, layout, name, reach, (total, stride), offset)

    if q.zero2 == 0 and layout.inputs >= sparse.LEAST_INPUTS and layout.outputs >= 4 * lanes:
        sparse.gemm(kernel, q, layout, name, reach, (total, stride), dense)
    else:
        dense()
    if kernel.stream is not None:
        kernel.stream.multiplied()
    scale = kernel.keep(_padded(weight.column_scale, layout.padded))

    def at(r: Any, j: Any, width: int) -> Any:
        value = kernel.load("int32", total + r * stride + j, width)
        value = offset.subtracted(value if even else value + value, j, width)
        step = q.scale(r) if even else q.scale(r) * number(0.5)
        return product(
            cast(value, "float32", width) * splat(step, width), kernel.kept(scale + j, width), width
        )

    if parts == 1:
        return Rows(layout.outputs, True, at)
    return _join(kernel, parts, layout.outputs, at)


class _Offset:
    """What zero points make of sums of products, for each column.

    Args:
        kernel: Where.
        values: int [M], to be subtracted.
        layout: Of the weight.
        begins: Whether sums begin with it (:meth:`first`).
    """

    def __init__(self, kernel: RowKernel, values: Any, layout: WeightLayout, *, begins: bool) -> None:
        self._kernel, self._begins, self._place = kernel, begins, None
        if values.any():
            numbers = (-values if begins else values).astype(np.int32)
            self._place = kernel.keep(_padded(numbers, layout.padded))

    def first(self, column: Any, lanes: int) -> Any:
        """What the sums of some columns begin with."""
        return self._at(column, lanes) if self._begins and self._place is not None else splat(const(0), lanes)

    def subtracted(self, sums: Any, column: Any, lanes: int) -> Any:
        """Sums of some columns less what they did not begin with."""
        return sums if self._begins or self._place is None else sums - self._at(column, lanes)

    def _at(self, column: Any, lanes: int) -> Any:
        return reinterpret(self._kernel.kept(self._place + column, lanes), "int32", lanes)


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
    step, zero = integer_steps(weight.zero2)
    if (step * codes - zero != integers).any():
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
    sums: tuple[int, int],
    offset: _Offset,
) -> None:
    """All codes of the block, ``tall`` rows by ``wide`` vectors at a time."""
    b, machine, lanes = kernel.b, kernel.machine, kernel.lanes
    total, stride = sums
    group = layout.group
    dense = kernel.buffer(f"dense{group}.{name}")
    if machine.tiles and group == 4:
        tiles.tiled_gemm(kernel, q, layout, dense, sums)
        return
    if group == lookups.GROUP:
        lookups.gemm(kernel, q, layout, dense, sums)
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
    halves = group == 4 and not narrow and bool(machine.half_quads)
    widths = _widths(layout.outputs, layout.block, lanes, halves=halves)
    slices = -(-layout.words // reach) if narrow else 1
    length = min(reach, layout.words) if slices > 1 else layout.words

    def added(value: Any, x: Any, column: Any, width: int) -> Any:
        if narrow:
            return value + dot_bytes(machine, x, column)
        if group == 2:
            return value + dot_words(machine, x, column)
        return dot_quads(
            machine, value, x if width == lanes else shuffle([x], range(4 * width)), column, width
        )

    def tile(above: Any, panel: Any) -> None:
        dtype, size = ("int16", 2) if narrow else ("int32", 1)
        acc = [b.registers(tall, dtype, size * widths[c]) for c in range(wide)]
        ones = splat(const(1, "int16"), 2 * lanes)

        def place(r: int, c: int) -> Any:
            return total + (above * tall + r) * stride + panel * layout.block + c * lanes

        def part(index: Any) -> None:
            for c in range(wide):
                start = offset.first(panel * layout.block + c * lanes, widths[c])
                start = splat(const(0, "int16"), 2 * lanes) if narrow else b.let(start)
                for r in range(tall):
                    b.store(acc[c], start, r)
            first = index * length
            count: Any = length
            if slices > 1:
                count = tirx.min(const(length), layout.words - first)
            with b.loop(count) as step:
                k = first + step
                columns = [
                    b.let(
                        reinterpret(
                            dense[panel, k, span(c * lanes, widths[c])],
                            "int8" if group == 4 else "int16",
                            group * widths[c],
                        )
                    )
                    for c in range(wide)
                ]
                for r in range(tall):
                    x = b.let(factor(above * tall + r, k))
                    for c in range(wide):
                        b.store(acc[c], added(acc[c][r], x, columns[c], widths[c]), r)
            for r in range(tall):
                for c in range(wide):
                    value = acc[c][r]
                    if narrow:
                        value = dot_words(machine, value, ones)
                    if slices > 1:
                        value = value + kernel.load("int32", place(r, c), lanes)
                    kernel.save("int32", value, place(r, c), widths[c])

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
    block = _panel(outputs, lanes)
    padded, widths = round_up(outputs, block), _widths(outputs, block, lanes, halves=lanes >= 4)
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
        acc = [b.registers(tall, "float32", widths[c]) for c in range(wide)]
        for r in range(tall):
            for c in range(wide):
                b.store(acc[c], kernel.load("float32", place(above, r, panel, c), widths[c]), r)
        # rows beyond the last are computed again from it: they are never stored
        places = []
        for r in range(tall):
            row = above * tall + r
            outer, part_ = (row, 0) if parts == 1 else (row // parts, row % parts)
            places.append((b.let(tirx.min(outer, kernel.last - kernel.base)), part_ * inputs))
        with b.loop(count) as step:
            k = first + step
            columns = [b.let(weight[panel, k, span(c * lanes, widths[c])]) for c in range(wide)]
            for r in range(tall):
                outer, begin = places[r]
                value = b.let(x.at(outer, begin + k, 1))
                for c in range(wide):
                    b.store(acc[c], acc[c][r] + splat(value, widths[c]) * columns[c], r)
        for r in range(tall):
            for c in range(wide):
                kernel.save("float32", acc[c][r], place(above, r, panel, c), widths[c])

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
