"""The models of PyG's published examples, re-stated in small sizes.

Each case is named after the example that it re-states. Data sets, training and evaluation are left out.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric import nn as gnn
from torch_geometric.nn import models
from torch_geometric.utils import scatter, softmax

from benchmarks.coverage.cases import (
    ATTRIBUTED,
    BATCHED,
    HETERO,
    NODES,
    TYPED,
    WEIGHTED,
    Case,
    takes,
)
from benchmarks.coverage.convs import mlp
from benchmarks.coverage.graphs import CLASSES, DEGREES, EDGE_FEATURES, FEATURES, HIDDEN, METADATA, RELATIONS

X, H, C, D = FEATURES, HIDDEN, CLASSES, EDGE_FEATURES


# --- node classification ----------------------------------------------------------------------------


class Stack(nn.Module):
    """Layers with dropout before each and an activation between them."""

    def __init__(self, *convs: nn.Module, act: str = "relu", dropout: float = 0.5, log: bool = True) -> None:
        super().__init__()
        self.convs = nn.ModuleList(convs)
        self.act, self.dropout, self.log = act, dropout, log

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        for conv in self.convs[:-1]:
            x = F.dropout(x, p=self.dropout, training=self.training)
            x = getattr(F, self.act)(conv(x, edge_index))
        x = F.dropout(x, p=self.dropout, training=self.training)
        x = self.convs[-1](x, edge_index)
        return F.log_softmax(x, dim=1) if self.log else x


class WeightedGCN(nn.Module):
    """examples/gcn.py: edge weights, cached normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = gnn.GCNConv(X, 16, cached=True)
        self.conv2 = gnn.GCNConv(16, C, cached=True)

    def forward(self, x: Tensor, edge_index: Tensor, edge_weight: Tensor | None = None) -> Tensor:
        x = F.dropout(x, p=0.5, training=self.training)
        x = self.conv1(x, edge_index, edge_weight).relu()
        x = F.dropout(x, p=0.5, training=self.training)
        return self.conv2(x, edge_index, edge_weight)


class SimplifiedGCN(nn.Module):
    """examples/sgc.py: one linear layer on propagated features."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = gnn.SGConv(X, C, K=2, cached=True)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return F.log_softmax(self.conv(x, edge_index), dim=1)


class AttentionPropagation(nn.Module):
    """examples/agnn.py: linear layers around propagation by cosine attention."""

    def __init__(self) -> None:
        super().__init__()
        self.lin1, self.lin2 = nn.Linear(X, 16), nn.Linear(16, C)
        self.prop1 = gnn.AGNNConv(requires_grad=False)
        self.prop2 = gnn.AGNNConv(requires_grad=True)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        x = F.relu(self.lin1(F.dropout(x, training=self.training)))
        x = self.prop2(self.prop1(x, edge_index), edge_index)
        return F.log_softmax(self.lin2(F.dropout(x, training=self.training)), dim=1)


class JumpingAPPNP(nn.Module):
    """Predict, then propagate."""

    def __init__(self) -> None:
        super().__init__()
        self.mlp = gnn.MLP([X, 16, C], dropout=0.5, norm=None)
        self.prop = gnn.APPNP(K=4, alpha=0.1)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return self.prop(self.mlp(x), edge_index).log_softmax(dim=-1)


class InitialResiduals(nn.Module):
    """examples/gcn2_cora.py: GCNII with shared weights."""

    def __init__(self) -> None:
        super().__init__()
        self.lins = nn.ModuleList([nn.Linear(X, H), nn.Linear(H, C)])
        self.convs = nn.ModuleList(
            gnn.GCN2Conv(H, 0.1, 0.5, layer + 1, shared_weights=True, normalize=False) for layer in range(4)
        )

    def forward(self, x: Tensor, edge_index: Tensor, edge_weight: Tensor) -> Tensor:
        x = first = self.lins[0](F.dropout(x, 0.6, training=self.training)).relu()
        for conv in self.convs:
            x = F.dropout(x, 0.6, training=self.training)
            x = conv(x, first, edge_index, edge_weight).relu()
        x = self.lins[1](F.dropout(x, 0.6, training=self.training))
        return x.log_softmax(dim=-1)


class InitialResidualsPPI(nn.Module):
    """examples/gcn2_ppi.py: separate weights and a residual."""

    def __init__(self) -> None:
        super().__init__()
        self.lins = nn.ModuleList([nn.Linear(X, H), nn.Linear(H, C)])
        self.convs = nn.ModuleList(
            gnn.GCN2Conv(H, 0.5, 1.0, layer + 1, shared_weights=False) for layer in range(3)
        )

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        x = first = self.lins[0](F.dropout(x, 0.2, training=self.training)).relu()
        for conv in self.convs:
            x = x + conv(F.dropout(x, 0.2, training=self.training), first, edge_index)
            x = x.relu()
        return self.lins[1](F.dropout(x, 0.2, training=self.training))


class InductiveGAT(nn.Module):
    """examples/ppi.py: three attention layers with linear skips."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.lin1 = gnn.GATConv(X, H, heads=2), nn.Linear(X, 2 * H)
        self.conv2, self.lin2 = gnn.GATConv(2 * H, H, heads=2), nn.Linear(2 * H, 2 * H)
        self.conv3, self.lin3 = gnn.GATConv(2 * H, C, heads=3, concat=False), nn.Linear(2 * H, C)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        x = F.elu(self.conv1(x, edge_index) + self.lin1(x))
        x = F.elu(self.conv2(x, edge_index) + self.lin2(x))
        return self.conv3(x, edge_index) + self.lin3(x)


