"""Row kernels: everything that can be computed from one row of a space, for blocks of rows."""
# ruff: noqa: ARG005
# All rows have one signature, (row, column, lanes): not every one reads all three.

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from tvm import tirx

from gnnquant.backends.tvm import codes, segments, shapes, tiles
from gnnquant.backends.tvm.aggregate import aggregate_codes, aggregate_floats
from gnnquant.backends.tvm.context import LINE, NEAR, Kernel, StoredCodes, StoredRows, fail
from gnnquant.backends.tvm.edge_codes import KEPT, EdgeCodes
from gnnquant.backends.tvm.edges import EdgeValues
from gnnquant.backends.tvm.emit import const, product, span, splat
from gnnquant.backends.tvm.gemm import float_gemm, integer_gemm
from gnnquant.backends.tvm.known_edges import before, buffers_of
from gnnquant.backends.tvm.layout import round_up
from gnnquant.backends.tvm.partition import BEHIND, EDGE_ROWS, ROWS, TOTALS, Family, Stage, resolve
from gnnquant.backends.tvm.values import Codes, Rows
from gnnquant.integer_graph import ELEMENTWISE, ONE

if TYPE_CHECKING:
    from collections.abc import Callable

    from gnnquant.backends.tvm.context import Context
    from gnnquant.backends.tvm.stream import Stream
    from gnnquant.integer_graph import Node

INTEGER_BLOCK, FLOAT_BLOCK = 8, 24
"""Rows of a block, so that a panel of weights is used several times while it is in cache."""
MOST_AHEAD = 256
"""Columns of a gathered row that are prefetched; the processor fetches what follows."""

EMITTERS: dict[str, Callable[[RowKernel, Node], Rows | Codes]] = {
    "quantize": codes.quantize,
    "dequantize": codes.dequantize,
    "gemm": integer_gemm,
    "float_gemm": float_gemm,
    "spmm": aggregate_codes,
    "float_spmm": aggregate_floats,
    "concat": shapes.concat,
    "columns": shapes.columns,
    "reduce": shapes.reduce,
    "matmul": shapes.matmul,
    "softmax": shapes.softmax,
    "log_softmax": shapes.log_softmax,
}
"""What computes each operation but the elementwise ones and the reductions over rows."""
COSTLY = frozenset({"exp", "log", "elu", "sigmoid", "tanh"})
"""Operations of which a vector takes much less time than its numbers one by one."""
BY_ROW = frozenset({"quantize", "dequantize", "spmm", "float_spmm"}) | ELEMENTWISE
"""Operations of which a row needs nothing of other rows of its block."""


