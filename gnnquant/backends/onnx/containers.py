"""How codes are stored: the type of tensor for each width, sign and operator set.

Codes of the integer graph are unsigned with a doubled zero point (``gnnquant.integer_graph``). In ONNX,
signed codes are signed integers with the zero point 0, unsigned ones are unsigned; only 8-bit weights are
UINT8 with the zero point 128, because ONNX Runtime replaces a product of two dequantized 8-bit matrices by an
integer one, whose 16-bit sums overflow for INT8 weights on processors with AVX2 but without VNNI.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from onnx import TensorProto

from gnnquant.errors import BackendError
from gnnquant.integer_graph import pack_codes

if TYPE_CHECKING:
    from gnnquant.integer_graph import PackedWeight

FIRST_OPSET = {32: 18, 8: 18, 4: 21, 2: 21}
"""By width the first operator set with everything that it needs: reductions of scatters, then INT4."""
INT2_OPSET = 25
"""The first operator set with INT2 and UINT2."""
NEWEST_OPSET = 25
"""The newest operator set that exports were tested with."""
_TYPES = {
    (8, True): TensorProto.INT8,
    (8, False): TensorProto.UINT8,
    (4, True): TensorProto.INT4,
    (4, False): TensorProto.UINT4,
}


@dataclass(frozen=True)
class Container:
    """The type that holds codes of one site.

    Attributes:
        kind: Type of the tensor (``TensorProto.DataType``).
        width: Its bits.
        low: Smallest stored number.
        high: Largest stored number.
        half: Whether a stored number v stands for v + 1/2: the four symmetric levels of 2 bits.
        clips: Whether the type holds more than ``low .. high``, so that values are clipped first.
    """

    kind: int
    width: int
    low: int
    high: int
    half: bool
    clips: bool


def container_of(bits: int, zero2: int, opset: int, where: str) -> Container:
    """The container for codes with ``bits`` and the doubled zero point ``zero2``.

    Raises:
        BackendError: The zero point is none that ONNX can hold.
    """
    if zero2 not in (0, 2**bits, 2**bits - 1):
        raise BackendError(
            f"{where!r} has the doubled zero point {zero2} at {bits} bits: ONNX has no such codes"
        )
    signed, half = zero2 > 0, zero2 % 2 == 1
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    width = bits
    if bits == 2 and opset < INT2_OPSET:
        width = 4
    kind = (TensorProto.INT2 if signed else TensorProto.UINT2) if width == 2 else _TYPES[width, signed]
    return Container(kind, width, low, high, half, clips=width > bits)


def weight_container(weight: PackedWeight, opset: int, where: str) -> tuple[Container, int, bytes]:
    """How a weight is stored: its container, its zero point and its packed bytes, row-major [K, M]."""
    container = container_of(weight.bits, weight.zero2, opset, where)
    if weight.bits == 8:
        unsigned = container_of(8, 0, opset, where)
        return unsigned, weight.zero2 // 2, weight.data.tobytes()
    # Two's complement of ``container.width`` bits.
    stored = weight.codes.astype(np.int16) - (weight.zero2 + 1) // 2
    codes = (stored & (2**container.width - 1)).astype(np.uint8)
    return container, 0, pack_codes(codes, container.width).tobytes()


def needed_opset(bits: int) -> int:
    """The first operator set that holds codes of this width."""
    return FIRST_OPSET[bits]
