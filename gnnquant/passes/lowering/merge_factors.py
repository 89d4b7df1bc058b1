"""Numbers that multiply whole rows one after the other, as one number: ``x (s r c)`` for ``((x s) r) c``.

A normalisation, a scale of codes and a coefficient of the model each are a product for every column of a row
otherwise, in the longest chain of operations between a sum over edges and the codes of its result.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from functools import reduce
from typing import TYPE_CHECKING

import numpy as np

from gnnquant.integer_graph import Node, take_name
from gnnquant.passes.lowering.rewriter import Rewriter

if TYPE_CHECKING:
    from gnnquant.integer_graph import IntegerGraph

FAR_FROM_OVERFLOW = 2.0**60
"""Scalars are merged while they, their product and the inverses of these are below."""


def merge_factors(graph: IntegerGraph) -> IntegerGraph:
    """``graph``, in which rows of several columns are multiplied by scalars and numbers of a row at once."""
    return _Merging(graph).run()


class _Merging(Rewriter):
    def __init__(self, graph: IntegerGraph) -> None:
        super().__init__(graph)
        uses = Counter([*graph.outputs, *(name for node in graph.nodes for name in node.inputs)])
        self.scaled = {node.name: self._rows(node) for node in graph.nodes}
        """What a node multiplies by a number; "" where it does something else."""
        self.inner = {rows for rows in self.scaled.values() if rows and self.scaled[rows] and uses[rows] == 1}
        """Products that nothing but another product reads."""

    def run(self) -> IntegerGraph:
        merged, gone = {}, set()
        for node in self.graph.nodes:
            if self.scaled[node.name] in self.inner and node.name not in self.inner:
                chain = self._chain(node)
                found = self._merge(chain)
                if found:
                    merged[node.name] = found
                    gone |= {other.name for other in chain}
        nodes: list[Node] = []
        for node in self.graph.nodes:
            nodes += merged.get(node.name, [] if node.name in gone else [node])
        return replace(self.graph, nodes=nodes)

    def _rows(self, node: Node) -> str:
        if node.op != "mul" or node.columns == 1:
            return ""
        if "scalar" in node.attrs:
            return node.inputs[0] if _moderate(node.attrs["scalar"]) else ""
        x, y = (self.graph[name] for name in node.inputs)
        if x.columns == 1:
            x, y = y, x
        return x.name if y.columns == 1 and y.rows == node.rows and x.shape == node.shape else ""

    def _chain(self, last: Node) -> list[Node]:
        """The products that end with ``last``, from there on."""
        chain = [last]
        while self.scaled[chain[-1].name] in self.inner:
            chain.append(self.graph[self.scaled[chain[-1].name]])
        return chain

    def _merge(self, chain: list[Node]) -> list[Node]:
        """What takes the place of a chain; nothing where it stays."""
        scalar, last = np.float32(1), chain[0]
        for node in chain:
            scalar *= np.float32(node.attrs.get("scalar", 1))
        if not _moderate(float(scalar)):
            return []
        x = self.scaled[chain[-1].name]
        numbers = [name for node in chain for name in node.inputs if name != self.scaled[node.name]]
        if not numbers:
            return [replace(last, inputs=(x,), attrs={"scalar": float(scalar)})]
        found: list[Node] = []

        def product(*inputs: str, **attrs: float) -> str:
            name = take_name(f"{last.name}.factor", self.names)
            shape = self.graph[numbers[0]].shape
            found.append(Node(name, "mul", inputs, attrs, shape, last.rows, last.source))
            return name

        number = reduce(product, numbers)
        if any("scalar" in node.attrs for node in chain):
            number = product(number, scalar=float(scalar))
        return [*found, replace(last, inputs=(x, number), attrs={})]


def _moderate(scalar: float) -> bool:
    """Whether products with ``scalar`` overflow or vanish no earlier in another order."""
    return 1 / FAR_FROM_OVERFLOW < abs(scalar) < FAR_FROM_OVERFLOW
