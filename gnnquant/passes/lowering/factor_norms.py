"""Symmetric normalisation as two factors of rows: ``D^-1/2 (A (D^-1/2 X))``.

The number of an edge is the product of one of its source and one of its destination. The first becomes part
of what the codes of the source stand for, the second a factor of the sum: nothing is left to be known of the
edge, and its 8-bit weight is a rounded number of its source.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from gnnquant.integer_graph import ONE, IndexNode, Node, take_name
from gnnquant.passes.lowering.rewriter import Rewriter

if TYPE_CHECKING:
    from gnnquant.integer_graph import IntegerGraph


def factor_norms(graph: IntegerGraph) -> IntegerGraph:
    """``graph``, in which no sum of codes has a ``gcn_norm`` without weights for its edge weight.

    Such a sum reads the root of its source's degree instead (``per="source"``), and is multiplied by that of
    its destination's. Sums of floats keep theirs: they read what was computed once per graph.
    """
    return _Factoring(graph).run()


class _Factoring(Rewriter):
    def __init__(self, graph: IntegerGraph) -> None:
        super().__init__(graph)
        self.constants = dict(graph.constants)
        self.index = list(graph.index)
        self.first: list[Node] = []
        self.nodes: list[Node] = []
        self.roots: dict[tuple[str, int], str] = {}

    def run(self) -> IntegerGraph:
        for node in self.graph.nodes:
            norm = self._norm(node)
            if norm is None:
                self.nodes.append(node)
                continue
            root = self._root(norm, len(node.shape))
            total = self._name(f"{node.name}.sum")
            attrs = {**node.attrs, "per": "source"}
            self.nodes.append(replace(node, name=total, inputs=(node.inputs[0], root), attrs=attrs))
            self.nodes.append(replace(node, op="mul", inputs=(total, root), attrs={}))
        nodes = [*self.first, *self.nodes]
        return replace(self.graph, index=self.index, nodes=nodes, constants=self.constants).live()

    def _norm(self, node: Node) -> Node | None:
        """The ``gcn_norm`` that weighs the edges of a sum of codes, where it has two factors."""
        if node.op != "spmm" or len(node.inputs) < 2 or node.attrs["heads"] != 1:
            return None
        norm = self.without_reshapes(node.inputs[1])
        plain = norm.op == "gcn_norm" and not norm.inputs and norm.attrs["fill"] == 1
        return norm if plain and norm.rows == node.attrs["graph"] else None

    def _root(self, norm: Node, rank: int) -> str:
        """``d^-1/2`` of the nodes of the graph that ``norm`` normalises, and 0 where no edge arrives."""
        if (norm.rows, rank) in self.roots:
            return self.roots[norm.rows, rank]
        destinations = self.graph.index_node(norm.rows).inputs[3]
        shape = (1,) * rank

        def add(op: str, *inputs: str, rows: str = destinations, name: str = "", **attrs: object) -> str:
            name = self._name(f"{norm.name}.{name or op}")
            self.first.append(Node(name, op, inputs, attrs, shape, rows, norm.source))
            return name

        # of the index program, which keeps them while the same graph comes again
        ends, degrees = (self._name(f"{norm.name}.{what}") for what in ("dst", "degrees"))
        self.index.append(IndexNode(ends, "part", (norm.rows,), {"part": "dst"}))
        self.index.append(IndexNode(degrees, "count", (ends, destinations)))
        degree = add("from_index", index=degrees)
        inverse = add("rdiv", add("sqrt", degree), scalar=1.0)
        infinite = add("eq", inverse, scalar=math.inf)
        array = self._name(f"{norm.name}.zero")
        self.constants[array] = np.zeros(shape, dtype=np.float32)
        zero = add("constant", rows=ONE, array=array)
        self.roots[norm.rows, rank] = add("where", infinite, zero, inverse, name="root")
        return self.roots[norm.rows, rank]

    def _name(self, wanted: str) -> str:
        return take_name(wanted, self.names)
