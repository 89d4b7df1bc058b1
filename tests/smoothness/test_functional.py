"""Smoothness measures against dense numpy references and finite differences."""

import numpy as np
import pytest
import torch
from torch_geometric.nn.conv.gcn_conv import gcn_norm

from gnnquant.smoothness import (
    dirichlet_energy,
    functional,
    laplacian_quadratic_form,
    mean_neighbour_distance,
)


def random_graph(nodes: int = 12, edges: int = 40, seed: int = 0) -> torch.Tensor:
    """A symmetric graph with duplicate edges, self-loops and an isolated last node."""
    generator = torch.Generator().manual_seed(seed)
    half = torch.randint(nodes - 1, (2, edges), generator=generator)
    return torch.cat([half, half.flip(0)], dim=1)


def star(leaves: int = 9) -> torch.Tensor:
    """A hub in both directions, a self-loop at it, and an isolated last node."""
    hub = torch.zeros(leaves, dtype=torch.int64)
    rim = torch.arange(1, leaves + 1)
    return torch.cat([torch.stack([hub, rim]), torch.stack([rim, hub]), torch.zeros(2, 1).long()], dim=1)


GRAPHS = {
    "random": random_graph(),
    "hub": star(),
    "one way": random_graph(edges=15)[:, :15],
    "only self-loops": torch.arange(4).expand(2, 4),
    "no edges": torch.empty(2, 0, dtype=torch.int64),
}


