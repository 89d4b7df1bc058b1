"""Recipes for aggregations, normalisations and pooling."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch_geometric import nn as gnn
from torch_geometric.data import Data
from torch_geometric.nn import aggr, norm, pool

from benchmarks.coverage.cases import BATCHED, NODES, WIDE, Case, takes
from benchmarks.coverage.convs import mlp
from benchmarks.coverage.graphs import DEGREES, FEATURES, HIDDEN, NODE_TYPES

if TYPE_CHECKING:
    from collections.abc import Callable

F, H = FEATURES, HIDDEN


# --- aggregations -----------------------------------------------------------------------------------


class Readout(nn.Module):
    """Nodes to graphs: linear, aggregation, linear."""

    def __init__(self, aggregation: nn.Module, width: int = H) -> None:
        super().__init__()
        self.encode = nn.Linear(F, H)
        self.aggregation = aggregation
        self.decode = nn.Linear(width, 3)

    def forward(self, x: Tensor, batch: Tensor) -> Tensor:
        """Scores [graphs, 3]."""
        return self.decode(self.aggregation(self.encode(x).relu(), batch))


class BoundedReadout(Readout):
    """A readout that is told the number of graphs and the largest number of nodes."""

    def forward(self, x: Tensor, batch: Tensor) -> Tensor:
        """Scores [graphs, 3]."""
        pooled = self.aggregation(self.encode(x).relu(), batch, dim_size=4, max_num_elements=40)
        return self.decode(pooled)


def in_layer(aggregation: Callable[[], Any], **options: Any) -> Callable[[], nn.Module]:
    """The aggregation inside of a message passing layer."""
    return lambda: gnn.SAGEConv(F, H, aggr=aggregation(), **options)


def of_graphs(aggregation: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    """The aggregation as a readout."""
    return lambda: Readout(aggregation())


READOUT = takes("x", "batch")
SORTED = takes("x", "sorted_edges")

AGGREGATIONS = [
    *(
        Case(f"{name} of graphs", of_graphs(getattr(aggr, name)), READOUT)
        for name in (
            "SumAggregation",
            "MeanAggregation",
            "MaxAggregation",
            "MinAggregation",
            "MulAggregation",
            "VarAggregation",
            "StdAggregation",
            "SoftmaxAggregation",
            "PowerMeanAggregation",
            "MedianAggregation",
            "VariancePreservingAggregation",
        )
    ),
    *(
        Case(f"{name} of messages", in_layer(getattr(aggr, name)), NODES)
        for name in (
            "SumAggregation",
            "MeanAggregation",
            "MaxAggregation",
            "MinAggregation",
            "MulAggregation",
            "VarAggregation",
            "StdAggregation",
            "MedianAggregation",
            "VariancePreservingAggregation",
        )
    ),
    Case(
        "SoftmaxAggregation learned", in_layer(lambda: aggr.SoftmaxAggregation(learn=True, channels=F)), NODES
    ),
    Case("PowerMeanAggregation learned", in_layer(lambda: aggr.PowerMeanAggregation(learn=True)), NODES),
    Case(
        "QuantileAggregation of graphs",
        lambda: Readout(aggr.QuantileAggregation([0.25, 0.75]), 2 * H),
        READOUT,
    ),
    Case("QuantileAggregation of messages", in_layer(lambda: aggr.QuantileAggregation(0.5)), NODES),
    Case(
        "MultiAggregation of graphs",
        lambda: Readout(aggr.MultiAggregation(["mean", "max", "std"]), 3 * H),
        READOUT,
    ),
    Case(
        "MultiAggregation summed", in_layer(lambda: aggr.MultiAggregation(["mean", "min"], mode="sum")), NODES
    ),
    Case(
        "MultiAggregation attended",
        in_layer(
            lambda: aggr.MultiAggregation(
                ["mean", "max"],
                mode="attn",
                mode_kwargs={"in_channels": F, "out_channels": F, "num_heads": 1},
            )
        ),
        NODES,
    ),
    Case(
        "DegreeScalerAggregation",
        lambda: Readout(
            aggr.DegreeScalerAggregation(["mean", "std"], ["identity", "amplification"], DEGREES), 4 * H
        ),
        READOUT,
    ),
    Case("LSTMAggregation of graphs", lambda: Readout(aggr.LSTMAggregation(H, H)), READOUT),
    Case("LSTMAggregation of messages", in_layer(lambda: aggr.LSTMAggregation(F, F)), SORTED),
    Case("GRUAggregation of graphs", lambda: Readout(aggr.GRUAggregation(H, H)), READOUT),
    Case("GRUAggregation of messages", in_layer(lambda: aggr.GRUAggregation(F, F)), SORTED),
    Case("Set2Set", lambda: Readout(aggr.Set2Set(H, 2), 2 * H), READOUT),
    Case("SortAggregation", lambda: Readout(aggr.SortAggregation(3), 3 * H), READOUT),
    Case("GraphMultisetTransformer", lambda: Readout(aggr.GraphMultisetTransformer(H, 3, heads=2)), READOUT),
    Case(
        "AttentionalAggregation",
        lambda: Readout(aggr.AttentionalAggregation(nn.Linear(H, 1), nn.Linear(H, H))),
        READOUT,
    ),
    Case(
        "EquilibriumAggregation",
        lambda: Readout(aggr.EquilibriumAggregation(H, H, [H], grad_iter=2)),
        READOUT,
    ),
    Case("MLPAggregation", lambda: Readout(aggr.MLPAggregation(H, H, 40, num_layers=1)), READOUT),
    Case("DeepSetsAggregation", lambda: Readout(aggr.DeepSetsAggregation(mlp(H, H), mlp(H, H))), READOUT),
    Case(
        "SetTransformerAggregation",
        lambda: Readout(aggr.SetTransformerAggregation(H, heads=2, layer_norm=True)),
        READOUT,
    ),
    Case("LCMAggregation of graphs", lambda: Readout(aggr.LCMAggregation(H, H)), READOUT),
    Case("LCMAggregation of sorted messages", in_layer(lambda: aggr.LCMAggregation(F, F)), SORTED),
    Case(
        "PatchTransformerAggregation",
        lambda: Readout(aggr.PatchTransformerAggregation(H, H, 2, H, heads=2, aggr=["mean", "max"])),
        READOUT,
    ),
    Case("SortAggregation bounded", lambda: BoundedReadout(aggr.SortAggregation(3), 3 * H), READOUT),
]


# --- normalisations ---------------------------------------------------------------------------------


class Normalised(nn.Module):
    """A layer, a normalisation that takes what ``extra`` says, ReLU, a layer."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.first = gnn.GCNConv(F, H)
        self.norm = layer
        self.second = gnn.GCNConv(H, 3)

    def forward(self, x: Tensor, edge_index: Tensor, extra: Tensor | None = None) -> Tensor:
        """Scores [nodes, 3]."""
        x = self.first(x, edge_index)
        x = self.norm(x) if extra is None else self.norm(x, extra)
        return self.second(x.relu(), edge_index)


