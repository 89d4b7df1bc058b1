"""Symmetric normalisation as two factors of rows."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch_geometric import nn as gnn

from gnnquant.passes.lowering.factor_norms import factor_norms
from tests.backends.tvm import graphs
from tests.passes.lowering.helpers import assert_rounded_elsewhere, lowered, ops
from tests.zoo import random_graph

X, EDGES, WEIGHT, _ = random_graph()


class Layers(torch.nn.Module):
    def __init__(self, *layers: torch.nn.Module) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(layers)

    def forward(self, x: torch.Tensor, edge_index: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x, edge_index)
        return x


def test_layers_share_the_roots_of_a_graph() -> None:
    graph = lowered(Layers(gnn.GCNConv(7, 6), gnn.GCNConv(6, 5)), X, EDGES, bits=4)
    graph.verify()
    sums = [node for node in graph.nodes if node.op == "spmm"]
    assert [node.attrs["per"] for node in sums] == ["source"] * 2
    assert len({node.inputs[1] for node in sums}) == 1
    assert ops(graph)["sqrt"] == 1
    assert ops(graph)["gcn_norm"] == 0


def test_sums_of_floats_and_edges_with_weights_keep_numbers_of_edges() -> None:
    assert ops(lowered(gnn.GCNConv(7, 6), X, EDGES, bits=32))["gcn_norm"] == 1
    graph = lowered(gnn.GCNConv(7, 6), X, EDGES, WEIGHT, bits=4)
    assert ops(graph)["gcn_norm"] == 1
    assert all("per" not in node.attrs for node in graph.nodes)


@pytest.mark.parametrize("granularity", ["row", "tensor"])
@pytest.mark.parametrize("loops", ["keep", "remaining"])
@pytest.mark.parametrize(("nodes", "edges"), [(1, 0), (6, 0), (9, 3), (40, 300)])
def test_only_the_order_of_products_changes(granularity: str, loops: str, nodes: int, edges: int) -> None:
    m = graphs.Maker(3)
    x = m.input("x", 6)
    g = m.graph(x, loops)
    q = m.quantize(x, 8, 256, granularity)
    norm = m.add("gcn_norm", (), (), g, fill=1.0)
    y = m.spmm(q, g, norm)
    plain = m.finish(y, m.reshape(y, 2, 3))
    factored = factor_norms(plain)
    factored.verify()
    assert Counter(node.op for node in factored.nodes)["gcn_norm"] == 0
    assert_rounded_elsewhere(plain, factored, nodes, edges)
