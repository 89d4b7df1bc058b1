"""The 8-bit weights of edges."""
# Emitters read places, heads and lanes side by side.

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from tvm import tirx

from gnnquant.backends.tvm.codes import weighed_scales
from gnnquant.backends.tvm.context import fail
from gnnquant.backends.tvm.emit import (
    cast,
    choose,
    const,
    fold_max,
    fold_sum,
    maximum,
    number,
    product,
    reinterpret,
    shift_left,
    shuffle,
    span,
    splat,
    unary,
)
from gnnquant.backends.tvm.layout import round_up, vector_lanes
from gnnquant.backends.tvm.maths import inverse
from gnnquant.backends.tvm.partition import resolve
from gnnquant.integer_graph import EDGE_LEVELS, SMALLEST

if TYPE_CHECKING:
    from collections.abc import Callable

    from gnnquant.backends.tvm.rows import RowKernel
    from gnnquant.backends.tvm.values import Rows
    from gnnquant.integer_graph import Node

KEPT = 1024
"""Edges of a row whose weights are kept until they are rounded in vectors; later ones go one by one."""
BEHIND = 2
"""Sums of four edges that may be read behind the last edge of a row."""
UNIT = np.float32(0.5 / EDGE_LEVELS)


def kept_edges(lanes: int, heads: int) -> int:
    """Edges of a row whose codes are kept together: fewer of many heads, in whole sums of edges."""
    together = 4 * BEHIND
    return max(KEPT * lanes // max(heads, lanes) // together, 1) * together


class EdgeWeights:
    """A second operand of edges: a weight for each head, in memory or computed for row after row."""

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

    def largest(self) -> Callable[[Any, int], Any] | None:
        """The largest weight of the row, which has an edge, by (head, lanes), where it is known."""
        return self.inlined.largest(self.name) if self.inlined else None

    def along(self, edge: Any, lanes: int) -> Any:
        """The weights of ``lanes`` edges, all of which must exist, for one head."""
        if self.inlined:
            return self.inlined.along(self.name, edge, lanes)
        one = self.at(edge, 0, 1)
        if hasattr(one, "indices") and len(one.indices) == 1:
            return one.source[span(one.indices[0], lanes)]
        return shuffle([self.at(edge + lane, 0, 1) for lane in range(lanes)], range(lanes))


class SourceWeights:
    """A second operand of sources: a number for all edges of each."""

    inlined = None

    def __init__(self, kernel: RowKernel, node: Node) -> None:
        if node.attrs["heads"] != 1:
            raise fail(node, "numbers of sources are the same for all heads")
        self.rows = kernel.reader(node.inputs[1])
        self.indices = kernel.graph_buffer(node.attrs["graph"], "src")

    def begin(self, r: Any, first: Any, degree: Any) -> None:
        """Nothing is to be computed."""

    def at(self, edge: Any, head: Any, lanes: int) -> Any:
        """The number of the edge's source."""
        return self.rows.at(self.indices[edge], head, lanes)

    def largest(self) -> None:
        """It is not known."""

    def along(self, edge: Any, lanes: int) -> Any:
        """Those of ``lanes`` edges, all of which must exist."""
        return shuffle([self.at(edge + lane, 0, 1) for lane in range(lanes)], range(lanes))


def edge_weights(kernel: RowKernel, node: Node) -> EdgeWeights | SourceWeights | None:
    """The weights of the edges that ``node`` sums over, where they have any."""
    if len(node.inputs) == 1:
        return None
    return SourceWeights(kernel, node) if node.attrs.get("per") == "source" else EdgeWeights(kernel, node)


class EdgeCodes:
    """The 8-bit weights of a destination's edges: their unit, their sum, and a run of them at a time.

    ``v = a_e * s_j`` is needed twice, for its largest magnitude and for the codes. With one head the first
    ``KEPT`` of a row are kept, and rounded in vectors; what comes later, and heads, which are vectors
    themselves where there are enough of them, are computed again.
    """

    def __init__(self, kernel: RowKernel, node: Node, scale: str, source: Node) -> None:
        self.kernel = kernel
        self.source = source
        self.heads = node.attrs["heads"]
        self.run = kept_edges(kernel.lanes, self.heads)
        weight = resolve(kernel.context.graph, node.inputs[1]) if len(node.inputs) > 1 else ""
        weighed = node.attrs.get("per") == "source" and weight in kernel.context.weighed.get(source.name, ())
        self.weights = None if weighed else edge_weights(kernel, node)
        self._inlined = None if self.weights is None else self.weights.inlined
        scale = weighed_scales(kernel.context, source, weight) if weighed else scale
        self.scales = kernel.buffer(scale) if scale else None
        # one weight for all edges: 127 unless the scale is 0
        self.constant = self.scales is None and len(node.inputs) == 1
        self.indices = kernel.graph_buffer(node.attrs["graph"], "src")
        self.scale: Any = None
        self.first: Any = None
        self.place: Any = None
        self.row: Any = 0
        self._places: _PerRow | None = None
        lanes, reserve = kernel.lanes, kernel.reserve
        self.indptr = kernel.graph_buffer(node.attrs["graph"], "indptr")
        self.sums = reserve("int64", self.heads)
        # vectors of them begin at any head
        self._units = _PerRow(kernel, "float32", self.heads + lanes)
        self._totals = _PerRow(kernel, "int32", self.heads + lanes)
        self.select(0)
        if self.constant:
            return
        if self.scales is None and not node.attrs.get("unscaled"):
            self.scale = kernel.learned(source.attrs["scale"])
        self.single = self.heads == 1
        self.lanes = lanes if self.single else vector_lanes(self.heads, lanes)
        self.slots = lanes if self.single else self.heads
        self._places = _PerRow(kernel, "uint8", self.run * self.heads + self._behind)
        self.select(0)
        self.kept = reserve("float32", KEPT + lanes) if self.single else 0
        self.ratio = reserve("float32", self.heads)

    def select(self, r: Any) -> None:
        """Go on with row r of the block."""
        self.row = r
        self.unit, self.totals = self._units.of(r), self._totals.of(r)
        if self._places is not None:
            self.place = self._places.of(r)

    @property
    def lines(self) -> int:
        """Cache lines that :meth:`ask` asks for."""
        gathered = 0 if self._inlined is None else len(self._inlined.of_sources)
        return int(self.scales is not None) + gathered

    def ask(self, edge: Any, source: Any) -> None:
        """Prefetch what tells the weight of an edge that comes later, whose source is ``source``."""
        b = self.kernel.b
        if self.scales is not None:
            b.prefetch(self.scales[source], 2)
        if self._inlined is not None:
            self._inlined.ask(edge)

    def begin(self, first: Any, degree: Any) -> None:
        """Units of the row, and zeros for its sums."""
        kernel, sums = self.kernel, self.sums
        self.first = first
        if self.constant:
            weight, step = _constant_weight(np.float32(self.source.attrs["scale"]))
            kernel.save("int64", cast(degree, "int64") * const(weight, "int64"), sums)
            kernel.save("float32", kernel.learned(step)(), self.unit)
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

        if known := self._known_largest():
            each(lambda h: self._unit(known(h, lanes), h, lanes))
            return
        each(lambda h: kernel.save("float32", number(0.0, lanes), ratio + h, lanes))
        with b.loop(degree) as k:
            edge = b.let(first + k)

            def compare(h: Any) -> None:
                v = unary("llvm.fabs", self._value(edge, h, lanes), lanes)
                v = maximum(kernel.load("float32", ratio + h, lanes), v)
                kernel.save("float32", v, ratio + h, lanes)

            each(compare)
        each(lambda h: self._unit(kernel.load("float32", ratio + h, lanes), h, lanes))

    def _known_largest(self) -> Callable[[Any, int], Any] | None:
        """The largest ``|v_e|`` of the row by (head, lanes), where no edge need be looked at."""
        if self.weights is None or self.scales is not None or self.scale is not None:
            return None
        return self.weights.largest()

    def _unit(self, most: Any, head: Any, lanes: int) -> None:
        kernel = self.kernel
        most = kernel.b.let(most)
        kernel.save("float32", most * number(float(UNIT), lanes), self.unit + head, lanes)
        ratio = inverse(most, EDGE_LEVELS, lanes)
        kernel.save("float32", ratio, self.ratio + head, lanes)

    def whole(self, first: Any, degree: Any, *, summed: bool) -> None:
        """Units and codes of a row of at most ``KEPT`` edges, in one go; zeros follow behind them.

        With ``summed`` also the sums of the codes of each head, in ``totals``.
        """
        if self.constant:
            kernel = self.kernel
            weight, step = _constant_weight(np.float32(self.source.attrs["scale"]))
            kernel.save("int32", degree * const(weight), self.totals)
            kernel.save("float32", kernel.learned(step)(), self.unit)
            return
        some = self._whole_of_one_head if self.single else self._whole_of_heads
        if self.heads > self.kernel.lanes:
            some = self._whole_of_many_heads
        # without edges there need not be a row to read
        self.kernel.b.branch(degree > 0, lambda: some(first, degree, summed=summed), self._nothing)

    def _nothing(self) -> None:
        """The units and sums of a row without edges."""
        kernel = self.kernel
        kernel.each(self.heads, lambda h: kernel.save("float32", number(0.0), self.unit + h))
        kernel.each(self.heads, lambda h: kernel.save("int32", const(0), self.totals + h))

    def _whole_of_one_head(self, first: Any, degree: Any, *, summed: bool) -> None:
        """Vectors of edges; the first of them without a loop, since few rows have more."""
        kernel, b, lanes = self.kernel, self.kernel.b, self.lanes
        vectors = b.let((degree + (lanes - 1)) // lanes)
        best = b.registers(1, "float32", lanes)
        b.store(best, number(0.0, lanes), 0)

        def each(body: Callable[[Any], None]) -> None:
            body(0)
            with b.loop(vectors - 1) as more:
                body(more + 1)

        def several(index: Any) -> None:
            value = self._values(b.let(first + index * lanes), lanes)
            there = span(0, lanes) < splat(degree - index * lanes, lanes)
            value = b.let(choose(there, value, number(0.0, lanes)))
            kernel.save("float32", value, self.kept + index * lanes, lanes)
            b.store(best, maximum(unary("llvm.fabs", value, lanes), best[0]), 0)

        def one_by_one() -> None:
            kernel.save("float32", number(0.0, lanes), self.kept, lanes)
            with b.loop(degree) as k:
                kernel.save("float32", self._value(first + k, 0, 1), self.kept + k)
            kernel.save("float32", number(0.0, lanes), self.kept + degree, lanes)
            each(
                lambda index: b.store(
                    best,
                    maximum(
                        unary("llvm.fabs", kernel.load("float32", self.kept + index * lanes, lanes), lanes),
                        best[0],
                    ),
                    0,
                )
            )

        if self.weights is None:
            each(several)
        else:
            # weights end with the last edge
            end = self.indptr[self.indptr.shape[0] - 1]
            b.branch(first + vectors * lanes <= end, lambda: each(several), one_by_one)
        self._unit(fold_max(b.let(best[0]), lanes), 0, 1)
        ratio = b.let(splat(kernel.load("float32", self.ratio), lanes))
        total = b.registers(1, "int32", lanes)
        b.store(total, splat(const(0), lanes), 0)

        def code(index: Any) -> None:
            t = self._rounded(kernel.load("float32", self.kept + index * lanes, lanes), ratio, lanes)
            b.store(total, total[0] + t, 0)
            self._put(t, index * lanes, lanes)

        each(code)
        self._clear_behind(degree)
        if summed:
            kernel.save("int32", fold_sum(b.let(total[0]), lanes), self.totals)

    def _whole_of_heads(self, first: Any, degree: Any, *, summed: bool) -> None:
        kernel, b, lanes = self.kernel, self.kernel.b, self.lanes
        count = self.heads // lanes
        best, totals = b.registers(count, "float32", lanes), b.registers(count, "int32", lanes)
        for i in range(count):
            b.store(best, number(0.0, lanes), i)
            b.store(totals, splat(const(0), lanes), i)
        if known := self._known_largest():
            for i in range(count):
                b.store(best, known(i * lanes, lanes), i)
        else:
            with b.loop(degree) as k:
                edge = b.let(first + k)
                for i in range(count):
                    value = unary("llvm.fabs", self._value(edge, i * lanes, lanes), lanes)
                    b.store(best, maximum(value, best[i]), i)
        for i in range(count):
            self._unit(best[i], i * lanes, lanes)
        ratios = [b.let(kernel.load("float32", self.ratio + i * lanes, lanes)) for i in range(count)]

        def four(edges: list[Any], there: list[Any], quad: Any) -> None:
            for i in range(count):
                total = self._put_four(edges, there, quad, i * lanes, ratios[i])
                b.store(totals, totals[i] + total, i)

        self._by_fours(first, degree, four)
        for i in range(count if summed else 0):
            kernel.save("int32", totals[i], self.totals + i * lanes, lanes)

    def _whole_of_many_heads(self, first: Any, degree: Any, *, summed: bool) -> None:  # noqa: ARG002
        """More heads than registers are for: what is found of them stays in memory."""
        self._largest_of_heads(first, degree)
        self.begin_slice()
        self.write(first, degree)

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
        kernel, sums = self.kernel, self.sums

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
        lanes = self.lanes
        if not self.single:

            def four(edges: list[Any], there: list[Any], quad: Any) -> None:
                def some(i: Any) -> None:
                    ratio = kernel.load("float32", self.ratio + i * lanes, lanes)
                    total = self._put_four(edges, there, quad, i * lanes, ratio)
                    slot = self.totals + i * lanes
                    kernel.save("int32", kernel.load("int32", slot, lanes) + total, slot, lanes)

                kernel.each(self.heads // lanes, some)

            self._by_fours(start, count, four)
            return
        begin = b.let(start - self.first)

        def from_kept() -> None:
            with b.loop((count + (lanes - 1)) // lanes) as i:
                v = kernel.load("float32", self.kept + begin + i * lanes, lanes)
                self._write(v, i * lanes, lanes)

        def again() -> None:
            with b.loop(count) as k:
                self._write(self._value(start + k, 0, 1), k, 1)
            kernel.save("uint8", splat(const(0, "uint8"), lanes), self.place + count, lanes)

        b.branch(begin + count <= KEPT, from_kept, again)
        self._clear_behind(count)

    @property
    def _behind(self) -> int:
        """Bytes of weights of edges that may be read behind the last one, in whole vectors."""
        return round_up(4 * BEHIND * max(self.heads, self.kernel.lanes), 4 * self.kernel.lanes)

    def _clear_behind(self, count: Any) -> None:
        """Zeros as the weights of as many edges behind the last one as a sum takes together."""
        if self.single and self.lanes >= 4 * BEHIND:
            return  # there are as many behind the last vector
        width = 4 * self.kernel.lanes
        zeros = splat(const(0, "uint8"), width)
        begin = self.place + (count if self.single else (count + 3) // 4 * (4 * self.heads))
        for first in range(0, self._behind, width):
            self.kernel.save("uint8", zeros, begin + first, width)

    def _by_fours(self, start: Any, count: Any, four: Callable[[list[Any], list[Any], Any], None]) -> None:
        """``four(edges, there, quad)`` for each four of ``count`` edges.

        Of the last ones some may not be there: they are the last edge again; ``there`` has a mask for each.
        """
        b = self.kernel.b
        full = b.let(count // 4)
        with b.loop(full) as quad:
            four([b.let(start + (4 * quad + i)) for i in range(4)], [], quad)
        left = b.let(count - 4 * full)
        with b.when(left > 0):
            edges = [b.let(start + tirx.min(4 * full + i, count - 1)) for i in range(4)]
            there = [b.let(splat(choose(left > i, const(-1), const(0)), self.lanes)) for i in range(4)]
            four(edges, there, full)
        self._clear_behind(count)

    def _put_four(self, edges: list[Any], there: list[Any], quad: Any, head: Any, ratio: Any) -> Any:
        """Round the weights of four edges for a vector of heads, put those of each side by side, add them."""
        lanes, let = self.lanes, self.kernel.b.let
        codes = [self._rounded(self._value(edge, head, lanes), ratio, lanes) for edge in edges]
        if there:
            codes = [let(code & mask) for code, mask in zip(codes, there, strict=True)]
        low = splat(const(255), lanes)
        parts = [shift_left(code & low, 8 * i, "int32", lanes) for i, code in enumerate(codes[:3])]
        word = parts[0] | parts[1] | parts[2] | shift_left(codes[3], 24, "int32", lanes)
        place = self.place + quad * (4 * self.heads) + 4 * head
        self.kernel.save("uint8", reinterpret(word, "uint8", 4 * lanes), place, 4 * lanes)
        return codes[0] + codes[1] + codes[2] + codes[3]

    def _write(self, v: Any, place: Any, lanes: int) -> None:
        """Round ``lanes`` weights of one head and add them to the sums."""
        kernel = self.kernel
        t = self._rounded(v, splat(kernel.load("float32", self.ratio), lanes), lanes)
        kernel.save("int32", kernel.load("int32", self.totals, lanes) + t, self.totals, lanes)
        self._put(t, place, lanes)

    def _rounded(self, v: Any, ratio: Any, lanes: int) -> Any:
        return self.kernel.b.let(cast(unary("llvm.rint", v * ratio, lanes), "int32", lanes))

    def _put(self, t: Any, place: Any, lanes: int) -> None:
        code = reinterpret(cast(t, "int8", lanes), "uint8", lanes)
        self.kernel.save("uint8", code, self.place + place, lanes)

    def words(self, quad: Any, head: Any, lanes: int) -> Any:
        """The weights of edges ``4 * quad`` on for ``lanes`` heads, as an integer for each."""
        place = self.place + quad * (4 * self.heads) + 4 * head
        return reinterpret(self.kernel.load("uint8", place, 4 * lanes), "int32", lanes)

    def four(self, quad: Any, count: Any) -> Any:
        """Those for the only head; 0 is that of an edge behind the last."""
        if not self.constant:
            return self.words(quad, 0, 1)
        left = self.kernel.b.let(count - 4 * quad)
        result = const(0)
        for edges in range(1, 5):
            result = choose(
                left >= edges, const(sum(self._one << (8 * edge) for edge in range(edges))), result
            )
        return result

    @property
    def _one(self) -> int:
        return _constant_weight(np.float32(self.source.attrs["scale"]))[0]

    def _values(self, edge: Any, lanes: int) -> Any:
        """``v_e`` of as many edges, for one head; behind a row's last come those of the next."""
        if self.scales is None:
            scale = self.scale(lanes) if self.scale else None
        else:
            scale = shuffle([self.scales[self.indices[edge + i]] for i in range(lanes)], range(lanes))
        return scale if self.weights is None else _scaled(self.weights.along(edge, lanes), scale, lanes)

    def _value(self, edge: Any, head: Any, lanes: int) -> Any:
        """``v_e``, rounded once."""
        if self.scales is None:
            scale = self.scale(lanes) if self.scale else None
        else:
            scale = splat(self.scales[self.indices[edge]], lanes)
        return scale if self.weights is None else _scaled(self.weights.at(edge, head, lanes), scale, lanes)


def _scaled(weight: Any, scale: Any, lanes: int) -> Any:
    """Weights of edges times the scales of their sources, where these are no factor of the sum."""
    return weight if scale is None else product(weight, scale, lanes)


class _PerRow:
    """Scratch of each row of a block."""

    def __init__(self, kernel: RowKernel, dtype: str, count: int) -> None:
        self.step = round_up(count, 64)
        self.start = kernel.reserve(dtype, kernel.block * self.step)

    def of(self, r: Any) -> Any:
        """Where that of row r begins."""
        return self.start + r * self.step


def _constant_weight(scale: Any) -> tuple[int, Any]:
    """The 8-bit weight of every edge, and its unit, where all edges weigh ``scale``."""
    if not scale >= SMALLEST:
        return 0, np.float32(0)
    ratio = np.float32(EDGE_LEVELS) / scale
    return int(np.rint(scale * ratio)), scale * UNIT
