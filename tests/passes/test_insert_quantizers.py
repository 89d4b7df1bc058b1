"""``insert-quantizers`` and ``quantize-skips``: what is quantized, how often, and that it trains."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric import nn as gnn

import gnnquant
from gnnquant import QuantConfig, QuantSpec
from gnnquant.quantizers import ops
from gnnquant.quantizers.calibration import calibrate, quantizers_of
from tests.passes.rewrites import FEATURES, NODES, calls, edge_features, inputs

K = FEATURES


def _converted(model: nn.Module, example: tuple[Any, ...], **options: Any) -> Any:
    torch.manual_seed(0)
    return calibrate(gnnquant.convert(model, example, **{"bits": 4, **options}), [example])


def _trains(q: Any, example: tuple[Any, ...]) -> None:
    """Every range that a gradient can reach gets a finite one."""
    q.train()
    q(*example).float().square().sum().backward()
    for name, quantizer in quantizers_of(q).items():
        assert quantizer.calibrated, name
        if quantizer.log_scale.requires_grad:
            assert quantizer.log_scale.grad is not None, name
            assert torch.isfinite(quantizer.log_scale.grad).all(), name


class Tied(nn.Module):
    """Two layers with one weight, and one layer that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(K, K), nn.Linear(K, K)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return self.first(self.second(self.first(x).relu()).relu())


def test_a_shared_weight_has_one_quantizer() -> None:
    q = _converted(Tied(), inputs())
    assert [site.name for site in q.sites.values() if site.kind == "weight"] == ["first.weight"]
    assert sum(site.kind == "input" for site in q.sites.values()) == 3
    _trains(q, inputs())


def test_sites_of_a_parameter_and_of_a_layer_called_twice() -> None:
    q = _converted(gnn.GatedGraphConv(8, 2), inputs())
    names = {site.name for site in q.sites.values()}
    assert {"message", "message_1", "weight", "weight_1", "rnn.ih.weight", "rnn.hh.weight"} <= names
    relations = gnn.RGCNConv(K, 5, 3, num_bases=2)
    kind = torch.arange(edge_features().size(0)) % 3
    q = _converted(relations, (*inputs(), kind))
    names = {site.name for site in q.sites.values()}
    assert {"weight", "weight_1", "weight_2", "root.weight", "message"} <= names
    assert q.sites["root.weight"].quantizer == "root_weight_quantizer"  # a parameter has no children
    _trains(q, (*inputs(), kind))


def test_selected_rows_share_the_quantizer_of_all_rows() -> None:
    class Typed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lin = gnn.HeteroLinear(K, 5, 3)

        def forward(self, x: Tensor, kind: Tensor) -> Tensor:
            return self.lin(x, kind)

    example = (inputs()[0], torch.arange(NODES) % 3)
    q = _converted(Typed(), example)
    assert [site.name for site in q.sites.values() if site.kind == "input"] == ["lin.input"]
    assert len(calls(q, ops.scale_of_rows)) == 3
    _trains(q, example)


def test_products_of_computed_values() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, dropout=0.5, batch_first=True)
            self.lin = nn.Linear(K, 8)

        def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
            h = self.lin(x).view(4, -1, 8)
            scores, norm = h @ h.transpose(1, 2), h @ h.sum(1).unsqueeze(-1)
            return self.attention(h, h, h)[0] + (scores @ h) / (1 + norm.abs())

    q = _converted(Attention(), inputs())
    for node in [*calls(q, torch.matmul), *calls(q, "matmul")]:
        for operand in node.all_input_nodes:
            chain, ends = [operand], []
            while chain:
                item = chain.pop()
                stop = item.target is ops.dequantize or item.op != "call_method"
                (ends if stop else chain).extend([item] if stop else item.all_input_nodes[:1])
            quantized = all(end.target is ops.dequantize or end.op == "call_module" for end in ends)
            assert quantized or node.meta["shape"][-1] == 1
    _trains(q, inputs())


