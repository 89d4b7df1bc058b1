"""Recipes for the models that PyG ships and for models of several parts."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric import nn as gnn
from torch_geometric.data import Data
from torch_geometric.nn import models
from torch_geometric.nn.models.tgn import IdentityMessage, LastAggregator
from torch_geometric.utils import add_self_loops, degree, scatter, softmax

from benchmarks.coverage.cases import (
    BATCHED,
    HETERO,
    NODES,
    WEIGHTED,
    WIDE,
    Case,
    takes,
    takes_named,
)
from benchmarks.coverage.convs import mlp
from benchmarks.coverage.graphs import (
    CLASSES,
    DEGREES,
    EDGE_FEATURES,
    EDGE_KINDS,
    FEATURES,
    HIDDEN,
    METADATA,
    Graphs,
)

X, H, C, D = FEATURES, HIDDEN, CLASSES, EDGE_FEATURES


# --- models that the targets count, besides PyG's own -----------------------------------------------


class TwoLayerGCN(nn.Module):
    """GCN with functional dropout and class scores."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = gnn.GCNConv(X, 16)
        self.conv2 = gnn.GCNConv(16, C)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        """Log-probabilities of classes."""
        x = F.dropout(x, p=0.5, training=self.training)
        x = self.conv1(x, edge_index).relu()
        x = F.dropout(x, p=0.5, training=self.training)
        return F.log_softmax(self.conv2(x, edge_index), dim=1)


class TwoLayerGAT(nn.Module):
    """GAT with dropout given by position."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = gnn.GATConv(X, H, heads=4, dropout=0.6)
        self.conv2 = gnn.GATConv(4 * H, C, heads=1, concat=False, dropout=0.6)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        """Class scores."""
        x = F.dropout(x, 0.6, self.training)
        x = F.elu(self.conv1(x, edge_index))
        x = F.dropout(x, 0.6, self.training)
        return self.conv2(x, edge_index)


class GraphClassifier(nn.Module):
    """Three GIN layers, jumping knowledge, two poolings."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(gnn.GINConv(mlp(width, H)) for width in (X, H, H))
        self.norms = nn.ModuleList(gnn.BatchNorm(H) for _ in range(3))
        self.jump = gnn.JumpingKnowledge("cat")
        self.head = nn.Linear(6 * H, 3)

    def forward(self, x: Tensor, edge_index: Tensor, batch: Tensor) -> Tensor:
        """Scores of graphs."""
        layers = []
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = norm(conv(x, edge_index)).relu()
            layers.append(x)
        x = self.jump(layers)
        pooled = torch.cat([gnn.global_mean_pool(x, batch), gnn.global_max_pool(x, batch)], dim=-1)
        return self.head(F.dropout(pooled, p=0.5, training=self.training))


class TopKClassifier(nn.Module):
    """Half of the nodes is dropped between two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = gnn.GraphConv(X, H)
        self.pool = gnn.TopKPooling(H, ratio=0.5)
        self.conv2 = gnn.GraphConv(H, H)

    def forward(self, x: Tensor, edge_index: Tensor, batch: Tensor) -> Tensor:
        """Sums over graphs."""
        x = self.conv1(x, edge_index).relu()
        x, edge_index, _, batch, _, _ = self.pool(x, edge_index, None, batch)
        return gnn.global_add_pool(self.conv2(x, edge_index).relu(), batch)


class OwnAttention(gnn.MessagePassing):
    """A layer with self-loops, degrees and a softmax of its own."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(aggr="add")
        self.lin = nn.Linear(inputs, outputs)
        self.attention = nn.Parameter(torch.randn(outputs))
        self.mix = mlp(2 * outputs, outputs)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        """Node features."""
        edge_index, _ = add_self_loops(edge_index, num_nodes=x.size(0))
        x = self.lin(x)
        source, target = edge_index
        scale = degree(target, x.size(0), dtype=x.dtype).pow(-0.5)
        return self.propagate(edge_index, x=x, norm=scale[source] * scale[target])

    def message(self, x_i: Tensor, x_j: Tensor, norm: Tensor, index: Tensor, size_i: int | None) -> Tensor:
        """An MLP of both ends, weighted."""
        weight = softmax((x_j * self.attention).sum(-1), index, num_nodes=size_i)
        return (norm * weight).view(-1, 1) * self.mix(torch.cat([x_i, x_j], dim=-1))

    def update(self, aggregated: Tensor, x: Tensor) -> Tensor:
        """Add the node itself."""
        return aggregated + x


