"""Graphs of a call: private copies of integer inputs, CSR order, and what was prepared, kept."""

from __future__ import annotations

import ctypes
import sys
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from gnnquant.runtime.device import DeviceArray, on_host
from gnnquant.runtime.memory import address_of, aligned_copy

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

ROW_COST = 8
"""Cost of one row, in edges, when rows are shared out among threads."""
ROW_MULTIPLE = 8
"""Borders between the shares of two threads are multiples of this."""
INT32_MAX = 2**31 - 1
DROPPING = ("remove", "replace", "remaining")
"""Treatments of self-loops that drop those which were given."""
ADDING = ("add", "replace", "remaining")
"""Treatments of self-loops that append one for every node."""

_memcmp = ctypes.CDLL("msvcrt" if sys.platform == "win32" else None).memcmp
_memcmp.restype = ctypes.c_int
_memcmp.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)


@dataclass(frozen=True, eq=False)
class GraphHandle:
    """A graph that was prepared ahead of time: pass it in place of ``edge_index``.

    It owns a copy of the edges, so that later changes of the tensor that it was made from do not
    reach it, and a call need not compare them.

    Attributes:
        num_nodes: Number of nodes.
        num_edges: Number of edges, before self-loops are added or removed.
        edges: The private copy, int64 [2, E].
        owner: The model that prepared it and accepts it.
        numbers: Rows of every input that it was prepared for.
        prepared: What its executor made of the graph.
    """

    num_nodes: int
    num_edges: int
    edges: NDArray[np.int64]
    owner: object
    numbers: dict[str, tuple[int, ...]]
    prepared: Any

    def __repr__(self) -> str:
        """Sizes only."""
        return f"GraphHandle(num_nodes={self.num_nodes}, num_edges={self.num_edges})"


@dataclass(frozen=True, eq=False)
class FeatureHandle:
    """Features that were quantized ahead of time: pass it in place of the float input.

    Attributes:
        name: The input.
        num_rows: Its rows.
        owner: The model that prepared it and accepts it.
        torch: Whether it was made of a torch tensor: so are the results of calls with it.
        prepared: Its codes and scales, as the executor keeps them.
    """

    name: str
    num_rows: int
    owner: object
    torch: bool
    prepared: Any

    def __repr__(self) -> str:
        """Sizes only."""
        return f"FeatureHandle({self.name}, num_rows={self.num_rows})"


@dataclass(frozen=True, eq=False)
class SortedEdges:
    """Edges in CSR order: by destination, stable, appended self-loops last in their row.

    Attributes:
        src: int64 [E'], sources.
        dst: int64 [E'], destinations, ascending.
        edge_id: int64 [E'], position in the given list; -1 for a self-loop that was appended.
    """

    src: NDArray[np.int64]
    dst: NDArray[np.int64]
    edge_id: NDArray[np.int64]


def sort_edges(edges: NDArray[np.int64], destinations: int, loops: str) -> SortedEdges:
    """Sort ``edges`` [2, E], whose indices are in range, and treat self-loops as ``loops`` says."""
    source, target = edges
    edge_id = np.arange(source.size, dtype=np.int64)
    is_loop = source == target
    if loops in DROPPING:
        source, target, edge_id = source[~is_loop], target[~is_loop], edge_id[~is_loop]
    if loops in ADDING:
        nodes = np.arange(destinations, dtype=np.int64)
        loop_id = np.full(destinations, -1, dtype=np.int64)
        if loops == "remaining":
            # Of several self-loops of one node, the last one counts, as in PyG.
            loop_id[edges[0][is_loop]] = np.flatnonzero(is_loop)
        source = np.concatenate([source, nodes])
        target = np.concatenate([target, nodes])
        edge_id = np.concatenate([edge_id, loop_id])
    order = np.argsort(target, kind="stable")
    return SortedEdges(source[order], target[order], edge_id[order])


def sorted_destinations(edges: NDArray[np.int64], destinations: int, loops: str) -> NDArray[np.int64]:
    """``sort_edges(...).dst``, for which nothing needs to be sorted."""
    source, target = edges
    counts = np.bincount(target, minlength=destinations)
    if loops in DROPPING:
        counts -= np.bincount(target[source == target], minlength=destinations)
    if loops in ADDING:
        counts += 1
    return np.repeat(np.arange(destinations, dtype=np.int64), counts)


def same_contents(ours: NDArray[Any] | DeviceArray, theirs: NDArray[Any] | DeviceArray) -> bool:
    """Whether ``theirs`` equals ``ours``, a private copy of an array of the same type."""
    if isinstance(ours, DeviceArray) or isinstance(theirs, DeviceArray):
        return isinstance(ours, DeviceArray) and isinstance(theirs, DeviceArray) and ours.same(theirs)
    if ours.shape != theirs.shape:
        return False
    if theirs.flags.c_contiguous:
        return bool(_memcmp(address_of(ours), address_of(theirs), ours.nbytes) == 0)
    return bool((ours == theirs).all())


def partition_rows(indptr: NDArray[np.int32], threads: int) -> NDArray[np.int32]:
    """First row of each thread's share and, last, the number of rows: int32 [threads + 1].

    Shares have about equal cost, where a row costs its edges plus :data:`ROW_COST`.
    """
    rows = indptr.size - 1
    borders = np.arange(0, rows + 1, ROW_MULTIPLE)
    cost = indptr[borders].astype(np.int64) + ROW_COST * borders
    total = int(indptr[-1]) + ROW_COST * rows
    targets = total * np.arange(1, threads) / threads
    above = np.minimum(np.searchsorted(cost, targets), borders.size - 1)
    below = np.maximum(above - 1, 0)
    nearest = np.where(cost[above] - targets < targets - cost[below], above, below)
    return np.concatenate(([0], borders[nearest], [rows])).astype(np.int32)


class GraphCache:
    """What was prepared for the last few calls, found by contents and therefore never stale.

    An entry belongs to the contents of all integer inputs and to all numbers (sizes) of a call.
    """

    def __init__(self, size: int = 4) -> None:
        self._size = size
        self._lock = threading.Lock()
        self._entries: list[_Entry] = []

    def find(
        self,
        arrays: tuple[NDArray[Any] | DeviceArray, ...],
        numbers: tuple[int, ...],
        prepare: Callable[[tuple[NDArray[Any], ...]], Any],
    ) -> Any:
        """What ``prepare`` made of copies of ``arrays``, now or when they came before.

        Arrays on a GPU are compared there; ``prepare`` gets copies in the memory of the CPU.
        """
        entries = self._entries  # a list that is never changed, only replaced
        for entry in entries:
            if entry.numbers == numbers and all(map(same_contents, entry.arrays, arrays)):
                if entry is not entries[0]:
                    self._put_first(entry)
                return entry.prepared
        # Copies come first: what is checked and prepared cannot change while that happens.
        copies = tuple(map(private_copy, arrays))
        prepared = prepare(tuple(map(on_host, copies)))
        self._put_first(_Entry(numbers, copies, prepared))
        return prepared

    def _put_first(self, entry: _Entry) -> None:
        with self._lock:
            others = [other for other in self._entries if other is not entry]
            self._entries = [entry, *others][: self._size]


@dataclass(frozen=True, eq=False)
class _Entry:
    numbers: tuple[int, ...]
    arrays: tuple[NDArray[Any] | DeviceArray, ...]
    prepared: Any


def private_copy(array: NDArray[Any] | DeviceArray) -> NDArray[Any] | DeviceArray:
    """A contiguous, aligned copy, which nobody may write, where the array is."""
    return array.clone() if isinstance(array, DeviceArray) else aligned_copy(array)
