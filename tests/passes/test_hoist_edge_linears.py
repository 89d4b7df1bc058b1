"""``hoist-edge-linears``: linear layers of gathered rows run once per node."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch_geometric import nn as gnn

from gnnquant.passes.extract_linears import ExtractLinears
from gnnquant.passes.hoist_edge_linears import HoistEdgeLinears
from gnnquant.quantizers import ops
from tests.passes.rewrites import EDGES, FEATURES, NODES, calls, edge_features, inputs, rewrite

K = FEATURES


class EdgeLinear(nn.Module):
    """A linear layer of what ``build`` makes of both ends and of edge features."""

    def __init__(self, build: Any, columns: int) -> None:
        super().__init__()
        self.build = build
        self.lin = nn.Linear(columns, 5)

    def forward(self, x: Tensor, edge_index: Tensor, edge_attr: Tensor) -> Tensor:
        x_i, x_j = x.index_select(0, edge_index[1]), x[edge_index[0]]
        return self.lin(self.build(x_i, x_j, edge_attr)).relu()


CASES: dict[str, tuple[Any, int, list[int]]] = {
    "a gather": (lambda i, j, e: j, K, [NODES]),
    "both ends": (lambda i, j, e: torch.cat([i, j], -1), 2 * K, [NODES, NODES]),
    "a difference": (lambda i, j, e: j - i, K, [NODES, NODES]),
    "EdgeConv": (lambda i, j, e: torch.cat([i, j - i], -1), 2 * K, [NODES, NODES]),
    "edge features": (lambda i, j, e: torch.cat([i, e, j], -1), 2 * K + 3, [NODES, NODES, EDGES]),
    "scaled": (lambda i, j, e: torch.cat([-i, 2 * j, e / 3], -1), 2 * K + 3, [NODES, NODES, EDGES]),
    "axes": (lambda i, j, e: torch.cat([i.view(-1, 1, K), j.unsqueeze(1)], -1)[:, 0], 2 * K, [NODES, NODES]),
    "a function": (lambda i, j, e: torch.cat([i, (i * j)], -1), 2 * K, [NODES, EDGES]),
}


@pytest.mark.parametrize("name", CASES)
def test_rows_of_linear_layers(name: str) -> None:
    """Which rows the linear layers have, and that their results are what they were."""
    build, columns, rows = CASES[name]
    example = (*inputs(), edge_features())
    module, result = rewrite(EdgeLinear(build, columns), example, ExtractLinears(), HoistEdgeLinears())
    assert result.changed == 1
    assert sorted(node.meta["shape"][0] for node in calls(module, ops.linear)) == sorted(rows)
    biases = [node.args[4] for node in calls(module, ops.linear) if node.args[4] is not None]
    assert len(biases) == 1
    assert {node.meta["linear"] for node in calls(module, ops.linear)} == {"lin"}


@pytest.mark.parametrize(
    "build", [lambda i, j, e: e, lambda i, j, e: (i + j).relu()[:, :3], lambda i, j, e: i[:, :3] * j[:, :3]]
)
def test_without_a_gather_in_reach_the_layer_stays(build: Any) -> None:
    example = (*inputs(), edge_features())
    module, result = rewrite(EdgeLinear(build, 3), example, ExtractLinears(), HoistEdgeLinears())
    assert result.changed == 0
    assert calls(module, ops.linear)[0].meta["shape"][0] == EDGES


def test_a_selection_of_rows_stays() -> None:
    class Selection(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lin = nn.Linear(K, 5)

        def forward(self, x: Tensor, index: Tensor) -> Tensor:
            return self.lin(x.index_select(0, index))

    _, result = rewrite(Selection(), (inputs()[0], torch.arange(4)), ExtractLinears(), HoistEdgeLinears())
    assert result.changed == 0
    assert "selects rows" in result.notes[0]


def test_as_many_edges_as_nodes() -> None:
    """Rows of an edge list are recognised as such, not by their number."""
    x, edge_index = inputs()
    example = (x, edge_index[:, :NODES], edge_features()[:NODES])
    _, result = rewrite(
        EdgeLinear(CASES["EdgeConv"][0], 2 * K), example, ExtractLinears(), HoistEdgeLinears()
    )
    assert result.changed == 1


@pytest.mark.parametrize(
    ("layer", "on_edges"),
    [
        (lambda: gnn.EdgeConv(nn.Sequential(nn.Linear(2 * K, 8), nn.ReLU(), nn.Linear(8, 5))), 1),
        (lambda: gnn.CGConv(K, dim=3), 2),
        (lambda: gnn.FeaStConv(K, 5, heads=2), 0),
    ],
)
def test_layers_of_pyg(layer: Any, on_edges: int) -> None:
    model = layer()
    example = (*inputs(), edge_features()) if isinstance(model, gnn.CGConv) else inputs()
    module, _ = rewrite(model, example, ExtractLinears(), HoistEdgeLinears())
    rows = [node.meta["shape"][0] for node in calls(module, ops.linear)]
    assert sum(count != NODES for count in rows) == on_edges
