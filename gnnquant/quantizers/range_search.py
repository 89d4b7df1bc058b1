"""The range of a quantizer from data: candidates are tried, and the one with the least error is kept."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from gnnquant.quantizers.functional import centred_codes, code_range, row_statistic, signed_zero2, widened
from gnnquant.quantizers.sparse import Pattern

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

FACTORS = (
    0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5,
    0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 1.0, 1.1, 1.3,
)  # fmt: skip
"""Ranges that are tried, as fractions of the largest magnitude."""
BLOCK = 2**22
"""Numbers whose errors are taken at once: 16 MiB of float32 for each intermediate."""


class RangeSearch:
    """Adds up, over batches, the squared error of every range that may be chosen.

    Attributes:
        finite: Whether all data so far was finite.
    """

    def __init__(self, bits: int, granularity: str, row_axis: int) -> None:
        """The arguments are the attributes of ``Quantizer``."""
        self.finite = True
        self._bits = bits
        self._granularity = granularity
        self._row_axis = row_axis
        self._negative = False
        self._largest: Tensor | None = None
        self._errors: dict[int, Tensor] = {}

    def best_after(self, seen: Tensor | Pattern) -> tuple[Tensor, int]:
        """Include what is seen, not empty; returns (log scale, zero2) with the least error so far.

        Data that was never negative gets the unsigned grid; weights are always signed.
        """
        values = widened(seen.values) if isinstance(seen, Pattern) else seen
        low, high = values.aminmax() if values.numel() else (values.new_zeros(()), values.new_zeros(()))
        self.finite = self.finite and bool(torch.isfinite(low) & torch.isfinite(high))
        self._negative = self._negative or self._granularity == "column" or bool(low < 0)
        if self._largest is None:
            self._largest = self._magnitude(values, torch.maximum(low.abs(), high.abs()))
        for zero2 in (signed_zero2(self._bits), 0):
            if zero2 == 0 and self._negative:
                continue
            if isinstance(seen, Pattern):
                errors = self._errors_of_pattern(seen, values, zero2)
            else:
                errors = sum(
                    (self._errors_of(block, zero2) for block in self._blocks(seen)), start=low.new_zeros(())
                )
            self._errors[zero2] = errors + self._errors.get(zero2, 0)
        chosen = signed_zero2(self._bits) if self._negative else 0
        best = self._errors[chosen].argmin(dim=0)
        factor = torch.tensor(FACTORS, dtype=values.dtype, device=values.device)[best]
        scale = self._largest * factor / code_range(self._bits, chosen)[1]
        return scale.clamp(min=1e-12).log(), chosen

    def _magnitude(self, values: Tensor, largest: Tensor) -> Tensor:
        """What the scale is a multiple of, beyond a row's own statistic."""
        if self._granularity == "row":
            return values.new_ones(())
        if self._granularity == "column":
            return values.abs().amax(dim=1, keepdim=True)
        return largest

    def _blocks(self, value: Tensor) -> Sequence[Tensor]:
        """Parts of a large value, so that its intermediates need little memory; weights stay whole."""
        if self._granularity == "column" or value.numel() <= BLOCK:
            return [value]
        size = value.size(self._row_axis)
        return torch.split(value, max(1, BLOCK * size // value.numel()), dim=self._row_axis)

    def _errors_of(self, value: Tensor, zero2: int) -> Tensor:
        """Squared errors [factors, ...], summed as scales are shared."""
        assert self._largest is not None
        base = self._largest
        if self._granularity == "row":
            base = row_statistic(value, zero2, self._row_axis)
        errors = []
        for scale in self._scales(base, zero2):
            error = (centred_codes(value, scale, self._bits, zero2) * scale - value).square()
            errors.append(error.sum(dim=1, keepdim=True) if self._granularity == "column" else error.sum())
        return torch.stack(errors)

    def _errors_of_pattern(self, pattern: Pattern, values: Tensor, zero2: int) -> Tensor:
        """The same of a matrix that is zero beyond a pattern, which has ``values`` in it."""
        assert self._largest is not None
        by_row = self._granularity == "row"
        base = pattern.row_statistic(values, zero2) if by_row else self._largest
        zeros = pattern.shape[1] - torch.bincount(pattern.row, minlength=pattern.shape[0])
        zero_code = 0.5 if zero2 % 2 else 0.0
        errors = []
        for scale in self._scales(base, zero2):
            own = pattern.by_entry(scale) if by_row else scale
            error = (centred_codes(values, own, self._bits, zero2) * own - values).square().sum()
            errors.append(error + (zeros.view(-1, 1) * (zero_code * scale).square()).sum())
        return torch.stack(errors)

    def _scales(self, base: Tensor, zero2: int) -> list[Tensor]:
        highest = code_range(self._bits, zero2)[1]
        return [base * (factor / highest) for factor in FACTORS]
