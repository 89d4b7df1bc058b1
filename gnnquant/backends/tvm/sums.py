"""Integer sums over the edges of a destination row: what all layouts of codes have in common."""
# What a sum is made of.

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tvm import tirx

from gnnquant.backends.tvm.context import AHEAD, LINE, WAITING, fail
from gnnquant.backends.tvm.edge_codes import EdgeCodes
from gnnquant.backends.tvm.emit import cast, const, maximum, product, splat
from gnnquant.backends.tvm.known_edges import KnownEdgeCodes
from gnnquant.backends.tvm.layout import round_up
from gnnquant.backends.tvm.values import Rows

if TYPE_CHECKING:
    from gnnquant.backends.tvm.context import StoredCodes
    from gnnquant.backends.tvm.rows import RowKernel
    from gnnquant.integer_graph import Node

SLICE = 32768
"""Edges whose sums fit 32 bits at any width: 32768 * 127 * 510 < 2^31."""


class RowSums:
    """Integer sums of codes times 8-bit edge weights.

    Args:
        kernel: Where.
        node: The op ``spmm``.
        stored: The codes.
        source: The node that made them.
        slots: int32 sums of a row, in the order of the layout.
        run: Edges that are summed together.
        dtype: Type in which the weights of edges are read.
    """

    def __init__(
        self,
        kernel: RowKernel,
        node: Node,
        stored: StoredCodes,
        source: Node,
        *,
        slots: int,
        run: int,
        dtype: str,
    ) -> None:
        self.kernel = kernel
        self.node = node
        self.zero2 = source.attrs["zero2"]
        self.heads = node.attrs["heads"]
        if node.columns % self.heads:
            raise fail(node, f"{node.columns} columns do not divide into {self.heads} heads")
        graph = node.attrs["graph"]
        self.indptr = kernel.graph_buffer(graph, "indptr")
        self.indices = kernel.graph_buffer(graph, "src")
        self.codes = kernel.buffer(stored.buffer)
        self.padded = round_up(slots, 16)
        self.narrow = kernel.reserve("int32", self.padded)
        self.wide = kernel.reserve("int64", self.padded)
        self.run = run
        kind = KnownEdgeCodes if node.name in kernel.context.known else EdgeCodes
        self.edge_codes = kind(kernel, node, stored.scale, source, run=run, dtype=dtype)
        lines = -(-stored.layout.row_bytes // LINE) + self.edge_codes.lines
        self.ahead = min(AHEAD, WAITING // (lines * LINE))
        self.save: Any = None

    def emit(self) -> Rows:
        """The float rows."""
        rows, self.save = self.kernel.local(max(self.node.columns, self.padded))
        self.kernel.each_row(self._row)
        return Rows(self.node.columns, True, rows.at, True)

    def _ask(self, e: Any, first: Any, size: int) -> Any:
        """Prefetch ``size`` bytes of the row of the edge that is ``ahead`` of ``e``; returns its source."""
        b = self.kernel.b
        source = b.let(self.indices[e + self.ahead])
        for line in range(0, size, LINE):
            b.prefetch(self.codes[source, first + line], 2)
        return source

    def _row(self, r: Any) -> None:
        self.edge_codes.select(r)
        self._any_row(r, *self._edges(r))

    def _edges(self, r: Any) -> tuple[Any, Any]:
        """First edge and number of edges of row r of the block."""
        kernel, b = self.kernel, self.kernel.b
        first = b.let(self.indptr[kernel.base + r])
        return first, b.let(self.indptr[kernel.base + r + 1] - first)

    def _any_row(self, r: Any, first: Any, degree: Any) -> None:
        """A row of any degree, a slice and within it a run of edges at a time."""
        kernel, b = self.kernel, self.kernel.b
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

    def _accumulate(self, start: Any, count: Any) -> None:
        """Sums of codes times weights over ``count`` edges into the int32 row.

        A run of edges at a time, all columns of it: what later columns read is still in cache.
        """
        self._run(start, tirx.min(count, const(self.run)), False)
        with self.kernel.b.loop(tirx.max((count + (self.run - 1)) // self.run - 1, 0)) as more:
            begin = self.kernel.b.let((more + 1) * self.run)
            self._run(start + begin, tirx.min(const(self.run), count - begin), True)

    def _run(self, start: Any, count: Any, add: bool) -> None:
        self.edge_codes.write(start, count)
        self._sum_run(start, count, add)

    def _sum_run(self, start: Any, count: Any, add: bool) -> None:
        """A run of edges, whose sums replace those in the int32 row or are added to them."""
        raise NotImplementedError

    def _finish(self, r: Any, degree: Any) -> None:
        """The result from the int32 row."""
        raise NotImplementedError

    def _finish_wide(self, r: Any, degree: Any) -> None:
        """The result from the int64 row: rows without edges and rows of more than ``SLICE`` edges."""
        raise NotImplementedError

    def _wide_sum(self, slot: Any, head: Any, degree: Any) -> Any:
        """The result of one slot of the int64 row."""
        kernel, codes = self.kernel, self.edge_codes
        value = kernel.load("int64", self.wide + slot)
        value = value + value - kernel.load("int64", codes.sums + head) * const(self.zero2, "int64")
        return self._scaled(cast(value, "float32"), kernel.load("float32", codes.unit + head), degree, 1)

    def _scaled(self, value: Any, unit: Any, degree: Any, lanes: int) -> Any:
        """The float result of exact sums given as floats."""
        y = product(value, unit, lanes)
        if self.node.attrs["reduce"] == "mean":
            y = y / splat(cast(maximum(degree, const(1)), "float32"), lanes)
        return y
