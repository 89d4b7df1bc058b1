"""Sums before or after a linear layer, whichever gathers fewer columns."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn
from torch_geometric import nn as gnn

import gnnquant
from gnnquant import ir
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
