"""Graphs of a call: private copies of ``edge_index``, their prepared forms, and their cache."""

from __future__ import annotations

import ctypes
import sys
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from gnnquant.errors import InputError
from gnnquant.runtime.memory import address_of, aligned_copy

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

ROW_COST = 8
"""Cost of one row, in edges, when rows are shared out among threads."""
ROW_MULTIPLE = 8
"""Borders between the shares of two threads are multiples of this."""
INT32_MAX = 2**31 - 1

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
        prepared: What its executor made of the graph; None: left to the call.
    """

    num_nodes: int
    num_edges: int
    edges: NDArray[np.int64]
    owner: object
    prepared: Any = None

    def __repr__(self) -> str:
        """Sizes only."""
        return f"GraphHandle(num_nodes={self.num_nodes}, num_edges={self.num_edges})"


def check_range(edges: NDArray[np.int64], num_nodes: int, name: str) -> None:
    """Check that every index of ``edges`` [2, E] is a node.

    Raises:
        InputError: With the first bad value and where it is.
    """
    if edges.shape[1] == 0 or (int(edges.min()) >= 0 and int(edges.max()) < num_nodes):
        return
    row, column = (int(part[0]) for part in np.nonzero((edges < 0) | (edges >= num_nodes)))
    value = int(edges[row, column])
    what = "is negative" if value < 0 else f"is not below the number of nodes, {num_nodes}"
    raise InputError(
        f"{name}[{row}, {column}] = {value} {what}: every index must be in 0 .. {num_nodes - 1}; "
        "does the graph belong to these node features?"
    )


def same_contents(ours: NDArray[np.int64], theirs: NDArray[np.int64]) -> bool:
    """Whether ``theirs`` equals ``ours``, a private copy."""
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
    """Prepared graphs of the last few calls, found by contents and therefore never stale."""

    def __init__(self, size: int = 4) -> None:
        self._size = size
        self._lock = threading.Lock()
        self._entries: list[tuple[int, tuple[NDArray[np.int64], ...], Any]] = []

    def find(
        self,
        graphs: tuple[NDArray[np.int64] | GraphHandle, ...],
        num_nodes: int,
        prepare: Callable[[tuple[NDArray[np.int64], ...]], Any],
    ) -> Any:
        """The prepared form of ``graphs``; made by ``prepare``, from copies, where it is new."""
        entries = self._entries  # a list that is never changed, only replaced
        for entry in entries:
            nodes, edges, prepared = entry
            if nodes == num_nodes and all(map(_matches, edges, graphs)):
                if entry is not entries[0]:
                    self._put_first(entry)
                return prepared
        # Copies come first: what is checked and prepared cannot change while that happens.
        copies = tuple(
            graph.edges if isinstance(graph, GraphHandle) else private_copy(graph) for graph in graphs
        )
        prepared = prepare(copies)
        self._put_first((num_nodes, copies, prepared))
        return prepared

    def _put_first(self, entry: tuple[int, tuple[NDArray[np.int64], ...], Any]) -> None:
        with self._lock:
            others = [other for other in self._entries if other is not entry]
            self._entries = [entry, *others][: self._size]


def private_copy(edges: NDArray[np.int64]) -> NDArray[np.int64]:
    """A contiguous, aligned copy, which nobody may write."""
    copy: NDArray[np.int64] = aligned_copy(edges)
    return copy


def _matches(ours: NDArray[np.int64], graph: NDArray[np.int64] | GraphHandle) -> bool:
    if isinstance(graph, GraphHandle):
        return graph.edges is ours
    return same_contents(ours, graph)
