"""Exponential and logarithm as fixed sequences of float32 operations.

A library's ``exp`` differs in its last bit from machine to machine. These do not: every backend
performs the same additions and multiplications, each rounded once, so that a softmax is as
bit-exact as an integer sum. Argument reduction and the coefficients of the logarithm are those of
the Cephes mathematical library (S. L. Moshier, ``expf`` and ``logf``); those of the exponential
are of the polynomial of degree 4 whose relative error in ``e**r``, ``|r| <= ln 2 / 2``, is the
smallest (3e-9). Results are within 1 unit in the last place of the true value on the ranges below.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

EXP_LOW, EXP_HIGH = -87.0, 88.0
"""Arguments of ``exp`` are clamped to this range, so that the result is a normal number."""
LOG2_E = 1.44269504088896341
LN2_HIGH, LN2_LOW = 0.693359375, -2.12194440e-4
"""``ln 2`` in two parts; products of the first with small integers are exact."""
EXP_COEFFICIENTS = (
    1.38145406e-3,
    8.36874545e-3,
    4.16683890e-2,
    1.66665211e-1,
    4.99999940e-1,
)
SQRT_HALF = 0.707106781186547524
LOG_COEFFICIENTS = (
    7.0376836292e-2,
    -1.1514610310e-1,
    1.1676998740e-1,
    -1.2420140846e-1,
    1.4249322787e-1,
    -1.6668057665e-1,
    2.0000714765e-1,
    -2.4999993993e-1,
    3.3333331174e-1,
)


def exp(x: Tensor) -> Tensor:
    """``e**x`` of a float32 tensor.

    With ``k = round_half_even(x * log2 e)`` and ``r = (x - k * LN2_HIGH) - k * LN2_LOW``, the
    result is ``((p(r) * (r * r) + r) + 1) * 2**k``, ``p`` by Horner's rule.
    """
    import torch

    x = x.clamp(EXP_LOW, EXP_HIGH)
    k = (x * LOG2_E).round()
    r = (x - k * LN2_HIGH) - k * LN2_LOW
    p = torch.full_like(r, EXP_COEFFICIENTS[0])
    for coefficient in EXP_COEFFICIENTS[1:]:
        p = p * r + coefficient
    y = (p * (r * r) + r) + 1.0
    power = ((k.to(torch.int32) + 127) << 23).view(torch.float32)
    return y * power


def log(x: Tensor) -> Tensor:
    """Natural logarithm of a float32 tensor of positive normal numbers.

    With ``x = m * 2**e``, ``m`` in [sqrt(1/2), sqrt(2)), ``f = m - 1`` and ``z = f * f``: the
    result is ``(f + ((p(f) * f * z + e * LN2_LOW) - 0.5 * z)) + e * LN2_HIGH``.
    """
    import torch

    bits = x.view(torch.int32)
    exponent = ((bits >> 23) & 255) - 126
    mantissa = ((bits & 0x7FFFFF) | 0x3F000000).view(torch.float32)
    small = mantissa < SQRT_HALF
    f = torch.where(small, mantissa + mantissa, mantissa) - 1.0
    e = (exponent - small.to(torch.int32)).to(torch.float32)
    z = f * f
    p = torch.full_like(f, LOG_COEFFICIENTS[0])
    for coefficient in LOG_COEFFICIENTS[1:]:
        p = p * f + coefficient
    y = ((p * f) * z + e * LN2_LOW) - 0.5 * z
    return (f + y) + e * LN2_HIGH
