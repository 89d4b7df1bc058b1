"""``share-values``: equal gathers and reshapes are one node, elementwise operations stay."""

from __future__ import annotations

from torch import Tensor, nn

from gnnquant.passes.share_values import ShareValues
from tests.passes.rewrites import calls, inputs, rewrite


class Twice(nn.Module):
    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        first = x.index_select(0, edge_index[0]) + 1
        second = x.index_select(0, edge_index[0]) * 2
        return first + second + x.t().t().index_select(0, edge_index[0])


class Elementwise(nn.Module):
    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return (x * 2) + (x * 2).relu()


def test_equal_gathers_are_merged() -> None:
    module, result = rewrite(Twice(), inputs(), ShareValues(), exact=True)
    assert result.changed == 3
    assert len(calls(module, "index_select")) == 2


def test_elementwise_operations_are_computed_again() -> None:
    _, result = rewrite(Elementwise(), inputs(), ShareValues(), exact=True)
    assert result.changed == 0
