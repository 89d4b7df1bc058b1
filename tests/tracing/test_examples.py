"""Made-up examples and second graphs."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch_geometric import nn as gnn

from gnnquant.errors import TraceError
from gnnquant.tracing import second_example, synthesize_inputs, trace
from gnnquant.tracing.examples import doubled_example
from tests import zoo


@pytest.mark.parametrize("name", zoo.MODELS)
def test_inputs_are_found_from_the_model_alone(name):
    model = zoo.build(name)
    inputs = synthesize_inputs(model)
    assert list(inputs) == ["x", "edge_index"]
    assert inputs["x"].shape == (20, zoo.FEATURES)
    assert inputs["x"].dtype == torch.float32
    model.eval()(**inputs)
    again = synthesize_inputs(model)
    assert all(torch.equal(inputs[key], again[key]) for key in inputs)


def test_made_up_edges_have_rough_edges():
    edges = synthesize_inputs(zoo.build("gcn"))["edge_index"]
    assert (edges[0] == edges[1]).any()
    assert edges.unique(dim=1).size(1) < edges.size(1)
    assert edges.max() < 19
    assert torch.bincount(edges[1]).max() >= 12


def test_trace_without_an_example():
    graph = zoo.random_graph(9, 30)
    model = zoo.build("sage_mean").eval()
    assert torch.equal(trace(model)(graph.x, graph.edge_index), model(graph.x, graph.edge_index))


class Takes(nn.Module):
    def __init__(self, conv):
        super().__init__()
        self.conv = conv


def test_edge_attributes_batch_and_weight():
    class Net(Takes):
        def forward(self, x, edge_index, edge_attr, batch, edge_weight=None):
            return gnn.global_add_pool(self.conv(x, edge_index, edge_attr), batch)

    inputs = synthesize_inputs(Net(gnn.GATConv(5, 4, edge_dim=3)))
    assert list(inputs) == ["x", "edge_index", "edge_attr", "batch"]
    assert inputs["edge_attr"].shape == (64, 3)
    assert inputs["batch"].unique().tolist() == [0, 1]
    with pytest.raises(TraceError, match=r"edge_attr cannot be found.*pass example_inputs="):
        synthesize_inputs(Net(gnn.GraphConv(5, 4)))


def test_edge_weight_is_made_up_where_required():
    class Net(Takes):
        def forward(self, x, edge_index, edge_weight):
            return self.conv(x, edge_index, edge_weight)

    inputs = synthesize_inputs(Net(gnn.GCNConv(5, 4)))
    assert inputs["edge_weight"].shape == (64,)
    assert (inputs["edge_weight"] > 0).all()


def test_a_later_width_is_found_by_trying():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(8, 3)
            self.conv = gnn.GCNConv(5, 8)

        def forward(self, x, edge_index):
            return self.head(self.conv(x, edge_index))

    assert synthesize_inputs(Net())["x"].size(1) == 5


def test_no_example_can_be_made():
    class Other(nn.Module):
        def forward(self, x, edges):
            return x

    with pytest.raises(TraceError, match=r"edge_index.*pass example_inputs="):
        synthesize_inputs(Other())

    class Plain(nn.Module):
        def forward(self, x, edge_index):
            return x

    with pytest.raises(TraceError, match="width of x cannot be found"):
        synthesize_inputs(Plain())

    class Fails(Takes):
        def forward(self, x, edge_index):
            raise KeyError("mine")

    with pytest.raises(TraceError, match=r"failed on a made-up graph \(KeyError: 'mine'\)"):
        synthesize_inputs(Fails(nn.Linear(3, 3)))


def example():
    graph = zoo.random_graph()
    generator = torch.Generator().manual_seed(1)
    return {
        "x": graph.x,
        "edge_index": graph.edge_index,
        "edge_weight": graph.edge_weight,
        "edge_attr": torch.randn(64, 3, generator=generator),
        "edge_type": torch.randint(4, (64,), generator=generator),
        "batch": graph.batch,
        "mask": torch.rand(20, generator=generator) < 0.5,
        "num_nodes": 20,
        "temperature": 0.5,
        "mode": "sum",
        "nothing": None,
    }


def test_second_example_has_another_size():
    first = example()
    second = second_example(first)
    assert second.keys() == first.keys()
    n, e = second["x"].size(0), second["edge_index"].size(1)
    assert n != 20
    assert e != 64
    assert n != e
    assert second["num_nodes"] == n
    assert second["mask"].shape == (n,)
    assert second["edge_attr"].shape == (e, 3)
    assert second["edge_weight"].shape == (e,)
    assert (second["edge_weight"] > 0).all()
    assert set(second["edge_type"].tolist()) <= {0, 1, 2, 3}
    assert all(second[k].dtype == first[k].dtype for k in first if isinstance(first[k], torch.Tensor))
    assert (second["batch"].diff() >= 0).all()
    assert second["batch"].shape == (n,)
    assert second["batch"].unique().numel() == 4
    assert (second["temperature"], second["mode"], second["nothing"]) == (0.5, "sum", None)


def test_second_edges_have_rough_edges():
    edges = second_example(example())["edge_index"]
    n = second_example(example())["x"].size(0)
    assert (edges[0] == edges[1]).any()
    assert edges.unique(dim=1).size(1) < edges.size(1)
    assert edges.max() < n - 1


def test_second_example_depends_on_the_seed_only():
    state = torch.get_rng_state()
    a, b, c = (second_example(example(), seed=s)["x"] for s in (1, 1, 2))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("size", [(20, 20), (1, 1), (1, 0), (6, 0)], ids=str)
def test_second_example_of_awkward_sizes(size):
    graph = zoo.random_graph(*size)
    second = second_example({"x": graph.x, "edge_index": graph.edge_index, "edge_weight": graph.edge_weight})
    assert second["x"].size(0) != size[0]
    assert second["edge_index"].size(1) == second["edge_weight"].size(0)
    model = zoo.build("gcn").eval()
    model(**second)


def test_doubled_example_is_a_disjoint_union():
    doubled = doubled_example(example())
    first, second = doubled["edge_index"].split(64, dim=1)
    assert torch.equal(second, first + 20)
    assert doubled["x"].size(0) == doubled["num_nodes"] == 40
    assert doubled["batch"].unique().numel() == 6
