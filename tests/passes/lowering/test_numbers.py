"""Lowered models compute what the models compute, on graphs that they were not lowered with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch_geometric import nn as gnn
from torch_geometric.utils import (
    add_self_loops,
    coalesce,
    degree,
    remove_self_loops,
    scatter,
    softmax,
    to_undirected,
)

import gnnquant
from tests.passes.lowering.helpers import TOLERANCE, largest_difference
from tests.zoo import mlp, random_graph

if TYPE_CHECKING:
    from collections.abc import Callable

SIZES = ((20, 64), (33, 150), (12, 0))
DEGREES = torch.tensor([2, 5, 9, 6, 2, 1])
RELATIONS = 4


class Inputs:
    """A graph with everything that layers ask for."""

    def __init__(self, num_nodes: int, num_edges: int) -> None:
        graph = random_graph(num_nodes, num_edges, seed=num_nodes)
        generator = torch.Generator().manual_seed(num_nodes)
        self.x, self.edges, self.weight, self.batch = graph
        self.wide = torch.randn(num_nodes, 8, generator=generator)
        self.attributes = torch.randn(num_edges, 3, generator=generator)
        self.kinds = torch.arange(num_edges) % RELATIONS
        self.node_kinds = torch.arange(num_nodes) % 3
        self.position = torch.randn(num_nodes, 3, generator=generator)
        self.normal = functional.normalize(torch.randn(num_nodes, 3, generator=generator))
        self.history = torch.randn(num_nodes, 3, 8, generator=generator)
        self.pseudo = torch.rand(num_edges, 2, generator=generator)
        self.hyperedges = torch.stack([self.edges[0], torch.arange(num_edges) % 9])

    def __call__(self, *names: str) -> tuple[Any, ...]:
        return tuple(getattr(self, name) for name in names)


PLAIN, WEIGHTED, ATTRIBUTED, TYPED = (
    ("x", "edges", *more) for more in ((), ("weight",), ("attributes",), ("kinds",))
)
LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[str, ...]]] = {
    "GCN": (lambda: gnn.GCNConv(7, 6), PLAIN),
    "GCN weighted": (lambda: gnn.GCNConv(7, 6), WEIGHTED),
    "GCN improved": (lambda: gnn.GCNConv(7, 6, improved=True), PLAIN),
    "GCN improved, weighted": (lambda: gnn.GCNConv(7, 6, improved=True), WEIGHTED),
    "GCN to sources": (lambda: gnn.GCNConv(7, 6, flow="target_to_source"), WEIGHTED),
    "GCN without loops": (lambda: gnn.GCNConv(7, 6, add_self_loops=False), PLAIN),
    "Cheb": (lambda: gnn.ChebConv(7, 6, K=3), PLAIN),
    "Cheb weighted": (lambda: gnn.ChebConv(7, 6, K=3, normalization="rw"), WEIGHTED),
    "SAGE": (lambda: gnn.SAGEConv(7, 6, normalize=True, project=True), PLAIN),
    "SAGE aggregations": (lambda: gnn.SAGEConv(7, 6, aggr=["mean", "max", "std", "softmax", "min"]), PLAIN),
    "GraphConv": (lambda: gnn.GraphConv(7, 6, aggr="max"), WEIGHTED),
    "GatedGraph": (lambda: gnn.GatedGraphConv(8, 2), PLAIN),
    "ResGated": (lambda: gnn.ResGatedGraphConv(7, 6, edge_dim=3), ATTRIBUTED),
    "GAT": (lambda: gnn.GATConv(7, 4, heads=2), PLAIN),
    "GAT edges": (lambda: gnn.GATConv(7, 4, heads=2, edge_dim=3), ATTRIBUTED),
    "GAT edges, filled": (lambda: gnn.GATConv(7, 4, edge_dim=3, fill_value=0.5), ATTRIBUTED),
    "GATv2": (lambda: gnn.GATv2Conv(7, 4, heads=2, concat=False), PLAIN),
    "Transformer": (lambda: gnn.TransformerConv(7, 4, heads=2, beta=True, edge_dim=3), ATTRIBUTED),
    "AGNN": (gnn.AGNNConv, PLAIN),
    "TAG": (lambda: gnn.TAGConv(7, 6, K=2), PLAIN),
    "GINE": (lambda: gnn.GINEConv(mlp(7, 6), edge_dim=3), ATTRIBUTED),
    "ARMA": (lambda: gnn.ARMAConv(7, 6, num_stacks=2, num_layers=2), PLAIN),
    "MF": (lambda: gnn.MFConv(7, 6), PLAIN),
    "RGCN": (lambda: gnn.RGCNConv(7, 6, RELATIONS, num_bases=2), TYPED),
    "RGCN fast": (lambda: gnn.FastRGCNConv(7, 6, RELATIONS), TYPED),
    "RGAT": (lambda: gnn.RGATConv(7, 4, RELATIONS, heads=2), TYPED),
    "FiLM": (lambda: gnn.FiLMConv(7, 6, num_relations=RELATIONS), TYPED),
    "Signed": (lambda: gnn.SignedConv(7, 6, first_aggr=True), ("x", "edges", "edges")),
    "DNA": (lambda: gnn.DNAConv(8, heads=2, groups=2), ("history", "edges")),
    "PointNet": (lambda: gnn.PointNetConv(mlp(10, 6), mlp(6, 6)), ("x", "position", "edges")),
    "PPF": (lambda: gnn.PPFConv(mlp(11, 6), mlp(6, 6)), ("x", "position", "normal", "edges")),
    "GMM": (lambda: gnn.GMMConv(7, 6, dim=2, kernel_size=3), ("x", "edges", "pseudo")),
    "NN": (lambda: gnn.NNConv(7, 6, mlp(3, 42)), ATTRIBUTED),
    "CG": (lambda: gnn.CGConv(7, dim=3, batch_norm=True), ATTRIBUTED),
    "Edge": (lambda: gnn.EdgeConv(mlp(14, 6)), PLAIN),
    "FeaSt": (lambda: gnn.FeaStConv(7, 6, heads=2), PLAIN),
    "Hypergraph": (lambda: gnn.HypergraphConv(7, 6), ("x", "hyperedges")),
    "LE": (lambda: gnn.LEConv(7, 6), WEIGHTED),
    "PNA": (
        lambda: gnn.PNAConv(7, 6, ["mean", "min", "max", "std"], ["identity", "attenuation"], DEGREES),
        PLAIN,
    ),
    "ClusterGCN": (lambda: gnn.ClusterGCNConv(7, 6, diag_lambda=0.5), PLAIN),
    "GEN": (lambda: gnn.GENConv(7, 6, learn_t=True, edge_dim=3, msg_norm=True), ATTRIBUTED),
    "GCN2": (lambda: gnn.GCN2Conv(7, 0.1, 0.5, 1), ("x", "x", "edges")),
    "WL": (gnn.WLConvContinuous, PLAIN),
    "SuperGAT": (lambda: gnn.SuperGATConv(7, 4, heads=2), PLAIN),
    "FA": (lambda: gnn.FAConv(7), ("x", "x", "edges")),
    "EG": (
        lambda: gnn.EGConv(7, 8, aggregators=["sum", "max", "symnorm", "std"], num_heads=4, num_bases=3),
        PLAIN,
    ),
    "PDN": (lambda: gnn.PDNConv(7, 6, 3, 8), ATTRIBUTED),
    "HEAT": (
        lambda: gnn.HEATConv(7, 4, 3, RELATIONS, 3, 3, 5, heads=2),
        ("x", "edges", "node_kinds", "kinds", "attributes"),
    ),
    "DirGNN": (lambda: gnn.DirGNNConv(gnn.GCNConv(7, 6)), PLAIN),
    "AntiSymmetric": (lambda: gnn.AntiSymmetricConv(7), PLAIN),
    "GraphNorm": (lambda: gnn.GraphNorm(7), ("x", "batch")),
    "InstanceNorm": (lambda: gnn.InstanceNorm(7), ("x", "batch")),
    "LayerNorm": (lambda: gnn.LayerNorm(7), ("x", "batch")),
    "PairNorm": (gnn.PairNorm, ("x",)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers(name: str) -> None:
    build, fields = LAYERS[name]
    torch.manual_seed(0)
    model = build()
    first, *others = (Inputs(*size)(*fields) for size in SIZES)
    if name in {"Hypergraph", "LayerNorm", "GraphNorm", "InstanceNorm", "Cheb", "Cheb weighted"}:
        others.pop()  # eager PyG fails without edges, or means over nothing are not numbers
    assert largest_difference(model, first, *others) < TOLERANCE


class Function(nn.Module):
    """A function as a model."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function
        self.weight = nn.Parameter(torch.linspace(-1, 1, 12).view(3, 4))

    def forward(self, x: Tensor, edge_index: Tensor) -> Any:
        return self.function(self, x, edge_index)


