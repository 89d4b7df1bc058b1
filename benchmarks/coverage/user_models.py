"""Models as users write them: everything that a ``forward`` may do besides calling layers in turn."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm
from torch.utils.checkpoint import checkpoint
from torch_geometric import EdgeIndex
from torch_geometric import nn as gnn
from torch_geometric.utils import (
    add_remaining_self_loops,
    add_self_loops,
    degree,
    dropout_edge,
    remove_self_loops,
    scatter,
    to_dense_batch,
    to_undirected,
)

from benchmarks.coverage.cases import (
    ATTRIBUTED,
    BATCHED,
    HETERO,
    NODES,
    TYPED,
    WIDE,
    Case,
    takes,
    takes_named,
)
from benchmarks.coverage.convs import mlp
from benchmarks.coverage.graphs import CLASSES, EDGE_FEATURES, FEATURES, HIDDEN, METADATA, RELATIONS

if TYPE_CHECKING:
    from torch_geometric.data import Batch, Data

X, H, C, D = FEATURES, HIDDEN, CLASSES, EDGE_FEATURES


# --- shapes of forward ------------------------------------------------------------------------------


class ResidualStack(nn.Module):
    """Blocks of normalisation, activation, dropout and layer, each added to what came before."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Linear(X, H)
        self.blocks = nn.ModuleList(
            nn.ModuleDict({"norm": nn.LayerNorm(H), "conv": gnn.SAGEConv(H, H)}) for _ in range(4)
        )
        self.decode = nn.Linear(H, C)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        x = self.encode(x)
        for block in self.blocks:
            y = F.gelu(block["norm"](x))  # type: ignore[index]
            y = F.dropout(y, p=0.2, training=self.training)
            x = x + block["conv"](y, edge_index)  # type: ignore[index]
        return self.decode(x)


class DictInput(nn.Module):
    """All inputs in one dictionary, the results in another."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = gnn.GCNConv(X, H)
        self.node_head, self.edge_head = nn.Linear(H, C), nn.Linear(2 * H, 1)

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        z = self.conv(batch["x"], batch["edge_index"]).relu()
        row, col = batch["edge_index"]
        edges = self.edge_head(torch.cat([z[row], z[col]], dim=-1))
        return {"nodes": self.node_head(z), "edges": edges.squeeze(-1)}


class SeveralInputs(nn.Module):
    """Two sets of features over two sets of edges."""

    def __init__(self) -> None:
        super().__init__()
        self.follows, self.likes = gnn.GCNConv(X, H), gnn.SAGEConv(X, H)
        self.gate = nn.Linear(2 * H, H)

    def forward(self, x: Tensor, y: Tensor, follows: Tensor, likes: Tensor) -> Tensor:
        a, b = self.follows(x, follows).tanh(), self.likes(y, likes).tanh()
        gate = torch.sigmoid(self.gate(torch.cat([a, b], dim=1)))
        return gate * a + (1 - gate) * b


class SharedLayers(nn.Module):
    """One convolution, called for every round, and one weight under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Linear(X, H)
        self.conv = gnn.GCNConv(H, H)
        self.alias = self.conv
        self.first, self.second = nn.Linear(H, H), nn.Linear(H, H)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        x = self.encode(x).relu()
        for _ in range(2):
            x = self.conv(x, edge_index).relu()
        return self.second(self.first(self.alias(x, edge_index)))


class KeywordOnly(nn.Module):
    """Arguments that can only be given by name, one of them left at None."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = gnn.GATConv(X, H, edge_dim=D)

    def forward(
        self, x: Tensor, *, edge_index: Tensor, edge_attr: Tensor | None = None, scale: float = 2.0
    ) -> Tensor:
        return self.conv(x, edge_index, edge_attr=edge_attr) * scale


class EarlyReturn(nn.Module):
    """In training the hidden features are returned too."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = gnn.GCNConv(X, H), nn.Linear(H, C)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        x = self.conv(x, edge_index)
        if not self.training:
            return self.head(x).log_softmax(dim=-1)
        x = F.dropout(x, p=0.5)
        return self.head(x).log_softmax(dim=-1)


