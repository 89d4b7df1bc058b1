"""Integer operations as torch functions: what a converted model computes while it trains.

Each takes centred codes and their scale (or plain floats and ``None``) and performs the arithmetic
of ``gnnquant.integer_graph`` on float32 codes: sums of codes are exact below 2**24, scales multiply
once, after the sum. The compiled model therefore computes the same numbers, and gradients flow to
codes, scales and edge weights.

Codes have the dtype of the values that they stand for: small integers (and halves of odd ones) are exact
in half precision too. Sums of codes and scales are float32 at least; results have the dtype of ``x``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from gnnquant.integer_graph import EDGE_LEVELS
from gnnquant.quantizers.functional import inverse_scale, widened
from gnnquant.quantizers.sparse import SparseCodes
from gnnquant.quantizers.spmm import entries_of, spmm


def dequantize(codes: Tensor | SparseCodes, scale: Tensor | None) -> Tensor:
    """``codes * scale``; ``codes`` where the quantizer is bypassed."""
    codes = _dense(codes)
    return codes if scale is None else (widened(codes) * scale).to(codes.dtype)


def scale_of_rows(scale: Tensor | None, index: Tensor) -> Tensor | None:
    """The scales [R, 1, ...] of the rows ``index``; ``None`` where the quantizer is bypassed."""
    return None if scale is None else scale.index_select(0, index)


def _dense(codes: Tensor | SparseCodes) -> Tensor:
    return codes.dense() if isinstance(codes, SparseCodes) else codes


def linear(
    x: Tensor | SparseCodes,
    x_scale: Tensor | None,
    weight: Tensor,
    weight_scale: Tensor | None,
    bias: Tensor | None,
) -> Tensor:
    """Linear layer on codes.

    Args:
        x: [N, ..., K] codes, or values where ``x_scale`` is ``None``.
        x_scale: Scalar or [N, ..., 1].
        weight: [M, K] codes, or values where ``weight_scale`` is ``None``.
        weight_scale: Scalar or [M, 1].
        bias: [M] or ``None``.

    Returns:
        [N, ..., M]: ``((x @ weight.T) * x_scale) * weight_scale + bias``.
    """
    if x_scale is None or weight_scale is None:
        return functional.linear(dequantize(x, x_scale), dequantize(weight, weight_scale), bias)
    if isinstance(x, SparseCodes):
        product = x.with_values(widened(x.values)).matmul(widened(weight))
    else:
        product = functional.linear(widened(x), widened(weight))
    out = (product * x_scale) * weight_scale.reshape(-1)
    return (out if bias is None else out + bias).to(x.dtype)


def adjacency(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """The entries of a sparse matrix whose rows are destinations, in order of rows, then columns.

    Args:
        matrix: [destinations, sources], in any sparse layout.

    Returns:
        int64 [2, entries] (column, row): sources, destinations; and the values [entries].
    """
    if matrix.layout == torch.sparse_csr:
        pointers, columns = matrix.crow_indices(), matrix.col_indices()
        rows = torch.repeat_interleave(
            torch.arange(matrix.size(0), device=columns.device), pointers[1:] - pointers[:-1]
        )
        return torch.stack([columns.long(), rows]), matrix.values()
    if matrix.layout != torch.sparse_coo:
        matrix = matrix.to_sparse()
    matrix = matrix.coalesce()
    return matrix.indices().flip(0), matrix.values()


def propagate(  # noqa: PLR0917 - positional, as fx graphs call it
    x: Tensor | SparseCodes,
    x_scale: Tensor | None,
    edge_index: Tensor,
    edge_weight: Tensor | None,
    num_nodes: int | None,
    reduce: str,
) -> Tensor:
    """Message passing ``out_i = reduce_(j -> i) edge_weight_ij * x_j`` on codes.

    The source's scale rides on the edge weight, which is quantized to 8 bits with one factor per
    destination (and head), so that the sum runs over integers. One scale for all sources multiplies the sum.

    Args:
        x: [N, F] or [N, H, C] codes, or values where ``x_scale`` is ``None``.
        x_scale: Scalar or [N, 1, ...].
        edge_index: int64 [2, E]: sources, destinations.
        edge_weight: ``None``, [E], or [E, H] for H heads.
        num_nodes: Number of rows of the result; ``None`` for the largest destination plus one.
        reduce: ``"sum"``, ``"mean"``, ``"max"`` or ``"min"``. The last two take no edge weight and, on
            codes, one scale for the tensor.

    Returns:
        [num_nodes, ...] of the row shape of ``x``; rows without edges are 0.
    """
    x = _dense(x)
    source, target = edge_index[0], edge_index[1]
    if num_nodes is None:
        num_nodes = int(target.max()) + 1 if target.numel() else 0
    if reduce in ("max", "min"):
        out = _aggregate(x.index_select(0, source), target, num_nodes, f"a{reduce}")
        return dequantize(out, x_scale)
    dtype = x.dtype
    # one scale for all sources multiplies the sum: weights of edges are rounded without it
    factor = None
    if x_scale is not None and x_scale.dim() == 0 and edge_weight is not None:
        factor, x_scale = x_scale, torch.ones_like(x_scale)
    if x_scale is None:
        message = x.index_select(0, source)
        if edge_weight is not None:
            message = message * _per_head(edge_weight, x.dim())
        out = _aggregate(message, target, num_nodes, "sum")
    else:
        x = widened(x)
        value = _edge_scales(x_scale, source, None if edge_weight is None else widened(edge_weight))
        codes, unit = _EdgeCodes.apply(value, target, num_nodes)  # type: ignore[no-untyped-call]
        entries = entries_of(edge_index, x.size(0), num_nodes)
        out = spmm(entries, source, target, codes, x.flatten(1)).view(num_nodes, *x.shape[1:])
        out = out * _per_head(unit, x.dim())
    if reduce == "mean":
        count = torch.bincount(target, minlength=num_nodes).clamp(min=1).to(out.dtype)
        out = out / count.view(-1, *[1] * (out.dim() - 1))
    return (out if factor is None else out * factor).to(dtype)


class _EdgeCodes(torch.autograd.Function):
    """8-bit codes of edge scales [E, H], and what a code stands for at every destination [N, H].

    The gradient passes straight through to ``value``; the unit, which is the largest magnitude over 127, is
    a constant of this step.
    """

    @staticmethod
    def forward(ctx: Any, value: Tensor, target: Tensor, num_nodes: int) -> tuple[Tensor, Tensor]:
        largest = value.new_zeros((num_nodes, value.size(1)))
        largest.scatter_reduce_(0, target.view(-1, 1).expand_as(value), value.abs(), "amax")
        ratio = inverse_scale(largest, EDGE_LEVELS).index_select(0, target)
        unit = largest * (1 / EDGE_LEVELS)
        ctx.save_for_backward(ratio)
        ctx.mark_non_differentiable(unit)
        return (value * ratio).round_(), unit

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (ratio,) = ctx.saved_tensors
        return gradients[0] * ratio, None, None


def _edge_scales(x_scale: Tensor, source: Tensor, edge_weight: Tensor | None) -> Tensor:
    """Scale of every edge's message per unit of code, [E, heads]."""
    if x_scale.dim() == 0:
        scale = x_scale.expand(source.size(0), 1)
    else:
        scale = x_scale.reshape(-1, 1).index_select(0, source)
    if edge_weight is None:
        return scale
    return edge_weight.reshape(source.size(0), -1) * scale if source.size(0) else scale


def _per_head(value: Tensor, dim: int) -> Tensor:
    """[R], [R, 1] or [R, H] -> [R, 1, ...] or [R, H, 1], to multiply rows of ``dim - 1`` axes."""
    if value.dim() == 1 or value.size(1) == 1:
        return value.reshape(-1, *[1] * (dim - 1))
    return value.view(*value.shape, *[1] * (dim - value.dim()))


def _aggregate(message: Tensor, target: Tensor, num_nodes: int, reduce: str) -> Tensor:
    out = message.new_zeros((num_nodes, *message.shape[1:]))
    if reduce == "sum":
        return out.index_add(0, target, message)
    index = target.view(-1, *[1] * (message.dim() - 1)).expand_as(message)
    return out.scatter_reduce(0, index, message, reduce, include_self=False)
