"""Tracing leaves the model, the process and other threads as they were."""

from __future__ import annotations

import builtins
import itertools
import random
import sys
import threading

import numpy as np
import pytest
import torch
import torch_geometric
from torch import nn
from torch_geometric.nn import Aggregation, MessagePassing
from torch_geometric.nn.conv import gcn_conv

from gnnquant.errors import TraceError
from gnnquant.tracing import trace
from tests import zoo


class Breaks(nn.Module):
    """Runs on its own and fails under the tracer, whose sizes are a subclass of int."""

    def __init__(self):
        super().__init__()
        self.conv = zoo.GCN(zoo.FEATURES, zoo.CLASSES)

    def forward(self, x, edge_index):
        x = self.conv(x, edge_index)
        if type(x.size(0)) is not builtins.int:
            raise RuntimeError("found out")
        return x


def fingerprint(model):
    attributes = {name: {k: id(v) for k, v in vars(module).items()} for name, module in model.named_modules()}
    flags = {name: module.training for name, module in model.named_modules()}
    return attributes, flags, {k: v.clone() for k, v in model.state_dict().items()}


def world():
    globals_ = {
        name: {k: id(v) for k, v in vars(module).items()}
        for name, module in list(sys.modules.items())
        if name.startswith(("torch_geometric", "tests"))
    }
    return (
        globals_,
        nn.Module.__call__,
        Aggregation.__call__,
        Aggregation.assert_sorted_index,
        id(torch.dropout),
        id(torch._VF.batch_norm),
        vars(torch.autograd.Function)["apply"],
        torch.overrides._get_current_function_mode_stack(),
        random.getstate(),
        torch.get_rng_state().tolist(),
        np.random.get_state()[1].tolist(),  # noqa: NPY002
        torch.is_grad_enabled(),
    )


@pytest.mark.parametrize(
    ("name", "training"), list(zip(zoo.MODELS, itertools.cycle([True, False]), strict=False))
)
def test_model_and_process_are_as_before(name, training):
    model = zoo.build(name).train(training)
    graph = zoo.random_graph()
    before, around = fingerprint(model), world()
    with torch.no_grad():
        trace(model, (graph.x, graph.edge_index))
    after = fingerprint(model)
    assert before[:2] == after[:2]
    assert all(torch.equal(before[2][k], after[2][k]) for k in before[2])
    assert around == world()


def test_everything_is_restored_after_an_exception():
    model, graph = Breaks(), zoo.random_graph()
    before, around = fingerprint(model), world()
    with pytest.raises(TraceError, match="found out"):
        trace(model, (graph.x, graph.edge_index))
    after = fingerprint(model)
    assert before[:2] == after[:2]
    assert around == world()
    trace(zoo.build("gcn"), (graph.x, graph.edge_index))


def test_inputs_are_not_changed():
    class Net(nn.Module):
        def forward(self, x, edge_index):
            x *= 2
            return x

    graph = zoo.random_graph()
    before = graph.x.clone()
    trace(Net(), (graph.x, graph.edge_index))
    assert torch.equal(graph.x, before)


def test_results_kept_on_the_model_do_not_hinder_copying():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.lin = nn.Linear(7, 3)

        def forward(self, x, edge_index):
            self.last = self.lin(x)
            return self.last.relu()

    model, graph = Net(), zoo.random_graph()
    model(graph.x, graph.edge_index)
    kept = model.last
    trace(model, (graph.x, graph.edge_index))
    assert model.last is kept


def test_the_trace_does_not_share_parameters(traced):
    model, module = traced("gin")
    assert not {p.data_ptr() for p in module.parameters()} & {p.data_ptr() for p in model.parameters()}


def test_threads_trace_and_run_side_by_side():
    graph = zoo.random_graph()
    names = ["gcn", "gat", "gin", "own_conv"]
    models = {name: zoo.build(name).eval() for name in names}
    expected = {name: models[name](graph.x, graph.edge_index) for name in names}
    traced, failures = {}, []
    stop = threading.Event()

    def work(name):
        try:
            traced[name] = trace(models[name], (graph.x, graph.edge_index))
        except Exception as error:
            failures.append(error)

    def run_models():
        try:
            while not stop.is_set():
                for name in names:
                    assert torch.equal(models[name](graph.x, graph.edge_index), expected[name])
        except Exception as error:
            failures.append(error)

    bystander = threading.Thread(target=run_models)
    bystander.start()
    workers = [threading.Thread(target=work, args=(name,)) for name in names]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    stop.set()
    bystander.join()
    assert not failures
    for name in names:
        assert torch.equal(traced[name](graph.x, graph.edge_index), expected[name])
    assert gcn_conv.gcn_norm.__module__ == "torch_geometric.nn.conv.gcn_conv"
    assert not hasattr(gcn_conv.gcn_norm, "__wrapped__")
    assert "len" not in vars(torch_geometric.nn.conv.gcn_conv)
    assert "message" in vars(MessagePassing)
