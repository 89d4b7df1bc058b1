"""Edge kernels: softmaxes and normalisations over the edges of a destination, and what is cheap beside."""
# ruff: noqa: ARG005
# All columns have one signature, (edge, destination, column, lanes): not every one reads all four.

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from gnnquant.backends.tvm import maths
from gnnquant.backends.tvm.context import Kernel, StoredRows, fail
from gnnquant.backends.tvm.emit import (
    cast,
    choose,
    const,
    maximum,
    minimum,
    number,
    opaque,
    product,
    shuffle,
    span,
    splat,
    unary,
)
from gnnquant.backends.tvm.partition import resolve
from gnnquant.integer_graph import ELEMENTWISE

if TYPE_CHECKING:
    from collections.abc import Callable

    from gnnquant.backends.tvm.context import Context
    from gnnquant.backends.tvm.partition import Stage
    from gnnquant.integer_graph import Node

    Column = Callable[[Any, Any, Any, int], Any]
    """``value(edge, destination, column, lanes)``."""


class EdgeKernel(Kernel):
    """Emits one stage of edge values: for every destination row, value after value.

    Every value of the stage is written to memory, float32 [E, columns]; a value that is read by
    one elementwise operation only is computed where it is read.
    """

    def __init__(self, context: Context, stage: Stage, name: str) -> None:
        """Prepare the kernel of ``stage``."""
        super().__init__(context, name)
        self.stage = stage
        self.graph = stage.family.rows
        self.computed: dict[str, Column] = {}
        self.readers: dict[str, list[Node]] = {node.name: [] for node in stage.nodes}
        for node in stage.nodes:
            for operand in node.inputs:
                origin = resolve(context.graph, operand)
                if origin in self.readers:
                    self.readers[origin].append(node)

    def body(self) -> None:
        """Emit the statements."""
        b = self.b
        share = self.graph_buffer(self.graph, "partition")
        indptr = self.graph_buffer(self.graph, "indptr")
        with b.shared_loop(self.context.threads) as thread:
            self.thread = thread
            first = b.let(share[thread])
            with b.loop(share[thread + 1] - first) as index:
                i = b.let(first + index)
                begin = b.let(indptr[i])
                degree = b.let(indptr[i + 1] - begin)
                self._row(i, begin, degree)

    def _row(self, i: Any, begin: Any, degree: Any) -> None:
        for node in self.stage.nodes:
            if node.op == "segment_softmax":
                self._segment_softmax(node, i, begin, degree)
                continue
            if node.op in ELEMENTWISE:
                value = self._elementwise(node)
            elif node.op == "gcn_norm":
                value = self._norm(node)
            else:
                raise fail(node, "this operation cannot be lowered edge by edge")
            readers = self.readers[node.name]
            kept = node.name in self.stage.exports or len(readers) != 1 or readers[0].op not in ELEMENTWISE
            if not kept:
                self.computed[node.name] = value
                continue
            buffer = self._declare(node)
            with self.b.loop(degree) as k:
                e = self.b.let(begin + k)
                self._each(
                    node.columns,
                    lambda c, lanes, e=e, buffer=buffer, value=value: self.b.store(
                        buffer, value(e, i, c, lanes), e, span(c, lanes)
                    ),
                )

    def _each(self, columns: int, body: Callable[..., None]) -> None:
        """``body(column, lanes)``, every column once."""
        if columns % self.lanes == 0:
            self.each(columns // self.lanes, lambda index: body(index * self.lanes, self.lanes))
        else:
            self.each(columns, lambda c: body(c, 1))

    def _declare(self, node: Node) -> Any:
        name = self.context.add(f"edges.{node.name}", "float32", (self.graph, node.columns), "workspace")
        self.context.stored[node.name] = StoredRows(name, node.columns, False)
        return self.buffer(name)

    def operand(self, name: str) -> Column:
        """A value of the same edges."""
        name = resolve(self.context.graph, name)
        if name in self.computed:
            return self.computed[name]
        node = self.context.nodes[name]
        if node.op == "gather" and node.attrs["index"] == f"{self.graph}.dst":
            of_row = self.reader(node.inputs[0])
            return lambda e, i, c, lanes: of_row.at(i, c, lanes)
        of_edge = self.reader(name)
        return lambda e, i, c, lanes: of_edge.at(e, c, lanes)

    def _elementwise(self, node: Node) -> Column:
        operands = [self._broadcast(name, node) for name in node.inputs]
        scalar = None if "scalar" not in node.attrs else self.learned(node.attrs["scalar"])

        def value(e: Any, i: Any, c: Any, lanes: int) -> Any:
            values = [operand(e, i, c, lanes) for operand in operands]
            if scalar is not None:
                values.append(scalar(lanes))
            return maths.elementwise(node.op, values, lanes)

        return value

    def _broadcast(self, name: str, node: Node) -> Column:
        value = self.operand(name)
        shape, full = self.context.nodes[name].shape, node.shape
        count = int(np.prod(shape))
        if count == node.columns:
            return value
        if count == 1:
            return lambda e, i, c, lanes: splat(value(e, i, 0, 1), lanes)
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

        return at

    def _norm(self, node: Node) -> Column:
        roots = self.buffer(degree_roots(self.context, node))
        sources = self.graph_buffer(self.graph, "src")
        weight = self.norm_weight(node)

        def value(e: Any, i: Any, c: Any, lanes: int) -> Any:
            first = product(roots[sources[e]], weight(e, i, c, lanes), 1)
            return first * roots[i]

        return value

    def norm_weight(self, node: Node) -> Column:
        """The weights that are normalised."""
        if node.inputs:
            return self.operand(node.inputs[0])
        fill = float(node.attrs.get("fill", 1.0))
        if fill == 1.0:
            return lambda e, i, c, lanes: number(1.0)
        edge_id = self.graph_buffer(self.graph, "edge_id")
        return lambda e, i, c, lanes: choose(edge_id[e] >= 0, number(1.0), number(fill))

    def _segment_softmax(self, node: Node, i: Any, begin: Any, degree: Any) -> None:
        b = self.b
        x = self.operand(node.inputs[0])
        out = self._declare(node)
        columns = node.columns
        best = self.reserve("float32", columns)
        total = self.reserve("float32", columns)

        def begins(c: Any, lanes: int) -> None:
            self.save("float32", number(float("-inf"), lanes), best + c, lanes)
            self.save("float32", number(0.0, lanes), total + c, lanes)

        def largest(e: Any, c: Any, lanes: int) -> None:
            value = maximum(self.load("float32", best + c, lanes), x(e, i, c, lanes))
            self.save("float32", value, best + c, lanes)

        def power(e: Any, c: Any, lanes: int) -> None:
            value = b.let(maths.exp(x(e, i, c, lanes) - self.load("float32", best + c, lanes), lanes))
            b.store(out, value, e, span(c, lanes))
            self.save("float32", self.load("float32", total + c, lanes) + value, total + c, lanes)

        def share(e: Any, c: Any, lanes: int) -> None:
            divisor = self.load("float32", total + c, lanes) + number(1e-16, lanes)
            b.store(out, out[e, span(c, lanes)] / divisor, e, span(c, lanes))

        self._each(columns, begins)
        for step in (largest, power, share):
            with b.loop(degree) as k:
                e = b.let(begin + k)
                self._each(columns, lambda c, lanes, e=e, step=step: step(e, c, lanes))


def degree_roots(context: Context, node: Node) -> str:
    """The buffer of ``d^-1/2`` of a ``gcn_norm`` node, for the nodes of its graph."""
    destinations = context.graphs[node.rows].inputs[3]
    return context.add(f"roots.{node.name}", "float32", (destinations,), "workspace")


class RootKernel(EdgeKernel):
    """``d^-1/2`` for the ``gcn_norm`` nodes of a stage."""

    def _row(self, i: Any, begin: Any, degree: Any) -> None:
        for node in self.stage.nodes:
            if node.op == "gcn_norm":
                self._root(node, i, begin, degree)

    def _root(self, node: Node, i: Any, begin: Any, degree: Any) -> None:
        b = self.b
        if not node.inputs and float(node.attrs.get("fill", 1.0)) == 1.0:
            # ones add up to the degree, exactly as far as float32 counts
            self._store_root(node, i, cast(minimum(degree, const(2**24)), "float32"))
            return
        weight = self.norm_weight(node)
        total = b.registers(1, "float32")
        b.store(total, number(0.0), 0)
        with b.loop(degree) as k:
            e = b.let(begin + k)
            b.store(total, total[0] + weight(e, i, 0, 1), 0)
        self._store_root(node, i, total[0])

    def _store_root(self, node: Node, i: Any, degree: Any) -> None:
        root = self.b.let(unary("llvm.sqrt", maximum(degree, number(0.0)), 1))
        value = choose(root > number(0.0), number(1.0) / root, number(0.0))
        self.b.store(self.buffer(degree_roots(self.context, node)), value, i)
