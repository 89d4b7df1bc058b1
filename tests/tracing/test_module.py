"""``TracedModule``: calling, copying, pickling, rebuilding."""

from __future__ import annotations

import copy
import io
import operator
import pickle
import subprocess
import sys
from typing import NamedTuple

import pytest
import torch
from torch import nn

from gnnquant.errors import InputError
from gnnquant.tracing import TracedModule, trace
from tests import zoo


class Pair(NamedTuple):
    first: object
    second: object


def swap(pair: Pair, part: slice, dtype: torch.dtype) -> torch.Tensor:
    return pair.second[part].to(dtype)


def scale_by(x: torch.Tensor, factor: float) -> torch.Tensor:
    return x * factor


class Quantized(TracedModule):
    """Stands for what the passes build."""


def round_trips():
    def through_save(module):
        file = io.BytesIO()
        torch.save(module, file)
        file.seek(0)
        return torch.load(file, weights_only=False)

    return {
        "deepcopy": copy.deepcopy,
        "pickle": lambda module: pickle.loads(pickle.dumps(module)),
        "torch.save": through_save,
    }


@pytest.fixture(params=round_trips().items(), ids=lambda item: item[0])
def duplicate(request):
    return request.param[1]


def seeded(module, graph):
    torch.manual_seed(5)
    return module(graph.x, graph.edge_index)


@pytest.mark.parametrize("name", zoo.MODELS)
def test_copies_are_exact(traced, name, duplicate):
    module = copy.deepcopy(traced(name)[1])
    graph = zoo.random_graph(31, 90, seed=4)
    twin = duplicate(module)
    assert type(twin).__name__ == "TracedModule"
    assert isinstance(twin, TracedModule)
    assert twin.code == module.code
    assert [n.name for n in twin.graph.nodes] == [n.name for n in module.graph.nodes]
    for ours, theirs in zip(module.graph.nodes, twin.graph.nodes, strict=True):
        assert ours.meta == theirs.meta
    assert twin.training == module.training
    assert twin.state_dict().keys() == module.state_dict().keys()
    for mode in (True, False):
        assert torch.equal(seeded(module.train(mode), graph), seeded(twin.train(mode), graph))
    assert not {p.data_ptr() for p in twin.parameters()} & {p.data_ptr() for p in module.parameters()}


def test_subclass_with_a_rewritten_graph_survives(duplicate):
    graph = zoo.random_graph()
    base = trace(zoo.build("gcn").eval(), (graph.x, graph.edge_index))
    rewritten = copy.deepcopy(base.graph)
    output = next(n for n in rewritten.nodes if n.op == "output")
    source = output.args[0]
    base.add_submodule("conv1.observer", nn.Sequential(nn.Identity(), nn.BatchNorm1d(zoo.CLASSES)))
    with rewritten.inserting_before(output):
        node = rewritten.call_module("conv1.observer", (source,))
        node = rewritten.call_function(swap, (Pair(1, node), slice(None, None), torch.float64))
        node = rewritten.call_function(operator.getitem, (node, (slice(0, None, 2), ...)))
        node.meta["gnn_role"] = "update"
    output.args = (node,)
    module = Quantized.from_graph(base, rewritten)
    module.sites = {"conv1.message": (8, "signed")}
    module.eval()
    expected = module(graph.x, graph.edge_index)
    assert expected.dtype == torch.float64
    assert expected.shape == (10, zoo.CLASSES)

    twin = duplicate(module)
    assert isinstance(twin, Quantized)
    assert twin.sites == module.sites
    assert torch.equal(twin(graph.x, edge_index=graph.edge_index), expected)
    assert "conv1.observer.1.running_mean" in twin.state_dict()
    assert any(n.target is swap for n in twin.graph.nodes)


def test_in_place_edit_and_recompile_survive(duplicate):
    graph = zoo.random_graph()
    module = trace(zoo.build("gin").eval(), (graph.x, graph.edge_index))
    before = module(graph.x, graph.edge_index)
    output = next(n for n in module.graph.nodes if n.op == "output")
    source = output.args[0]
    with module.graph.inserting_before(output):
        output.args = (module.graph.call_function(scale_by, (source, 3.0)),)
    module.recompile()
    assert torch.equal(module(graph.x, graph.edge_index), before * 3)
    assert torch.equal(duplicate(module)(graph.x, graph.edge_index), before * 3)


