"""Quantizers: ranges from data, grids chosen by data, parameters that exist from the start."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

from gnnquant.config import QuantSpec
from gnnquant.errors import FineTuneError
from gnnquant.quantizers import Quantizer, ops
from gnnquant.quantizers.calibration import calibrate, is_calibrated

ROW, TENSOR = QuantSpec(4, "row"), QuantSpec(4, "tensor")


class Wrapped(nn.Module):
    """A model that is one quantizer."""

    def __init__(self, quantizer: nn.Module) -> None:
        super().__init__()
        self.quantizer = quantizer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        codes, scale = self.quantizer(x)
        return codes * scale


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("granularity", ["tensor", "row"])
@pytest.mark.parametrize("signed", [False, True])
def test_calibration_beats_the_full_range(bits: int, granularity: str, signed: bool) -> None:
    """The chosen range has no more error than the range that clips nothing."""
    generator = torch.Generator().manual_seed(bits)
    x = torch.randn(64, 40, generator=generator)
    x = x if signed else x.relu()
    model = Wrapped(Quantizer(QuantSpec(bits, granularity)))
    assert not is_calibrated(model)
    calibrate(model, [(x,)])
    assert is_calibrated(model)
    assert (int(model.quantizer.zero2) == 0) is (not signed)
    error = (model(x) - x).square().mean()
    base = x.abs().max() if granularity == "tensor" else x.abs().amax(1, keepdim=True)
    levels = 2**bits - 1
    step = base * (2 if signed else 1) / levels
    shift = 0.5 if signed else 0.0
    full = ((x / step - shift).round() + shift) * step
    # The full-range grid is symmetric; ours, in two's complement, lacks one half step of it.
    assert error <= (full - x).square().mean() * 1.1


def test_several_batches_are_one_sample() -> None:
    """A negative value in a later batch makes the grid signed."""
    model = Wrapped(Quantizer(TENSOR))
    calibrate(model, [(torch.ones(3, 3),), (-torch.ones(3, 3),)])
    assert int(model.quantizer.zero2) == 16


def test_channels_have_their_own_scale() -> None:
    """A weight's channels are scaled by their own magnitude."""
    weight = torch.tensor([[1.0, 0.5], [100.0, 50.0]])
    model = Wrapped(Quantizer(QuantSpec(4, "column"), 2))
    calibrate(model, [(weight,)])
    torch.testing.assert_close(model(weight), weight, rtol=0.1, atol=0)


def test_failed_calibration_leaves_ranges_alone() -> None:
    """NaN, or no batch at all, is an error; the old range stays."""
    model = Wrapped(Quantizer(ROW))
    calibrate(model, [(torch.ones(2, 2),)])
    before = model.quantizer.log_scale.clone()
    with pytest.raises(FineTuneError, match="NaN"):
        calibrate(model, [(torch.full((2, 2), torch.nan),)])
    with pytest.raises(FineTuneError, match="no batch"):
        calibrate(model, [])
    with pytest.raises(FineTuneError, match="Data object"):
        calibrate(model, torch.ones(2))
    assert torch.equal(before, model.quantizer.log_scale)


def test_state_moves_with_copies_and_state_dicts() -> None:
    """Range, grid and calibration flag survive deepcopy, pickle and state dict."""
    model = Wrapped(Quantizer(ROW))
    x = torch.rand(5, 6)
    calibrate(model, [(x,)])
    fresh = Wrapped(Quantizer(ROW))
    fresh.load_state_dict(model.state_dict())
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), fresh):
        assert torch.equal(other(x), model(x))
        assert is_calibrated(other)


def test_ranges_are_parameters_from_the_start() -> None:
    """An optimizer built before any data sees them, and a step changes them."""
    model = Wrapped(Quantizer(TENSOR))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(torch.randn(4, 4)).square().sum().backward()
    before = model.quantizer.log_scale.detach().clone()
    optimizer.step()
    assert not torch.equal(before, model.quantizer.log_scale)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_every_floating_point_type(dtype: torch.dtype) -> None:
    """Codes have the values' dtype and are whole; half precision is quantized in float32."""
    value = torch.randn(50, 9, generator=torch.Generator().manual_seed(0)).to(dtype).requires_grad_()
    for granularity in ("row", "tensor"):
        quantizer = Quantizer(QuantSpec(8, granularity, True)).to(dtype)
        quantizer.start_observing()
        quantizer(value.detach())
        assert quantizer.stop_observing()
        codes, scale = quantizer(value)
        assert codes.dtype == dtype
        assert scale.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert torch.equal(codes, codes.round())
        ops.dequantize(codes, scale).sum().backward()
        assert quantizer.log_scale.grad is not None
        error = (ops.dequantize(codes, scale) - value).detach().abs().max()
        assert float(error) < 0.05


def test_a_range_without_data() -> None:
    """Row scales can cover whatever comes; one scale for a tensor cannot be known."""
    value = torch.randn(20, 5, generator=torch.Generator().manual_seed(0))
    quantizer = Quantizer(QuantSpec(8, "row", True))
    assert quantizer.cover_all()
    codes, scale = quantizer(value)
    assert float((codes * scale - value).detach().abs().max()) < 0.02
    assert not Quantizer(QuantSpec(8, "tensor", True)).cover_all()
