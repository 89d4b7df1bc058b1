"""How codes are stored: the type of tensor for each width, sign and operator set.

Codes of the integer graph are unsigned with a doubled zero point (``gnnquant.integer_graph``). In ONNX,
signed codes are signed integers with the zero point 0, unsigned ones are unsigned. Two exceptions are due to
ONNX Runtime, whose results would be wrong without a word:

- 8-bit weights are UINT8 with the zero point 128. A product of two dequantized 8-bit matrices becomes an
  integer one, whose 16-bit sums overflow for INT8 weights on processors with AVX2 but without VNNI.
- Values of 4 and 2 bits are INT8 or UINT8, clipped, below opset 25; weights are always packed. Before version
  1.32, the memory of a computed tensor of INT4 is used again for one of INT8 with the same shape, which is
  twice as large (pull request 32611 of microsoft/onnxruntime).
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

FIRST_OPSET = 18
"""The first operator set with everything that a model needs: reductions of scatters."""
WEIGHT_OPSETS = {8: 18, 4: 21, 2: 21}
"""By width the first operator set with a packed type for weights: INT4."""
PACKED_OPSET = 25
"""The first operator set with INT2 and UINT2, and the first for which computed values are packed."""
PACKED_RUNTIME = (1, 32)
"""The first version of ONNX Runtime that computes packed values right."""
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


def value_container(bits: int, zero2: int, opset: int, where: str) -> Container:
    """The container for computed codes with ``bits`` and the doubled zero point ``zero2``.

    Raises:
        BackendError: The zero point is none that ONNX can hold.
    """
    return _container(bits, zero2, bits if opset >= PACKED_OPSET else 8, where)


def _container(bits: int, zero2: int, width: int, where: str) -> Container:
    if zero2 not in (0, 2**bits, 2**bits - 1):
        raise BackendError(
            f"{where!r} has the doubled zero point {zero2} at {bits} bits: ONNX has no such codes"
        )
    signed, half = zero2 > 0, zero2 % 2 == 1
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    kind = (TensorProto.INT2 if signed else TensorProto.UINT2) if width == 2 else _TYPES[width, signed]
    return Container(kind, width, low, high, half, clips=width > bits)


def weight_container(weight: PackedWeight, opset: int, where: str) -> tuple[Container, int, bytes]:
    """How a weight is stored: its container, its zero point and its packed bytes, row-major [K, M].

    Raises:
        BackendError: The zero point is none that ONNX can hold.
    """
    if weight.bits == 8:
        return _container(8, 0, 8, where), weight.zero2 // 2, weight.data.tobytes()
    width = weight.bits if opset >= PACKED_OPSET else 4
    container = _container(weight.bits, weight.zero2, width, where)
    # Two's complement of ``width`` bits.
    stored = weight.codes.astype(np.int16) - (weight.zero2 + 1) // 2
    codes = (stored & (2**width - 1)).astype(np.uint8)
    return container, 0, pack_codes(codes, width).tobytes()