class MixedHops(nn.Module):
    """Three powers of the adjacency, with batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1 = gnn.MixHopConv(X, H, powers=[0, 1, 2]), nn.BatchNorm1d(3 * H)
        self.conv2, self.norm2 = gnn.MixHopConv(3 * H, H, powers=[0, 1, 2]), nn.BatchNorm1d(3 * H)
        self.lin = nn.Linear(3 * H, C)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        x = F.dropout(self.norm1(self.conv1(x, edge_index)), p=0.7, training=self.training)
        x = F.dropout(self.norm2(self.conv2(x, edge_index)), p=0.9, training=self.training)
        return self.lin(x)


class SupervisedAttention(nn.Module):
    """examples/super_gat.py: the attention has a loss of its own."""

    def __init__(self) -> None:
        super().__init__()
        options = {"attention_type": "MX", "edge_sample_ratio": 0.8, "is_undirected": True, "dropout": 0.6}
        self.conv1 = gnn.SuperGATConv(X, 4, heads=2, **options)
        self.conv2 = gnn.SuperGATConv(8, C, heads=2, concat=False, **options)

    def forward(self, x: Tensor, edge_index: Tensor) -> tuple[Tensor, Tensor]:
        x = F.dropout(x, p=0.6, training=self.training)
        x = F.elu(self.conv1(x, edge_index))
        attention = self.conv1.get_attention_loss()
        x = F.dropout(x, p=0.6, training=self.training)
        x = self.conv2(x, edge_index)
        return F.log_softmax(x, dim=-1), attention + self.conv2.get_attention_loss()


class UniMP(nn.Module):
    """examples/unimp_arxiv.py: labels of some nodes are inputs; gated transformers with layer norm."""

    def __init__(self) -> None:
        super().__init__()
        self.label_emb = models.MaskLabel(C, X)
        widths = (X, H, H)
        self.convs = nn.ModuleList(
            gnn.TransformerConv(width, H // 2, heads=2, concat=True, beta=True, dropout=0.3)
            for width in widths[:-1]
        )
        self.norms = nn.ModuleList(nn.LayerNorm(H) for _ in widths[:-1])
        self.head = gnn.TransformerConv(H, C, heads=2, concat=False, beta=True, dropout=0.3)

    def forward(self, x: Tensor, y: Tensor, edge_index: Tensor, label_mask: Tensor) -> Tensor:
        x = self.label_emb(x, y, label_mask)
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = norm(conv(x, edge_index)).relu()
        return self.head(x, edge_index)


class ReversibleBlock(nn.Module):
    """One branch of examples/rev_gnn.py."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=True)
        self.conv = gnn.SAGEConv(width, width)

    def forward(self, x: Tensor, edge_index: Tensor, dropout_mask: Tensor | None = None) -> Tensor:
        x = self.norm(x).relu()
        if self.training and dropout_mask is not None:
            x = x * dropout_mask
        return self.conv(x, edge_index)


