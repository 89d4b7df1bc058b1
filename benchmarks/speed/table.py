"""From results to a Markdown document and a plot."""

from __future__ import annotations

import itertools
import math
import statistics
from typing import TYPE_CHECKING, Any

from benchmarks.report import grid, save_svg
from benchmarks.speed.models import MODELS
from benchmarks.speed.runs import CONTESTANTS, EAGER, FLOAT_RIVALS, HALF, OWN, WIDTHS
from gnnquant.config import FLOAT_BITS

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

Result = dict[str, Any]

TARGETS: dict[tuple[str, str], tuple[float, float, float]] = {
    ("gcn256", "PubMed"): (5.0, 6.5, 7.0),
    ("gcn256", "arxiv-size"): (4.5, 5.5, 7.0),
    ("gcn64", "arxiv-size"): (2.5, 3.5, 4.5),
    ("gcn256", "dense"): (4.0, 6.0, 8.0),
    ("smp", "arxiv-size"): (3.0, 5.0, 6.0),
    ("smp", "dense"): (3.0, 5.0, 6.0),
    ("gat", "arxiv-size"): (2.0, 2.5, 3.0),
    ("gcn64", "Cora"): (3.0, 3.0, 2.5),
}
"""(model, graph) -> wanted speed-up of INT8, INT4 and INT2 over the strongest float32, 1 thread."""
EAGER_TARGET = 14.0
"""Wanted speed-up over eager PyG, on every graph but Cora."""
SLOWER = 1.05
"""Fewer bits may take this much longer than more."""
SCALING = 1.6
"""Wanted throughput of 2 threads over that of 1 on arxiv-size."""
SHARE = 0.7
"""Wanted share of the memory's speed in kernels that sum over edges, on the dense graph, 1 thread."""
MEMORY = 0.25
"""Wanted memory of INT4 over that of own FP32, on the dense graph, 1 thread."""

INTRODUCTION = """\
# Speed

Written by `python -m benchmarks.speed`; do not edit by hand. Milliseconds of one call: float features in,
class scores out, the graph prepared before, weights random, ranges calibrated. All contestants of a row run
in one process, in turns; the figure is the median, the spread half the distance between the quartiles; a
contestant that takes more than its share of the time is measured once, and has none.

- *strongest FP32* is the fastest of eager PyG, `torch.compile`, sorted sparse matrices written by hand
  (`benchmarks/speed/rivals.py`: CSR products of MKL, normalisation done before, the cheaper order), our FP32
  export in ONNX Runtime and our own compiled FP32. Speed-ups refer to it. bf16 products are another model,
  and told apart.
- Float contestants agree within 1e-4 (bf16: 5e-2) of the largest score; scores of INT8, INT4 and INT2 are
  those of the integer reference in every bit (with 2 threads: those of 1). A run where they differ fails.
{granularity}
- *From codes*: the features were quantized before the call (`prepare_features`); all else takes floats in.
- *Memory* is the peak during the first call beyond inputs, weights and the prepared graph.
"""

GRANULARITY = {
    "tensor": """\
- Each activation has one scale, each weight one for a column:
  `QuantConfig(activations=QuantSpec(granularity="tensor"))`. What that means for accuracy is in accuracy.md
  (*tensor scales*). speed-rows.md has a scale for each row of an activation, the default of `convert`.""",
    "row": """\
- Each row of an activation has a scale, and each column of a weight: the default of `convert`. speed.md has
  one scale for all rows.""",
}

MOVED = """\
Bytes moved (MiB), their time at the memory's speed (`benchmarks/speed/roofline.py`), and the share of that
speed which all kernels reach / which those reach that sum over edges:"""
MADE = """\
Seconds to compile (next to none where the same kernels were compiled before), milliseconds to prepare the
graph, and how many calls repay that beside the strongest FP32:"""


def document(results: Sequence[Result]) -> str:
    """The Markdown document."""
    granularity = "\n".join(
        GRANULARITY[name] for name in dict.fromkeys(result["job"]["granularity"] for result in results)
    )
    lines = [INTRODUCTION.format(granularity=granularity), _about(results), ""]
    for graph, threads in dict.fromkeys((r["job"]["graph"], r["job"]["threads"]) for r in results):
        some = [r for r in results if (r["job"]["graph"], r["job"]["threads"]) == (graph, threads)]
        lines += ["", *_section(graph, threads, some)]
    missed = missed_targets(results)
    lines += ["", "## Targets that are missed", "", *(f"- {line}" for line in missed or ["none"])]
    return "\n".join(lines) + "\n"


