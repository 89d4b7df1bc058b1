"""Sums over the edges of a destination row."""
# ruff: noqa: C901, PLR0915
# Emitters nest like the loops that they emit: one function is one loop nest.

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from tvm import tirx

from gnnquant.backends.tvm.context import AHEAD, LINE, StoredCodes, fail
from gnnquant.backends.tvm.emit import (
    cast,
    choose,
    const,
    fold_sum,
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
    unary,
)
from gnnquant.backends.tvm.gemm import by_quads, dot_bytes, dot_quads, dot_words, interleaved
from gnnquant.backends.tvm.layout import round_up
from gnnquant.backends.tvm.partition import resolve
from gnnquant.backends.tvm.segments import STARTS, combine
from gnnquant.integer_graph import EDGE_LEVELS, ONE

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from gnnquant.backends.tvm.rows import RowKernel
    from gnnquant.backends.tvm.values import Rows
    from gnnquant.integer_graph import Node

SLICE = 32768
"""Edges whose sums fit 32 bits at any width: 32768 * 127 * 510 < 2^31."""
RUNS = {8: 64, 4: 16, 2: 64}
"""Edges of a run by stored bits: of packed codes, as many as 16-bit sums are exact for."""
KEPT = 256
"""Edges of a row whose weights are kept until they are rounded."""
UNIT = np.float32(0.5 / EDGE_LEVELS)


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
    return _WeightedSum(kernel, node, stored, source).emit()


class _Weights:
    """The second operand: a weight per edge and head, in memory or computed for one row after the other."""

    def __init__(self, kernel: RowKernel, node: Node) -> None:
        self.kernel = kernel
        self.name = resolve(kernel.context.graph, node.inputs[1])
        self.inlined = kernel.edges.get(self.name)
        columns = kernel.context.nodes[self.name].columns
        if columns != node.attrs["heads"]:
            raise fail(node, f"{columns} edge weights for {node.attrs['heads']} heads")
        self.rows: Rows | None = None if self.inlined else kernel.reader(self.name)

    def begin(self, r: Any, first: Any, degree: Any) -> None:
        """Compute those of row r of the block, where nobody did."""
        if self.inlined:
            self.inlined.row(self.kernel.base + r, first, degree)
            self.rows = self.inlined.exported(self.name)

    def at(self, edge: Any, head: Any, lanes: int) -> Any:
        """The weights of an edge of the row for ``lanes`` heads."""
        assert self.rows is not None
        return self.rows.at(edge, head, lanes)


def _edge_weights(kernel: RowKernel, node: Node) -> _Weights | None:
    return _Weights(kernel, node) if len(node.inputs) > 1 else None


