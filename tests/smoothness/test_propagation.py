"""The SMP layer against its equations, written densely in numpy."""

import copy
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from torch_geometric.nn import APPNP
from torch_geometric.nn.conv.gcn_conv import gcn_norm

import gnnquant
from gnnquant import InputError
from gnnquant.smoothness import (
    SmoothnessConstraint,
    SmoothPropagation,
    dirichlet_energy,
    laplacian_quadratic_form,
    mean_neighbour_distance,
)
from gnnquant.smoothness.propagation import Update
from tests.smoothness.test_functional import dense, features, random_graph

CONSTANTS = {"mu": 4.0, "eta": 0.15, "budget": 0.03, "multiplier_lr": 1e-2, "slack_lr": 0.1}


def dense_reference(h0, adjacency, edges, multipliers, slacks, *, update):  # type: ignore[no-untyped-def]
    """``method.md``, line by line; one step a multiplier. Updates the multipliers and slacks.

    ``"descent"`` has the other sign of ``g``: descent in h and s and ascent in lam on ``-lam g``.
    """
    mu, eta, budget = CONSTANTS["mu"], CONSTANTS["eta"], CONSTANTS["budget"]
    laplacian = np.eye(len(adjacency)) - adjacency
    h = h0
    for k in range(len(multipliers)):
        pulled = (1 - (1 + mu) * eta) * h + mu * eta * adjacency @ h + eta * h0
        d = pulled - h
        lam, s = multipliers[k], slacks[k]
        g = budget * edges - s**2 - np.trace(d.T @ laplacian @ d)
        sign = -1 if update == "descent" else 1
        h = pulled + sign * 2 * eta * lam * (adjacency if update == "adjacency" else laplacian) @ d
        slacks[k] = s + sign * 2 * CONSTANTS["slack_lr"] * lam * s
        multipliers[k] = max(0.0, lam + sign * CONSTANTS["multiplier_lr"] * g)
    return h


UPDATES = ["descent", "laplacian", "adjacency"]


@pytest.mark.parametrize("update", UPDATES)
def test_training_passes_follow_the_equations(update: Update) -> None:
    graph, h0 = random_graph(), features()
    edges, weight = gcn_norm(graph, None, 12, dtype=torch.float64)
    adjacency = dense(edges, weight, 12)
    layer = SmoothPropagation(3, initial=0.05, update=update, **CONSTANTS).double().train()
    layer.reset_parameters()  # 0.05 in float64, not the float32 that was converted
    multipliers, slacks = [0.05] * 3, [0.05] * 3
    for _ in range(3):
        expected = dense_reference(h0.numpy(), adjacency, edges.size(1), multipliers, slacks, update=update)
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
    """``2 eta lam L D`` is ``eta`` times the gradient of ``lam tr(D^T L D)``, by central differences."""
    graph, d = random_graph(), features()
    edges, weight = gcn_norm(graph, None, 12, dtype=torch.float64)
    laplacian = np.eye(12) - dense(edges, weight, 12)
    lam, step = 0.7, 1e-5
    for node, feature in [(0, 0), (3, 2), (11, 4)]:
        shift = torch.zeros_like(d)
        shift[node, feature] = step
        above = lam * laplacian_quadratic_form(d + shift, edges, weight)
        below = lam * laplacian_quadratic_form(d - shift, edges, weight)
        slope = float(above - below) / (2 * step)
        assert slope == pytest.approx(2 * lam * (laplacian @ d.numpy())[node, feature], abs=1e-6)


def test_evaluation_changes_nothing() -> None:
    layer, x = SmoothPropagation(2).eval(), features().float()
    before = copy.deepcopy(layer.state_dict())
    first = layer(x, random_graph())
    torch.testing.assert_close(layer(x, random_graph()), first, rtol=0, atol=0)
    torch.testing.assert_close(layer.state_dict(), before, rtol=0, atol=0)


def one_pass(step: SmoothnessConstraint, h: torch.Tensor) -> None:
    edges, weight = gcn_norm(random_graph(), None, 12)
    step(h, h, edges, weight)


@pytest.mark.parametrize("budget", [1e-6, 1e6])
def test_the_multiplier_rises_while_the_bound_is_broken_and_falls_while_it_holds(budget: float) -> None:
    step = SmoothnessConstraint(budget=budget, multiplier_lr=1e-9, initial=1.0).train()
    multipliers = []
    for _ in range(3):
        one_pass(step, features().float())
        multipliers.append(float(step.multiplier))
    broken = float(step.value) > float(step.bound)
    assert broken == (budget < 1)
    assert multipliers == sorted(set(multipliers), reverse=not broken)


