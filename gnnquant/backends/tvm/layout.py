"""How codes and weights lie in memory.

Codes of a row that other rows gather (``CodeLayout``)
    The columns of each head are cut into *groups* of ``lanes`` columns; the last group of a head is
    padded. Layout "bytes" (8 bits stored, also for narrow rows of fewer bits): one byte per column,
    groups one after the other. Layout "packed" (2 or 4 bits): ``16 / bits`` groups share a *chunk*
    of ``lanes`` 16-bit words; group i of a chunk lies at bits ``i * bits`` of the words, so that
    ``(chunk >> (i * bits)) & mask`` is group i as 16-bit numbers in column order.

Integer weights [K, M] (``pack_weight``)
    The constant holds the codes of [K, Mp] (Mp: M padded to whole vectors) in row-major order at
    their bit width, in chunks of ``CHUNK`` bytes: code j of group i of a chunk lies in byte j at bits
    ``i * bits``. At the start of a call they are unpacked to int8 [K, Mp] and interleaved for the
    dense kernel to int32 words [Mp / block, Kq, block], a word holding 4 int8 (or 2 int16)
    consecutive k of one column.

Float weights [K, M]
    Stored as the panels that the kernel reads: float32 [Mp / block, K, block].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from gnnquant.integer_graph import PackedWeight

CHUNK = 32
"""Bytes of packed weights that are unpacked together."""
NARROW = 16
"""Packed rows below this many bytes are stored with a byte per column instead."""


def round_up(value: int, step: int) -> int:
    """The first multiple of ``step`` that is not below ``value``."""
    return -(-value // step) * step


def power_of_two(value: int) -> int:
    """The first power of two that is not below ``value``."""
    return 1 << max(value - 1, 0).bit_length()


@dataclass(frozen=True)
class CodeLayout:
    """Layout of gathered codes; see the module's text.

    Attributes:
        bits: Stored bits: 8 means layout "bytes".
        lanes: Columns of a group.
        heads: Number of heads.
        head_columns: Columns of a head.
    """

    bits: int
    lanes: int
    heads: int
    head_columns: int

    @property
    def head_groups(self) -> int:
        """Groups of a head."""
        return -(-self.head_columns // self.lanes)

    @property
    def groups(self) -> int:
        """Groups of a row."""
        return self.heads * self.head_groups

    @property
    def per_chunk(self) -> int:
        """Groups that share a chunk."""
        return 1 if self.bits == 8 else 16 // self.bits

    @property
    def chunk_bytes(self) -> int:
        """Bytes of a chunk."""
        return self.lanes if self.bits == 8 else 2 * self.lanes

    @property
    def chunks(self) -> int:
        """Chunks of a row."""
        return -(-self.groups // self.per_chunk)

    @property
    def row_bytes(self) -> int:
        """Bytes of a row."""
        return self.chunks * self.chunk_bytes

    def column(self, group: Any) -> Any:
        """First column of a group, for a number or an int32 expression."""
        if self.head_columns % self.lanes == 0:
            return group * self.lanes
        if isinstance(group, int):
            head, rest = divmod(group, self.head_groups)
            return head * self.head_columns + rest * self.lanes
        head = group // self.head_groups
        return head * self.head_columns + (group - head * self.head_groups) * self.lanes

    def head(self, group: Any) -> Any:
        """Head of a group."""
        return 0 if self.heads == 1 else group // self.head_groups


def code_layout(bits: int, heads: int, columns: int, lanes: int) -> CodeLayout:
    """The layout for rows of ``columns`` codes in ``heads`` heads on vectors of ``lanes`` floats."""
    head_columns = columns // heads
    width = power_of_two(head_columns)
    if bits == 8 or columns * bits // 8 < NARROW:
        return CodeLayout(8, min(lanes, width), heads, head_columns)
    words = min(2 * lanes, width)
    while words > 4 and heads * -(-head_columns // words) < 16 // bits:
        words //= 2
    return CodeLayout(bits, words, heads, head_columns)


@dataclass(frozen=True)
class WeightLayout:
    """Layout of an integer weight.

    Attributes:
        inputs: K.
        outputs: M.
        padded: Mp.
        block: Columns of a panel.
        group: Consecutive k in a 32-bit word: 4 or 2.
    """

    inputs: int
    outputs: int
    padded: int
    block: int
    group: int

    @property
    def words(self) -> int:
        """Kq: words of a column."""
        return -(-self.inputs // self.group)

    @property
    def rows(self) -> int:
        """Rows of the unpacked weight, enough for whole words."""
        return self.words * self.group


def pack_weight(weight: PackedWeight, padded: int) -> NDArray[np.uint8]:
    """The constant that holds ``weight``; padding columns have code 0."""
    inputs, outputs = weight.shape
    codes = np.zeros((inputs, padded), dtype=np.uint8)
    codes[:, :outputs] = weight.codes
    return pack_chunks(codes.reshape(-1), weight.bits)


def pack_chunks(codes: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Flat codes in chunks of ``CHUNK`` bytes, as the module's text says."""
    groups = 8 // bits
    flat = np.zeros(round_up(codes.size, CHUNK * groups), dtype=np.uint8)
    flat[: codes.size] = codes
    parts = flat.reshape(-1, groups, CHUNK)
    packed = np.zeros((parts.shape[0], CHUNK), dtype=np.uint8)
    for group in range(groups):
        packed |= parts[:, group] << np.uint8(group * bits)
    return packed.reshape(-1)


def panels(weight: NDArray[np.float32], padded: int, block: int) -> NDArray[np.float32]:
    """A float weight [K, M] as [padded / block, K, block]."""
    inputs, outputs = weight.shape
    full = np.zeros((inputs, padded), dtype=np.float32)
    full[:, :outputs] = weight
    parts = full.reshape(inputs, padded // block, block).transpose(1, 0, 2)
    return np.ascontiguousarray(parts)
