"""Aligned memory for kernels."""

from __future__ import annotations

import ctypes
import math
import sys
from typing import TYPE_CHECKING, Any

import numpy as np

from gnnquant.runtime.plan import ROW_PADDING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from gnnquant.runtime.plan import Buffer

ALIGNMENT = 64
"""Bytes: kernels assume it of every buffer."""


def round_up(size: int) -> int:
    """``size`` rounded up to a multiple of :data:`ALIGNMENT`."""
    return -(-size // ALIGNMENT) * ALIGNMENT


def padded_rows(buffer: Buffer, sizes: Mapping[str, int]) -> int:
    """Rows that the region of ``buffer`` has room for, 1 where it has none."""
    return -(-sizes[buffer.space] // ROW_PADDING) * ROW_PADDING if buffer.space else 1


def lay_out(buffers: Iterable[Buffer], sizes: Mapping[str, int]) -> tuple[dict[str, int], int]:
    """Where workspace buffers lie in one piece of memory, but for those in outputs; bytes of it.

    Args:
        buffers: A plan's.
        sizes: Rows of every space.
    """
    own = [buffer for buffer in buffers if buffer.kind == "workspace" and not buffer.in_output]
    regions: dict[str, int] = {}
    for buffer in own:
        size = (buffer.offset + buffer.row_bytes) * padded_rows(buffer, sizes)
        regions[buffer.region] = max(regions.get(buffer.region, 0), round_up(size))
    starts, end = {}, 0
    for region, size in regions.items():
        starts[region] = end
        end += size
    return {
        buffer.name: starts[buffer.region] + buffer.offset * padded_rows(buffer, sizes) for buffer in own
    }, end


def aligned_bytes(size: int) -> NDArray[np.uint8]:
    """Uninitialized bytes at an aligned address; never at address 0, even where ``size`` is 0."""
    raw = np.empty(size + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + size]


def aligned_array(shape: Sequence[int], dtype: Any) -> NDArray[Any]:
    """An uninitialized array at an aligned address."""
    kind = np.dtype(dtype)
    count = math.prod(shape)
    array: NDArray[Any] = aligned_bytes(count * kind.itemsize).view(kind).reshape(shape)
    return array


def aligned_copy(array: NDArray[Any]) -> NDArray[Any]:
    """A contiguous copy at an aligned address."""
    copy = aligned_array(array.shape, array.dtype)
    np.copyto(copy, array)
    return copy


class OutputBuffer:
    """Memory of one output: reused once nobody else refers to it, else left to its users.

    Fresh memory costs a page fault for every 4 KB, which can be more than computing what goes
    there.
    """

    def __init__(self) -> None:
        self._raw: list[NDArray[np.uint8]] = []
        self._offset = 0
        self._address = 0

    def take(self, shape: tuple[int, ...], rows: int) -> tuple[NDArray[np.float32], int]:
        """An uninitialized float32 array that no earlier result shares memory with; its address.

        There is memory for ``rows`` rows.
        """
        size = 4 * rows * math.prod(shape[1:]) + ALIGNMENT
        if not self._raw or self._raw[0].size != size or not _unshared(self._raw):
            raw = np.empty(size, np.uint8)
            start = raw.ctypes.data
            self._raw = [raw]
            self._offset = -start % ALIGNMENT
            self._address = start + self._offset
        # An array made from a buffer refers to it, as do all views of that array.
        return self.view(shape, np.float32), self._address

    def view(self, shape: tuple[int, ...], dtype: Any, start: int = 0) -> NDArray[Any]:
        """What lies ``start`` bytes behind the beginning of the array that was taken last."""
        return np.ndarray(shape, dtype, buffer=self._raw[0], offset=self._offset + start)


def address_of(array: NDArray[Any]) -> int:
    """Address of the first element of a contiguous array."""
    try:
        return ctypes.addressof(ctypes.c_char.from_buffer(array))  # type: ignore[arg-type]
    except (TypeError, ValueError):  # read-only or empty
        return array.ctypes.data


def _references(items: list[NDArray[np.uint8]]) -> int:
    return sys.getrefcount(items[0])


_UNSHARED = _references([np.empty(1, np.uint8)])
_COUNTS_ARE_EXACT = getattr(sys, "_is_gil_enabled", lambda: True)()


def _unshared(items: list[NDArray[np.uint8]]) -> bool:
    return _COUNTS_ARE_EXACT and _references(items) == _UNSHARED
