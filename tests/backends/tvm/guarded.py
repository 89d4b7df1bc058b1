"""Runs kernels on memory guarded before and behind arrays: ``python -m tests.backends.tvm.guarded gcn-8``.

A process of its own, because a kernel that reads past its inputs ends it.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
from typing import Any

import numpy as np

from gnnquant.runtime.memory import ALIGNMENT, address_of
from tests.backends.tvm import graphs
from tests.backends.tvm.driver import Library, Memory
from tests.backends.tvm.models import built, graph_of
from tests.backends.tvm.oracle import Oracle

PAGE = mmap.PAGESIZE
SIZES = ((0, 0), (1, 4), (13, 40), (83, 500))
"""Nodes and edges."""


class Guarded(Memory):
    """Every array between pages that cannot be accessed, as near to one of them as its alignment allows.

    The bytes from the end of an array to the page after it have a pattern, which ``check`` looks for.
    """

    def __init__(self, side: str) -> None:
        self._side = side
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._kept: list[tuple[mmap.mmap, Any, Any]] = []

    def array(self, shape: tuple[int, ...], dtype: Any, alignment: int = ALIGNMENT) -> Any:
        kind = np.dtype(dtype)
        size = int(np.prod(shape)) * kind.itemsize
        room = max(-(-size // PAGE), 1) * PAGE
        memory = mmap.mmap(-1, room + 2 * PAGE)
        whole = np.frombuffer(memory, np.uint8)
        address = address_of(whole)
        for guard in (address, address + PAGE + room):
            if self._libc.mprotect(ctypes.c_void_p(guard), ctypes.c_size_t(PAGE), 0):
                raise OSError(ctypes.get_errno(), "mprotect")
        inside = whole[PAGE : PAGE + room]
        inside[:] = 0xA5
        start = (room - size) // alignment * alignment if self._side == "after" else 0
        array = inside[start : start + size]
        self._kept.append((memory, inside[:start], inside[start + size :]))
        return array.view(kind).reshape(shape)

    def check(self) -> None:
        """Raise if anything was written around an array."""
        for _, before, after in self._kept:
            assert (before == 0xA5).all(), "written before an array"
            assert (after == 0xA5).all(), "written behind an array"


def run(name: str, threads: int) -> None:
    """Compare one model with the oracle, on memory guarded before and after arrays."""
    model = built(name, threads)
    calls = [graphs.values(graph_of(name), *size) for size in SIZES]
    if "z" in calls[0]:
        # rows that nobody sends to, where there is nobody
        calls.append(
            {
                key: value[:0] if key == "x" else value
                for key, value in graphs.values(graph_of(name), 9, 0).items()
            }
        )
    for inputs in calls:
        wanted = Oracle(graph_of(name), inputs).outputs()
        for side in ("before", "after"):
            print(name, side, flush=True)
            memory = Guarded(side)
            got = Library(model, memory).run(inputs)
            for value, expected in zip(got, wanted, strict=True):
                np.testing.assert_array_equal(value, expected)
            memory.check()


def main() -> None:
    """Run models; ``before`` and ``after`` instead of a name read one element too many there."""
    for name in sys.argv[1:]:
        if name in ("before", "after"):
            array = Guarded(name).array((1000,), "float32", 4)
            ctypes.string_at(array.ctypes.data - (0 if name == "after" else 4), array.nbytes + 4)
        else:
            run(name, threads=1 + len(name) % 2)


if __name__ == "__main__":
    main()
