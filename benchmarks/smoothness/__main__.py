"""``python -m benchmarks.smoothness``: run what is not done yet, and write the document and its plots."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from benchmarks.jobs import result_of, run_jobs
from benchmarks.smoothness.models import DEPTHS, MODELS, Schedule, schedule
from benchmarks.smoothness.runs import Run, perform
from benchmarks.smoothness.table import document, plot
from gnnquant.datasets import DATASETS

QUICK_DEPTHS = (2, 8)
QUICK = Schedule(epochs=20, tuning_epochs=10)


def main() -> int:
    """Run what is asked for and not done yet; 1 where a run failed."""
    options = _parser().parse_args()
    folder = options.results / "quick" if options.quick else options.results
    # Seed by seed and the shallow ones first: what is there when the time is over is most useful so.
    runs = [
        Run(dataset, model, depth, seed, QUICK if options.quick else schedule(model, depth))
        for seed in range(1 if options.quick else options.seeds)
        for dataset in options.datasets
        for depth in sorted({depth for model in options.models for depth in DEPTHS[model]})
        if depth in (QUICK_DEPTHS if options.quick else options.depths or (depth,))
        for model in options.models
        if depth in DEPTHS[model]
    ]
    failures = [] if options.show else run_jobs(perform, runs, folder, workers=options.workers, label="runs")
    print("\n".join(failures), file=sys.stderr)
    results = [found for run in runs if (found := result_of(run, folder)) is not None]
    text = document(results, len(runs), "plots")
    print(text)
    table = folder / "smoothness.md" if options.quick else options.table
    table.parent.mkdir(parents=True, exist_ok=True)
    table.write_text(text, encoding="utf-8")
    plot(results, table.parent / "plots")
    print(f"wrote {table}")
    return 1 if failures else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.smoothness",
        description="Accuracy and Dirichlet energy over depth, with and without the smoothness constraint, "
        "in FP32 and quantized; the updates of SMP; the error of quantized propagation and its bound. One "
        "JSON file per run; runs that are there are not repeated.",
    )
    parser.add_argument("--datasets", choices=DATASETS, default=["Cora"], nargs="+", metavar="NAME")
    parser.add_argument("--models", choices=tuple(MODELS), default=list(MODELS), nargs="+", metavar="NAME")
    parser.add_argument("--depths", nargs="+", type=int, metavar="DEPTH", help="only these of the depths")
    parser.add_argument("--seeds", type=int, default=3, help="how many, from 0")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="runs at a time")
    parser.add_argument("--quick", action="store_true", help="two depths, few epochs, one seed")
    parser.add_argument("--show", action="store_true", help="run nothing, write what is known")
    default = Path(os.environ.get("GNNQUANT_RESULTS", "results")) / "smoothness"
    parser.add_argument("--results", type=Path, default=default, help="folder of the JSON files")
    parser.add_argument("--table", type=Path, default=Path("docs/smoothness.md"), help="the document")
    return parser


if __name__ == "__main__":
    sys.exit(main())