def test_from_graph_shares_parameters_and_keeps_buffers_out_of_state_dicts():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.lin = nn.Linear(7, 3)
            self.register_buffer("kept", torch.ones(3))
            self.register_buffer("left_out", torch.ones(3), persistent=False)
            self.plain = torch.ones(3)

        def forward(self, x, edge_index):
            return self.lin(x) + self.kept + self.left_out + self.plain

    base = trace(Net(), tuple(zoo.random_graph()[:2]))
    module = TracedModule.from_graph(base, copy.deepcopy(base.graph))
    for one in (base, module, copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert set(one.state_dict()) == {"lin.weight", "lin.bias", "kept"}
    assert module.lin.weight is base.lin.weight
    with pytest.raises(TypeError, match=r"signature"):
        TracedModule.from_graph(Net(), base.graph)


def test_shallow_copy_has_its_own_graph(traced):
    module = copy.deepcopy(traced("gin")[1])
    twin = copy.copy(module)
    assert twin.graph is not module.graph
    assert twin.head.weight is module.head.weight
    twin.add_submodule("extra", nn.ReLU())
    assert "extra" not in dict(module.named_children())


def test_state_dict_round_trip(traced):
    model, module = traced("gin")
    twin = copy.deepcopy(module).eval()
    for parameter in twin.parameters():
        nn.init.normal_(parameter)
    graph = zoo.random_graph()
    fresh = copy.deepcopy(module).eval()
    assert not torch.equal(fresh(graph.x, graph.edge_index), twin(graph.x, graph.edge_index))
    fresh.load_state_dict(twin.state_dict())
    assert torch.equal(fresh(graph.x, graph.edge_index), twin(graph.x, graph.edge_index))
    copy.deepcopy(model).load_state_dict(twin.state_dict())


def test_unimportable_functions_are_named_when_pickling(traced):
    module = copy.deepcopy(traced("gin")[1])
    output = next(n for n in module.graph.nodes if n.op == "output")
    source = output.args[0]

    def local(x):
        return x

    with module.graph.inserting_before(output):
        output.args = (module.graph.call_function(local, (source,)),)
    module.recompile()
    copy.deepcopy(module)
    with pytest.raises(pickle.PicklingError, match=r"node 'local'.*top level"):
        pickle.dumps(module)


def test_a_pickle_opens_in_another_process(tmp_path, traced):
    module = traced("gat")[1]
    graph = zoo.random_graph()
    expected = copy.deepcopy(module).eval()(graph.x, graph.edge_index)
    path = tmp_path / "module.pt"
    torch.save((module, graph, expected.detach()), path)
    code = (
        "import sys, torch\n"
        "module, graph, expected = torch.load(sys.argv[1], weights_only=False)\n"
        "assert torch.equal(module.eval()(graph.x, graph.edge_index), expected)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(path)], check=True, timeout=120)


def test_arguments_are_those_of_the_model(traced):
    module = copy.deepcopy(traced("gcn")[1]).eval()
    graph = zoo.random_graph()
    expected = module(graph.x, graph.edge_index)
    assert torch.equal(module(edge_index=graph.edge_index, x=graph.x), expected)
    assert torch.equal(module(graph.x, graph.edge_index, None), expected)
    with pytest.raises(TypeError, match=r"edge_index"):
        module(graph.x)
    with pytest.raises(InputError, match=r"'edge_weight' was None when the model was traced"):
        module(graph.x, graph.edge_index, graph.edge_weight)
    with pytest.raises(InputError, match=r"'x' was a tensor"):
        module(None, graph.edge_index)


class Options(nn.Module):
    """Containers, numbers and strings as arguments and results."""

    def __init__(self):
        super().__init__()
        self.lin = nn.Linear(7, 7)

    def forward(self, x, rest, extra, num_nodes, rounds=2, mode="sum"):  # noqa: PLR0917
        for _ in range(rounds):
            x = self.lin(x)
        x = x + rest[0] * extra["shift"]
        return {mode: x / num_nodes, "pair": Pair(x, num_nodes)}


def test_containers_numbers_and_defaults():
    model = Options()
    x = torch.randn(20, 7)
    module = trace(model, (x, (x, x), {"shift": x + 1}, 20, 3))
    other = torch.randn(9, 7)
    expected = model(other, (other, other), {"shift": other}, 9, 3)
    got = module(other, (other, other), {"shift": other}, num_nodes=9, rounds=3)
    assert expected.keys() == got.keys()
    assert torch.equal(expected["sum"], got["sum"])
    assert isinstance(got["pair"], Pair)
    assert got["pair"].second == 9
    with pytest.raises(InputError, match=r"'rounds' was 3"):
        module(other, (other, other), {"shift": other}, 9, 2)
    with pytest.raises(InputError, match=r"'rounds' was 3 .* is now 2"):
        module(other, (other, other), {"shift": other}, 9)
    with pytest.raises(InputError, match=r"'mode' was 'sum'"):
        module(other, (other, other), {"shift": other}, 9, 3, mode="mean")
    with pytest.raises(InputError, match=r"'extra'"):
        module(other, (other, other), {"other": other}, 9, 3)


def test_variadic_parameters(duplicate):
    a, b, c = torch.randn(20, 7), torch.randn(20, 7), torch.randn(20, 7)
    other = torch.randn(5, 7)
    module = duplicate(trace(Only(), (a, b, c)))
    assert torch.equal(module(other, other + 1, other), Only()(other, other + 1, other))
    module = duplicate(trace(Named(), {"x": a, "shift": b}))
    assert torch.equal(module(other, shift=other), Named()(other, shift=other))


class Only(nn.Module):
    def forward(self, *tensors, scale=2.0):
        return tensors[0] + tensors[1] * tensors[2] * scale


class Named(nn.Module):
    def forward(self, x, **extra):
        return x + extra["shift"]


def test_moves_to_another_device(traced):
    module = copy.deepcopy(traced("gcn")[1]).to("meta")
    assert {p.device.type for p in module.parameters()} == {"meta"}
