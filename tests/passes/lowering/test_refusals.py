"""What cannot be lowered is refused by the name of its node, with the reason."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn
from torch_geometric import nn as gnn

import gnnquant
from gnnquant.errors import BackendError, InputError
from gnnquant.passes.lowering import lower
from tests.passes.lowering.helpers import lowered
from tests.zoo import random_graph

if TYPE_CHECKING:
    from collections.abc import Callable

X, EDGES, WEIGHT, BATCH = random_graph()


class Function(nn.Module):
    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor, edge_index: Tensor) -> Any:
        return self.function(x, edge_index)


def test_missing_ranges_are_named() -> None:
    converted = gnnquant.convert(gnn.GCNConv(7, 6), (X, EDGES), bits=8)
    with pytest.raises(BackendError, match=r"'lin.input' has no range yet: call gnnquant.calibrate"):
        lower(converted)


def test_pooling_by_scores() -> None:
    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pool = gnn.TopKPooling(7)

        def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
            return self.pool(x, edge_index)[0]

    with pytest.raises(BackendError, match=r"topk: which rows remain depends on scores"):
        lowered(Pooled(), X, EDGES)


REFUSED: dict[str, tuple[Callable[..., Any], str]] = {
    "edges out": (lambda x, e: (x * 2, e), "it returns integers"),
    "dense attention": (lambda x, e: (x @ x.t()).softmax(-1) @ x, "every row meets every other"),
    "outer": (lambda x, e: x[:, :1] + x[:, 0], "broadcasts rows across rows"),
    "median": (lambda x, e: x - x.median(), "orders rows by values"),
    "cumulative": (lambda x, e: x.cumsum(0), "running sums of floats"),
    "noise": (lambda x, e: x + torch.rand(7), "draws random numbers"),
    "no rule": (lambda x, e: torch.special.bessel_j0(x), "there is no rule for"),
    "transposed output": (lambda x, e: (x * 2).t(), "an output's rows are not its first axis"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    function, reason = REFUSED[name]
    with pytest.raises(BackendError, match=r"^cannot lower") as error:
        lowered(Function(function), X, EDGES)
    assert reason in str(error.value)


def test_float64_inputs() -> None:
    with pytest.raises(BackendError, match=r"the input 'x' is a torch.float64 tensor"):
        lowered(Function(lambda x, e: x * 2), X.double(), EDGES)


def test_rows_that_meet_must_be_equally_many() -> None:
    class Sum(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return x + y

    model = gnnquant.compile(gnnquant.convert(Sum(), (X, X), bits=32), (X, X), target="reference")
    with pytest.raises(InputError, match=r"the rows of 'x' and the rows of 'y' must be equally many"):
        model(X, X[:9])


def test_indices_out_of_range() -> None:
    class Pick(nn.Module):
        def forward(self, x: Tensor, index: Tensor) -> Tensor:
            return x[index]

    index = torch.tensor([0, 3])
    model = gnnquant.compile(gnnquant.convert(Pick(), (X, index), bits=32), (X, index), target="reference")
    assert torch.equal(torch.as_tensor(model(X, torch.tensor([4]))), X[4:5])
    with pytest.raises(InputError, match="index"):
        model(X, torch.tensor([20]))


def test_a_change_in_place_that_others_see() -> None:
    def changed(x: Tensor, edge_index: Tensor) -> Tensor:
        hidden = x * 2
        view = hidden.view(-1, 7)
        view.relu_()
        return hidden + 1

    with pytest.raises(BackendError, match=r"it changes a tensor in place, and 'add' reads it"):
        lowered(Function(changed), X, EDGES)
