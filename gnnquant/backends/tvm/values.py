"""Values of a kernel: how an operand is read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from gnnquant.backends.tvm.emit import Builder


@dataclass(frozen=True)
class Rows:
    """Float rows.

    Attributes:
        columns: Columns of a row.
        padded: Whether whole vectors may be read beyond the last column, from multiples of a vector on.
        at: ``at(r, first column, lanes)`` as an expression; r is a row of the space (``Kernel.reader``)
            or of the current block (``RowKernel``).
        loaded: Whether ``at`` is a mere load.
    """

    columns: int
    padded: bool
    at: Callable[[Any, Any, int], Any]
    loaded: bool = False


@dataclass(frozen=True)
class Codes:
    """Quantized rows of a block, one byte per column in scratch.

    Attributes:
        columns: Columns of a row.
        bits: Logical bits.
        zero2: Doubled zero point.
        start: Scratch offset of row 0.
        stride: Bytes between rows.
        size: Rows that there is room for.
        rows: Rows that there are.
        scale: ``scale(r)`` as a float expression.
        fixed: Whether the scale is one number for all rows.
    """

    columns: int
    bits: int
    zero2: int
    start: int
    stride: int
    size: int
    rows: Any
    scale: Callable[[Any], Any]
    fixed: bool = False

    def each_row(self, b: Builder, body: Callable[[Any], None]) -> None:
        """``body(r)`` for the rows that there are."""
        if self.size == 1:
            body(0)
        else:
            with b.loop(self.rows) as r:
                body(r)
