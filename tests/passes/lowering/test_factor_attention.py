"""Additive attention as products of what nodes have."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from torch_geometric import nn as gnn

from gnnquant.integer_graph import DEPTH, IntegerGraph
from gnnquant.passes.lowering.factor_attention import REACH, factor_attention
from tests.backends.tvm import graphs
from tests.backends.tvm.oracle import Oracle
from tests.passes.lowering.helpers import lowered, ops
from tests.zoo import random_graph

if TYPE_CHECKING:
    import torch

X, EDGES, WEIGHT, _ = random_graph()


def attention(slope: float, loops: str = "keep", *, bent: bool = True) -> IntegerGraph:
    """A softmax over the edges of each destination of the logits ``bend(a_j + b_i)`` of three heads.

    Rows of the input are ``a`` and ``b``.
    """
    m = graphs.Maker(7)
    x = m.input("x", 6)
    g = m.graph(x, loops)
    a, b = m.pick(x, [0, 1, 2]), m.pick(x, [3, 4, 5])
    logits = m.binary("add", m.end(b, g, "dst"), m.end(a, g, "src"))
    if bent:
        logits = m.unary("leaky_relu", logits, scalar=slope)
    return m.finish(m.add("segment_softmax", (logits,), (3,)))


@pytest.mark.parametrize("layer", [gnn.GATConv(7, 4, heads=3), gnn.GATConv(7, 5, concat=False)])
@pytest.mark.parametrize("bits", [32, 8])
def test_attention_of_two_ends_has_exponentials_of_nodes(layer: torch.nn.Module, bits: int) -> None:
    graph = lowered(layer, X, EDGES, bits=bits)
    graph.verify()
    (softmax,) = (node for node in graph.nodes if node.op == "segment_softmax")
    assert softmax.attrs["roots"]
    assert {node.rows for node in graph.nodes if node.op == "exp"} == {"x_rows"}
    assert ops(graph)["leaky_relu"] == 0


@pytest.mark.parametrize(
    ("layer", "more"),
    [
        (gnn.GATConv(7, 4, edge_dim=1), (WEIGHT.view(-1, 1),)),
        (gnn.GATConv(7, 4, negative_slope=1.5), ()),
        (gnn.GATConv(7, 4, negative_slope=-0.5), ()),
        (gnn.GATv2Conv(7, 4), ()),
        (gnn.TransformerConv(7, 4), ()),
    ],
    ids=["edges", "steep", "falling", "gatv2", "transformer"],
)
def test_other_attention_keeps_its_logits(layer: torch.nn.Module, more: tuple[Any, ...]) -> None:
    graph = lowered(layer, X, EDGES, *more, bits=8)
    (softmax,) = (node for node in graph.nodes if node.op == "segment_softmax")
    assert "roots" not in softmax.attrs


def test_logits_that_are_no_larger_of_two_numbers_stay() -> None:
    plain = attention(0.2, bent=False)
    assert factor_attention(plain).nodes == plain.nodes


@pytest.mark.parametrize("slope", [0.0, 0.2, 1.0])
@pytest.mark.parametrize("size", [1.0, 30.0, 110.0])
@pytest.mark.parametrize(("nodes", "edges"), [(1, 0), (6, 0), (9, 3), (40, 300)])
def test_weights_are_those_of_the_logits(slope: float, size: float, nodes: int, edges: int) -> None:
    """Of logits that differ by hundreds too."""
    rng = np.random.default_rng(nodes)
    x = np.clip(rng.standard_normal((nodes, 6)) * size, -340, 340).astype(np.float32)
    index = rng.integers(0, nodes, (2, edges))
    factored = factor_attention(attention(slope, "replace"))
    factored.verify()
    (got,) = Oracle(factored, {"x": x, "edge_index": index}).outputs()
    loops = np.arange(nodes)
    kept = index[:, index[0] != index[1]]
    src, dst = (np.concatenate([kept[end], loops]) for end in (0, 1))
    order = np.argsort(dst, kind="stable")
    src, dst = src[order], dst[order]
    logits = x[src, :3].astype(np.float64) + x[dst, 3:]
    logits = np.where(logits > 0, logits, slope * logits)
    wanted = np.zeros_like(logits)
    for i in range(nodes):
        power = np.exp(logits[dst == i] - logits[dst == i].max(axis=0))
        wanted[dst == i] = power / power.sum(axis=0)
    np.testing.assert_allclose(got, wanted, rtol=5e-5, atol=1e-30)


def test_numbers_beyond_reach_count_as_the_last_within() -> None:
    ends = DEPTH * REACH
    x = np.array([[1e30, ends, -ends], [2 * ends, 3e38, -1e30], [ends, ends, -ends]], np.float32)
    y = np.array([[0, 0, 0], [0, 0, 0], [0, 1e30, -1e30]], np.float32)
    inputs = {"x": np.concatenate([x, y], axis=1), "edge_index": np.array([[0, 1, 2], [2, 2, 2]])}
    (got,) = Oracle(factor_attention(attention(0.5)), inputs).outputs()
    np.testing.assert_allclose(got[:, :2], np.full((3, 2), 1 / 3), rtol=1e-5)
    np.testing.assert_allclose(got[:, 2], [0.5, 0, 0.5], rtol=1e-5, atol=1e-30)  # half of -1e30 is less
