"""A scale that all codes of a tensor share, as a factor of the sum: ``s (A U)`` for ``A (s U)``.

The 8-bit weights of the edges then follow from the edges alone. Where these are numbers of the graph, as in a
normalisation, so are they, and all sums over it share them.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from gnnquant.integer_graph import origin, take_name

if TYPE_CHECKING:
    from gnnquant.integer_graph import IntegerGraph, Node


def factor_scales(graph: IntegerGraph) -> IntegerGraph:
    """``graph``, in which weighted sums of codes with one scale are multiplied by it afterwards."""
    names = graph.names()

    def scale(node: Node) -> float | None:
        if node.op != "spmm" or len(node.inputs) < 2 or node.attrs.get("unscaled"):
            return None
        quantizer = origin(graph, node.inputs[0], "reshape", "gather")
        return quantizer.attrs["scale"] if quantizer.attrs["granularity"] == "tensor" else None

    nodes: list[Node] = []
    for node in graph.nodes:
        factor = scale(node)
        if factor is None:
            nodes.append(node)
            continue
        total = take_name(f"{node.name}.unscaled", names)
        nodes.append(replace(node, name=total, attrs={**node.attrs, "unscaled": True}))
        nodes.append(replace(node, op="mul", inputs=(total,), attrs={"scalar": factor}))
    return replace(graph, nodes=nodes)
