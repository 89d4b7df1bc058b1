"""``functionalize``: what works in place and is seen by nobody else gets a result of its own."""

from __future__ import annotations

import operator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gnnquant.passes.functionalize import Functionalize
from gnnquant.tracing.graph_ops import set_item
from tests.passes.rewrites import calls, inputs, rewrite


class InPlace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(7, 7)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        x = F.leaky_relu_(self.lin(x)) * 3
        x.add_(1.0)
        x *= 2
        y = self.act(self.lin(x)) * 2
        heads = y.view(-1, 7, 1)
        heads[heads > 1] = 0.5
        return heads.flatten(1)


class Shared(nn.Module):
    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        y = x * 2
        first = y[0]
        first.add_(1.0)
        return y


class Augmented(nn.Module):
    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        y = x * 2
        y[0] += 1.0
        return y


def test_operations_in_place_become_functional() -> None:
    module, result = rewrite(InPlace(), inputs(), Functionalize(), exact=True)
    assert result.changed == 5
    assert not result.notes
    assert not calls(module, "add_")
    assert not calls(module, operator.imul)
    assert not calls(module, operator.setitem)
    assert len(calls(module, set_item)) == 1
    assert not module.get_submodule("act").inplace


def test_a_view_that_is_read_afterwards_keeps_the_operation() -> None:
    module, result = rewrite(Shared(), inputs(), Functionalize(), exact=True)
    assert result.changed == 0
    assert "view of the same memory" in result.notes[0]
    assert len(calls(module, "add_")) == 1


def test_an_augmented_assignment_is_functional() -> None:
    module, result = rewrite(Augmented(), inputs(), Functionalize(), exact=True)
    assert not result.notes
    assert not calls(module, operator.iadd)
    assert not calls(module, "add_")


def test_gradients_stay() -> None:
    torch.manual_seed(0)
    model = InPlace()
    x, edge_index = inputs()
    module, _ = rewrite(model, (x, edge_index), Functionalize())
    for run in (model, module):
        run(x, edge_index).sum().backward()
    torch.testing.assert_close(model.lin.weight.grad, module.get_parameter("lin.weight").grad)
