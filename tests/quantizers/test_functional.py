"""Codes, grids and the gradients of ranges."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gnnquant.quantizers.functional import (
    FOUR_LEVELS,
    centred_codes,
    code_range,
    row_statistic,
    signed_zero2,
)

GRIDS = [(8, 0), (8, 256), (4, 0), (4, 16), (2, 0), (2, 4), (2, FOUR_LEVELS)]


@pytest.mark.parametrize(("bits", "zero2"), GRIDS)
def test_codes_are_the_nearest_levels(bits: int, zero2: int) -> None:
    """Every value gets the nearest of the 2^bits levels, found by brute force."""
    generator = torch.Generator().manual_seed(bits + zero2)
    value = torch.randn(500, generator=generator)
    scale = torch.tensor(0.13)
    levels = (2 * np.arange(2**bits) - zero2) / 2 * 0.13
    codes = centred_codes(value, scale, bits, zero2)
    nearest = np.abs(value.numpy()[:, None] - levels[None]).min(axis=1)
    error = np.abs(value.numpy() - codes.numpy() * 0.13)
    np.testing.assert_allclose(error, nearest, atol=1e-6)
    low, high = code_range(bits, zero2)
    assert codes.min() >= low
    assert codes.max() <= high


@pytest.mark.parametrize(("bits", "zero2"), [grid for grid in GRIDS if grid[1] % 2 == 0])
def test_zero_is_exact(bits: int, zero2: int) -> None:
    """Zero has a code of its own on every integer grid."""
    assert centred_codes(torch.zeros(3), torch.tensor(0.7), bits, zero2).tolist() == [0, 0, 0]


def test_zero_scale_gives_zero_values() -> None:
    """A row of zeros has scale 0; nothing becomes NaN."""
    value = torch.zeros(2, 4)
    scale = row_statistic(value, 256)
    codes = centred_codes(value, scale, 8, 256)
    assert torch.equal(codes * scale, value)


@pytest.mark.parametrize(("bits", "zero2"), GRIDS)
def test_scale_gradient_is_residual_inside_and_bound_outside(bits: int, zero2: int) -> None:
    """d(code * s)/ds is code - v/s inside the grid and the bound outside (LSQ, equation 3)."""
    generator = torch.Generator().manual_seed(0)
    value = torch.randn(200, generator=generator) * 3
    scale = torch.tensor(0.4, requires_grad=True)
    low, high = code_range(bits, zero2)
    for item in value:
        (gradient,) = torch.autograd.grad(centred_codes(item, scale, bits, zero2) * scale, scale)
        t = float(item) / 0.4
        code = float(centred_codes(item, scale, bits, zero2).detach())
        expected = code - t if low <= t <= high else (low if t < low else high)
        assert float(gradient) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(("bits", "zero2"), GRIDS)
def test_scale_gradient_matches_finite_differences_of_a_smooth_surrogate(bits: int, zero2: int) -> None:
    """Averaged over many values, rounding is smooth: central differences agree with autograd.

    For one value the quantizer is a step function; the mean squared error over a dense sample is
    smooth in the scale, and its derivative is what training follows. The straight-through gradient
    of the values cancels there, since the error's own derivative in the values is not used.
    """
    value = torch.linspace(-2, 2, 400_001, dtype=torch.float64)

    def loss(scale: torch.Tensor) -> torch.Tensor:
        quantized = centred_codes(value, scale, bits, zero2) * scale
        return (quantized - value).square().mean()

    for start in (0.21, 0.33, 0.9):
        scale = torch.tensor(start, dtype=torch.float64, requires_grad=True)
        (gradient,) = torch.autograd.grad(loss(scale), scale)
        step = 1e-3
        with torch.no_grad():
            difference = (loss(scale + step) - loss(scale - step)) / (2 * step)
        # The derivative of E|q - v|^2 is E[2 (q - v) dq/ds]; the pathwise dq/ds is the code, the
        # straight-through one is code - v/s inside. They differ by -2 (q - v) v/s, whose mean is
        # the second-order term added here.
        inside = (value / scale >= code_range(bits, zero2)[0]) & (value / scale <= code_range(bits, zero2)[1])
        with torch.no_grad():
            residual = centred_codes(value, scale, bits, zero2) * scale - value
            correction = (2 * residual * value / scale * inside).mean()
        assert float(gradient + correction) == pytest.approx(float(difference), abs=2e-3)


def test_signed_grids() -> None:
    """Four symmetric levels at 2 bits, two's complement above."""
    assert [signed_zero2(bits) for bits in (2, 4, 8)] == [3, 16, 256]
    assert code_range(2, 3) == (-1.5, 1.5)


