"""Models whose train and eval mode compute different things."""

from __future__ import annotations

import copy
import inspect
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch_geometric import nn as gnn
from torch_geometric.utils import dropout_edge

from gnnquant.tracing import trace
from gnnquant.tracing.graph_ops import select_mode
from tests import zoo
from tests.tracing.exactness import assert_same, run

GRAPH, OTHER = zoo.random_graph(), zoo.random_graph(33, 150, seed=5)
EXAMPLE, SECOND = tuple(GRAPH[:2]), tuple(OTHER[:2])


class EarlyReturn(nn.Module):
    """Two heads in training, one prediction in eval mode; noise in training only."""

    def __init__(self):
        super().__init__()
        self.conv = gnn.GCNConv(zoo.FEATURES, 8)
        self.norm = nn.BatchNorm1d(8)
        self.head, self.extra = nn.Linear(8, 3), gnn.GATConv(8, 3, dropout=0.5)

    def forward(self, x, edge_index):
        h = self.norm(self.conv(x, edge_index))
        if self.training:
            h += torch.randn_like(h) * 0.1
            return self.head(h), self.extra(h, edge_index)
        return self.head(F.normalize(h)).softmax(-1)


class SideEffects(nn.Module):
    """Each mode has batch statistics, in-place changes and a counter of its own."""

    def __init__(self):
        super().__init__()
        self.conv = gnn.SAGEConv(zoo.FEATURES, 8)
        self.first, self.second = nn.BatchNorm1d(8), nn.BatchNorm1d(8)
        self.register_buffer("steps", torch.zeros(()))

    def forward(self, x, edge_index):
        x = self.conv(x, edge_index)
        if self.training:
            self.steps.add_(1)
            return self.first(x) + self.steps
        return self.second(x).relu_() / self.steps.clamp(min=1)


class DropsEdges(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = gnn.GCNConv(zoo.FEATURES, 8)

    def forward(self, x, edge_index):
        if self.training:
            edge_index, _ = dropout_edge(edge_index, 0.2)
        x = self.conv(x, edge_index)
        return x + F.dropout(x, 0.2) if self.training else x * 0.5


class AttentionLoss(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = gnn.SuperGATConv(zoo.FEATURES, 4, heads=2, dropout=0.5)

    def forward(self, x, edge_index):
        h = self.conv(x, edge_index)
        return (h, self.conv.get_attention_loss()) if self.training else h


def pmlp():
    return gnn.PMLP(zoo.FEATURES, 8, 5, num_layers=3, dropout=0.5)


@pytest.mark.parametrize("build", [pmlp, EarlyReturn, SideEffects, DropsEdges, AttentionLoss])
def test_each_mode_is_exact(build):
    torch.manual_seed(0)
    model = build()
    module = trace(model, EXAMPLE)
    assert module.has_two_paths
    for twin in (module, pickle.loads(pickle.dumps(module)), copy.deepcopy(module), copy.copy(module)):
        assert_same(model, twin, *SECOND)


def test_one_graph_holds_both():
    model = pmlp()
    module = trace(model, EXAMPLE)
    selects = [n for n in module.graph.nodes if n.target is select_mode]
    assert [(s.args[0].name, s.args[1].meta.get("gnn_role")) for s in selects] == [
        ("matmul", "update"),
        ("matmul_1", "update"),
        ("matmul_2", "update"),
    ]
    inside = [n for n in module.graph.nodes if n.meta.get("module_path") == "conv" and n not in selects]
    assert {n.meta["mode"] for n in inside} == {"eval"}
    assert set(module.state_dict()) == set(model.state_dict())
    assert list(inspect.signature(module.forward).parameters) == ["x", "edge_index"]


def test_path_graphs_hold_one_mode_each():
    module = trace(pmlp(), EXAMPLE)
    names = {training: [n.name for n in module.path_graph(training).nodes] for training in (False, True)}
    whole = {n.name for n in module.graph.nodes}
    assert set(names[True]) < set(names[False]) < whole
    assert not any("select_mode" in name for name in (*names[True], *names[False]))
    assert not any("message" in name for name in names[True])


def test_a_path_can_be_run_in_the_other_mode():
    model = pmlp().eval()
    module = trace(model, EXAMPLE)
    expected = run(module, False, *SECOND).output[0]
    with module.on_path(training=True):
        assert not torch.equal(module(*SECOND), expected)
        assert torch.equal(module(*SECOND), module(*SECOND))  # dropout is off
    assert torch.equal(module(*SECOND), expected)


def test_who_interprets_the_graph_gets_eval_mode():
    module = trace(pmlp(), EXAMPLE).eval()
    assert torch.equal(torch.fx.Interpreter(module).run(*SECOND), module(*SECOND))


def test_a_mode_that_leaves_no_node_behind():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.lin = nn.Linear(zoo.FEATURES, 3)

        def forward(self, x, edge_index):
            x = self.lin(x)
            return x if self.training else x.sigmoid()

    model = Net()
    assert_same(model, trace(model, EXAMPLE), *SECOND)


def test_models_that_only_toggle_have_one_path(traced):
    for name in zoo.MODELS:
        assert not traced(name)[1].has_two_paths