def _attention(model: Function, x: Tensor, edge_index: Tensor) -> Tensor:
    row, col = edge_index
    score = functional.leaky_relu((x[row] * x[col]).sum(-1), 0.2)
    return scatter(softmax(score, row, num_nodes=x.size(0)).unsqueeze(-1) * x[col], row, 0, x.size(0))


def _looped(model: Function, x: Tensor, edge_index: Tensor) -> Tensor:
    edge_index, weight = add_self_loops(edge_index, x[edge_index[0], 0], 2.0, x.size(0))
    out = scatter(weight.view(-1, 1) * x[edge_index[0]], edge_index[1], 0, x.size(0), "max")
    return torch.cat([out, degree(edge_index[1], x.size(0)).view(-1, 1).pow(-0.5)], dim=-1)


def _own_loops(model: Function, x: Tensor, edge_index: Tensor) -> Tensor:
    loops = torch.arange(x.size(0))
    edge_index = torch.cat([edge_index, torch.stack([loops, loops])], dim=1)
    return scatter(x[edge_index[0]] - x[edge_index[1]], edge_index[1], 0, x.size(0), "min")


def _changed_between(model: Function, x: Tensor, edge_index: Tensor) -> Tensor:
    edge_index, weight = remove_self_loops(edge_index, x[edge_index[0], 0])
    edge_index, weight = add_self_loops(edge_index, weight.exp(), "mean", x.size(0))
    return scatter(weight, edge_index[1], 0, x.size(0))