def test_row_statistic_has_one_value_per_row() -> None:
    """Largest magnitude; of the positive part on unsigned grids; 0 for empty rows."""
    value = torch.tensor([[[1.0, -3.0]], [[0.0, 2.0]]])
    assert row_statistic(value, 16).tolist() == [[[3.0]], [[2.0]]]
    assert row_statistic(value, 0).tolist() == [[[1.0]], [[2.0]]]
    assert row_statistic(torch.zeros(2, 0), 0).tolist() == [[0.0], [0.0]]


@pytest.mark.parametrize(("bits", "zero2"), GRIDS)
@pytest.mark.parametrize("factor", [0.5, 0.9, 1.2])
def test_row_gradients_match_finite_differences_of_a_smooth_surrogate(
    bits: int, zero2: int, factor: float
) -> None:
    """Rounding is replaced by a shift by its residual, which straight-through gradients hold constant.

    What is left is smooth: a row's scale is a factor of its largest magnitude, and what lies beyond the
    grid is clipped to a bound that moves with that magnitude.
    """
    generator = torch.Generator().manual_seed(bits + zero2)
    value = torch.randn(6, 5, generator=generator, dtype=torch.float64)
    weights = torch.randn(6, 5, generator=generator, dtype=torch.float64)
    low, high = code_range(bits, zero2)
    factor /= high

    def codes_and_scale(value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        scale = row_statistic(value, zero2) * factor
        return centred_codes(value, scale, bits, zero2), scale

    with torch.no_grad():
        codes, scale = codes_and_scale(value)
        residual = codes - (value / scale).clamp(low, high)

    def surrogate(value: torch.Tensor) -> float:
        magnitude = (value if zero2 == 0 else value.abs()).amax(dim=1, keepdim=True)
        scale = magnitude * factor
        return float((((value / scale).clamp(low, high) + residual) * scale * weights).sum())

    value.requires_grad_()
    codes, scale = codes_and_scale(value)
    (gradient,) = torch.autograd.grad((codes * scale * weights).sum(), value)
    expected = torch.empty_like(gradient)
    step = 1e-6
    for place in range(value.numel()):
        shift = torch.zeros(value.numel(), dtype=value.dtype)
        shift[place] = step
        shift = shift.view_as(value)
        with torch.no_grad():
            expected.view(-1)[place] = (surrogate(value + shift) - surrogate(value - shift)) / (2 * step)
    assert torch.allclose(gradient, expected, atol=1e-6)


def test_the_largest_of_equals_share_the_gradient() -> None:
    value = torch.tensor([[2.0, -2.0, 1.0], [0.0, 0.0, 0.0]], requires_grad=True)
    (gradient,) = torch.autograd.grad(row_statistic(value, 16).sum(), value)
    assert gradient.tolist() == [[0.5, -0.5, 0.0], [0.0, 0.0, 0.0]]
    negative = torch.tensor([[-1.0, -2.0]], requires_grad=True)
    (gradient,) = torch.autograd.grad(row_statistic(negative, 0).sum(), negative)
    assert gradient.tolist() == [[0.0, 0.0]]
