"""Integer sums of codes times 8-bit weights over the edges of a destination row: four edges at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from tvm import tirx

from gnnquant.backends.tvm.codes import plane_of
from gnnquant.backends.tvm.context import AHEAD, LINE, WAITING, fail
from gnnquant.backends.tvm.dots import edge_dots
from gnnquant.backends.tvm.edge_codes import BEHIND, EdgeCodes
from gnnquant.backends.tvm.emit import cast, const, maximum, product, reinterpret, shuffle, span, splat
from gnnquant.backends.tvm.known_edges import KnownEdgeCodes
from gnnquant.backends.tvm.layout import PlaneLayout, quads_of, round_up
from gnnquant.backends.tvm.partition import never_negative
from gnnquant.backends.tvm.values import Rows

if TYPE_CHECKING:
    from collections.abc import Callable

    from gnnquant.backends.tvm.context import StoredCodes
    from gnnquant.backends.tvm.rows import RowKernel
    from gnnquant.integer_graph import Node

SLICE = 32768
"""Edges whose sums fit 32 bits at any width: 32768 * 127 * 510 < 2^31."""
NARROW = 4
"""Most vectors of sums for which edges that may not be there are read."""


class _Ends(NamedTuple):
    """How sums of a vector of columns begin and end.

    Attributes:
        first: ``first(vector)``: what they begin with.
        take: ``take(vector, value)``: takes them.
    """

    first: Callable[[Any], Any]
    take: Callable[[Any, Any], None]


class EdgeSum:
    """Integer sums of codes times 8-bit edge weights.

    A row of at most ``run`` edges keeps its sums in registers until they are floats. Of a longer one, runs
    are summed in 32 bits, as far as these hold them (``SLICE``), and slices in 64.

    Args:
        kernel: Where.
        node: The op ``spmm``.
        stored: The codes.
        source: The node that made them.
    """

    def __init__(self, kernel: RowKernel, node: Node, stored: StoredCodes, source: Node) -> None:
        assert isinstance(stored.layout, PlaneLayout)
        self.kernel = kernel
        self.node = node
        self.layout = layout = stored.layout
        self.zero2 = source.attrs["zero2"]
        self.heads = node.attrs["heads"]
        if node.columns % self.heads:
            raise fail(node, f"{node.columns} columns do not divide into {self.heads} heads")
        self.head_columns = node.columns // self.heads
        graph = node.attrs["graph"]
        self.indptr = kernel.graph_buffer(graph, "indptr")
        self.indices = kernel.graph_buffer(graph, "src")
        self.codes = kernel.buffer(stored.buffer)
        self.padded = round_up(layout.reach, 16)
        self.narrow = kernel.reserve("int32", self.padded)
        self.wide = kernel.reserve("int64", self.padded)
        kind = KnownEdgeCodes if node.name in kernel.context.known else EdgeCodes
        self.edge_codes = kind(kernel, node, stored.scale, source)
        self.run = self.edge_codes.run
        lines = -(-layout.row_bytes // LINE) + self.edge_codes.lines
        self.ahead = min(AHEAD, WAITING // (lines * LINE))
        at_once = max(kernel.machine.sums // (layout.vectors * layout.planes), 1)
        self.together = min(at_once, layout.units)
        signed = len(node.inputs) > 1 and not never_negative(kernel.context.graph, node.inputs[1])
        self.dots = edge_dots(kernel.machine, layout.bits, negative=signed)
        self.save: Any = None

    def emit(self) -> Rows:
        """The float rows."""
        if not isinstance(self.edge_codes, KnownEdgeCodes):
            # of all rows first: processors work ahead on a row that does not wait for what the last one found
            self.kernel.each_row(self._weigh)
            self.kernel.finish_rows()
        rows, self.save = self.kernel.local(max(self.node.columns, self.padded))
        self.kernel.each_row(self._row)
        return Rows(self.node.columns, True, rows.at, True)

    def _edges(self, r: Any) -> tuple[Any, Any]:
        """First edge and number of edges of row r of the block."""
        kernel, b = self.kernel, self.kernel.b
        first = b.let(self.indptr[kernel.base + r])
        return first, b.let(self.indptr[kernel.base + r + 1] - first)

    def _weigh(self, r: Any) -> None:
        codes, weights = self.edge_codes, self.edge_codes.weights
        first, degree = self._edges(r)
        codes.select(r)
        with self.kernel.b.when(degree <= self.run):
            if weights is not None:
                weights.begin(r, first, degree)
            codes.whole(first, degree, summed=self._balanced)

    def _row(self, r: Any) -> None:
        first, degree = self._edges(r)
        codes = self.edge_codes
        codes.select(r)

        def at_once() -> None:
            if isinstance(codes, KnownEdgeCodes):
                codes.whole(first, degree, summed=self._balanced)
            self._sum_edges(first, degree, _Ends(self._balance(), self._finished(r, degree)))

        self.kernel.b.branch(degree <= self.run, at_once, lambda: self._long_row(r, first, degree))

    def _long_row(self, r: Any, first: Any, degree: Any) -> None:
        """A row of more than ``run`` edges, a slice and within it a run of them at a time."""
        kernel, b = self.kernel, self.kernel.b
        if self.edge_codes.weights is not None:
            self.edge_codes.weights.begin(r, first, degree)
        self.edge_codes.begin(first, degree)
        slices = b.let((degree + (SLICE - 1)) // SLICE)
        with b.when(slices != 1), b.loop(self.padded) as c:
            kernel.save("int64", const(0, "int64"), self.wide + c)
        with b.loop(slices) as index:
            start = b.let(first + index * SLICE)
            count = b.let(tirx.min(const(SLICE), degree - index * SLICE))
            self.edge_codes.begin_slice()
            self._sum_slice(start, count)
            self.edge_codes.end_slice()
            with b.when(slices != 1), b.loop(self.padded) as c:
                value = kernel.load("int64", self.wide + c)
                value = value + cast(kernel.load("int32", self.narrow + c), "int64")
                kernel.save("int64", value, self.wide + c)
        b.branch(slices == 1, lambda: self._finish(r, degree), lambda: self._finish_wide(r, degree))

    def _sum_slice(self, start: Any, count: Any) -> None:
        """Sums over ``count`` edges into the int32 row.

        A run of edges at a time, all columns of it: what later columns read is still in cache.
        """
        kernel, b, lanes = self.kernel, self.kernel.b, self.kernel.lanes
        zeros = splat(const(0), lanes)
        with b.loop(self.padded // lanes) as index:
            kernel.save("int32", zeros, self.narrow + index * lanes, lanes)

        def add(vector: Any, value: Any) -> None:
            place = self.narrow + vector * lanes
            kernel.save("int32", value + kernel.load("int32", place, lanes), place, lanes)

        with b.loop((count + (self.run - 1)) // self.run) as index:
            begin = b.let(start + index * self.run)
            some = b.let(tirx.min(const(self.run), count - index * self.run))
            self.edge_codes.write(begin, some)
            self._sum_edges(begin, some, _Ends(lambda _: zeros, add))

    def _sum_edges(self, start: Any, count: Any, ends: _Ends) -> None:
        """Sums over at most ``run`` edges, whose codes are written."""
        layout = self.layout
        passes, rest = divmod(layout.units, self.together)

        def some(index: Any, units: int) -> None:
            self._pass(start, count, index * self.together, units, ends)

        if self.heads > 1:
            # which heads a vector has must be known
            for index in range(passes):
                some(index, self.together)
        else:
            self.kernel.each(passes, lambda index: some(index, self.together))
        if rest:
            some(passes, rest)

    def _pass(self, start: Any, count: Any, first: Any, units: int, ends: _Ends) -> None:
        """The columns of ``units`` units from ``first`` on."""
        b, lanes = self.kernel.b, self.kernel.lanes
        slots = [
            (number, plane, v)
            for number in range(units)
            for plane in range(self.layout.planes)
            for v in range(self.layout.vectors)
            if not isinstance(first, int)
            or self._vector(first + number, plane, v) * lanes < self.layout.columns
        ]
        sums = b.registers(len(slots), "int32", lanes)
        for slot, (number, plane, v) in enumerate(slots):
            b.store(sums, ends.first(self._vector(first + number, plane, v)), slot)
        # of short rows fewer different numbers of turns are easier to foresee
        quads = BEHIND if len(slots) <= NARROW else 1
        with b.loop((count + (4 * quads - 1)) // (4 * quads)) as turn:
            for i in range(quads):
                quad = turn * quads + i
                # edges behind the last one weigh 0; index arrays are padded
                edge = b.let(start + 4 * quad)
                weights = self._weights(quad, count)
                self._add_four(edge, first, weights, slots, sums)
        for slot, (number, plane, v) in enumerate(slots):
            ends.take(self._vector(first + number, plane, v), sums[slot])

    def _vector(self, unit: Any, plane: int, v: int) -> Any:
        """Which vector of columns this one of a unit's is."""
        return (unit * self.layout.planes + plane) * self.layout.vectors + v

    def _add_four(
        self,
        edge: Any,
        first: Any,
        weights: Callable[[Any], Any],
        slots: list[tuple[int, int, int]],
        sums: Any,
    ) -> None:
        """Add what four edges from ``edge`` on bring to the sums of (unit after ``first``, plane, vector)."""
        b, layout, lanes = self.kernel.b, self.layout, self.kernel.lanes
        units = 1 + max(number for number, _, _ in slots)
        nodes = [b.let(self.indices[edge + i]) for i in range(4)]
        for i in range(4):
            ahead = self._ask(edge + i, first * layout.unit, units * layout.unit)
            if isinstance(first, int) and first == 0:
                self.edge_codes.ask(b.let(edge + (self.ahead + i)), ahead)
        for number in range(units):
            place = span((first + number) * layout.unit, layout.unit)
            rows = [b.let(self.codes[node, place]) for node in nodes]
            quads = quads_of(rows, layout.unit, lanes, lambda parts, order: b.let(shuffle(parts, order)))
            for slot, (number_, plane, v) in enumerate(slots):
                if number_ == number:
                    codes = plane_of(quads[v], layout, plane, 4 * lanes)
                    weight = weights(self._vector(first + number, plane, v))
                    b.store(sums, self.dots.add(sums[slot], codes, weight), slot)

    def _ask(self, e: Any, first: Any, size: int) -> Any:
        """Prefetch ``size`` bytes of the row of the edge that is ``ahead`` of ``e``; returns its source."""
        b = self.kernel.b
        source = b.let(self.indices[e + self.ahead])
        for line in range(0, size, LINE):
            b.prefetch(self.codes[source, first + line], 2)
        return source

    def _pattern(self, vector: int) -> tuple[int, ...]:
        """The head of each column of a vector; of what is beyond the last column, any."""
        lanes, last = self.kernel.lanes, self.heads - 1
        return tuple(min((vector * lanes + lane) // self.head_columns, last) for lane in range(lanes))

    def _weights(self, quad: Any, count: Any) -> Callable[[Any], Any]:
        """The weights of four edges, for the columns of a vector."""
        b, lanes, codes = self.kernel.b, self.kernel.lanes, self.edge_codes

        def prepared(words: Any) -> Any:
            return self.dots.prepare(b.let(reinterpret(words, "int8", 4 * lanes)))

        if self.heads == 1:
            one = prepared(splat(codes.four(quad, count), lanes))
            return lambda _: one
        # those of few heads are loaded once, where vectors of columns belong to several
        few = b.let(codes.words(quad, 0, lanes)) if self.heads <= lanes else None
        known: dict[tuple[int, ...], Any] = {}

        def of(vector: int) -> Any:
            pattern = self._pattern(vector)
            if pattern not in known:
                start = pattern[0]
                if start == pattern[-1]:
                    words = splat(codes.words(quad, start, 1), lanes)
                elif few is not None:
                    words = shuffle([few], pattern)
                else:
                    words = shuffle([codes.words(quad, start, lanes)], [head - start for head in pattern])
                known[pattern] = prepared(words)
            return known[pattern]

        return of

    def _by_column(self, dtype: str, place: Any) -> Callable[[Any], Any]:
        """The number of its head for each column of a vector, given where those of the heads are."""
        kernel, lanes = self.kernel, self.kernel.lanes
        if self.heads == 1:
            one = kernel.b.let(splat(kernel.load(dtype, place), lanes))
            return lambda _: one

        def of(vector: Any) -> Any:
            pattern = self._pattern(vector)
            heads = kernel.load(dtype, place + pattern[0], lanes)
            return shuffle([heads], [head - pattern[0] for head in pattern])

        return of

    @property
    def _even(self) -> bool:
        """Whether half the doubled zero point is an integer: twice it then is a factor of the unit."""
        return self.zero2 % 2 == 0

    @property
    def _excess(self) -> int:
        """How often sums have the weight of each edge too much, where it is an integer."""
        return (self.zero2 // 2 if self._even else 0) - self.dots.less

    @property
    def _balanced(self) -> bool:
        """Whether the sum of the weights of a row is needed."""
        return self._excess != 0 or not self._even

    def _balance(self) -> Callable[[Any], Any]:
        """What sums begin with, so that they end as those of codes less their zero point."""
        lanes, excess = self.kernel.lanes, self._excess
        if not excess:
            return lambda _: splat(const(0), lanes)
        totals = self._by_column("int32", self.edge_codes.totals)
        return lambda vector: totals(vector) * splat(const(-excess), lanes)

    def _finished(self, r: Any, degree: Any) -> Callable[[Any, Any], None]:
        """Takes sums, :meth:`_balance` included, and saves the floats that they stand for."""
        lanes, codes = self.kernel.lanes, self.edge_codes
        totals = None if self._even else self._by_column("int32", codes.totals)
        units = self._by_column("float32", codes.unit)

        def finish(vector: Any, value: Any) -> None:
            unit = units(vector)
            if totals is not None:
                value = value + value - totals(vector) * splat(const(self.zero2), lanes)
            else:
                unit = unit + unit
            self.save(
                r, vector * lanes, self._scaled(cast(value, "float32", lanes), unit, degree, lanes), lanes
            )

        return finish

    def _finish(self, r: Any, degree: Any) -> None:
        """The floats of sums in the int32 row."""
        kernel, lanes, codes = self.kernel, self.kernel.lanes, self.edge_codes
        kernel.each(
            self.heads,
            lambda h: kernel.save(
                "int32", cast(kernel.load("int64", codes.sums + h), "int32"), codes.totals + h
            ),
        )
        balance, finish = self._balance(), self._finished(r, degree)
        for vector in range(-(-self.node.columns // lanes)):
            finish(vector, kernel.load("int32", self.narrow + vector * lanes, lanes) + balance(vector))

    def _finish_wide(self, r: Any, degree: Any) -> None:
        """The floats of sums in 64 bits."""
        kernel, codes = self.kernel, self.edge_codes
        less = const(self.zero2 - 2 * self.dots.less, "int64")
        with kernel.b.loop(self.node.columns) as c:
            head = c // self.head_columns
            value = kernel.load("int64", self.wide + c)
            value = value + value - kernel.load("int64", codes.sums + head) * less
            unit = kernel.load("float32", codes.unit + head)
            self.save(r, c, self._scaled(cast(value, "float32"), unit, degree, 1), 1)

    def _scaled(self, value: Any, unit: Any, degree: Any, lanes: int) -> Any:
        """The float result of exact sums given as floats."""
        y = product(value, unit, lanes)
        if self.node.attrs["reduce"] == "mean":
            y = y / splat(cast(maximum(degree, const(1)), "float32"), lanes)
        return y
