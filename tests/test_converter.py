"""``convert`` on the zoo: sites, training, copies, and what it refuses."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import nn

import gnnquant
from gnnquant import QuantConfig, QuantSpec
from gnnquant.errors import TraceError
from gnnquant.quantizers import Quantizer
from gnnquant.quantizers.calibration import calibrate, is_calibrated, quantizers_of
from tests import zoo

EXACT = ["gcn", "sage_mean", "sage_max", "gin", "gat", "appnp", "residual_gcn", "pyg_gcn"]


def _converted(name: str, bits: int = 4, **options: Any) -> nn.Module:
    q = gnnquant.convert(zoo.build(name), bits=bits, **options)
    graph = zoo.random_graph()
    return calibrate(q, [(graph.x, graph.edge_index)])


@pytest.mark.parametrize("name", list(zoo.MODELS))
def test_float_conversion_changes_nothing(name: str) -> None:
    """bits=32: same names, same values, on graphs of any size."""
    model = zoo.build(name).eval()
    q = gnnquant.convert(model, bits=32)
    assert not q.training
    assert not q.sites
    assert set(q.state_dict()) <= set(model.state_dict())
    for nodes, edges in zoo.GRAPH_SIZES:
        graph = zoo.random_graph(nodes, edges)
        with torch.no_grad():
            torch.testing.assert_close(
                q(graph.x, graph.edge_index), model(graph.x, graph.edge_index), rtol=1e-4, atol=1e-5
            )


@pytest.mark.parametrize("name", list(zoo.MODELS))
@pytest.mark.parametrize("bits", [2, 8])
def test_quantizers_train(name: str, bits: int) -> None:
    """Every range gets a gradient, INT8 is close to float, the user's model is untouched."""
    model = zoo.build(name)
    before = copy.deepcopy(model.state_dict())
    q = gnnquant.convert(model, bits=bits)
    assert not is_calibrated(q)
    optimizer = torch.optim.SGD(q.parameters(), lr=1e-3)
    graph = zoo.random_graph(40, 160)
    calibrate(q, [(graph.x, graph.edge_index)])
    assert is_calibrated(q)
    q.train()
    q(graph.x, graph.edge_index).square().sum().backward()
    missing = [n for n, p in q.named_parameters() if n.endswith("log_scale") and p.grad is None]
    assert not missing
    optimizer.step()
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert set(before) >= {key for key in q.state_dict() if "_quantizer." not in key}
    if bits == 8:
        q = calibrate(gnnquant.convert(model, bits=8), [(graph.x, graph.edge_index)]).eval()
        with torch.no_grad():
            got, wanted = q(graph.x, graph.edge_index), model.eval()(graph.x, graph.edge_index)
        assert float((got - wanted).norm() / wanted.norm()) < 0.1


def test_sites_have_the_users_names() -> None:
    """Messages, aggregates, weights and updates are called after the user's modules."""
    q = _converted("gcn")
    kinds = {site.name: site.kind for site in q.sites.values()}
    assert kinds == {
        "conv1.message": "message",
        "conv1.aggregate": "aggregate",
        "conv1.lin.weight": "weight",
        "conv1.update": "update",
        "conv2.lin.weight": "weight",
        "conv2.message": "message",
    }
    aggregates = [site.name for site in _converted("sage_mean").sites.values() if site.kind == "aggregate"]
    assert aggregates == ["convs.0.aggregate", "convs.1.aggregate"]
    skips = [site for site in _converted("residual_gcn").sites.values() if site.kind == "skip"]
    assert skips
    assert all(site.bits == 8 for site in skips)
    assert "conv1.message" in q.summary()


def test_every_quantizer_is_a_site_and_is_called_once() -> None:
    """Nothing is quantized twice, nothing is left lying about."""
    for name in zoo.MODELS:
        q = gnnquant.convert(zoo.build(name), bits=4)
        assert {site.quantizer for site in q.sites.values()} == set(quantizers_of(q))
        calls = [node.target for node in q.graph.nodes if node.op == "call_module"]
        for site in q.sites.values():
            assert calls.count(site.quantizer) == 1


def test_config_reaches_sites() -> None:
    """Bits per kind, per glob; sites switched off; outputs switched on."""
    config = QuantConfig(
        message=QuantSpec(bits=2),
        output=QuantSpec(enabled=True),
        input=QuantSpec(enabled=False),
        sites={"conv2.*": QuantSpec(bits=8), "conv1.message": QuantSpec(granularity="tensor")},
    )
    q = _converted("gcn", config=config)
    assert "conv1.lin.input" not in q.sites
    assert q.sites["conv1.message"].bits == 2
    assert q.sites["conv1.message"].granularity == "tensor"
    assert q.sites["conv2.message"].bits == 8
    assert q.sites["conv1.update"].bits == 4
    assert q.sites["output"].kind == "output"


def test_one_value_has_one_quantizer() -> None:
    """SAGE reads x as a message and in a linear layer: one set of codes serves both."""
    q = _converted("sage_mean")
    readers = [node for node in q.graph.nodes if node.target == "convs.0.message_quantizer"]
    assert len(readers) == 1
    assert "convs.0.lin_r.input" not in q.sites


def test_copies_pickles_and_state_dicts_are_exact() -> None:
    """All ways of moving a model keep its outputs and its sites."""
    for name in EXACT:
        q = _converted(name).eval()
        graph = zoo.random_graph(33, 150)
        fresh = gnnquant.convert(zoo.build(name, seed=7), bits=4).eval()
        fresh.load_state_dict(q.state_dict())
        with torch.no_grad():
            wanted = q(graph.x, graph.edge_index)
            for other in (copy.deepcopy(q), pickle.loads(pickle.dumps(q)), fresh):
                assert torch.equal(other(graph.x, graph.edge_index), wanted)
                assert other.sites == q.sites
                assert type(other).__name__ == "QuantizedModule"


def test_train_mode_follows_the_model_and_toggles_dropout() -> None:
    """Train mode on entry stays; eval is deterministic, train is not."""
    q = _converted("gcn")
    assert q.training
    graph = zoo.random_graph()
    assert not torch.equal(q(graph.x, graph.edge_index), q(graph.x, graph.edge_index))
    q.eval()
    assert torch.equal(q(graph.x, graph.edge_index), q(graph.x, graph.edge_index))
    assert not any(m.training for m in q.modules() if isinstance(m, Quantizer))


def test_dropout_is_drawn_once_for_each_value() -> None:
    """Moving dropout behind the quantizer does not leave a second draw behind."""
    q = gnnquant.convert(zoo.build("gcn"), bits=4)
    calls = [str(node.target) for node in q.graph.nodes if node.op == "call_module"]
    assert sum("dropout" in call for call in calls) == 2


def test_bad_arguments_are_refused() -> None:
    """Widths that do not exist, and models that cannot be traced."""

    class Hostile(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lin = nn.Linear(zoo.FEATURES, 2)

        def forward(self, x: torch.Tensor, edge_index: torch.Tensor) -> torch.Tensor:
            keep = [i for i, (a, b) in enumerate(edge_index.t().tolist()) if (a + b) % 3]
            return self.lin(x) * len(keep)

    with pytest.raises(ValueError, match="bits"):
        gnnquant.convert(zoo.build("gcn"), bits=3)
    with pytest.raises(TypeError, match="Module"):
        gnnquant.convert("gcn")
    with pytest.raises(TraceError):
        gnnquant.convert(Hostile(), bits=8)
