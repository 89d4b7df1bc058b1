"""Edge kernels: values with one row per edge of a graph."""
# ruff: noqa: ARG001, ARG002, ARG005, PLR0917
# All columns have one signature, (edge, destination, column): not every one reads all three.

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
    unary,
)
from gnnquant.backends.tvm.partition import resolve
from gnnquant.integer_graph import ELEMENTWISE

if TYPE_CHECKING:
    from collections.abc import Callable

    from gnnquant.backends.tvm.context import Context
    from gnnquant.backends.tvm.partition import Stage
    from gnnquant.integer_graph import Node

    Column = Callable[[Any, Any, Any], Any]


class EdgeKernel(Kernel):
    """Emits one stage of edge rows: for every destination row, value after value.

    Every value of the stage is written to memory, float32 [E', columns]; a value that is read by
    one elementwise operation only is computed where it is read.
    """

    def __init__(self, context: Context, stage: Stage, name: str) -> None:
        """Prepare the kernel of ``stage``."""
        super().__init__(context, name)
        self.stage = stage
        self.graph = stage.rows
        self.computed: dict[str, Column] = {}
        self.readers: dict[str, list[Node]] = {node.name: [] for node in stage.nodes}
        for node in stage.nodes:
            for operand in node.inputs:
                if operand in self.readers:
                    self.readers[operand].append(node)
        self.indptr: Any = None
        self.indices: Any = None

    def body(self) -> None:
        """Emit the statements."""
        b = self.b
        share = self.graph_buffer(self.graph, "partition")
        self.indptr = self.graph_buffer(self.graph, "indptr")
        self.indices = self.graph_buffer(self.graph, "indices")
        with b.shared_loop(self.context.threads) as thread:
            self.thread = thread
            first = b.let(share[thread])
            with b.loop(share[thread + 1] - first) as index:
                i = b.let(first + index)
                begin = b.let(self.indptr[i])
                degree = b.let(self.indptr[i + 1] - begin)
                for node in self.stage.nodes:
                    self._node(node, i, begin, degree)

    def _node(self, node: Node, i: Any, begin: Any, degree: Any) -> None:
        if node.op == "segment_softmax":
            self._segment_softmax(node, begin, degree)
            return
        if node.op in ELEMENTWISE:
            value = self._elementwise(node)
        else:
            method = getattr(self, f"_op_{node.op}", None)
            if method is None:
                raise fail(node, "this operation cannot be lowered for rows of edges")
            value = method(node)
        readers = self.readers[node.name]
        lazy = (
            node.name not in self.stage.exports
            and len(readers) == 1
            and readers[0].op in ELEMENTWISE | {"reshape"}
        )
        if lazy:
            self.computed[node.name] = value
            return
        buffer = self._declare(node)

        def edge(k: Any) -> None:
            e = self.b.let(begin + k)
            self.each(node.columns, lambda c: self.b.store(buffer, value(e, i, c), e, c))

        with self.b.loop(degree) as k:
            edge(k)

    def _declare(self, node: Node) -> Any:
        name = self.context.add(
            f"edges.{node.name}", "float32", (f"E:{self.graph}", node.columns), "workspace"
        )
        self.context.stored[node.name] = StoredRows(name, node.columns, False)
        return self.buffer(name)

    def _operand(self, name: str) -> Column:
        """``value(edge, destination, column)`` of an edge value or constant."""
        if name in self.computed:
            return self.computed[name]
        graph = self.context.graph
        origin = graph[resolve(graph, name)]
        if origin.op == "constant":
            array = graph.constants[origin.attrs["array"]]
            offset = self.context.pool(array.astype(np.float32))
            return lambda e, i, c: self.pool(offset + c)
        if name not in self.context.stored and origin.op == "edge_input":
            return self._op_edge_input(origin)
        stored = self.context.stored[name]
        assert isinstance(stored, StoredRows)
        return lambda e, i, c: self.buffer(stored.buffer)[e, c]

    def _elementwise(self, node: Node) -> Column:
        x = self._broadcast(node.inputs[0], node)
        y = self._broadcast(node.inputs[1], node) if len(node.inputs) > 1 else None
        scalar = node.attrs.get("scalar")

        def value(e: Any, i: Any, c: Any) -> Any:
            second = None if scalar is None else opaque(scalar)
            if y is not None:
                second = y(e, i, c)
            return maths.elementwise(node.op, x(e, i, c), second, 1)

        return value

    def _broadcast(self, name: str, node: Node) -> Column:
        value = self._operand(name)
        shape, full = self.context.graph[name].shape, node.shape
        count = int(np.prod(shape))
        if count == node.columns:
            return value
        if count == 1:
            return lambda e, i, c: value(e, i, 0)
        padded = (1,) * (len(full) - len(shape)) + tuple(shape)

        def at(e: Any, i: Any, c: Any) -> Any:
            # mixed radix: drop the axes along which the operand has one element
            source: Any = 0
            inner = own = 1
            for size, extent in zip(reversed(full), reversed(padded), strict=True):
                if extent > 1:
                    source = source + (c // inner) % size * own
                    own *= extent
                inner *= size
            return value(e, i, source)

        return at

    def _op_edge_input(self, node: Node) -> Column:
        edge_id = self.graph_buffer(self.graph, "edge_id")
        given = self.buffer(node.attrs["input"])
        fill = float(node.attrs.get("fill") or 0.0)

        def value(e: Any, i: Any, c: Any) -> Any:
            position = self.b.let(edge_id[e])
            index = (position, c) if len(given.shape) == 2 else (position,)
            return self.b.lazy(position >= 0, given[index], number(fill))

        return value

    def _op_gather(self, node: Node) -> Column:
        graph = self.context.graph
        origin = graph[resolve(graph, node.inputs[0])]
        if origin.op == "constant":
            return self._operand(origin.name)
        if origin.op == "node_input":
            name = origin.attrs["input"]
        else:
            stored = self.context.stored[origin.name]
            assert isinstance(stored, StoredRows)
            name = stored.buffer
        source = node.attrs["side"] == "src"

        def value(e: Any, i: Any, c: Any) -> Any:
            buffer = self.buffer(name)
            row = self.indices[e] if source else i
            return buffer[row, c] if len(buffer.shape) == 2 else buffer[row]

        return value

    def _op_reshape(self, node: Node) -> Column:
        return self._operand(node.inputs[0])

    def _op_gcn_norm(self, node: Node) -> Column:
        roots = self.buffer(degree_roots(self.context, node))
        weight = self._norm_weight(node)

        def value(e: Any, i: Any, c: Any) -> Any:
            first = product(roots[self.indices[e]], weight(e, i, 0), 1)
            return first * roots[i]

        return value

    def _norm_weight(self, node: Node) -> Column:
        if len(node.inputs) > 1:
            return self._operand(node.inputs[1])
        fill = float(node.attrs.get("fill", 1.0))
        if fill == 1.0:
            return lambda e, i, c: number(1.0)
        edge_id = self.graph_buffer(self.graph, "edge_id")
        return lambda e, i, c: choose(edge_id[e] >= 0, number(1.0), number(fill))

    def _segment_softmax(self, node: Node, begin: Any, degree: Any) -> None:
        b = self.b
        x = self._operand(node.inputs[0])
        out = self._declare(node)
        columns = node.columns
        best = self.reserve("float32", columns)
        total = self.reserve("float32", columns)

        def start(c: Any) -> None:
            self.save("float32", number(float("-inf")), best + c)
            self.save("float32", number(0.0), total + c)

        self.each(columns, start)
        for step in (self._softmax_max, self._softmax_power, self._softmax_share):
            with b.loop(degree) as k:
                e = b.let(begin + k)
                self.each(columns, lambda c, e=e, step=step: step(x, out, e, c, best + c, total + c))

    def _softmax_max(self, x: Column, out: Any, e: Any, c: Any, best: Any, total: Any) -> None:
        self.save("float32", maximum(self.load("float32", best), x(e, None, c)), best)

    def _softmax_power(self, x: Column, out: Any, e: Any, c: Any, best: Any, total: Any) -> None:
        power = self.b.let(maths.exp(x(e, None, c) - self.load("float32", best), 1))
        self.b.store(out, power, e, c)
        self.save("float32", self.load("float32", total) + power, total)

    def _softmax_share(self, x: Column, out: Any, e: Any, c: Any, best: Any, total: Any) -> None:
        share = out[e, c] / (self.load("float32", total) + number(1e-16))
        self.b.store(out, share, e, c)


def degree_roots(context: Context, node: Node) -> str:
    """The buffer of ``d^-1/2`` of a ``gcn_norm`` node."""
    return context.add(f"roots.{node.name}", "float32", ("N",), "workspace")


class RootKernel(EdgeKernel):
    """``d^-1/2`` for the ``gcn_norm`` nodes of a stage."""

    def body(self) -> None:
        """Emit the statements."""
        b = self.b
        share = self.graph_buffer(self.graph, "partition")
        self.indptr = self.graph_buffer(self.graph, "indptr")
        with b.shared_loop(self.context.threads) as thread:
            self.thread = thread
            first = b.let(share[thread])
            with b.loop(share[thread + 1] - first) as index:
                i = b.let(first + index)
                for node in self.stage.nodes:
                    self._root(node, i)

    def _root(self, node: Node, i: Any) -> None:
        b = self.b
        weight = self._norm_weight(node)
        begin = b.let(self.indptr[i])
        total = b.registers(1, "float32")
        if len(node.inputs) == 1 and float(node.attrs.get("fill", 1.0)) == 1.0:
            # ones add up to the degree, exactly as far as float32 counts
            limit = const(2**24)
            degree = minimum(self.indptr[i + 1] - begin, limit)
            self._store_root(node, i, cast(degree, "float32"))
            return
        b.store(total, number(0.0), 0)
        with b.loop(self.indptr[i + 1] - begin) as k:
            e = b.let(begin + k)
            b.store(total, total[0] + weight(e, i, 0), 0)
        self._store_root(node, i, total[0])

    def _store_root(self, node: Node, i: Any, degree: Any) -> None:
        root = self.b.let(unary("llvm.sqrt", maximum(degree, number(0.0)), 1))
        value = choose(root > number(0.0), number(1.0) / root, number(0.0))
        self.b.store(self.buffer(degree_roots(self.context, node)), value, i)
