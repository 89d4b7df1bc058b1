"""The range search: a matrix whole, in blocks and as a pattern has the least error at the same place."""

from __future__ import annotations

import pytest
import torch
from torch_geometric.data import Data
from torch_geometric.nn import GCN

import gnnquant
from gnnquant.quantizers import range_search
from gnnquant.quantizers.calibration import quantizers_of
from gnnquant.quantizers.range_search import FACTORS, RangeSearch
from gnnquant.quantizers.sparse import pattern_of

ROWS, COLUMNS = 50, 60


def mostly_zero(negative: bool) -> torch.Tensor:
    """[ROWS, COLUMNS] with a row of zeros."""
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(ROWS, COLUMNS, generator=generator)
    x[torch.rand(ROWS, COLUMNS, generator=generator) > 0.1] = 0
    x[5] = 0
    return x if negative else x.abs()


def least_error(x: torch.Tensor, bits: int, granularity: str, negative: bool) -> float:
    """The factor with the least squared error, by rounding to the nearest of all levels in float64."""
    x = x.double()
    levels = torch.arange(2**bits, dtype=torch.float64)
    if negative:
        levels -= 1.5 if bits == 2 else 2 ** (bits - 1)
    largest = x.abs().amax(dim=1, keepdim=True) if granularity == "row" else x.abs().max()
    errors = []
    for factor in FACTORS:
        scale = largest * factor / levels[-1]
        distances = (x.unsqueeze(-1) - scale.unsqueeze(-1) * levels).abs()
        errors.append(float(distances.amin(dim=-1).square().sum()))
    return FACTORS[errors.index(min(errors))]


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("granularity", ["row", "tensor"])
@pytest.mark.parametrize("negative", [False, True])
@pytest.mark.parametrize("way", ["whole", "blocks", "pattern"])
def test_the_least_error_is_found(
    bits: int, granularity: str, negative: bool, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if way == "blocks":
        monkeypatch.setattr(range_search, "BLOCK", 7 * COLUMNS)
    x = mostly_zero(negative)
    seen = pattern_of(x) if way == "pattern" else x
    assert seen is not None
    search = RangeSearch(bits, granularity, 0)
    log_scale, zero2 = search.best_after(seen)
    assert search.finite
    assert bool(zero2) is negative
    highest = 2**bits - 1 - zero2 / 2
    largest = 1.0 if granularity == "row" else float(x.abs().max())
    expected = least_error(x, bits, granularity, negative) * largest / highest
    assert float(log_scale.exp()) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("sparse", [False, True])
def test_what_is_not_finite_is_seen(wrong: float, sparse: bool) -> None:
    x = mostly_zero(negative=True)
    x[3, 4] = wrong
    search = RangeSearch(4, "row", 0)
    seen = pattern_of(x) if sparse else x
    assert seen is not None
    search.best_after(seen)
    assert not search.finite


def test_a_matrix_of_zeros() -> None:
    seen = pattern_of(torch.zeros(4, 4))
    assert seen is not None
    for granularity in ("row", "tensor"):
        log_scale, zero2 = RangeSearch(2, granularity, 0).best_after(seen)
        assert zero2 == 0
        assert torch.isfinite(log_scale)


def test_calibration_takes_patterns_where_they_save_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """And the ranges are those of calibration without them."""
    torch.manual_seed(0)
    x, edge_index = mostly_zero(negative=False), torch.randint(0, ROWS, (2, 200))
    model = GCN(COLUMNS, 8, num_layers=2, out_channels=3).eval()
    scales = []
    for dense in (False, True):
        if dense:
            monkeypatch.setattr("gnnquant.quantizers.sparse.DENSEST", -1.0)
            x = x.clone()
        q = gnnquant.convert(model, (x, edge_index), bits=2)
        gnnquant.calibrate(q, Data(x=x, edge_index=edge_index))
        assert not any(quantizer.sparse_input for quantizer in quantizers_of(q).values())
        scales.append(
            {
                name: float(quantizer.learned_scale().detach().sum())
                for name, quantizer in quantizers_of(q).items()
            }
        )
    assert scales[0] == pytest.approx(scales[1], rel=1e-5)
