"""Matrix products of codes of 2 bits: sums of three products are looked up (VPERMB of AVX512-VBMI).

Three codes u of a row and the integers w of three codes of a column make ``u0 w0 + u1 w1 + u2 w2``, which is
known for all 64 times 64 of them. The three of a row pick a line of that table, 64 bytes that a vector holds;
those of 64 columns pick their bytes of it, all at once: 192 products an instruction, where products of four
bytes make 64. Bytes are unsigned: numbers have the table's ``bias`` added to them. Four or eight are added
before they go to sums of 16 bits.

Codes are three to a byte, from the low bits on those of inputs k, k + Kq and k + 2 Kq of Kq threes.
"""
# ruff: noqa: C901
# Emitters nest like the loops that they emit: one function is one loop nest.

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from gnnquant.backends.tvm.emit import (
    cast,
    const,
    intrinsic,
    reinterpret,
    shift_left,
    shift_right,
    span,
    splat,
)
from gnnquant.backends.tvm.layout import divisor, round_up
from gnnquant.integer_graph import integer_steps

if TYPE_CHECKING:
    from gnnquant.backends.tvm.emit import Machine
    from gnnquant.backends.tvm.layout import WeightLayout
    from gnnquant.backends.tvm.rows import RowKernel
    from gnnquant.backends.tvm.values import Codes
    from gnnquant.integer_graph import PackedWeight

GROUP = 3
"""Codes that are multiplied at a time."""
FOUR = 4
"""Threes of a row that are read at a time."""
CODES = 64
"""Threes of codes: lines of the table, and bytes of a line."""
WORDS = CODES // 2
"""Numbers of 16 bits of a vector."""
LANES = CODES // 4
"""int32 of a vector."""
WIDE, TALL = 2, 4
"""Vectors of columns and rows of a tile: two by two, or one by four. LLVM finds registers for no more."""


