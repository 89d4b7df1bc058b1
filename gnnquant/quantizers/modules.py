"""Quantizers as modules: the learnable range, and how it is initialised from data."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from gnnquant.quantizers.functional import (
    centred_codes,
    code_range,
    row_statistic,
    signed_zero2,
    widened,
)
from gnnquant.quantizers.sparse import Pattern, SparseCodes, pattern_of

if TYPE_CHECKING:
    from gnnquant.config import QuantSpec

SEARCH_FACTORS = (
    0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5,
    0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 1.0, 1.1, 1.3,
)  # fmt: skip
"""Ranges tried at initialisation, as fractions of the largest magnitude."""


class Quantized(NamedTuple):
    """A quantized tensor: ``codes * scale``.

    Attributes:
        codes: Centred codes, in the dtype of the tensor.
            Where ``quantizers.sparse`` says so, ``SparseCodes``, which only ``quantizers`` knows.
        scale: Scalar, [..., N, 1, ...] (per row) or [M, 1] (per output channel of a weight); ``None``
            where the quantizer is bypassed and ``codes`` are the values. float32, or float64.
    """

    codes: Tensor
    scale: Tensor | None


class Quantizer(nn.Module):
    """A grid, a learnable range and its initialisation from data.

    The scale is learned through its logarithm, which keeps it positive and makes its gradient
    relative. The parameter exists from construction, so that an optimizer built at any time
    sees it.

    Args:
        spec: A complete specification.
        channels: Number of output channels, for granularity ``"column"``.
        row_axis: Axis of the rows, for granularity ``"row"``.

    Attributes:
        bits: Bit width.
        granularity: ``"row"``, ``"tensor"`` or ``"column"``.
        row_axis: Axis of the rows.
        log_scale: Logarithm of the scale: a scalar, [channels, 1] for ``"column"``, and for ``"row"``
            the logarithm of the factor of every row's statistic.
        zero2: Doubled zero point, int64 scalar buffer; chosen by the data in calibration.
        calibrated: bool scalar buffer; whether the range has been initialised from data.
        bypassed: Let values through unchanged, to compare a converted model with its original.
        sparse_input: Return ``SparseCodes`` where that saves work: see ``quantizers.sparse``.
    """

    log_scale: nn.Parameter
    zero2: Tensor
    calibrated: Tensor

    def __init__(self, spec: QuantSpec, channels: int | None = None, row_axis: int = 0) -> None:
        super().__init__()
        assert spec.bits is not None
        assert spec.granularity is not None
        self.bits = spec.bits
        self.granularity = spec.granularity
        self.row_axis = row_axis
        shape = () if channels is None else (channels, 1)
        self.log_scale = nn.Parameter(torch.zeros(shape))
        self.register_buffer("zero2", torch.tensor(signed_zero2(spec.bits)))
        self.register_buffer("calibrated", torch.tensor(False))
        self.bypassed = False
        self.sparse_input = False
        self._search: _RangeSearch | None = None
        self._paused = False

    def forward(self, value: Tensor) -> Quantized:
        """Quantize ``value``, observing it first while calibrating.

        Values in half precision are quantized in float32; their codes are exact in their own dtype.
        """
        if self.bypassed:
            return Quantized(value, None)
        wide = widened(value)
        if self._search is not None and not self._paused:
            self._observe(wide.detach())
        zero2 = int(self.zero2)
        pattern = self.sparse_pattern(value) if zero2 % 2 == 0 else None
        if pattern is not None:
            return self._quantize_entries(pattern, zero2)
        scale = self.learned_scale().to(wide.dtype)
        if self.granularity == "row":
            scale = row_statistic(wide, zero2, self.row_axis) * scale
        return Quantized(centred_codes(wide, scale, self.bits, zero2).to(value.dtype), scale)

    def sparse_pattern(self, value: Tensor) -> Pattern | None:
        """Where ``value`` is not zero, if ``SparseCodes`` are wanted and save work."""
        return pattern_of(value) if self.sparse_input and self.row_axis == 0 else None

    def _quantize_entries(self, pattern: Pattern, zero2: int) -> Quantized:
        """Quantize what is not zero; 0 has the code 0."""
        values = widened(pattern.values)
        scale = entry_scale = self.learned_scale().to(values.dtype)
        if self.granularity == "row":
            scale = pattern.row_maximum(values.abs() if zero2 else values) * scale
            entry_scale = scale.view(-1).index_select(0, pattern.row)
        codes = centred_codes(values, entry_scale, self.bits, zero2)
        sparse: Any = SparseCodes(pattern, codes.to(pattern.values.dtype))
        return Quantized(sparse, scale)

    def learned_scale(self) -> Tensor:
        """What was learned: the scale, or for ``"row"`` the factor of every row's statistic."""
        return widened(self.log_scale).exp()

    def cover_all(self) -> bool:
        """Take the range that covers whatever comes; returns whether there is one without data.

        There is for ``"row"``: the levels reach to every row's largest magnitude.
        """
        if self.granularity != "row":
            return False
        with torch.no_grad():
            self.log_scale.fill_(-math.log(code_range(self.bits, int(self.zero2))[1]))
            self.calibrated.fill_(True)
        return True

    def start_observing(self) -> None:
        """Begin a calibration: forget what was seen before."""
        self._search = _RangeSearch(self)

    def pause_observing(self, *, paused: bool) -> None:
        """Within a calibration, see nothing until called with ``paused=False``."""
        self._paused = paused

    def stop_observing(self) -> bool:
        """End a calibration; returns whether everything that was seen was finite."""
        finite = self._search is None or self._search.finite
        self._search = None
        return finite

    @torch.no_grad()
    def _observe(self, value: Tensor) -> None:
        assert self._search is not None
        if value.numel() == 0:
            return
        log_scale, zero2 = self._search.best_after(value)
        self.log_scale.copy_(log_scale)
        self.zero2.fill_(zero2)
        self.calibrated.fill_(True)

    def extra_repr(self) -> str:
        """Bits and grid, for ``print(model)``."""
        return (
            f"bits={self.bits}, granularity={self.granularity!r}, zero2={int(self.zero2)}, "
            f"calibrated={bool(self.calibrated)}"
        )


