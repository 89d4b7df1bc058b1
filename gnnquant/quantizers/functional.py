"""Quantization as pure functions of tensors, differentiable where training needs it.

Codes are *centred*: a code ``c`` stands for ``c * scale``. With the unsigned code ``u`` and the
doubled zero point ``zero2`` of ``gnnquant.integer_graph``, ``c = (2u - zero2) / 2``: an integer, or
half an odd integer on the grid of four symmetric levels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gnnquant.integer_graph import SMALLEST

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


def inverse_scale(scale: Tensor, numerator: float = 1.0) -> Tensor:
    """``numerator / scale``, and 0 where the scale is below ``SMALLEST`` (a row of zeros)."""
    # Not ``numerator / scale``, which torch computes as a product with the reciprocal.
    quotient = torch.full_like(scale, numerator) / scale.clamp(min=SMALLEST)
    return torch.where(scale >= SMALLEST, quotient, torch.zeros_like(scale))


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
    codes: Tensor = _CentredCodes.apply(value, scale, bits, zero2)  # type: ignore[no-untyped-call]
    return codes


class _CentredCodes(torch.autograd.Function):
    """Clamp and round ``value / scale``; one function, since autograd would keep every step."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, scale: Tensor, bits: int, zero2: int) -> Tensor:
        low, high = code_range(bits, zero2)
        inverse = inverse_scale(scale)
        t = value * inverse
        codes = t.clamp(low, high)
        ctx.save_for_backward(value, inverse, codes == t if any(ctx.needs_input_grad) else None)
        if zero2 % 2:
            # Half an odd integer, and the highest of them where t is the end of the grid.
            return codes.floor_().add_(0.5).clamp_(low, high)
        return codes.round_()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        value, inverse, inside = ctx.saved_tensors
        passed = gradients[0] * inside
        of_value = of_scale = None
        if ctx.needs_input_grad[0]:
            of_value = (passed * inverse).sum_to_size(value.shape)
        if ctx.needs_input_grad[1]:
            of_scale = -passed.mul_(value).sum_to_size(inverse.shape) * inverse * inverse
        return of_value, of_scale, None, None


def row_statistic(value: Tensor, zero2: int, row_axis: int = 0) -> Tensor:
    """Largest magnitude of every row [..., N, 1, ...]; of the positive part for unsigned grids.

    A maximum is the same in whatever order it is taken: integer code and this reference agree to
    the last bit. The gradient goes to where the maximum is: the scale of a row follows its largest
    number, which a range below the maximum clips and would leave without a gradient.
    """
    statistic: Tensor = _RowStatistic.apply(value, zero2, row_axis)  # type: ignore[no-untyped-call]
    return statistic


class _RowStatistic(torch.autograd.Function):
    """One function, since autograd would keep the magnitudes."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, zero2: int, row_axis: int) -> Tensor:
        ctx.unsigned = zero2 == 0
        ctx.within = [axis for axis in range(value.dim()) if axis != row_axis]
        if any(value.size(axis) == 0 for axis in ctx.within):
            shape = [size if axis == row_axis else 1 for axis, size in enumerate(value.shape)]
            statistic = value.new_zeros(shape)
        else:
            magnitude = value if ctx.unsigned else value.abs()
            statistic = magnitude.amax(dim=ctx.within, keepdim=True) if ctx.within else magnitude.clone()
            statistic = statistic.clamp_(min=0) if ctx.unsigned else statistic
        ctx.save_for_backward(value, statistic)
        return statistic

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        value, statistic = ctx.saved_tensors
        largest = (value if ctx.unsigned else value.abs()) == statistic
        count = largest.sum(dim=ctx.within, keepdim=True) if ctx.within else largest
        share = gradients[0] / count.clamp(min=1)
        return largest * share if ctx.unsigned else largest * share * value.sign(), None, None
