"""From results on a GPU to a Markdown document."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from benchmarks.report import grid
from benchmarks.speed.gpu import CONTESTANTS, FLOAT_RIVALS, MODELS_ON_GPU, REPLAYED
from benchmarks.speed.graphs import GRAPHS
from benchmarks.speed.models import MODELS
from benchmarks.speed.runs import EAGER, OWN, SORTED, WIDTHS
from benchmarks.speed.table import measured_cell, ratio_cell, speedup_cell, strongest

if TYPE_CHECKING:
    from collections.abc import Sequence

Result = dict[str, Any]
CLEARLY = 1.2
"""Wanted speed-up of INT8 over eager PyG and over torch CSR, recorded or not."""
INTRODUCTION = """\
# Speed on a GPU

Written by `python -m benchmarks.speed --device cuda`; do not edit by hand. Milliseconds between two CUDA
events around one call on an idle GPU, time to launch included: float features on the GPU in, class scores on
the GPU out, the graph prepared before, weights random, ranges calibrated. All contestants of a row run in one
process, in turns; the figure is the median, the spread half the distance between the quartiles.

- *strongest FP32* is the fastest of eager PyG, `torch.compile` (of GCN only), sorted CSR matrices
  (`benchmarks/speed/rivals.py`: products of cuSPARSE and cuBLAS, normalisation done before, the cheaper
  order), the same recorded as a CUDA graph, and our own compiled FP32, whose kernels are simple. Speed-ups
  refer to it.
  TF32 and bf16 products are told apart: they round, as ours do.
- Our models look for NaN and infinity in every call, and wait for the answer; the others do not look.
- Float contestants agree within 1e-3 (TF32: 1e-2, bf16: 5e-2) of the largest score.
"""


def document(results: Sequence[Result], checks: Sequence[str]) -> str:
    """The Markdown document.

    Args:
        results: What was measured.
        checks: A line for each comparison with the integer reference.
    """
    lines = [INTRODUCTION, *_about(results), ""]
    for graph in dict.fromkeys(result["job"]["graph"] for result in results):
        lines += _section(graph, [result for result in results if result["job"]["graph"] == graph])
    lines += [
        "## Targets that are missed",
        "",
        *(f"- {line}" for line in missed_targets(results) or ["none"]),
    ]
    lines += ["", "## Not measured", "", *(f"- {line}" for line in _missing(results) or ["none"]), ""]
    lines += ["## Compared with the integer reference", "", "All scores, on this card:", ""]
    return "\n".join([*lines, *(f"- {line}" for line in checks or ["see above"])]) + "\n"


def missed_targets(results: Sequence[Result]) -> list[str]:
    """A line for each rival that INT8 does not clearly beat, on every graph but Cora."""
    found = []
    for result in results:
        job, rows = result["job"], result["result"]["rows"]
        ours = rows[OWN[8]].get("median")
        for name in (EAGER, SORTED, REPLAYED):
            theirs = rows[name].get("median")
            if job["graph"] != "Cora" and ours and theirs and theirs < CLEARLY * ours:
                where = f"{MODELS[job['model']].title}, {job['graph']}"
                found.append(f"{where}: INT8 {theirs / ours:.2f}x of {name}, wanted {CLEARLY}x")
    return found


def _missing(results: Sequence[Result]) -> list[str]:
    known = {(result["job"]["graph"], result["job"]["model"]) for result in results}
    return [
        f"{MODELS[model].title}, {graph}"
        for graph in GRAPHS
        for model in MODELS_ON_GPU
        if (graph, model) not in known
    ]


def _about(results: Sequence[Result]) -> list[str]:
    cards = sorted({f"{r['result']['gpu']}, CUDA {r['result']['cuda']}, {r['machine']}" for r in results})
    versions = sorted({", ".join(f"{k} {v}" for k, v in r["versions"].items()) for r in results})
    states = len({result["result"]["code"] for result in results})
    return [f"Card: {'; '.join(cards)}. {'; '.join(versions)}. Rows come from {states} state(s) of the code."]


def _section(graph: str, results: Sequence[Result]) -> list[str]:
    first = results[0]["result"]
    summary, details, kernels = [], [], []
    for result in results:
        rows, title = result["result"]["rows"], MODELS[result["job"]["model"]].title
        name, best = strongest(rows, FLOAT_RIVALS)
        ours = [rows[OWN[bits]].get("median") for bits in WIDTHS]
        summary.append(
            [
                title,
                f"{best:.3f} ({name})",
                *(speedup_cell(value, best, digits=3) for value in ours),
                " / ".join(ratio_cell(rows[SORTED].get("median"), value) for value in ours),
                " / ".join(ratio_cell(rows[EAGER].get("median"), value) for value in ours),
            ]
        )
        details.append([title, *(measured_cell(rows[contestant], digits=3) for contestant in CONTESTANTS)])
        kernels.append([title, *(_kernels(rows[OWN[bits]]) for bits in WIDTHS)])
    widths = [OWN[bits] for bits in WIDTHS]
    heading = ["model", "strongest FP32", *widths, f"{' / '.join(widths)} over torch CSR", "over eager PyG"]
    checked = " Every integer row equals the integer reference in every bit." if first["checked"] else ""
    return [
        f"## {graph}",
        "",
        f"{first['nodes']:,} nodes, {first['edges']:,} edges, {first['features']:,} features.{checked}",
        "",
        *grid(heading, summary),
        "",
        *grid(["model", *CONTESTANTS], details),
        "",
        "Launches, and the microseconds of all kernels, each repeated by itself:",
        "",
        *grid(["model", *widths], kernels),
        "",
    ]


def _kernels(row: dict[str, Any]) -> str:
    times = row.get("kernels", [])
    return f"{len(times)}, {1e3 * sum(ms for _, ms in times):.0f}"
