"""From results to a Markdown document and a plot."""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Any

from benchmarks.accuracy.models import MODELS
from benchmarks.accuracy.runs import OWN_METHODS
from benchmarks.report import grid, save_svg
from gnnquant.config import FLOAT_BITS

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

Result = dict[str, Any]

TARGETS: dict[tuple[str, str], tuple[float, float, float, float]] = {
    # FP32 at least; then INT8, INT4, INT2: at least, where below 50 relative to FP32.
    ("Cora", "gcn"): (81.5, 0.0, 0.0, 80.5),
    ("Cora", "gat"): (82.5, -0.2, -0.5, 80.0),
    ("Cora", "gin"): (77.5, -0.2, -0.7, 76.0),
    ("Cora", "sage"): (80.5, -0.2, -0.5, 79.0),
    ("Cora", "smp"): (83.3, 83.3, 83.3, 82.0),
    ("Cora", "smp64"): (83.0, 83.0, 82.5, 81.0),
    ("PubMed", "gcn"): (78.5, 0.0, 0.0, 78.0),
    ("PubMed", "smp"): (79.8, 0.0, 0.0, 79.3),
}
"""Test accuracy in per cent, mean of ten seeds, fine-tuned."""
CALIBRATED = {8: -0.5, 4: -2.0}
"""Width -> what calibration alone may lose, in points, with GCN, SAGE and GIN."""


class Cells:
    """Test accuracies in per cent by (dataset, model, method, bits), in order of seeds."""

    def __init__(self, results: Iterable[Result]) -> None:
        self.values: dict[tuple[str, str, str, int], list[float]] = defaultdict(list)
        for item in sorted(results, key=lambda item: item["job"]["seed"]):
            job = item["job"]
            key = job["dataset"], job["model"], job["method"], job["bits"]
            self.values[key].append(100 * item["result"]["test"])

    def datasets(self) -> list[str]:
        """In order of appearance."""
        return list(dict.fromkeys(key[0] for key in self.values))

    def models(self, dataset: str, method: str) -> list[str]:
        """Those with results, in the order of ``MODELS``."""
        known = {key[1] for key in self.values if key[0] == dataset and key[2] == method}
        return [model for model in MODELS if model in known]

    def get(self, dataset: str, model: str, method: str, bits: int) -> list[float]:
        """One accuracy per seed; empty where there is none."""
        return self.values.get((dataset, model, method, bits), [])


def shown(values: Sequence[float]) -> str:
    """Mean and standard deviation over seeds."""
    if not values:
        return "–"
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.2f} ± {spread:.2f}"


def markdown(results: Sequence[Result]) -> str:
    """The tables, without the text around them."""
    cells = Cells(results)
    widths = sorted({key[3] for key in cells.values if key[2] != "fp32"}, reverse=True)
    titles = ["model", "seeds", "FP32", *(f"INT{bits}" for bits in widths)]
    parts: list[str] = []
    for dataset in cells.datasets():
        for method in OWN_METHODS:
            models = cells.models(dataset, method)
            if not models:
                continue
            lines = []
            for model in models:
                columns = [cells.get(dataset, model, method, bits) for bits in widths]
                float_values = cells.get(dataset, model, "fp32", FLOAT_BITS)
                seeds = str(min(map(len, [float_values, *filter(None, columns)])))
                lines.append([MODELS[model].title, seeds, shown(float_values), *map(shown, columns)])
            parts += ["", f"### {dataset}, {method}", "", *grid(titles, lines)]
        parts += _rivals(cells, dataset, widths)
    return "\n".join(parts)


def _rivals(cells: Cells, dataset: str, widths: Sequence[int]) -> list[str]:
    methods = [key[2] for key in cells.values if key[0] == dataset and key[2] not in ("fp32", *OWN_METHODS)]
    lines = []
    for model in MODELS:
        for method in ("fine-tuned", *dict.fromkeys(methods)):
            columns = [cells.get(dataset, model, method, bits) for bits in widths]
            if any(columns) and methods:
                name = "**ours**" if method == "fine-tuned" else method
                seeds = min(len(column) for column in columns if column)
                lines.append([MODELS[model].title, name, str(seeds), *map(shown, columns)])
    if not lines:
        return []
    heading = ["model", "method", "seeds", *(f"INT{b}" for b in widths)]
    return ["", f"### {dataset}, rivals", "", *grid(heading, lines)]


def missed_targets(results: Sequence[Result]) -> list[str]:
    """What is below its target, in words."""
    cells = Cells(results)
    wanted: list[tuple[str, str, str, int, float]] = []
    for (dataset, model), (least, *others) in TARGETS.items():
        wanted.append((dataset, model, "fp32", FLOAT_BITS, least))
        wanted += [(dataset, model, "fine-tuned", b, w) for b, w in zip((8, 4, 2), others, strict=True)]
    for dataset in ("Cora", "PubMed"):
        for model in ("gcn", "sage", "gin"):
            wanted += [(dataset, model, "calibrated", bits, loss) for bits, loss in CALIBRATED.items()]
    missed = []
    for dataset, model, method, bits, bound in wanted:
        values = cells.get(dataset, model, method, bits)
        base = cells.get(dataset, model, "fp32", FLOAT_BITS)
        if not values or not base:
            continue
        # Of the same seeds, while not all of them are done.
        limit = bound if bound > 50 else statistics.mean(base[: len(values)]) + bound
        if statistics.mean(values) < limit:
            what = "" if method in ("fp32", "fine-tuned") else f" {method}"
            width = "FP32" if bits == FLOAT_BITS else f"INT{bits}"
            title = f"{dataset} {MODELS[model].title}{what}"
            missed.append(f"{title}: {width} {statistics.mean(values):.2f}, wanted {limit:.2f}")
    return missed