def _about(results: Sequence[Result]) -> str:
    def all_of(values: Iterable[str]) -> str:
        return "; ".join(sorted(set(values)))

    machines = all_of(result["machine"] for result in results)
    versions = all_of(", ".join(f"{k} {v}" for k, v in result["versions"].items()) for result in results)
    states = len({result["result"]["code"] for result in results})
    return f"Machine: {machines}. Versions: {versions}. Rows come from {states} state(s) of the code."


def _section(graph: str, threads: int, results: Sequence[Result]) -> list[str]:
    first = results[0]["result"]
    size = f"{first['nodes']:,} nodes, {first['edges']:,} edges, {first['features']:,} features"
    summary, details, moved, made = [], [], [], []
    for result in sorted(results, key=lambda result: list(MODELS).index(result["job"]["model"])):
        rows, title = result["result"]["rows"], MODELS[result["job"]["model"]].title
        name, best = strongest(rows)
        eager = rows[EAGER].get("median")
        summary.append(
            [
                title,
                f"{best:.2f} ({name})",
                *(speedup_cell(rows[OWN[bits]].get("median"), best) for bits in WIDTHS),
                " / ".join(ratio_cell(eager, rows[OWN[bits]].get("median")) for bits in WIDTHS),
                " / ".join(_mebibytes(rows[OWN[bits]].get("peak")) for bits in OWN),
            ]
        )
        details.append([title, *(measured_cell(rows.get(contestant, {})) for contestant in CONTESTANTS)])
        moved.append([title, *(_moved(rows[own]) for own in OWN.values())])
        made.append([title, *(_made(rows[own], best) for own in OWN.values())])
    widths = [OWN[bits] for bits in WIDTHS]
    own = " / ".join(OWN.values())
    heading = ["model", "strongest FP32", *widths, f"{' / '.join(widths)} over eager", f"MiB of {own}"]
    return [
        f"## {graph}, {threads} thread{'s' if threads > 1 else ''}",
        "",
        f"{size}.",
        "",
        *grid(heading, summary),
        "",
        *grid(["model", *CONTESTANTS], details),
        "",
        MOVED,
        "",
        *grid(["model", *OWN.values()], moved),
        "",
        MADE,
        "",
        *grid(["model", *OWN.values()], made),
        *(f"\n{title}: {reason}" for title, reason in _skipped(results)),
    ]


def strongest(rows: dict[str, dict[str, Any]], rivals: Sequence[str] = FLOAT_RIVALS) -> tuple[str, float]:
    """Name and milliseconds of the fastest float32 contestant."""
    known = {name: rows[name]["median"] for name in rivals if "median" in rows.get(name, {})}
    name = min(known, key=lambda name: known[name])
    return name, known[name]


def missed_targets(results: Sequence[Result]) -> list[str]:
    """A line for each target that is not reached."""
    found = []
    for result in results:
        job, rows = result["job"], result["result"]["rows"]
        name, best = strongest(rows)
        times = {bits: rows[OWN[bits]].get("median") for bits in WIDTHS}
        where = f"{MODELS[job['model']].title}, {job['graph']}, {job['threads']} thread(s)"
        wanted = TARGETS.get((job["model"], job["graph"])) if job["threads"] == 1 else None
        for bits, least in zip(WIDTHS, wanted or (), strict=False):
            if times[bits] and best / times[bits] < least:
                found.append(f"{where}: {OWN[bits]} {best / times[bits]:.2f}x of {name}, wanted {least}x")
        eager = rows[EAGER].get("median")
        found += [
            f"{where}: {OWN[bits]} {eager / times[bits]:.1f}x of eager, wanted {EAGER_TARGET:g}x"
            for bits in WIDTHS
            if eager and times[bits] and job["graph"] != "Cora" and eager / times[bits] < EAGER_TARGET
        ]
        for more, fewer in itertools.pairwise(WIDTHS):
            if times[more] and times[fewer] and times[fewer] > SLOWER * times[more]:
                found.append(f"{where}: {OWN[fewer]} takes {times[fewer] / times[more]:.2f} of {OWN[more]}")
        if (job["graph"], job["threads"]) == ("dense", 1):
            found += [f"{where}: {line}" for line in _missed_of_memory(rows)]
    return [*found, *_missed_scaling(results)]


def _missed_of_memory(rows: dict[str, dict[str, Any]]) -> list[str]:
    found = []
    for name in (OWN[bits] for bits in WIDTHS):
        share = _share([kernel for kernel in rows[name].get("kernels", ()) if kernel["gathered"]])
        if share is not None and share < SHARE:
            found.append(f"sums of {name} at {share:.0%} of the memory's speed, wanted {SHARE:.0%}")
    few, full = (rows[OWN[bits]].get("peak") for bits in (4, FLOAT_BITS))
    if few and full and few > MEMORY * full:
        found.append(f"INT4 needs {few / full:.3f} of the memory of own FP32, wanted {MEMORY:g}")
    return found


