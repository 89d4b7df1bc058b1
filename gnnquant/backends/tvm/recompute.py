"""Values that are cheaper to compute again than to keep.

What a propagation adds in every step (APPNP's teleport) is a value of 8-bit codes, times a number. Kept as
floats for all steps it would be four times the bytes of its codes, read once a step. Roots of degrees, which
all normalised sums read, follow from an integer of the row that the prepared graph has anyway.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

from gnnquant.backends.tvm.partition import resolve

if TYPE_CHECKING:
    from gnnquant.integer_graph import IntegerGraph, Node

CHEAP = frozenset({"add", "sub", "rsub", "mul", "neg", "relu"})
"""Elementwise operations of one instruction."""
CHEAP_OF_A_ROW = CHEAP | {"sqrt", "rdiv", "eq", "where"}
"""Those that are cheap for one number of a row."""


def recomputed(graph: IntegerGraph) -> IntegerGraph:
    """``graph``, in which every reader of such a value has a copy of its own.

    A value is copied, with all that it is made of, when it follows by cheap elementwise operations from
    constants and one quantized value, or one integer of a node; the copies are the same operations, and give
    the same bits. What is gathered is kept.
    """
    return _Copies(graph).run()


class _Copies:
    def __init__(self, graph: IntegerGraph) -> None:
        self.graph = graph
        self.nodes = {node.name: node for node in graph.nodes}
        self.made: set[str] = set()
        self.of_rows: set[str] = set()
        edges = {node.name for node in graph.index if node.op == "graph"}
        for node in graph.nodes:
            sources = [name for name in node.inputs if self.nodes[name].op != "constant"]
            one = self.nodes[sources[0]] if len(sources) == 1 else None
            cheap = node.op in CHEAP and one is not None and one.name in self.made and one.shape == node.shape
            follows = bool(sources) and all(
                name in self.of_rows or self.nodes[name].op == "from_index" for name in sources
            )
            if node.op == "dequantize" or cheap:
                self.made.add(node.name)
            elif node.op in CHEAP_OF_A_ROW and node.columns == 1 and node.rows not in edges and follows:
                self.of_rows.add(node.name)
        self.readers = Counter(name for node in graph.nodes for name in set(node.inputs))
        self.found: list[Node] = []
        self.copies: dict[tuple[str, str], str] = {}

    def run(self) -> IntegerGraph:
        owners: dict[str, dict[str, None]] = {}
        for node in self.graph.nodes:
            for name in node.inputs:
                if self._kept_with_rows(node, name):
                    owners.setdefault(name, {})[self._owner(node, name)] = None
        for node in self.graph.nodes:
            inputs = node.inputs
            if node.name not in self.made:
                copied = {name: self._copy(name, node.name) for name in inputs if self._read_again(name)}
                for name in inputs:
                    if self._kept_with_rows(node, name):
                        copied[name] = self.copies[name, self._owner(node, name)]
                inputs = tuple(copied.get(name, name) for name in inputs)
            self.found.append(replace(node, inputs=inputs))
            for owner in owners.get(node.name, ()):
                self._copy(node.name, owner)
        return replace(self.graph, nodes=self.found)

    def _read_again(self, name: str) -> bool:
        return name in self.made and self.readers[name] > 1

    def _kept_with_rows(self, node: Node, name: str) -> bool:
        """Whether ``node`` reads a number of its row, and is no part of such a number itself.

        Weights of unscaled sums are read once a graph.
        """
        mine = name in self.of_rows and node.name not in self.of_rows and not node.attrs.get("unscaled")
        return mine and node.op != "gather" and self.readers[name] > 1

    def _owner(self, node: Node, name: str) -> str:
        """Who computes the number for ``node``: of a sum's sources, whoever quantizes them."""
        of_sources = node.op == "spmm" and node.attrs.get("per") == "source" and name != node.inputs[0]
        return resolve(self.graph, node.inputs[0]) if of_sources else node.name

    def _copy(self, name: str, owner: str) -> str:
        if (name, owner) not in self.copies:
            node = self.nodes[name]
            inputs = tuple(
                self._copy(source, owner) if source in self.made or source in self.of_rows else source
                for source in node.inputs
            )
            self.found.append(replace(node, name=f"{name} for {owner}", inputs=inputs))
            self.copies[name, owner] = self.found[-1].name
        return self.copies[name, owner]
