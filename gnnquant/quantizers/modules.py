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
from gnnquant.quantizers.range_search import RangeSearch
from gnnquant.quantizers.sparse import Pattern, SparseCodes, pattern_of

if TYPE_CHECKING:
    from gnnquant.config import QuantSpec


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
        self._search: RangeSearch | None = None
        self._paused = False

    def forward(self, value: Tensor) -> Quantized:
        """Quantize ``value``, observing it first while calibrating.

        Values in half precision are quantized in float32; their codes are exact in their own dtype.
        """
        if self.bypassed:
            return Quantized(value, None)
        wide = widened(value)
        pattern = self.sparse_pattern(value)
        if self._search is not None and not self._paused and value.numel() > 0:
            self._observe(self._search, wide.detach() if pattern is None else pattern)
        zero2 = int(self.zero2)
        if pattern is not None and zero2 % 2 == 0:
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
            scale = pattern.row_statistic(values, zero2) * scale
            entry_scale = pattern.by_entry(scale)
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
        self._search = RangeSearch(self.bits, self.granularity, self.row_axis)

    def pause_observing(self, *, paused: bool) -> None:
        """Within a calibration, see nothing until called with ``paused=False``."""
        self._paused = paused

    def stop_observing(self) -> bool:
        """End a calibration; returns whether everything that was seen was finite."""
        finite = self._search is None or self._search.finite
        self._search = None
        return finite

    @torch.no_grad()
    def _observe(self, search: RangeSearch, seen: Tensor | Pattern) -> None:
        log_scale, zero2 = search.best_after(seen)
        self.log_scale.copy_(log_scale)
        self.zero2.fill_(zero2)
        self.calibrated.fill_(True)

    def extra_repr(self) -> str:
        """Bits and grid, for ``print(model)``."""
        return (
            f"bits={self.bits}, granularity={self.granularity!r}, zero2={int(self.zero2)}, "
            f"calibrated={bool(self.calibrated)}"
        )
