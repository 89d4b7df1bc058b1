"""``python -m benchmarks.speed``: measure what is not measured yet, and write the document and its plots."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from benchmarks.jobs import result_of, run_jobs
from benchmarks.speed.graphs import GRAPHS
from benchmarks.speed.models import MODELS
from benchmarks.speed.runs import Run, perform
from benchmarks.speed.table import document, missed_targets, plot


def main() -> int:
    """Measure what is asked for and not done yet; 1 where a run failed."""
    options = _parser().parse_args()
    folder = options.results
    runs = [
        Run(model, graph, threads, options.seconds)
        for graph in options.graphs
        for threads in options.threads
        for model in options.models
    ]
    # One process at a time: contestants share a machine with nobody.
    failures = [] if options.show else run_jobs(perform, runs, folder, workers=1, label="rows")
    print("\n".join(failures), file=sys.stderr)
    results = [found for run in runs if (found := result_of(run, folder)) is not None]
    text = document(results)
    print(text)
    if options.table is not None:
        options.table.parent.mkdir(parents=True, exist_ok=True)
        options.table.write_text(text, encoding="utf-8")
        plot(results, options.table.parent / "plots")
    print(f"{len(missed_targets(results))} targets are missed")
    return 1 if failures else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.speed",
        description="Latency and memory of compiled models beside the strongest float rivals, in one "
        "process. One JSON file per row in results/speed (GNNQUANT_RESULTS); rows that are there are not "
        "repeated.",
    )
    parser.add_argument("--models", choices=tuple(MODELS), default=list(MODELS), nargs="+", metavar="NAME")
    parser.add_argument("--graphs", choices=GRAPHS, default=list(GRAPHS), nargs="+", metavar="NAME")
    parser.add_argument("--threads", type=int, choices=(1, 2), default=[1, 2], nargs="+")
    parser.add_argument("--seconds", type=float, default=20.0, help="time of each row")
    parser.add_argument("--show", action="store_true", help="run nothing, write what is known")
    default = Path(os.environ.get("GNNQUANT_RESULTS", "results")) / "speed"
    parser.add_argument("--results", type=Path, default=default, help="folder of the JSON files")
    parser.add_argument("--table", type=Path, help="write this Markdown file, and plots beside it")
    return parser


if __name__ == "__main__":
    sys.exit(main())
