"""How smooth node features are over a graph, computed over the edge list: O(E F) time, never N x N.

Edges are taken in blocks, and for the backward pass only the features are kept: O(N F + E) memory.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

BLOCK = 2**20
"""Largest number of elements of an edge block's features: 4 MiB of float32."""


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
    neighbours: Tensor = _EdgeProducts.apply(h, edge_index, edge_weight)  # type: ignore[no-untyped-call]
    return h.square().sum() - neighbours


def adjacency_product(h: Tensor, edge_index: Tensor, edge_weight: Tensor) -> Tensor:
    """``A h`` for the operator ``A`` given by its edges: each node's sum over those that end there.

    It is meant for reports: where a gradient is asked for, autograd keeps O(E F).

    Args:
        h: Node features [N, F], floating point.
        edge_index: Edges [2, E], int64.
        edge_weight: Entries of ``A`` [E], in the dtype of ``h``.

    Returns:
        [N, F], in the dtype of ``h``.
    """
    out = torch.zeros_like(h)
    for block in _blocks(edge_index.size(1), h.size(-1)):
        source, target = edge_index[:, block]
        out.index_add_(0, target, edge_weight[block].unsqueeze(-1) * h.index_select(0, source))
    return out


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
    unit = F.normalize(h, dim=-1)
    squares: Tensor = _SquaredDifferences.apply(unit, edge_index)  # type: ignore[no-untyped-call]
    return 0.5 * squares / max(edge_index.size(1), 1)


def mean_neighbour_distance(h: Tensor, edge_index: Tensor) -> Tensor:
    """Mean Euclidean distance of the two ends of an edge, self-loops left out.

    It falls towards 0 with depth in an oversmoothed model. It is meant for reports: where a gradient
    is asked for, autograd keeps O(E F).

    Args:
        h: Node features [N, F], floating point.
        edge_index: Edges [2, E], int64.

    Returns:
        A scalar in the dtype of ``h``; 0 without edges.
    """
    edges = edge_index[:, edge_index[0] != edge_index[1]]
    total = h.new_zeros(())
    for block in _blocks(edges.size(1), h.size(-1)):
        of_source, of_target = _rows_at(h, edges[:, block])
        total = total + (of_source - of_target).norm(dim=-1).sum()
    return total / max(edges.size(1), 1)


def _blocks(edges: int, width: int) -> Iterator[slice]:
    """Ranges of edges whose features have at most ``BLOCK`` elements."""
    step = max(BLOCK // max(width, 1), 1)
    return (slice(start, start + step) for start in range(0, edges, step))


def _rows_at(h: Tensor, edges: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of the sources and of the targets; ``index_select`` is several times faster than ``h[edges]``."""
    return h.index_select(0, edges[0]), h.index_select(0, edges[1])


class _EdgeProducts(torch.autograd.Function):
    """``sum_e w_e <h_source(e), h_target(e)>``."""

    @staticmethod
    def forward(ctx: Any, h: Tensor, edge_index: Tensor, edge_weight: Tensor) -> Tensor:
        ctx.save_for_backward(h, edge_index, edge_weight)
        total = h.new_zeros(())
        for block in _blocks(edge_index.size(1), h.size(-1)):
            of_source, of_target = _rows_at(h, edge_index[:, block])
            total += edge_weight[block] @ (of_source * of_target).sum(dim=-1)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        h, edge_index, edge_weight = ctx.saved_tensors
        of_h = torch.zeros_like(h) if ctx.needs_input_grad[0] else None
        of_weight = torch.zeros_like(edge_weight) if ctx.needs_input_grad[2] else None
        for block in _blocks(edge_index.size(1), h.size(-1)):
            source, target = edge_index[:, block]
            of_source, of_target = _rows_at(h, edge_index[:, block])
            weight = (edge_weight[block] * gradients[0]).unsqueeze(-1)
            if of_h is not None:
                of_h.index_add_(0, source, weight * of_target).index_add_(0, target, weight * of_source)
            if of_weight is not None:
                of_weight[block] = gradients[0] * (of_source * of_target).sum(dim=-1)
        return of_h, None, of_weight


class _SquaredDifferences(torch.autograd.Function):
    """``sum_e |u_source(e) - u_target(e)|^2``: differences, since neighbours may be nearly alike."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, edge_index: Tensor) -> Tensor:
        ctx.save_for_backward(u, edge_index)
        total = u.new_zeros(())
        for block in _blocks(edge_index.size(1), u.size(-1)):
            of_source, of_target = _rows_at(u, edge_index[:, block])
            total += (of_source - of_target).square().sum()
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        u, edge_index = ctx.saved_tensors
        of_u = torch.zeros_like(u)
        for block in _blocks(edge_index.size(1), u.size(-1)):
            source, target = edge_index[:, block]
            of_source, of_target = _rows_at(u, edge_index[:, block])
            slope = (of_source - of_target) * (2 * gradients[0])
            of_u.index_add_(0, source, slope).index_add_(0, target, -slope)
        return of_u, None