class TrainingOnlyNoise(nn.Module):
    """Edges are dropped while training, and only then."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = gnn.SAGEConv(X, H), gnn.SAGEConv(H, C)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        edge_index, _ = dropout_edge(edge_index, p=0.3, training=self.training)
        return self.conv2(self.conv1(x, edge_index).relu(), edge_index)


class Encoder(nn.Module):
    """Part of ``Nested``."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList([gnn.GCNConv(inputs, H), gnn.GCNConv(H, H)])
        self.act = nn.PReLU()

    def forward(self, x: Tensor, edge_index: Tensor) -> list[Tensor]:
        outputs = []
        for layer in self.layers:
            x = self.act(layer(x, edge_index))
            outputs.append(x)
        return outputs


class Nested(nn.Module):
    """Modules in modules that pass lists."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.ModuleDict({"left": Encoder(X), "right": Encoder(X)})
        self.heads = nn.ModuleList(nn.Linear(2 * H, C) for _ in range(2))

    def forward(self, x: Tensor, edge_index: Tensor) -> tuple[Tensor, Tensor]:
        left = self.body["left"](x, edge_index)
        right = self.body["right"](x, edge_index.flip(0))
        first, second = (
            head(torch.cat(pair, dim=-1))
            for head, pair in zip(self.heads, zip(left, right, strict=True), strict=True)
        )
        return first, second


class NoneArguments(nn.Module):
    """Optional inputs that are tested for None."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.attr = gnn.GraphConv(X, H), nn.Linear(D, 1)

    def forward(
        self,
        x: Tensor,
        edge_index: Tensor,
        edge_weight: Tensor | None = None,
        edge_attr: Tensor | None = None,
        batch: Tensor | None = None,
    ) -> Tensor:
        if edge_weight is None and edge_attr is not None:
            edge_weight = self.attr(edge_attr).sigmoid().squeeze(-1)
        x = self.conv(x, edge_index, edge_weight)
        return x if batch is None else gnn.global_add_pool(x, batch)


class DataInput(nn.Module):
    """A ``Data`` object is all that is given."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = gnn.GCNConv(X, H), gnn.GCNConv(H, C)

    def forward(self, data: Data) -> Tensor:
        x, edge_index = data.x, data.edge_index
        x = F.relu(self.conv1(x, edge_index, data.edge_weight))
        x = F.dropout(x, training=self.training)
        return F.log_softmax(self.conv2(x, edge_index), dim=1)


class BatchInput(nn.Module):
    """A ``Batch`` of graphs is all that is given."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = gnn.GINConv(mlp(X, H))
        self.head = nn.Linear(H, 3)

    def forward(self, data: Batch) -> Tensor:
        x = self.conv(data.x, data.edge_index).relu()
        return self.head(gnn.global_mean_pool(x, data.batch))


# --- layers of one's own ----------------------------------------------------------------------------


class ManyArguments(gnn.MessagePassing):
    """``message`` takes both ends, positions, edge features and a weight."""

    def __init__(self) -> None:
        super().__init__(aggr="mean")
        self.lin = nn.Linear(X, H)
        self.filter = mlp(3 + D, H)

    def forward(
        self, x: Tensor, pos: Tensor, edge_index: Tensor, edge_attr: Tensor, edge_weight: Tensor
    ) -> Tensor:
        return self.propagate(
            edge_index, x=self.lin(x), pos=pos, edge_attr=edge_attr, edge_weight=edge_weight
        )

    def message(
        self,
        x_i: Tensor,
        x_j: Tensor,
        pos_i: Tensor,
        pos_j: Tensor,
        edge_attr: Tensor,
        edge_weight: Tensor,
    ) -> Tensor:
        kernel = self.filter(torch.cat([pos_j - pos_i, edge_attr], dim=-1))
        return edge_weight.view(-1, 1) * kernel * (x_j - 0.5 * x_i)