def features(nodes: int = 12, width: int = 5) -> torch.Tensor:
    return torch.randn(nodes, width, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def dense(edge_index: torch.Tensor, weight: torch.Tensor, nodes: int) -> np.ndarray:
    matrix = np.zeros((nodes, nodes))
    np.add.at(matrix, (edge_index[1].numpy(), edge_index[0].numpy()), weight.numpy())
    return matrix


def test_quadratic_form_is_the_trace() -> None:
    edges, weight = gcn_norm(random_graph(), None, 12, dtype=torch.float64)
    h = features()
    laplacian = np.eye(12) - dense(edges, weight, 12)
    expected = np.trace(h.numpy().T @ laplacian @ h.numpy())
    assert float(laplacian_quadratic_form(h, edges, weight)) == pytest.approx(expected, rel=1e-12)


def test_quadratic_form_is_the_sum_of_squared_differences() -> None:
    graph = random_graph()
    edges, weight = gcn_norm(graph, None, 12, dtype=torch.float64)
    h = features().numpy()
    # `gcn_norm` keeps a node's own self-loop instead of adding one: degrees from what it returns.
    degree = np.bincount(edges[1].numpy(), minlength=12).astype(float)
    scaled = h / np.sqrt(degree)[:, None]
    source, target = edges.numpy()
    expected = 0.5 * np.square(scaled[source] - scaled[target]).sum()
    assert float(laplacian_quadratic_form(torch.tensor(h), edges, weight)) == pytest.approx(expected)


def test_gradient_of_the_quadratic_form_is_twice_the_laplacian() -> None:
    edges, weight = gcn_norm(random_graph(), None, 12, dtype=torch.float64)
    h = features().requires_grad_()
    laplacian_quadratic_form(h, edges, weight).backward()
    laplacian = np.eye(12) - dense(edges, weight, 12)
    np.testing.assert_allclose(h.grad.numpy(), 2 * laplacian @ h.detach().numpy(), atol=1e-12)


@pytest.mark.parametrize("name", GRAPHS)
def test_edge_lists_agree_with_dense_matrices(name: str) -> None:
    """Every measure against N x N counts of edges, also where the operator is not symmetric."""
    edges, h = GRAPHS[name], features()
    weight = torch.rand(edges.size(1), generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    count, operator = dense(edges, torch.ones_like(weight), 12), dense(edges, weight, 12)
    x = h.numpy()
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    apart = np.linalg.norm(x[:, None] - x[None], axis=2)
    others = count * (1 - np.eye(12))
    total, pairs = max(count.sum(), 1), max(others.sum(), 1)
    expected = np.trace(x.T @ (np.eye(12) - operator) @ x)
    assert float(laplacian_quadratic_form(h, edges, weight)) == pytest.approx(expected)
    assert float(dirichlet_energy(h, edges)) == pytest.approx(
        (count * (1 - unit @ unit.T)).sum() / total, abs=1e-12
    )
    assert float(mean_neighbour_distance(h, edges)) == pytest.approx((others * apart).sum() / pairs)


@pytest.mark.parametrize("block", [1, 7, 35])
def test_blocks_of_edges_change_nothing(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    edges = random_graph()
    weight = torch.rand(edges.size(1), dtype=torch.float64)

    def everything() -> list[torch.Tensor]:
        h, w = features().requires_grad_(), weight.clone().requires_grad_()
        values = (
            laplacian_quadratic_form(h, edges, w),
            dirichlet_energy(h, edges),
            mean_neighbour_distance(h, edges),
        )
        sum(values).backward()  # type: ignore[union-attr]
        return [*values, h.grad, w.grad]

    whole = everything()
    monkeypatch.setattr(functional, "BLOCK", block)
    for value, expected in zip(everything(), whole, strict=True):
        torch.testing.assert_close(value, expected)


@pytest.mark.parametrize("measure", ["form", "energy"])
def test_only_features_are_kept_for_the_backward_pass(measure: str) -> None:
    """Nothing of size E x F, and no N x N: with E = 40 N, not even E x 2 beside the edges."""
    nodes, width = 20, 6
    edges = random_graph(nodes, 400)
    h = torch.randn(nodes, width).requires_grad_()
    weight = torch.rand(edges.size(1))
    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        if measure == "form":
            laplacian_quadratic_form(h, edges, weight)
        else:
            dirichlet_energy(h, edges)
    assert kept
    assert all(tensor.numel() <= max(edges.numel(), nodes * width) for tensor in kept)


def test_gradient_of_the_quadratic_form_equals_finite_differences() -> None:
    edges, h = GRAPHS["one way"], features().requires_grad_()
    weight = torch.rand(edges.size(1), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, w: laplacian_quadratic_form(x, edges, w), (h, weight))


def test_dirichlet_energy_is_one_minus_the_mean_cosine() -> None:
    edges, h = random_graph(), features()
    unit = h.numpy() / np.linalg.norm(h.numpy(), axis=1, keepdims=True)
    cosines = (unit[edges[0]] * unit[edges[1]]).sum(axis=1)
    assert float(dirichlet_energy(h, edges)) == pytest.approx(1 - cosines.mean())


def test_dirichlet_energy_does_not_depend_on_scale_or_zero_columns() -> None:
    edges, h = random_graph(), features()
    wider = torch.cat([3 * h, torch.zeros(12, 2, dtype=h.dtype)], dim=1)
    torch.testing.assert_close(dirichlet_energy(wider, edges), dirichlet_energy(h, edges))


@pytest.mark.parametrize("function", [dirichlet_energy, mean_neighbour_distance])
def test_gradient_equals_finite_differences(function) -> None:  # type: ignore[no-untyped-def]
    edges, h = random_graph(), features().requires_grad_()
    assert torch.autograd.gradcheck(lambda value: function(value, edges), (h,))


def test_rows_of_zeros_have_finite_gradients() -> None:
    h = torch.zeros(12, 4, requires_grad=True)
    energy = dirichlet_energy(h, random_graph())
    energy.backward()
    assert float(energy.detach()) == 0
    assert bool(h.grad.isfinite().all())


def test_mean_neighbour_distance_leaves_self_loops_out() -> None:
    edges = torch.tensor([[0, 1, 2], [1, 1, 2]])
    h = torch.tensor([[0.0, 0.0], [3.0, 4.0], [9.0, 9.0]])
    assert float(mean_neighbour_distance(h, edges)) == 5.0


def test_a_graph_without_edges_has_no_roughness() -> None:
    none = torch.empty(2, 0, dtype=torch.int64)
    assert float(dirichlet_energy(features(), none)) == 0
    assert float(mean_neighbour_distance(features(), none)) == 0
