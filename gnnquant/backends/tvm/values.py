"""Values of a row kernel: how an operand is read for row r of the current block."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True)
class Rows:
    """Float rows.

    Attributes:
        columns: Columns of a row.
        padded: Whether whole vectors may be read beyond the last column.
        at: ``at(r, first column, lanes)`` as an expression.
        loaded: Whether ``at`` is a mere load.
    """

    columns: int
    padded: bool
    at: Callable[[Any, Any, int], Any]
    loaded: bool = False


@dataclass(frozen=True)
class Codes:
    """Quantized rows with one byte per column in scratch.

    Attributes:
        columns: Columns of a row.
        bits: Logical bits.
        zero2: Doubled zero point.
        start: Scratch offset of row 0.
        stride: Bytes between rows.
        scale: ``scale(r)`` as a float expression.
        fixed: The scale where it is one number for all rows.
    """

    columns: int
    bits: int
    zero2: int
    start: int
    stride: int
    scale: Callable[[Any], Any]
    fixed: float | None = None