class EdgeUpdates(gnn.MessagePassing):
    """Edge features are updated and used, and returned."""

    def __init__(self) -> None:
        super().__init__(aggr="add")
        self.edge = mlp(2 * X + D, H)
        self.node = nn.Linear(X + H, C)

    def forward(self, x: Tensor, edge_index: Tensor, edge_attr: Tensor) -> tuple[Tensor, Tensor]:
        edges = self.edge_updater(edge_index, x=x, edge_attr=edge_attr)
        size = (x.size(0), x.size(0))
        return self.propagate(edge_index, x=x, edges=edges, size=size), edges

    def edge_update(self, x_i: Tensor, x_j: Tensor, edge_attr: Tensor) -> Tensor:
        return self.edge(torch.cat([x_i, x_j, edge_attr], dim=-1)).relu()

    def message(self, edges: Tensor) -> Tensor:
        return edges

    def update(self, aggregated: Tensor, x: Tensor) -> Tensor:
        return self.node(torch.cat([x, aggregated], dim=-1))


class SeveralAggregations(gnn.MessagePassing):
    """Three aggregations side by side."""

    def __init__(self) -> None:
        super().__init__(aggr=["mean", "max", "min"])
        self.before, self.after = nn.Linear(X, H), nn.Linear(3 * H, C)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return self.after(self.propagate(edge_index, x=self.before(x).relu()))

    def message(self, x_j: Tensor) -> Tensor:
        return x_j


class Bipartite(gnn.MessagePassing):
    """Sources and destinations of different widths and numbers."""

    def __init__(self) -> None:
        super().__init__(aggr="add")
        self.source, self.target = nn.Linear(X, H), nn.Linear(X, H)

    def forward(self, x: tuple[Tensor, Tensor], edge_index: Tensor) -> Tensor:
        pair = (self.source(x[0]), self.target(x[1]))
        size = (x[0].size(0), x[1].size(0))
        return self.propagate(edge_index, x=pair, size=size) + pair[1]

    def message(self, x_j: Tensor, x_i: Tensor | None) -> Tensor:
        assert x_i is not None
        return F.leaky_relu(x_j * x_i, 0.1)


class OwnDegrees(gnn.MessagePassing):
    """Symmetric normalisation written out in ``forward``."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(aggr="add")
        self.lin = nn.Linear(inputs, outputs, bias=False)
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        edge_index, _ = add_self_loops(edge_index, num_nodes=x.size(0))
        row, col = edge_index
        deg = degree(col, x.size(0), dtype=x.dtype)
        inverse = deg.pow(-0.5)
        inverse[inverse == float("inf")] = 0
        return self.propagate(edge_index, x=self.lin(x), norm=inverse[row] * inverse[col]) + self.bias

    def message(self, x_j: Tensor, norm: Tensor) -> Tensor:
        return norm.view(-1, 1) * x_j


class GatedUpdate(gnn.MessagePassing):
    """``update`` is a GRU cell, ``aggregate`` calls the inherited one."""

    def __init__(self) -> None:
        super().__init__(aggr="max")
        self.encode, self.gate = nn.Linear(X, H), nn.GRUCell(H, H)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        x = self.encode(x)
        for _ in range(2):
            x = self.propagate(edge_index, x=x)
        return x

    def aggregate(
        self, inputs: Tensor, index: Tensor, ptr: Tensor | None = None, dim_size: int | None = None
    ) -> Tensor:
        return super().aggregate(inputs, index, ptr, dim_size) * 0.5

    def update(self, aggregated: Tensor, x: Tensor) -> Tensor:
        return self.gate(aggregated, x)


class HopLoop(nn.Module):
    """Powers of the adjacency, weighted by a learned vector."""

    def __init__(self, hops: int = 3) -> None:
        super().__init__()
        self.propagation = gnn.SimpleConv("mean")
        self.weights = nn.Parameter(torch.full((hops + 1,), 1 / (hops + 1)))
        self.head = nn.Linear(X, C)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        out = self.weights[0] * x
        for hop in range(1, len(self.weights)):
            x = self.propagation(x, edge_index)
            out = out + self.weights[hop] * x
        return self.head(out)


# --- parameters and buffers -------------------------------------------------------------------------


class Parametrised(nn.Module):
    """Weight norm and spectral norm."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = weight_norm(nn.Linear(X, H))
        self.conv = gnn.GraphConv(H, H)
        self.conv.lin_rel = weight_norm(nn.Linear(H, H))
        self.decode = spectral_norm(nn.Linear(H, C))

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return self.decode(self.conv(self.encode(x).relu(), edge_index).relu())


