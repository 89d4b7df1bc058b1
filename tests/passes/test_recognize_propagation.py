"""``recognize-propagation``: which messages become ``ops.propagate``, and which do not, with the reason."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch_geometric import nn as gnn
from torch_geometric.nn.conv.gcn_conv import gcn_norm
from torch_geometric.utils import scatter, spmm

from gnnquant import ir
from gnnquant.passes.recognize_propagation import RecognizePropagation
from gnnquant.quantizers import ops
from tests.passes.rewrites import FEATURES, NODES, Messages, calls, edge_features, inputs, rewrite

PASS = RecognizePropagation()


class Weighted(gnn.MessagePassing):
    """A message that also sees values of edges."""

    def __init__(self, function: Any, **options: Any) -> None:
        super().__init__(**options)
        self.function = function
        self.scale = nn.Parameter(torch.randn(1, FEATURES))

    def forward(self, x: Tensor, edge_index: Tensor, w: Tensor) -> Tensor:
        return self.propagate(edge_index, x=x, w=w)

    def message(self, x_j: Tensor, w: Tensor) -> Tensor:
        return self.function(x_j, w, self.scale)


COPIES: dict[str, Any] = {
    "plain": lambda x_j, w, s: x_j,
    "weighted": lambda x_j, w, s: w[:, 0].view(-1, 1) * x_j,
    "numbers": lambda x_j, w, s: -(x_j * 0.5) / 3,
    "a parameter": lambda x_j, w, s: x_j * s,
    "weight and parameter": lambda x_j, w, s: w[:, :1] * (x_j * s),
    "two weights": lambda x_j, w, s: x_j * w[:, :1] * w[:, 1:2],
    "divided": lambda x_j, w, s: x_j / (w[:, :1].abs() + 1),
}
NO_COPIES: dict[str, Any] = {
    "gated": lambda x_j, w, s: x_j * x_j.sigmoid(),
    "a function": lambda x_j, w, s: (x_j + w[:, :1]).relu(),
}


@pytest.mark.parametrize("aggr", ["sum", "mean"])
@pytest.mark.parametrize("name", COPIES)
def test_messages_that_are_copies(name: str, aggr: str) -> None:
    module, result = rewrite(Weighted(COPIES[name], aggr=aggr), (*inputs(), edge_features()), PASS)
    assert result.changed == 1
    (node,) = calls(module, ops.propagate)
    assert node.args[0].target is ir.message
    assert node.args[0].meta["shape"] == (NODES, FEATURES)
    assert node.args[5] == aggr


@pytest.mark.parametrize("name", NO_COPIES)
def test_other_messages_stay(name: str) -> None:
    module, result = rewrite(Weighted(NO_COPIES[name], aggr="sum"), (*inputs(), edge_features()), PASS)
    assert not calls(module, ops.propagate)
    assert result.changed == 0
    assert "copy of the source" in result.notes[0] or "neither a scalar" in result.notes[0]


@pytest.mark.parametrize("aggr", ["max", "min"])
def test_extrema(aggr: str) -> None:
    module, result = rewrite(
        Weighted(COPIES["plain"], aggr=aggr), (*inputs(), edge_features()), PASS, exact=True
    )
    assert calls(module, ops.propagate)[0].args[5] == aggr
    module, result = rewrite(Weighted(COPIES["weighted"], aggr=aggr), (*inputs(), edge_features()), PASS)
    assert not calls(module, ops.propagate)
    assert f"its {aggr}imum runs over weighted messages" in result.notes[0]


def test_heads() -> None:
    module, _ = rewrite(gnn.GATConv(FEATURES, 4, heads=2), inputs(), PASS)
    (node,) = calls(module, ops.propagate)
    assert node.args[3].meta["shape"][1:] == (2,)


def test_weights_by_column_stay() -> None:
    model = Weighted(lambda x_j, w, s: x_j[:, :3] * w, aggr="sum")
    module, result = rewrite(model, (*inputs(), edge_features()), PASS)
    assert not calls(module, ops.propagate)
    assert result.notes


def test_edges_that_point_back() -> None:
    model = Messages(lambda x_i, x_j: x_j, aggr="sum", flow="target_to_source")
    module, result = rewrite(model, inputs(), PASS)
    assert result.changed == 1
    (node,) = calls(module, ops.propagate)
    assert node.args[2].target == "flip"


def test_sources_and_destinations_of_their_own() -> None:
    x, edge_index = inputs()
    edge_index = torch.stack([edge_index[0], edge_index[1] % 9])
    model = gnn.SAGEConv((FEATURES, FEATURES), 5)
    module, result = rewrite(model, ((x, x[:9]), edge_index), PASS)
    assert result.changed == 1
    (node,) = calls(module, ops.propagate)
    assert node.meta["shape"][0] == 9
    assert node.args[0].meta["shape"][0] == NODES


def test_edges_given_as_two_vectors() -> None:
    class Own(gnn.MessagePassing):
        def forward(self, x: Tensor, source: Tensor, target: Tensor) -> Tensor:
            return self.propagate(torch.stack([source, target]), x=x)

    x, edge_index = inputs()
    _, result = rewrite(Own(), (x, edge_index[0], edge_index[1]), PASS)
    assert result.changed == 1


def test_several_aggregations_of_one_message() -> None:
    class Several(gnn.MessagePassing):
        def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
            return self.propagate(edge_index, x=x)

        def aggregate(self, inputs: Tensor, index: Tensor, dim_size: Any = None) -> Tensor:
            parts = [scatter(inputs, index, 0, dim_size, reduce) for reduce in ("sum", "mean", "max")]
            return sum(parts) + scatter(inputs * inputs, index, 0, dim_size, "sum")

    module, result = rewrite(Several(), inputs(), PASS)
    assert [node.args[5] for node in calls(module, ops.propagate)] == ["sum", "mean", "max"]
    assert any("not to an aggregation" in note for note in result.notes)
    marker = calls(module, ir.message)[0]
    assert marker.meta["shape"][0] == NODES  # what is left gathers the marked rows
    assert any(user.target == "index_select" for user in marker.users)


def test_rows_on_the_second_axis() -> None:
    """ARMA keeps its stacks in front of the nodes."""
    module, result = rewrite(gnn.ARMAConv(FEATURES, 5, num_stacks=2), inputs(), PASS)
    assert result.changed == 1
    assert calls(module, ops.propagate)[0].meta["shape"] == (NODES, 2, 5)


# ---------------------------------------------------------------- sparse matrices


def _matrix(layout: torch.layout) -> Tensor:
    _, edge_index = inputs()
    matrix = torch.sparse_coo_tensor(edge_index.flip(0), torch.rand(edge_index.size(1)), (NODES, NODES))
    matrix = matrix.coalesce()
    return matrix.to_sparse_csr() if layout == torch.sparse_csr else matrix


class Spmm(nn.Module):
    def __init__(self, reduce: str) -> None:
        super().__init__()
        self.reduce = reduce

    def forward(self, x: Tensor, adj: Tensor) -> Tensor:
        return spmm(adj, x, self.reduce)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("reduce", ["sum", "mean", "max", "min"])
@pytest.mark.parametrize("layout", [torch.sparse_csr, torch.sparse_coo])
def test_sparse_products(layout: torch.layout, reduce: str) -> None:
    x, _ = inputs()
    module, result = rewrite(Spmm(reduce), (x, _matrix(layout)), PASS)
    assert result.changed >= 1
    assert len(calls(module, ops.adjacency)) == 1
    assert bool(calls(module, ops.propagate)) == (reduce in ("sum", "mean"))
    assert len(calls(module, ir.message)) == 1


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("layout", [torch.sparse_csr, torch.sparse_coo])
def test_a_normalised_adjacency(layout: torch.layout) -> None:
    x, _ = inputs()
    module, _ = rewrite(gnn.GCNConv(FEATURES, 5), (x, _matrix(layout)), PASS)
    (node,) = calls(module, ops.propagate)
    assert node.args[0].args[1:] == ("", 0)
    assert calls(module, gcn_norm)
    module, _ = rewrite(gnn.GraphSAGE(FEATURES, 8, 2, 5), (x, _matrix(layout)), PASS)
    assert len(calls(module, ops.propagate)) == 2
    assert len(calls(module, ops.adjacency)) == 1


def test_a_rectangular_adjacency() -> None:
    x, _ = inputs()
    matrix = torch.rand(6, NODES).relu().to_sparse_csr()
    module, _ = rewrite(Spmm("sum"), (x, matrix), PASS)
    assert calls(module, ops.propagate)[0].meta["shape"] == (6, FEATURES)