class _WeightedSum:
    """Integer sums of codes times 8-bit edge weights."""

    def __init__(self, kernel: RowKernel, node: Node, stored: StoredCodes, source: Node) -> None:
        self.kernel = kernel
        self.node = node
        self.stored = stored
        self.layout = stored.layout
        self.source = source
        self.zero2 = source.attrs["zero2"]
        self.heads = node.attrs["heads"]
        if node.columns % self.heads or self.layout.heads % self.heads:
            raise fail(node, f"{node.columns} columns do not divide into {self.heads} heads")
        graph = node.attrs["graph"]
        self.indptr = kernel.graph_buffer(graph, "indptr")
        self.indices = kernel.graph_buffer(graph, "src")
        self.codes = kernel.buffer(stored.buffer)
        self.scales = kernel.buffer(stored.scale) if stored.scale else None
        # one weight for all edges: 127 unless the scale is 0
        self.constant = self.scales is None and len(node.inputs) == 1
        self.padded = round_up(self.layout.chunks * self.layout.per_chunk * self.layout.lanes, 16)
        self.narrow = kernel.reserve("int32", self.padded)
        self.wide = kernel.reserve("int64", self.padded)
        self.sums = kernel.reserve("int64", self.heads)
        self.unit = kernel.reserve("float32", self.heads)
        self.method, self.code = self._way()
        self.edge_codes = _EdgeCodes(self, self.code)
        self.save: Any = None

    def emit(self) -> Rows:
        rows, save = self.kernel.local(self.node.columns)
        self.save = save
        self.kernel.each_row(self._row)
        return rows

    def _row(self, r: Any) -> None:
        kernel, b = self.kernel, self.kernel.b
        first = b.let(self.indptr[kernel.base + r])
        degree = b.let(self.indptr[kernel.base + r + 1] - first)
        if self.edge_codes.weights is not None:
            self.edge_codes.weights.begin(r, first, degree)
        self.edge_codes.begin(first, degree)
        slices = (degree + (SLICE - 1)) // SLICE
        with b.when(slices != 1), b.loop(self.padded) as c:
            kernel.save("int64", const(0, "int64"), self.wide + c)
        with b.loop(slices) as index:
            start = b.let(first + index * SLICE)
            count = b.let(tirx.min(const(SLICE), degree - index * SLICE))
            self.edge_codes.begin_slice()
            self._accumulate(start, count)
            self.edge_codes.end_slice()
            with b.when(slices != 1), b.loop(self.padded) as c:
                value = kernel.load("int64", self.wide + c)
                value = value + cast(kernel.load("int32", self.narrow + c), "int64")
                kernel.save("int64", value, self.wide + c)
        b.branch(slices == 1, lambda: self._finish(r, degree), lambda: self._finish_wide(r, degree))

    def _head(self, group: Any) -> Any:
        """The head (of this aggregation) of a group."""
        if self.heads == 1:
            return 0
        return self.layout.head(group) // (self.layout.heads // self.heads)

    def _accumulate(self, start: Any, count: Any) -> None:
        """Sums of codes times weights over ``count`` edges into the int32 row.

        A run of edges at a time, all columns of it: what later columns read is still in cache.
        """
        run = RUNS[self.layout.bits]
        self._run(start, tirx.min(count, const(run)), False)
        with self.kernel.b.loop(tirx.max((count + (run - 1)) // run - 1, 0)) as more:
            begin = self.kernel.b.let((more + 1) * run)
            self._run(start + begin, tirx.min(const(run), count - begin), True)

    def _way(self) -> tuple[Callable[[Any, Any, bool], None], str]:
        """The loop nest of a run, and the type in which it reads the weights of edges."""
        machine, lanes = self.kernel.machine, self.kernel.lanes
        if self.layout.bits != 8:
            vectors = 2 * self.layout.chunk_bytes / (4 * lanes)
            if self.heads == 1 and machine.bytes and vectors in (1, 2):
                return self._run_packed_pairs, "int8"
            return self._run_packed, "int16"
        if self.heads == 1 and self.layout.lanes == lanes and self.layout.groups % 4 == 0:
            if by_quads(machine, 8):
                return self._run_quads, "int8"
            if machine.words:
                return self._run_pairs, "int16"
        return self._run_bytes, "int32"

    def _run(self, start: Any, count: Any, add: bool) -> None:
        """A run of edges, whose sums replace those in the int32 row or are added to them."""
        self.edge_codes.write(start, count)
        self.method(start, count, add)

    def _ask(self, e: Any, first: Any, size: int) -> None:
        """Prefetch ``size`` bytes of the row of an edge that comes later."""
        b = self.kernel.b
        ahead = b.let(self.indices[e + AHEAD])
        for line in range(0, size, LINE):
            b.prefetch(self.codes[ahead, first + line])

    def _sum(self, value: Any, place: Any, lanes: int, add: bool) -> None:
        if add:
            value = value + self.kernel.load("int32", place, lanes)
        self.kernel.save("int32", value, place, lanes)

    def _run_bytes(self, start: Any, count: Any, add: bool) -> None:
        kernel, b, lanes = self.kernel, self.kernel.b, self.layout.lanes
        groups = self.layout.groups
        together = _divisor(groups, 8)
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
        steps = _divisor(self.layout.groups // 4, 2)
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

    def _run_quads(self, start: Any, count: Any, add: bool) -> None:
        """Bytes of four edges at a time, interleaved, so that one product adds all of them."""
        kernel, b, lanes = self.kernel, self.kernel.b, self.layout.lanes
        width = 4 * lanes
        steps = _divisor(self.layout.groups // 4, 2)
        by_bytes, by_words = interleaved(width, 16), interleaved(width // 2, 8)

        def block(index: Any) -> None:
            acc = b.registers(4 * steps, "int32", lanes)
            for i in range(4 * steps):
                b.store(acc, splat(const(0), lanes), i)
            first = index * (steps * width)
            with b.loop((count + 3) // 4) as quad:
                last = start + count - 1
                edges = [b.let(tirx.min(start + 4 * quad + i, last)) for i in range(4)]
                nodes = [b.let(self.indices[edge]) for edge in edges]
                for edge in edges:
                    self._ask(edge, first, steps * width)
                weights = splat(self.edge_codes.several(quad, count, 4), lanes)
                weight = b.let(reinterpret(weights, "int8", width))
                for step in range(steps):
                    place = first + step * width
                    rows = [b.let(self.codes[node, span(place, width)]) for node in nodes]
                    for half, order in enumerate(by_bytes):
                        pairs = [
                            b.let(reinterpret(shuffle(rows[i : i + 2], order), "uint16", 2 * lanes))
                            for i in (0, 2)
                        ]
                        for quarter, order_ in enumerate(by_words):
                            four = reinterpret(shuffle(pairs, order_), "uint8", width)
                            i = 4 * step + 2 * half + quarter
                            b.store(acc, dot_quads(kernel.machine, acc[i], four, weight), i)
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

    def _scaled(self, value: Any, head: Any, degree: Any, lanes: int) -> Any:
        """The float result of exact sums given as floats."""
        kernel = self.kernel
        y = product(value, splat(kernel.load("float32", self.unit + head), lanes), lanes)
        if self.node.attrs["reduce"] == "mean":
            y = y / splat(cast(maximum(degree, const(1)), "float32"), lanes)
        return y

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
                    sums = cast(kernel.load("int64", self.sums + head), "int32") * const(self.zero2)
                    value = value - splat(sums, lanes)
                y = self._scaled(cast(value, "float32", lanes), head, degree, lanes)
                self.save(r, layout.column(index) + part * lanes, y, lanes)

        kernel.each(layout.groups, group)

    def _finish_wide(self, r: Any, degree: Any) -> None:
        """Rows without edges and rows of more than ``SLICE`` edges."""
        kernel, layout = self.kernel, self.layout

        def group(index: Any) -> None:
            def column(c: Any) -> None:
                value = kernel.load("int64", self.wide + index * layout.lanes + c)
                head = self._head(index)
                sums = kernel.load("int64", self.sums + head)
                value = value + value - sums * const(self.zero2, "int64")
                y = self._scaled(cast(value, "float32"), head, degree, 1)
                self.save(r, layout.column(index) + c, y, 1)

            with kernel.b.loop(layout.lanes) as c:
                column(c)

        kernel.each(layout.groups, group)


class _EdgeCodes:
    """The 8-bit weights of a destination's edges: their unit, their sum, and a run of them at a time.

    ``v = a_e * s_j`` is needed twice, for its largest magnitude and for the codes. With one head the first
    ``KEPT`` of a row are kept, and rounded in vectors; what comes later, and heads, which are vectors
    themselves where there are enough of them, are computed again.
    """

    def __init__(self, total: _WeightedSum, dtype: str) -> None:
        self.total = total
        self.kernel = total.kernel
        self.dtype = dtype
        self.constant = total.constant
        self.heads = total.heads
        self.weights = _edge_weights(self.kernel, total.node)
        self.scale: Any = None
        self.first: Any = None
        if self.constant:
            return
        if total.scales is None:
            self.scale = self.kernel.learned(total.source.attrs["scale"])
        lanes, reserve = self.kernel.lanes, self.kernel.reserve
        self.single = self.heads == 1
        self.lanes = lanes if self.single or self.heads % lanes == 0 else 1
        self.slots = lanes if self.single else self.heads
        self.stored = {"int8": "uint8", "int16": "uint16", "int32": "int32"}[dtype]
        self.place = reserve(self.stored, (RUNS[total.layout.bits] + lanes) * self.heads)
        self.kept = reserve("float32", KEPT + lanes) if self.single else 0
        self.totals = reserve("int32", self.slots)
        self.ratio = reserve("float32", self.heads)

    def begin(self, first: Any, degree: Any) -> None:
        """Units of a row, and zeros for its sums."""
        kernel, sums = self.kernel, self.total.sums
        self.first = first
        if self.constant:
            weight, step = _constant_weight(np.float32(self.total.source.attrs["scale"]))
            kernel.save("int64", cast(degree, "int64") * const(weight, "int64"), sums)
            kernel.save("float32", kernel.learned(step)(), self.total.unit)
            return
        (self._largest_of_row if self.single else self._largest_of_heads)(first, degree)
        kernel.each(self.heads, lambda h: kernel.save("int64", const(0, "int64"), sums + h))

    def _largest_of_row(self, first: Any, degree: Any) -> None:
        kernel, b, lanes = self.kernel, self.kernel.b, self.kernel.lanes
        most = b.registers(1, "float32")
        b.store(most, number(0.0), 0)
        with b.loop(degree) as k:
            v = b.let(self._value(first + k, 0, 1))
            kernel.save("float32", v, self.kept + tirx.min(k, const(KEPT)))
            b.store(most, maximum(most[0], unary("llvm.fabs", v, 1)), 0)
        # lanes behind the last edge weigh 0
        kernel.save("float32", number(0.0, lanes), self.kept + tirx.min(degree, const(KEPT)), lanes)
        self._unit(most[0], 0, 1)

    def _largest_of_heads(self, first: Any, degree: Any) -> None:
        kernel, b, lanes, ratio = self.kernel, self.kernel.b, self.lanes, self.ratio

        def each(body: Callable[[Any], None]) -> None:
            kernel.each(self.heads // lanes, lambda i: body(i * lanes))

        each(lambda h: kernel.save("float32", number(0.0, lanes), ratio + h, lanes))
        with b.loop(degree) as k:
            edge = b.let(first + k)

            def compare(h: Any) -> None:
                v = unary("llvm.fabs", self._value(edge, h, lanes), lanes)
                v = maximum(kernel.load("float32", ratio + h, lanes), v)
                kernel.save("float32", v, ratio + h, lanes)

            each(compare)
        each(lambda h: self._unit(kernel.load("float32", ratio + h, lanes), h, lanes))

    def _unit(self, most: Any, head: Any, lanes: int) -> None:
        kernel = self.kernel
        most = kernel.b.let(most)
        zero = number(0.0, lanes)
        kernel.save("float32", most * number(float(UNIT), lanes), self.total.unit + head, lanes)
        ratio = choose(most > zero, number(EDGE_LEVELS, lanes) / most, zero)
        kernel.save("float32", ratio, self.ratio + head, lanes)

    def begin_slice(self) -> None:
        """Zeros for the 32-bit sums."""
        if not self.constant:
            lanes = self.lanes
            self.kernel.each(
                self.slots // lanes,
                lambda i: self.kernel.save("int32", splat(const(0), lanes), self.totals + i * lanes, lanes),
            )

    def end_slice(self) -> None:
        """Add the 32-bit sums, exact for ``SLICE`` edges, to those of the row."""
        if self.constant:
            return
        kernel, sums = self.kernel, self.total.sums

        def add(value: Any, head: Any) -> None:
            kernel.save("int64", kernel.load("int64", sums + head) + cast(value, "int64"), sums + head)

        if self.single:
            add(fold_sum(kernel.b.let(kernel.load("int32", self.totals, self.lanes)), self.lanes), 0)
        else:
            kernel.each(self.heads, lambda h: add(kernel.load("int32", self.totals + h), h))

    def write(self, start: Any, count: Any) -> None:
        """The codes of a run; with one head zeros follow up to the end of a vector."""
        if self.constant:
            return
        kernel, b = self.kernel, self.kernel.b
        if not self.single:
            with b.loop(count) as k:
                edge = b.let(start + k)

                def code(i: Any) -> None:
                    h, lanes = i * self.lanes, self.lanes
                    self._write(self._value(edge, h, lanes), k * self.heads + h, h, lanes)

                kernel.each(self.heads // self.lanes, code)
            return
        lanes = self.lanes
        begin = b.let(start - self.first)

        def from_kept() -> None:
            with b.loop((count + (lanes - 1)) // lanes) as i:
                v = kernel.load("float32", self.kept + begin + i * lanes, lanes)
                self._write(v, i * lanes, 0, lanes)

        def again() -> None:
            with b.loop(count) as k:
                self._write(self._value(start + k, 0, 1), k, 0, 1)
            kernel.save(self.stored, splat(const(0, self.stored), lanes), self.place + count, lanes)

        b.branch(begin + count <= KEPT, from_kept, again)

    def _write(self, v: Any, place: Any, head: Any, lanes: int) -> None:
        """Round ``lanes`` weights and add them to the sums."""
        kernel = self.kernel
        ratio = kernel.load("float32", self.ratio + head, 1 if self.single else lanes)
        ratio = splat(ratio, lanes) if self.single else ratio
        t = kernel.b.let(cast(unary("llvm.rint", v * ratio, lanes), "int32", lanes))
        slot = self.totals + head
        kernel.save("int32", kernel.load("int32", slot, lanes) + t, slot, lanes)
        if self.dtype != "int32":
            t = reinterpret(cast(t, self.dtype, lanes), self.stored, lanes)
        kernel.save(self.stored, t, self.place + place, lanes)

    def at(self, k: Any, head: Any) -> Any:
        """The weight of edge k of the run."""
        if self.constant:
            return const(self._one, self.dtype)
        value = self.kernel.load(self.stored, self.place + k * self.heads + head)
        return value if self.dtype == "int32" else reinterpret(value, self.dtype)

    def several(self, index: Any, count: Any, size: int) -> Any:
        """The weights of edges ``size * index`` on, as one integer; 0 is that of an edge behind the last."""
        bits = 8 if self.dtype == "int8" else 16
        wide = f"int{size * bits}"
        if not self.constant:
            return reinterpret(self.kernel.load(self.stored, self.place + size * index, size), wide)
        code = self._one & (2**bits - 1)
        left = self.kernel.b.let(count - size * index)
        result: Any = None
        for edges in range(1, size + 1):
            value = sum(code << (bits * edge) for edge in range(edges))
            constant = const(int(np.array(value, dtype=f"u{wide}").astype(wide)), wide)
            result = constant if result is None else choose(left >= edges, constant, result)
        return result

    @property
    def _one(self) -> int:
        return _constant_weight(np.float32(self.total.source.attrs["scale"]))[0]

    def _value(self, edge: Any, head: Any, lanes: int) -> Any:
        """``a_e * s_j(e)``, rounded once."""
        scales, indices = self.total.scales, self.total.indices
        scale = self.scale(lanes) if scales is None else splat(scales[indices[edge]], lanes)
        if self.weights is None:
            return scale
        return product(self.weights.at(edge, head, lanes), scale, lanes)


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


def _constant_weight(scale: Any) -> tuple[int, Any]:
    """The 8-bit weight of every edge, and its unit, where all edges weigh ``scale``."""
    if not scale > 0:
        return 0, np.float32(0)
    ratio = np.float32(EDGE_LEVELS) / scale
    return int(np.rint(scale * ratio)), scale * UNIT


def _divisor(value: int, most: int) -> int:
    """The largest divisor of ``value`` that is at most ``most``."""
    return next(d for d in range(most, 0, -1) if value % d == 0)


def _extreme_code(kernel: RowKernel, node: Node, stored: StoredCodes, source: Node) -> Rows:
    """``spmm`` with reduce "max" or "min"."""
    b, layout = kernel.b, stored.layout
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
    weights = _edge_weights(kernel, node)
    rows, save = kernel.local(node.columns)

    def row(r: Any) -> None:
        first = b.let(indptr[base + r])
        degree = b.let(indptr[base + r + 1] - first)
        if weights is not None:
            weights.begin(r, first, degree)

        def block(column: Any, lanes: int, vectors: int, head: Any) -> None:
            acc = b.registers(vectors, "float32", lanes)
            for v in range(vectors):
                b.store(acc, number(STARTS[reduce], lanes), v)
            with b.loop(degree) as k:
                e = b.let(first + k)
                j = b.let(indices[e])
                if vectors * lanes * 4 >= LINE:
                    ahead = b.let(indices[e + AHEAD])
                    kernel.prefetch(x, ahead, column, vectors * lanes)
                weight = None
                if weights is not None:
                    weight = b.let(splat(weights.at(e, head, 1), lanes))
                for v in range(vectors):
                    term = x.at(j, column + v * lanes, lanes)
                    if weight is not None:
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
            vectors = _divisor(count, 8)
            kernel.each(count // vectors, lambda i: block(i * (vectors * lanes), lanes, vectors, 0))
        elif heads == 1:
            kernel.columns(node.columns, False, lambda j, width: block(j, width, 1, 0))
        elif head_columns % lanes == 0:
            vectors = _divisor(head_columns // lanes, 8)
            width = vectors * lanes
            kernel.each(
                node.columns // width,
                lambda i: block(i * width, lanes, vectors, i // (head_columns // width)),
            )
        else:
            kernel.each(node.columns, lambda j: block(j, 1, 1, j // head_columns))

    kernel.each_row(row)
    return rows