class Checkpointed(nn.Module):
    """Memory is saved by computing a layer twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = gnn.SAGEConv(X, H), gnn.SAGEConv(H, C)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        x = checkpoint(self.conv1, x, edge_index, use_reentrant=False).relu()
        return checkpoint(self.conv2, x, edge_index, use_reentrant=False)


class Lazy(nn.Module):
    """Widths are found by the first call."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = gnn.GCNConv(-1, H), gnn.GATConv(-1, C)
        self.skip = nn.LazyLinear(C)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        hidden = self.conv1(x, edge_index).relu()
        return self.conv2(hidden, edge_index) + self.skip(x)


class Cached(nn.Module):
    """Layers that keep the normalised graph of their first call."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = gnn.GCNConv(X, H, cached=True), gnn.SGConv(H, C, K=2, cached=False)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return self.conv2(self.conv1(x, edge_index).relu(), edge_index)


class Buffers(nn.Module):
    """Inputs are standardised by buffers, a counter runs, a table is not saved."""

    mean: Tensor
    deviation: Tensor
    calls: Tensor
    table: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.randn(X))
        self.register_buffer("deviation", torch.rand(X) + 0.5)
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))
        self.register_buffer("table", torch.randn(1, H), persistent=False)
        self.conv, self.head = gnn.GCNConv(X, H), nn.Linear(H, C)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        if self.training:
            self.calls += 1
        x = (x - self.mean) / self.deviation
        return self.head((self.conv(x, edge_index) + self.table).relu())


class SparseInput(nn.Module):
    """A sparse adjacency matrix, multiplied by hand and given to a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.lin, self.conv = nn.Linear(X, H), gnn.SAGEConv(H, C)

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        x = (adjacency @ self.lin(x)).relu()
        return self.conv(x, adjacency)


class EdgeIndexInput(nn.Module):
    """An ``EdgeIndex`` object."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = gnn.GCNConv(X, H), gnn.SAGEConv(H, C)

    def forward(self, x: Tensor, edge_index: EdgeIndex) -> Tensor:
        return self.conv2(self.conv1(x, edge_index).relu(), edge_index)


class DropoutVariants(nn.Module):
    """Dropout as function, module, alpha dropout, by position, and with a rate of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Linear(X, H)
        self.conv = gnn.GATConv(H, H, dropout=0.3)
        self.drop, self.alpha = nn.Dropout(0.4), nn.AlphaDropout(0.2)
        self.rate = 0.25
        self.head = nn.Linear(H, C)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        x = torch.dropout(x, 0.1, self.training)
        x = self.alpha(F.selu(self.encode(x)))
        x = self.conv(F.dropout(x, self.rate, training=self.training), edge_index)
        x = F.feature_alpha_dropout(x.unsqueeze(-1), 0.1, self.training).squeeze(-1)
        return self.head(self.drop(x))


# --- results other than one row per node ------------------------------------------------------------


