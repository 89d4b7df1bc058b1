"""Edge kernels: softmaxes and normalisations over the edges of a destination, and what is cheap beside."""
# ruff: noqa: ARG001, ARG005
# All columns have one signature, (edge, destination, column, lanes): not every one reads all four.

from __future__ import annotations

import operator
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from gnnquant.backends.tvm import maths
from gnnquant.backends.tvm.context import Kernel, StoredRows, fail
from gnnquant.backends.tvm.emit import (
    cast,
    choose,
    const,
    fold_max,
    maximum,
    minimum,
    number,
    product,
    shuffle,
    span,
    splat,
    unary,
)
from gnnquant.backends.tvm.layout import vector_lanes
from gnnquant.backends.tvm.partition import resolve
from gnnquant.backends.tvm.values import Rows
from gnnquant.integer_graph import ELEMENTWISE

if TYPE_CHECKING:
    from collections.abc import Callable

    from gnnquant.backends.tvm.context import Context
    from gnnquant.backends.tvm.partition import Stage
    from gnnquant.integer_graph import Node

    Column = Callable[[Any, Any, Any, int], Any]
    """``value(edge, destination, column, lanes)``: columns of an edge, or as many columns of each of the
    edges of which ``edge`` is a tuple."""


_READING_ONCE = ELEMENTWISE | {"segment_softmax", "columns"}
"""What reads each number of an operand once, if at all."""


class EdgeKernel(Kernel):
    """One stage of edge values, for every destination row."""

    def __init__(self, context: Context, stage: Stage, name: str) -> None:
        """Prepare the kernel of ``stage``."""
        super().__init__(context, name)
        self.stage = stage
        self.graph = stage.family.rows
        self.limit: Any = None
        self.edges = EdgeValues(self, stage, lambda: self.limit)

    def body(self) -> None:
        """Emit the statements."""
        b = self.b
        share = self.graph_buffer(self.graph, "partition")
        indptr = self.graph_buffer(self.graph, "indptr")
        with b.shared_loop(self.context.threads) as thread:
            self.thread = thread
            first = b.let(share[thread])
            self.limit = b.let(indptr[share[thread + 1]])
            with b.loop(share[thread + 1] - first) as index:
                i = b.let(first + index)
                begin = b.let(indptr[i])
                degree = b.let(indptr[i + 1] - begin)
                self.row(i, begin, degree)

    def row(self, i: Any, begin: Any, degree: Any) -> None:
        """What is computed of the destination i and its edges."""
        self.edges.row(i, begin, degree)