def test_a_row_of_one_number_has_no_scale_of_its_own() -> None:
    class Gate(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate, self.lin = nn.Linear(K, 1), nn.Linear(1, 5)

        def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
            return self.lin(self.gate(x).relu())

    q = _converted(Gate(), inputs())
    assert q.sites["lin.input"].granularity == "tensor"
    assert q.sites["gate.input"].granularity == "row"


def test_values_that_no_gradient_reaches() -> None:
    class Detached(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(K, K), nn.Linear(K, 5)

        def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
            return self.second(self.first(x).detach())

    q = _converted(Detached(), inputs())
    quantizers = quantizers_of(q)
    assert not quantizers["first.input_quantizer"].log_scale.requires_grad
    assert quantizers["second.input_quantizer"].log_scale.requires_grad
    _trains(q, inputs())


def test_every_width_of_floating_point() -> None:
    """Codes and sums are exact, results have the model's dtype."""
    x, edge_index = inputs()
    for dtype, allowed in ((torch.float64, 0.02), (torch.float16, 0.02), (torch.bfloat16, 0.04)):
        torch.manual_seed(0)
        model = gnn.GAT(K, 8, 2, 5, heads=2).to(dtype).eval()
        q = _converted(copy.deepcopy(model), (x.to(dtype), edge_index), bits=8)
        _trains(q, (x.to(dtype), edge_index))
        q.eval()
        with torch.no_grad():
            result, wanted = q(x.to(dtype), edge_index), model(x.to(dtype), edge_index)
        assert result.dtype == dtype
        assert float((result - wanted).double().norm() / wanted.double().norm()) < allowed
        for node in calls(q, ops.linear):
            assert node.args[1] is not None


def test_a_model_that_is_halved_after_conversion() -> None:
    x, edge_index = inputs()
    q = _converted(gnn.GCN(K, 8, 2, 5), (x, edge_index), bits=8).eval()
    with torch.no_grad():
        wanted = q(x, edge_index)
        result = q.to(torch.bfloat16)(x.bfloat16(), edge_index)
    assert result.dtype == torch.bfloat16
    assert float((result.float() - wanted).norm() / wanted.norm()) < 0.05


@pytest.mark.parametrize("edges", [8, NODES, 64])
def test_skips_do_not_depend_on_the_number_of_edges(edges: int) -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lin = nn.Linear(K, K)
            self.conv = gnn.EdgeConv(nn.Linear(2 * K, K))
            self.out = nn.Linear(K, 5)

        def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
            h = F.relu(self.lin(x))
            return self.out(h + self.conv(h, edge_index))

    x, edge_index = inputs()
    q = _converted(Residual(), (x, edge_index[:, :edges]))
    assert [site.name for site in q.sites.values() if site.kind == "skip"] == ["lin.skip"]


@pytest.mark.parametrize(
    ("bits", "read_again", "stored"),
    [
        # the sum
        (4, False, ["a.skip"]),
        # its terms, since one of them is read again
        (4, True, ["a.skip", "a.skip_1"]),
        # none: both have codes of 8 bits anyway
        (8, False, []),
    ],
)
def test_a_sum_is_stored_rather_than_its_terms(bits: int, read_again: bool, stored: list[str]) -> None:
    class Terms(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(K, K), nn.Linear(K, K), nn.Linear(K, K)

        def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
            first = self.a(x).relu()
            second = first.tanh()
            both = first - 0.5 * second
            later = self.b(first) + self.c(second) + both
            return later * first if read_again else later

    q = _converted(Terms(), inputs(), bits=bits)
    assert sorted(site.name for site in q.sites.values() if site.kind == "skip") == stored
    _trains(q, inputs())
    q.eval()
    compiled = gnnquant.compile(q, target="reference")
    with torch.no_grad():
        torch.testing.assert_close(compiled(*inputs()), q(*inputs()), rtol=1e-4, atol=1e-4)


def test_a_path_of_train_mode_only_is_calibrated() -> None:
    model = gnn.PMLP(K, 8, 5, 2, dropout=0.5)
    q = _converted(model, inputs())
    _trains(q, inputs())


def test_config_reaches_factors_and_switches_them_off() -> None:
    class Scores(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lin = nn.Linear(K, 8)

        def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
            h = self.lin(x).view(4, -1, 8)
            return h @ h.transpose(1, 2)

    config = QuantConfig(input=QuantSpec(bits=8))
    q = _converted(Scores(), inputs(), config=config)
    assert {site.bits for site in q.sites.values() if site.kind == "input"} == {8}
    q = _converted(Scores(), inputs(), config=QuantConfig(input=QuantSpec(enabled=False)))
    assert not calls(q, ops.dequantize)
