"""The same rows on another machine: models are compiled here, and timed where neither TVM nor a compiler is.

::

    python -m benchmarks.speed.elsewhere build FOLDER --mcpu sapphirerapids     # here
    python -m benchmarks.speed.elsewhere run FOLDER --results RESULTS           # there
    python -m benchmarks.speed.elsewhere show --results RESULTS --table FILE    # anywhere
    python -m benchmarks.speed.elsewhere levels FOLDER --results RESULTS --table FILE

``build`` writes an artifact for each model and width, and a digest of the scores that this machine computes
(which are those of the integer reference in every bit: the tests see to that). ``run`` compares its own with
them, and the float contestants with each other, as ``benchmarks.speed`` does. There it needs torch, PyG and
TVM's runtime library. ``levels`` builds and runs the code of older x86-64 processors here, a folder of
results each: what the kernels of each instruction set are worth.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tqdm import tqdm

from benchmarks.jobs import result_of, run_jobs, write_json
from benchmarks.report import code_state, grid, machine
from benchmarks.speed.graphs import GRAPHS, load
from benchmarks.speed.memory import peak_bytes
from benchmarks.speed.models import MODELS
from benchmarks.speed.runs import (
    CONTESTANTS,
    OWN,
    PAUSE,
    SOURCES,
    WIDTHS,
    Run,
    compare_scores,
    quantized_model,
    rival_calls,
    some_nodes,
)
from benchmarks.speed.table import document, missed_targets
from gnnquant.timing import interleaved_times

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

MANIFEST = "manifest.json"
LEVELS = {
    "x86-64-v2": "SSE4.2",
    "x86-64-v3": "AVX2",
    "x86-64-v4": "AVX-512",
    "znver4": "AVX512-VNNI",
    "sapphirerapids": "AMX",
}
"""LLVM's names of processors, and which kernels they get."""
LEVELS_TEXT = """\
# Kernels of each instruction set, on one machine

Written by `python -m benchmarks.speed.elsewhere levels`; do not edit by hand. Milliseconds of one call on one
thread, medians, and in brackets the gain over the level before; levels that the machine lacks are left out.
{machine}. Scores have the same bits at every level.

"""


@dataclass(frozen=True)
class ShippedRun(Run):
    """One row, of models that were compiled before.

    Attributes:
        folder: Where the artifacts are.
    """

    folder: str = field(default="", compare=False)

    def artifact(self, name: str) -> str:
        """Name of the artifact of a contestant."""
        return f"{self.key}-{name.replace(' ', '-')}.gnnq"


def build(folder: Path, runs: list[ShippedRun], target: dict[str, Any]) -> None:
    """Compile the models of ``runs`` for ``target``, and note what they compute."""
    import gnnquant

    folder.mkdir(parents=True, exist_ok=True)
    notes: dict[str, Any] = {"target": target, "code": code_state(*SOURCES), "rows": {}}
    for run in tqdm(runs, desc="rows", disable=None):
        x, edge_index, classes = load(run.graph)
        model = MODELS[run.model].build(x.size(1), classes)
        digests = {"inputs": _digest(x, edge_index)}
        for bits, name in OWN.items():
            q = quantized_model(model, some_nodes(x, edge_index), bits, run.granularity)
            gnnquant.compile(q, target=target, threads=run.threads).save(folder / run.artifact(name))
            if bits in WIDTHS:
                digests[name] = _digest(gnnquant.compile(q, threads=2)(x, edge_index))
        notes["rows"][run.key] = digests
        write_json(folder / MANIFEST, notes)


def perform(run: ShippedRun) -> dict[str, Any]:
    """Measure one row: see ``benchmarks.speed.runs.perform``.

    Raises:
        AssertionError: Scores or inputs are not those of the machine that compiled the models.
    """
    from gnnquant.runtime import load as load_model

    torch.set_num_threads(run.threads)
    notes = json.loads((Path(run.folder) / MANIFEST).read_text(encoding="utf-8"))
    digests = notes["rows"][run.key]
    x, edge_index, classes = load(run.graph)
    assert _digest(x, edge_index) == digests["inputs"], "features or edges are others here"
    rows: dict[str, dict[str, Any]] = {name: {} for name in CONTESTANTS}
    model = MODELS[run.model].build(x.size(1), classes)
    calls = rival_calls(model, x, edge_index, rows, messages=run.messages)
    for name in OWN.values():
        start = time.perf_counter()
        compiled = load_model(Path(run.folder) / run.artifact(name))
        rows[name]["compile_s"] = round(time.perf_counter() - start, 4)
        start = time.perf_counter()
        graph = compiled.prepare(edge_index, x.size(0))
        rows[name]["prepare_ms"] = round(1e3 * (time.perf_counter() - start), 2)
        calls[name] = _call(compiled, x, graph)
    for name, call in calls.items():
        rows[name]["peak"] = peak_bytes(call)
    compare_scores(calls, rows)
    for name in (OWN[bits] for bits in WIDTHS):
        assert _digest(calls[name]()) == digests[name], f"{name} computes something else here"
    pause = PAUSE if run.threads > 1 else 0.0
    for name, times in interleaved_times(calls, seconds=run.seconds, warm_up=0, pause=pause).items():
        rows[name] |= {"times": [round(value, 4) for value in times], "median": statistics.median(times)}
    size = {"nodes": x.size(0), "edges": edge_index.size(1), "features": x.size(1)}
    return {"rows": rows, **size, "code": notes["code"]}


