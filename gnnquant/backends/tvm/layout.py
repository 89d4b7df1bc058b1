"""How codes and weights lie in memory.

Codes that are summed over edges (``PlaneLayout``)
    A row is cut into *units* of as many bytes; byte p of a unit holds a code of each of its ``8 / bits``
    *planes*, that of plane s at bits ``s * bits``: column ``s * unit + order[p]`` of the unit. The order
    is such that the bytes of four rows, brought together in the int32 lanes of vectors
    (:func:`quads_of`), are in these lanes in the order of columns.

8-bit codes that are not (``ByteLayout``)
    A byte for each column, in their order.

Integer weights [K, M] (``pack_weight``)
    The constant holds the codes of [K, Mp] (Mp: M padded to whole vectors) in row-major order at
    their bit width, in chunks of ``CHUNK`` bytes: code j of group i of a chunk lies in byte j at bits
    ``i * bits``. At the start of a call they are unpacked to int8 [K, Mp] and interleaved for the
    dense kernel to int32 words [Mp / block, Kq, block], a word holding 4 int8 (or 2 int16)
    consecutive k of one column. Where products are looked up (``lookups``), a panel is 64 bytes wide, of
    which each holds codes k, k + Kq and k + 2 Kq of one column. Where rows are added (``bitsums``), they are
    uint8 [K + 1, Mp / 2], bytes of a code of each of two columns that are 64 apart, the last row of zeros.

Float weights [K, M]
    Stored as the panels that the kernel reads: float32 [Mp / block, K, block].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    Mix = Callable[[Sequence[Any], list[int]], Any]

    from gnnquant.integer_graph import PackedWeight

LEAST_UNIT = 16
"""Bytes of the smallest unit of a row of codes."""
CHUNK = 32
"""Bytes of packed weights that are unpacked together."""


def round_up(value: int, step: int) -> int:
    """The first multiple of ``step`` that is not below ``value``."""
    return -(-value // step) * step


def divisor(value: int, most: int) -> int:
    """The largest divisor of ``value`` that is at most ``most``."""
    return next(d for d in range(most, 0, -1) if value % d == 0)


def vector_lanes(columns: int, lanes: int) -> int:
    """The most lanes, a power of two up to ``lanes``, of vectors that divide ``columns``."""
    return min(columns & -columns, lanes) if columns else lanes


def power_of_two(value: int) -> int:
    """The first power of two that is not below ``value``."""
    return 1 << max(value - 1, 0).bit_length()


@dataclass(frozen=True)
class ByteLayout:
    """Layout of codes that lie in the order of columns; see the module's text.

    Attributes:
        columns: Columns of a row.
        lanes: float32 lanes of a vector.
    """

    columns: int
    lanes: int

    @property
    def row_bytes(self) -> int:
        """Bytes of a row."""
        return round_up(self.columns, min(self.lanes, power_of_two(self.columns)))

    @property
    def reach(self) -> int:
        """Columns for which there is room in a row."""
        return self.row_bytes


@dataclass(frozen=True)
class PlaneLayout:
    """Layout of codes that are summed over edges, four of these at a time; see the module's text.

    Attributes:
        bits: Stored bits.
        columns: Columns of a row.
        unit: Bytes of a unit.
        lanes: int32 lanes of a vector.
    """

    bits: int
    columns: int
    unit: int
    lanes: int

    @property
    def planes(self) -> int:
        """Codes of a byte."""
        return 8 // self.bits

    @property
    def vectors(self) -> int:
        """Vectors of int32 sums of a plane."""
        return self.unit // self.lanes

    @property
    def units(self) -> int:
        """Units of a row."""
        return -(-self.columns // (self.unit * self.planes))

    @property
    def row_bytes(self) -> int:
        """Bytes of a row."""
        return self.units * self.unit

    @property
    def reach(self) -> int:
        """Columns for which there is room in a row."""
        return self.row_bytes * self.planes

    @property
    def order(self) -> list[int]:
        """The column, within a plane, of each byte of a unit."""
        inverse = self.places
        return [inverse.index(place) for place in range(self.unit)]

    @property
    def places(self) -> list[int]:
        """The byte of a unit that holds each column of a plane."""
        return quad_places(self.unit, self.lanes)


def quad_places(unit: int, lanes: int) -> list[int]:
    """Which byte of the rows each int32 lane of :func:`quads_of` holds."""
    rows = [np.arange(row, 4 * unit, 4) for row in range(4)]
    quads = quads_of(rows, unit, lanes, lambda parts, order: np.concatenate(parts)[order])
    found: list[int] = (np.concatenate(quads)[::4] // 4).tolist()
    return found


def plane_layout(bits: int, columns: int, lanes: int, sums: int) -> PlaneLayout:
    """The layout for rows of ``columns`` codes on vectors of ``lanes`` int32, ``sums`` of which are at hand.

    Codes are stored with more bits than they have where rows do not become longer for it.
    """
    choices = []
    for stored in (8, 4, 2):
        if stored >= bits:
            least = -(-columns * stored // 8)
            sizes = [size for size in (lanes, 2 * lanes, 4 * lanes) if size >= LEAST_UNIT]
            units = [size for size in sizes if size * 8 // stored <= sums * lanes] or sizes[:1]
            unit = next((size for size in units if size >= least), units[-1])
            choices.append(PlaneLayout(stored, columns, unit, lanes))
    return min(choices, key=lambda layout: layout.row_bytes)


def quads_of(rows: Sequence[Any], unit: int, lanes: int, mix: Mix) -> list[Any]:
    """Vectors of which every int32 lane holds one byte of each of four rows.

    Args:
        rows: Four vectors of ``unit`` bytes.
        unit: As many as ``lanes``, twice or four times as many.
        lanes: int32 lanes of a vector.
        mix: ``mix(vectors, order)``: the given bytes of the vectors, one after the other.
    """
    width = 4 * lanes
    if unit == lanes:
        return [mix(rows, [row * unit + byte for byte in range(unit) for row in range(4)])]
    by_bytes = interleaved(width, 16)
    if unit == 2 * lanes:
        even, odd = (mix([rows[row], rows[row + 2]], list(range(width))) for row in (0, 1))
        by_words = [part * unit + 2 * lane + i for lane in range(lanes) for part in (0, 1) for i in (0, 1)]
        return [mix([mix([even, odd], order)], by_words) for order in by_bytes]
    by_words_of = [[2 * word + i for word in order for i in (0, 1)] for order in interleaved(width // 2, 8)]
    found = []
    for order in by_bytes:
        pairs = [mix(rows[first : first + 2], order) for first in (0, 2)]
        found += [mix(pairs, words) for words in by_words_of]
    return found


def interleaved(width: int, run: int) -> tuple[list[int], list[int]]:
    """Lane orders that interleave two vectors within 128-bit parts of ``run`` elements."""
    low, high = [], []
    for part in range(0, width, run):
        for i in range(run // 2):
            low += [part + i, width + part + i]
            high += [part + run // 2 + i, width + part + run // 2 + i]
    return low, high


@dataclass(frozen=True)
class WeightLayout:
    """Layout of an integer weight.

    Attributes:
        inputs: K.
        outputs: M.
        padded: Mp.
        block: Columns of a panel.
        group: Consecutive k in a 32-bit word: 4 or 2; or 3 codes in a byte; 1 where rows are added.
        zero2: Doubled zero point of the codes.
        depth: Words of a column come in multiples of it; what is behind the last input is undefined.
    """

    inputs: int
    outputs: int
    padded: int
    block: int
    group: int
    zero2: int
    depth: int = 1

    @property
    def panels(self) -> int:
        """Panels of all columns."""
        return -(-self.padded // self.block)

    @property
    def words(self) -> int:
        """Kq: words of a column."""
        return round_up(-(-self.inputs // self.group), self.depth)

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
