"""What is computed over the edges of each destination.

Every reduction is a ScatterElements, whose ``reduction`` treats duplicate indices right; destinations
without an edge keep its start, or are set to 0 by their degree.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from gnnquant.backends.onnx.state import Codes, float32
from gnnquant.integer_graph import EDGE_LEVELS, SQUARINGS

if TYPE_CHECKING:
    from collections.abc import Callable

    from gnnquant.backends.onnx.state import State
    from gnnquant.integer_graph import Node

_EXTREMES = {"max": -np.inf, "min": np.inf}


def _reduce_segments(state: State, graph: str, flat: str, columns: int, reduce: str) -> str:
    """Edge rows [E', columns] by destination, as ``segment_reduce`` says: [N, columns]."""
    if reduce == "mul":
        return state.scatter(graph, flat, columns, "mul", 1.0)
    if reduce in _EXTREMES:
        found = state.scatter(graph, flat, columns, reduce, _EXTREMES[reduce])
        has_edge = state.to.op("Greater", state.degree(graph), state.to.integer(0))
        return state.to.op("Where", has_edge, found, state.to.scalar(0.0))
    total = state.scatter(graph, flat, columns, "add", 0.0)
    return state.to.op("Div", total, state.at_least_one(graph)) if reduce == "mean" else total


def _segment_reduce(state: State, node: Node, x: str) -> str:
    graph = node.attrs["graph"]
    edge_rows = state.operand(node, 0, x, graph)
    flat = state.flat(edge_rows, state.nodes[node.inputs[0]].shape)
    found = _reduce_segments(state, graph, flat, node.columns, node.attrs["reduce"])
    return state.unflat(found, node.shape)


def _messages(state: State, node: Node, x: str, heads: int) -> str:
    """Rows of the sources, read along the edges: [E', columns], or [E', heads, columns / heads]."""
    edges = state.edges[node.attrs["graph"]]
    given = state.nodes[node.inputs[0]]
    shape = (node.columns,) if heads == 1 else (heads, node.columns // heads)
    x = state.fit(x, given.rows, edges.sources, len(given.shape))
    rows = x if given.shape == shape else state.reshape(x, shape)
    return state.to.op("Gather", rows, edges.src, axis=0)


def _weighted(state: State, messages: str, weight: str, columns: int, heads: int) -> str:
    """``messages`` times a weight [E', heads] for each head, as [E', columns]."""
    if heads == 1:
        return state.to.op("Mul", messages, weight)
    last = state.to.op("Unsqueeze", weight, state.to.integers([2]))
    return state.reshape(state.to.op("Mul", messages, last), (columns,))


def _edge_weight(state: State, node: Node, weight: str) -> str:
    """The weight of every edge of ``node`` as [E', heads]."""
    given, graph = state.nodes[node.inputs[1]], node.attrs["graph"]
    edges = state.edges[graph]
    per_source = node.attrs.get("per") == "source"
    weight = state.fit(weight, given.rows, edges.sources if per_source else graph, len(given.shape))
    heads = (node.attrs["heads"],)
    weight = weight if given.shape == heads else state.reshape(weight, heads)
    return state.to.op("Gather", weight, edges.src, axis=0) if per_source else weight


def _float_spmm(state: State, node: Node, x: str, weight: str = "") -> str:
    graph, heads = node.attrs["graph"], node.attrs["heads"] if weight else 1
    messages = _messages(state, node, x, heads)
    if weight:
        scale = _edge_weight(state, node, weight)
        messages = _weighted(state, messages, scale, node.columns, heads)
    found = _reduce_segments(state, graph, messages, node.columns, node.attrs["reduce"])
    return state.unflat(found, node.shape)


def _spmm(state: State, node: Node, q: Codes, weight: str = "") -> str:
    graph, heads, reduce = node.attrs["graph"], node.attrs["heads"], node.attrs["reduce"]
    if reduce in _EXTREMES:
        messages = _messages(state, node, q.integers, 1)
        largest = _reduce_segments(state, graph, messages, node.columns, reduce)
        return state.unflat(state.to.op("Mul", largest, q.scale), node.shape)
    heads = heads if weight else 1
    messages = _messages(state, node, q.integers, heads)
    codes, unit = _edge_codes(state, node, q, weight, heads)
    products = _weighted(state, messages, codes, node.columns, heads)
    total = state.scatter(graph, products, node.columns, "add", 0.0)
    if heads > 1:
        total = state.reshape(total, (heads, node.columns // heads))
        unit = state.to.op("Unsqueeze", unit, state.to.integers([2]))
    found = state.to.op("Mul", total, unit)
    if reduce == "mean":
        divisor = state.at_least_one(graph)
        divisor = divisor if heads == 1 else state.reshape(divisor, (1, 1))
        found = state.to.op("Div", found, divisor)
    shape = (node.columns,) if heads == 1 else (heads, node.columns // heads)
    return found if shape == node.shape else state.reshape(found, node.shape)


def _edge_codes(state: State, node: Node, q: Codes, weight: str, heads: int) -> tuple[str, str]:
    """8-bit edge weights [E', heads] (as floats) and the real value [N, heads] of one unit of their sums.

    ``v_e = a_e s_j`` (``a_e`` of unscaled sums) is rounded to a multiple of the largest ``|v_e|`` of its
    destination / 127.
    """
    graph, to = node.attrs["graph"], state.to
    edges = state.edges[graph]
    if node.attrs.get("unscaled"):
        value = _edge_weight(state, node, weight)
    else:
        scale = _source_scale(state, node, q)
        value = to.op("Mul", _edge_weight(state, node, weight), scale) if weight else scale
    largest = state.scatter(graph, to.op("Abs", value), heads, "max", 0.0)
    ratio = state.inverse(largest, EDGE_LEVELS)
    codes = to.op("Round", to.op("Mul", value, to.op("Gather", ratio, edges.dst, axis=0)))
    # The sums are of half of what the reference sums: the factor is twice as large, exactly.
    unit = to.op("Mul", largest, to.scalar(2 * float32(0.5 / EDGE_LEVELS)))
    return codes, unit


def _source_scale(state: State, node: Node, q: Codes) -> str:
    """The scale of every edge's source [E', 1]."""
    graph, to = node.attrs["graph"], state.to
    if not q.per_row:
        return to.op("Expand", q.scale, state.dims(graph, 1))
    edges, given = state.edges[graph], state.nodes[node.inputs[0]]
    scale = state.fit(q.scale, given.rows, edges.sources, len(q.shape))
    if len(q.shape) != 1:
        scale = state.reshape(scale, (1,))
    return to.op("Gather", scale, edges.src, axis=0)


def _gcn_norm(state: State, node: Node, weight: str = "") -> str:
    to, edges = state.to, state.edges[node.rows]
    shape = node.shape
    if not weight and node.attrs["fill"] == 1:
        value = to.op("Expand", to.scalar(1.0), state.dims(node.rows, 1))
    elif not weight:
        column = to.op("Unsqueeze", edges.edge_id, to.integers([1]))
        added = to.op("Less", column, to.integer(0))
        value = to.op("Where", added, to.scalar(node.attrs["fill"]), to.scalar(1.0))
    else:
        given = state.nodes[node.inputs[0]]
        value = state.flat(state.fit(weight, given.rows, node.rows, len(given.shape)), given.shape)
    degree = state.scatter(node.rows, value, node.columns, "add", 0.0)
    root = state.inverse(to.op("Sqrt", to.op("Relu", degree)))
    left, right = (to.op("Gather", root, end, axis=0) for end in (edges.src, edges.dst))
    return state.unflat(to.op("Mul", to.op("Mul", left, value), right), shape)


def _segment_softmax(state: State, node: Node, x: str) -> str:
    to, edges = state.to, state.edges[node.rows]
    flat = state.flat(state.operand(node, 0, x), state.nodes[node.inputs[0]].shape)
    largest = state.scatter(node.rows, flat, node.columns, "max", -np.inf)
    if node.attrs.get("roots"):
        most = to.op("Div", to.scalar(1.0), largest)
        power = to.op("Mul", flat, to.op("Gather", most, edges.dst, axis=0))
        for _ in range(SQUARINGS):
            power = to.op("Mul", power, power)
    else:
        power = to.op("Exp", to.op("Sub", flat, to.op("Gather", largest, edges.dst, axis=0)))
    total = to.op("Add", state.scatter(node.rows, power, node.columns, "add", 0.0), to.scalar(1e-16))
    share = to.op("Gather", to.op("Div", to.scalar(1.0), total), edges.dst, axis=0)
    return state.unflat(to.op("Mul", power, share), node.shape)


EDGES: dict[str, Callable[..., str]] = {
    "segment_reduce": _segment_reduce,
    "spmm": _spmm,
    "float_spmm": _float_spmm,
    "gcn_norm": _gcn_norm,
    "segment_softmax": _segment_softmax,
}
"""Operation -> emitter(state, node, *operands)."""
