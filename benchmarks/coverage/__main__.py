"""``python -m benchmarks.coverage``: measure, and write the table."""

from __future__ import annotations

import argparse
import os
import platform
import sys
from importlib.metadata import version
from pathlib import Path

import gnnquant
from benchmarks.coverage.catalogue import CASES, absent, select
from benchmarks.coverage.measure import BITS, SEED
from benchmarks.coverage.runner import Results, run_rows
from benchmarks.coverage.table import failures, markdown, missed_targets
from benchmarks.report import code_state, machine

PACKAGES = ("torch", "torch_geometric", "apache-tvm", "numpy", "onnx", "onnxruntime")


def main() -> int:
    """Measure what is asked for; 1 where a target is missed, if all rows that count were asked for."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.coverage",
        description="What of PyTorch Geometric can be traced, quantized and compiled.",
    )
    parser.add_argument("--out", type=Path, default=Path("results/coverage.json"), help="rows, as they come")
    parser.add_argument("--table", type=Path, help="Markdown; after a full run docs/coverage.md")
    parser.add_argument(
        "--only", action="append", default=[], metavar="PATTERN", help="rows by part of the name"
    )
    parser.add_argument("--quick", action="store_true", help="a row of every sort")
    parser.add_argument("--counted", action="store_true", help="only rows that the targets count")
    parser.add_argument("--no-compile", action="store_true", help="stop after quantizing")
    parser.add_argument("--again", action="store_true", help="measure rows that the file has already")
    parser.add_argument("--retry", action="store_true", help="measure rows again that are not all yes")
    parser.add_argument("--onnx", action="store_true", help="add the column ONNX to rows that lack it")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="rows at a time")
    parser.add_argument("--timeout", type=float, default=120, help="seconds for one row")
    parser.add_argument("--list", action="store_true", help="names of rows, and what has no recipe")
    options = parser.parse_args()
    cases = select(options.only, options.quick, options.counted)
    if options.list:
        print("\n".join(case.key for case in cases))
        print("\n".join(f"{item.key}: {item.reason}" for item in absent()))
        return 0
    with_compile = not options.no_compile
    results = Results(options.out)
    failed = {row["key"] for row in results.rows.values() if options.retry and failures({"": row})}
    if options.onnx:
        present = [case for case in cases if case.key in results.rows]
        cases = present if options.only or options.counted or options.quick else cases
        wanted = [
            case.key for case in present if options.again or "onnx" not in results.rows[case.key]["cells"]
        ]
    else:
        wanted = [
            case.key
            for case in cases
            if options.again or case.key in failed or not results.has(case.key, with_compile)
        ]
    code = code_state("gnnquant/**/*.py")
    results.about = {
        "versions": {"gnnquant": gnnquant.__version__, **{name: version(name) for name in PACKAGES}},
        "seed": SEED,
        "bits": BITS,
        "machine": machine(),
        "python": platform.python_version(),
        "code": {**results.about.get("code", {}), **dict.fromkeys([] if options.onnx else wanted, code)},
    }
    run_rows(wanted, results, with_compile, options.jobs, options.timeout, only_onnx=options.onnx)
    known = {case.key for case in CASES}
    results.rows = {key: row for key, row in results.rows.items() if key in known}
    results.write()
    chosen = {case.key: results.rows[case.key] for case in cases}
    lines = failures(chosen)
    print(f"{len(chosen)} rows, {len(lines)} of which are not all yes (of what runs here)")
    print("\n".join(f"  {line}" for line in lines))
    full = len(cases) == len(CASES)
    table = options.table or (Path("docs/coverage.md") if full else None)
    if table is not None:
        table.parent.mkdir(parents=True, exist_ok=True)
        table.write_text(markdown(results.rows, results.about), encoding="utf-8")
        print(f"wrote {table}")
    if not {case.key for case in CASES if case.counted} <= chosen.keys():
        return 0
    problems = missed_targets(results.rows, with_compile)
    print("\n".join(problems) if problems else "every target is reached")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