class RowKernel(Kernel):
    """Emits one stage of rows of a space.

    Threads share the rows evenly; where a graph is aggregated, its destinations by their edges; the
    edges of a graph by their destinations, so that one thread has all edges of a destination. One
    thread takes all rows of a stage of totals.

    Attributes:
        block: Rows of a block.
        first: First row of the thread.
        limit: The end of the edges of the thread's rows, where edges are computed with them.
        base: First row of the current block.
        rows: Number of rows of the current block (the last block may be short).
        last: Last row of the space.
        destinations: Of a stage of edges: the thread's first destination and the end of its share.
        across: Numbers of rows that follow from index arrays: ``across[name](r, lanes)`` is that of ``lanes``
            rows.
        statistics: Largest values of rows, by the first of the quantizers that need them.
        stream: Asks for the rows of an input that the next block quantizes.
        tables: Where the pool has the tables of ``lookups``, by the doubled zero points of weights.
        waiting: What is to be done with each row of the block, in this order.
        by_row: Whether more may come before it is done.
    """

    def __init__(self, context: Context, stage: Stage, name: str, outputs: list[tuple[int, str]]) -> None:
        """Prepare the kernel of ``stage`` that also writes ``outputs`` (position, node)."""
        super().__init__(context, name)
        self.stage = stage
        self.kind, _, self.space = stage.family
        ops = {node.op for node in stage.nodes}
        self._tiled = context.machine.tiles and "gemm" in ops
        self.block = 1
        if self._tiled:
            self.block = tiles.TALL * tiles.SIDE
        elif "float_gemm" in ops:
            self.block = FLOAT_BLOCK
        elif (
            ops & {"gemm", "log_softmax", "spmm"}
            or any(map(self._sums_columns, stage.nodes))
            or any(map(self._of_index, stage.nodes))
        ):
            self.block = INTEGER_BLOCK
        self.base: Any = None
        self.rows: Any = None
        self.last: Any = None
        self.first: Any = None
        self.limit: Any = None
        self.destinations: tuple[Any, Any] = (0, 0)
        self.values: dict[str, Rows | Codes] = {}
        self.across: dict[str, Callable[[Any, int], Any]] = {}
        self.statistics: dict[str, Callable[[Any], Any]] = {}
        self.stream: Stream | None = None
        self.tables: dict[int, int] = {}
        self.waiting: list[Callable[[Any], None]] = []
        self.by_row = True
        self.outputs = outputs
        self.edges = {
            inlined.exports[0]: EdgeValues(
                self, inlined, lambda: self.limit, lambda: self.first, whole="float_spmm" in ops
            )
            for inlined in stage.inlined
        }
        self.reads: dict[str, int] = {}
        graph = context.graph
        for node in stage.nodes:
            for operand in node.inputs:
                origin = resolve(graph, operand)
                self.reads[origin] = self.reads.get(origin, 0) + 1
        for kept in [*stage.exports, *(resolve(graph, output) for _, output in outputs)]:
            self.reads[kept] = self.reads.get(kept, 0) + 1

    def _sums_columns(self, node: Node) -> bool:
        """Whether a node has sums along its last axis, which vectors take for several rows at a time."""
        if node.op not in ("reduce", "softmax"):
            return False
        shape = self.context.nodes[node.inputs[0]].shape
        last = node.op == "softmax" or node.attrs["axis"] % len(shape) == len(shape) - 1
        return last and shape[-1] >= self.lanes

    def _of_index(self, node: Node) -> bool:
        """Whether a node is a number of a row that follows from index arrays: vectors take several rows."""
        if node.op not in ELEMENTWISE or node.columns != 1 or node.rows == ONE:
            return False
        nodes = self.context.nodes
        sources = [nodes[resolve(self.context.graph, name)] for name in node.inputs]
        return all(source.op in ("constant", "from_index") or self._of_index(source) for source in sources)

    def body(self) -> None:
        """Emit the statements."""
        b = self.b
        reductions = [node for node in self.stage.nodes if node.op in ("segment_reduce", "row_reduce")]
        with b.shared_loop(self._threads) as thread:
            self.thread = thread
            if self.machine.aligns_frames:
                b.align_frame()
            first, stop = self._share(thread)
            self.first = first
            if self._tiled:
                tiles.begin(self)
            for node in reductions:
                segments.start(self, node)
            blocks = (stop - first + (self.block - 1)) // self.block
            with b.loop(blocks) as index:
                self.base = b.let(first + index * self.block)
                self.rows = const(1)
                if self.block > 1:
                    self.rows = b.let(tirx.min(const(self.block), stop - self.base))
                self.compute()
                self.finish_rows()
            for node in reductions:
                segments.finish(self, node)
            if self._tiled:
                tiles.end()

    def compute(self) -> None:
        """Emit what is computed of a block of rows."""
        for node in self.stage.nodes:
            self._node(node)
        for position, name in self.outputs:
            self._output(position, name)

    @property
    def _threads(self) -> int:
        return 1 if self.kind == TOTALS else self.context.threads

    def _share(self, thread: Any) -> tuple[Any, Any]:
        """The thread's first row and the end of its share."""
        b = self.b
        edges = self.space in self.context.graphs
        aggregated = [node.attrs["graph"] for node in self.stage.nodes if node.op.endswith("spmm")]
        if edges:
            indptr = self.graph_buffer(self.space, "indptr")
            end = indptr.shape[0] - 1
            self.last = indptr[end] - 1
            if self.kind != EDGE_ROWS:
                return const(0), b.let(indptr[end])
            share = self.graph_buffer(self.space, "partition")
            self.destinations = b.let(share[thread]), b.let(share[thread + 1])
            first, stop = self.destinations
            return b.let(indptr[first]), b.let(indptr[stop])
        if aggregated:
            share = self.graph_buffer(aggregated[0], "partition")
            indptr = self.graph_buffer(aggregated[0], "indptr")
            self.last = indptr.shape[0] - 2
            if self.edges:
                self.limit = b.let(indptr[share[thread + 1]])
            return b.let(share[thread]), b.let(share[thread + 1])
        total = self.count(self.space)
        self.last = total - 1
        if self._threads == 1:
            return const(0), total
        step = (total + self._threads - 1) // self._threads
        first = b.let(tirx.min(thread * step, total))
        return first, b.let(tirx.min(first + step, total))

    # ------------------------------------------------------------ values

    def each_row(self, body: Callable[[Any], None]) -> None:
        """``body(r)`` for the rows of the block.

        Operations by row share one loop. What is left to do for a row when its sum is finished then takes the
        time in which the processor waits for the next row's edges, whose number it did not foresee.
        """
        if self.block == 1:
            body(0)
            return
        self.waiting.append(body)
        if not self.by_row:
            self.finish_rows()

    def finish_rows(self) -> None:
        """Emit the loop over the rows of the block that waits for more to do."""
        if not self.waiting:
            return
        bodies, self.waiting = self.waiting, []
        by_row, self.by_row = self.by_row, False
        asks = [self.stream.rows() if self.stream is not None else None for _ in bodies]
        with self.b.loop(self.rows) as r:
            for body, ask in zip(bodies, asks, strict=True):
                body(r)
                if ask is not None:
                    ask(r)
        self.by_row = by_row

    def operand(self, name: str) -> Rows | Codes:
        """The value of a node, wherever it lives."""
        name = resolve(self.context.graph, name)
        if name not in self.values:
            value: Rows | Codes | None = codes.stored_codes(self, name)
            if value is None:
                x = self.reader(name)
                self._look_ahead(name, x)
                value = Rows(x.columns, x.padded, lambda r, j, lanes: x.at(self.base + r, j, lanes), x.loaded)
            self.values[name] = value
        return self.values[name]

    def _look_ahead(self, name: str, x: Rows) -> None:
        """Prefetch rows that later blocks gather; those of destinations follow each other anyway."""
        node = self.context.nodes[name]
        far = node.op == "gather" and not node.attrs["index"].endswith(".dst")
        if far and x.loaded and x.columns * 4 >= LINE:
            columns = min(x.columns, MOST_AHEAD)
            self.each_row(lambda r: self.prefetch(x, self.base + r + NEAR, 0, columns))

    def float_rows(self, name: str) -> Rows:
        """The value of a float node."""
        value = self.operand(name)
        if not isinstance(value, Rows):
            raise fail(self.context.nodes[name], "codes are read where floats are expected")
        return value

    def codes(self, name: str) -> Codes:
        """The value of a quantized node."""
        value = self.operand(name)
        if not isinstance(value, Codes):
            raise fail(self.context.nodes[name], "floats are read where codes are expected")
        return value

    def constant(self, array: np.ndarray[Any, Any]) -> Rows:
        """A row constant."""
        offset = self.keep(array.astype(np.float32))
        return Rows(array.size, True, lambda r, j, lanes: self.kept(offset + j, lanes), True)

    def local(self, columns: int) -> tuple[Rows, Callable[[Any, Any, Any, int], None]]:
        """New scratch rows and how to write them: ``save(r, j, value, lanes)``."""
        stride = round_up(columns + 2 * self.lanes - 1, 2 * self.lanes)
        start = self.reserve("float32", self.block * stride)

        def at(r: Any, j: Any, lanes: int) -> Any:
            return self.load("float32", start + r * stride + j, lanes)

        def save(r: Any, j: Any, value: Any, lanes: int) -> None:
            self.save("float32", value, start + r * stride + j, lanes)

        return Rows(columns, True, at, True), save

    def scalar(self) -> tuple[Callable[[Any], Any], Callable[[Any, Any], None]]:
        """One scratch float per row of the block: how to read and write it."""
        start = self.reserve("float32", self.block)
        return (
            lambda r: self.load("float32", start + r),
            lambda r, value: self.save("float32", value, start + r),
        )

    def solid(self, value: Rows) -> Rows:
        """``value`` as something that is cheap to read more than once."""
        return value if value.loaded else self.copied(value)

    def copied(self, value: Rows) -> Rows:
        """``value`` in scratch."""
        rows, save = self.local(value.columns)

        def row(r: Any) -> None:
            self.columns(
                value.columns,
                value.padded,
                lambda j, lanes: save(r, j, value.at(r, j, lanes), lanes),
            )

        self.each_row(row)
        return rows

    def broadcast(self, name: str, shape: tuple[int, ...]) -> Rows:
        """The operand ``name`` as rows of ``shape``."""
        context = self.context
        own = context.nodes[name].shape
        value = self.float_rows(name)
        if value.columns == int(np.prod(shape)):
            return value
        if value.columns == 1:
            return Rows(int(np.prod(shape)), True, lambda r, j, lanes: splat(value.at(r, 0, 1), lanes))
        origin = context.nodes[resolve(context.graph, name)]
        if origin.op == "constant":
            array = context.graph.constants[origin.attrs["array"]].reshape(own)
            return self.constant(np.ascontiguousarray(np.broadcast_to(array, shape)))
        source = np.broadcast_to(np.arange(value.columns).reshape(own), shape).reshape(-1)
        return shapes.permute(self, value, source)

    # ------------------------------------------------------------ nodes

    def _node(self, node: Node) -> None:
        self.by_row = node.op in BY_ROW
        if not self.by_row:
            self.finish_rows()
        self._emit(node)
        self.by_row = True

    def _emit(self, node: Node) -> None:
        if node.op in ("segment_reduce", "row_reduce"):
            segments.add(self, node)
            return
        if node.op == "quantize" and codes.goes_to_memory(self, node):
            codes.quantize_to_memory(self, node)
            return
        if self.block > 1 and self._of_index(node):
            value: Rows | Codes = self._across_rows(node)
        elif node.op in ELEMENTWISE:
            value = self._elementwise(node)
        elif node.op in EMITTERS:
            value = EMITTERS[node.op](self, node)
        else:
            raise fail(node, "this operation cannot be lowered for blocks of rows")
        if isinstance(value, Rows) and self.reads.get(node.name, 0) > 1:
            value = self.solid(value)
        self.values[node.name] = value
        if node.name in self.stage.exports:
            self._export(node, value)

    def _elementwise(self, node: Node) -> Rows:
        operands = [self.broadcast(name, node.shape) for name in node.inputs]
        operation = self.operation(node)
        if node.op in COSTLY and self.block > 1 and node.columns < self.lanes:
            return self._side_by_side(node.columns, operands, operation)

        def at(r: Any, j: Any, lanes: int) -> Any:
            return operation([x.at(r, j, lanes) for x in operands], lanes)

        return Rows(node.columns, all(x.padded for x in operands), at)

    def _side_by_side(
        self, columns: int, operands: list[Rows], operation: Callable[[list[Any], int], Any]
    ) -> Rows:
        """Rows that are shorter than a vector, computed for several at once.

        Behind those of a short block anything may be read.
        """
        size = round_up(self.block * columns, self.lanes)

        def packed(x: Rows) -> int:
            start = self.reserve("float32", size)

            def copy(r: Any) -> None:
                self.columns(
                    columns,
                    False,
                    lambda j, lanes: self.save("float32", x.at(r, j, lanes), start + r * columns + j, lanes),
                )

            self.each_row(copy)
            return start

        starts = [packed(x) for x in operands]
        self.finish_rows()
        found, lanes = self.reserve("float32", size), self.lanes
        with self.b.loop(size // lanes) as i:
            values = [self.load("float32", start + i * lanes, lanes) for start in starts]
            self.save("float32", operation(values, lanes), found + i * lanes, lanes)
        return Rows(
            columns, False, lambda r, j, lanes: self.load("float32", found + r * columns + j, lanes), True
        )

    def _across_rows(self, node: Node) -> Rows:
        """A number of each row of the block, computed for several rows at once."""
        operands = [self._operand_across(name) for name in node.inputs]
        operation = self.operation(node)

        def across(r: Any, lanes: int) -> Any:
            return operation([operand(r, lanes) for operand in operands], lanes)

        self.across[node.name] = across
        start = self.reserve("float32", self.block)
        if self._leaves(node):
            lanes = math.gcd(self.block, self.lanes)
            for r in range(0, self.block, lanes):
                self.save("float32", across(r, lanes), start + r, lanes)
        return Rows(1, False, lambda r, _, lanes: splat(self.load("float32", start + r), lanes), True)

    def _leaves(self, node: Node) -> bool:
        """Whether anything but numbers like it reads a number of :meth:`_across_rows`."""
        graph, beside = self.context.graph, self.context.beside
        mine = self.stage.nodes
        readers = [user for user in mine if node.name in (resolve(graph, name) for name in user.inputs)]
        kept = {*self.stage.exports, *(resolve(graph, output) for _, output in self.outputs)}
        kept |= {weight for user in mine for weight in beside.get(user.name, ())}
        return node.name in kept or not all(map(self._of_index, readers))

    def _operand_across(self, name: str) -> Callable[[Any, int], Any]:
        """An operand of :meth:`_across_rows`; beyond the rows of a short block anything may be read."""
        name = resolve(self.context.graph, name)
        if name not in self.across:
            x = self.float_rows(name)
            if self.context.nodes[name].op == "constant":
                return lambda r, lanes: splat(x.at(0, 0, 1), lanes)
            start = self.reserve("float32", self.block)
            with self.b.loop(self.rows) as r:
                self.save("float32", x.at(r, 0, 1), start + r)
            self.across[name] = lambda r, lanes: self.load("float32", start + r, lanes)
        return self.across[name]

    # ------------------------------------------------------------ memory

    def _output(self, position: int, name: str) -> None:
        value = self.float_rows(name)
        buffer = self.buffer(f"output.{position}")

        def row(r: Any) -> None:
            self.columns(
                value.columns,
                False,
                lambda j, lanes: self.b.store(buffer, value.at(r, j, lanes), self.base + r, span(j, lanes)),
            )

        self.each_row(row)

    def _export(self, node: Node, value: Rows | Codes) -> None:
        """Write a value for later kernels."""
        if isinstance(value, Codes):
            codes.store_codes(self, node, value)
            return
        buffer, wide = self.declare(node)

        def row(r: Any) -> None:
            self.columns(
                value.columns,
                wide and value.padded,
                lambda j, lanes: self.b.store(buffer, value.at(r, j, lanes), self.base + r, span(j, lanes)),
            )

        self.each_row(row)

    def declare(self, node: Node) -> tuple[Any, bool]:
        """The buffer of a float value, and whether its rows are padded to whole vectors."""
        wide = node.columns >= self.lanes
        stride = round_up(node.columns, self.lanes) if wide else node.columns
        name = self.context.add(f"rows.{node.name}", "float32", (node.rows, stride), "workspace")
        self.context.stored[node.name] = StoredRows(name, stride, wide)
        return self.buffer(name), wide


class WeighKernel(RowKernel):
    """Scales of rows times numbers of rows, for sums that cannot have them from where the rows are quantized.

    Args:
        context: Of the build.
        name: Of the kernel.
        pairs: Quantized values of one space, and numbers of its rows.
    """

    def __init__(self, context: Context, name: str, pairs: list[tuple[Node, str]]) -> None:
        """Nothing is computed but the products."""
        super().__init__(context, Stage(0, Family(ROWS, True, pairs[0][0].rows)), name, [])
        self._pairs = pairs

    def compute(self) -> None:
        """Emit the products of a row."""
        for quantizer, weight in self._pairs:
            stored = self.context.stored[quantizer.name]
            assert isinstance(stored, StoredCodes)
            scale = self.buffer(stored.scale)[self.base]
            found = self.buffer(codes.weighed_scales(self.context, quantizer, weight))
            self.b.store(found, product(self.reader(weight).at(self.base, 0, 1), scale, 1), self.base)


class EdgeCodesKernel(RowKernel):
    """The 8-bit weights of edges that follow from the graph, for all sums over them.

    Args:
        context: Of the build.
        name: Of the kernel.
        node: One of the sums.
    """

    def __init__(self, context: Context, name: str, node: Node) -> None:
        """Nothing is computed but the weights."""
        super().__init__(context, Stage(0, Family(ROWS, False, node.rows), [node]), name, [])

    def compute(self) -> None:
        """Emit the weights of the edges of a block of destinations."""
        node, b = self.stage.nodes[0], self.b
        source = self.context.nodes[resolve(self.context.graph, node.inputs[0])]
        to, units, totals = buffers_of(self, node)
        indptr = self.graph_buffer(node.attrs["graph"], "indptr")
        found = EdgeCodes(self, node, "", source)

        def copy(place: Any, count: Any) -> None:
            with b.loop(count) as k:
                b.store(to, self.load("uint8", found.place + k), place + k)

        def short(first: Any, degree: Any, place: Any, row: Any) -> None:
            found.whole(first, degree, summed=True)
            copy(place, degree)
            b.store(totals, self.load("int32", found.totals), row)

        def long(first: Any, degree: Any, place: Any) -> None:
            found.begin(first, degree)
            found.begin_slice()
            with b.loop((degree + (KEPT - 1)) // KEPT) as run:
                count = b.let(tirx.min(const(KEPT), degree - run * KEPT))
                found.write(b.let(first + run * KEPT), count)
                copy(place + run * KEPT, count)

        def row(r: Any) -> None:
            row = b.let(self.base + r)
            first = b.let(indptr[row])
            degree = b.let(indptr[row + 1] - first)
            place = b.let(first + before(row))
            found.select(r)
            # sums over more edges add their weights themselves
            b.branch(
                degree <= KEPT,
                lambda: short(first, degree, place, row),
                lambda: long(first, degree, place),
            )
            for zero in range(BEHIND):
                b.store(to, const(0, "uint8"), place + degree + zero)
            b.store(units, self.load("float32", found.unit), row)

        self.each_row(row)
