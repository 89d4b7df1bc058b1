"""What cannot be traced is refused, with the place and the remedy."""

from __future__ import annotations

import cmath

import pytest
import torch
from torch import nn
from torch_geometric import nn as gnn
from torch_geometric.data import Data

from gnnquant.errors import TraceError
from gnnquant.tracing import trace
from tests import zoo

HERE = r"test_errors\.py:\d+"


class Body(nn.Module):
    """A linear layer, then whatever ``rest`` does."""

    def __init__(self, rest):
        super().__init__()
        self.lin = nn.Linear(7, 4)
        self.rest = rest

    def forward(self, x, edge_index):
        return self.rest(self, self.lin(x), edge_index)


def refuse(rest, match):
    graph = zoo.random_graph()
    with pytest.raises(TraceError, match=match):
        trace(Body(rest), (graph.x, graph.edge_index))


def test_size_through_c_code():
    refuse(lambda self, x, e: x / cmath.sqrt(x.size(0)).real, rf"(?s)second graph.*Python float at .*{HERE}")


def test_float_times_a_size():
    def top(self, x, e):
        return x[x[:, 0].topk(int(0.5 * x.size(0))).indices]

    refuse(top, r"(?s)second graph.*write n \* 0\.5")


def test_tolist():
    def first_targets(self, x, e):
        return x[torch.tensor([i for i in e[1].tolist() if i % 2])]

    refuse(first_targets, rf"(?s)second graph.*tolist.*{HERE}")


def test_list_slice_by_size_leaves_no_trail_but_is_caught():
    weights = [1.0] * 100
    refuse(lambda self, x, e: x * sum(weights[: x.size(0)]), "(?s)second graph.*list slice")


def test_data_dependent_branch():
    def branch(self, x, e):
        return x * 2 if e.size(1) > 70 else x

    refuse(branch, rf"(?s)second graph.*size was tested.*{HERE}")


def test_loop_over_the_nodes():
    def loop(self, x, e):
        return torch.stack([x[i] * i for i in range(x.size(0))])

    refuse(loop, rf"(?s)second graph.*loop.*{HERE}")


def test_a_result_kept_by_hand():
    class Caches(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = gnn.GCNConv(7, 4)
            self.degree = None

        def forward(self, x, edge_index):
            if self.degree is None:
                self.degree = torch.bincount(edge_index[1], minlength=x.size(0)).clone()
            return self.conv(x, edge_index) * self.degree.view(-1, 1)

    graph, model = zoo.random_graph(), Caches()
    trace(model, (graph.x, graph.edge_index))
    model(graph.x, graph.edge_index)
    with pytest.raises(TraceError, match=r"check_inputs|'degree'"):
        trace(model, (graph.x, graph.edge_index))


def test_gradient_lost_in_the_trace():
    class Halved(nn.Module):
        def __init__(self):
            super().__init__()
            self.lin = nn.Linear(7, 4)

        def forward(self, x, edge_index):
            out = self.lin(x)
            if out.requires_grad:
                out.register_hook(lambda g: g * 0.5)
            return out

    graph = zoo.random_graph()
    with pytest.raises(TraceError, match=r"register_hook|gradient"):
        trace(Halved(), (graph.x, graph.edge_index))


def test_arguments_that_no_graph_can_hold():
    def generator(self, x, e):
        return torch.bernoulli(x.sigmoid(), generator=torch.Generator().manual_seed(0)) + x

    refuse(generator, rf"'bernoulli' at .*{HERE} got an argument of type 'Generator'")


def test_outputs_that_no_graph_can_hold():
    refuse(lambda self, x, e: Data(x=x), "returns a 'Data'.*return tensors")


def test_objects_as_inputs():
    class Net(nn.Module):
        def forward(self, graph):
            return graph.x

    with pytest.raises(TraceError, match=r"'graph' holds a Net.*small module"):
        trace(Net(), (Net(),))


@pytest.mark.parametrize(
    ("inputs", "match"),
    [
        (torch.zeros(3, 7), "must be a tuple of positional arguments or a dict.*not Tensor"),
        ([torch.zeros(3, 7)], "not list"),
        ((torch.zeros(3, 7),), "missing a required argument: 'edge_index'"),
        ({"x": torch.zeros(3, 7), "edges": None}, "does not fit forward"),
        ((torch.zeros(3, 6), torch.zeros(2, 4, dtype=torch.long)), "itself fails on the example inputs"),
    ],
)
def test_bad_example_inputs(inputs, match):
    with pytest.raises(TraceError, match=match):
        trace(zoo.build("gcn"), inputs)


def test_second_graph_that_the_model_rejects():
    class Fixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.position = nn.Parameter(torch.randn(20, 7))

        def forward(self, x, edge_index):
            return x + self.position

    graph = zoo.random_graph()
    with pytest.raises(TraceError, match=r"pass check_inputs"):
        trace(Fixed(), (graph.x, graph.edge_index))
    other = zoo.random_graph(20, 30, seed=2)
    module = trace(Fixed(), (graph.x, graph.edge_index), check_inputs=(other.x, other.edge_index))
    assert module(other.x, other.edge_index).shape == (20, 7)


def test_things_that_are_no_model():
    with pytest.raises(TraceError, match=r"needs a torch.nn.Module, not function"):
        trace(test_tolist)
    with pytest.raises(TraceError, match=r"no forward"):
        trace(nn.ModuleList([nn.Linear(2, 2)]), ())
    with pytest.raises(TraceError, match=r"trace model.module instead"):
        trace(nn.DataParallel(zoo.build("gcn")), tuple(zoo.random_graph()[:2]))


def test_traced_models_are_not_traced_again(traced):
    with pytest.raises(TraceError, match=r"traced already"):
        trace(traced("gin")[1], tuple(zoo.random_graph()[:2]))


def test_models_that_cannot_be_copied():
    model = zoo.build("gcn")
    model.handle = (i for i in range(3))
    with pytest.raises(TraceError, match=r"cannot be copied.*deepcopy"):
        trace(model, tuple(zoo.random_graph()[:2]))
