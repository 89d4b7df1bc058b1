"""A trace computes what the model computes, bit for bit, on graphs it was not traced on."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch_geometric import EdgeIndex
from torch_geometric import nn as gnn

from gnnquant.tracing import trace
from tests import zoo


def run(module, training, *args, **kwargs):
    """Output, gradients by name and buffers after one seeded run of a copy; or the error's type."""
    module = copy.deepcopy(module).train(training)
    torch.manual_seed(7)
    try:
        output = module(*args, **kwargs)
    except ValueError as error:  # batch norm of a single node in train mode
        return type(error)
    output.sum().backward() if output.numel() else None
    grads = {n: p.grad for n, p in module.named_parameters() if p.grad is not None}
    return output, grads, dict(module.named_buffers())


def assert_same(model, traced, training, *args, **kwargs):
    expected = run(model, training, *args, **kwargs)
    got = run(traced, training, *args, **kwargs)
    if isinstance(expected, type):
        assert got is expected
        return
    assert torch.equal(expected[0], got[0])
    assert expected[1].keys() == got[1].keys()
    for name, gradient in expected[1].items():
        assert torch.equal(gradient, got[1][name]), name
    for name in expected[2].keys() & got[2].keys():
        assert torch.equal(expected[2][name], got[2][name]), name


@pytest.mark.parametrize("size", zoo.GRAPH_SIZES, ids=str)
@pytest.mark.parametrize("name", zoo.MODELS)
def test_output_gradients_and_statistics_equal_the_model(traced, name, size):
    model, module = traced(name)
    graph = zoo.random_graph(*size, seed=3)
    for training in (False, True):
        assert_same(model, module, training, graph.x, graph.edge_index)


def test_edge_weights_and_keyword_arguments():
    model = zoo.build("gcn")
    graph, other = zoo.random_graph(), zoo.random_graph(31, 90, seed=5)
    module = trace(model, {"x": graph.x, "edge_index": graph.edge_index, "edge_weight": graph.edge_weight})
    assert [n.target for n in module.graph.nodes if n.op == "placeholder"] == [
        "x",
        "edge_index",
        "edge_weight",
    ]
    for training in (False, True):
        assert_same(
            model, module, training, other.x, edge_weight=other.edge_weight, edge_index=other.edge_index
        )


def test_pooling_over_a_batch_of_another_number_of_graphs():
    model = zoo.GraphClassifier(zoo.FEATURES, zoo.CLASSES)
    graph, other = zoo.random_graph(), zoo.random_graph(31, 90, seed=5)
    module = trace(model, (graph.x, graph.edge_index, graph.batch))
    batch = torch.arange(31) // 5
    for training in (False, True):
        assert_same(model, module, training, other.x, other.edge_index, batch)


class Hetero(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = gnn.HeteroConv(
            {
                ("a", "to", "b"): gnn.SAGEConv((7, 7), 4),
                ("b", "rev", "a"): gnn.GATConv((7, 7), 4, add_self_loops=False),
            }
        )

    def forward(self, x_dict, edge_index_dict):
        return self.conv(x_dict, edge_index_dict)["a"].relu()


def test_dictionaries_of_tensors():
    def inputs(a, b, edges):
        return (
            {"a": torch.randn(a, 7), "b": torch.randn(b, 7)},
            {
                ("a", "to", "b"): torch.stack([torch.randint(a, (edges,)), torch.randint(b, (edges,))]),
                ("b", "rev", "a"): torch.stack([torch.randint(b, (edges,)), torch.randint(a, (edges,))]),
            },
        )

    model = Hetero()
    module = trace(model, inputs(20, 10, 40))
    assert_same(model, module, True, *inputs(9, 14, 33))


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
def test_sparse_adjacency_keeps_the_fused_node():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = gnn.SAGEConv(7, 4)

        def forward(self, x, adj):
            return self.conv(x, adj)

    def adjacency(nodes):
        dense = (torch.rand(nodes, nodes) < 0.2).float()
        return dense.to_sparse_csr()

    model = Net()
    module = trace(model, (torch.randn(20, 7), adjacency(20)))
    assert [n.args[1:] for n in module.graph.nodes if n.meta.get("gnn_role") == "message_and_aggregate"] == [
        ("conv", 0)
    ]
    assert_same(model, module, False, torch.randn(31, 7), adjacency(31))


def test_edge_index_objects_are_taken_as_tensors():
    model, graph = zoo.build("gcn").eval(), zoo.random_graph()
    edges = EdgeIndex(graph.edge_index, sparse_size=(20, 20))
    module = trace(model, (graph.x, edges))
    assert torch.equal(module(graph.x, edges), model(graph.x, graph.edge_index))


def test_cached_layers_compute_again():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = gnn.GCNConv(7, 4, cached=True)

        def forward(self, x, edge_index):
            return self.conv(x, edge_index)

    model, graph, other = Net(), zoo.random_graph(), zoo.random_graph(31, 90, seed=5)
    model(graph.x, graph.edge_index)
    cache = model.conv._cached_edge_index
    module = trace(model, (graph.x, graph.edge_index))
    assert model.conv._cached_edge_index is cache
    model.conv._cached_edge_index = None
    assert torch.equal(module(other.x, other.edge_index), model(other.x, other.edge_index))


class Straight(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.round()

    @staticmethod
    def backward(ctx, grad):
        return grad


class Habits(nn.Module):
    """What users do in ``forward`` beside calling layers."""

    def __init__(self):
        super().__init__()
        self.lin = nn.Linear(7, 4)
        self.frozen = nn.Linear(7, 4)
        self.offset = torch.ones(4)
        self.register_buffer("runs", torch.zeros(()), persistent=False)

    def forward(self, x, edge_index):
        n = len(x)
        self.runs += 1
        with torch.no_grad():
            target = self.frozen(x)
        h = Straight.apply(self.lin(x) * 3)
        out = torch.zeros(n, 4, dtype=x.dtype, device=x.device)
        out[edge_index[1]] = h[edge_index[0]]
        out += self.offset
        half = max(int(n * 0.5), 1)
        top = out[:, 0].topk(half).indices
        out = out + out[top].mean(0) / n + (h - target.detach()).clamp(min=0)
        return alpha_dropout(out, self.training)


def alpha_dropout(x, training):
    return nn.functional.alpha_dropout(x, p=0.3, training=training)


def test_habits_of_user_code():
    model, graph, other = Habits(), zoo.random_graph(), zoo.random_graph(31, 90, seed=5)
    module = trace(model, (graph.x, graph.edge_index))
    for training in (False, True):
        assert_same(model, module, training, other.x, other.edge_index)
    assert module.state_dict().keys() == model.state_dict().keys()


def test_dtype_moves_with_the_module():
    model, graph = zoo.build("own_conv").eval(), zoo.random_graph()
    module = trace(model, (graph.x, graph.edge_index)).double()
    expected = model.double()(graph.x.double(), graph.edge_index)
    assert torch.equal(module(graph.x.double(), graph.edge_index), expected)


def test_devices_are_read_from_the_inputs():
    class Net(nn.Module):
        def forward(self, x, edge_index):
            return x + torch.ones(x.size(0), 1, device=x.device)

    graph = zoo.random_graph()
    module = trace(Net(), (graph.x, graph.edge_index))
    result = module(graph.x.to("meta"), graph.edge_index.to("meta"))
    assert result.device.type == "meta"