def by_level(found: dict[str, list[dict[str, Any]]]) -> str:
    """A Markdown table of the results of each level: milliseconds, and speed-up over the level before."""
    lines = []
    for index, first in enumerate(next(iter(found.values()), [])):
        job, before = first["job"], None
        for mcpu, results in found.items():
            rows = results[index]["result"]["rows"]
            times = [rows[name]["median"] for name in OWN.values()]
            gains = (
                [""] * len(times)
                if before is None
                else [f" ({b / t:.2f}x)" for b, t in zip(before, times, strict=True)]
            )
            cells = [f"{time_:.2f}{gain}" for time_, gain in zip(times, gains, strict=True)]
            lines.append(
                [f"{MODELS[job['model']].title}, {job['graph']}", f"{LEVELS[mcpu]} ({mcpu})", *cells]
            )
            before = times
    return "\n".join(grid(["row", "kernels", *OWN.values()], lines)) + "\n"


def _levels(options: argparse.Namespace, runs: list[ShippedRun]) -> int:
    from gnnquant.runtime.artifact import from_bytes
    from gnnquant.runtime.host import missing_requirements

    found: dict[str, list[dict[str, Any]]] = {}
    for mcpu in LEVELS:
        folder, results = options.folder / mcpu, options.results / mcpu
        own = [replace(run, folder=str(folder)) for run in runs]
        if any(result_of(run, results) is None for run in own):
            build(folder, own, {"kind": "llvm", "mcpu": mcpu})
            one = next(folder.glob("*.gnnq"))
            payload = from_bytes(one.read_bytes(), str(one), check_machine=False)
            lacking = missing_requirements(payload.metadata["target"])
            if lacking:
                print(f"{mcpu}: this machine lacks {', '.join(lacking)}", file=sys.stderr)
                continue
            if failures := _measure(own, results, mcpu):
                print("\n".join(failures), file=sys.stderr)
                return 1
        found[mcpu] = [result for run in own if (result := result_of(run, results)) is not None]
    text = LEVELS_TEXT.format(machine=machine()) + by_level(found)
    print(text)
    if options.table is not None:
        options.table.write_text(text, encoding="utf-8")
    return 0


def _call(compiled: Any, x: Tensor, graph: Any) -> Callable[[], Tensor]:
    def call() -> Tensor:
        scores: Tensor = compiled(x, graph)
        return scores

    return call


def _measure(runs: list[ShippedRun], results: Path, label: str) -> list[str]:
    """``run_jobs``, whose files do not say where the artifacts were; a line for each run that failed."""
    failures = run_jobs(perform, runs, results, workers=1, label=label)
    for run in runs:
        found = result_of(run, results)
        if found is not None:
            found["job"]["folder"] = ""
            write_json(results / f"{run.key}.json", found)
    return failures


def _digest(*tensors: Tensor) -> str:
    found = hashlib.sha256()
    for tensor in tensors:
        found.update(tensor.contiguous().numpy().tobytes())
    return found.hexdigest()


def main() -> int:
    """Build or run; 1 where a run failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed.elsewhere", description=__doc__)
    parser.add_argument("do", choices=("build", "run", "show", "levels"))
    parser.add_argument("folder", type=Path, nargs="?", default=Path(), help="where the artifacts are")
    parser.add_argument("--mcpu", default="sapphirerapids", help="build: LLVM's name of the other processor")
    parser.add_argument("--models", choices=tuple(MODELS), default=list(MODELS), nargs="+", metavar="NAME")
    parser.add_argument("--graphs", choices=GRAPHS, default=list(GRAPHS), nargs="+", metavar="NAME")
    parser.add_argument("--threads", type=int, choices=(1, 2), default=[1], nargs="+")
    parser.add_argument("--seconds", type=float, default=10.0, help="run: time of each row")
    parser.add_argument("--messages", action="store_true", help="run: with PyG eager and torch.compile")
    parser.add_argument("--results", type=Path, help="run, show: folder of the JSON files")
    parser.add_argument("--table", type=Path, help="run, show: write this Markdown file")
    options = parser.parse_args()
    runs = [
        ShippedRun(model, graph, threads, options.seconds, options.messages, folder=str(options.folder))
        for graph in options.graphs
        for threads in options.threads
        for model in options.models
    ]
    if options.do == "build":
        build(options.folder, runs, {"kind": "llvm", "mcpu": options.mcpu})
        return 0
    if options.results is None:
        parser.error(f"{options.do}: --results is missing")
    if options.do == "levels":
        return _levels(options, runs)
    failures = []
    if options.do == "run":
        failures = _measure(runs, options.results, "rows")
    print("\n".join(failures), file=sys.stderr)
    results = [found for run in runs if (found := result_of(run, options.results)) is not None]
    if results:
        text = document(results).replace(
            "python -m benchmarks.speed`", "python -m benchmarks.speed.elsewhere`"
        )
        print(text)
        print(f"{len(missed_targets(results))} targets are missed")
        if options.table is not None:
            options.table.write_text(text, encoding="utf-8")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