class OwnAttentionNet(nn.Module):
    """Two of these layers around a batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.second = OwnAttention(X, H), nn.BatchNorm1d(H), OwnAttention(H, C)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        """Class scores."""
        return self.second(self.norm(self.first(x, edge_index)).relu(), edge_index)


class OwnAggregate(gnn.MessagePassing):
    """``aggregate`` written by hand: a sum plus a maximum."""

    def __init__(self) -> None:
        super().__init__(aggr=None)
        self.lin = nn.Linear(X, H)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        """Node features."""
        return self.propagate(edge_index, x=self.lin(x))

    def message(self, x_j: Tensor, x_i: Tensor) -> Tensor:
        """The difference along an edge."""
        return x_j - x_i

    def aggregate(self, inputs: Tensor, index: Tensor, dim_size: int | None = None) -> Tensor:
        """Sum and maximum."""
        total = scatter(inputs, index, dim=0, dim_size=dim_size, reduce="sum")
        return total + scatter(inputs, index, dim=0, dim_size=dim_size, reduce="max")


class OwnEdgeUpdate(gnn.MessagePassing):
    """Attention by ``edge_updater``."""

    def __init__(self) -> None:
        super().__init__(aggr="add")
        self.lin = nn.Linear(X, H)
        self.score = nn.Linear(2 * H, 1)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        """Node features."""
        x = self.lin(x)
        weight = self.edge_updater(edge_index, x=x)
        return self.propagate(edge_index, x=x, weight=weight)

    def edge_update(
        self, x_i: Tensor, x_j: Tensor, index: Tensor, ptr: Tensor | None, size_i: int | None
    ) -> Tensor:
        """One weight per edge."""
        score = self.score(torch.cat([x_i, x_j], dim=-1)).squeeze(-1)
        return softmax(score, index, ptr, size_i)

    def message(self, x_j: Tensor, weight: Tensor) -> Tensor:
        """Weighted neighbours."""
        return weight.unsqueeze(-1) * x_j


class HeteroSAGE(nn.Module):
    """Two rounds over all kinds of edges."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            gnn.HeteroConv({kind: gnn.SAGEConv((width, width), H) for kind in EDGE_KINDS}) for width in (X, H)
        )
        self.head = nn.Linear(H, 3)

    def forward(
        self, x_dict: dict[str, Tensor], edge_index_dict: dict[tuple[str, str, str], Tensor]
    ) -> Tensor:
        """Scores of papers."""
        for conv in self.convs:
            x_dict = {kind: x.relu() for kind, x in conv(x_dict, edge_index_dict).items()}
        return self.head(x_dict["paper"])


class GCN2(nn.Module):
    """GCNII: every layer also takes the first features."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Linear(X, H)
        self.convs = nn.ModuleList(gnn.GCN2Conv(H, 0.1, 0.5, layer + 1) for layer in range(3))
        self.decode = nn.Linear(H, 3)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        """Class scores."""
        x = first = self.encode(F.dropout(x, 0.5, self.training)).relu()
        for conv in self.convs:
            x = conv(F.dropout(x, 0.5, self.training), first, edge_index).relu()
        return self.decode(x)


class LinkPredictor(nn.Module):
    """Products of embeddings at both ends of other edges."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = gnn.GraphSAGE(X, H, 2, H)

    def forward(self, x: Tensor, edge_index: Tensor, edge_label_index: Tensor) -> Tensor:
        """One score per label edge."""
        z = self.encoder(x, edge_index)
        return (z[edge_label_index[0]] * z[edge_label_index[1]]).sum(dim=-1)


def sequential() -> nn.Module:
    """``Sequential`` with modules, functions and several values."""
    return gnn.Sequential(
        "x, edge_index, batch",
        [
            (nn.Dropout(0.5), "x -> x"),
            (gnn.GCNConv(X, H), "x, edge_index -> x1"),
            nn.ReLU(),
            (gnn.GCNConv(H, H), "x1, edge_index -> x2"),
            nn.ReLU(),
            (lambda first, second: [first, second], "x1, x2 -> xs"),
            (gnn.JumpingKnowledge("cat", H, 2), "xs -> x"),
            (gnn.global_mean_pool, "x, batch -> x"),
            nn.Linear(2 * H, 3),
        ],
    )


