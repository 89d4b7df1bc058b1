"""Layers that cannot be looked into stay one node each, unless the user is strict."""

from __future__ import annotations

import builtins
import pickle

import numpy as np
import pytest
import torch
from torch import nn
from torch_geometric import nn as gnn

import gnnquant
from gnnquant.errors import BackendError, TraceError
from gnnquant.tracing import trace
from tests import zoo
from tests.tracing.exactness import assert_same

GRAPH, OTHER = zoo.random_graph(), zoo.random_graph(33, 150, seed=5)
EXAMPLE, SECOND = tuple(GRAPH[:2]), tuple(OTHER[:2])


class Filters(gnn.MessagePassing):
    """Chooses its edges in Python."""

    def __init__(self, width=8):
        super().__init__(aggr="add")
        self.lin = nn.Linear(width, 8)

    def forward(self, x, edge_index):
        keep = [i for i, (a, b) in enumerate(edge_index.t().tolist()) if (a + b) % 3]
        return self.propagate(edge_index[:, torch.tensor(keep)], x=self.lin(x))

    def message(self, x_j):
        return x_j * 2


class Shifts(Filters):
    """Takes values through NumPy."""

    def forward(self, x, edge_index):
        highest = torch.from_numpy(np.sort(x.detach().numpy(), axis=0)[-1])
        return self.propagate(edge_index, x=self.lin(x - highest))


class Raises(Filters):
    """Fails while it is traced."""

    def forward(self, x, edge_index):
        if type(x.size(0)) is not builtins.int:
            raise RuntimeError("found out")
        return self.propagate(edge_index, x=self.lin(x))


class Net(nn.Module):
    def __init__(self, *middle):
        super().__init__()
        self.first = gnn.GCNConv(zoo.FEATURES, 8)
        self.middle = nn.ModuleList(middle)
        self.last = gnn.GATConv(8, 4, dropout=0.3)

    def forward(self, x, edge_index):
        x = self.first(x, edge_index).relu()
        for conv in self.middle:
            x = conv(x, edge_index).relu()
        return self.last(x, edge_index)


@pytest.mark.parametrize(
    ("middle", "whole"),
    [
        ([Filters()], ("middle.0",)),
        ([Shifts()], ("middle.0",)),
        ([gnn.GCNConv(8, 8), Raises()], ("middle.1",)),
        ([Filters(), gnn.GCNConv(8, 8), Shifts()], ("middle.0", "middle.2")),
    ],
    ids=["Filters", "Shifts", "Raises", "two"],
)
def test_only_the_culprits_stay_whole(middle, whole):
    model = Net(*middle)
    with pytest.warns(
        UserWarning, match=r"(?s)'middle\.\d' cannot be looked into.*Why: .*test_fallback\.py"
    ) as seen:
        module = trace(model, EXAMPLE, strict=False)
    assert module.whole_layers == whole
    assert len(seen) == len(whole)
    assert_same(model, module, *SECOND)
    assert [n.target for n in module.graph.find_nodes(op="call_module") if n.target in whole] == list(whole)
    with pytest.raises(TraceError, match="traced"):
        trace(model, EXAMPLE)


def test_a_layer_that_is_the_whole_model():
    model = gnn.WLConv()
    colours, others = torch.randint(5, (20,)), torch.randint(5, (33,))
    with pytest.warns(UserWarning, match="WLConv"):
        module = trace(model, (colours, GRAPH.edge_index), strict=False)
    assert torch.equal(module(others, OTHER.edge_index), gnn.WLConv()(others, OTHER.edge_index))


def test_models_that_no_leaf_helps():
    class Hostile(Net):
        def forward(self, x, edge_index):
            return super().forward(x, edge_index) * sum(edge_index[0].tolist())

    with pytest.raises(TraceError, match="tolist"):
        trace(Hostile(), EXAMPLE, strict=False)


def test_whole_layers_are_quantized_trained_and_copied():
    model = Net(Filters(), gnn.GCNConv(8, 8))
    with pytest.warns(UserWarning, match="Filters 'middle.0'"):
        q = gnnquant.convert(model, EXAMPLE, bits=4)
    kinds = {name: site.kind for name, site in q.sites.items()}
    assert kinds["middle.0.message"] == "message"
    assert kinds["middle.0.aggregate"] == "aggregate"
    assert q.sites["middle.0.message"].shape[1] == 8
    gnnquant.calibrate(q, [EXAMPLE])
    q.train()
    q(*SECOND).square().sum().backward()
    ranges = {n: p.grad for n, p in q.named_parameters() if n.startswith("middle.0.") and "scale" in n}
    assert len(ranges) == 2
    assert all(gradient is not None for gradient in ranges.values())
    q.eval()
    twin = pickle.loads(pickle.dumps(q))
    before = q(*SECOND)
    assert torch.equal(twin(*SECOND), before)
    with torch.no_grad():
        twin.get_submodule("middle.0.message_quantizer").log_scale += 1
    assert not torch.equal(twin(*SECOND), before)
    assert torch.equal(q(*SECOND), before)
    with pytest.raises(BackendError, match="middle_0"):
        gnnquant.compile(q, EXAMPLE)
    with pytest.raises(TraceError, match="tolist"):
        gnnquant.convert(model, EXAMPLE, strict=True)


def test_integers_have_nothing_to_quantize():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.colour, self.embedding = gnn.WLConv(), nn.Embedding(50, 8)
            self.conv = gnn.GCNConv(8, 4)

        def forward(self, colour, edge_index):
            return self.conv(self.embedding(self.colour(colour, edge_index) % 50), edge_index)

    with pytest.warns(UserWarning, match="WLConv 'colour'"):
        q = gnnquant.convert(Net(), (torch.randint(5, (20,)), GRAPH.edge_index), bits=4)
    assert not [name for name in q.sites if name.startswith("colour")]
    assert q(torch.randint(5, (33,)), OTHER.edge_index).shape == (33, 4)
