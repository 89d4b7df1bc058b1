"""Independent jobs over the cores, one JSON file each: interrupted work goes on where it stopped."""

from __future__ import annotations

import functools
import json
import multiprocessing
import os
import platform
import time
import traceback
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, fields
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeVar

from tqdm import tqdm

from benchmarks.report import machine

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from torch_geometric.data import Data

PACKAGES = ("torch", "torch_geometric", "numpy")
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "TVM_NUM_THREADS": "1",
    "MALLOC_MMAP_THRESHOLD_": str(2**32),
    "MALLOC_TRIM_THRESHOLD_": str(2**34),
}
"""What the processes inherit: one thread each, or they would fight over the processors, and (glibc) freed
memory is kept: faulting in the pages of large tensors, again and again, is half the time of wide models."""


class Job(Protocol):
    """A frozen dataclass of plain values that says everything about one piece of work."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def key(self) -> str:
        """Name of its file, without ``.json``; equal jobs have equal keys."""
        ...


J = TypeVar("J", bound=Job)


def result_of(job: Job, folder: Path) -> dict[str, Any] | None:
    """What an earlier run of exactly this job found; ``None`` where there was none.

    Fields that do not take part in comparisons (``field(compare=False)``) may differ.
    """
    path = folder / f"{job.key}.json"
    if not path.is_file():
        return None
    stored: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    free = {item.name for item in fields(job) if not item.compare}
    known, wanted = stored["job"], _plain(job)
    return stored if {**known, **{name: wanted[name] for name in free}} == wanted else None


def run_jobs(
    work: Callable[[J], dict[str, Any]],
    jobs: Sequence[J],
    folder: Path,
    *,
    workers: int,
    label: str = "jobs",
) -> list[str]:
    """Run every job that ``folder`` has no result of; one thread each, ``workers`` at a time.

    Args:
        work: A function of a module, which returns what JSON can hold.
        jobs: What to do.
        folder: Where ``<key>.json`` is written as soon as a job is finished, with the job itself, the
            versions, the machine and the seconds.
        workers: Processes.
        label: What the progress bar is called.

    Returns:
        One line for each job that failed.
    """
    waiting = [job for job in dict.fromkeys(jobs) if result_of(job, folder) is None]
    folder.mkdir(parents=True, exist_ok=True)
    failures = []
    os.environ.update(ENVIRONMENT)
    context = multiprocessing.get_context("forkserver")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        tasks = {pool.submit(_timed, work, job, folder): job for job in waiting}
        try:
            bar = tqdm(as_completed(tasks), total=len(tasks), unit="job", desc=label, disable=None)
            failures = [f"{tasks[task].key}: {task.result()}" for task in bar if task.result()]
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return failures


def write_json(path: Path, content: object) -> None:
    """Write a file in one step: a reader sees the old or the new content, never half."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    temporary.replace(path)


def _timed(work: Callable[[J], dict[str, Any]], job: J, folder: Path) -> str:
    """Do one job and write its file; returns what went wrong, or ``""``."""
    import torch

    torch.set_num_threads(1)
    start = time.perf_counter()
    try:
        result = work(job)
    except Exception:
        return traceback.format_exc(limit=-3)
    about = {
        "job": _plain(job),
        "result": result,
        "seconds": round(time.perf_counter() - start, 2),
        "versions": {name: version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "machine": machine(),
    }
    write_json(folder / f"{job.key}.json", about)
    return ""


def _plain(job: Job) -> Any:
    """The job as JSON gives it back."""
    return json.loads(json.dumps(asdict(job)))


@functools.lru_cache(maxsize=1)
def load_once(dataset: str) -> Data:
    """The dataset, read once per process."""
    from gnnquant.datasets import load_dataset

    return load_dataset(dataset)