class EdgeValues:
    """Emits the values of a stage of edges for one destination row, value after value.

    What the stage exports, or cannot be computed where it is read, is written to memory: float32
    [E, columns]. Where one aggregation alone reads it, right after it was computed, every row of a thread
    is written over the last one, from the thread's first edge on: the thread has as many edges as any of
    its rows, and what is written stays in cache.

    Args:
        kernel: Where to emit.
        stage: What.
        limit: The end of the thread's edges.
        origin: The thread's first row, where rows are written over each other; called once per row.
        whole: Whether a softmax that is exported is written with its division. Otherwise, where nothing else
            reads it, that is made by what reads it here (:meth:`exported`, :meth:`along`).
    """

    def __init__(
        self,
        kernel: Kernel,
        stage: Stage,
        limit: Callable[[], Any],
        origin: Callable[[], Any] | None = None,
        *,
        whole: bool = True,
    ) -> None:
        self.kernel = kernel
        self.whole = whole
        self.limit = limit
        self.b, self.lanes = kernel.b, kernel.lanes
        self.stage = stage
        self.graph = stage.family.rows
        self.origin = origin
        self.shift: Any = 0
        self.there: Any = None
        self.computed: dict[str, Column] = {}
        self.buffers: dict[str, str] = {}
        self.softmaxes: dict[str, _Softmax] = {}
        context = kernel.context
        self.readers: dict[str, list[Node]] = {node.name: [] for node in stage.nodes}
        for node in stage.nodes:
            for operand in node.inputs:
                origin_ = resolve(context.graph, operand)
                if origin_ in self.readers:
                    self.readers[origin_].append(node)

    def row(self, i: Any, begin: Any, degree: Any) -> None:
        """The values of the edges ``begin .. begin + degree - 1`` of destination i."""
        if self.origin is not None:
            indptr = self.kernel.graph_buffer(self.graph, "indptr")
            self.shift = self.b.let(indptr[self.origin()] - begin)
        for node in self.stage.nodes:
            if node.op == "segment_softmax":
                self._segment_softmax(node, i, begin, degree)
                continue
            if node.op in ELEMENTWISE:
                value = self._elementwise(node)
            elif node.op == "columns":
                value = self._slice(node)
            elif node.op == "gcn_norm":
                value = norm(self, node)
            else:
                raise fail(node, "this operation cannot be lowered edge by edge")
            readers = self.readers[node.name]
            once = len(readers) == 1 and readers[0].op in _READING_ONCE
            if once and node.name not in self.stage.exports:
                self.computed[node.name] = value
                continue
            self._sweep(begin, degree, self._declare(node), _of_row(value, i))

    def ask(self, edge: Any) -> None:
        """Prefetch what an edge that comes later gathers from its source."""
        for node in self.of_sources:
            self.kernel.prefetch(self.kernel.reader(node.name), edge, 0, node.columns, cache=2)

    @cached_property
    def of_sources(self) -> list[Node]:
        """What an edge gathers from its source."""
        context = self.kernel.context
        operands = {resolve(context.graph, name) for node in self.stage.nodes for name in node.inputs}
        nodes = (context.nodes[name] for name in sorted(operands))
        return [node for node in nodes if node.op == "gather" and node.attrs["index"] == f"{self.graph}.src"]

    def exported(self, name: str) -> Rows:
        """A value of the stage that was written for the last row; rows are edges."""
        node = self.kernel.context.nodes[name]
        return Rows(node.columns, False, lambda e, j, lanes: self._value(name, e, j, lanes), True)

    def along(self, name: str, edge: Any, lanes: int) -> Any:
        """Such a value of ``lanes`` edges of one column, which all are in the thread's memory."""
        out = self.kernel.buffer(self.buffers[name])
        value = out[span(edge + self.shift, lanes)]
        softmax = self.softmaxes.get(name)
        return value if softmax is None else product(value, softmax.share.get(0, lanes), lanes)

    def largest(self, name: str) -> Callable[[Any, int], Any] | None:
        """The largest of the last row, which has an edge, by (column, lanes), where it is known."""
        softmax = self.softmaxes.get(name)
        if softmax is None:
            return None
        return lambda c, lanes: product(softmax.powers.largest(c, lanes), softmax.share.get(c, lanes), lanes)

    def _value(self, name: str, e: Any, c: Any, lanes: int) -> Any:
        value = self._written(name, e, c, lanes)
        softmax = self.softmaxes.get(name)
        return value if softmax is None else product(value, softmax.share.along(e, c, lanes), lanes)

    def _written(self, name: str, e: Any, c: Any, lanes: int) -> Any:
        out = self.kernel.buffer(self.buffers[name])
        if isinstance(e, tuple):
            return _side_by_side(e, lanes, lambda edge, width: self._written(name, edge, c, width))
        return out[e + self.shift] if len(out.shape) == 1 else out[e + self.shift, span(c, lanes)]

    def _sweep(self, begin: Any, degree: Any, out: Any, value: Callable[[Any, Any, int], Any]) -> None:
        """``out[e, c] = value(e, c, lanes)`` for the edges of a row; ``out`` of one column is [E].

        A vector holds columns of an edge, or all columns of some edges where these fill it. Of one column
        it holds as many edges; the last vector of a row holds edges of the thread's next rows too, whose
        values are not computed yet, and ``there`` says which are the row's. Where the thread has no more
        edges, a vector is one edge of the row repeated.
        """
        b, lanes = self.b, self.lanes
        if len(out.shape) > 1:
            self._sweep_wide(begin, degree, out, value)
            return

        def vector(e: Any) -> None:
            edges = tuple(e + lane for lane in range(lanes))
            b.store(out, value(edges, 0, lanes), span(e + self.shift, lanes))

        full = b.let(degree // lanes)
        with b.loop(full) as k:
            vector(b.let(begin + k * lanes))
        e, left = b.let(begin + full * lanes), b.let(degree - full * lanes)

        def several() -> None:
            self.there = span(0, lanes) < splat(left, lanes)
            vector(e)
            self.there = None

        def one_by_one() -> None:
            with b.loop(left) as lane:
                same = b.let(value((b.let(e + lane),) * lanes, 0, lanes))
                b.store(out, shuffle([same], [0]), e + self.shift + lane)

        with b.when(left > 0):
            b.branch(e + lanes <= self.limit(), several, one_by_one)

    def _sweep_wide(self, begin: Any, degree: Any, out: Any, value: Callable[[Any, Any, int], Any]) -> None:
        b, lanes, columns = self.b, self.lanes, int(out.shape[1])
        together = max(lanes // columns, 1) if lanes % columns == 0 else 1
        rest = begin
        if together > 1:
            full = b.let(degree // together)
            with b.loop(full) as k:
                e = b.let(begin + k * together)
                edges = tuple(e + index for index in range(together))
                b.store(out, value(edges, 0, lanes), e + self.shift, span(0, lanes))
            rest = b.let(begin + full * together)
        with b.loop(begin + degree - rest) as k:
            e = b.let(rest + k)
            self._each(
                columns,
                lambda c, lanes: b.store(out, value(e, c, lanes), e + self.shift, span(c, lanes)),
            )

    def _each(self, columns: int, body: Callable[..., None]) -> None:
        """``body(column, lanes)``, every column once."""
        lanes = vector_lanes(columns, self.lanes)
        self.kernel.each(columns // lanes, lambda index: body(index * lanes, lanes))

    def _declare(self, node: Node) -> Any:
        context = self.kernel.context
        if node.name in self.buffers:
            return self.kernel.buffer(self.buffers[node.name])
        shape = (self.graph,) if node.columns == 1 else (self.graph, node.columns)
        name = f"edges.{node.name}"
        if self.origin is not None:
            name = f"scratch.{self.graph}.{node.columns}.{len(self.buffers)}"
        else:
            context.stored[node.name] = StoredRows(name, node.columns, False)
        self.buffers[node.name] = context.add(name, "float32", shape, "workspace")
        return self.kernel.buffer(name)

    def operand(self, name: str) -> Column:
        """A value of the same edges."""
        context = self.kernel.context
        name = resolve(context.graph, name)
        if name in self.computed:
            return self.computed[name]
        if name in self.buffers:
            return lambda e, i, c, lanes: self._written(name, e, c, lanes)
        node = context.nodes[name]
        if node.op == "gather" and node.attrs["index"] == f"{self.graph}.dst":
            of_row = self.kernel.reader(node.inputs[0])

            def at_end(e: Any, i: Any, c: Any, lanes: int) -> Any:
                if isinstance(e, tuple):
                    return _side_by_side(e, lanes, lambda _, width: of_row.at(i, c, width))
                return of_row.at(i, c, lanes)

            return at_end
        of_edge = self.kernel.reader(name)

        def at(e: Any, i: Any, c: Any, lanes: int) -> Any:
            if isinstance(e, tuple):
                return _side_by_side(e, lanes, lambda edge, width: of_edge.at(edge, c, width))
            return of_edge.at(e, c, lanes)

        return at

    def _elementwise(self, node: Node) -> Column:
        operands = [self._broadcast(name, node) for name in node.inputs]
        operation = self.kernel.operation(node)

        def value(e: Any, i: Any, c: Any, lanes: int) -> Any:
            return operation([operand(e, i, c, lanes) for operand in operands], lanes)

        return value

    def _slice(self, node: Node) -> Column:
        value, first = self.operand(node.inputs[0]), node.attrs["index"][0]
        return lambda e, i, c, lanes: value(e, i, c + first, lanes)

    def _broadcast(self, name: str, node: Node) -> Column:
        value = self.operand(name)
        shape, full = self.kernel.context.nodes[name].shape, node.shape
        count = int(np.prod(shape))
        if count == node.columns:
            return value
        if count == 1:
            return _for_each(lambda e, i, c, lanes: splat(value(e, i, 0, 1), lanes))
        padded = (1,) * (len(full) - len(shape)) + tuple(shape)

        def source(c: Any) -> Any:
            # mixed radix: drop the axes along which the operand has one element
            place: Any = 0
            inner = own = 1
            for size, extent in zip(reversed(full), reversed(padded), strict=True):
                if extent > 1:
                    place = place + (c // inner) % size * own
                    own *= extent
                inner *= size
            return place

        def at(e: Any, i: Any, c: Any, lanes: int) -> Any:
            parts = [value(e, i, source(c + lane), 1) for lane in range(lanes)]
            return parts[0] if lanes == 1 else shuffle(parts, range(lanes))

        return _for_each(at)

    def _segment_softmax(self, node: Node, i: Any, begin: Any, degree: Any) -> None:
        b, columns = self.b, node.columns
        x = self.operand(node.inputs[0])
        out = self._declare(node)
        best = _Running(self.kernel, columns, float("-inf"))
        total = _Running(self.kernel, columns, 0.0)

        def largest(e: Any, c: Any, lanes: int) -> Any:
            value = b.let(x(e, i, c, lanes))
            own = value if self.there is None else choose(self.there, value, number(float("-inf"), lanes))
            best.fold(maximum, own, e, c, lanes)
            return value

        self._sweep(begin, degree, out, largest)
        if columns == 1:
            best.put(splat(fold_max(best.get(0, self.lanes), self.lanes), self.lanes), 0, self.lanes)
        powers = _Powers(self.kernel, node, best)

        def power(e: Any, c: Any, lanes: int) -> Any:
            value = b.let(powers.of(self._written(node.name, e, c, lanes), e, c, lanes))
            if columns > 1:
                total.fold(operator.add, value, e, c, lanes)
            return value

        self._sweep(begin, degree, out, power)
        if columns == 1:
            one = b.registers(1, "float32")
            b.store(one, number(0.0), 0)
            with b.loop(degree) as k:
                b.store(one, one[0] + self._written(node.name, begin + k, 0, 1), 0)
            total.put(splat(one[0], self.lanes), 0, self.lanes)
        total.each(lambda value, _, lanes: number(1.0, lanes) / (value + number(1e-16, lanes)))
        self.softmaxes[node.name] = _Softmax(total, powers)
        if self.whole or self.readers[node.name]:
            self._sweep(begin, degree, out, lambda e, c, lanes: self._value(node.name, e, c, lanes))
            del self.softmaxes[node.name]


def _side_by_side(edges: tuple[Any, ...], lanes: int, one: Callable[[Any, int], Any]) -> Any:
    """A vector of ``one(edge, width)`` for each edge."""
    width = lanes // len(edges)
    return shuffle([one(edge, width) for edge in edges], range(lanes))


def _for_each(value: Column) -> Column:
    """``value``, which takes one edge, for several."""

    def at(e: Any, i: Any, c: Any, lanes: int) -> Any:
        if isinstance(e, tuple):
            return _side_by_side(e, lanes, lambda edge, width: value(edge, i, c, width))
        return value(e, i, c, lanes)

    return at


def _of_row(value: Column, i: Any) -> Callable[[Any, Any, int], Any]:
    return lambda e, c, lanes: value(e, i, c, lanes)


class _Powers:
    """What a softmax adds up: exponentials, or powers of roots.

    Args:
        kernel: Where.
        node: The op ``segment_softmax``.
        best: The largest of a row of what they are of.
    """

    def __init__(self, kernel: Kernel, node: Node, best: _Running) -> None:
        self.roots = node.attrs.get("roots", False)
        self.best = best
        if self.roots:
            self.inverse = _Running(kernel, node.columns, 1.0)
            self.inverse.each(lambda one, c, lanes: one / best.get(c, lanes))

    def of(self, value: Any, e: Any, c: Any, lanes: int) -> Any:
        """The power of a value of the row."""
        if self.roots:
            return maths.power(product(value, self.inverse.along(e, c, lanes), lanes), lanes)
        return maths.exp(value - self.best.along(e, c, lanes), lanes)

    def largest(self, c: Any, lanes: int) -> Any:
        """That of the largest value, which is the largest power.

        Products of positive numbers grow with these, rounded or not, and exponentials of what is not positive
        are at most 1.
        """
        return self.of(self.best.get(c, lanes), 0, c, lanes) if self.roots else number(1.0, lanes)


class _Softmax(NamedTuple):
    """A softmax of a row whose powers are written: their share of the whole is still to be taken.

    Attributes:
        share: What they are multiplied by, for each column.
        powers: How they came about.
    """

    share: _Running
    powers: _Powers


class _Running:
    """A float for every column of a row, in a register where one vector holds them.

    Of one column, a vector of floats that are put together later.
    """

    def __init__(self, kernel: Kernel, columns: int, start: float) -> None:
        self.kernel = kernel
        self.columns = columns
        lanes = kernel.lanes if columns == 1 else vector_lanes(columns, kernel.lanes)
        count = max(columns // lanes, 1)
        self.place = kernel.reserve("float32", columns) if count > 1 else -1
        if count == 1:
            self.register = kernel.b.registers(1, "float32", lanes)
        self.lanes, self.count = lanes, count
        kernel.each(count, lambda index: self.put(number(start, lanes), index * lanes, lanes))

    def each(self, change: Callable[[Any, Any, int], Any]) -> None:
        """Every float becomes ``change(float, column, lanes)``."""

        def some(index: Any) -> None:
            c, lanes = index * self.lanes, self.lanes
            self.put(change(self.get(c, lanes), c, lanes), c, lanes)

        self.kernel.each(self.count, some)

    def get(self, c: Any, lanes: int) -> Any:
        if self.place >= 0:
            return self.kernel.load("float32", self.place + c, lanes)
        # of one column all lanes are the same
        return self.register[0] if lanes == self.lanes else shuffle([self.register[0]], [0])

    def along(self, e: Any, c: Any, lanes: int) -> Any:
        """The floats as they stand beside a vector of edges."""
        if self.columns == 1 or not isinstance(e, tuple):
            return self.get(c, lanes)
        return _side_by_side(e, lanes, lambda _, width: self.get(c, width))

    def fold(self, combine: Callable[[Any, Any], Any], value: Any, e: Any, c: Any, lanes: int) -> None:
        """Combine the floats with a vector, edge after edge."""
        if self.columns == 1 or not isinstance(e, tuple):
            self.put(combine(self.get(c, lanes), value), c, lanes)
            return
        width = self.columns
        for first in range(0, lanes, width):
            part = shuffle([value], range(first, first + width))
            self.put(combine(self.get(c, width), part), c, width)

    def put(self, value: Any, c: Any, lanes: int) -> None:
        if self.place < 0:
            self.kernel.b.store(self.register, value, 0)
        else:
            self.kernel.save("float32", value, self.place + c, lanes)


class RootKernel(EdgeKernel):
    """``d^-1/2`` for the ``gcn_norm`` nodes of a stage."""

    def row(self, i: Any, begin: Any, degree: Any) -> None:
        """The roots of the destination i."""
        for node in self.stage.nodes:
            if node.op == "gcn_norm":
                self._root(node, i, begin, degree)

    def _root(self, node: Node, i: Any, begin: Any, degree: Any) -> None:
        b = self.b
        if not node.inputs and float(node.attrs.get("fill", 1.0)) == 1.0:
            # ones add up to the degree, exactly as far as float32 counts
            self._store_root(node, i, cast(minimum(degree, const(2**24)), "float32"))
            return
        weight = _norm_weight(self.edges, node)
        total = b.registers(1, "float32")
        b.store(total, number(0.0), 0)
        with b.loop(degree) as k:
            e = b.let(begin + k)
            b.store(total, total[0] + weight(e, i, 0, 1), 0)
        self._store_root(node, i, total[0])

    def _store_root(self, node: Node, i: Any, degree: Any) -> None:
        root = self.b.let(unary("llvm.sqrt", maximum(degree, number(0.0)), 1))
        value = choose(root > number(0.0), number(1.0) / root, number(0.0))
        self.b.store(self.buffer(_degree_roots(self.context, node)), value, i)


def _degree_roots(context: Context, node: Node) -> str:
    """The buffer of ``d^-1/2`` of a ``gcn_norm`` node, for the nodes of its graph."""
    destinations = context.graphs[node.rows].inputs[3]
    return context.add(f"roots.{node.name}", "float32", (destinations,), "workspace")


def norm(edges: EdgeValues, node: Node) -> Column:
    """The op ``gcn_norm``, from the roots that a :class:`RootKernel` wrote."""
    kernel = edges.kernel
    roots = kernel.buffer(_degree_roots(kernel.context, node))
    sources = kernel.graph_buffer(edges.graph, "src")
    weight = _norm_weight(edges, node)

    def value(e: Any, i: Any, c: Any, lanes: int) -> Any:
        if isinstance(e, tuple):
            return _side_by_side(e, lanes, lambda edge, _: value(edge, i, c, 1))
        first = product(roots[sources[e]], weight(e, i, c, lanes), 1)
        return first * roots[i]

    return value


def _norm_weight(edges: EdgeValues, node: Node) -> Column:
    """The weights that are normalised."""
    if node.inputs:
        return edges.operand(node.inputs[0])
    fill = float(node.attrs.get("fill", 1.0))
    if fill == 1.0:
        return lambda e, i, c, lanes: number(1.0)
    edge_id = edges.kernel.graph_buffer(edges.graph, "edge_id")
    return lambda e, i, c, lanes: choose(edge_id[e] >= 0, number(1.0), number(fill))
