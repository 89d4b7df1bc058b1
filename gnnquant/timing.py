"""Latencies that can be compared: measured in one process, in turns, on one thread."""

from __future__ import annotations

import statistics
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

WARM_UP_ROUNDS = 3
LEAST_ROUNDS = 3
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGEST_MMAP_THRESHOLD = 32 << 20


def interleaved_times(
    calls: Mapping[str, Callable[[], object]],
    *,
    rounds: int = 50,
    seconds: float = 5.0,
    warm_up: int = WARM_UP_ROUNDS,
    pause: float = 0.0,
) -> dict[str, list[float]]:
    """Milliseconds of every measurement of each call, all of them measured in turns.

    Turns put a slow moment of the machine on every contestant alike.

    Args:
        calls: Name -> what to time.
        rounds: Most measurements of a call.
        seconds: Time for all; a call that has used up its equal share rests, but not before its third turn,
            unless one turn takes more than the share.
        warm_up: Calls before the first measurement.
        pause: Seconds of rest before each measurement, in which the threads of the last one go to sleep.

    Returns:
        Name -> latencies in milliseconds, in order.
    """
    for _ in range(warm_up):
        for call in calls.values():
            call()
    measured: dict[str, list[float]] = {name: [] for name in calls}
    share = 1e3 * seconds / max(len(calls), 1)
    for _ in range(rounds):
        for name, call in calls.items():
            times = measured[name]
            enough = len(times) >= LEAST_ROUNDS or max(times, default=0) > share
            if enough and sum(times) > share:
                continue
            if pause:
                time.sleep(pause)
            start = time.perf_counter()
            call()
            times.append(1e3 * (time.perf_counter() - start))
    return measured


def interleaved_medians(
    calls: Mapping[str, Callable[[], object]], *, rounds: int = 50, seconds: float = 5.0
) -> dict[str, float]:
    """Median milliseconds of each call, measured as :func:`interleaved_times` does."""
    measured = interleaved_times(calls, rounds=rounds, seconds=seconds)
    return {name: statistics.median(values) for name, values in measured.items()}


def keep_freed_memory() -> None:
    """Let glibc keep what is freed, where the C library is glibc.

    In a young process it returns large blocks to the system and faults them in again, page by page: an
    eager model with a few megabytes of messages takes twice its time then, until the thresholds have
    adapted. Rivals are measured at their best.
    """
    import ctypes

    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


@contextmanager
def one_torch_thread() -> Iterator[None]:
    """Run torch on one thread inside of the block."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
