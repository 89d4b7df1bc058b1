"""``python -m benchmarks.accuracy``: train, quantize, compile, and write the table."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from benchmarks.accuracy.models import MODELS
from benchmarks.accuracy.rivals import RIVALS
from benchmarks.accuracy.runs import OWN_METHODS, Run, perform, states_folder
from benchmarks.accuracy.table import better_rivals, document, markdown, missed_targets, plot
from benchmarks.jobs import result_of, run_jobs
from gnnquant.datasets import DATASETS

WIDTHS = (8, 4, 2)
METHODS = (*OWN_METHODS, *RIVALS)


def main() -> int:
    """Run what is asked for and not done yet; 1 where a run failed."""
    options = _parser().parse_args()
    folder = states_folder().parent
    runs = [
        Run(dataset, model, method, bits, seed, training=MODELS[model].training)
        for seed in range(options.seeds)
        for dataset in options.datasets
        for model in options.models
        for method in options.methods
        for bits in options.bits
        if bits in RIVALS.get(method, WIDTHS)
    ]
    teachers = list(dict.fromkeys(run.teacher for run in runs))
    failures: list[str] = []
    if not options.show:
        for run in teachers:
            if not (states_folder() / f"{run.key}.pt").is_file():
                (folder / f"{run.key}.json").unlink(missing_ok=True)
        failures += run_jobs(perform, teachers, folder, workers=options.workers, label="FP32")
        failures += run_jobs(perform, runs, folder, workers=options.workers, label="quantized")
        print("\n".join(failures), file=sys.stderr)
    results = [found for run in (*teachers, *runs) if (found := result_of(run, folder)) is not None]
    print(markdown(results))
    print("\n".join([*missed_targets(results), *better_rivals(results)]))
    if options.table is not None:
        options.table.parent.mkdir(parents=True, exist_ok=True)
        options.table.write_text(document(results), encoding="utf-8")
        plot(results, options.table.parent / "plots")
    return 1 if failures else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.accuracy",
        description="Test accuracy of FP32, INT8, INT4 and INT2 over seeds, with rivals in the same harness. "
        "One JSON file per run in results/accuracy (GNNQUANT_RESULTS); runs that are there are not repeated.",
    )

    def several(name: str, known: tuple[str, ...], default: tuple[str, ...] | None = None) -> None:
        parser.add_argument(
            name,
            nargs="+",
            choices=known,
            default=list(default or known),
            metavar="NAME",
            help=f"of {', '.join(known)}",
        )

    several("--datasets", DATASETS, ("Cora", "PubMed"))
    several("--models", tuple(MODELS))
    several("--methods", METHODS)
    parser.add_argument("--bits", nargs="+", type=int, choices=WIDTHS, default=list(WIDTHS), metavar="BITS")
    parser.add_argument("--seeds", type=int, default=10, help="how many, from 0")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="runs at a time")
    parser.add_argument("--table", type=Path, help="write this Markdown file, and plots beside it")
    parser.add_argument("--show", action="store_true", help="run nothing, show what is known")
    return parser


if __name__ == "__main__":
    sys.exit(main())
