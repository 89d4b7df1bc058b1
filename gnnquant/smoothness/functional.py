"""How smooth node features are over a graph, computed over the edge list: O(E F), never N x N."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch.nn.functional as F

if TYPE_CHECKING:
    from torch import Tensor


def laplacian_quadratic_form(h: Tensor, edge_index: Tensor, edge_weight: Tensor) -> Tensor:
    """``tr(H^T (I - A) H)`` for the operator ``A`` given by its edges.

    With ``A`` the symmetric normalised adjacency with self-loops this is
    ``1/2 sum_(i,j) |h_i / sqrt(deg_i) - h_j / sqrt(deg_j)|^2`` (Wang et al. 2023, arXiv
    2308.14949; Chung, Spectral Graph Theory, 1997, section 1.2).

    Args:
        h: Node features [N, F], floating point.
        edge_index: Edges [2, E], int64.
        edge_weight: Entries of ``A`` [E], self-loops included, in the dtype of ``h``.

    Returns:
        A scalar in the dtype of ``h``; differentiable in ``h`` and ``edge_weight``.
    """
    source, target = edge_index
    similarity = (h[source] * h[target]).sum(dim=-1)
    return h.square().sum() - (edge_weight * similarity).sum()


def dirichlet_energy(h: Tensor, edge_index: Tensor) -> Tensor:
    """Mean over the edges of ``1/2 |u_i - u_j|^2``, where ``u_i = h_i / |h_i|``.

    The rows are normalised so that layers of different width and scale compare: the energy is one
    minus the mean cosine similarity of neighbours, 0 (all alike) to 2 (all opposite). A row of
    zeros stays zero. Without edges the energy is 0.

    Args:
        h: Node features [N, F], floating point.
        edge_index: Edges [2, E], int64.

    Returns:
        A scalar in the dtype of ``h``; differentiable in ``h``.
    """
    source, target = edge_index
    unit = F.normalize(h, dim=-1)
    return 0.5 * (unit[source] - unit[target]).square().sum() / max(source.numel(), 1)


def mean_neighbour_distance(h: Tensor, edge_index: Tensor) -> Tensor:
    """Mean Euclidean distance of the two ends of an edge, self-loops left out.

    It falls towards 0 with depth in an oversmoothed model.

    Args:
        h: Node features [N, F], floating point.
        edge_index: Edges [2, E], int64.

    Returns:
        A scalar in the dtype of ``h``; 0 without edges.
    """
    source, target = edge_index[:, edge_index[0] != edge_index[1]]
    return (h[source] - h[target]).norm(dim=-1).sum() / max(source.numel(), 1)