@dataclass(frozen=True)
class Table:
    """Sums of three products.

    Attributes:
        sums: int [64, 64]: by the codes of a row and by those of a column.
    """

    sums: np.ndarray[Any, Any]

    @property
    def bias(self) -> int:
        """What is added to a sum, so that none is negative."""
        return -int(self.sums.min())

    @property
    def few(self) -> int:
        """Numbers whose sum fits into a byte."""
        return int(255 // (self.sums.max() + self.bias))

    @property
    def most_inputs(self) -> int:
        """Inputs of a weight whose sums fit into 16 bits."""
        return 3 * int(32767 // np.abs(self.sums).max())


@lru_cache
def table(zero2: int) -> Table:
    """The table for weights with that doubled zero point."""
    codes = np.arange(CODES)[:, None] >> np.array([0, 2, 4]) & 3
    step, zero = integer_steps(zero2)
    return Table(codes @ (step * codes - zero).T)


def looks_up(machine: Machine, bits: int, weight: PackedWeight) -> bool:
    """Whether products of codes of that width and of ``weight`` are looked up.

    A vector has 64 columns, one of products of four bytes has 16: with few columns most of it is empty.
    """
    inputs, outputs = weight.shape
    return (
        machine.by_lookups(bits)
        and weight.bits == bits
        and outputs > 2 * machine.lanes
        and inputs <= table(weight.zero2).most_inputs
        and table(weight.zero2).few >= FOUR
    )


def column_order() -> list[int]:
    """The column that each byte of a vector holds: those of an int32 are 16 apart."""
    return [LANES * (byte % 4) + byte // 4 for byte in range(CODES)]


def gemm(kernel: RowKernel, q: Codes, layout: WeightLayout, dense: Any, sums: tuple[int, int]) -> None:
    """Sums of all codes of the block times integers of a weight, into int32 scratch.

    Args:
        kernel: Where.
        q: The codes.
        layout: Of the weight.
        dense: The buffer of its threes.
        sums: Offset of the sums, and numbers between their rows.
    """
    b = kernel.b
    total, stride = sums
    threes, size = _three_to_a_byte(kernel, q, layout)
    panels = layout.panels
    wide = divisor(panels, WIDE)
    tall = divisor(q.size, WIDE if wide > 1 else TALL)
    across, along = panels // wide, q.size // tall

    def tile(panel: Any, above: Any) -> None:
        acc = _Lookups(kernel, tall * wide, layout)
        # a single vector may have fewer columns
        columns = min(layout.padded, CODES)

        def fours(index: Any) -> None:
            acc.clear()
            for four in range(acc.fours):
                first = (index * acc.fours + four) * FOUR
                rows = [threes + (above * tall + r) * size + first for r in range(tall)]
                codes = [b.let(reinterpret(kernel.load("uint8", row, FOUR), "int32")) for row in rows]
                for i in range(FOUR):
                    threes_of = [
                        b.let(reinterpret(dense[panel * wide + c, first + i, span(0, LANES)], "uint8", CODES))
                        for c in range(wide)
                    ]
                    for r in range(tall):
                        line = acc.line(shift_right(codes[r], 8 * i, "int32", 1) & const(CODES - 1))
                        for c in range(wide):
                            acc.look_up(r * wide + c, line, threes_of[c])
            acc.flush()

        kernel.each(layout.words // (acc.fours * FOUR), fours)
        for r in range(tall):
            for c in range(wide):
                first = (panel * wide + c) * CODES
                acc.save(r * wide + c, total + (above * tall + r) * stride + first, columns)

    def one(panel: Any, above: Any) -> None:
        if kernel.stream is not None:
            kernel.stream.ask(panel * along + above, across * along)
        tile(panel, above)

    kernel.each(across, lambda panel: kernel.each(along, lambda above: one(panel, above)))


def _three_to_a_byte(kernel: RowKernel, q: Codes, layout: WeightLayout) -> tuple[int, int]:
    """Codes of the rows, three to a byte, in scratch: its offset, and bytes between rows."""
    size = round_up(layout.words, CODES)
    assert 2 * layout.words + size <= q.stride, "vectors lie in their row"
    start = kernel.reserve("uint8", q.size * size)

    def row(r: Any) -> None:
        def some(index: Any) -> None:
            origin = q.start + r * q.stride + index * CODES
            joined = None
            for i in range(GROUP):
                # bits do not leave their byte; behind the last code are zeros, at least CODES
                codes = kernel.load("uint8", origin + i * layout.words, CODES)
                codes = shift_left(reinterpret(codes, "uint16", WORDS), 2 * i, "uint16", WORDS)
                joined = codes if joined is None else joined | codes
            place = start + r * size + index * CODES
            kernel.save("uint8", reinterpret(joined, "uint8", CODES), place, CODES)

        kernel.each(size // CODES, some)

    q.each_row(kernel.b, row)
    return start, size


class ByteSums:
    """Vectors of 64 sums in registers: of bytes, and of 16 bits to which bytes go before they overflow.

    Args:
        kernel: Where.
        count: Vectors.
    """

    def __init__(self, kernel: RowKernel, count: int) -> None:
        self._kernel, self._count = kernel, count
        b = kernel.b
        self._bytes = b.registers(count, "uint8", CODES)
        # of 16 bits: sums of pairs of bytes, and of the upper byte of each
        self._pairs, self._upper = (b.registers(count, "uint16", WORDS) for _ in range(2))
        for i in range(count):
            b.store(self._pairs, splat(const(0, "uint16"), WORDS), i)
            b.store(self._upper, splat(const(0, "uint16"), WORDS), i)

    def clear(self) -> None:
        """Start bytes at 0."""
        for i in range(self._count):
            self._kernel.b.store(self._bytes, splat(const(0, "uint8"), CODES), i)

    def add(self, i: int, value: Any) -> None:
        """Add 64 bytes to those of a vector."""
        self._kernel.b.store(self._bytes, self._bytes[i] + value, i)

    def flush(self) -> None:
        """Add bytes to the sums of 16 bits."""
        b = self._kernel.b
        for i in range(self._count):
            pairs = b.let(reinterpret(self._bytes[i], "uint16", WORDS))
            b.store(self._pairs, self._pairs[i] + pairs, i)
            b.store(self._upper, self._upper[i] + shift_right(pairs, 8, "uint16", WORDS), i)

    def double(self) -> None:
        """Twice the sums of 16 bits."""
        for i in range(self._count):
            for sums in (self._pairs, self._upper):
                self._kernel.b.store(sums, sums[i] + sums[i], i)

    def shift(self, value: Any) -> None:
        """Add a number of 16 bits to all sums."""
        b = self._kernel.b
        both = b.let(splat(value * const(257, "uint16"), WORDS))
        for i in range(self._count):
            b.store(self._pairs, self._pairs[i] + both, i)
            b.store(self._upper, self._upper[i] + splat(value, WORDS), i)

    def save(self, i: int, place: Any, columns: int = CODES) -> None:
        """Write sums as int32, in the order of columns (``column_order``)."""
        b = self._kernel.b
        upper = b.let(self._upper[i])
        lower = b.let(self._pairs[i] - shift_left(upper, 8, "uint16", WORDS))
        halves = [b.let(reinterpret(half, "int32", LANES)) for half in (lower, upper)]
        for part in range(-(-columns // LANES)):
            word = halves[part % 2]
            word = shift_left(word, 16, "int32", LANES) if part < 2 else word
            self._kernel.save("int32", shift_right(word, 16, "int32", LANES), place + part * LANES, LANES)


class _Lookups(ByteSums):
    """Sums of what is looked up.

    Attributes:
        fours: Fours of threes that are added to bytes before these are flushed.

    Args:
        kernel: Where.
        count: Vectors.
        layout: Of the weight.
    """

    def __init__(self, kernel: RowKernel, count: int, layout: WeightLayout) -> None:
        super().__init__(kernel, count)
        zero2 = layout.zero2
        known = table(zero2)
        if zero2 not in kernel.tables:
            kernel.tables[zero2] = kernel.keep((known.sums + known.bias).astype(np.uint8).view(np.int32))
        self._table = kernel.tables[zero2]
        self.fours = divisor(layout.words // FOUR, known.few // FOUR)
        self.shift(const(-known.bias * layout.words % 2**16, "uint16"))

    def line(self, three: Any) -> Any:
        """The line of the table for three codes of a row."""
        line = self._kernel.kept(self._table + cast(three, "int32") * LANES, LANES)
        return self._kernel.b.let(reinterpret(line, "uint8", CODES))

    def look_up(self, i: int, line: Any, threes: Any) -> None:
        """Add those bytes of ``line`` that 64 threes pick."""
        self.add(i, intrinsic(self._kernel.machine.lookup, f"uint8x{CODES}", line, threes))
