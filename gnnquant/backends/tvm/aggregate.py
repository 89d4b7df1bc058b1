"""Sums over the edges of a destination row."""
# ruff: noqa: C901, PLR0915
# Emitters nest like the loops that they emit: one function is one loop nest.

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from tvm import tirx

from gnnquant.backends.tvm.context import FAR, LINE, NEAR, StoredCodes, fail
from gnnquant.backends.tvm.dots import dot_bytes, dot_words
from gnnquant.backends.tvm.edge_codes import edge_weights
from gnnquant.backends.tvm.emit import (
    cast,
    choose,
    const,
    maximum,
    minimum,
    number,
    product,
    reinterpret,
    shift_left,
    shift_right,
    shuffle,
    span,
    splat,
)
from gnnquant.backends.tvm.layout import CodeLayout, PlaneLayout, divisor, interleaved, vector_lanes
from gnnquant.backends.tvm.partition import resolve
from gnnquant.backends.tvm.quads import QuadSum
from gnnquant.backends.tvm.segments import STARTS, combine
from gnnquant.backends.tvm.sums import RowSums
from gnnquant.integer_graph import ONE

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from gnnquant.backends.tvm.rows import RowKernel
    from gnnquant.backends.tvm.values import Rows
    from gnnquant.integer_graph import Node

RUNS = {8: 64, 4: 16, 2: 64}
"""Edges of a run by stored bits: of packed codes, as many as 16-bit sums are exact for."""


def aggregate_codes(kernel: RowKernel, node: Node) -> Rows:
    """The op ``spmm``, for the rows of the block."""
    source = kernel.context.nodes[resolve(kernel.context.graph, node.inputs[0])]
    stored = kernel.context.stored.get(source.name)
    if not isinstance(stored, StoredCodes) or source.rows == ONE:
        raise fail(node, f"it cannot aggregate {source.op} {source.name!r}: only quantized rows of a space")
    if node.attrs["reduce"] in ("max", "min"):
        if stored.scale or len(node.inputs) > 1:
            raise fail(node, "extrema need one scale per tensor and no edge weight")
        return _extreme_code(kernel, node, stored, source)
    if node.attrs["reduce"] not in ("sum", "mean"):
        raise fail(node, f"unknown reduction {node.attrs['reduce']!r}")
    kind = QuadSum if isinstance(stored.layout, PlaneLayout) else _WeightedSum
    return kind(kernel, node, stored, source).emit()


