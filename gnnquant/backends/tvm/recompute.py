"""Values that are cheaper to compute again than to keep.

What a propagation adds in every step (APPNP's teleport) is a value of 8-bit codes, times a number. Kept as
floats for all steps it would be four times the bytes of its codes, read once a step.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gnnquant.integer_graph import IntegerGraph, Node

CHEAP = frozenset({"add", "sub", "rsub", "mul", "neg", "relu"})
"""Elementwise operations of one instruction."""


def recomputed(graph: IntegerGraph) -> IntegerGraph:
    """``graph``, in which every reader of such a value has a copy of its own.

    A value is copied, with all that it is made of, when it follows by cheap elementwise operations from one
    quantized value and constants; the copies are the same operations, and give the same bits.
    """
    nodes = {node.name: node for node in graph.nodes}
    made: dict[str, Node] = {}
    for node in graph.nodes:
        sources = [name for name in node.inputs if nodes[name].op != "constant"]
        if node.op == "dequantize" or (
            node.op in CHEAP
            and len(sources) == 1
            and sources[0] in made
            and nodes[sources[0]].shape == node.shape
        ):
            made[node.name] = node
    readers = Counter(name for node in graph.nodes for name in set(node.inputs))
    found: list[Node] = []

    def copy(name: str, reader: str) -> str:
        node = made[name]
        inputs = tuple(copy(source, reader) if source in made else source for source in node.inputs)
        found.append(replace(node, name=f"{name} for {reader}", inputs=inputs))
        return found[-1].name

    for node in graph.nodes:
        inputs = node.inputs
        if node.name not in made:
            copies = {
                name: copy(name, node.name) for name in set(inputs) if name in made and readers[name] > 1
            }
            inputs = tuple(copies.get(name, name) for name in inputs)
        found.append(replace(node, inputs=inputs))
    return replace(graph, nodes=found)
