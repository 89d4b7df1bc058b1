"""Specifications per kind and per site."""

from __future__ import annotations

import pytest

from gnnquant.config import QuantConfig, QuantSpec


def test_later_and_narrower_settings_win() -> None:
    """Defaults, then the kind, then globs in order."""
    config = QuantConfig(
        message=QuantSpec(bits=4),
        sites={
            "convs.*": QuantSpec(granularity="tensor"),
            "convs.0.*": QuantSpec(bits=2),
        },
    )
    assert config.resolve("convs.0.message", "message", 8) == QuantSpec(2, "tensor", True)
    assert config.resolve("convs.1.message", "message", 8) == QuantSpec(4, "tensor", True)
    assert config.resolve("lin.weight", "weight", 8) == QuantSpec(8, "column", True)
    assert config.resolve("output", "output", 8).enabled is False
    assert config.resolve("conv.skip", "skip", 2).bits == 8


def test_activations_are_all_kinds_but_weights() -> None:
    """What a kind says of itself wins; outputs stay off unless theirs turns them on."""
    config = QuantConfig(
        activations=QuantSpec(granularity="tensor", enabled=True),
        update=QuantSpec(granularity="row"),
        output=QuantSpec(bits=4),
    )
    assert config.resolve("conv.message", "message", 2) == QuantSpec(2, "tensor", True)
    assert config.resolve("conv.update", "update", 2) == QuantSpec(2, "row", True)
    assert config.resolve("conv.skip", "skip", 2) == QuantSpec(8, "tensor", True)
    assert config.resolve("conv.weight", "weight", 2) == QuantSpec(2, "column", True)
    assert config.resolve("output", "output", 2) == QuantSpec(4, "tensor", False)
    with pytest.raises(ValueError, match="not for it"):
        QuantConfig(activations=QuantSpec(granularity="column")).resolve("conv.message", "message", 8)


def test_bad_values_are_refused() -> None:
    """Widths and granularities that do not exist."""
    with pytest.raises(ValueError, match="bits"):
        QuantSpec(bits=3)
    with pytest.raises(ValueError, match="granularity"):
        QuantSpec(granularity="block")
    with pytest.raises(ValueError, match="not for it"):
        QuantConfig(weight=QuantSpec(granularity="row")).resolve("w", "weight", 8)
