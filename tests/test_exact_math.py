"""The exponential and the logarithm that all backends share, beside those of double precision."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from gnnquant import exact_math

if TYPE_CHECKING:
    from numpy.typing import NDArray

EXP_RANGES = [(exact_math.EXP_LOW, exact_math.EXP_HIGH), (-1.0, 1.0), (-1e-6, 1e-6), (-0.35, 0.35)]


def ulps(found: torch.Tensor, wanted: NDArray[np.float64]) -> float:
    """The largest difference, in units in the last place of the true value."""
    unit = np.spacing(np.abs(wanted).astype(np.float32)).astype(np.float64)
    return float((np.abs(found.numpy().astype(np.float64) - wanted) / unit).max())


@pytest.mark.parametrize(("low", "high"), EXP_RANGES)
def test_exponentials_are_within_a_unit(low: float, high: float) -> None:
    x = torch.linspace(low, high, 1_000_003)
    assert ulps(exact_math.exp(x), np.exp(x.numpy().astype(np.float64))) < 1


def test_exponentials_of_what_is_not_positive_are_at_most_one() -> None:
    """Kernels take the largest power of a softmax for known."""
    bits = torch.arange(0, 0x7F800000, 997, dtype=torch.int32)  # from 0 to the largest float
    x = -bits.view(torch.float32)
    y = exact_math.exp(x)
    assert y[0] == 1
    assert (y > 0).all()
    assert (y <= 1).all()


def test_exponentials_beyond_their_range_are_those_of_its_ends() -> None:
    ends = torch.tensor([exact_math.EXP_LOW, exact_math.EXP_HIGH])
    found = exact_math.exp(torch.tensor([-1e30, 1e30]))
    assert torch.equal(found, exact_math.exp(ends))
    assert torch.isfinite(found).all()


@pytest.mark.parametrize(("low", "high"), [(1e-37, 1e-30), (0.5, 2.0), (1.0, 1e4), (1e30, 3e38)])
def test_logarithms_are_within_a_unit(low: float, high: float) -> None:
    x = torch.logspace(np.log10(low), np.log10(high), 1_000_003, dtype=torch.float64).float()
    assert ulps(exact_math.log(x), np.log(x.numpy().astype(np.float64))) < 1