def edge_gat() -> nn.Module:
    """GATv2 with edge features."""
    return gnn.GAT(X, H, 3, C, heads=2, v2=True, edge_dim=D, dropout=0.5)


def pna() -> nn.Module:
    """PNA with a standard deviation."""
    return gnn.PNA(
        X,
        H,
        2,
        C,
        aggregators=["mean", "max", "std"],
        scalers=["identity", "amplification"],
        deg=DEGREES,
        dropout=0.5,
    )


def _with_attributes(graph: Graphs) -> dict[str, object]:
    return {"x": graph.x, "edge_index": graph.edge_index, "edge_attr": graph.edge_attr}


MODELS = [
    Case("GCN", lambda: gnn.GCN(X, H, 3, C, norm="batch", dropout=0.5), NODES),
    Case("GCN jk cat", lambda: gnn.GCN(X, H, 3, C, jk="cat", dropout=0.5), WEIGHTED),
    Case("GCN jk lstm", lambda: gnn.GCN(X, H, 3, C, jk="lstm", dropout=0.5), NODES),
    Case(
        "GCN graph norm",
        lambda: gnn.GCN(X, H, 3, C, norm="graph_norm", dropout=0.5),
        takes_named(x="x", edge_index="edge_index", batch="batch", batch_size="num_graphs"),
    ),
    Case("GraphSAGE", lambda: gnn.GraphSAGE(X, H, 3, C, norm="layer", dropout=0.5), NODES),
    Case("GIN", lambda: gnn.GIN(X, H, 3, C, norm="batch", jk="max", dropout=0.5), NODES),
    Case("GAT", lambda: gnn.GAT(X, H, 3, C, heads=2, dropout=0.5), NODES),
    Case("GAT v2 with edge features", edge_gat, _with_attributes),
    Case("PNA", pna, NODES),
    Case("EdgeCNN", lambda: gnn.EdgeCNN(X, H, 2, C, dropout=0.5), NODES),
    Case("Sequential", sequential, BATCHED),
    Case("two-layer GCN", TwoLayerGCN, NODES),
    Case("two-layer GAT", TwoLayerGAT, NODES),
    Case("graph classifier", GraphClassifier, BATCHED),
    Case("TopKPooling classifier", TopKClassifier, BATCHED),
    Case("own MessagePassing", OwnAttentionNet, NODES),
    Case("own aggregate", OwnAggregate, NODES),
    Case("own edge_update", OwnEdgeUpdate, NODES),
    Case("HeteroConv SAGE", HeteroSAGE, HETERO),
    Case("to_hetero", lambda: gnn.to_hetero(gnn.GraphSAGE((X, X), H, 2, C, dropout=0.5), METADATA), HETERO),
    Case("GCNII", GCN2, NODES),
    Case("link prediction", LinkPredictor, takes("x", "edge_index", "label_edges")),
    Case("GraphUNet", lambda: gnn.GraphUNet(X, H, 3, depth=2), NODES),
    Case(
        "AttentiveFP",
        lambda: gnn.AttentiveFP(X, H, 3, edge_dim=D, num_layers=2, num_timesteps=2, dropout=0.5),
        takes("x", "edge_index", "edge_attr", "batch"),
    ),
    Case(
        "DeepGCNLayer",
        lambda: gnn.DeepGCNLayer(gnn.GENConv(H, H), nn.LayerNorm(H), nn.ReLU(), block="res+", dropout=0.5),
        WIDE,
    ),
    Case("PMLP", lambda: gnn.PMLP(X, H, C, 2, dropout=0.5), NODES),
    Case("GAE encoder", lambda: gnn.GAE(gnn.GCNConv(X, H)).encoder, NODES),
    Case("LabelPropagation", lambda: gnn.LabelPropagation(2, 0.5), NODES),
    Case("SGFormer", lambda: models.SGFormer(X, H, C), BATCHED),
    Case("GCN of a sparse matrix", lambda: gnn.GCN(X, H, 2, C, dropout=0.5), takes("x", "adjacency")),
    Case(
        "GraphSAGE of a sparse matrix",
        lambda: gnn.GraphSAGE(X, H, 2, C, dropout=0.5),
        takes("x", "adjacency"),
    ),
]
"""The models that the targets count."""


# --- other models of PyG ----------------------------------------------------------------------------


