"""A small zoo for all tests: models as users write them, and random graphs with their rough edges.

Every builder takes ``features`` and ``classes`` and returns a fresh model whose weights depend only on
``seed``. ``MODELS`` lists those that take ``(x, edge_index)``; all of them are node classifiers.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric import nn as gnn
from torch_geometric.utils import add_self_loops, degree, softmax

if TYPE_CHECKING:
    from collections.abc import Callable

FEATURES, HIDDEN, CLASSES = 7, 8, 5


# --- graphs -----------------------------------------------------------------------------------------


class Graph(NamedTuple):
    """One random graph."""

    x: Tensor
    """Node features [N, F], float32."""
    edge_index: Tensor
    """Edges [2, E], int64."""
    edge_weight: Tensor
    """Positive weights [E], float32."""
    batch: Tensor
    """Graph of every node [N], int64, sorted."""


def random_graph(num_nodes: int = 20, num_edges: int = 64, features: int = FEATURES, seed: int = 0) -> Graph:
    """Draw a graph with a hub, self-loops, duplicate edges and isolated nodes, as far as there is room.

    Node 0 receives a fifth of the edges; the last tenth of the nodes has none. ``num_edges=0`` and
    ``num_nodes=1`` are fine.
    """
    generator = torch.Generator().manual_seed(seed)
    connected = max(1, num_nodes - num_nodes // 10)
    edge_index = torch.randint(connected, (2, num_edges), generator=generator)
    if num_edges >= 8:
        edge_index[1, : num_edges // 5] = 0  # a hub
        edge_index[1, -1] = edge_index[0, -1]  # self-loops
        edge_index[:, -2] = 0
        edge_index[:, -3] = edge_index[:, -4]  # a duplicate
        edge_index = edge_index[:, torch.randperm(num_edges, generator=generator)]
    return Graph(
        x=torch.randn(num_nodes, features, generator=generator),
        edge_index=edge_index,
        edge_weight=torch.rand(num_edges, generator=generator) + 0.1,
        batch=torch.arange(num_nodes) * 3 // max(num_nodes, 1),
    )


GRAPH_SIZES = ((20, 64), (33, 150), (5, 8), (6, 0), (1, 0), (1, 3))
"""(N, E): usual, larger, tiny, without edges, one node, one node with loops."""


# --- models -----------------------------------------------------------------------------------------


class GCN(nn.Module):
    """The textbook two-layer GCN."""

    def __init__(self, features: int, classes: int, dropout: float = 0.5) -> None:
        super().__init__()
        self.dropout = dropout
        self.conv1 = gnn.GCNConv(features, HIDDEN)
        self.conv2 = gnn.GCNConv(HIDDEN, classes)

    def forward(self, x: Tensor, edge_index: Tensor, edge_weight: Tensor | None = None) -> Tensor:
        x = F.dropout(x, p=self.dropout, training=self.training)
        x = F.relu(self.conv1(x, edge_index, edge_weight))
        x = F.dropout(x, p=self.dropout, training=self.training)
        return F.log_softmax(self.conv2(x, edge_index, edge_weight), dim=1)


class SAGE(nn.Module):
    """GraphSAGE with a chosen aggregation."""

    def __init__(self, features: int, classes: int, aggr: str) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            [gnn.SAGEConv(features, HIDDEN, aggr=aggr), gnn.SAGEConv(HIDDEN, classes, aggr=aggr)]
        )

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        for i, conv in enumerate(self.convs):
            x = conv(x, edge_index)
            if i + 1 < len(self.convs):
                x = F.dropout(x.relu(), p=0.5, training=self.training)
        return x


def mlp(inputs: int, outputs: int) -> nn.Sequential:
    """Linear, batch norm, ReLU, linear."""
    return nn.Sequential(
        nn.Linear(inputs, HIDDEN), nn.BatchNorm1d(HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, outputs)
    )


class GIN(nn.Module):
    """GIN with batch norm inside of its MLPs."""

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.conv1 = gnn.GINConv(mlp(features, HIDDEN), train_eps=True)
        self.conv2 = gnn.GINConv(mlp(HIDDEN, HIDDEN))
        self.head = nn.Linear(HIDDEN, classes)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        x = self.conv1(x, edge_index).relu()
        x = self.conv2(x, edge_index).relu()
        return self.head(x)


class GAT(nn.Module):
    """The two-layer GAT of its paper, smaller."""

    def __init__(self, features: int, classes: int, dropout: float = 0.6) -> None:
        super().__init__()
        self.dropout = dropout
        self.conv1 = gnn.GATConv(features, 4, heads=2, dropout=dropout)
        self.conv2 = gnn.GATConv(8, classes, heads=2, concat=False, dropout=dropout)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        x = F.dropout(x, p=self.dropout, training=self.training)
        x = F.elu(self.conv1(x, edge_index))
        x = F.dropout(x, p=self.dropout, training=self.training)
        return self.conv2(x, edge_index)


class APPNPNet(nn.Module):
    """An MLP whose predictions are propagated; APPNP drops edges behind an ``if self.training``."""

    def __init__(self, features: int, classes: int, dropout: float = 0.5) -> None:
        super().__init__()
        self.lin1 = nn.Linear(features, HIDDEN)
        self.lin2 = nn.Linear(HIDDEN, classes)
        self.prop = gnn.APPNP(K=3, alpha=0.1, dropout=dropout)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        x = F.dropout(x, p=0.5, training=self.training)
        x = self.lin1(x).relu()
        x = F.dropout(x, p=0.5, training=self.training)
        return self.prop(self.lin2(x), edge_index)


class ResidualGCN(nn.Module):
    """Blocks of GCN, batch norm, ReLU and a skip connection."""

    def __init__(self, features: int, classes: int, layers: int = 3) -> None:
        super().__init__()
        self.encode = nn.Linear(features, HIDDEN)
        self.convs = nn.ModuleList(gnn.GCNConv(HIDDEN, HIDDEN) for _ in range(layers))
        self.norms = nn.ModuleList(nn.BatchNorm1d(HIDDEN) for _ in range(layers))
        self.decode = nn.Linear(HIDDEN, classes)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        x = self.encode(x)
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = x + F.relu(norm(conv(x, edge_index)))
        return self.decode(x)


class JumpingGCN(nn.Module):
    """All layers are concatenated before the head."""

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.conv1 = gnn.GCNConv(features, HIDDEN)
        self.conv2 = gnn.GCNConv(HIDDEN, HIDDEN)
        self.jump = gnn.JumpingKnowledge("cat")
        self.head = nn.Linear(2 * HIDDEN, classes)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        first = self.conv1(x, edge_index).relu()
        second = self.conv2(first, edge_index).relu()
        return self.head(self.jump([first, second]))


class OwnConv(gnn.MessagePassing):
    """A layer of the user's own: degree-normalised attention over an MLP of both ends."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(aggr="add")
        self.lin = nn.Linear(inputs, outputs)
        self.attention = nn.Parameter(torch.randn(outputs))
        self.mix = nn.Linear(2 * outputs, outputs)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        edge_index, _ = add_self_loops(edge_index, num_nodes=x.size(0))
        x = self.lin(x)
        row, col = edge_index
        scale = degree(col, x.size(0), dtype=x.dtype).pow(-0.5)
        return self.propagate(edge_index, x=x, norm=scale[row] * scale[col])

    def message(self, x_i: Tensor, x_j: Tensor, norm: Tensor, index: Tensor, size_i: int | None) -> Tensor:
        weight = softmax((x_j * self.attention).sum(-1), index, num_nodes=size_i)
        return (norm * weight).view(-1, 1) * self.mix(torch.cat([x_i, x_j], dim=-1))

    def update(self, inputs: Tensor, x: Tensor) -> Tensor:
        return inputs + x


