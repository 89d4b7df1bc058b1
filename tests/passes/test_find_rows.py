"""``find-rows``: rows that are not the first axis have one scale each, in torch and in compiled code."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch_geometric import nn as gnn

import gnnquant
from gnnquant.errors import BackendError
from gnnquant.quantizers.calibration import quantizers_of
from tests.passes.rewrites import FEATURES, NODES, inputs

K = FEATURES


class Unsqueezed(nn.Module):
    """A linear layer over [1, N, K], as transformers take it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.lin = gnn.GCNConv(K, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return self.lin(self.conv(x, edge_index).unsqueeze(0)).squeeze(0)


class Stacked(nn.Module):
    """One layer over a stack [2, N, 8] of two results, and a stack that is read again later."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.lin = gnn.GCNConv(K, 8), gnn.SAGEConv(K, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        both = torch.stack([self.one(x, edge_index), self.two(x, edge_index)]).relu()
        return (both + self.lin(both)).sum(0)


class Moved(nn.Module):
    """Rows in the middle: [8, N, 1] after a transpose."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.lin = gnn.GCNConv(K, 8), nn.Linear(1, 3)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return self.lin(self.conv(x, edge_index).t().unsqueeze(-1)).mean(dim=0)


def _converted(model: nn.Module, bits: int = 4) -> Any:
    torch.manual_seed(0)
    return gnnquant.calibrate(gnnquant.convert(model, inputs(), bits=bits), [inputs()])


@pytest.mark.parametrize("model", [Unsqueezed, Stacked, Moved])
@pytest.mark.parametrize("seed", [0, 7])
def test_compiled_numbers_are_those_of_the_model_that_trains(model: type[nn.Module], seed: int) -> None:
    q = _converted(model())
    x, edge_index = inputs(seed)
    x = x * torch.linspace(0.01, 100, NODES).view(-1, 1)  # rows of very different magnitude
    with torch.no_grad():
        trained = q.eval()(x, edge_index)
    compiled = gnnquant.compile(q, target="reference")(x, edge_index)
    torch.testing.assert_close(compiled, trained, rtol=1e-4, atol=1e-5)


def _second(q: Any) -> list[Any]:
    """Quantizers whose rows are the second axis."""
    return [quantizer for quantizer in quantizers_of(q).values() if quantizer.row_axis == 1]


def test_every_row_has_a_scale() -> None:
    q = _converted(Stacked())
    shapes: list[torch.Size] = []
    for quantizer in _second(q):
        quantizer.register_forward_hook(lambda _, __, out: shapes.append(out.scale.shape))
    q(*inputs())
    assert shapes == [(1, NODES, 1)] * 2  # the operand of the layer, and the value kept for the sum


def test_rows_of_another_axis_are_refused() -> None:
    q = _converted(Unsqueezed())
    _second(q)[0].row_axis = 0
    with pytest.raises(BackendError, match=r"quantizer.*rows are axis 1, and axis 0 was quantized"):
        gnnquant.compile(q, target="reference")


def test_what_parameters_alone_determine_is_not_stored_in_eight_bits() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bias = gnn.GCNConv(K, K), nn.Parameter(torch.randn(1, K))

        def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
            offset = 2 * self.bias
            return self.conv(self.conv(x, edge_index) + offset, edge_index) + offset

    assert [site for site in _converted(Shared()).sites.values() if site.kind == "skip"] == []
