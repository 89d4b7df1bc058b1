"""What users do to their models: lazy shapes, caches, tied and computed weights, checkpoints, scripts."""

from __future__ import annotations

import math
import pickle
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint
from torch_geometric import nn as gnn

from gnnquant.errors import TraceError
from gnnquant.tracing import trace
from tests import zoo
from tests.tracing.exactness import assert_same

GRAPH, OTHER = zoo.random_graph(), zoo.random_graph(33, 150, seed=5)
EXAMPLE, SECOND = tuple(GRAPH[:2]), tuple(OTHER[:2])

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)

    @torch.jit.script
    def gated(x: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
        return x * gate.sigmoid()


class Body(nn.Module):
    """A convolution and a linear layer."""

    def __init__(self, lin=None, conv=None):
        super().__init__()
        self.conv = conv or gnn.GCNConv(zoo.FEATURES, 8)
        self.lin = lin or nn.Linear(8, 4)

    def forward(self, x, edge_index):
        return self.lin(self.conv(x, edge_index).relu())


class Lazy(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.lin = gnn.GCNConv(-1, 8), nn.LazyLinear(8)
        self.norm, self.last = nn.LazyBatchNorm1d(), gnn.SAGEConv((-1, -1), 4)

    def forward(self, x, edge_index):
        x = self.norm(self.lin(self.conv(x, edge_index)))
        return self.last((x, x), edge_index)


def test_lazy_layers_get_their_shapes_from_the_example():
    model = Lazy().train()
    module = trace(model, EXAMPLE)
    assert nn.parameter.is_lazy(model.lin.weight)
    assert model.conv.lin.in_channels == -1
    assert module.lin.weight.shape == (8, 8)
    assert module.training
    model(*EXAMPLE)
    model.load_state_dict(module.state_dict())
    assert_same(model, module, *SECOND)


def test_lazy_layers_that_are_not_used():
    model = Lazy()
    model.unused = nn.LazyLinear(3)
    with pytest.raises(TraceError, match=r"'unused.weight' has no shape.*does not use it"):
        trace(model, EXAMPLE)


class Cached(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = gnn.GCNConv(zoo.FEATURES, 8, cached=True)
        self.second = gnn.SGConv(8, 8, K=2, cached=True)
        self.third, self.fourth = gnn.GCN2Conv(8, 0.1, cached=True), gnn.APPNP(2, 0.1, cached=True)

    def forward(self, x, edge_index):
        x = self.second(self.first(x, edge_index), edge_index)
        return self.fourth(self.third(x, x, edge_index), edge_index)


@pytest.mark.parametrize("filled", [False, True])
def test_caches_are_neither_used_nor_emptied(filled):
    model = Cached()
    if filled:
        model(*EXAMPLE)
    caches = model.first._cached_edge_index, model.second._cached_x
    module = trace(model, EXAMPLE)
    assert caches == (model.first._cached_edge_index, model.second._cached_x)
    assert_same(model, module, *SECOND)  # copies start with empty caches


def test_shared_layers_and_tied_weights_stay_so():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.lin = nn.Linear(zoo.FEATURES, 8)
            self.conv, self.tied = gnn.GCNConv(8, 8), gnn.GCNConv(8, 8)
            self.tied.lin.weight = self.conv.lin.weight
            self.again = self.conv

        def forward(self, x, edge_index):
            x = self.conv(self.lin(x), edge_index)
            return self.again(self.tied(x, edge_index), edge_index)

    model = Net()
    module = trace(model, EXAMPLE)
    assert_same(model, module, *SECOND)
    for twin in (module, pickle.loads(pickle.dumps(module))):
        assert twin.tied.lin.weight is twin.conv.lin.weight
        assert len(list(twin.parameters())) == 5
    messages = [n.args[1:] for n in module.graph.nodes if n.meta.get("gnn_role") == "message"]
    assert messages == [("conv", 0), ("tied", 0), ("conv", 1)]


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")
@pytest.mark.parametrize(
    "wrap",
    [
        parametrizations.weight_norm,
        parametrizations.spectral_norm,
        parametrizations.orthogonal,
        nn.utils.weight_norm,
        nn.utils.spectral_norm,
    ],
    ids=["weight_norm", "spectral_norm", "orthogonal", "old weight_norm", "old spectral_norm"],
)
def test_computed_weights_are_visible(wrap):
    torch.manual_seed(0)
    model = Body(wrap(nn.Linear(8, 4)))
    module = trace(model, EXAMPLE)
    assert_same(model, module, *SECOND)
    assert "linear" in {
        getattr(n.target, "__name__", "")
        for n in module.graph.find_nodes(op="call_function", target=torch._C._nn.linear)
    }
    assert "lin" not in {n.target for n in module.graph.find_nodes(op="call_module")}


def test_a_parametrised_layer_inside_of_a_convolution():
    model = Body()
    parametrizations.weight_norm(model.conv.lin)
    assert_same(model, trace(model, EXAMPLE), *SECOND)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions(dtype):
    model = zoo.build("gat").to(dtype)
    module = trace(model, (GRAPH.x.to(dtype), GRAPH.edge_index))
    assert_same(model, module, OTHER.x.to(dtype), OTHER.edge_index)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoints_are_seen_through(reentrant):
    class Net(Body):
        def forward(self, x, edge_index):
            x = checkpoint(self.conv, x, edge_index, use_reentrant=reentrant)
            return checkpoint(lambda value: self.lin(value).relu(), x, use_reentrant=reentrant)

    model = Net()
    module = trace(model, EXAMPLE)
    assert_same(model, module, *SECOND)
    assert "lin" in {n.target for n in module.graph.find_nodes(op="call_module")}


@pytest.mark.filterwarnings("ignore:`torch.jit.*` is deprecated:DeprecationWarning")
def test_scripted_helpers():
    class Net(Body):
        def forward(self, x, edge_index):
            return gated(super().forward(x, edge_index), x[:, :1])

    model = Net(torch.jit.script(nn.Linear(8, 4)))
    module = trace(model, EXAMPLE)
    assert torch.equal(module.eval()(*SECOND), model.eval()(*SECOND))


def test_numbers_from_attributes_and_math():
    class Net(Body):
        def __init__(self):
            super().__init__()
            self.ratio = 0.5

        def forward(self, x, edge_index):
            x = super().forward(x, edge_index)
            best = x[:, 0].topk(int(self.ratio * x.size(0))).indices
            return x / math.sqrt(x.size(0)) + x[best].mean(0)

    model = Net()
    assert_same(model, trace(model, EXAMPLE), *SECOND)


def test_a_train_method_that_returns_nothing():
    class Net(Body):
        def train(self, mode=True):
            super().train(mode)

    trace(Net(), EXAMPLE)


def test_invertible_layers():
    model = gnn.GroupAddRev(gnn.GCNConv(4, 4), num_groups=2)
    x, y = torch.randn(20, 8), torch.randn(33, 8)
    module = trace(model, (x, GRAPH.edge_index))
    assert torch.equal(module.eval()(y, OTHER.edge_index), model.eval()(y.clone(), OTHER.edge_index))


@pytest.mark.parametrize(
    "drop",
    [
        lambda x, training: torch.dropout(x, 0.3, training),
        lambda x, training: torch.alpha_dropout(x, 0.3, train=training),
        lambda x, training: nn.functional.feature_alpha_dropout(x, 0.3, training),
        lambda x, training: torch.native_dropout(x, 0.3, training)[0],
        lambda x, training: nn.functional.dropout(x, 0.3 if training else 0.0),
        lambda x, training: nn.functional.scaled_dot_product_attention(
            x[None], x[None], x[None], dropout_p=0.3 if training else 0.0
        )[0],
    ],
    ids=["torch", "alpha", "feature_alpha", "native", "probability", "attention"],
)
def test_every_way_to_say_dropout(drop):
    class Net(Body):
        def forward(self, x, edge_index):
            return drop(super().forward(x, edge_index), self.training)

    model = Net()
    assert_same(model, trace(model, EXAMPLE), *SECOND)


def test_a_guarded_maximum_holds_without_edges() -> None:
    class Guarded(nn.Module):
        def __init__(self):
            super().__init__()
            self.lin = nn.Linear(zoo.FEATURES, 4)

        def forward(self, x, edge_index):
            count = 0
            if edge_index.numel() > 0:
                count = int(edge_index[1].max()) + 1
            return self.lin(x).sum(0) * count

    model = Guarded()
    traced = trace(model, EXAMPLE, check_inputs=SECOND)
    for inputs in (EXAMPLE, SECOND, (GRAPH[0], GRAPH[1][:, :0])):
        assert torch.equal(traced(*inputs), model(*inputs))


def test_random_numbers_that_nobody_reads_are_drawn_nonetheless() -> None:
    class Wasteful(Body):
        def forward(self, x, edge_index):
            functional.dropout(x, training=self.training)
            torch.rand_like(x)
            return functional.dropout(super().forward(x, edge_index), training=self.training)

    model = Wasteful()
    assert_same(model, trace(model, EXAMPLE, check_inputs=SECOND), *SECOND)


def test_reentrant_checkpoints_inside_of_the_model() -> None:
    class Deep(Body):
        def __init__(self):
            super().__init__()
            self.deep = gnn.DeepGCNLayer(
                gnn.GENConv(8, 8, norm="layer"), nn.LayerNorm(8), nn.ReLU(), "res+", 0.1, True
            )

        def forward(self, x, edge_index):
            return self.lin(self.deep(self.conv(x, edge_index), edge_index))

    model = Deep()
    assert_same(model, trace(model, EXAMPLE, check_inputs=SECOND), *SECOND)
