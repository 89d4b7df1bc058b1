"""Quantization as pure functions of tensors, differentiable where training needs it.

Codes are *centred*: a code ``c`` stands for ``c * scale``. With the unsigned code ``u`` and the
doubled zero point ``zero2`` of ``gnnquant.integer_graph``, ``c = (2u - zero2) / 2``: an integer, or
half an odd integer on the grid of four symmetric levels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

FOUR_LEVELS = 3
"""``zero2`` of the grid -1.5, -0.5, 0.5, 1.5."""


def signed_zero2(bits: int) -> int:
    """Doubled zero point for signed data: four symmetric levels at 2 bits, else two's complement."""
    return FOUR_LEVELS if bits == 2 else 2**bits


def code_range(bits: int, zero2: int) -> tuple[float, float]:
    """Lowest and highest centred code."""
    return -zero2 / 2, 2**bits - 1 - zero2 / 2


def widened(value: Tensor) -> Tensor:
    """``value``, in float32 where it is in half precision: sums of codes would not be exact there."""
    return value.float() if value.dtype in (torch.float16, torch.bfloat16) else value


def round_through(value: Tensor, rounded: Tensor) -> Tensor:
    """``rounded`` in the forward pass, the gradient of ``value`` in the backward pass."""
    return value + (rounded - value).detach()


def inverse_scale(scale: Tensor) -> Tensor:
    """``1 / scale``, and 0 where the scale is 0 (a row of zeros)."""
    return torch.where(scale > 0, scale.clamp(min=1e-38).reciprocal(), torch.zeros_like(scale))


def centred_codes(value: Tensor, scale: Tensor, bits: int, zero2: int) -> Tensor:
    """Quantize to centred codes with the straight-through gradient.

    ``t = value * (1 / scale)`` is clamped to the grid and rounded, half to even where ``zero2`` is
    even and to the middle of its cell where it is odd. The gradient passes where ``t`` lies within
    the grid, so that together with the factor ``scale`` of whoever uses the codes the gradient of
    the scale is the one of LSQ (Esser et al., 2020): the rounding residual inside, the bound
    outside.

    Args:
        value: float32 or float64, any shape.
        scale: Broadcastable to ``value``, not negative.
        bits: 2, 4 or 8.
        zero2: Doubled zero point.

    Returns:
        Codes of the shape of ``value``.
    """
    codes: Tensor = _CentredCodes.apply(value, inverse_scale(scale), bits, zero2)  # type: ignore[no-untyped-call]
    return codes


class _CentredCodes(torch.autograd.Function):
    """Clamp and round ``value * inverse``; one function, since autograd would keep every step."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, inverse: Tensor, bits: int, zero2: int) -> Tensor:
        low, high = code_range(bits, zero2)
        t = value * inverse
        inside = None
        if any(ctx.needs_input_grad):
            inside = (t >= low) & (t <= high)
        ctx.save_for_backward(value, inverse, inside)
        codes = t.floor_().add_(0.5) if zero2 % 2 else t.round_()
        return codes.clamp_(low, high)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        value, inverse, inside = ctx.saved_tensors
        passed = gradients[0] * inside
        of_value = of_inverse = None
        if ctx.needs_input_grad[0]:
            of_value = (passed * inverse).sum_to_size(value.shape)
        if ctx.needs_input_grad[1]:
            of_inverse = passed.mul_(value).sum_to_size(inverse.shape)
        return of_value, of_inverse, None, None


def row_statistic(value: Tensor, zero2: int, row_axis: int = 0) -> Tensor:
    """Largest magnitude of every row [..., N, 1, ...]; of the positive part for unsigned grids.

    A maximum is the same in whatever order it is taken: integer code and this reference agree to
    the last bit.
    """
    rows = value.detach().movedim(row_axis, 0).flatten(1)
    if rows.size(1) == 0:
        statistic = rows.new_zeros(rows.size(0))
    elif zero2 == 0:
        statistic = rows.amax(dim=1).clamp(min=0)
    else:
        lowest, highest = torch.aminmax(rows, dim=1)
        statistic = torch.maximum(highest, -lowest)
    return statistic.view(*[1] * row_axis, -1, *[1] * (value.dim() - 1 - row_axis))