class Jumping(nn.Module):
    """Layers joined by ``JumpingKnowledge``."""

    def __init__(self, mode: str) -> None:
        super().__init__()
        self.conv1, self.conv2 = gnn.GCNConv(X, H), gnn.GCNConv(H, H)
        self.jump = gnn.JumpingKnowledge(mode, H, 2)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        """Node features."""
        first = self.conv1(x, edge_index).relu()
        return self.jump([first, self.conv2(first, edge_index)])


class HeteroJumping(nn.Module):
    """``HeteroJumpingKnowledge`` over two rounds."""

    def __init__(self, mode: str) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            gnn.HeteroConv({kind: gnn.SAGEConv((width, width), H) for kind in EDGE_KINDS}) for width in (X, H)
        )
        self.jump = models.HeteroJumpingKnowledge(METADATA[0], mode, H, 2)

    def forward(
        self, x_dict: dict[str, Tensor], edge_index_dict: dict[tuple[str, str, str], Tensor]
    ) -> dict[str, Tensor]:
        """Features of every kind of node."""
        layers: dict[str, list[Tensor]] = {kind: [] for kind in x_dict}
        for conv in self.convs:
            x_dict = conv(x_dict, edge_index_dict)
            for kind, x in x_dict.items():
                layers[kind].append(x)
        return self.jump(layers)


class EdgeModel(nn.Module):
    """Edges from both ends, themselves and the graph."""

    def __init__(self) -> None:
        super().__init__()
        self.mlp = mlp(2 * X + D + 2, H)

    def forward(self, source: Tensor, target: Tensor, edge_attr: Tensor, u: Tensor, batch: Tensor) -> Tensor:
        """New edge features."""
        return self.mlp(torch.cat([source, target, edge_attr, u[batch]], dim=1))