class _WeightedSum(RowSums):
    """Sums where codes lie in groups of columns."""

    def __init__(self, kernel: RowKernel, node: Node, stored: StoredCodes, source: Node) -> None:
        assert isinstance(stored.layout, CodeLayout)
        self.layout = stored.layout
        if self.layout.heads % node.attrs["heads"]:
            raise fail(node, f"{node.columns} columns do not divide into {node.attrs['heads']} heads")
        self.method, dtype = self._way(kernel, node.attrs["heads"])
        slots = self.layout.chunks * self.layout.per_chunk * self.layout.lanes
        super().__init__(kernel, node, stored, source, slots=slots, run=RUNS[self.layout.bits], dtype=dtype)

    def _head(self, group: Any) -> Any:
        """The head (of this aggregation) of a group."""
        if self.heads == 1:
            return 0
        return self.layout.head(group) // (self.layout.heads // self.heads)

    def _way(self, kernel: RowKernel, heads: int) -> tuple[Callable[[Any, Any, bool], None], str]:
        """The loop nest of a run, and the type in which it reads the weights of edges."""
        machine, lanes = kernel.machine, kernel.lanes
        if self.layout.bits != 8:
            vectors = 2 * self.layout.chunk_bytes / (4 * lanes)
            if heads == 1 and machine.bytes and vectors in (1, 2):
                return self._run_packed_pairs, "int8"
            return self._run_packed, "int16"
        if heads == 1 and self.layout.lanes == lanes and self.layout.groups % 4 == 0 and machine.words:
            return self._run_pairs, "int16"
        return self._run_bytes, "int32"

    def _sum_run(self, start: Any, count: Any, add: bool) -> None:
        self.method(start, count, add)

    def _sum(self, value: Any, place: Any, lanes: int, add: bool) -> None:
        if add:
            value = value + self.kernel.load("int32", place, lanes)
        self.kernel.save("int32", value, place, lanes)

    def _run_bytes(self, start: Any, count: Any, add: bool) -> None:
        kernel, b, lanes = self.kernel, self.kernel.b, self.layout.lanes
        groups = self.layout.groups
        together = divisor(groups, 8)
        pairs = lanes == kernel.lanes and kernel.machine.words

        def block(index: Any) -> None:
            acc = b.registers(together, "int32", lanes)
            for g in range(together):
                b.store(acc, splat(const(0), lanes), g)
            with b.loop(count) as k:
                e = b.let(start + k)
                j = b.let(self.indices[e])
                self._ask(e, index * together * lanes, together * lanes)
                weight: Any = None
                for g in range(together):
                    group = index * together + g
                    if weight is None or self.heads > 1:
                        weight = b.let(splat(self.edge_codes.at(k, self._head(group)), lanes))
                    u = cast(self.codes[j, span(group * lanes, lanes)], "int32", lanes)
                    if pairs:
                        words = (reinterpret(v, "int16", 2 * lanes) for v in (u, weight))
                        term = dot_words(kernel.machine, *words)
                    else:
                        term = u * weight
                    b.store(acc, acc[g] + term, g)
            for g in range(together):
                self._sum(acc[g], self.narrow + (index * together + g) * lanes, lanes, add)

        kernel.each(groups // together, block)

    def _run_pairs(self, start: Any, count: Any, add: bool) -> None:
        """Bytes of two edges at a time: interleaved, then widened, so that one product adds both."""
        kernel, b, lanes = self.kernel, self.kernel.b, self.layout.lanes
        width = 4 * lanes
        steps = divisor(self.layout.groups // 4, 2)
        orders = interleaved(width, 16)
        zero = splat(const(0, "uint8"), width)

        def block(index: Any) -> None:
            acc = b.registers(4 * steps, "int32", lanes)
            for i in range(4 * steps):
                b.store(acc, splat(const(0), lanes), i)
            first = index * (steps * width)
            with b.loop((count + 1) // 2) as pair:
                e = b.let(start + 2 * pair)
                # an edge without a partner is its own, with the weight 0
                e2 = b.let(tirx.min(e + 1, start + count - 1))
                j, j2 = b.let(self.indices[e]), b.let(self.indices[e2])
                for edge in (e, e2):
                    self._ask(edge, first, steps * width)
                weights = self.edge_codes.several(pair, count, 2)
                weight = b.let(reinterpret(splat(weights, lanes), "int16", 2 * lanes))
                for step in range(steps):
                    place = first + step * width
                    rows = [b.let(self.codes[row, span(place, width)]) for row in (j, j2)]
                    for half, order in enumerate(orders):
                        mixed = b.let(shuffle(rows, order))
                        for quarter, order_ in enumerate(orders):
                            wide = reinterpret(shuffle([mixed, zero], order_), "int16", 2 * lanes)
                            i = 4 * step + 2 * half + quarter
                            b.store(acc, acc[i] + dot_words(kernel.machine, wide, weight), i)
            self._save_in_order(acc, first, steps, add)

        kernel.each(self.layout.groups // (4 * steps), block)

    def _save_in_order(self, acc: Any, first: Any, steps: int, add: bool) -> None:
        """Four vectors a step, of interleaved columns, to the int32 row."""
        lanes = self.layout.lanes
        for step in range(steps):
            values = [self.kernel.b.let(acc[4 * step + i]) for i in range(4)]
            for part, value in enumerate(_in_order(values, lanes)):
                self._sum(value, self.narrow + first + 4 * lanes * step + part * lanes, lanes, add)

    def _run_packed_pairs(self, start: Any, count: Any, add: bool) -> None:
        """Packed codes of two edges at a time: their bytes interleaved, so that one product adds both."""
        kernel, b, layout = self.kernel, self.kernel.b, self.layout
        lanes, per, size = kernel.lanes, layout.per_chunk, layout.chunk_bytes
        width, shifts = 4 * lanes, per // 2
        orders = interleaved(width, 16) if size == width else (interleaved(size, 2 * size)[0],)
        together = 2 if len(orders) * shifts < 8 and layout.chunks % 2 == 0 else 1
        parts = [(c, v, s) for c in range(together) for v in range(len(orders)) for s in range(shifts)]
        slots = {part: slot for slot, part in enumerate(parts)}
        mask = splat(const((2**layout.bits - 1) * 0x0101, "uint16"), 2 * lanes)

        def block(index: Any) -> None:
            acc = b.registers(len(slots), "int16", 2 * lanes)
            for slot in slots.values():
                b.store(acc, splat(const(0, "int16"), 2 * lanes), slot)
            with b.loop((count + 1) // 2) as pair:
                e = b.let(start + 2 * pair)
                # an edge without a partner is its own, with the weight 0
                e2 = b.let(tirx.min(e + 1, start + count - 1))
                rows = [b.let(self.indices[edge]) for edge in (e, e2)]
                for edge in (e, e2):
                    self._ask(edge, index * together * size, together * size)
                weights = self.edge_codes.several(pair, count, 2)
                weight = b.let(reinterpret(splat(weights, 2 * lanes), "int8", width))
                for c in range(together):
                    place = (index * together + c) * size
                    both = [b.let(self.codes[row, span(place, size)]) for row in rows]
                    for v, order in enumerate(orders):
                        mixed = b.let(reinterpret(shuffle(both, order), "uint16", 2 * lanes))
                        for s in range(shifts):
                            u = shift_right(mixed, s * layout.bits, "uint16", 2 * lanes) & mask
                            term = dot_bytes(kernel.machine, reinterpret(u, "uint8", width), weight)
                            b.store(acc, acc[slots[c, v, s]] + term, slots[c, v, s])
            for c in range(together):
                for s in range(shifts):
                    self._spread(
                        [acc[slots[c, v, s]] for v in range(len(orders))],
                        orders,
                        add,
                        (index * together + c) * per + s,
                    )

        kernel.each(layout.chunks // together, block)

    def _spread(self, sums: list[Any], orders: Sequence[list[int]], add: bool, group: Any) -> None:
        """Add 16-bit sums, in the order of interleaved bytes, to those of two groups.

        The low byte of a word holds codes of ``group``, the high byte those of the group ``per / 2`` later.
        """
        lanes, layout = self.kernel.lanes, self.layout
        where = {order[4 * p] // 2: v * lanes + p for v, order in enumerate(orders) for p in range(lanes)}
        words = [self.kernel.b.let(reinterpret(value, "int32", lanes)) for value in sums]
        low = [shift_right(shift_left(word, 16, "int32", lanes), 16, "int32", lanes) for word in words]
        high = [shift_right(word, 16, "int32", lanes) for word in words]
        for values, g in ((low, group), (high, group + layout.per_chunk // 2)):
            for part in range(0, layout.lanes, lanes):
                order = [where[part + i] for i in range(lanes)]
                value = values[0] if len(values) == 1 else shuffle(values, order)
                self._sum(value, self.narrow + g * layout.lanes + part, lanes, add)

    def _run_packed(self, start: Any, count: Any, add: bool) -> None:
        kernel, b, layout = self.kernel, self.kernel.b, self.layout
        lanes, per, size = layout.lanes, layout.per_chunk, layout.chunk_bytes
        together = 1 if per == 8 or layout.chunks % 2 else 2
        mask = splat(const(2**layout.bits - 1, "uint16"), lanes)

        def block(index: Any) -> None:
            acc = b.registers(together * per, "int16", lanes)
            base = self.narrow + index * (together * per * lanes)
            groups = [(c, i) for c in range(together) for i in range(per)]
            for c, i in groups:
                b.store(acc, splat(const(0, "int16"), lanes), c * per + i)
            with b.loop(count) as k:
                e = b.let(start + k)
                j = b.let(self.indices[e])
                self._ask(e, index * together * size, together * size)
                weight: Any = None
                for c in range(together):
                    chunk = index * together + c
                    data = self.codes[j, span(chunk * size, size)]
                    words = b.let(reinterpret(data, "uint16", lanes))
                    for i in range(per):
                        if weight is None or self.heads > 1:
                            head = self._head(chunk * per + i)
                            weight = b.let(splat(self.edge_codes.at(k, head), lanes))
                        u = shift_right(words, i * layout.bits, "uint16", lanes)
                        if i < per - 1:
                            u = u & mask
                        term = reinterpret(u, "int16", lanes) * weight
                        b.store(acc, acc[c * per + i] + term, c * per + i)
            parts = min(lanes, kernel.lanes)
            for c, i in groups:
                for part in range(0, lanes, parts):
                    value = acc[c * per + i]
                    if parts < lanes:
                        value = shuffle([value], range(part, part + parts))
                    self._sum(cast(value, "int32", parts), base + (c * per + i) * lanes + part, parts, add)

        kernel.each(layout.chunks // together, block)

    def _finish(self, r: Any, degree: Any) -> None:
        kernel, layout = self.kernel, self.layout
        lanes = min(layout.lanes, kernel.lanes)
        parts = layout.lanes // lanes

        def group(index: Any) -> None:
            for part in range(parts):
                place = self.narrow + index * layout.lanes + part * lanes
                value = kernel.load("int32", place, lanes)
                value = value + value
                head = self._head(index)
                if self.zero2:
                    sums = cast(kernel.load("int64", self.edge_codes.sums + head), "int32")
                    value = value - splat(sums * const(self.zero2), lanes)
                unit = splat(kernel.load("float32", self.edge_codes.unit + head), lanes)
                y = self._scaled(cast(value, "float32", lanes), unit, degree, lanes)
                self.save(r, layout.column(index) + part * lanes, y, lanes)

        kernel.each(layout.groups, group)

    def _finish_wide(self, r: Any, degree: Any) -> None:
        layout = self.layout

        def group(index: Any) -> None:
            with self.kernel.b.loop(layout.lanes) as c:
                slot, column = index * layout.lanes + c, layout.column(index) + c
                self.save(r, column, self._wide_sum(slot, self._head(index), degree), 1)

        self.kernel.each(layout.groups, group)


def _in_order(values: list[Any], lanes: int) -> list[Any]:
    """Four vectors in column order, given that number v holds every fourth run of 4 columns."""
    if lanes == 4:
        return values
    out = []
    for begin in range(0, 4 * lanes, lanes):
        runs = [divmod(column // 4, 4) for column in range(begin, begin + lanes, 4)]
        order = [n * lanes + part * 4 + i for n, (part, _) in enumerate(runs) for i in range(4)]
        out.append(shuffle([values[v] for _, v in runs], order))
    return out


def _extreme_code(kernel: RowKernel, node: Node, stored: StoredCodes, source: Node) -> Rows:
    """``spmm`` with reduce "max" or "min"."""
    b, layout = kernel.b, stored.layout
    assert isinstance(layout, CodeLayout)
    graph = node.attrs["graph"]
    indptr = kernel.graph_buffer(graph, "indptr")
    indices = kernel.graph_buffer(graph, "src")
    codes = kernel.buffer(stored.buffer)
    rows, save = kernel.local(node.columns)
    lanes, per, zero2 = layout.lanes, layout.per_chunk, source.attrs["zero2"]
    half = kernel.learned(np.float32(source.attrs["scale"]) * np.float32(0.5))
    dtype = "uint8" if layout.bits == 8 else "uint16"
    largest = node.attrs["reduce"] == "max"
    start = 0 if largest else 2**layout.bits - 1

    def row(r: Any) -> None:
        first = b.let(indptr[kernel.base + r])
        degree = b.let(indptr[kernel.base + r + 1] - first)

        def chunk(index: Any) -> None:
            acc = b.registers(per, dtype, lanes)
            for i in range(per):
                b.store(acc, splat(const(start, dtype), lanes), i)
            with b.loop(degree) as k:
                j = b.let(indices[first + k])
                data = codes[j, span(index * layout.chunk_bytes, layout.chunk_bytes)]
                for i in range(per):
                    u = data
                    if layout.bits != 8:
                        words = reinterpret(data, "uint16", lanes)
                        mask = splat(const(2**layout.bits - 1, "uint16"), lanes)
                        u = shift_right(words, i * layout.bits, "uint16", lanes) & mask
                    b.store(acc, (maximum if largest else minimum)(acc[i], u), i)
            for i in range(per):
                u = cast(acc[i], "int32", lanes)
                value = cast(u + u - splat(const(zero2), lanes), "float32", lanes)
                y = value * half(lanes)
                y = choose(splat(degree > 0, lanes), y, number(0.0, lanes))
                group = index * per + i
                if isinstance(group, int) and group >= layout.groups:
                    continue
                save(r, layout.column(group), y, lanes)

        kernel.each(layout.chunks, chunk)

    kernel.each_row(row)
    return rows


def aggregate_floats(kernel: RowKernel, node: Node) -> Rows:
    """The op ``float_spmm``, for the rows of the block."""
    b = kernel.b
    reduce, heads = node.attrs["reduce"], node.attrs["heads"]
    if reduce not in ("sum", "mean", "max", "min"):
        raise fail(node, f"unknown reduction {reduce!r}")
    if node.columns % heads:
        raise fail(node, f"{node.columns} columns do not divide into {heads} heads")
    graph = node.attrs["graph"]
    indptr = kernel.graph_buffer(graph, "indptr")
    indices = kernel.graph_buffer(graph, "src")
    base = kernel.base
    x = kernel.reader(node.inputs[0])
    head_columns = node.columns // heads
    weights = edge_weights(kernel, node)
    rows, save = kernel.local(node.columns)

    def row(r: Any) -> None:
        first = b.let(indptr[base + r])
        degree = b.let(indptr[base + r + 1] - first)
        if weights is not None:
            weights.begin(r, first, degree)

        def block(column: Any, lanes: int, vectors: int) -> None:
            acc = b.registers(vectors, "float32", lanes)
            for v in range(vectors):
                b.store(acc, number(STARTS[reduce], lanes), v)
            with b.loop(degree) as k:
                e = b.let(first + k)
                j = b.let(indices[e])
                if vectors * lanes * 4 >= LINE:
                    for distance, cache in ((NEAR, 1), (FAR, 2)):
                        kernel.prefetch(x, b.let(indices[e + distance]), column, vectors * lanes, cache=cache)
                weight, single = None, heads == 1 or head_columns % (vectors * lanes) == 0
                for v in range(vectors):
                    term = x.at(j, column + v * lanes, lanes)
                    if weights is not None:
                        if weight is None or not single:
                            head = 0 if heads == 1 else (column + v * lanes) // head_columns
                            weight = b.let(splat(weights.at(e, head, 1), lanes))
                        term = product(term, weight, lanes)
                    b.store(acc, combine(reduce, acc[v], term, lanes), v)
            for v in range(vectors):
                y = acc[v]
                if reduce == "mean":
                    y = y / splat(cast(maximum(degree, const(1)), "float32"), lanes)
                if reduce in ("max", "min"):
                    y = choose(splat(degree > 0, lanes), y, number(0.0, lanes))
                save(r, column + v * lanes, y, lanes)

        lanes = kernel.lanes
        if heads == 1 and (x.padded or node.columns % lanes == 0):
            count = -(-node.columns // lanes)
            vectors = divisor(count, 8)
            kernel.each(count // vectors, lambda i: block(i * (vectors * lanes), lanes, vectors))
        elif heads == 1:
            kernel.columns(node.columns, False, lambda j, width: block(j, width, 1))
        else:
            lanes = vector_lanes(head_columns, lanes)
            vectors = divisor(node.columns // lanes, 8)
            width = vectors * lanes
            kernel.each(node.columns // width, lambda i: block(i * width, lanes, vectors))

    kernel.each_row(row)
    return rows
