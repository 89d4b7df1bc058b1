"""Norms and aggregations are looked into, down to primitives."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch_geometric import nn as gnn
from torch_geometric.nn import aggr

from gnnquant.tracing import trace
from gnnquant.tracing.graph_ops import sorted_index
from tests import zoo
from tests.tracing.exactness import assert_same

GRAPH, OTHER = zoo.random_graph(), zoo.random_graph(33, 150, seed=5)
DEGREES = torch.tensor([2, 5, 9, 6, 2, 1])


class Over(nn.Module):
    """A linear layer, then ``part``, over whole graphs or over the batch."""

    def __init__(self, part, batched):
        super().__init__()
        self.lin, self.part, self.batched = nn.Linear(7, 8), part, batched

    def forward(self, x, batch):
        return self.part(self.lin(x), batch) if self.batched else self.part(self.lin(x))


class Messages(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = gnn.MessageNorm(learn_scale=True)

    def forward(self, x, batch):
        return self.norm(x, x.relu())


def mlp(*sizes):
    return gnn.MLP(list(sizes), norm=None)


NORMS = {
    "InstanceNorm": lambda: gnn.InstanceNorm(8),
    "LayerNorm": lambda: gnn.LayerNorm(8),
    "GraphNorm": lambda: gnn.GraphNorm(8),
    "GraphSizeNorm": gnn.GraphSizeNorm,
    "PairNorm": lambda: gnn.PairNorm(scale_individually=True),
    "MeanSubtractionNorm": gnn.MeanSubtractionNorm,
    "DiffGroupNorm": lambda: gnn.DiffGroupNorm(8, 2),
    "LayerNorm by node": lambda: gnn.LayerNorm(8, mode="node"),
}
AGGREGATIONS = {
    "std": aggr.StdAggregation,
    "var, half of the gradient": lambda: aggr.VarAggregation(semi_grad=True),
    "softmax": lambda: aggr.SoftmaxAggregation(learn=True, channels=8),
    "power mean": lambda: aggr.PowerMeanAggregation(learn=True),
    "set2set": lambda: aggr.Set2Set(8, 2),
    "scaled degrees": lambda: aggr.DegreeScalerAggregation(
        ["mean", "std"], ["identity", "amplification", "attenuation", "linear"], DEGREES
    ),
    "attention": lambda: aggr.AttentionalAggregation(mlp(8, 1), mlp(8, 6)),
    "deep sets": lambda: aggr.DeepSetsAggregation(mlp(8, 6), mlp(6, 6)),
    "multiset transformer": lambda: aggr.GraphMultisetTransformer(8, 2, heads=2),
    "set transformer": lambda: aggr.SetTransformerAggregation(8, 2, heads=2),
    "mlp": lambda: aggr.MLPAggregation(8, 6, 40, num_layers=1),
    "variance preserving": aggr.VariancePreservingAggregation,
    "several": lambda: aggr.MultiAggregation(["mean", "max", "std", "var", "sum", "min", "mul"]),
    "several, projected": lambda: aggr.MultiAggregation(
        ["mean", "max"], mode="proj", mode_kwargs={"in_channels": 8, "out_channels": 6}
    ),
}
PRIMITIVE = {
    "sum": aggr.SumAggregation,
    "mean": aggr.MeanAggregation,
    "median": aggr.MedianAggregation,
    "lstm": lambda: aggr.LSTMAggregation(8, 6),
    "sort": lambda: aggr.SortAggregation(3),
    "equilibrium": lambda: aggr.EquilibriumAggregation(8, 6, [10]),
    "batch norm": lambda: gnn.BatchNorm(8),
    "instance norm with statistics": lambda: gnn.InstanceNorm(8, track_running_stats=True),
}


def traced_over(build, batched):
    torch.manual_seed(0)
    model = Over(build(), batched)
    module = trace(model, (GRAPH.x, GRAPH.batch))
    # Several aggregations at once are fused by PyG and not in the trace: gradients are rounded otherwise.
    assert_same(model, module, OTHER.x, torch.arange(33) // 7, rounding=1e-5)
    return module, [type(module.get_submodule(n.target)) for n in module.graph.find_nodes(op="call_module")]


@pytest.mark.parametrize("name", NORMS)
def test_norms(name):
    for batched in (False, True):
        if batched and name in ("DiffGroupNorm", "LayerNorm by node"):
            continue
        _, called = traced_over(NORMS[name], batched)
        assert set(called) <= {nn.Linear, nn.BatchNorm1d}


def test_message_norm():
    model = Messages()
    module = trace(model, (GRAPH.x, GRAPH.batch))
    assert_same(model, module, OTHER.x, OTHER.batch)
    assert not list(module.graph.find_nodes(op="call_module"))


@pytest.mark.parametrize("name", AGGREGATIONS)
def test_aggregations(name):
    _, called = traced_over(AGGREGATIONS[name], batched=True)
    assert not {c for c in called if issubclass(c, aggr.Aggregation)} - {
        *(aggr.SumAggregation, aggr.MeanAggregation, aggr.MaxAggregation, aggr.MinAggregation),
        aggr.MulAggregation,
    }


@pytest.mark.parametrize("name", PRIMITIVE)
def test_primitives_stay_one_node(name):
    module, _ = traced_over(PRIMITIVE[name], batched="norm" not in name or "instance" in name)
    assert [n.target for n in module.graph.find_nodes(op="call_module")] == ["lin", "part"]


def test_aggregations_of_users_are_looked_into():
    class Range(aggr.Aggregation):
        def forward(self, x, index=None, ptr=None, dim_size=None, dim=-2):
            low, high = (self.reduce(x, index, ptr, dim_size, dim, kind) for kind in ("min", "max"))
            return high - low

    _, called = traced_over(Range, batched=True)
    assert called == [nn.Linear]


def test_an_index_that_has_to_be_sorted_is_still_checked():
    module, _ = traced_over(AGGREGATIONS["mlp"], batched=True)
    assert any(n.target is sorted_index for n in module.graph.nodes)
    with pytest.raises(ValueError, match="must be sorted"):
        module(OTHER.x, torch.arange(33).flip(0) // 7)


@pytest.mark.parametrize(
    "build",
    [
        lambda: gnn.PNAConv(7, 6, ["mean", "min", "std"], ["identity", "attenuation"], DEGREES),
        lambda: gnn.GENConv(7, 6, learn_t=True, msg_norm=True),
        # Not SAGEConv: the first one in a process decides whether PyG lets any of them take sparse matrices.
        lambda: gnn.SimpleConv(aggr=["mean", "max", "std", "softmax"], combine_root="self_loop"),
        lambda: gnn.EGConv(7, 8, aggregators=["sum", "max", "symnorm", "std"], num_heads=4),
    ],
    ids=["PNA", "GEN", "Simple", "EG"],
)
def test_layers_with_composite_aggregations(build):
    torch.manual_seed(0)
    model = build()
    module = trace(model, tuple(GRAPH[:2]))
    assert_same(model, module, *OTHER[:2], rounding=1e-4)
