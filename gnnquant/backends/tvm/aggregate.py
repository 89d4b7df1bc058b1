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
from gnnquant.backends.tvm.gemm import dot_bytes, dot_words, interleaved
from gnnquant.backends.tvm.layout import round_up
from gnnquant.backends.tvm.partition import resolve
from gnnquant.backends.tvm.segments import STARTS, combine
from gnnquant.integer_graph import EDGE_LEVELS, ONE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gnnquant.backends.tvm.rows import RowKernel
    from gnnquant.backends.tvm.values import Rows
    from gnnquant.integer_graph import Node

SLICE = 32768
"""Edges whose sums fit 32 bits at any width: 32768 * 127 * 510 < 2^31."""
RUNS = {8: 64, 4: 16, 2: 64}
"""Edges of a run by stored bits: of packed codes, as many as 16-bit sums are exact for."""
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


def _edge_weights(kernel: RowKernel, node: Node) -> Rows | None:
    """The second operand: a weight per edge and head."""
    if len(node.inputs) < 2:
        return None
    weights = kernel.reader(node.inputs[1])
    if weights.columns != node.attrs["heads"]:
        raise fail(node, f"{weights.columns} edge weights for {node.attrs['heads']} heads")
    return weights


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
        self.weights = _edge_weights(kernel, node)
        # one weight for all edges: 127 unless the scale is 0
        self.constant = self.scales is None and self.weights is None
        self.edges = ""
        if not self.constant:
            self.edges = kernel.context.add(
                f"weights.{graph}.{self.heads}", "float32", (graph, self.heads), "workspace"
            )
        self.padded = round_up(self.layout.chunks * self.layout.per_chunk * self.layout.lanes, 16)
        self.narrow = kernel.reserve("int32", self.padded)
        self.wide = kernel.reserve("int64", self.padded)
        self.sums = kernel.reserve("int64", self.heads)
        self.unit = kernel.reserve("float32", self.heads)
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
        self._edge_weights(first, degree)
        slices = (degree + (SLICE - 1)) // SLICE
        with b.when(slices != 1), b.loop(self.padded) as c:
            kernel.save("int64", const(0, "int64"), self.wide + c)
        with b.loop(slices) as index:
            start = b.let(first + index * SLICE)
            count = b.let(tirx.min(const(SLICE), degree - index * SLICE))
            self._accumulate(start, count)
            with b.when(slices != 1), b.loop(self.padded) as c:
                value = kernel.load("int64", self.wide + c)
                value = value + cast(kernel.load("int32", self.narrow + c), "int64")
                kernel.save("int64", value, self.wide + c)
        b.branch(slices == 1, lambda: self._finish(r, degree), lambda: self._finish_wide(r, degree))

    def _edge_weights(self, first: Any, degree: Any) -> None:
        """8-bit edge weights (as int32, in the memory of floats), their sums and units."""
        kernel, b, heads = self.kernel, self.kernel.b, self.heads
        if self.constant:
            scale = np.float32(self.source.attrs["scale"])
            weight, step = _constant_weight(scale)
            kernel.save("int64", cast(degree, "int64") * const(weight, "int64"), self.sums)
            kernel.save("float32", kernel.learned(step)(), self.unit)
            return
        edges = kernel.buffer(self.edges)
        if self.scales is None:
            source_scale = kernel.learned(self.source.attrs["scale"])
        largest = kernel.reserve("float32", heads)

        def each(body: Any) -> None:
            kernel.each(heads, body)

        each(lambda h: kernel.save("float32", number(0.0), largest + h))
        with b.loop(degree) as k:
            e = b.let(first + k)
            j = b.let(self.indices[e])

            def value(h: Any) -> None:
                weight = self._weight(e, h)
                v = weight
                if self.scales is not None:
                    scale = self.scales[j]
                    v = scale if weight is None else product(weight, scale, 1)
                elif weight is not None:
                    v = product(weight, source_scale(), 1)
                v = b.let(v)
                b.store(edges, v, e, h)
                best = maximum(kernel.load("float32", largest + h), unary("llvm.fabs", v, 1))
                kernel.save("float32", best, largest + h)

            each(value)

        def unit(h: Any) -> None:
            most = b.let(kernel.load("float32", largest + h))
            kernel.save("float32", most * number(float(UNIT)), self.unit + h)
            ratio = choose(most > number(0.0), number(EDGE_LEVELS) / most, number(0.0))
            kernel.save("float32", ratio, largest + h)
            kernel.save("int64", const(0, "int64"), self.sums + h)

        each(unit)
        with b.loop(degree) as k:

            def code(h: Any) -> None:
                e = first + k
                t = edges[e, h] * kernel.load("float32", largest + h)
                t = b.let(cast(unary("llvm.rint", t, 1), "int32"))
                b.store(edges, reinterpret(t, "float32"), e, h)
                total = kernel.load("int64", self.sums + h) + cast(t, "int64")
                kernel.save("int64", total, self.sums + h)

            each(code)

    def _weight(self, e: Any, h: Any) -> Any:
        if self.weights is None:
            return None
        return self.weights.at(e, h, 1)

    def _code(self, e: Any, group: Any) -> Any:
        """The 8-bit weight of edge e for the head of a group of columns."""
        if self.constant:
            return const(_constant_weight(np.float32(self.source.attrs["scale"]))[0])
        value = self.kernel.buffer(self.edges)[e, self._head(group)]
        return reinterpret(value, "int32")

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

    def _run(self, start: Any, count: Any, add: bool) -> None:
        """A run of edges, whose sums replace those in the int32 row or are added to them."""
        if self.layout.bits != 8:
            vectors = 2 * self.layout.chunk_bytes / (4 * self.kernel.lanes)
            by_pairs = self.heads == 1 and self.kernel.machine.bytes and vectors in (1, 2)
            (self._run_packed_pairs if by_pairs else self._run_packed)(start, count, add)
        elif (
            self.heads == 1
            and self.layout.lanes == self.kernel.lanes
            and self.kernel.machine.words
            and self.layout.groups % 4 == 0
        ):
            self._run_pairs(start, count, add)
        else:
            self._run_bytes(start, count, add)

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
                        weight = b.let(splat(self._code(e, group), lanes))
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
                both = 2 * pair + 1 < count
                e2 = b.let(tirx.min(e + 1, start + count - 1))
                j, j2 = b.let(self.indices[e]), b.let(self.indices[e2])
                for edge in (e, e2):
                    self._ask(edge, first, steps * width)
                upper = choose(both, shift_left(self._code(e2, 0), 16, "int32", 1), const(0))
                weights = (self._code(e, 0) & const(0xFFFF)) | upper
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
            for step in range(steps):
                values = [b.let(acc[4 * step + i]) for i in range(4)]
                for part, value in enumerate(_in_order(values, lanes)):
                    self._sum(value, self.narrow + first + step * width + part * lanes, lanes, add)

        kernel.each(self.layout.groups // (4 * steps), block)

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
        weights = self._run_weights(start, count)

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
                weight = b.let(reinterpret(splat(weights(pair), 2 * lanes), "int8", width))
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
                    self._spread([acc[slots[c, v, s]] for v in range(len(orders))], orders, add, (index * together + c) * per + s)

        kernel.each(layout.chunks // together, block)

    def _run_weights(self, start: Any, count: Any) -> Any:
        """``weights(pair)``: the weights of two edges of a run as the bytes of an int16; 0 behind the last."""
        kernel, b = self.kernel, self.kernel.b
        if self.constant:
            one = int(self._code(0, 0)) & 0xFF
            both = int(np.uint16(one | one << 8).astype(np.int16))
            return lambda pair: choose(2 * pair + 1 < count, const(both, "int16"), const(one, "int16"))
        bytes_ = kernel.reserve("uint8", max(RUNS.values()) + 1)
        with b.loop(count) as k:
            kernel.save("uint8", cast(cast(self._code(start + k, 0), "int8"), "uint8"), bytes_ + k)
        kernel.save("uint8", const(0, "uint8"), bytes_ + count)
        return lambda pair: reinterpret(kernel.load("uint8", bytes_ + 2 * pair, 2), "int16")

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
                            code = self._code(e, chunk * per + i)
                            weight = b.let(splat(cast(code, "int16"), lanes))
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
