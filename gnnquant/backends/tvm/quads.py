"""Sums over edges by products of four bytes: four edges at a time, codes in planes."""
# Emitters nest like the loops that they emit: one function is one loop nest.

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from gnnquant.backends.tvm.codes import plane_of
from gnnquant.backends.tvm.dots import dot_quads
from gnnquant.backends.tvm.edge_codes import BEHIND, KEPT
from gnnquant.backends.tvm.emit import cast, const, reinterpret, shuffle, span, splat
from gnnquant.backends.tvm.known_edges import KnownEdgeCodes
from gnnquant.backends.tvm.layout import PlaneLayout, quads_of
from gnnquant.backends.tvm.sums import RowSums

if TYPE_CHECKING:
    from collections.abc import Callable

    from gnnquant.backends.tvm.context import StoredCodes
    from gnnquant.backends.tvm.rows import RowKernel
    from gnnquant.backends.tvm.values import Rows
    from gnnquant.integer_graph import Node


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


class QuadSum(RowSums):
    """Sums where codes lie in planes (``PlaneLayout``).

    A row of at most ``KEPT`` edges keeps its sums in registers until they are floats.
    """

    def __init__(self, kernel: RowKernel, node: Node, stored: StoredCodes, source: Node) -> None:
        assert isinstance(stored.layout, PlaneLayout)
        self.layout = stored.layout
        super().__init__(kernel, node, stored, source, slots=self.layout.reach, run=KEPT, dtype="int8")
        self.head_columns = node.columns // self.heads
        layout = self.layout
        self.together = min(kernel.machine.sums // (layout.vectors * layout.planes), layout.units)

    def emit(self) -> Rows:
        """The float rows."""
        if not isinstance(self.edge_codes, KnownEdgeCodes):
            # of all rows first: processors work ahead on a row that does not wait for what the last one found
            self.kernel.each_row(self._weigh)
            self.kernel.finish_rows()
        return super().emit()

    def _weigh(self, r: Any) -> None:
        codes, weights = self.edge_codes, self.edge_codes.weights
        first, degree = self._edges(r)
        codes.select(r)
        with self.kernel.b.when(degree <= KEPT):
            if weights is not None:
                weights.begin(r, first, degree)
            codes.whole(first, degree, summed=self.zero2 != 0)

    def _row(self, r: Any) -> None:
        first, degree = self._edges(r)
        codes = self.edge_codes
        codes.select(r)

        def at_once() -> None:
            if isinstance(codes, KnownEdgeCodes):
                codes.whole(first, degree, summed=self.zero2 != 0)
            self._sum_edges(first, degree, _Ends(self._balance(), self._finished(r, degree)))

        self.kernel.b.branch(degree <= KEPT, at_once, lambda: self._any_row(r, first, degree))

    def _sum_run(self, start: Any, count: Any, add: bool) -> None:
        kernel, lanes = self.kernel, self.kernel.lanes

        def keep(vector: Any, value: Any) -> None:
            place = self.narrow + vector * lanes
            if add:
                value = value + kernel.load("int32", place, lanes)
            kernel.save("int32", value, place, lanes)

        self._sum_edges(start, count, _Ends(lambda _: splat(const(0), lanes), keep))

    def _sum_edges(self, start: Any, count: Any, ends: _Ends) -> None:
        """Sums over at most ``KEPT`` edges, whose codes are written."""
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
        kernel, b, layout, lanes = self.kernel, self.kernel.b, self.layout, self.kernel.lanes
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
                    b.store(sums, dot_quads(kernel.machine, sums[slot], codes, weight), slot)

    def _pattern(self, vector: int) -> tuple[int, ...]:
        """The head of each column of a vector; of what is beyond the last column, any."""
        lanes, last = self.kernel.lanes, self.heads - 1
        return tuple(min((vector * lanes + lane) // self.head_columns, last) for lane in range(lanes))

    def _weights(self, quad: Any, count: Any) -> Callable[[Any], Any]:
        """The weights of four edges, for the columns of a vector."""
        kernel, b, lanes = self.kernel, self.kernel.b, self.kernel.lanes
        width = 4 * lanes
        if self.heads == 1:
            four = splat(self.edge_codes.several(quad, count, 4), lanes)
            one = b.let(reinterpret(four, "int8", width))
            return lambda _: one
        place = self.edge_codes.place + quad * (4 * self.heads)
        data = b.let(kernel.load("uint8", place, width))
        known: dict[tuple[int, ...], Any] = {}

        def of(vector: int) -> Any:
            pattern = self._pattern(vector)
            if pattern not in known:
                order = [edge * self.heads + head for head in pattern for edge in range(4)]
                known[pattern] = b.let(reinterpret(shuffle([data], order), "int8", width))
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
            start = min(pattern[0], self.heads - 1)
            return shuffle([kernel.load(dtype, place + start, lanes)], [head - start for head in pattern])

        return of

    @property
    def _even(self) -> bool:
        """Whether half the doubled zero point is an integer: twice it then is a factor of the unit."""
        return self.zero2 % 2 == 0

    def _balance(self) -> Callable[[Any], Any]:
        """What sums begin with, so that they end as those of codes less their zero point."""
        lanes = self.kernel.lanes
        if not self.zero2 or not self._even:
            return lambda _: splat(const(0), lanes)
        totals = self._by_column("int32", self.edge_codes.totals)
        return lambda vector: totals(vector) * splat(const(-(self.zero2 // 2)), lanes)

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
        with self.kernel.b.loop(self.node.columns) as c:
            self.save(r, c, self._wide_sum(c, c // self.head_columns, degree), 1)