class NodeModel(nn.Module):
    """Nodes from what arrives."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.after = mlp(X + H, H), mlp(X + H + 2, H)

    def forward(self, x: Tensor, edge_index: Tensor, edge_attr: Tensor, u: Tensor, batch: Tensor) -> Tensor:
        """New node features."""
        row, col = edge_index
        arriving = self.before(torch.cat([x[row], edge_attr], dim=1))
        mean = scatter(arriving, col, dim=0, dim_size=x.size(0), reduce="mean")
        return self.after(torch.cat([x, mean, u[batch]], dim=1))


class GlobalModel(nn.Module):
    """The graph from its nodes."""

    def __init__(self) -> None:
        super().__init__()
        self.mlp = mlp(2 + H, H)

    def forward(self, x: Tensor, edge_index: Tensor, edge_attr: Tensor, u: Tensor, batch: Tensor) -> Tensor:  # noqa: ARG002
        """New graph features."""
        return self.mlp(torch.cat([u, scatter(x, batch, dim=0, reduce="mean")], dim=1))


class Calls(nn.Module):
    """A method of a model as a model."""

    def __init__(self, model: nn.Module, method: str) -> None:
        super().__init__()
        self.model = model
        self.method = method

    def forward(self, *inputs: Tensor) -> Tensor:
        """What the method returns."""
        return getattr(self.model, self.method)(*inputs)


class MeanAndDeviation(nn.Module):
    """The encoder of a variational autoencoder."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = gnn.GCNConv(X, H)
        self.mean, self.logstd = gnn.GCNConv(H, C), gnn.GCNConv(H, C)

    def forward(self, x: Tensor, edge_index: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and logarithm of the standard deviation."""
        x = self.shared(x, edge_index).relu()
        return self.mean(x, edge_index), self.logstd(x, edge_index)


class Decoded(nn.Module):
    """An encoder, and scores of other edges."""

    def __init__(self, autoencoder: nn.Module) -> None:
        super().__init__()
        self.autoencoder = autoencoder

    def forward(self, x: Tensor, edge_index: Tensor, edge_label_index: Tensor) -> Tensor:
        """One score per label edge."""
        return self.autoencoder.decode(self.autoencoder.encode(x, edge_index), edge_label_index)  # type: ignore[operator]


def infomax() -> nn.Module:
    """Infomax with its first node moved to the end for a corruption that draws nothing."""
    return models.DeepGraphInfomax(
        H,
        encoder=gnn.GCNConv(X, H),
        summary=lambda z, *_: z.mean(dim=0).sigmoid(),
        corruption=lambda x, edge_index: (torch.cat([x[1:], x[:1]]), edge_index),
    )


def temporal_memory() -> nn.Module:
    """TGN's memory of ten nodes."""
    return models.TGNMemory(40, D, H, H, IdentityMessage(D, H, H), LastAggregator())


def _events(graph: Graphs) -> tuple[Data]:
    """Subjects, relations and objects with a history, as RE-Net takes them."""
    count, length = graph.num_nodes, 3
    steps = torch.arange(length).repeat(count)
    owners = torch.arange(count).repeat_interleave(length)
    history = graph.color.repeat_interleave(length)
    return (
        Data(
            sub=graph.color,
            rel=graph.node_type,
            obj=graph.color.flip(0),
            h_sub=history,
            h_sub_t=steps,
            h_sub_batch=owners,
            h_obj=history,
            h_obj_t=steps,
            h_obj_batch=owners,
        ),
    )


def _atoms(graph: Graphs) -> tuple[Tensor, Tensor, Tensor]:
    return graph.color + 1, graph.pos, graph.batch


def gpse(**options: object) -> nn.Module:
    """A small GPSE."""
    return models.GPSE(X, 5, 16, layers_mp=2, num_node_targets=5, num_graph_targets=3, **options)


class PatchedGPSE(nn.Module):
    """GPSE over tensors, without a virtual node."""

    def __init__(self) -> None:
        super().__init__()
        self.model = gpse(virtual_node=False)

    def forward(self, x: Tensor, edge_index: Tensor, batch: Tensor) -> Tensor:
        """Encodings of nodes."""
        data = Data(
            x=x, edge_index=edge_index, batch=batch, y=x[:, :5], y_graph=gnn.global_mean_pool(x[:, :3], batch)
        )
        return self.model(data)[0]


MORE_MODELS = [
    Case("MLP", lambda: gnn.MLP([X, H, H, C], dropout=0.5), takes("x")),
    Case("MLP graph norm", lambda: gnn.MLP([X, H, C], norm="GraphNorm", act="elu"), takes("x", "batch")),
    Case("GCN jk max, act first", lambda: gnn.GCN(X, H, 3, C, jk="max", act="elu", act_first=True), NODES),
    Case("GraphSAGE jk last, no output", lambda: gnn.GraphSAGE(X, H, 3, jk="last"), NODES),
    Case("GIN no output", lambda: gnn.GIN(X, H, 2), NODES),
    Case("GAT elu, averaged", lambda: gnn.GAT(X, H, 2, C, heads=2, concat=False, act="elu"), NODES),
    Case("JumpingKnowledge cat", lambda: Jumping("cat"), NODES),
    Case("JumpingKnowledge max", lambda: Jumping("max"), NODES),
    Case("JumpingKnowledge lstm", lambda: Jumping("lstm"), NODES),
    Case("HeteroJumpingKnowledge cat", lambda: HeteroJumping("cat"), HETERO),
    Case("HeteroJumpingKnowledge max", lambda: HeteroJumping("max"), HETERO),
    Case(
        "MetaLayer",
        lambda: models.MetaLayer(EdgeModel(), NodeModel(), GlobalModel()),
        takes("x", "edge_index", "edge_attr", "graph_attr", "batch"),
    ),
    Case(
        "Node2Vec",
        lambda: models.Node2Vec(torch.tensor([[0, 1, 2], [1, 2, 0]]), H, 3, 2),
        lambda g: (g.color % 3,),
    ),
    Case("DeepGraphInfomax", infomax, NODES),
    Case("InnerProductDecoder", models.InnerProductDecoder, takes("wide", "label_edges")),
    Case("GAE", lambda: models.GAE(gnn.GCNConv(X, H)), NODES),
    Case(
        "GAE decoded",
        lambda: Decoded(models.GAE(gnn.GCNConv(X, H))),
        takes("x", "edge_index", "label_edges"),
    ),
    Case("VGAE", lambda: models.VGAE(MeanAndDeviation()), NODES),
    Case(
        "VGAE decoded",
        lambda: Decoded(models.VGAE(MeanAndDeviation())),
        takes("x", "edge_index", "label_edges"),
    ),
    Case("ARGA", lambda: models.ARGA(gnn.GCNConv(X, H), mlp(H, 1)), NODES),
    Case("ARGVA", lambda: models.ARGVA(MeanAndDeviation(), mlp(C, 1)), NODES),
    Case(
        "SignedGCN",
        lambda: models.SignedGCN(X, H, 2),
        takes("x", "edge_index", "label_edges"),
    ),
    Case("RENet", lambda: models.RENet(5, 3, H, 3), _events),
    Case("GraphUNet of batches", lambda: gnn.GraphUNet(X, H, 3, depth=1, sum_res=False), BATCHED),
    Case("SchNet", lambda: models.SchNet(H, H, 2, 5, cutoff=5.0), _atoms),
    Case("DimeNet", lambda: models.DimeNet(H, 3, 1, 2, 2, 2), _atoms),
    Case("DimeNetPlusPlus", lambda: models.DimeNetPlusPlus(H, 3, 1, 4, 4, 8, 2, 2), _atoms),
    Case("GPSE", PatchedGPSE, BATCHED),
    Case("GPSENodeEncoder", lambda: models.GPSENodeEncoder(H, X, 4, H), takes("wide", "x")),
    Case(
        "MetaPath2Vec",
        lambda: models.MetaPath2Vec(
            {("paper", "by", "author"): torch.tensor([[0, 1, 2], [0, 1, 0]])},
            H,
            [("paper", "by", "author")],
            1,
            2,
        ),
        lambda g: ("paper", g.color % 3),
    ),
    Case(
        "DeepGCNLayer of dense blocks",
        lambda: gnn.DeepGCNLayer(gnn.SAGEConv(H, H), nn.BatchNorm1d(H), nn.ELU(), block="dense"),
        WIDE,
    ),
    Case(
        "DeepGCNLayer of plain blocks",
        lambda: gnn.DeepGCNLayer(gnn.GENConv(H, H), nn.LayerNorm(H), nn.ReLU(), block="res", ckpt_grad=True),
        WIDE,
    ),
    Case("TGNMemory", temporal_memory, lambda g: (torch.arange(g.num_nodes),)),
    Case(
        "LabelPropagation of labels", lambda: gnn.LabelPropagation(2, 0.5), takes("y", "edge_index", "mask")
    ),
    Case(
        "CorrectAndSmooth correcting",
        lambda: Calls(models.CorrectAndSmooth(2, 0.8, 2, 0.8, autoscale=False), "correct"),
        lambda g: (g.x.softmax(-1)[:, :C], g.y[g.mask], g.mask, g.edge_index),
    ),
    Case(
        "CorrectAndSmooth smoothing",
        lambda: Calls(models.CorrectAndSmooth(2, 0.8, 2, 0.8), "smooth"),
        lambda g: (g.x.softmax(-1)[:, :C], g.y[g.mask], g.mask, g.edge_index),
    ),
    Case("RECT_L", lambda: models.RECT_L(X, H, dropout=0.5), WEIGHTED),
    Case(
        "LINKX",
        lambda: models.LINKX(40, X, H, C, 2, num_edge_layers=2, dropout=0.5),
        takes("padded", "edge_index"),
        check_given=True,
    ),
    Case("LightGCN", lambda: models.LightGCN(40, H, 2), takes("edge_index", "label_edges")),
    Case(
        "LightGCN of features",
        lambda: Calls(models.LightGCN(40, H, 2), "get_embedding"),
        takes("edge_index", "edge_weight"),
        check_given=True,
    ),
    Case("MaskLabel added", lambda: models.MaskLabel(C, H), takes("wide", "y", "mask")),
    Case("MaskLabel concatenated", lambda: models.MaskLabel(C, H, "concat"), takes("wide", "y", "mask")),
    Case(
        "GroupAddRev",
        lambda: models.GroupAddRev(gnn.SAGEConv(H // 2, H // 2), num_groups=2),
        WIDE,
    ),
    Case("GNNFF", lambda: models.GNNFF(H, H, 1), _atoms),
    Case("NeuralFingerprint", lambda: models.NeuralFingerprint(X, H, 3, 2), BATCHED),
    Case("ViSNet", lambda: models.ViSNet(num_heads=2, num_layers=1, hidden_channels=H, num_rbf=4), _atoms),
    Case(
        "LPFormer",
        lambda: models.LPFormer(X, H),
        lambda g: (g.label_edges[:, :4], g.x, g.edge_index, g.adjacency.to_sparse_coo()),
    ),
    Case(
        "Polynormer",
        lambda: models.Polynormer(X, H, C, local_layers=2, global_layers=1, heads=2),
        BATCHED,
    ),
    Case("Polynormer local", lambda: models.Polynormer(X, H, C, local_layers=2, local_attn=True), BATCHED),
    Case("ARLinkPredictor", lambda: models.ARLinkPredictor(X, H), takes("x", "label_edges")),
]
"""The other models of PyG, and other configurations."""