def test_the_multiplier_stays_within_its_limits() -> None:
    step = SmoothnessConstraint(budget=1e6, multiplier_lr=1e3, limit=2.5).train()
    one_pass(step, features().float())
    assert float(step.multiplier) == 0
    step.budget = 1e-6
    one_pass(step, features().float())
    assert float(step.multiplier) == 2.5
    with_the_published_sign = SmoothnessConstraint(budget=1e-6, multiplier_lr=1e3, update="laplacian").train()
    one_pass(with_the_published_sign, features().float())
    assert float(with_the_published_sign.multiplier) == 0
    assert float(with_the_published_sign.value) > float(with_the_published_sign.bound)


@pytest.mark.parametrize(("mu", "eta"), [(9.0, 0.1), (1.0, 0.5), (30.0, 0.02), (0.0, 0.3)])
def test_a_step_of_descent_is_a_contraction(mu: float, eta: float) -> None:
    """Factor ``1 - eta`` in the spectral norm, for every multiplier that is allowed, also at the limit."""
    layer = SmoothPropagation(1, mu=mu, eta=eta).double().eval()
    (step,) = layer.constraints
    graph = random_graph()
    for share in (0.0, 0.5, 1.0):
        step.multiplier.fill_(share * step.limit)
        # The layer is linear in h with h_0 = 0: its matrix, column by column, without the teleport.
        columns = [layer(unit.view(-1, 1), graph) - eta * unit.view(-1, 1) for unit in torch.eye(12).double()]
        # One step from h_0 = h: the teleport pulls to h_0 in H' and, through D, in the correction.
        edges, weight = gcn_norm(graph, None, 12, dtype=torch.float64)
        laplacian = np.eye(12) - dense(edges, weight, 12)
        lost = np.eye(12) - 2 * eta * float(step.multiplier) * laplacian
        matrix = torch.cat(columns, dim=1).numpy() + eta * np.eye(12) - eta * lost
        assert np.linalg.norm(matrix, 2) <= 1 - eta + 1e-12


@pytest.mark.parametrize("update", UPDATES)
def test_all_updates_have_the_limit_of_appnp(update: Update) -> None:
    graph, x = random_graph(), features()
    layer = SmoothPropagation(200, initial=0.1, update=update).double().eval()
    edges, weight = gcn_norm(graph, None, 12, dtype=torch.float64)
    limit = np.linalg.solve(np.eye(12) - 0.9 * dense(edges, weight, 12), 0.1 * x.numpy())
    np.testing.assert_allclose(layer(x, graph).numpy(), limit, rtol=1e-6)


def test_training_keeps_no_messages() -> None:
    """Saved for the backward pass are values of nodes and of edges, no [E, F] and no [N, N]."""
    nodes, width = 20, 6
    edges = random_graph(nodes, 400)
    x = torch.randn(nodes, width).requires_grad_()
    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        SmoothPropagation(3).train()(x, edges)
    # A view of the edge list, expanded to [E, F] for the scatter, holds E numbers.
    own = [t.untyped_storage().nbytes() // t.element_size() for t in kept]
    assert own
    assert max(own) <= 2 * (edges.size(1) + nodes)


@pytest.mark.parametrize("update", UPDATES)
def test_reports_are_measured_only_on_demand(update: Update) -> None:
    layer = SmoothPropagation(2, update=update, initial=0.4).train()
    x, graph = features().float(), random_graph()
    layer(x, graph)
    assert float(layer.constraints[0].value) > 0
    assert float(layer.constraints[0].energy) == 0
    layer.eval()
    for step in layer.constraints:
        step.reporting = True
    before = copy.deepcopy(layer.state_dict())
    out = layer(x, graph)
    edges, _ = gcn_norm(graph, None, 12)
    last = layer.constraints[-1]
    assert float(last.energy) == pytest.approx(float(dirichlet_energy(out, edges)), rel=1e-5)
    assert float(last.distance) == pytest.approx(float(mean_neighbour_distance(out, edges)), rel=1e-5)
    torch.testing.assert_close(layer.state_dict(), before, rtol=0, atol=0)


@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize("bits", [2, 8, 32])
def test_every_update_traces_converts_and_compiles(update: Update, bits: int) -> None:
    torch.manual_seed(0)
    layer = SmoothPropagation(2, update=update, initial=0.3)
    graph = random_graph(30, 60)
    x = torch.randn(30, 5, generator=torch.Generator().manual_seed(3))
    q = gnnquant.convert(layer, (x, graph), bits=bits)
    q.train()
    q(x, graph)
    assert float(q.get_submodule("constraints.0").multiplier) != 0.3  # it goes on in training
    q.eval()
    if bits != 32:
        gnnquant.calibrate(q, [(x, graph)])
    compiled = gnnquant.compile(q, target="reference")
    with torch.no_grad():
        torch.testing.assert_close(compiled(x, graph), q(x, graph), rtol=1e-4, atol=1e-4)
    assert bits != 32 or (compiled(x, graph) - layer.eval()(x, graph)).abs().max() < 1


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


@pytest.mark.parametrize("wrong", [{"K": 0}, {"eta": 0.0}, {"mu": -1.0}, {"budget": 0.0}, {"update": "up"}])
def test_wrong_constants_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        SmoothPropagation(**wrong)
