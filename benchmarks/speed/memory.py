"""How much memory a call needs beyond what was there before, and how fast memory is (Linux)."""

from __future__ import annotations

import ctypes
import gc
import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

STREAM = 1 << 28
"""Bytes of an array that no cache holds."""


def peak_bytes(call: Callable[[], object]) -> int | None:
    """The most memory that the process has during ``call`` beyond what it had before.

    Freed memory is given back first, so that nothing hides in it. ``None`` where the kernel does not tell.
    """
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak starts here
        before = _status("VmRSS")
        call()
        return max(_status("VmHWM") - before, 0)
    except (OSError, KeyError):
        return None


def available_bytes() -> int:
    """What the machine can still give."""
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))


def read_bandwidth(size: int = STREAM, seconds: float = 0.5) -> float:
    """Bytes per second at which ``size`` bytes are read again and again, by as many threads as torch uses.

    An inner product has no other cost; arrays that fit a cache give the speed of that cache.
    """
    one, other = torch.ones(2, max(size, 64) // 8)
    times: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < 5:
        start = time.perf_counter()
        torch.dot(one, other)
        times.append(time.perf_counter() - start)
    return (one.nbytes + other.nbytes) / statistics.median(times)


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    found = {line.split(":")[0]: line.split()[1] for line in lines if line.endswith("kB")}
    return 1024 * int(found[name])
