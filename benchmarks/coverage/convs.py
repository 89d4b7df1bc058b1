"""Recipes for convolutions."""

from __future__ import annotations

from torch import nn
from torch_geometric import nn as gnn

from benchmarks.coverage.cases import (
    ATTRIBUTED,
    HETERO,
    NODES,
    TYPED,
    WEIGHTED,
    WIDE,
    Case,
    takes,
)
from benchmarks.coverage.graphs import (
    DEGREES,
    EDGE_FEATURES,
    EDGE_KINDS,
    FEATURES,
    HIDDEN,
    METADATA,
    NODE_TYPES,
    RELATIONS,
)

F, H, D, R = FEATURES, HIDDEN, EDGE_FEATURES, RELATIONS


def mlp(inputs: int, outputs: int) -> nn.Sequential:
    """Linear, ReLU, linear."""
    return nn.Sequential(nn.Linear(inputs, 12), nn.ReLU(), nn.Linear(12, outputs))


def relations_of_all_kinds() -> nn.Module:
    """A different convolution for every kind of edge."""
    papers_to_authors, authors_to_papers, citations = EDGE_KINDS
    return gnn.HeteroConv(
        {
            papers_to_authors: gnn.SAGEConv((F, F), H),
            authors_to_papers: gnn.GATConv((F, F), H, add_self_loops=False),
            citations: gnn.GCNConv(F, H),
        }
    )


