"""Smoothness measures against dense numpy references and finite differences."""

import numpy as np
import pytest
import torch
from torch_geometric.nn.conv.gcn_conv import gcn_norm

from gnnquant.smoothness import dirichlet_energy, laplacian_quadratic_form, mean_neighbour_distance


def random_graph(nodes: int = 12, edges: int = 40, seed: int = 0) -> torch.Tensor:
    """A symmetric graph with duplicate edges, self-loops and an isolated last node."""
    generator = torch.Generator().manual_seed(seed)
    half = torch.randint(nodes - 1, (2, edges), generator=generator)
    return torch.cat([half, half.flip(0)], dim=1)


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
