"""The 8-bit weights of edges that follow from the graph: rounded once, for all sums and all calls.

Those of destination i lie from ``first_i + BEHIND * i`` on, and zeros behind them: sums of several edges at a
time read on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gnnquant.backends.tvm.edge_codes import EdgeCodes
from gnnquant.backends.tvm.emit import cast, choose, const, reinterpret, span, splat
from gnnquant.backends.tvm.partition import BEHIND

if TYPE_CHECKING:
    from gnnquant.backends.tvm.rows import RowKernel
    from gnnquant.integer_graph import Node


def buffers_of(kernel: RowKernel, node: Node) -> tuple[Any, Any, Any]:
    """The codes, units and totals (``Known``) of the sum ``node``, as arguments."""
    context, known = kernel.context, kernel.context.known[node.name]
    return (
        kernel.buffer(context.add(known.codes, "uint8", (known.size,), "graph")),
        kernel.buffer(context.add(known.units, "float32", (node.rows,), "graph")),
        kernel.buffer(context.add(known.totals, "int32", (node.rows,), "graph")),
    )


def before(row: Any) -> Any:
    """Zeros that lie before the codes of destination ``row``."""
    return row * BEHIND


class KnownEdgeCodes(EdgeCodes):
    """:class:`EdgeCodes` that were rounded before; bytes are read where they are."""

    def __init__(self, kernel: RowKernel, node: Node, scale: str, source: Node) -> None:
        super().__init__(kernel, node, scale, source)
        self.weights = None
        self._codes, self._units_of, self._totals_of = buffers_of(kernel, node)
        self._shift: Any = 0
        self._start: Any = 0

    def begin(self, first: Any, degree: Any) -> None:  # noqa: ARG002 - as those have it that are rounded here
        """The unit of the row, and zeros for its sums."""
        self._take(first)
        self.kernel.save("int64", const(0, "int64"), self.sums)

    def whole(self, first: Any, degree: Any, *, summed: bool) -> None:  # noqa: ARG002
        """The unit of the row; with ``summed`` also the sum of its codes."""
        row = self._take(first)
        if summed:
            self.kernel.save("int32", self._totals_of[row], self.totals)

    def write(self, start: Any, count: Any) -> None:
        """Add the codes of a run to the sums."""
        b, lanes = self.kernel.b, self.lanes
        self._start = b.let(start + self._shift)
        with b.loop((count + (lanes - 1)) // lanes) as index:
            there = span(0, lanes) < splat(count - index * lanes, lanes)
            data = reinterpret(self._codes[span(self._start + index * lanes, lanes)], "int8", lanes)
            t = b.let(choose(there, cast(data, "int32", lanes), splat(const(0), lanes)))
            self.kernel.save("int32", self.kernel.load("int32", self.totals, lanes) + t, self.totals, lanes)

    def four(self, quad: Any, count: Any) -> Any:  # noqa: ARG002
        """The weights of edges ``4 * quad`` on, as one integer; 0 is that of an edge behind the last."""
        return reinterpret(self._codes[span(self._start + 4 * quad, 4)], "int32")

    def _take(self, first: Any) -> Any:
        row = self.kernel.b.let(self.kernel.base + self.row)
        self._shift = self.kernel.b.let(before(row))
        self._start = self.kernel.b.let(first + self._shift)
        self.kernel.save("float32", self._units_of[row], self.unit)
        return row