def _missed_scaling(results: Sequence[Result]) -> list[str]:
    medians = {
        (r["job"]["model"], bits, r["job"]["threads"]): r["result"]["rows"][OWN[bits]].get("median")
        for r in results
        for bits in WIDTHS
        if r["job"]["graph"] == "arxiv-size"
    }
    found = []
    for (model, bits, threads), two in medians.items():
        one = medians.get((model, bits, 1))
        if threads == 2 and one and two and one / two < SCALING:
            found.append(
                f"{MODELS[model].title}, arxiv-size: {OWN[bits]} {one / two:.2f}x with 2 threads, "
                f"wanted {SCALING}x"
            )
    return found


def plot(results: Sequence[Result], folder: Path, name: str = "speed") -> list[Path]:
    """A plot per graph, ``<name>-<graph>``: speed-up over the strongest float32 on one thread, by model."""
    from matplotlib.figure import Figure

    written = []
    single = [result for result in results if result["job"]["threads"] == 1]
    for graph in dict.fromkeys(result["job"]["graph"] for result in single):
        rows = {r["job"]["model"]: r["result"]["rows"] for r in single if r["job"]["graph"] == graph}
        models = [model for model in MODELS if model in rows]
        figure = Figure(figsize=(1.4 * len(models) + 1.5, 3), layout="constrained")
        axis = figure.subplots()
        shown = [*(OWN[bits] for bits in WIDTHS), HALF]
        width = 1 / (len(shown) + 1)
        for number, contestant in enumerate(shown):
            speedups = [
                strongest(rows[model])[1] / rows[model][contestant].get("median", float("inf"))
                for model in models
            ]
            shift = (number - (len(shown) - 1) / 2) * width
            axis.bar([place + shift for place in range(len(models))], speedups, width, label=contestant)
        axis.axhline(1, color="black", linestyle=":", linewidth=1)
        axis.set_xticks(range(len(models)), [MODELS[model].title for model in models], fontsize=7)
        axis.set_ylabel("speed-up over strongest FP32")
        axis.set_title(f"{graph}, 1 thread", fontsize=9)
        axis.legend(fontsize=6)
        path = folder / f"{name}-{graph}.svg"
        save_svg(figure, path)
        written.append(path)
    return written


def _skipped(results: Sequence[Result]) -> list[tuple[str, str]]:
    return [
        (f"{MODELS[result['job']['model']].title}, {name}", row["skipped"])
        for result in results
        for name, row in result["result"]["rows"].items()
        if "skipped" in row
    ]


def speedup_cell(value: float | None, best: float, digits: int = 2) -> str:
    """Milliseconds, and how many times as fast as ``best``."""
    return "–" if value is None else f"{value:.{digits}f} ({best / value:.2f}x)"


def ratio_cell(value: float | None, by: float | None) -> str:
    """How many times as long ``value`` is as ``by``."""
    return "–" if value is None or by is None else f"{value / by:.1f}x"


def _mebibytes(value: int | None) -> str:
    return "–" if value is None else f"{value / 2**20:.0f}"


def _moved(row: dict[str, Any]) -> str:
    kernels = row.get("kernels")
    if not kernels:
        return "–"
    summing = [kernel for kernel in kernels if kernel["gathered"]]
    moved = sum(kernel["streamed"] + kernel["gathered"] for kernel in kernels)
    best = sum(kernel["best_ms"] for kernel in kernels)
    shares = " / ".join(
        "–" if share is None else f"{share:.0%}" for share in (_share(kernels), _share(summing))
    )
    return f"{_mebibytes(moved)}, {best:.2f} ms, {shares}"


def _share(kernels: Sequence[dict[str, Any]]) -> float | None:
    """The share of the memory's speed that ``kernels`` reach, if there are any."""
    time = sum(kernel["ms"] for kernel in kernels)
    return sum(kernel["best_ms"] for kernel in kernels) / time if time else None


def _made(row: dict[str, Any], best: float) -> str:
    if "median" not in row or "prepare_ms" not in row:
        return "–"
    gain = best - row["median"]
    calls = f"{math.ceil(row['prepare_ms'] / gain)} calls" if gain > 0 else "never"
    return f"{row['compile_s']:.1f} s, {row['prepare_ms']:.1f} ms, {calls}"


def measured_cell(row: dict[str, Any], digits: int = 2) -> str:
    """Median and spread of a contestant."""
    if "times" not in row:
        return "–"
    if len(row["times"]) == 1:
        return f"{row['median']:.{digits}f}"
    low, _, high = statistics.quantiles(row["times"], n=4)
    return f"{row['median']:.{digits}f} ± {(high - low) / 2:.{digits}f}"