CONVS = [
    Case("SimpleConv", lambda: gnn.SimpleConv("mean", combine_root="sum"), NODES),
    Case("GCNConv", lambda: gnn.GCNConv(F, H), NODES),
    Case("GCNConv with weights", lambda: gnn.GCNConv(F, H), WEIGHTED),
    Case("ChebConv", lambda: gnn.ChebConv(F, H, K=3), NODES),
    Case("SAGEConv", lambda: gnn.SAGEConv(F, H, normalize=True, project=True), NODES),
    Case("SAGEConv max", lambda: gnn.SAGEConv(F, H, aggr="max"), NODES),
    Case("SAGEConv lstm", lambda: gnn.SAGEConv(F, H, aggr="lstm"), takes("x", "sorted_edges")),
    Case(
        "SAGEConv of four aggregations",
        lambda: gnn.SAGEConv(F, H, aggr=["mean", "max", "std", "softmax"]),
        NODES,
    ),
    Case("SAGEConv bipartite", lambda: gnn.SAGEConv((F, F), H), lambda g: (g.pair, g.edge_index)),
    Case("GraphConv", lambda: gnn.GraphConv(F, H), WEIGHTED),
    Case("GatedGraphConv", lambda: gnn.GatedGraphConv(H, 2), NODES),
    Case("ResGatedGraphConv", lambda: gnn.ResGatedGraphConv(F, H, edge_dim=D), ATTRIBUTED),
    Case("GATConv", lambda: gnn.GATConv(F, 4, heads=2, dropout=0.5), NODES),
    Case("GATConv with edge features", lambda: gnn.GATConv(F, 4, heads=2, edge_dim=D), ATTRIBUTED),
    Case("GATv2Conv", lambda: gnn.GATv2Conv(F, 4, heads=2, dropout=0.5), NODES),
    Case(
        "TransformerConv",
        lambda: gnn.TransformerConv(F, 4, heads=2, beta=True, dropout=0.5, edge_dim=D),
        ATTRIBUTED,
    ),
    Case("AGNNConv", gnn.AGNNConv, NODES),
    Case("TAGConv", lambda: gnn.TAGConv(F, H, K=2), NODES),
    Case("GINConv", lambda: gnn.GINConv(mlp(F, H), train_eps=True), NODES),
    Case("GINEConv", lambda: gnn.GINEConv(mlp(F, H), edge_dim=D), ATTRIBUTED),
    Case("ARMAConv", lambda: gnn.ARMAConv(F, H, num_stacks=2, num_layers=2, dropout=0.5), NODES),
    Case("SGConv", lambda: gnn.SGConv(F, H, K=2), NODES),
    Case("SSGConv", lambda: gnn.SSGConv(F, H, alpha=0.1, K=2), NODES),
    Case("APPNP", lambda: gnn.APPNP(3, 0.1, dropout=0.5), NODES),
    Case("MFConv", lambda: gnn.MFConv(F, H), NODES),
    Case("RGCNConv with bases", lambda: gnn.RGCNConv(F, H, R, num_bases=2), TYPED),
    Case(
        "RGCNConv with blocks",
        lambda: gnn.RGCNConv(H, H, R, num_blocks=2),
        takes("wide", "edge_index", "edge_type"),
    ),
    Case("FastRGCNConv", lambda: gnn.FastRGCNConv(F, H, R), TYPED),
    Case("RGATConv", lambda: gnn.RGATConv(F, 4, R, heads=2, dropout=0.5), TYPED),
    Case(
        "SignedConv",
        lambda: gnn.SignedConv(F, H, first_aggr=True),
        takes("x", "edge_index", "label_edges"),
    ),
    Case("DNAConv", lambda: gnn.DNAConv(H, heads=2, groups=2, dropout=0.5), takes("history", "edge_index")),
    Case(
        "PointNetConv",
        lambda: gnn.PointNetConv(mlp(F + 3, H), mlp(H, H)),
        takes("x", "pos", "edge_index"),
    ),
    Case("GMMConv", lambda: gnn.GMMConv(F, H, dim=2, kernel_size=3), takes("x", "edge_index", "pseudo")),
    Case(
        "SplineConv",
        lambda: gnn.SplineConv(F, H, dim=2, kernel_size=3),
        takes("x", "edge_index", "pseudo"),
    ),
    Case("NNConv", lambda: gnn.NNConv(F, H, mlp(D, F * H)), ATTRIBUTED),
    Case("CGConv", lambda: gnn.CGConv(F, dim=D, batch_norm=True), ATTRIBUTED),
    Case("EdgeConv", lambda: gnn.EdgeConv(mlp(2 * F, H)), NODES),
    Case("DynamicEdgeConv", lambda: gnn.DynamicEdgeConv(mlp(2 * F, H), k=3), takes("x", "batch")),
    Case("GravNetConv", lambda: gnn.GravNetConv(F, H, 3, 4, k=3), takes("x", "batch")),
    Case("XConv", lambda: gnn.XConv(F, H, dim=3, kernel_size=2), takes("x", "pos", "batch")),
    Case(
        "PPFConv",
        lambda: gnn.PPFConv(mlp(F + 4, H), mlp(H, H)),
        takes("x", "pos", "normals", "edge_index"),
    ),
    Case("FeaStConv", lambda: gnn.FeaStConv(F, H, heads=2), NODES),
    Case("PointTransformerConv", lambda: gnn.PointTransformerConv(F, H), takes("x", "pos", "edge_index")),
    Case("HypergraphConv", lambda: gnn.HypergraphConv(F, H), takes("x", "hyperedges", "hyperedge_weight")),
    Case("LEConv", lambda: gnn.LEConv(F, H), NODES),
    Case(
        "PNAConv",
        lambda: gnn.PNAConv(
            F,
            H,
            ["mean", "min", "max", "std"],
            ["identity", "amplification", "attenuation"],
            DEGREES,
            edge_dim=D,
        ),
        ATTRIBUTED,
    ),
    Case("ClusterGCNConv", lambda: gnn.ClusterGCNConv(F, H), NODES),
    Case("GENConv", lambda: gnn.GENConv(F, H, learn_t=True, edge_dim=D, msg_norm=True), ATTRIBUTED),
    Case("GCN2Conv", lambda: gnn.GCN2Conv(F, 0.1, 0.5, 1), takes("x", "x0", "edge_index")),
    Case("PANConv", lambda: gnn.PANConv(F, H, 2), NODES),
    Case("WLConv", gnn.WLConv, takes("color", "edge_index")),
    Case("WLConvContinuous", gnn.WLConvContinuous, NODES),
    Case("FiLMConv", lambda: gnn.FiLMConv(F, H, num_relations=R), TYPED),
    Case("SuperGATConv", lambda: gnn.SuperGATConv(F, 4, heads=2, dropout=0.5), NODES),
    Case("FAConv", lambda: gnn.FAConv(F, dropout=0.5), takes("x", "x0", "edge_index")),
    Case(
        "EGConv",
        lambda: gnn.EGConv(F, H, aggregators=["sum", "max", "symnorm", "std"], num_heads=4, num_bases=3),
        NODES,
    ),
    Case("PDNConv", lambda: gnn.PDNConv(F, H, D, 8), ATTRIBUTED),
    Case(
        "GeneralConv",
        lambda: gnn.GeneralConv(F, H, in_edge_channels=D, heads=2, attention=True),
        ATTRIBUTED,
    ),
    Case("HGTConv", lambda: gnn.HGTConv(F, H, METADATA, heads=2), HETERO),
    Case(
        "HEATConv",
        lambda: gnn.HEATConv(F, 4, NODE_TYPES, R, 3, D, 5, heads=2, dropout=0.5),
        takes("x", "edge_index", "node_type", "edge_type", "edge_attr"),
    ),
    Case("HeteroConv", relations_of_all_kinds, HETERO),
    Case("HANConv", lambda: gnn.HANConv(F, H, METADATA, heads=2, dropout=0.5), HETERO),
    Case("LGConv", gnn.LGConv, NODES),
    Case(
        "PointGNNConv",
        lambda: gnn.PointGNNConv(mlp(F, 3), mlp(F + 3, H), mlp(H, F)),
        takes("x", "pos", "edge_index"),
    ),
    Case(
        "GPSConv",
        lambda: gnn.GPSConv(H, gnn.GINConv(mlp(H, H)), heads=2, dropout=0.5),
        takes("wide", "edge_index", "batch"),
    ),
    Case("AntiSymmetricConv", lambda: gnn.AntiSymmetricConv(F), NODES),
    Case("DirGNNConv", lambda: gnn.DirGNNConv(gnn.GCNConv(F, H)), NODES),
    Case("MixHopConv", lambda: gnn.MixHopConv(F, H, powers=[0, 1, 2]), NODES),
    Case("MeshCNNConv", lambda: gnn.MeshCNNConv(F, H), takes("x", "mesh")),
    Case("CuGraphSAGEConv", lambda: gnn.CuGraphSAGEConv(F, H), NODES),
    Case("CuGraphGATConv", lambda: gnn.CuGraphGATConv(F, H), NODES),
    Case("CuGraphRGCNConv", lambda: gnn.CuGraphRGCNConv(F, H, R), TYPED),
    Case("FusedGATConv", lambda: gnn.FusedGATConv(F, H, add_self_loops=False), NODES),
]
"""The configurations of the convolutions that the targets count."""

