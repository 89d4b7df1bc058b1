"""Dropout with cheap masks: rate, mean, gradient, and where it stands in a converted model."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch_geometric import nn as gnn

import gnnquant
from gnnquant.quantizers.dropout import Dropout, replace_dropout


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_rate_and_mean(p: float) -> None:
    torch.manual_seed(0)
    x = torch.ones(333, 301)
    out = Dropout(p).train()(x)
    kept = out != 0
    assert float(kept.float().mean()) == pytest.approx(1 - p, abs=0.006)  # 5 standard deviations
    torch.testing.assert_close(out[kept], torch.full_like(out[kept], 1 / (1 - p)), rtol=2e-4, atol=0)
    columns = kept.float().mean(dim=0)
    assert float((columns - (1 - p)).abs().max()) < 0.15  # no column is favoured


def test_gradient_goes_through_what_is_kept() -> None:
    torch.manual_seed(0)
    x = torch.randn(5, 7, dtype=torch.float64, requires_grad=True)
    out = Dropout(0.25).train()(x.t())
    out.sum().backward()
    torch.testing.assert_close(x.grad, (out / x.t()).t().detach())
    assert set(out.ne(0).flatten().tolist()) == {True, False}


def test_extremes_and_eval() -> None:
    x = torch.randn(3, 4)
    assert torch.equal(Dropout(0.5).eval()(x), x)
    assert torch.equal(Dropout(0.0).train()(x), x)
    assert not Dropout(1.0).train()(x).any()
    assert Dropout(0.5).train()(torch.zeros(0, 4)).shape == (0, 4)


def test_the_seed_decides() -> None:
    x, layer = torch.ones(50, 3), Dropout(0.5).train()
    torch.manual_seed(3)
    first = layer(x)
    second = layer(x)
    torch.manual_seed(3)
    assert torch.equal(layer(x), first)
    assert not torch.equal(first, second)


def test_a_shared_layer_stays_shared() -> None:
    shared = nn.Dropout(0.3)
    model = nn.ModuleList([nn.Sequential(shared), nn.Sequential(shared, nn.AlphaDropout(0.2))]).eval()
    replace_dropout(model)
    assert isinstance(model[0][0], Dropout)
    assert model[0][0] is model[1][0]
    assert not model[0][0].training
    assert type(model[1][1]) is nn.AlphaDropout


def test_converted_models_have_it_and_compile() -> None:
    model = gnn.GCN(7, 8, 2, 3, dropout=0.5)
    x, edge_index = torch.randn(20, 7), torch.randint(20, (2, 60))
    q = gnnquant.convert(model, (x, edge_index), bits=4)
    assert [type(m) for m in q.modules() if isinstance(m, nn.Dropout)] == [Dropout]
    assert type(model.dropout) is nn.Dropout
    gnnquant.calibrate(q, [(x, edge_index)])
    q.train()
    assert not torch.equal(q(x, edge_index), q(x, edge_index))
    expected = q.eval()(x, edge_index)
    torch.testing.assert_close(
        gnnquant.compile(q, target="reference")(x, edge_index), expected.detach(), rtol=1e-4, atol=1e-5
    )
