"""``python -m benchmarks.speed``: measure what is not measured yet, and write the document and its plots."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.jobs import result_of, run_jobs
from benchmarks.speed import guard
from benchmarks.speed.graphs import GRAPHS
from benchmarks.speed.models import MODELS
from benchmarks.speed.runs import Run, perform
from benchmarks.speed.table import document, missed_targets, plot

if TYPE_CHECKING:
    from collections.abc import Sequence


def main() -> int:
    """Measure what is asked for and not done yet; 1 where a run failed."""
    options = _parser().parse_args()
    if options.device == "cuda":
        return _on_gpu(options)
    folder = options.results or _results("speed" if options.granularity == "tensor" else "speed-rows")
    if options.quick:
        return _quick(folder / "quick", options.granularity, save=options.save)
    runs = [
        Run(model, graph, threads, options.seconds, granularity=options.granularity)
        for graph in options.graphs
        for threads in options.threads
        for model in options.models
    ]
    # One process at a time: contestants share a machine with nobody.
    failures = [] if options.show else run_jobs(perform, runs, folder, workers=1, label="rows")
    print("\n".join(failures), file=sys.stderr)
    results = _found(runs, folder)
    text = document(results)
    print(text)
    if options.table is not None:
        options.table.parent.mkdir(parents=True, exist_ok=True)
        options.table.write_text(text, encoding="utf-8")
        plot(results, options.table.parent / "plots", options.table.stem)
    print(f"{len(missed_targets(results))} targets are missed")
    return 1 if failures else 0


def _quick(folder: Path, granularity: str, *, save: bool) -> int:
    """Measure the rows of the guard, beside those that are kept; 1 where something has become worse."""
    runs = [replace(run, granularity=granularity) for run in guard.RUNS]
    with tempfile.TemporaryDirectory(prefix="gnnquant-") as temporary:
        failures = run_jobs(perform, runs, Path(temporary), workers=1, label="rows")
        now = _found(runs, Path(temporary))
        if failures:
            print("\n".join(failures), file=sys.stderr)
            return 1
        if save:
            folder.mkdir(parents=True, exist_ok=True)
            for run in runs:
                shutil.copy(Path(temporary) / f"{run.key}.json", folder)
    then = _found(runs, folder)
    text, worse = guard.compare(now, then)
    print(text)
    if not then:
        print(f"nothing to compare with in {folder}: --save keeps these rows there")
    elif {result["machine"] for result in [*now, *then]} != {now[0]["machine"]}:
        print(f"the rows in {folder} are of another machine ({then[0]['machine']}): only bytes compare")
        worse = [line for line in worse if "bytes" in line]
    print("\n".join(worse) or "nothing is worse")
    return 1 if worse else 0


def _on_gpu(options: argparse.Namespace) -> int:
    """The same rows on a GPU, with its own rivals and document."""
    from benchmarks.speed import gpu, gpu_table

    folder = options.results or _results("speed-cuda")
    models = [name for name in options.models if name in gpu.MODELS_ON_GPU]
    runs = [gpu.GpuRun(model, graph, options.seconds) for graph in options.graphs for model in models]
    checks_file = folder / "checks.txt"
    checks = checks_file.read_text(encoding="utf-8").splitlines() if checks_file.is_file() else []
    failures: list[str] = []
    if options.check:
        compared = gpu.check_all(runs, gpu.workers())
        failures = [line for line in compared if not line.endswith("every bit")]
        checks = sorted({*checks, *compared})
        folder.mkdir(parents=True, exist_ok=True)
        checks_file.write_text("\n".join(checks) + "\n", encoding="utf-8")
    elif not options.show:
        gpu.build_ahead([run for run in runs if result_of(run, folder) is None], gpu.workers())
        failures = run_jobs(gpu.perform, runs, folder, workers=1, label="rows")
    print("\n".join(failures), file=sys.stderr)
    text = gpu_table.document(
        [found for run in runs if (found := result_of(run, folder)) is not None], checks
    )
    print(text)
    if options.table is not None:
        options.table.write_text(text, encoding="utf-8")
    return 1 if failures else 0


def _results(name: str) -> Path:
    return Path(os.environ.get("GNNQUANT_RESULTS", "results")) / name


def _found(runs: Sequence[Run], folder: Path) -> list[dict[str, Any]]:
    return [found for run in runs if (found := result_of(run, folder)) is not None]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.speed",
        description="Latency and memory of compiled models beside the strongest float rivals, in one "
        "process. One JSON file per row in results/speed or results/speed-cuda (GNNQUANT_RESULTS); rows "
        "that are there are not repeated.",
    )
    parser.add_argument("--models", choices=tuple(MODELS), default=list(MODELS), nargs="+", metavar="NAME")
    parser.add_argument("--graphs", choices=GRAPHS, default=list(GRAPHS), nargs="+", metavar="NAME")
    parser.add_argument("--threads", type=int, choices=(1, 2), default=[1, 2], nargs="+")
    parser.add_argument(
        "--granularity",
        choices=("tensor", "row"),
        default="tensor",
        help="one scale for each activation, or one for each of its rows (then in results/speed-rows)",
    )
    parser.add_argument("--seconds", type=float, default=20.0, help="time of each row")
    parser.add_argument(
        "--quick", action="store_true", help="compare a few rows with those kept in results/speed/quick"
    )
    parser.add_argument("--save", action="store_true", help="with --quick: keep the rows of this run instead")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="cuda: on the first GPU")
    parser.add_argument(
        "--check", action="store_true", help="with --device cuda: only compare all scores with the reference"
    )
    parser.add_argument("--show", action="store_true", help="run nothing, write what is known")
    parser.add_argument("--results", type=Path, help="folder of the JSON files (default: as above)")
    parser.add_argument("--table", type=Path, help="write this Markdown file, and plots beside it")
    return parser


if __name__ == "__main__":
    sys.exit(main())
