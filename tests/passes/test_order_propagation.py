"""Sums before or after a linear layer, whichever gathers fewer columns."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn
from torch_geometric import nn as gnn

import gnnquant
from gnnquant import QuantConfig, QuantSpec, ir
from gnnquant.passes.extract_linears import ExtractLinears
from gnnquant.passes.order_propagation import OrderPropagation
from gnnquant.passes.recognize_propagation import RecognizePropagation
from gnnquant.passes.share_values import ShareValues
from gnnquant.quantizers import ops
from gnnquant.quantizers.calibration import quantizers_of
from tests.passes.rewrites import EDGES, FEATURES, NODES, calls, inputs, rewrite
from tests.zoo import random_graph

if TYPE_CHECKING:
    from gnnquant.passes.base import Pass

PASSES: tuple[Pass, ...] = (ExtractLinears(), ShareValues(), RecognizePropagation(), OrderPropagation())
WIDE = FEATURES + 4


class TwoLayers(nn.Module):
    """Widens, then narrows."""

    def __init__(self, features: int = FEATURES, hidden: int = WIDE) -> None:
        super().__init__()
        self.first, self.second = gnn.GCNConv(features, hidden), gnn.GCNConv(hidden, 3)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return self.second(self.first(x, edge_index).relu(), edge_index)


def order(module: Any) -> list[tuple[str, int]]:
    """Layers and sums in order, with the columns of their results."""
    names = {ops.linear: "linear", ops.propagate: "sum"}
    return [
        (names[node.target], node.meta["shape"][1]) for node in module.graph.nodes if node.target in names
    ]


def test_wide_layers_come_after_the_sum_and_narrow_ones_before() -> None:
    module, result = rewrite(TwoLayers(), inputs(), *PASSES)
    assert (result.changed, result.notes) == (1, ())
    assert order(module) == [("sum", FEATURES), ("linear", WIDE), ("linear", 3), ("sum", 3)]
    messages = [(node.args[1], node.meta["shape"]) for node in calls(module, ir.message)]
    assert messages == [("first", (NODES, FEATURES)), ("second", (NODES, 3))]


@pytest.mark.parametrize("features", [WIDE, WIDE + 1])
def test_layers_that_do_not_widen_stay(features: int) -> None:
    x = torch.randn(NODES, features)
    module, result = rewrite(TwoLayers(features, WIDE), (x, inputs()[1]), *PASSES)
    assert result.changed == 0
    assert order(module)[0] == ("linear", WIDE)


class Sums(gnn.MessagePassing):
    """A linear layer, then a weighted sum."""

    def __init__(self, *, bias: bool = False, **options: Any) -> None:
        super().__init__(**options)
        self.lin = nn.Linear(FEATURES, WIDE, bias=bias)

    def forward(self, x: Tensor, edge_index: Tensor, weight: Tensor) -> Tensor:
        return self.propagate(edge_index, x=self.lin(x), weight=weight)

    def message(self, x_j: Tensor, weight: Tensor) -> Tensor:
        return x_j * weight.view(-1, 1)


class Twice(Sums):
    """What the layer computes is used again."""

    def forward(self, x: Tensor, edge_index: Tensor, weight: Tensor) -> Tensor:
        rows = self.lin(x)
        return self.propagate(edge_index, x=rows, weight=weight) + rows


class Copies(Sums):
    """Messages are copies."""

    def message(self, x_j: Tensor) -> Tensor:
        return x_j


@pytest.mark.parametrize("reduce", ["sum", "mean"])
def test_weighted_sums_and_means(reduce: str) -> None:
    example = (*inputs(), torch.rand(EDGES) - 0.5)
    module, result = rewrite(Sums(aggr=reduce), example, *PASSES)
    assert result.changed == 1
    assert order(module) == [("sum", FEATURES), ("linear", WIDE)]


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (lambda: Sums(bias=True), "has a bias"),
        (Twice, "is read elsewhere too"),
        (lambda: Copies(aggr="max"), "its maximum does not commute"),
    ],
)
def test_others_say_why_not(layer: Any, reason: str) -> None:
    module, result = rewrite(layer(), (*inputs(), torch.rand(EDGES)), *PASSES)
    assert result.changed == 0
    assert reason in result.notes[0]
    assert order(module)[0] == ("linear", WIDE)


class Elsewhere(nn.Module):
    """The layer stands outside of the convolution that sums."""

    def __init__(self) -> None:
        super().__init__()
        self.lin, self.sum = nn.Linear(FEATURES, WIDE, bias=False), gnn.SimpleConv("sum")

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return self.sum(self.lin(x), edge_index)


class BothSides(Elsewhere):
    """Sources and destinations are different rows."""

    def forward(self, x: Tensor, others: Tensor, edge_index: Tensor) -> Tensor:
        return self.sum((self.lin(x), others), edge_index)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_halves_stay(dtype: torch.dtype) -> None:
    x, edge_index = inputs()
    module, result = rewrite(TwoLayers().to(dtype), (x.to(dtype), edge_index), *PASSES)
    assert result.changed == 0
    assert result.notes == (f"first.lin: in {dtype} the other order would round too differently",)
    assert order(module)[0] == ("linear", WIDE)


@pytest.mark.parametrize(("rows", "changed"), [(NODES - 1, 1), (NODES, 1), (NODES + 1, 0)])
def test_a_sum_into_more_rows_stays_last(rows: int, changed: int) -> None:
    x, edge_index = inputs()
    edge_index = torch.stack([edge_index[0], edge_index[1] % rows])
    module, result = rewrite(BothSides(), (x, torch.randn(rows, WIDE), edge_index), *PASSES)
    assert result.changed == changed
    assert (order(module)[0] == ("linear", WIDE)) is not bool(changed)
    assert result.notes == (() if changed else ("lin: there are more rows after the sum than before it",))


@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr])
def test_sparse_features_stay(layout: torch.layout) -> None:
    graphs = [random_graph(20, 64, features=4), random_graph(33, 150, features=4, seed=1)]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support", category=UserWarning)
        example, other = ((graph.x.relu().to_sparse(layout=layout), graph.edge_index) for graph in graphs)
        q = gnnquant.convert(gnn.GCNConv(4, 16), example, bits=8, check_inputs=other)
    (layer,) = (node for node in q.graph.nodes if node.target is ops.linear)
    assert layer.args[0].op == "placeholder"


@pytest.mark.parametrize(
    ("config", "stays"),
    [
        (QuantConfig(), False),
        (QuantConfig(aggregate=QuantSpec(bits=8)), False),
        (QuantConfig(input=QuantSpec(bits=8), message=QuantSpec(bits=8)), False),
        (QuantConfig(input=QuantSpec(bits=8)), True),
        (QuantConfig(input=QuantSpec(enabled=False)), True),
        (QuantConfig(sites={"first.lin.input": QuantSpec(granularity="tensor")}), True),
    ],
)
def test_inputs_keep_what_the_user_asked_for(config: QuantConfig, stays: bool) -> None:
    q = gnnquant.convert(TwoLayers(), inputs(), bits=4, config=config)
    asked = config.resolve("first.lin.input", "input", 4)
    assert ("first.aggregate" in q.sites) is not stays
    assert ("first.lin.input" in q.sites) is bool(stays and asked.enabled)
    if "first.lin.input" in q.sites:
        site = q.sites["first.lin.input"]
        assert (site.bits, site.granularity) == (asked.bits, asked.granularity)


@pytest.mark.parametrize(("model", "site"), [(Elsewhere(), "sum.aggregate"), (Copies(), "aggregate")])
def test_what_a_moved_layer_reads_is_an_aggregate(model: nn.Module, site: str) -> None:
    example = inputs() if isinstance(model, Elsewhere) else (*inputs(), torch.rand(EDGES))
    q = gnnquant.convert(model, example, bits=4, config=QuantConfig(aggregate=QuantSpec(bits=8)))
    assert (q.sites[site].kind, q.sites[site].bits) == ("aggregate", 8)
    assert "lin.input" not in q.sites


def test_heads_of_attention_stay() -> None:
    module, result = rewrite(gnn.GATConv(FEATURES, WIDE, heads=2), inputs(), *PASSES)
    assert result.changed == 0
    assert order(module)[0][0] == "linear"


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_reordered_models_compile_and_train(bits: int) -> None:
    torch.manual_seed(0)
    model = TwoLayers(16, 40)
    graphs = [random_graph(60, 300, features=16), random_graph(9, 0, features=16)]
    q = gnnquant.convert(model, (graphs[0].x, graphs[0].edge_index), bits=bits)
    names = {"first.message", "first.aggregate", "first.lin.weight", "first.update"}
    assert names <= q.sites.keys()
    gnnquant.calibrate(q, [(graphs[0].x, graphs[0].edge_index)])
    compiled, reference = gnnquant.compile(q), gnnquant.compile(q, target="reference")
    for graph in graphs:
        assert torch.equal(compiled(graph.x, graph.edge_index), reference(graph.x, graph.edge_index))
    q.train()(graphs[0].x, graphs[0].edge_index).square().sum().backward()
    for name, quantizer in quantizers_of(q).items():
        assert all(parameter.grad is not None for parameter in quantizer.parameters()), name
