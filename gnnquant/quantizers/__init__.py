"""Learnable quantizers: pure functions below, modules above."""

from gnnquant.quantizers.modules import Quantized, Quantizer

__all__ = ["Quantized", "Quantizer"]
