"""Which kernel computes which node.

Row values that need no other row are computed together. An aggregation reads other rows, so that it
starts a new *level*; edge values of level l are computed between the row kernels l - 1 and l.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from gnnquant.errors import BackendError

if TYPE_CHECKING:
    from gnnquant.integer_graph import IntegerGraph, Node

SPARSE_READS = frozenset({"spmm", "float_spmm", "gather"})
"""Operations whose first operand is read at other rows."""
FREE = frozenset({"node_input", "constant", "reshape"})
"""Operations that cost nothing to repeat."""


@dataclass
class Stage:
    """One kernel: the nodes that it computes, in order, and what others need of them."""

    level: int
    rows: str
    nodes: list[Node] = field(default_factory=list)
    exports: list[str] = field(default_factory=list)


def stages(graph: IntegerGraph) -> list[Stage]:
    """Kernels in execution order: for each level the edge kernels, then the row kernel.

    ``FREE`` nodes belong to no stage; whoever reads them resolves them.
    """
    level = _levels(graph)
    _sink(graph, level)
    found: dict[tuple[int, int, str], Stage] = {}
    for node in graph.nodes:
        if node.op == "graph" or (node.op in FREE and node.rows == "node"):
            continue
        key = (level[node.name], 1 if node.rows == "node" else 0, node.rows)
        stage = found.setdefault(key, Stage(level[node.name], node.rows))
        stage.nodes.append(node)
    home = {node.name: key for key, stage in found.items() for node in stage.nodes}
    for node in graph.nodes:
        if node.name not in home:
            continue
        for operand in node.inputs:
            origin = resolve(graph, operand)
            if origin not in home:
                continue
            crosses = home[origin] != home[node.name]
            if crosses or (node.op in SPARSE_READS and operand == node.inputs[0]):
                stage = found[home[origin]]
                if origin not in stage.exports:
                    stage.exports.append(origin)
    return [found[key] for key in sorted(found)]


def resolve(graph: IntegerGraph, name: str) -> str:
    """``name`` without reshapes of node rows: the node that computes its columns."""
    node = graph[name]
    while node.op == "reshape" and node.rows == "node":
        node = graph[node.inputs[0]]
    return node.name


def _levels(graph: IntegerGraph) -> dict[str, int]:
    level: dict[str, int] = {}
    for node in graph.nodes:
        if node.op == "graph":
            continue
        best = 0
        for position, operand in enumerate(node.inputs):
            source = graph[operand]
            if source.op == "graph":
                continue
            crossing = source.rows == "node" and (
                node.rows != "node" or (node.op in SPARSE_READS and position == 0)
            )
            # inputs and constants exist before everything
            step = 1 if crossing and graph[resolve(graph, operand)].op not in FREE else 0
            # the degrees of a normalisation are summed before its edges are
            if node.op == "gcn_norm" and source.op != "edge_input":
                step = 1
            best = max(best, level[operand] + step)
        level[node.name] = best
        if node.rows not in ("node", "") and graph[node.rows].op != "graph":
            raise BackendError(f"tvm backend: {node.name!r} has rows of {node.rows!r}, no graph")
    return level


def _sink(graph: IntegerGraph, level: dict[str, int]) -> None:
    """Move row nodes to the level of their first reader where less crosses kernels that way."""
    by_reader: dict[str, list[tuple[Node, int]]] = {node.name: [] for node in graph.nodes}
    for node in graph.nodes:
        for position, operand in enumerate(node.inputs):
            by_reader[operand].append((node, position))

    def crosses(name: str, after: int) -> bool:
        """Whether ``name`` is stored for a reader at a level above ``after``."""
        if graph[name].op in FREE and graph[name].op != "reshape":
            return True
        return any(
            (graph[user.name].op == "reshape" and crosses(user.name, after))
            or level[user.name] > after
            or user.rows != "node"
            for user, _ in by_reader[name]
        )

    for node in reversed(graph.nodes):
        readers = by_reader[node.name]
        if node.rows != "node" or node.op == "graph" or node.name in graph.outputs or not readers:
            continue
        here = level[node.name]
        fixed = any(
            user.rows != "node" or (user.op in SPARSE_READS and position == 0) for user, position in readers
        )
        first = min(level[user.name] for user, _ in readers)
        if fixed or first <= here:
            continue
        cost = sum(
            _bytes(graph[operand])
            for operand in set(node.inputs)
            if graph[operand].op != "graph" and not crosses(operand, first - 1)
        )
        if cost <= _bytes(node) or node.op in FREE:
            level[node.name] = first


def _bytes(node: Node) -> float:
    bits = node.attrs["bits"] if node.op == "quantize" else 32
    return float(node.columns * bits / 8)
