"""What the traced graph promises to the passes."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch_geometric import nn as gnn

from gnnquant import ir
from gnnquant.tracing import trace
from gnnquant.tracing.graph_ops import TrainingSwitch
from tests import zoo


def markers(module):
    return [(n.meta["gnn_role"], *n.args[1:]) for n in module.graph.nodes if "gnn_role" in n.meta]


@pytest.mark.parametrize("name", zoo.MODELS)
def test_every_layer_is_marked(traced, name):
    model, module = traced(name)
    layers = [n for n, m in model.named_modules() if isinstance(m, gnn.MessagePassing)]
    marked = markers(module)
    for layer in layers:
        for role in ("message", "aggregate", "update"):
            assert (role, layer, 0) in marked
    assert len(set(marked)) == len(marked)
    for node in module.graph.nodes:
        if "gnn_role" in node.meta:
            assert node.target is ir.ROLE_MARKERS[node.meta["gnn_role"]]


def test_attention_is_marked_as_edge_update(traced):
    assert ("edge_update", "conv1", 0) in markers(traced("gat")[1])


def test_calls_of_one_layer_are_counted(traced):
    calls = [m for m in markers(traced("appnp")[1]) if m[0] == "message"]
    assert calls == [("message", "prop", 0), ("message", "prop", 1), ("message", "prop", 2)]


@pytest.mark.parametrize("name", zoo.MODELS)
def test_names_are_the_users(traced, name):
    model, module = traced(name)
    theirs = model.state_dict()
    assert set(module.state_dict()) == set(theirs)
    assert {n for n, _ in module.named_parameters()} == {n for n, _ in model.named_parameters()}
    module.load_state_dict(theirs)


@pytest.mark.parametrize("name", zoo.MODELS)
def test_nodes_carry_shape_dtype_owner_and_source(traced, name):
    model, module = traced(name)
    paths = {n for n, _ in model.named_modules()}
    graph = zoo.random_graph()
    for node in module.graph.nodes:
        if node.op == "output":
            continue
        assert node.meta["module_path"] in paths
        assert node.meta["source"]
        if node.op in ("placeholder", "call_module") or "gnn_role" in node.meta:
            assert isinstance(node.meta["shape"], tuple)
            assert isinstance(node.meta["dtype"], torch.dtype)
    x = next(iter(module.graph.nodes))
    assert x.meta["shape"] == tuple(graph.x.shape)


def test_layers_and_helpers_stay_leaves(traced):
    called = {n.target for n in traced("gat")[1].graph.nodes if n.op == "call_module"}
    assert {"conv1.lin", "conv1.aggr_module", "conv1._dropout0", "_dropout0"} <= called
    functions = {
        getattr(n.target, "__name__", "") for n in traced("gat")[1].graph.nodes if n.op == "call_function"
    }
    assert {"softmax", "add_self_loops", "remove_self_loops", "message", "aggregate"} <= functions
    functions = {getattr(n.target, "__name__", "") for n in traced("gcn")[1].graph.nodes}
    assert "gcn_norm" in functions


def test_train_and_eval_toggle(traced):
    module = traced("gat")[1]
    graph = zoo.random_graph()
    module.eval()
    assert torch.equal(module(graph.x, graph.edge_index), module(graph.x, graph.edge_index))
    module.train()
    assert not torch.equal(module(graph.x, graph.edge_index), module(graph.x, graph.edge_index))


def test_training_flags_are_the_models():
    model = zoo.build("gin").train()
    model.conv1.nn[1].eval()
    module = trace(model)
    assert module.training
    assert module.conv2.nn._modules["1"].training
    assert not module.conv1.nn._modules["1"].training
    assert not trace(model.eval()).training


def test_conditional_dropout_of_appnp_becomes_modules(traced):
    module = traced("appnp")[1]
    dropouts = [n for n in module.graph.nodes if n.op == "call_module" and "dropout" in str(n.target)]
    assert [n.target for n in dropouts if n.meta["module_path"] == "prop"] == [
        "prop._dropout0",
        "prop._dropout1",
        "prop._dropout2",
    ]
    assert all(isinstance(module.get_submodule(n.target), nn.Dropout) for n in dropouts)


def test_other_functions_with_a_training_flag_toggle():
    class Net(nn.Module):
        def forward(self, x, edge_index):
            return nn.functional.rrelu(x, training=self.training)

    module = trace(Net(), tuple(zoo.random_graph()[:2])).train()
    assert isinstance(module.get_submodule("_rrelu0"), TrainingSwitch)
    x, edge_index = zoo.random_graph()[:2]
    assert not torch.equal(module(x, edge_index), module(x, edge_index))
    module.eval()
    assert torch.equal(module(x, edge_index), module(x, edge_index))


def test_sizes_are_nodes_not_numbers(traced):
    for name in zoo.MODELS:
        for node in traced(name)[1].graph.nodes:
            numbers = [a for a in (*node.args, *node.kwargs.values()) if isinstance(a, int)]
            assert not {20, 64, 84} & set(numbers), node.format_node()


def test_unused_parts_vanish():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused = nn.Linear(7, 3), nn.Linear(7, 3)

        def forward(self, x, edge_index):
            return self.used(x)

    module = trace(Net(), tuple(zoo.random_graph()[:2]))
    assert set(module.state_dict()) == {"used.weight", "used.bias"}


def test_a_layer_with_three_levels_takes_less_than_two_seconds():
    import time

    model, graph = zoo.build("pyg_gat"), zoo.random_graph()
    start = time.perf_counter()
    trace(model, (graph.x, graph.edge_index))
    assert time.perf_counter() - start < 2 * 3  # two seconds on an idle machine; tests share theirs
