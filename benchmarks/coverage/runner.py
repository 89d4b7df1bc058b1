"""Rows in processes of their own: what crashes or hangs becomes a row that says so."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

if TYPE_CHECKING:
    from collections.abc import Iterable
    from multiprocessing.connection import Connection

_PRELOADED = [
    "benchmarks.coverage.catalogue",
    "benchmarks.coverage.measure",
    "gnnquant.passes.lowering",
    "gnnquant.backends.reference",
    "gnnquant.backends.onnx.check",
    "gnnquant.backends.onnx.emit",
    "gnnquant.backends.self_check",
    "gnnquant.backends.tvm",
]
"""Everything that a row imports: from then on all rows run the same state of the code."""


def work(key: str, with_compile: bool, only_onnx: bool, answers: Connection) -> None:
    """Measure one row in this process."""
    # What a failing model prints is in the row's reasons; here it would only tear the progress bar.
    with Path(os.devnull).open("w", encoding="utf-8") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
    import torch

    from benchmarks.coverage.catalogue import find
    from benchmarks.coverage.measure import measure

    torch.set_num_threads(1)
    answers.send(measure(find(key), with_compile, only_onnx).as_json())


def run_row(key: str, with_compile: bool, timeout: float, only_onnx: bool = False) -> dict[str, Any]:
    """Measure one row in another process."""
    context = multiprocessing.get_context("forkserver")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=work, args=(key, with_compile, only_onnx, sender))
    process.start()
    sender.close()
    try:
        if receiver.poll(timeout):
            row: dict[str, Any] = receiver.recv()
            return row
        problem = f"not finished after {timeout:.0f} s"
    except EOFError:
        process.join()
        code = process.exitcode or 0
        problem = f"crashed with {signal.Signals(-code).name if code < 0 else f'exit code {code}'}"
    finally:
        process.kill()
        process.join()
        receiver.close()
    return {
        "key": key,
        "with_compile": with_compile,
        "cells": {},
        "reasons": {"row": problem},
        "refused": False,
        "facts": {},
        "seconds": timeout,
    }


class Results:
    """The JSON file: written after every row, so that nothing is lost and a run can be taken up again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: dict[str, dict[str, Any]] = {}
        self.about: dict[str, Any] = {}
        self._lock = threading.Lock()
        if path.exists():
            stored = json.loads(path.read_text(encoding="utf-8"))
            self.rows = {row["key"]: row for row in stored["rows"]}
            self.about = stored["about"]

    def has(self, key: str, with_compile: bool) -> bool:
        """Whether a row needs no new measurement."""
        row = self.rows.get(key)
        return row is not None and (row["with_compile"] or not with_compile)

    def add(self, row: dict[str, Any]) -> None:
        """Keep a row, and write the file."""
        with self._lock:
            self.rows[row["key"]] = row
            self.write()

    def add_onnx(self, row: dict[str, Any]) -> None:
        """Complete a row that is there by what ``measure(only_onnx=True)`` found."""
        known = self.rows[row["key"]]
        answer = row["cells"].get("onnx")
        for part in ("cells", "reasons"):
            known[part].pop("onnx", None)
        if "row" in row["reasons"]:
            answer, row["reasons"]["onnx"] = False, row["reasons"]["row"]
        if answer is not None:
            known["cells"]["onnx"] = answer
        if "onnx" in row["reasons"]:
            known["reasons"]["onnx"] = row["reasons"]["onnx"]
        known["facts"] |= {name: fact for name, fact in row["facts"].items() if "ONNX" in name}
        self.add(known)

    def write(self) -> None:
        """Replace the file in one step."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"about": self.about, "rows": list(self.rows.values())}, indent=1)
        temporary = self.path.with_suffix(".part")
        temporary.write_text(text + "\n", encoding="utf-8")
        temporary.replace(self.path)


def run_rows(
    keys: Iterable[str],
    results: Results,
    with_compile: bool,
    jobs: int,
    timeout: float,
    *,
    only_onnx: bool = False,
) -> None:
    """Measure rows, ``jobs`` at a time; or add ONNX to those that are there."""
    # Workers inherit these; one thread each, or they would fight over the processors.
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "TVM_NUM_THREADS"):
        os.environ[name] = "1"
    multiprocessing.get_context("forkserver").set_forkserver_preload(_PRELOADED)
    with ThreadPoolExecutor(jobs) as pool:
        tasks = [pool.submit(run_row, key, with_compile, timeout, only_onnx) for key in keys]
        for task in tqdm(as_completed(tasks), total=len(tasks), unit="row", disable=None):
            (results.add_onnx if only_onnx else results.add)(task.result())
