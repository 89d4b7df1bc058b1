"""Which values one kernel computes: a product or a sum over edges, and all that follows from its rows."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from gnnquant.backends.cuda import products, sums
from gnnquant.backends.cuda.values import LIGHT

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from gnnquant.backends.cuda.values import Values
    from gnnquant.integer_graph import Node

JOINING = LIGHT | {"reduce", "quantize"}
"""Operations that a warp does for a row, and which can follow others in one kernel."""


@dataclass
class Group:
    """Nodes that are computed by one kernel or, where a warp has no row, by those of one node.

    Attributes:
        nodes: In order; the first may be a product or a sum over edges.
        by_rows: Whether a warp has a row.
    """

    nodes: list[Node]
    by_rows: bool


@dataclass
class Groups:
    """All values of a graph that are computed once, in groups.

    Attributes:
        groups: In execution order.
        read_outside: Float values that other kernels than their own read.
    """

    groups: list[Group] = field(default_factory=list)
    read_outside: set[str] = field(default_factory=set)


def grouped(values: Values, stored: set[str], copied: Iterable[str]) -> Groups:
    """Put every value into the kernel of the last one that it needs, if it needs that in its own row alone.

    Args:
        values: The graph.
        stored: Float values that are computed once.
        copied: Values that are copied to outputs afterwards.
    """
    nodes = values.nodes
    found = Groups(read_outside=set(values.graph.outputs))
    place: dict[str, int] = {}
    for node in values.graph.nodes:
        if node.name not in stored and node.op != "quantize":
            continue
        needed = list(_needed(nodes, stored, node))
        last = max((place[name] for name, _ in needed), default=-1)
        in_row = all(own for name, own in needed if place[name] == last)
        if in_row and _joins(node, found.groups[last] if last >= 0 else None):
            found.groups[last].nodes.append(node)
            place[node.name] = last
        else:
            place[node.name] = len(found.groups)
            found.groups.append(Group([node], _starts(values, node)))
        found.read_outside |= {name for name, _ in needed if place[name] != place[node.name]}
    for name in copied:
        found.read_outside |= {leaf for leaf, _ in _leaves(nodes, stored, nodes[name], in_row=False)}
    return found


def _joins(node: Node, group: Group | None) -> bool:
    return (
        group is not None
        and group.by_rows
        and group.nodes[0].rows == node.rows
        and node.op in JOINING
        and node.columns > 0
    )


def _starts(values: Values, node: Node) -> bool:
    """Whether a kernel in which a warp has a row can begin with ``node``."""
    if node.columns == 0:
        return False
    if node.op == "gemm":
        return products.fits(values, node)
    return sums.fits(values, node) if node.op == "spmm" else node.op == "quantize"


def _needed(nodes: Mapping[str, Node], stored: set[str], node: Node) -> Iterator[tuple[str, bool]]:
    """Computed values that ``node`` reads, and whether it reads them in its own row."""
    for name in node.inputs:
        own_row = node.op in JOINING and nodes[name].rows == node.rows
        yield from _leaves(nodes, stored, nodes[name], in_row=own_row)


def _leaves(
    nodes: Mapping[str, Node], stored: set[str], node: Node, *, in_row: bool
) -> Iterator[tuple[str, bool]]:
    if node.name in stored or node.op == "quantize":
        yield node.name, in_row
        return
    for name in node.inputs:
        same = in_row and node.op != "gather" and nodes[name].rows == node.rows
        yield from _leaves(nodes, stored, nodes[name], in_row=same)
