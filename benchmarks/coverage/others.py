"""Recipes for what else PyG exports: wrappers, linear and dense layers, attention, encodings, embeddings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch_geometric import nn as gnn
from torch_geometric.nn import attention, kge

from benchmarks.coverage.cases import HETERO, NODES, Case, takes
from benchmarks.coverage.convs import mlp
from benchmarks.coverage.graphs import CLASSES, FEATURES, HIDDEN, METADATA, RELATIONS

if TYPE_CHECKING:
    from collections.abc import Callable

X, H, C = FEATURES, HIDDEN, CLASSES


class SmallSAGE(nn.Module):
    """What ``to_hetero`` is given."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = gnn.SAGEConv((inputs, inputs), width), gnn.SAGEConv((width, width), width)
        self.lin = nn.Linear(width, C)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        """Node features."""
        x = self.conv1(x, edge_index).relu()
        return self.lin(self.conv2(x, edge_index).relu())


class Applied(nn.Module):
    """A function between two linear layers."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.encode, self.decode = nn.Linear(X, H), nn.Linear(H, C)
        self.function = function

    def forward(self, x: Tensor, *others: Tensor) -> Tensor:
        """Scores."""
        return self.decode(self.function(self.encode(x).relu(), *others))


class DensePooling(nn.Module):
    """Clusters by softmax, pooled by a dense function; its losses are returned."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.encode, self.assign = nn.Linear(X, H), nn.Linear(X, 4)
        self.function = function

    def forward(self, x: Tensor, adjacency: Tensor) -> tuple[Tensor, Tensor]:
        """Clusters [1, 4, H] and a loss."""
        pooled, _, *losses = self.function(self.encode(x), adjacency, self.assign(x))
        return pooled, sum(losses, losses[0].new_zeros(()))


class Batched(nn.Module):
    """Attention over all nodes as one sequence."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        """Node features."""
        return self.layer(x.unsqueeze(0)).squeeze(0)


DENSE = takes("x", "dense_adjacency")
TRIPLES = takes("color", "node_type", "color")

OTHERS = [
    Case("to_hetero", lambda: gnn.to_hetero(SmallSAGE(X, H), METADATA, aggr="mean"), HETERO),
    Case("to_hetero lazy", lambda: gnn.to_hetero(SmallSAGE(-1, H), METADATA, aggr="max"), HETERO),
    Case(
        "to_hetero_with_bases",
        lambda: gnn.to_hetero_with_bases(SmallSAGE(X, H), METADATA, num_bases=3, in_channels={"x": X}),
        HETERO,
    ),
    Case("to_fixed_size", lambda: gnn.to_fixed_size(gnn.GraphSAGE(X, H, 2, C), batch_size=20), NODES),
    Case(
        "Sequential of one value",
        lambda: gnn.Sequential(
            "x, edge_index",
            [
                (gnn.GATConv(X, H), "x, edge_index -> x"),
                nn.ELU(),
                (gnn.SAGEConv(H, C), "x, edge_index -> x"),
            ],
        ),
        NODES,
    ),
    Case(
        "Reshape",
        lambda: gnn.Sequential(
            "x", [(nn.Linear(X, 2 * H), "x -> x"), gnn.Reshape(-1, 2, H), nn.LayerNorm(H)]
        ),
        takes("x"),
    ),
    Case("PositionalEncoding", lambda: gnn.PositionalEncoding(H), lambda g: (g.x[:, 0],)),
    Case("TemporalEncoding", lambda: gnn.TemporalEncoding(H), lambda g: (g.x[:, 0],)),
    Case("Linear", lambda: gnn.Linear(X, H, weight_initializer="glorot"), takes("x")),
    Case("Linear lazy", lambda: gnn.Linear(-1, H), takes("x")),
    Case("HeteroLinear", lambda: gnn.HeteroLinear(X, H, 3), takes("x", "node_type")),
    Case("HeteroLinear sorted", lambda: gnn.HeteroLinear(X, H, 3, is_sorted=True), takes("x", "sorted_type")),
    Case("HeteroDictLinear", lambda: gnn.HeteroDictLinear({"paper": X, "author": X}, H), takes("x_dict")),
    Case("DenseGCNConv", lambda: gnn.DenseGCNConv(X, H), DENSE, check_given=True),
    Case("DenseGINConv", lambda: gnn.DenseGINConv(mlp(X, H)), DENSE, check_given=True),
    Case("DenseGraphConv", lambda: gnn.DenseGraphConv(X, H), DENSE, check_given=True),
    Case("DenseSAGEConv", lambda: gnn.DenseSAGEConv(X, H), DENSE, check_given=True),
    Case("DenseGATConv", lambda: gnn.DenseGATConv(X, H, heads=2), DENSE, check_given=True),
    Case("dense_diff_pool", lambda: DensePooling(gnn.dense_diff_pool), DENSE, check_given=True),
    Case("dense_mincut_pool", lambda: DensePooling(gnn.dense_mincut_pool), DENSE, check_given=True),
    Case("DMoNPooling", lambda: gnn.DMoNPooling([X, H], 4), DENSE, check_given=True),
    Case(
        "knn_interpolate",
        lambda: Applied(gnn.knn_interpolate),
        takes("x", "pos", "normals"),
    ),
    Case("PerformerAttention", lambda: Batched(attention.PerformerAttention(H, 2, 4)), takes("wide")),
    Case("QFormer", lambda: Batched(attention.QFormer(H, H, H, 2, 1)), takes("wide")),
    Case("SGFormerAttention", lambda: Batched(attention.SGFormerAttention(H, 2, 4)), takes("wide")),
    Case("PolynormerAttention", lambda: Batched(attention.PolynormerAttention(H, 2, 4)), takes("wide")),
    Case("TransE", lambda: kge.TransE(5, RELATIONS, H), TRIPLES),
    Case("ComplEx", lambda: kge.ComplEx(5, RELATIONS, H), TRIPLES),
    Case("DistMult", lambda: kge.DistMult(5, RELATIONS, H), TRIPLES),
    Case("RotatE", lambda: kge.RotatE(5, RELATIONS, H), TRIPLES),
]