def _both_directions(model: Function, x: Tensor, edge_index: Tensor) -> tuple[Tensor, Tensor]:
    difference = (x[edge_index[0]] - x[edge_index[1]]).tanh()
    into = scatter(difference, edge_index[1], 0, x.size(0), "mean")
    return into, scatter(difference, edge_index[0], 0, x.size(0), "mul")


def _masked(model: Function, x: Tensor, edge_index: Tensor) -> Tensor:
    kept = edge_index[:, edge_index[0] < edge_index[1]]
    return scatter(x.index_select(0, kept[0]), kept[1], 0, x.size(0), "sum")


def _outer(model: Function, x: Tensor, edge_index: Tensor) -> Tensor:
    return x @ (x.t() @ x) / x.size(0) + torch.einsum("nf,ng->fg", x, x).sum()


def _merged_edges(model: Function, x: Tensor, edge_index: Tensor) -> Tensor:
    edges, weight = coalesce(edge_index % 7, x[edge_index[0]], num_nodes=7, reduce="mean")
    return scatter(weight, edges[1], 0, 7, "max")


ACTIVATIONS = (
    *(functional.gelu, functional.silu, functional.softplus, functional.elu, functional.mish),
    *(functional.hardswish, functional.logsigmoid, functional.selu, torch.erf, torch.sign, torch.ceil),
)
FUNCTIONS: dict[str, Callable[..., Any]] = {
    "attention over sources": _attention,
    "loops by hand": _looped,
    "loops by cat": _own_loops,
    "loops changed twice": _changed_between,
    "both directions": _both_directions,
    "filtered edges": _masked,
    "products over rows": _outer,
    "edge values out": lambda m, x, e: (x[e[0]] * x[e[1]]).sum(-1),
    "edge values of a sum": lambda m, x, e: scatter(x[e[0]], e[1], 0, x.size(0))[e[0]] * x[e[1]],
    "slices": lambda m, x, e: torch.cat([x[1:, :2], x[:-1, 2:4]], dim=1) + x[-1, :4],
    "every second row": lambda m, x, e: x[::2, [3, 0]].flip(0),
    "heads": lambda m, x, e: (x[:, :6].view(-1, 2, 3).transpose(0, 1) @ m.weight).mean(0),
    "rows of heads": lambda m, x, e: (x[:, :6].reshape(-1, 3) @ m.weight).view(x.size(0), -1).softmax(-1),
    "heads as blocks": lambda m, x, e: (
        x[:, :6].view(-1, 2, 3).transpose(0, 1).reshape(-1, 3).exp().view(2, -1, 3)[1]
    ),
    "broadcast": lambda m, x, e: x[:, :4].unsqueeze(1) * m.weight + x.mean(0, keepdim=True)[:, None, :4],
    "statistics": lambda m, x, e: (x - x.mean(0)) / (x.std(0) + 1) + x.var(1, keepdim=True) + x.max(),
    "activations": lambda m, x, e: [function(x) for function in ACTIVATIONS],
    "powers": lambda m, x, e: (x.abs() + 1) ** 0.5 + x**3 + (x * x + 1).pow(-1.5) + (x * x + 1) ** 0.3,
    "angles": lambda m, x, e: torch.atan2(x[:, :3], x[:, 3:6]) + torch.cross(x[:, :3], x[:, 3:6], dim=1),
    "masks": lambda m, x, e: torch.where((x > 0) & ~(x > 1), x, x.new_zeros(())).masked_fill(x < -1, 2.0),
    "added rows": lambda m, x, e: torch.zeros_like(x).index_add(0, e[1], x[e[0]]),
    "copied rows": lambda m, x, e: (x * 2).index_copy(0, e[1], x[e[0]] * 0 + 1),
    "one hot": lambda m, x, e: functional.one_hot(e[0] % 5, 5).float() * x[e[1], :5],
    "lookup": lambda m, x, e: m.weight[e[0] % 3] + x[e[0], :4],
    "degrees": lambda m, x, e: 1.0 / (1.0 + torch.bincount(e[1], minlength=x.size(0)).float()) * x[:, 0],
    "waves": lambda m, x, e: (x * 50).sin() + (x * 50).cos(),
    "clusters": lambda m, x, e: scatter(x[e[0]], (e[1] // 2).unique(return_inverse=True)[1]),
    "undirected": lambda m, x, e: scatter(x[to_undirected(e)[0]], to_undirected(e)[1], 0, x.size(0)),
    "merged edges": _merged_edges,
    "last graph": lambda m, x, e: x[: e[1].sort()[0][-1] + 1],
    "sorted": lambda m, x, e: x[e[1].sort()[0]] + x[e[1][e[1].argsort()]],
    "normalised": lambda m, x, e: functional.normalize(x, dim=-1) + x.norm(p=1, dim=1, keepdim=True),
    "log softmax": lambda m, x, e: x.log_softmax(0) + x.log_softmax(-1) + x.logsumexp(1, keepdim=True),
    "stacked": lambda m, x, e: torch.stack([x, x * 2, -x], dim=-1).max(dim=-1)[0],
    "dictionary": lambda m, x, e: {"a": x * 2, "b": (x.sum(0), [x.mean()])},
}  # fmt: skip


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions(name: str) -> None:
    first, second = (Inputs(*size)(*PLAIN) for size in SIZES[:2])
    assert largest_difference(Function(FUNCTIONS[name]), first, second) < TOLERANCE


class Embedded(nn.Module):
    """A table in place of node features: the number of nodes is the model's."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(20, 7))
        self.conv = gnn.GCNConv(7, 6)
        self.back = gnn.LGConv()

    def forward(self, edge_index: Tensor) -> Tensor:
        return (
            self.conv(self.table, edge_index) + self.back(self.table, edge_index)[:, :6] * self.table[:, :6]
        )


def test_tables_in_place_of_features() -> None:
    torch.manual_seed(0)
    model = Embedded().eval()
    edges = Inputs(*SIZES[0]).edges
    assert largest_difference(model, (edges,), (edges.flip(0),)) < TOLERANCE
    converted = gnnquant.convert(model, (edges,), bits=8)
    gnnquant.calibrate(converted, [(edges,)])
    compiled = gnnquant.compile(converted, (edges,), target="reference")
    with torch.no_grad():
        wanted = converted.eval()(edges)
    assert torch.allclose(torch.as_tensor(compiled(edges)), wanted, atol=1e-4)


def test_bipartite_attention_with_loops() -> None:
    torch.manual_seed(0)
    calls = [((i.x, i.x[:-2]), i.edges % (i.x.size(0) - 2)) for i in (Inputs(*size) for size in SIZES[:2])]
    assert largest_difference(gnn.GATConv((7, 7), 4, heads=2), *calls) < TOLERANCE


def test_sources_that_are_never_read_may_be_any() -> None:
    class Pool(nn.Module):
        def forward(self, values: Tensor, edge_index: Tensor, y: Tensor) -> Tensor:
            return scatter(values.exp(), edge_index[1], 0, y.size(0)) + y

    def inputs(size: tuple[int, int]) -> tuple[Tensor, ...]:
        i = Inputs(*size)
        return i.attributes, torch.stack([i.edges[0] + 1000, i.edges[1]]), i.position

    assert largest_difference(Pool(), inputs(SIZES[0]), inputs(SIZES[1])) < TOLERANCE


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[str, ...]]] = {
    "GraphNorm GCN": (lambda: gnn.GCN(7, 8, 2, 5, norm="graph_norm", jk="lstm"), PLAIN),
    "GraphSAGE": (lambda: gnn.GraphSAGE(7, 8, 3, 5, norm="layer", jk="max"), PLAIN),
    "EdgeCNN": (lambda: gnn.EdgeCNN(7, 8, 2, 5), PLAIN),
    "AttentiveFP": (
        lambda: gnn.AttentiveFP(7, 8, 3, edge_dim=3, num_layers=2, num_timesteps=2),
        ("x", "edges", "attributes", "batch"),
    ),
    "DeepGCN": (
        lambda: gnn.DeepGCNLayer(gnn.GENConv(8, 8), nn.LayerNorm(8), nn.ReLU(), block="res+"),
        ("wide", "edges"),
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_models(name: str) -> None:
    build, fields = MODELS[name]
    torch.manual_seed(0)
    first, second = (Inputs(*size)(*fields) for size in SIZES[:2])
    assert largest_difference(build(), first, second) < TOLERANCE


QUANTIZED = ("GCN", "GAT edges", "RGCN", "EG", "Edge", "NN", "DNA", "MF", "Hypergraph", "PNA")


@pytest.mark.parametrize("name", QUANTIZED)
def test_codes_of_four_bits_are_those_of_the_converted_model(name: str) -> None:
    build, fields = LAYERS[name]
    torch.manual_seed(0)
    first, second = (Inputs(*size)(*fields) for size in SIZES[:2])
    converted = gnnquant.convert(build().eval(), first, bits=4)
    gnnquant.calibrate(converted, [first])
    compiled = gnnquant.compile(converted, first, target="reference")
    with torch.no_grad():
        wanted = converted.eval()(*second)
    difference = (torch.as_tensor(compiled(*second)) - wanted).abs()
    # A value on the border of two codes may fall on either side.
    assert float((difference > 1e-4 * wanted.abs().max()).float().mean()) < 0.05