class _RangeSearch:
    """Adds up, over batches, the squared error of every range that may be chosen.

    Attributes:
        finite: Whether all data so far was finite.
    """

    def __init__(self, quantizer: Quantizer) -> None:
        self.finite = True
        self._bits = quantizer.bits
        self._granularity = quantizer.granularity
        self._row_axis = quantizer.row_axis
        self._shape = quantizer.log_scale.shape
        self._negative = False
        self._largest: Tensor | None = None
        self._errors: dict[int, Tensor] = {}

    def best_after(self, value: Tensor) -> tuple[Tensor, int]:
        """Include ``value``; returns (log scale, zero2) with the least error so far.

        Data that was never negative gets the unsigned grid; weights are always signed.
        """
        self.finite = self.finite and bool(torch.isfinite(value).all())
        self._negative = self._negative or self._granularity == "column" or bool((value < 0).any())
        if self._largest is None:
            self._largest = self._magnitude(value)
        for zero2 in (signed_zero2(self._bits), 0):
            if zero2 == 0 and self._negative:
                continue
            errors = torch.stack([self._error(value, factor, zero2) for factor in SEARCH_FACTORS])
            self._errors[zero2] = errors + self._errors.get(zero2, 0)
        chosen = signed_zero2(self._bits) if self._negative else 0
        best = self._errors[chosen].argmin(dim=0)
        factor = torch.tensor(SEARCH_FACTORS, dtype=value.dtype, device=value.device)[best]
        scale = self._largest * factor / code_range(self._bits, chosen)[1]
        return scale.clamp(min=1e-12).log(), chosen

    def _magnitude(self, value: Tensor) -> Tensor:
        """What the scale is a multiple of, beyond a row's own statistic."""
        if self._granularity == "row":
            return value.new_ones(())
        if self._granularity == "column":
            return value.abs().amax(dim=1, keepdim=True)
        return value.abs().max()

    def _error(self, value: Tensor, factor: float, zero2: int) -> Tensor:
        """Squared error with the range ``factor`` times the magnitude, summed as scales are shared."""
        assert self._largest is not None
        base = self._largest
        if self._granularity == "row":
            base = row_statistic(value, zero2, self._row_axis)
        scale = base * (factor / code_range(self._bits, zero2)[1])
        error = (centred_codes(value, scale, self._bits, zero2) * scale - value).square()
        return error.sum(dim=1, keepdim=True) if self._shape else error.sum()