class MessageNormalised(nn.Module):
    """``MessageNorm`` of an aggregate, added to its node."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = gnn.GraphConv(H, H)
        self.norm = norm.MessageNorm(learn_scale=True)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        """Node features [nodes, H]."""
        return x + self.norm(x, self.conv(x, edge_index))


NORMS = [
    Case("BatchNorm", lambda: Normalised(norm.BatchNorm(H)), NODES),
    Case(
        "BatchNorm without statistics",
        lambda: Normalised(norm.BatchNorm(H, track_running_stats=False)),
        NODES,
    ),
    Case("BatchNorm of one row too", lambda: Normalised(norm.BatchNorm(H, allow_single_element=True)), NODES),
    Case(
        "HeteroBatchNorm",
        lambda: Normalised(norm.HeteroBatchNorm(H, NODE_TYPES)),
        takes("x", "edge_index", "node_type"),
    ),
    Case("InstanceNorm", lambda: Normalised(norm.InstanceNorm(H, affine=True)), BATCHED),
    Case("InstanceNorm of one graph", lambda: Normalised(norm.InstanceNorm(H)), NODES),
    Case(
        "InstanceNorm with statistics",
        lambda: Normalised(norm.InstanceNorm(H, track_running_stats=True)),
        BATCHED,
    ),
    Case("LayerNorm of graphs", lambda: Normalised(norm.LayerNorm(H)), BATCHED),
    Case("LayerNorm of one graph", lambda: Normalised(norm.LayerNorm(H)), NODES),
    Case("LayerNorm of nodes", lambda: Normalised(norm.LayerNorm(H, mode="node")), NODES),
    Case(
        "HeteroLayerNorm",
        lambda: Normalised(norm.HeteroLayerNorm(H, NODE_TYPES)),
        takes("x", "edge_index", "node_type"),
    ),
    Case("GraphNorm", lambda: Normalised(norm.GraphNorm(H)), BATCHED),
    Case("GraphNorm of one graph", lambda: Normalised(norm.GraphNorm(H)), NODES),
    Case("GraphSizeNorm", lambda: Normalised(norm.GraphSizeNorm()), BATCHED),
    Case("PairNorm", lambda: Normalised(norm.PairNorm()), BATCHED),
    Case(
        "PairNorm of one graph, individually",
        lambda: Normalised(norm.PairNorm(scale_individually=True)),
        NODES,
    ),
    Case("MeanSubtractionNorm", lambda: Normalised(norm.MeanSubtractionNorm()), BATCHED),
    Case("MeanSubtractionNorm of one graph", lambda: Normalised(norm.MeanSubtractionNorm()), NODES),
    Case("MessageNorm", MessageNormalised, WIDE),
    Case("DiffGroupNorm", lambda: Normalised(norm.DiffGroupNorm(H, 3)), NODES),
]


# --- pooling ----------------------------------------------------------------------------------------


class Function(nn.Module):
    """A function between two linear layers, called with the features and the other inputs."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.encode = nn.Linear(F, H)
        self.function = function
        self.decode = nn.Linear(H, 3)

    def forward(self, x: Tensor, *others: Tensor) -> Tensor:
        """Scores [pooled rows, 3]."""
        return self.decode(self.function(self.encode(x).relu(), *others))