class EdgeClassifier(nn.Module):
    """Positive and negative edges, scored by an MLP."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = gnn.GCNConv(X, H), gnn.GCNConv(H, H)
        self.decoder = mlp(2 * H + D, 1)

    def forward(
        self, x: Tensor, edge_index: Tensor, edge_attr: Tensor, edge_label_index: Tensor
    ) -> tuple[Tensor, Tensor]:
        z = self.conv2(self.conv1(x, edge_index).relu(), edge_index)
        seen = self.decoder(torch.cat([z[edge_index[0]], z[edge_index[1]], edge_attr], dim=-1))
        source, target = edge_label_index
        return seen.view(-1), (z[source] * z[target]).sum(dim=-1).sigmoid()


class GraphRegressor(nn.Module):
    """Sum, mean and maximum of nodes; the number of graphs is given."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = gnn.GraphConv(X, H), gnn.GraphConv(H, H)
        self.head = gnn.MLP([3 * H, H, 1], norm="batch_norm", dropout=0.2)

    def forward(self, x: Tensor, edge_index: Tensor, batch: Tensor, num_graphs: int) -> Tensor:
        x = self.conv2(self.conv1(x, edge_index).relu(), edge_index).relu()
        pools = (gnn.global_add_pool, gnn.global_mean_pool, gnn.global_max_pool)
        return self.head(torch.cat([pool(x, batch, size=num_graphs) for pool in pools], dim=-1)).squeeze(-1)


class VirtualNode(nn.Module):
    """Every graph has one more node, which all of its nodes talk to between layers."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Linear(X, H)
        self.virtual = nn.Embedding(1, H)
        self.convs = nn.ModuleList(gnn.GINConv(mlp(H, H)) for _ in range(2))
        self.mix = mlp(H, H)
        self.head = nn.Linear(H, 3)

    def forward(self, x: Tensor, edge_index: Tensor, batch: Tensor) -> Tensor:
        x = self.encode(x)
        graphs = int(batch.max()) + 1
        virtual = self.virtual(torch.zeros(graphs, dtype=torch.long, device=x.device))
        for conv in self.convs:
            x = conv(x + virtual[batch], edge_index).relu()
            virtual = virtual + self.mix(gnn.global_add_pool(x, batch, graphs) + virtual)
        return self.head(gnn.global_mean_pool(x, batch))


class JumpingSum(nn.Module):
    """Jumping knowledge by hand: scores of all layers are added."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList([gnn.GCNConv(X, H), gnn.GCNConv(H, H), gnn.GCNConv(H, H)])
        self.heads = nn.ModuleList(nn.Linear(H, C) for _ in range(3))
        self.attention = nn.Parameter(torch.randn(3))

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        scores = []
        for conv, head in zip(self.convs, self.heads, strict=True):
            x = conv(x, edge_index).relu()
            scores.append(head(x))
        stacked = torch.stack(scores, dim=-1)
        return (stacked * self.attention.softmax(dim=0)).sum(dim=-1)


class HeteroWithEmbeddings(nn.Module):
    """Kinds of nodes with projections of their own, and products along one kind of edge."""

    def __init__(self) -> None:
        super().__init__()
        kinds, edges = METADATA
        self.project = nn.ModuleDict({kind: nn.Linear(X, H) for kind in kinds})
        self.conv = gnn.HeteroConv({kind: gnn.GraphConv((H, H), H) for kind in edges}, aggr="mean")
        self.norm = nn.ModuleDict({kind: nn.LayerNorm(H) for kind in kinds})

    def forward(
        self, x_dict: dict[str, Tensor], edge_index_dict: dict[tuple[str, str, str], Tensor]
    ) -> Tensor:
        x_dict = {kind: self.project[kind](x).relu() for kind, x in x_dict.items()}
        x_dict = {kind: self.norm[kind](x) for kind, x in self.conv(x_dict, edge_index_dict).items()}
        papers, authors = edge_index_dict["paper", "by", "author"]
        return (x_dict["paper"][papers] * x_dict["author"][authors]).sum(dim=-1)