class OwnNet(nn.Module):
    """Two layers of ``OwnConv``."""

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.first = OwnConv(features, HIDDEN)
        self.norm = nn.BatchNorm1d(HIDDEN)
        self.second = OwnConv(HIDDEN, classes)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return self.second(self.norm(self.first(x, edge_index)).relu(), edge_index)


class EdgeNet(nn.Module):
    """EdgeConv: a general function of both ends of an edge."""

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.conv1 = gnn.EdgeConv(
            nn.Sequential(nn.Linear(2 * features, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, HIDDEN))
        )
        self.conv2 = gnn.EdgeConv(nn.Sequential(nn.Linear(2 * HIDDEN, classes)), aggr="mean")

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return self.conv2(self.conv1(x, edge_index).relu(), edge_index)


class GraphClassifier(nn.Module):
    """GIN layers with pooling over a batch of graphs; takes ``(x, edge_index, batch)``."""

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.conv1 = gnn.GINConv(mlp(features, HIDDEN))
        self.conv2 = gnn.GINConv(mlp(HIDDEN, HIDDEN))
        self.head = nn.Linear(2 * HIDDEN, classes)

    def forward(self, x: Tensor, edge_index: Tensor, batch: Tensor) -> Tensor:
        x = self.conv2(self.conv1(x, edge_index).relu(), edge_index).relu()
        pooled = [gnn.global_mean_pool(x, batch), gnn.global_max_pool(x, batch)]
        return self.head(F.dropout(torch.cat(pooled, dim=-1), p=0.5, training=self.training))


def _basic(cls: Callable[..., nn.Module], **options: Any) -> Callable[[int, int], nn.Module]:
    """A builder for one of the models that PyG ships."""

    def build_basic(features: int, classes: int) -> nn.Module:
        return cls(features, HIDDEN, num_layers=3, out_channels=classes, dropout=0.5, **options)

    return build_basic


MODELS: dict[str, Callable[[int, int], nn.Module]] = {
    "gcn": GCN,
    "sage_mean": functools.partial(SAGE, aggr="mean"),
    "sage_max": functools.partial(SAGE, aggr="max"),
    "gin": GIN,
    "gat": GAT,
    "appnp": APPNPNet,
    "residual_gcn": ResidualGCN,
    "jumping_gcn": JumpingGCN,
    "own_conv": OwnNet,
    "edge_conv": EdgeNet,
    "pyg_gcn": _basic(gnn.GCN, norm="batch"),
    "pyg_sage": _basic(gnn.GraphSAGE, norm="layer"),
    "pyg_gin": _basic(gnn.GIN, jk="max"),
    "pyg_gat": _basic(gnn.GAT, heads=2),
}
"""Name -> builder of a node classifier over ``(x, edge_index)``."""


def build(name: str, features: int = FEATURES, classes: int = CLASSES, seed: int = 0) -> nn.Module:
    """Build ``MODELS[name]`` in train mode; the weights depend on ``seed`` only."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return MODELS[name](features, classes)