class Coarsening(nn.Module):
    """A layer, a pooling layer whose first results are features and edges, a layer, a readout."""

    def __init__(self, layer: nn.Module, batch_at: int) -> None:
        super().__init__()
        self.first = gnn.GraphConv(F, H)
        self.pool = layer
        self.batch_at = batch_at
        self.second = gnn.GraphConv(H, 3)

    def forward(self, x: Tensor, edge_index: Tensor, batch: Tensor) -> Tensor:
        """Scores [graphs, 3]."""
        x = self.first(x, edge_index).relu()
        pooled = self.pool(x, edge_index, batch=batch)
        x, edge_index, batch = pooled[0], pooled[1], pooled[self.batch_at]
        return gnn.global_mean_pool(self.second(x, edge_index), batch)


def of_data(function: Callable[[Data], Data]) -> Callable[[Tensor, Tensor], Tensor]:
    """A pooling function of ``Data`` as one of tensors."""
    return lambda x, edge_index: function(Data(x=x, edge_index=edge_index)).x


def of_clusters(
    function: Callable[[Tensor, Data], Data],
) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """A pooling function of clusters and ``Data`` as one of tensors."""

    def pooled(x: Tensor, edge_index: Tensor, batch: Tensor, cluster: Tensor) -> Tensor:
        return function(cluster, Data(x=x, edge_index=edge_index, batch=batch)).x

    return pooled