class LoopsByHand(nn.Module):
    """Graph utilities in ``forward``: undirected, loops removed and added."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = gnn.GATConv(X, H, add_self_loops=False)
        self.conv2 = gnn.GCNConv(H, C, add_self_loops=False)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        edge_index, _ = remove_self_loops(edge_index)
        edge_index, _ = add_remaining_self_loops(edge_index, num_nodes=x.size(0))
        return self.conv2(self.conv1(x, edge_index).relu(), edge_index)


class Undirected(nn.Module):
    """Edges in both directions, duplicates merged."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = gnn.SAGEConv(X, C)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return self.conv(x, to_undirected(edge_index, num_nodes=x.size(0)))


class ScatterByHand(nn.Module):
    """No layer at all: gather, linear, scatter, ``index_add``."""

    def __init__(self) -> None:
        super().__init__()
        self.message, self.update = nn.Linear(2 * X, H), nn.Linear(X + H, C)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        row, col = edge_index
        messages = self.message(torch.cat([x[row], x[col]], dim=-1)).relu()
        mean = scatter(messages, col, dim=0, dim_size=x.size(0), reduce="mean")
        total = torch.zeros_like(mean).index_add(0, row, messages)
        return self.update(torch.cat([x, mean - total], dim=-1))


class EdgeTypes(nn.Module):
    """Embeddings of edge types as edge features."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(RELATIONS, D)
        self.conv1 = gnn.GINEConv(mlp(X, H), edge_dim=D)
        self.conv2 = gnn.RGCNConv(H, C, RELATIONS)

    def forward(self, x: Tensor, edge_index: Tensor, edge_type: Tensor) -> Tensor:
        x = self.conv1(x, edge_index, self.embedding(edge_type)).relu()
        return self.conv2(x, edge_index, edge_type)


class NodeTypes(nn.Module):
    """Nodes are numbers that name rows of a table."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, H)
        self.conv = gnn.GCNConv(H, C)

    def forward(self, z: Tensor, edge_index: Tensor) -> Tensor:
        return self.conv(self.embedding(z), edge_index)


class DenseAttention(nn.Module):
    """Nodes of a graph attend to each other in a padded batch."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = gnn.GCNConv(H, H)
        self.attention = nn.MultiheadAttention(H, 2, batch_first=True)

    def forward(self, x: Tensor, edge_index: Tensor, batch: Tensor) -> Tensor:
        x = self.conv(x, edge_index)
        dense, mask = to_dense_batch(x, batch)
        attended, _ = self.attention(dense, dense, dense, key_padding_mask=~mask, need_weights=False)
        return x + attended[mask]


class SeveralHeads(nn.Module):
    """A tuple with attention weights, of which one part is used."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = gnn.GATv2Conv(X, H, heads=2)

    def forward(self, x: Tensor, edge_index: Tensor) -> tuple[Tensor, Tensor]:
        out, (_, weights) = self.conv(x, edge_index, return_attention_weights=True)
        return out.view(-1, 2, H).mean(dim=1), weights


class Activations(nn.Module):
    """Many activations, chosen by name."""

    def __init__(self) -> None:
        super().__init__()
        names = ("silu", "gelu", "elu", "leaky_relu", "softplus", "hardswish", "mish")
        self.acts = [getattr(F, name) for name in names]
        self.convs = nn.ModuleList(gnn.GraphConv(H, H) for _ in names)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        for act, conv in zip(self.acts, self.convs, strict=True):
            x = act(conv(x, edge_index))
        return x


