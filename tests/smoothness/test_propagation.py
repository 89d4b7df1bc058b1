"""The SMP layer against its equations, written densely in numpy."""

import copy
import pickle

import numpy as np
import pytest
import torch
from torch_geometric.nn import APPNP
from torch_geometric.nn.conv.gcn_conv import gcn_norm

from gnnquant import InputError
from gnnquant.smoothness import SmoothnessConstraint, SmoothPropagation, laplacian_quadratic_form
from tests.smoothness.test_functional import dense, features, random_graph

CONSTANTS = {"mu": 4.0, "eta": 0.15, "budget": 0.03, "multiplier_lr": 1e-2, "slack_lr": 0.1}


def dense_reference(h0, adjacency, edges, multipliers, slacks):  # type: ignore[no-untyped-def]
    """``method.md``, line by line; one step a multiplier. Updates the multipliers and slacks."""
    mu, eta, budget = CONSTANTS["mu"], CONSTANTS["eta"], CONSTANTS["budget"]
    laplacian = np.eye(len(adjacency)) - adjacency
    h = h0
    for k in range(len(multipliers)):
        pulled = (1 - (1 + mu) * eta) * h + mu * eta * adjacency @ h + eta * h0
        d = pulled - h
        lam, s = multipliers[k], slacks[k]
        g = budget * edges - s**2 - np.trace(d.T @ laplacian @ d)
        h = pulled + 2 * eta * lam * laplacian @ d
        slacks[k] = s + 2 * CONSTANTS["slack_lr"] * lam * s
        multipliers[k] = max(0.0, lam + CONSTANTS["multiplier_lr"] * g)
    return h


def test_training_passes_follow_the_equations() -> None:
    graph, h0 = random_graph(), features()
    edges, weight = gcn_norm(graph, None, 12, dtype=torch.float64)
    adjacency = dense(edges, weight, 12)
    layer = SmoothPropagation(3, initial=0.05, **CONSTANTS).double().train()
    layer.reset_parameters()  # 0.05 in float64, not the float32 that was converted
    multipliers, slacks = [0.05] * 3, [0.05] * 3
    for _ in range(3):
        expected = dense_reference(h0.numpy(), adjacency, edges.size(1), multipliers, slacks)
        np.testing.assert_allclose(layer(h0, graph).numpy(), expected, rtol=1e-12)
    for step, multiplier, slack in zip(layer.constraints, multipliers, slacks, strict=True):
        assert float(step.multiplier) == pytest.approx(multiplier)
        assert float(step.slack) == pytest.approx(slack)
    assert multipliers != [0.05] * 3


def test_without_multiplier_it_is_appnp() -> None:
    graph, x = random_graph(), features().float()
    layer = SmoothPropagation(initial=0.0).eval()
    torch.testing.assert_close(layer(x, graph), APPNP(K=10, alpha=0.1)(x, graph))


def test_the_correction_descends_on_the_constraint() -> None:
    """``2 eta lam L D`` is ``eta`` times minus the gradient of ``lam g``, by central differences."""
    graph, d = random_graph(), features()
    edges, weight = gcn_norm(graph, None, 12, dtype=torch.float64)
    laplacian = np.eye(12) - dense(edges, weight, 12)
    lam, step = 0.7, 1e-5
    for node, feature in [(0, 0), (3, 2), (11, 4)]:
        shift = torch.zeros_like(d)
        shift[node, feature] = step
        above = -lam * laplacian_quadratic_form(d + shift, edges, weight)
        below = -lam * laplacian_quadratic_form(d - shift, edges, weight)
        slope = float(above - below) / (2 * step)
        assert -slope == pytest.approx(2 * lam * (laplacian @ d.numpy())[node, feature], abs=1e-6)


def test_evaluation_changes_nothing() -> None:
    layer, x = SmoothPropagation(2).eval(), features().float()
    before = copy.deepcopy(layer.state_dict())
    first = layer(x, random_graph())
    torch.testing.assert_close(layer(x, random_graph()), first, rtol=0, atol=0)
    torch.testing.assert_close(layer.state_dict(), before, rtol=0, atol=0)


def test_multiplier_stays_non_negative() -> None:
    step = SmoothnessConstraint(budget=1e-6, multiplier_lr=1e3).train()
    edges, weight = gcn_norm(random_graph(), None, 12)
    step(features().float(), edges, weight)
    assert float(step.multiplier) == 0
    assert float(step.value) > float(step.bound)


def test_gradients_flow_through_the_updates_of_the_buffers() -> None:
    layer = SmoothPropagation(3).double().train()
    x = features().requires_grad_()
    layer(x, random_graph()).sum().backward()
    assert bool(x.grad.isfinite().all())
    layer.reset_parameters()
    layer.eval()
    assert torch.autograd.gradcheck(lambda value: layer(value, random_graph()), (x,))


def test_edge_weights_are_used() -> None:
    graph, x = random_graph(), features()
    weight = torch.rand(graph.size(1), dtype=torch.float64)
    edges, normalised = gcn_norm(graph, weight, 12, dtype=torch.float64)
    layer = SmoothPropagation(1, initial=0.0, mu=4.0, eta=0.2).double().eval()
    expected = 0.8 * dense(edges, normalised, 12) @ x.numpy() + 0.2 * x.numpy()
    np.testing.assert_allclose(layer(x, graph, weight).numpy(), expected, rtol=1e-12)


def test_copies_pickles_and_state_dicts_keep_the_multipliers() -> None:
    layer, x = SmoothPropagation(2).train(), features().float()
    layer(x, random_graph())
    layer.eval()
    expected = layer(x, random_graph())
    restored = SmoothPropagation(2).eval()
    restored.load_state_dict(layer.state_dict())
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), restored):
        torch.testing.assert_close(twin(x, random_graph()), expected, rtol=0, atol=0)


@pytest.mark.parametrize("nodes", [1, 4])
def test_a_graph_without_edges(nodes: int) -> None:
    x = torch.randn(nodes, 3)
    out = SmoothPropagation(2).train()(x, torch.empty(2, 0, dtype=torch.int64))
    torch.testing.assert_close(out, x)


@pytest.mark.parametrize("wrong", [{"K": 0}, {"eta": 0.0}, {"mu": -1.0}, {"budget": 0.0}])
def test_wrong_constants_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(InputError):
        SmoothPropagation(**wrong)
