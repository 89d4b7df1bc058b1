"""Looking for NaN and infinity in the rows of an input while these are quantized with one scale for all.

Rows with scales of their own need no such watch: their scales show it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gnnquant.backends.tvm.emit import const, fold_max, maximum, reinterpret, splat
from gnnquant.backends.tvm.values import Rows

if TYPE_CHECKING:
    from gnnquant.backends.tvm.context import Context
    from gnnquant.backends.tvm.rows import RowKernel
    from gnnquant.integer_graph import Node


def watched(context: Context, node: Node) -> str:
    """The buffer, float32 [rows], of NaN or infinity where the input that ``node`` quantizes has one."""
    return context.add(f"largest.{node.name}", "float32", (node.rows,), "workspace")


class Watch:
    """The largest magnitude of a block of rows, which is NaN or infinity where one of its numbers is.

    The comparison is one of bit patterns, which order like the numbers from 0 to NaN.

    Attributes:
        x: The rows; whoever reads them through this keeps watch.
    """

    def __init__(self, kernel: RowKernel, node: Node, x: Rows) -> None:
        self.kernel, self.node = kernel, node
        self._given = x
        self._lanes = kernel.lanes if x.columns >= kernel.lanes else 1
        self._largest = kernel.b.registers(1, "int32", self._lanes)
        kernel.b.store(self._largest, splat(const(0), self._lanes), 0)
        self.x = Rows(x.columns, x.padded, self._at, x.loaded)

    def _at(self, r: Any, j: Any, lanes: int) -> Any:
        kernel, x = self.kernel, self._given
        if kernel.block > 1 and lanes > 1 and kernel.stream is None:
            # memory works ahead on the next block while this one is computed
            kernel.b.prefetch(x.at(r + kernel.block, j, 1))
        for first in range(0, lanes, self._lanes):
            bits = reinterpret(x.at(r, j + first, self._lanes), "int32", self._lanes)
            magnitude = bits & splat(const(0x7FFFFFFF), self._lanes)
            kernel.b.store(self._largest, maximum(self._largest[0], magnitude), 0)
        return x.at(r, j, lanes)

    def finish(self) -> None:
        """Write what was found, for all rows of the block."""
        kernel = self.kernel
        kernel.finish_rows()
        found = kernel.buffer(watched(kernel.context, self.node))
        value = kernel.b.let(reinterpret(fold_max(self._largest[0], self._lanes), "float32"))
        with kernel.b.loop(kernel.rows) as r:
            kernel.b.store(found, value, kernel.base + r)