class Reversible(nn.Module):
    """examples/rev_gnn.py: groups of columns update each other; activations are recomputed."""

    def __init__(self) -> None:
        super().__init__()
        self.lin1, self.lin2 = nn.Linear(X, H), nn.Linear(H, C)
        self.norm = nn.LayerNorm(H)
        self.convs = nn.ModuleList(
            models.GroupAddRev(ReversibleBlock(H // 2), num_groups=2) for _ in range(2)
        )

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        x = self.lin1(x)
        for conv in self.convs:
            x = conv(x, edge_index)
        x = self.norm(x).relu()
        return self.lin2(F.dropout(x, p=0.5, training=self.training))


class EfficientGraphConv(nn.Module):
    """examples/egc.py, and the node part of it: EGC layers with residuals."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, H)
        self.convs = nn.ModuleList(
            gnn.EGConv(H, H, aggregators=["symnorm", "max"], num_heads=2, num_bases=2) for _ in range(2)
        )
        self.norms = nn.ModuleList(nn.BatchNorm1d(H) for _ in range(2))
        self.mlp = nn.Sequential(nn.Linear(H, 4, bias=False), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 1))

    def forward(self, color: Tensor, edge_index: Tensor, batch: Tensor) -> Tensor:
        x = self.embed(color)
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = x + norm(conv(x, edge_index)).relu()
        return self.mlp(gnn.global_mean_pool(x, batch))


class Dynamic(nn.Module):
    """examples/dna.py: every layer attends to all layers before it."""

    def __init__(self) -> None:
        super().__init__()
        self.lin1 = nn.Linear(X, H)
        self.convs = nn.ModuleList(gnn.DNAConv(H, heads=2, groups=2, dropout=0.2) for _ in range(2))
        self.lin2 = nn.Linear(H, C)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        x = F.relu(self.lin1(x))
        history = F.dropout(x, p=0.5, training=self.training).view(-1, 1, H)
        for conv in self.convs:
            x = F.relu(conv(history, edge_index)).view(-1, 1, H)
            history = torch.cat([history, x], dim=1)
        x = F.dropout(history[:, -1], p=0.5, training=self.training)
        return torch.log_softmax(self.lin2(x), dim=1)


class ProteinsGEN(nn.Module):
    """examples/ogbn_proteins_deepgcn.py: deep residual layers with softmax aggregation."""

    def __init__(self) -> None:
        super().__init__()
        self.node, self.edge = nn.Linear(X, H), nn.Linear(D, H)
        self.layers = nn.ModuleList(
            gnn.DeepGCNLayer(
                gnn.GENConv(H, H, aggr="softmax", t=1.0, learn_t=True, num_layers=2, norm="layer"),
                nn.LayerNorm(H, elementwise_affine=True),
                nn.ReLU(inplace=True),
                block="res+",
                dropout=0.1,
                ckpt_grad=layer == 1,
            )
            for layer in range(2)
        )
        self.head = nn.Linear(H, C)

    def forward(self, x: Tensor, edge_index: Tensor, edge_attr: Tensor) -> Tensor:
        x, edge_attr = self.node(x), self.edge(edge_attr)
        x = self.layers[0].conv(x, edge_index, edge_attr)  # type: ignore[operator]
        for layer in self.layers[1:]:
            x = layer(x, edge_index, edge_attr)
        x = self.layers[0].act(self.layers[0].norm(x))  # type: ignore[operator]
        return self.head(F.dropout(x, p=0.1, training=self.training))


class PointPropagation(nn.Module):
    """examples/film.py: modulated messages, batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList([gnn.FiLMConv(X, H), gnn.FiLMConv(H, H), gnn.FiLMConv(H, C, act=None)])
        self.norms = nn.ModuleList(nn.BatchNorm1d(H) for _ in range(2))

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        for conv, norm in zip(self.convs[:-1], self.norms, strict=True):
            x = norm(conv(x, edge_index))
            x = F.dropout(x, p=0.1, training=self.training)
        return self.convs[-1](x, edge_index)


class SampledSAGE(nn.Module):
    """examples/reddit.py, ogbn_products_sage.py: bipartite blocks, targets first."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList([gnn.SAGEConv(X, H), gnn.SAGEConv(H, C)])

    def forward(self, x: Tensor, outer: Tensor, inner: Tensor) -> Tensor:
        for number, (conv, edges) in enumerate(zip(self.convs, (outer, inner), strict=True)):
            x = conv(x, edges)
            if number == 0:
                x = F.dropout(x.relu(), p=0.5, training=self.training)
        return x.log_softmax(dim=-1)


class ClusterSAGE(nn.Module):
    """examples/cluster_gcn_reddit.py and graph_saint.py: concatenated layers, edge norms."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = gnn.GraphConv(X, H), gnn.GraphConv(H, H)
        self.conv3, self.lin = gnn.GraphConv(H, H), nn.Linear(3 * H, C)

    def forward(self, x0: Tensor, edge_index: Tensor, edge_weight: Tensor | None = None) -> Tensor:
        x1 = F.dropout(F.relu(self.conv1(x0, edge_index, edge_weight)), p=0.2, training=self.training)
        x2 = F.dropout(F.relu(self.conv2(x1, edge_index, edge_weight)), p=0.2, training=self.training)
        x3 = F.dropout(F.relu(self.conv3(x2, edge_index, edge_weight)), p=0.2, training=self.training)
        x = torch.cat([x1, x2, x3], dim=-1)
        return self.lin(x).log_softmax(dim=-1)


# --- graph classification ---------------------------------------------------------------------------


class MutagGIN(nn.Module):
    """examples/mutag_gin.py: sums over nodes, an MLP."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            gnn.GINConv(gnn.MLP([width, H, H]), train_eps=False) for width in (X, H, H)
        )
        self.mlp = gnn.MLP([H, H, 2], norm=None, dropout=0.5)

    def forward(self, x: Tensor, edge_index: Tensor, batch: Tensor, batch_size: int) -> Tensor:
        for conv in self.convs:
            x = conv(x, edge_index).relu()
        return self.mlp(gnn.global_add_pool(x, batch, size=batch_size))


class ProteinsTopK(nn.Module):
    """examples/proteins_topk_pool.py: pooling after every layer; readouts are added."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList([gnn.GraphConv(X, H), gnn.GraphConv(H, H)])
        self.pools = nn.ModuleList(gnn.TopKPooling(H, ratio=0.8) for _ in range(2))
        self.lin1, self.lin2 = nn.Linear(2 * H, H), nn.Linear(H, 2)

    def forward(self, x: Tensor, edge_index: Tensor, batch: Tensor) -> Tensor:
        total: Tensor | None = None
        for conv, pool in zip(self.convs, self.pools, strict=True):
            x = F.relu(conv(x, edge_index))
            x, edge_index, _, batch, _, _ = pool(x, edge_index, None, batch)
            readout = torch.cat([gnn.global_max_pool(x, batch), gnn.global_mean_pool(x, batch)], dim=1)
            total = readout if total is None else total + readout
        x = F.dropout(F.relu(self.lin1(total)), p=0.5, training=self.training)
        return F.log_softmax(self.lin2(x), dim=-1)


class TriangleSAG(nn.Module):
    """examples/triangles_sag_pool.py: pooling by a layer's score, which is supervised too."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = gnn.GINConv(mlp(X, H))
        self.pool1 = gnn.SAGPooling(H, min_score=0.02, GNN=gnn.GCNConv)
        self.conv2 = gnn.GINConv(mlp(H, H))
        self.lin = nn.Linear(H, 1)

    def forward(self, x: Tensor, edge_index: Tensor, batch: Tensor) -> tuple[Tensor, Tensor]:
        x = F.relu(self.conv1(x, edge_index))
        x, edge_index, _, batch, _, score = self.pool1(x, edge_index, None, batch)
        x = F.relu(self.conv2(x, edge_index))
        return self.lin(gnn.global_add_pool(x, batch)).view(-1), score


class SortPool(nn.Module):
    """examples/seal_link_pred.py: sorted nodes as a sequence (DGCNN)."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList([gnn.GCNConv(X, 4), gnn.GCNConv(4, 4), gnn.GCNConv(4, 1)])
        self.pool = gnn.SortAggregation(k=4)
        self.conv1 = nn.Conv1d(1, 4, 9, 9)
        self.conv2 = nn.Conv1d(4, 6, 2, 1)
        self.mlp = gnn.MLP([18, H, 1], dropout=0.5, norm=None)

    def forward(self, x: Tensor, edge_index: Tensor, batch: Tensor) -> Tensor:
        layers = [x]
        for conv in self.convs:
            layers.append(conv(layers[-1], edge_index).tanh())
        x = self.pool(torch.cat(layers[1:], dim=-1), batch).unsqueeze(1)
        x = self.conv2(self.conv1(x).relu()).relu()
        return self.mlp(x.view(x.size(0), -1))


class ZincPNA(nn.Module):
    """examples/pna.py: embeddings of atoms and bonds, towers, batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.atoms, self.bonds = nn.Embedding(5, H), nn.Embedding(RELATIONS, 4)
        self.convs = nn.ModuleList(
            gnn.PNAConv(
                H,
                H,
                aggregators=["mean", "min", "max", "std"],
                scalers=["identity", "amplification", "attenuation"],
                deg=DEGREES,
                edge_dim=4,
                towers=2,
                divide_input=False,
            )
            for _ in range(2)
        )
        self.norms = nn.ModuleList(gnn.BatchNorm(H) for _ in range(2))
        self.mlp = mlp(H, 1)

    def forward(self, color: Tensor, edge_index: Tensor, edge_type: Tensor, batch: Tensor) -> Tensor:
        x, edge_attr = self.atoms(color), self.bonds(edge_type)
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = F.relu(norm(conv(x, edge_index, edge_attr)))
        return self.mlp(gnn.global_add_pool(x, batch))


class ZincGPS(nn.Module):
    """examples/graph_gps.py: local and global attention with positional encodings."""

    def __init__(self) -> None:
        super().__init__()
        self.atoms, self.bonds = nn.Embedding(5, H - 4), nn.Embedding(RELATIONS, H)
        self.encode, self.norm = nn.Linear(3, 4), nn.BatchNorm1d(3)
        self.convs = nn.ModuleList(
            gnn.GPSConv(H, gnn.GINEConv(mlp(H, H)), heads=2, attn_kwargs={"dropout": 0.5}) for _ in range(2)
        )
        self.mlp = mlp(H, 1)

    def forward(
        self, color: Tensor, pos: Tensor, edge_index: Tensor, edge_type: Tensor, batch: Tensor
    ) -> Tensor:
        x = torch.cat([self.atoms(color), self.encode(self.norm(pos))], dim=1)
        edge_attr = self.bonds(edge_type)
        for conv in self.convs:
            x = conv(x, edge_index, batch, edge_attr=edge_attr)
        return self.mlp(gnn.global_add_pool(x, batch))


class NewsClassifier(nn.Module):
    """examples/upfd.py: the news at the root of every tree is joined to the pooled graph."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = gnn.SAGEConv(X, H), gnn.SAGEConv(H, H)
        self.news, self.join, self.head = nn.Linear(X, H), nn.Linear(2 * H, H), nn.Linear(H, 2)

    def forward(self, x: Tensor, edge_index: Tensor, batch: Tensor) -> Tensor:
        hidden = self.conv1(x, edge_index).relu()
        pooled = gnn.global_max_pool(hidden, batch)
        root = (batch[1:] - batch[:-1]).nonzero(as_tuple=False).view(-1)
        root = torch.cat([root.new_zeros(1), root + 1], dim=0)
        news = self.news(x[root]).relu()
        return self.head(self.join(torch.cat([news, pooled], dim=-1)).relu()).log_softmax(dim=-1)


class UnsupervisedInfoGraph(nn.Module):
    """examples/infomax_inductive.py: PReLU between SAGE layers, every graph summarised."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList([gnn.SAGEConv(X, H), gnn.SAGEConv(H, H), gnn.SAGEConv(H, H)])
        self.activations = nn.ModuleList(nn.PReLU(H) for _ in range(3))

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        for conv, act in zip(self.convs, self.activations, strict=True):
            x = act(conv(x, edge_index))
        return x


class InfomaxEncoder(nn.Module):
    """The encoder of examples/infomax_transductive.py."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.prelu = gnn.GCNConv(X, H), nn.PReLU(H)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return self.prelu(self.conv(x, edge_index))


def infomax() -> nn.Module:
    """examples/infomax_transductive.py: a summary of the graph against corrupted nodes."""
    return models.DeepGraphInfomax(
        H,
        encoder=InfomaxEncoder(),
        summary=lambda z, *_args: z.mean(dim=0).sigmoid(),
        corruption=lambda x, edge_index: (x[torch.randperm(x.size(0))], edge_index),
    )


class AtomSet2Set(nn.Module):
    """examples/qm9_nn_conv.py: edge networks, a GRU over rounds, Set2Set."""

    def __init__(self) -> None:
        super().__init__()
        self.lin0 = nn.Linear(X, H)
        self.conv = gnn.NNConv(H, H, mlp(D, H * H), aggr="mean")
        self.gru = nn.GRU(H, H)
        self.set2set = gnn.Set2Set(H, processing_steps=2)
        self.lin1, self.lin2 = nn.Linear(2 * H, H), nn.Linear(H, 1)

    def forward(self, x: Tensor, edge_index: Tensor, edge_attr: Tensor, batch: Tensor) -> Tensor:
        out = F.relu(self.lin0(x))
        hidden = out.unsqueeze(0)
        for _ in range(2):
            message = F.relu(self.conv(out, edge_index, edge_attr))
            out, hidden = self.gru(message.unsqueeze(0), hidden)
            out = out.squeeze(0)
        out = self.set2set(out, batch)
        return self.lin2(F.relu(self.lin1(out))).view(-1)


class PointNet(nn.Module):
    """examples/pointnet_classification.py on given neighbours: positions only, a maximum."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = gnn.PointNetConv(local_nn=mlp(6, H), add_self_loops=False)
        self.conv2 = gnn.PointNetConv(local_nn=mlp(H + 3, H), add_self_loops=False)
        self.head = nn.Linear(H, C)

    def forward(self, pos: Tensor, edge_index: Tensor, batch: Tensor) -> Tensor:
        hidden = self.conv1(pos, pos, edge_index).relu()
        hidden = self.conv2(hidden, pos, edge_index).relu()
        return self.head(gnn.global_max_pool(hidden, batch))


class DiffPool(nn.Module):
    """examples/proteins_diff_pool.py on sparse input: clusters by softmax, pooled by products."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.assign = gnn.GraphConv(X, H), gnn.GraphConv(X, 4)
        self.lin = nn.Linear(H, C)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        assignment = self.assign(x, edge_index).softmax(dim=-1)
        pooled = assignment.t() @ self.embed(x, edge_index).relu()
        return self.lin(pooled.mean(dim=0, keepdim=True)).log_softmax(dim=-1)


# --- links ------------------------------------------------------------------------------------------


class LinkEncoder(nn.Module):
    """examples/link_pred.py: encode, decode positive and negative edges."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = gnn.GCNConv(X, H), gnn.GCNConv(H, H)

    def encode(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return self.conv2(self.conv1(x, edge_index).relu(), edge_index)

    def decode(self, z: Tensor, edge_label_index: Tensor) -> Tensor:
        return (z[edge_label_index[0]] * z[edge_label_index[1]]).sum(dim=-1)

    def forward(self, x: Tensor, edge_index: Tensor, edge_label_index: Tensor) -> Tensor:
        return self.decode(self.encode(x, edge_index), edge_label_index)


class Variational(nn.Module):
    """The encoder of examples/autoencoder.py --variational, and its linear sibling."""

    def __init__(self, linear: bool) -> None:
        super().__init__()
        self.conv1 = None if linear else gnn.GCNConv(X, H)
        width = X if linear else H
        self.conv_mu, self.conv_logstd = gnn.GCNConv(width, C), gnn.GCNConv(width, C)

    def forward(self, x: Tensor, edge_index: Tensor) -> tuple[Tensor, Tensor]:
        if self.conv1 is not None:
            x = self.conv1(x, edge_index).relu()
        return self.conv_mu(x, edge_index), self.conv_logstd(x, edge_index)


class Reparametrised(nn.Module):
    """examples/autoencoder.py --variational: noise is added in training."""

    def __init__(self) -> None:
        super().__init__()
        self.vgae = models.VGAE(Variational(linear=False))

    def forward(self, x: Tensor, edge_index: Tensor, edge_label_index: Tensor) -> Tensor:
        z = self.vgae.encode(x, edge_index)
        return self.vgae.decoder(z, edge_label_index)


class Recommender(nn.Module):
    """examples/hetero/hetero_link_pred.py: hetero encoder, concatenating decoder."""

    def __init__(self) -> None:
        super().__init__()
        encoder = gnn.Sequential(
            "x, edge_index",
            [
                (gnn.SAGEConv((X, X), H), "x, edge_index -> x"),
                nn.ReLU(),
                (gnn.SAGEConv((H, H), H), "x, edge_index -> x"),
            ],
        )
        self.encoder = gnn.to_hetero(encoder, METADATA, aggr="sum")
        self.lin1, self.lin2 = nn.Linear(2 * H, H), nn.Linear(H, 1)

    def forward(
        self, x_dict: dict[str, Tensor], edge_index_dict: dict[tuple[str, str, str], Tensor]
    ) -> Tensor:
        z = self.encoder(x_dict, edge_index_dict)
        row, col = edge_index_dict["paper", "by", "author"]
        pairs = torch.cat([z["paper"][row], z["author"][col]], dim=-1)
        return self.lin2(self.lin1(pairs).relu()).view(-1)


# --- relations and kinds of nodes -------------------------------------------------------------------


class Entities(nn.Module):
    """examples/rgcn.py: features are a table of nodes, relations share bases."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = gnn.RGCNConv(X, 16, RELATIONS, num_bases=3)
        self.conv2 = gnn.RGCNConv(16, C, RELATIONS, num_bases=3)

    def forward(self, x: Tensor, edge_index: Tensor, edge_type: Tensor) -> Tensor:
        x = F.relu(self.conv1(x, edge_index, edge_type))
        return F.log_softmax(self.conv2(x, edge_index, edge_type), dim=1)


class RelationalAttention(nn.Module):
    """examples/rgat.py."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = gnn.RGATConv(X, H, RELATIONS), gnn.RGATConv(H, H, RELATIONS)
        self.lin = nn.Linear(H, C)

    def forward(self, x: Tensor, edge_index: Tensor, edge_type: Tensor) -> Tensor:
        x = self.conv1(x, edge_index, edge_type).relu()
        x = self.conv2(x, edge_index, edge_type).relu()
        return F.log_softmax(self.lin(x), dim=-1)


class MixedHetero(nn.Module):
    """examples/hetero/hetero_conv_dblp.py: several layers over all kinds, one kind is classified."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            gnn.HeteroConv({kind: gnn.SAGEConv((-1, -1), H) for kind in METADATA[1]}, aggr="sum")
            for _ in range(2)
        )
        self.lin = nn.Linear(H, C)

    def forward(
        self, x_dict: dict[str, Tensor], edge_index_dict: dict[tuple[str, str, str], Tensor]
    ) -> Tensor:
        for conv in self.convs:
            x_dict = conv(x_dict, edge_index_dict)
            x_dict = {key: F.leaky_relu(x) for key, x in x_dict.items()}
        return self.lin(x_dict["author"])


class HierarchicalAttention(nn.Module):
    """examples/hetero/han_imdb.py."""

    def __init__(self) -> None:
        super().__init__()
        self.han = gnn.HANConv(X, H, heads=2, dropout=0.6, metadata=METADATA)
        self.lin = nn.Linear(H, C)

    def forward(
        self, x_dict: dict[str, Tensor], edge_index_dict: dict[tuple[str, str, str], Tensor]
    ) -> Tensor:
        return self.lin(self.han(x_dict, edge_index_dict)["paper"])


class HeteroTransformer(nn.Module):
    """examples/hetero/hgt_dblp.py."""

    def __init__(self) -> None:
        super().__init__()
        self.lin_dict = nn.ModuleDict({kind: gnn.Linear(-1, H) for kind in METADATA[0]})
        self.convs = nn.ModuleList(gnn.HGTConv(H, H, METADATA, 2) for _ in range(2))
        self.lin = nn.Linear(H, C)

    def forward(
        self, x_dict: dict[str, Tensor], edge_index_dict: dict[tuple[str, str, str], Tensor]
    ) -> Tensor:
        x_dict = {kind: self.lin_dict[kind](x).relu_() for kind, x in x_dict.items()}
        for conv in self.convs:
            x_dict = conv(x_dict, edge_index_dict)
        return self.lin(x_dict["author"])


class SignedNetwork(nn.Module):
    """examples/signed_gcn.py: friends and foes."""

    def __init__(self) -> None:
        super().__init__()
        self.model = models.SignedGCN(X, H, num_layers=2, lamb=5)

    def forward(self, x: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
        z = self.model(x, positive, negative)
        return self.model.discriminate(z, positive)


class HypergraphNet(nn.Module):
    """Two hypergraph layers, normalised."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = gnn.HypergraphConv(X, H), gnn.HypergraphConv(H, C)
        self.norm = gnn.GraphNorm(H)

    def forward(self, x: Tensor, hyperedge_index: Tensor) -> Tensor:
        x = self.norm(self.conv1(x, hyperedge_index)).relu()
        return self.conv2(x, hyperedge_index)


class TemporalAttention(gnn.MessagePassing):
    """The attention of examples/tgn.py: relative times are encoded by cosines and joined to messages."""

    def __init__(self) -> None:
        super().__init__(aggr="add", node_dim=0)
        self.time = nn.Linear(1, 4)
        self.conv = gnn.TransformerConv(X, H // 2, heads=2, dropout=0.1, edge_dim=4 + D)

    def forward(self, x: Tensor, last_update: Tensor, edge_index: Tensor, t: Tensor, msg: Tensor) -> Tensor:
        passed = last_update[edge_index[0]] - t
        encoded = self.time(passed.view(-1, 1)).cos()
        return self.conv(x, edge_index, torch.cat([encoded, msg], dim=-1))


class EdgeSoftmaxByHand(nn.Module):
    """Dot-product attention with PyG's softmax and scatter, without a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = nn.Linear(X, H), nn.Linear(X, H), nn.Linear(X, H)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        source, target = edge_index
        score = (self.query(x)[target] * self.key(x)[source]).sum(dim=-1) / H**0.5
        weight = softmax(score, target, num_nodes=x.size(0))
        return scatter(weight.view(-1, 1) * self.value(x)[source], target, dim=0, dim_size=x.size(0))


PUBLISHED = [
    Case("gcn", WeightedGCN, WEIGHTED),
    Case(
        "gat",
        lambda: Stack(
            gnn.GATConv(X, 4, heads=2, dropout=0.6),
            gnn.GATConv(8, C, heads=1, concat=False, dropout=0.6),
            act="elu",
            dropout=0.6,
            log=False,
        ),
        NODES,
    ),
    Case("cora", lambda: Stack(gnn.TAGConv(X, H), gnn.TAGConv(H, C)), NODES),
    Case(
        "arma",
        lambda: Stack(
            gnn.ARMAConv(X, H, num_stacks=3, num_layers=2, shared_weights=True, dropout=0.25),
            gnn.ARMAConv(H, C, num_stacks=3, num_layers=2, shared_weights=True, dropout=0.25, act=None),
        ),
        NODES,
    ),
    Case("cheb", lambda: Stack(gnn.ChebConv(X, H, K=2), gnn.ChebConv(H, C, K=2)), NODES),
    Case("sgc", SimplifiedGCN, NODES),
    Case("agnn", AttentionPropagation, NODES),
    Case("appnp", JumpingAPPNP, NODES),
    Case("gcn2_cora", InitialResiduals, WEIGHTED),
    Case("gcn2_ppi", InitialResidualsPPI, NODES),
    Case("ppi", InductiveGAT, NODES),
    Case("mixhop", MixedHops, NODES),
    Case("super_gat", SupervisedAttention, NODES),
    Case("unimp_arxiv", UniMP, takes("x", "y", "edge_index", "mask")),
    Case("rev_gnn", Reversible, NODES),
    Case("egc", EfficientGraphConv, takes("color", "edge_index", "batch")),
    Case("dna", Dynamic, NODES),
    Case("ogbn_proteins_deepgcn", ProteinsGEN, ATTRIBUTED),
    Case("film", PointPropagation, NODES),
    Case("reddit", SampledSAGE, takes("x", "edge_index", "label_edges")),
    Case("graph_saint", ClusterSAGE, WEIGHTED),
    Case(
        "linkx",
        lambda: models.LINKX(40, X, H, C, num_layers=1, dropout=0.5),
        takes("padded", "edge_index"),
        check_given=True,
    ),
    Case("pmlp", lambda: models.PMLP(X, H, C, num_layers=2, dropout=0.5, norm=False), NODES),
    Case("graph_unet", lambda: models.GraphUNet(X, H, C, depth=3, pool_ratios=[0.8, 0.5, 0.5]), NODES),
    Case("jumping_knowledge", lambda: gnn.GCN(X, H, 4, C, dropout=0.5, jk="cat"), NODES),
    Case("mutag_gin", MutagGIN, takes("x", "edge_index", "batch", "num_graphs")),
    Case("proteins_topk_pool", ProteinsTopK, BATCHED),
    Case("triangles_sag_pool", TriangleSAG, BATCHED),
    Case("seal_link_pred", SortPool, BATCHED),
    Case("pna", ZincPNA, takes("color", "edge_index", "edge_type", "batch")),
    Case("graph_gps", ZincGPS, takes("color", "pos", "edge_index", "edge_type", "batch")),
    Case("upfd", NewsClassifier, BATCHED),
    Case("infomax_inductive", UnsupervisedInfoGraph, NODES),
    Case("infomax_transductive", infomax, NODES),
    Case("qm9_nn_conv", AtomSet2Set, takes("x", "edge_index", "edge_attr", "batch")),
    Case("pointnet_classification", PointNet, takes("pos", "edge_index", "batch")),
    Case("proteins_diff_pool", DiffPool, NODES),
    Case(
        "attentive_fp",
        lambda: models.AttentiveFP(X, H, 1, edge_dim=D, num_layers=2, num_timesteps=2, dropout=0.2),
        takes("x", "edge_index", "edge_attr", "batch"),
    ),
    Case("link_pred", LinkEncoder, takes("x", "edge_index", "label_edges")),
    Case("autoencoder", lambda: models.GAE(Stack(gnn.GCNConv(X, H), gnn.GCNConv(H, C), log=False)), NODES),
    Case("autoencoder variational encoder", lambda: Variational(linear=False), NODES),
    Case("autoencoder linear variational encoder", lambda: Variational(linear=True), NODES),
    Case("autoencoder variational", Reparametrised, takes("x", "edge_index", "label_edges")),
    Case("hetero_link_pred", Recommender, HETERO),
    Case("rgcn", Entities, TYPED),
    Case("rgat", RelationalAttention, TYPED),
    Case("hetero_conv_dblp", MixedHetero, HETERO),
    Case("han_imdb", HierarchicalAttention, HETERO),
    Case("hgt_dblp", HeteroTransformer, HETERO),
    Case("signed_gcn", SignedNetwork, takes("x", "edge_index", "label_edges")),
    Case("hypergraph", HypergraphNet, takes("x", "hyperedges")),
    Case(
        "tgn attention",
        TemporalAttention,
        lambda g: (g.x, g.pos[:, 0], g.edge_index, g.edge_weight, g.edge_attr),
    ),
    Case("attention by hand", EdgeSoftmaxByHand, NODES),
    Case("lightgcn", lambda: models.LightGCN(40, H, num_layers=2), takes("edge_index", "label_edges")),
    Case("rect", lambda: models.RECT_L(X, H, normalize=False, dropout=0.0), WEIGHTED),
]
