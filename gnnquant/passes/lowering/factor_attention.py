"""Additive attention as products: no exponential of an edge.

A logit ``leaky_relu(a_j + b_i)`` of the source j and the destination i, with a slope c in 0 .. 1, is the
larger of ``a_j + b_i`` and ``c (a_j + b_i)``, and its exponential the larger of theirs. A softmax over the
edges of i does not know what they share, ``exp(b_i)``. What remains are exponentials of nodes, not of edges::

    softmax_j leaky_relu(a_j + b_i) = r_ji / sum_j r_ji,  r_ji = max(exp(a_j), exp((c - 1) b_i) exp(c a_j))

Nodes have the ``DEPTH``-th roots of these numbers, and the softmax raises them to that power after it divided
them by the largest: logits may then differ by hundreds, as in a softmax that subtracts the largest.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from gnnquant.integer_graph import DEPTH, Node, take_name
from gnnquant.passes.lowering.rewriter import Rewriter

if TYPE_CHECKING:
    from gnnquant.integer_graph import IntegerGraph

REACH = 43.0
"""Exponents are clamped to this magnitude: products of two exponentials are then normal numbers."""


def factor_attention(graph: IntegerGraph) -> IntegerGraph:
    """``graph``, in which softmaxes of additive attention read products of what nodes have.

    A part of a logit (``a_j``, ``c a_j``, ``(1 - c) b_i``) beyond ``DEPTH * REACH`` counts as that.
    """
    return _Factoring(graph).run()


class _Factoring(Rewriter):
    def __init__(self, graph: IntegerGraph) -> None:
        super().__init__(graph)
        self.nodes: list[Node] = []
        self.softmax = ""

    def run(self) -> IntegerGraph:
        for node in self.graph.nodes:
            ends = self._ends(node)
            if ends is None:
                self.nodes.append(node)
                continue
            self.softmax = node.name
            source, destination, slope = ends
            upper, lower = self._halves(self._gathered(self._roots(source, 1.0, slope), source))
            turn = self._gathered(self._roots(destination, slope - 1.0), destination)
            roots = self._add("maximum", upper, self._add("mul", lower, turn))
            roots = self._add("reshape", roots, shape=node.shape)
            self.nodes.append(replace(node, inputs=(roots.name,), attrs={**node.attrs, "roots": True}))
        return replace(self.graph, nodes=self.nodes).live()

    def _ends(self, node: Node) -> tuple[Node, Node, float] | None:
        """What a softmax gathers from the sources and the destinations of its edges, and the slope."""
        if node.op != "segment_softmax" or node.attrs.get("roots"):
            return None
        bent = self.without_reshapes(node.inputs[0])
        if bent.op != "leaky_relu" or not 0 <= bent.attrs["scalar"] <= 1:
            return None
        total = self.without_reshapes(bent.inputs[0])
        if total.op != "add" or "scalar" in total.attrs:
            return None
        ends = [self.without_reshapes(name) for name in total.inputs]
        if any(end.op != "gather" or "fill" in end.attrs or end.columns != node.columns for end in ends):
            return None
        found = {end.attrs["index"]: end for end in ends}
        source, destination = (found.get(f"{node.rows}.{part}") for part in ("src", "dst"))
        if source is None or destination is None:
            return None
        return source, destination, float(bent.attrs["scalar"])

    def _roots(self, end: Node, *factors: float) -> Node:
        """``exp(factor x / DEPTH)`` of the rows x that ``end`` gathers, for one factor after the other."""
        x = self.graph[end.inputs[0]]
        x = self._add("reshape", x, shape=(x.columns,))
        parts = [self._add("mul", x, scalar=factor / DEPTH) for factor in factors]
        part = parts[0]
        if len(parts) > 1:
            # side by side: an edge reads all of its source at once
            part = self._add("concat", *parts, shape=(len(parts) * x.columns,))
        part = self._add("maximum", part, scalar=-REACH)
        part = self._add("minimum", part, scalar=REACH)
        return self._add("exp", part)

    def _gathered(self, x: Node, end: Node) -> Node:
        return self._add("gather", x, rows=end.rows, **end.attrs)

    def _halves(self, x: Node) -> list[Node]:
        """The halves of the columns of ``x``."""
        half = x.columns // 2
        return [
            self._add("columns", x, shape=(half,), index=list(range(first, first + half)))
            for first in (0, half)
        ]

    def _add(
        self, op: str, *inputs: Node, rows: str = "", shape: tuple[int, ...] | None = None, **attrs: object
    ) -> Node:
        """A node with the rows and the row shape of its first operand, if not told otherwise."""
        first = inputs[0]
        name = take_name(f"{self.softmax}.{op}", self.names)
        shape = first.shape if shape is None else shape
        node = Node(
            name, op, tuple(item.name for item in inputs), attrs, shape, rows or first.rows, first.source
        )
        self.nodes.append(node)
        return node
