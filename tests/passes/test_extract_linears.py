"""``extract-linears``: every product with a parameter is a linear layer with a [M, K] weight."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch_geometric.nn import Linear

from gnnquant.passes.extract_linears import ExtractLinears
from gnnquant.quantizers import ops
from tests.passes.rewrites import FEATURES, calls, inputs, rewrite

K, M, STACK = FEATURES, 5, 3
PRODUCTS = {
    "F.linear": lambda x, w: F.linear(x, w.t(), w[0]),
    "matmul": lambda x, w: x @ w,
    "torch.matmul": torch.matmul,
    "mm": torch.mm,
    "mm of a transpose": lambda x, w: x.mm(w.t().t()),
    "a vector": lambda x, w: (x @ w[:, 0]).unsqueeze(-1),
    "mv": lambda x, w: torch.mv(x, w[:, 0]).unsqueeze(-1),
    "addmm": lambda x, w: torch.addmm(x[:, :M], x, w, beta=0.5, alpha=2.0),
    "addmm of a bias": lambda x, w: torch.addmm(w[0], x, w),
    "einsum": lambda x, w: torch.einsum("nk,km->nm", x, w),
    "einsum, implicit": lambda x, w: torch.einsum("nk,km", x, w),
    "einsum, weight first": lambda x, w: torch.einsum("km,nk->mn", w, x).t(),
    "antisymmetric": lambda x, w: x @ (w[:, :4] @ w[:, :4].t() - 0.1 * torch.eye(K)),
    "normalised": lambda x, w: x @ F.normalize(w, dim=0),
    "row axes": lambda x, w: (torch.stack([x, 2 * x], dim=1) @ w).sum(1),
}


class Product(nn.Module):
    def __init__(self, product: Any, *shape: int) -> None:
        super().__init__()
        self.product = product
        self.root = nn.Parameter(torch.randn(*shape))

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return self.product(x, self.root)


def _are_linear(module: Any, count: int) -> None:
    linears = calls(module, ops.linear)
    assert len(linears) == count
    for node in linears:
        assert len(node.args[2].meta["shape"]) == 2
        assert node.meta["shape"][-1] == node.args[2].meta["shape"][0]
    left = {"matmul", "mm", "mv", "addmm", "bmm", "baddbmm", "einsum", "linear"}
    names = {str(getattr(node.target, "__name__", node.target)) for node in module.graph.nodes}
    constant = {"matmul"} if count and "matmul" in names else set()
    assert not (names & left) - {"linear"} - constant


@pytest.mark.parametrize("name", PRODUCTS)
def test_products_with_a_parameter(name: str) -> None:
    module, result = rewrite(Product(PRODUCTS[name], K, M), inputs(), ExtractLinears())
    assert result.changed == 1
    _are_linear(module, 1)
    assert calls(module, ops.linear)[0].meta["linear"] == "root"


@pytest.mark.parametrize("kind", [nn.Linear, Linear])
def test_linear_modules(kind: Any) -> None:
    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lin = kind(K, M)

        def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
            return self.lin(x)

    module, _ = rewrite(Layer(), inputs(), ExtractLinears(), exact=True)
    _are_linear(module, 1)
    assert calls(module, ops.linear)[0].args[2].target == "lin.weight"


def test_a_normalised_weight_is_an_expression() -> None:
    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lin = parametrizations.weight_norm(nn.Linear(K, M))

        def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
            return self.lin(x)

    module, _ = rewrite(Layer(), inputs(), ExtractLinears())
    _are_linear(module, 1)
    node = calls(module, ops.linear)[0]
    assert node.meta["linear"] == "lin"
    assert node.args[2].op != "get_attr"


def test_bases_are_an_expression() -> None:
    class Bases(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(2, K, M))
            self.comp = nn.Parameter(torch.randn(4, 2))

        def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
            weight = (self.comp @ self.weight.view(2, -1)).view(4, K, M)
            return x @ weight[0] + x @ weight[3]

    module, result = rewrite(Bases(), inputs(), ExtractLinears())
    assert result.changed == 2
    assert len(calls(module, ops.linear)) == 2


STACKED = {
    "one layer with all outputs": (lambda x, w: (x.unsqueeze(0) @ w).sum(0), 1),
    "one layer for each": (lambda x, w: (torch.stack([x, x + 1, x + 2]) @ w).sum(0), STACK),
    "bmm": (lambda x, w: torch.bmm(torch.stack([x, x + 1, x + 2]), w).sum(0), STACK),
    "einsum": (lambda x, w: torch.einsum("nsk,skm->nsm", torch.stack([x, x, x], 1), w).sum(1), STACK),
    "two summed axes": (lambda x, w: torch.einsum("nsk,skm->nm", torch.stack([x, x, x], 1), w), 1),
    "baddbmm": (
        lambda x, w: torch.baddbmm(w[:, :1], torch.stack([x, x + 1, x + 2]), w, beta=0.5).sum(0),
        STACK,
    ),
}


@pytest.mark.parametrize("name", STACKED)
def test_stacked_weights(name: str) -> None:
    product, count = STACKED[name]
    module, result = rewrite(Product(product, STACK, K, M), inputs(), ExtractLinears())
    assert result.changed == 1
    _are_linear(module, count)


def test_what_is_no_linear_layer_stays() -> None:
    module, result = rewrite(Product(lambda x, w: x @ (x.t() @ x), K, M), inputs(), ExtractLinears())
    assert result.changed == 0
    module, result = rewrite(Product(lambda x, w: x[:5].t() @ w.t() @ w, 5, 5), inputs(), ExtractLinears())
    assert calls(module, ops.linear)
    _, result = rewrite(Product(lambda x, w: w @ x[:K], M, K), inputs(), ExtractLinears())
    assert "sums over the rows" in result.notes[0]
    big = Product(lambda x, w: (x.unsqueeze(0).repeat(70, 1, 1) @ w).sum(0), 70, K, M)
    _, result = rewrite(big, inputs(), ExtractLinears())
    assert "stack of more than 64" in result.notes[0]