MORE_CONVS = [
    Case("SimpleConv median", lambda: gnn.SimpleConv("median"), NODES),
    Case("SimpleConv of pairs", lambda: gnn.SimpleConv("sum"), lambda g: (g.pair, g.edge_index)),
    Case("GCNConv cached", lambda: gnn.GCNConv(F, H, cached=True), NODES),
    Case("GCNConv improved", lambda: gnn.GCNConv(F, H, improved=True, bias=False), WEIGHTED),
    Case("GCNConv without normalisation", lambda: gnn.GCNConv(F, H, normalize=False), WEIGHTED),
    Case("GCNConv of a sparse matrix", lambda: gnn.GCNConv(F, H), takes("x", "adjacency")),
    Case("GCNConv against the flow", lambda: gnn.GCNConv(F, H, flow="target_to_source"), NODES),
    Case("ChebConv with weights, rw", lambda: gnn.ChebConv(F, H, K=2, normalization="rw"), WEIGHTED),
    Case("SAGEConv add, no root", lambda: gnn.SAGEConv(F, H, aggr="add", root_weight=False), NODES),
    Case("SAGEConv of a sparse matrix", lambda: gnn.SAGEConv(F, H), takes("x", "adjacency")),
    Case("SAGEConv lazy", lambda: gnn.SAGEConv((-1, -1), H), NODES),
    Case(
        "GraphConv mean of pairs",
        lambda: gnn.GraphConv((F, F), H, aggr="mean"),
        lambda g: (g.pair, g.edge_index),
    ),
    Case("GatedGraphConv weighted mean", lambda: gnn.GatedGraphConv(H, 2, aggr="mean"), WEIGHTED),
    Case("ResGatedGraphConv without edges", lambda: gnn.ResGatedGraphConv(F, H), NODES),
    Case(
        "GATConv averaged, residual", lambda: gnn.GATConv(F, H, heads=2, concat=False, residual=True), NODES
    ),
    Case(
        "GATConv of pairs",
        lambda: gnn.GATConv((F, F), 4, heads=2, add_self_loops=False),
        lambda g: (g.pair, g.edge_index),
    ),
    Case(
        "GATv2Conv with edge features",
        lambda: gnn.GATv2Conv(F, 4, heads=2, edge_dim=D, share_weights=True),
        ATTRIBUTED,
    ),
    Case("TransformerConv averaged", lambda: gnn.TransformerConv(F, H, heads=2, concat=False), NODES),
    Case("GINConv mean", lambda: gnn.GINConv(mlp(F, H), eps=0.3, aggr="mean"), NODES),
    Case("GINConv of a sparse matrix", lambda: gnn.GINConv(mlp(F, H)), takes("x", "adjacency")),
    Case(
        "ARMAConv shared", lambda: gnn.ARMAConv(F, H, num_stacks=1, num_layers=3, shared_weights=True), NODES
    ),
    Case("SGConv cached", lambda: gnn.SGConv(F, H, K=2, cached=True), NODES),
    Case("APPNP cached", lambda: gnn.APPNP(3, 0.1, cached=True), WEIGHTED),
    Case("RGCNConv plain", lambda: gnn.RGCNConv(F, H, R), TYPED),
    Case(
        "RGATConv with blocks",
        lambda: gnn.RGATConv(H, 4, R, num_blocks=2),
        takes("wide", "edge_index", "edge_type"),
    ),
    Case("NNConv mean", lambda: gnn.NNConv(F, H, mlp(D, F * H), aggr="mean", root_weight=False), ATTRIBUTED),
    Case("CGConv without edges", lambda: gnn.CGConv(F), NODES),
    Case("EdgeConv mean", lambda: gnn.EdgeConv(mlp(2 * F, H), aggr="mean"), NODES),
    Case(
        "HypergraphConv with attention",
        lambda: gnn.HypergraphConv(F, 4, use_attention=True, heads=2),
        lambda g: {"x": g.x, "hyperedge_index": g.hyperedges, "hyperedge_attr": g.x[:9]},
    ),
    Case(
        "PNAConv with towers",
        lambda: gnn.PNAConv(
            H, H, ["sum", "max"], ["linear", "identity"], DEGREES, towers=2, divide_input=True
        ),
        WIDE,
    ),
    Case("GENConv power", lambda: gnn.GENConv(F, H, aggr="powermean", learn_p=True), NODES),
    Case("FiLMConv of one relation", lambda: gnn.FiLMConv(F, H), NODES),
    Case("SuperGATConv SD", lambda: gnn.SuperGATConv(F, 4, heads=2, attention_type="SD"), NODES),
    Case("EGConv symnorm", lambda: gnn.EGConv(F, H, num_heads=2, num_bases=2), NODES),
    Case(
        "GeneralConv without skip", lambda: gnn.GeneralConv(F, H, skip_linear=False, l2_normalize=True), NODES
    ),
    Case(
        "GPSConv with performer",
        lambda: gnn.GPSConv(H, gnn.SAGEConv(H, H), heads=2, attn_type="performer"),
        takes("wide", "edge_index", "batch"),
    ),
    Case("GPSConv without layer", lambda: gnn.GPSConv(H, None, heads=2, norm="layer_norm"), WIDE),
    Case("DirGNNConv SAGE", lambda: gnn.DirGNNConv(gnn.SAGEConv(F, H), alpha=0.3), NODES),
    Case(
        "HeteroConv max of SAGE",
        lambda: gnn.HeteroConv({kind: gnn.SAGEConv((F, F), H) for kind in EDGE_KINDS}, aggr="max"),
        HETERO,
    ),
]
"""Other configurations of the same classes."""