def by_graph(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    """Features, aggregated over edges that ``function`` makes of the features."""
    return lambda x, batch: gnn.SimpleConv("mean")(x, function(x, batch))


class Memory(nn.Module):
    """``MemPooling`` between two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Linear(F, H)
        self.pool = pool.MemPooling(H, H, heads=2, num_clusters=3)

    def forward(self, x: Tensor, batch: Tensor) -> tuple[Tensor, Tensor]:
        """Clusters of every graph, and the assignment."""
        return self.pool(self.encode(x).relu(), batch)


class PathPooling(nn.Module):
    """``PANPooling`` of what its convolution returns."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.pool = gnn.PANConv(F, H, 2), pool.PANPooling(H)

    def forward(self, x: Tensor, edge_index: Tensor, batch: Tensor) -> Tensor:
        """Scores of graphs."""
        x, paths = self.conv(x, edge_index)
        x, _, _, batch, _, _ = self.pool(x, paths, batch)
        return gnn.global_mean_pool(x, batch)


CLUSTERED = takes("x", "edge_index", "batch", "clusters")

POOLING = [
    Case("global_add_pool", lambda: Function(pool.global_add_pool), READOUT),
    Case("global_mean_pool", lambda: Function(pool.global_mean_pool), READOUT),
    Case("global_max_pool", lambda: Function(pool.global_max_pool), READOUT),
    Case(
        "global_mean_pool of one graph",
        lambda: Function(lambda x: pool.global_mean_pool(x, None)),
        takes("x"),
    ),
    Case(
        "global_max_pool of one graph", lambda: Function(lambda x: pool.global_max_pool(x, None)), takes("x")
    ),
    Case("TopKPooling", lambda: Coarsening(pool.TopKPooling(H, ratio=0.5), 3), BATCHED),
    Case("TopKPooling by score", lambda: Coarsening(pool.TopKPooling(H, min_score=0.1), 3), BATCHED),
    Case("SAGPooling", lambda: Coarsening(pool.SAGPooling(H, ratio=0.5), 3), BATCHED),
    Case("EdgePooling", lambda: Coarsening(pool.EdgePooling(H), 2), BATCHED),
    Case("ClusterPooling", lambda: Coarsening(pool.ClusterPooling(H), 2), BATCHED),
    Case("ASAPooling", lambda: Coarsening(pool.ASAPooling(H, ratio=0.5), 3), BATCHED),
    Case("PANPooling", PathPooling, BATCHED),
    Case("MemPooling", Memory, READOUT),
    Case("max_pool", lambda: Function(of_clusters(pool.max_pool)), CLUSTERED),
    Case("avg_pool", lambda: Function(of_clusters(pool.avg_pool)), CLUSTERED),
    Case(
        "max_pool_x",
        lambda: Function(lambda x, batch, c: pool.max_pool_x(c, x, batch)[0]),
        takes("x", "batch", "clusters"),
    ),
    Case(
        "avg_pool_x",
        lambda: Function(lambda x, batch, c: pool.avg_pool_x(c, x, batch)[0]),
        takes("x", "batch", "clusters"),
    ),
    Case("max_pool_neighbor_x", lambda: Function(of_data(pool.max_pool_neighbor_x)), NODES),
    Case("avg_pool_neighbor_x", lambda: Function(of_data(pool.avg_pool_neighbor_x)), NODES),
    Case(
        "graclus",
        lambda: Function(
            lambda x, e: pool.max_pool_x(
                pool.graclus(e, num_nodes=x.size(0)), x, x.new_zeros(x.size(0)).long()
            )[0]
        ),
        NODES,
    ),
    Case(
        "voxel_grid",
        lambda: Function(
            lambda x, pos, batch: pool.max_pool_x(pool.voxel_grid(pos, 0.5, batch), x, batch)[0]
        ),
        takes("x", "pos", "batch"),
    ),
    Case("fps", lambda: Function(lambda x, batch: x[pool.fps(x, batch, random_start=False)]), READOUT),
    Case("knn", lambda: Function(lambda x, batch: x[pool.knn(x, x, 3, batch, batch)[1]]), READOUT),
    Case("knn_graph", lambda: Function(by_graph(lambda x, batch: pool.knn_graph(x, 3, batch))), READOUT),
    Case(
        "approx_knn", lambda: Function(lambda x, batch: x[pool.approx_knn(x, x, 3, batch, batch)[1]]), READOUT
    ),
    Case(
        "approx_knn_graph",
        lambda: Function(by_graph(lambda x, batch: pool.approx_knn_graph(x, 3, batch))),
        READOUT,
    ),
    Case("radius", lambda: Function(lambda x, batch: x[pool.radius(x, x, 1.0, batch, batch)[1]]), READOUT),
    Case(
        "radius_graph", lambda: Function(by_graph(lambda x, batch: pool.radius_graph(x, 1.0, batch))), READOUT
    ),
    Case("nearest", lambda: Function(lambda x, batch: x[pool.nearest(x, x, batch, batch)]), READOUT),
]