def better_rivals(results: Sequence[Result]) -> list[str]:
    """Where a rival is ahead by more than a standard error of the difference by seed, in words."""
    cells = Cells(results)
    lines = []
    for dataset, model, method, bits in sorted(cells.values):
        if method in ("fp32", *OWN_METHODS):
            continue
        theirs = cells.get(dataset, model, method, bits)
        ours = cells.get(dataset, model, "fine-tuned", bits)
        count = min(len(ours), len(theirs))
        if count < 2:
            continue
        ahead = [b - a for a, b in zip(ours[:count], theirs[:count], strict=True)]
        mean, error = statistics.mean(ahead), statistics.stdev(ahead) / count**0.5
        if mean > error:
            title = f"{dataset} {MODELS[model].title}, INT{bits}"
            lines.append(f"{title}: {method} by {mean:.2f} ± {error:.2f} points ({count} seeds)")
    return lines


def document(results: Sequence[Result]) -> str:
    """docs/accuracy.md."""
    versions = Counter(
        ", ".join(f"{name} {number}" for name, number in item["versions"].items()) for item in results
    )
    machines = Counter(item["machine"] for item in results)
    codes = Counter(item["result"]["code"] for item in results)
    lines = [
        "# Accuracy",
        "",
        "Written by `python -m benchmarks.accuracy`; do not edit by hand. Test accuracy in per cent on the",
        "public split, mean and standard deviation over seeds. All seeds of a row have the same settings.",
        "",
        "- **All stages are quantized** to the width of the column: both operands of every matrix product,",
        "  every message, every aggregate that feeds another operation. Edge weights and values kept for a",
        "  residual, a teleport or a concatenation take 8 bits at every width. The last scores are scaled",
        "  int32 accumulators; under *quantized scores* they are rounded to the width too.",
        "- *fine-tuned*: from the FP32 model of the same seed, with it as the teacher (100 epochs, the",
        "  defaults of `finetune`). *calibrated*: ranges from the features alone: no labels, no gradient.",
        "  *tensor scales*: fine-tuned with one scale for each activation, as in speed.md, where otherwise",
        "  each of its rows has one.",
        "- The state is the one with the best validation accuracy; test labels are read once, at the end.",
        "- **Ours is measured on the compiled artifact**: machine code whose scores equal the integer",
        "  reference in every bit on the whole graph (a run where they differ fails). Rivals exist as fake",
        "  quantization only; their sites, teacher, epochs and optimizer are ours.",
        "",
        f"Versions: {'; '.join(versions)}. Machine: {'; '.join(machines)}."
        + (f" Rows come from {len(codes)} states of the code." if len(codes) > 1 else ""),
        "",
        "## Settings",
        "",
        *grid(
            ["model", "FP32 epochs", "learning rate", "weight decay", "dropout"],
            [
                [m.title, *map(str, (t.epochs, t.lr, t.weight_decay, t.dropout))]
                for m in MODELS.values()
                for t in (m.training,)
            ],
        ),
        "",
        "## Results",
        markdown(results),
    ]
    missed = missed_targets(results)
    if missed:
        lines += ["", "## Targets that are missed", "", *(f"- {line}" for line in missed)]
    better = better_rivals(results)
    if better:
        lines += [
            "",
            "## Rivals that are ahead",
            "",
            "By more than a standard error of the difference by seed:",
        ]
        lines += ["", *(f"- {line}" for line in better)]
    return "\n".join(lines) + "\n"


def plot(results: Sequence[Result], folder: Path) -> list[Path]:
    """One plot per dataset: accuracy of every model by width, ours and the rivals."""
    from matplotlib.figure import Figure

    cells = Cells(results)
    written = []
    for dataset in cells.datasets():
        models = cells.models(dataset, "fine-tuned")
        if not models:
            continue
        figure = Figure(figsize=(2.6 * len(models), 3), layout="constrained")
        axes = figure.subplots(1, len(models), squeeze=False, sharey=True)
        for axis, model in zip(axes[0], models, strict=True):
            methods = dict.fromkeys(key[2] for key in cells.values if key[:2] == (dataset, model))
            for method in methods:
                points = [
                    (bits, values)
                    for bits in (8, 4, 2)
                    if method != "fp32" and (values := cells.get(dataset, model, method, bits))
                ]
                if points:
                    axis.errorbar(
                        [f"INT{bits}" for bits, _ in points],
                        [statistics.mean(values) for _, values in points],
                        [statistics.stdev(values) if len(values) > 1 else 0 for _, values in points],
                        label=method,
                        marker="o",
                        markersize=3,
                        linewidth=2 if method in OWN_METHODS else 1,
                        capsize=2,
                    )
            float_values = cells.get(dataset, model, "fp32", FLOAT_BITS)
            if float_values:
                axis.axhline(statistics.mean(float_values), color="black", linestyle=":", linewidth=1)
            axis.set_title(MODELS[model].title, fontsize=9)
        axes[0][0].set_ylabel("test accuracy, %")
        axes[0][-1].legend(fontsize=6)
        path = folder / f"accuracy-{dataset}.svg"
        save_svg(figure, path)
        written.append(path)
    return written