class Slices(nn.Module):
    """Chunks, slices, in-place sums and reshapes of columns."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = gnn.GCNConv(X, 2 * H)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        value, gate = self.conv(x, edge_index).chunk(2, dim=-1)
        out = value * torch.sigmoid(gate)
        out = out.view(x.size(0), 2, -1).transpose(1, 2).reshape(-1, H)
        out[:, :2] += x[:, 1:3]
        return torch.where(out > 0, out, 0.1 * out)


class WholeGraph(nn.Module):
    """Every node sees the mean over all nodes, and features are normalised."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = gnn.GCNConv(2 * X, H), nn.Linear(H, C)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        x = F.normalize(x, p=2.0, dim=-1)
        context = x.mean(dim=0, keepdim=True).expand_as(x)
        x = self.conv(torch.cat([x, context], dim=-1), edge_index)
        return self.head(x / (x.norm(dim=-1, keepdim=True) + 1e-6)).softmax(dim=-1)


USER_MODELS = [
    Case("residual stack", ResidualStack, NODES),
    Case(
        "dictionary input and output",
        DictInput,
        lambda g: ({"x": g.x, "edge_index": g.edge_index},),
    ),
    Case("several inputs", SeveralInputs, takes("x", "x0", "edge_index", "label_edges")),
    Case("shared layers and weights", SharedLayers, NODES),
    Case(
        "keyword-only arguments",
        KeywordOnly,
        takes_named(x="x", edge_index="edge_index", edge_attr="edge_attr"),
    ),
    Case("keyword-only left out", KeywordOnly, takes_named(x="x", edge_index="edge_index")),
    Case("return by self.training", EarlyReturn, NODES),
    Case("edges dropped in training", TrainingOnlyNoise, NODES),
    Case("nested modules and lists", Nested, NODES),
    Case("None for all options", NoneArguments, lambda g: (g.x, g.edge_index, None, None, None)),
    Case(
        "None for one option",
        NoneArguments,
        lambda g: {"x": g.x, "edge_index": g.edge_index, "edge_attr": g.edge_attr, "batch": g.batch},
    ),
    Case("Data as the only argument", DataInput, takes("data")),
    Case("Batch as the only argument", BatchInput, takes("data_batch")),
    Case(
        "message of six arguments",
        ManyArguments,
        takes("x", "pos", "edge_index", "edge_attr", "edge_weight"),
    ),
    Case("edge_update and edge output", EdgeUpdates, ATTRIBUTED),
    Case("list of aggregations", SeveralAggregations, NODES),
    Case("bipartite layer", Bipartite, lambda g: (g.pair, g.edge_index)),
    Case("normalisation by hand", functools.partial(OwnDegrees, X, C), NODES),
    Case("GRU as update", GatedUpdate, NODES),
    Case("loop over hops", HopLoop, NODES),
    Case("weight norm and spectral norm", Parametrised, NODES),
    Case("checkpointed layers", Checkpointed, NODES),
    Case("lazy layers", Lazy, NODES),
    Case("cached layers", Cached, NODES),
    Case("buffers", Buffers, NODES),
    Case("sparse matrix by hand", SparseInput, takes("x", "adjacency")),
    Case("EdgeIndex input", EdgeIndexInput, takes("x", "edges_object")),
    Case("variants of dropout", DropoutVariants, NODES),
    Case("edge-level output", EdgeClassifier, takes("x", "edge_index", "edge_attr", "label_edges")),
    Case("graph-level output", GraphRegressor, takes("x", "edge_index", "batch", "num_graphs")),
    Case("virtual node", VirtualNode, BATCHED),
    Case("jumping knowledge by hand", JumpingSum, NODES),
    Case("heterogeneous links", HeteroWithEmbeddings, HETERO),
    Case("self-loops by hand", LoopsByHand, NODES),
    Case("undirected by hand", Undirected, NODES),
    Case("scatter by hand", ScatterByHand, NODES),
    Case("embedded edge types", EdgeTypes, TYPED),
    Case("embedded node types", NodeTypes, takes("color", "edge_index")),
    Case("attention in dense batches", DenseAttention, takes("wide", "edge_index", "batch")),
    Case("attention weights returned", SeveralHeads, NODES),
    Case("many activations", Activations, WIDE),
    Case("columns cut and joined", Slices, NODES),
    Case("mean over all nodes", WholeGraph, NODES),
]
