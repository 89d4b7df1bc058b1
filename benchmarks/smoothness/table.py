"""The document and its plots, from the results alone."""

from __future__ import annotations

import inspect
import statistics
from collections import defaultdict
from typing import TYPE_CHECKING, Any

from benchmarks.report import grid
from benchmarks.smoothness import errors
from benchmarks.smoothness.models import DEPTHS, PROPAGATIONS, Schedule
from benchmarks.smoothness.plots import Line, Panel, write
from benchmarks.smoothness.runs import WIDTHS
from gnnquant.config import FLOAT_BITS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    Result = dict[str, Any]

BITS = (FLOAT_BITS, *WIDTHS)
TITLES = {FLOAT_BITS: "FP32", **{bits: f"INT{bits}" for bits in WIDTHS}}
ERROR_STEPS = (0, 1, 2, 4, 8, 16, 32, 64)
COMPARED = ("plain", "appnp", "smp-descent")
"""Propagations in the error table and plot; the other updates have no bound that stays."""

INTRODUCTION = """\
# Depth, smoothness and quantization

Written by `python -m benchmarks.smoothness` from one JSON file per run; do not edit. Accuracies are those of
the test nodes (public split) at the epoch with the best validation accuracy, in percent, mean ± standard
deviation over the seeds that are done; "(1)": one seed. Every width is fine-tuned from the FP32 model of its
seed, with that model as teacher, and is measured as the fake-quantized model. "Constrained" is fine-tuned
with `smoothness=Smoothness()`, from the same model for the same number of epochs; stacks of GCN layers are
fine-tuned in FP32 too, so that the column compares the constraint alone. "Energy" is the Dirichlet energy of
the class scores, `1 - mean cosine similarity of neighbours` (`gnnquant.smoothness.dirichlet_energy`): 0 when
neighbours are all alike.
"""

UPDATE_NOTE = """\
The three updates of `SmoothPropagation` differ in what the multiplier does with the change D of a step:

- `descent`: `H' - 2 eta lam L D`, and `lam` rises while `tr(D^T L D)` exceeds its bound. This is descent on
  the constraint, and a contraction: `lam` is kept below `mu / (2 eta (1 + 2 mu))`.
- `laplacian`: `H' + 2 eta lam L D`, and `lam` rises while the bound *holds*. This is the derivative of the
  Lagrangian `lam (budget |E| - s^2 - tr(D^T L D))` as published. As a constraint its sign is the wrong way
  round: with `lam >= 0` it makes D rougher, and nothing pushes back when the bound is broken.
- `adjacency`: `H' + 2 eta lam A~ D`, what the authors' code does: the smooth part of D is taken further.

All three have APPNP's limit `(I - (1 - eta) A~)^-1 eta H_0` as K grows, because D vanishes there: with many
steps they can differ from APPNP only by how fast they come near it, or by diverging.
"""


def document(results: Sequence[Result], asked: int, plots: str) -> str:
    """The Markdown document.

    Args:
        results: What ``result_of`` gives, for all runs that are done.
        asked: Number of runs that were asked for.
        plots: Folder of the plots, relative to the document.
    """
    parts = [INTRODUCTION, _about(results, asked)]
    for dataset in _datasets(results):
        own = [result for result in results if result["job"]["dataset"] == dataset]
        parts += [
            f"## {dataset}: stacks of GCN layers",
            _accuracy_table(own, ["gcn"], "layers"),
            _verdict(own, "gcn", "gcn constrained", "The constraint"),
            f"![Accuracy over depth]({plots}/smoothness-{dataset}-gcn.svg)\n",
            f"## {dataset}: K steps of propagation",
            _accuracy_table(own, list(PROPAGATIONS), "K"),
            f"![Accuracy over K]({plots}/smoothness-{dataset}-propagation.svg)\n",
            f"## {dataset}: the updates of SMP",
            UPDATE_NOTE,
            *(
                _verdict(own, "appnp", name, f"`{name.removeprefix('smp-')}` beside APPNP")
                for name in PROPAGATIONS
                if name.startswith("smp")
            ),
            _multiplier_table(own),
            f"## {dataset}: the error of quantized propagation",
            _error_table(own),
            f"![Relative error over steps]({plots}/smoothness-{dataset}-errors.svg)\n",
        ]
    parts += [
        "## The bound\n",
        (inspect.getdoc(errors) or "").partition("\n\n")[2].replace("::\n", ":\n") + "\n",
    ]
    return "\n".join(part for part in parts if part)


def plot(results: Sequence[Result], folder: Path) -> None:
    """The plots of ``document``."""
    for dataset in _datasets(results):
        own = [result for result in results if result["job"]["dataset"] == dataset]
        rows = _rows(own)
        write(
            folder / f"smoothness-{dataset}-gcn.svg", _over_depth(rows, ["gcn", "gcn constrained"], "layers")
        )
        write(folder / f"smoothness-{dataset}-propagation.svg", _over_depth(rows, list(PROPAGATIONS), "K"))
        write(folder / f"smoothness-{dataset}-errors.svg", [_error_panel(own, bits) for bits in WIDTHS])


def _datasets(results: Iterable[Result]) -> list[str]:
    return list(dict.fromkeys(result["job"]["dataset"] for result in results))


def _about(results: Sequence[Result], asked: int) -> str:
    schedules = [Schedule(**result["job"]["schedule"]) for result in results]
    seeds = sorted({result["job"]["seed"] for result in results})
    versions = sorted({", ".join(f"{k} {v}" for k, v in result["versions"].items()) for result in results})
    codes = {result["result"]["code"] for result in results}
    minutes = sum(result["seconds"] for result in results) / 60
    epochs = ", or ".join(
        f"{s.epochs} epochs at {s.lr} in FP32 and {s.tuning_epochs} at {s.tuning_lr} at each width"
        for s in dict.fromkeys(schedules)
    )
    stopped = [
        f"- {job['model']}, depth {job['depth']}, seed {job['seed']}: {result['result']['stopped']}"
        for result in results
        if "stopped" in result["result"]
        for job in [result["job"]]
    ]
    if stopped:
        stopped = ["\nRuns that ended early:\n", *stopped, ""]
    return (
        f"{len(results)} of {asked} runs are done (seeds {', '.join(map(str, seeds))}; {epochs}; "
        f"{minutes:.0f} minutes of one core; {'; '.join(versions)}; {len(codes)} state(s) of the code).\n"
        + "\n".join(stopped)
    )


Rows = dict[tuple[str, int, int], dict[int, dict[str, Any]]]
"""(model, depth, bits) -> seed -> row."""


def _rows(results: Iterable[Result]) -> Rows:
    rows: Rows = defaultdict(dict)
    for result in results:
        job = result["job"]
        for row in result["result"]["rows"]:
            name = f"{job['model']} constrained" if row["constrained"] else job["model"]
            rows[name, job["depth"], row["bits"]][job["seed"]] = row
    return rows


def _table(titles: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    return "\n".join(grid(titles, lines)) + "\n"


def _spread(values: Sequence[float], form: Callable[[float], str]) -> str:
    if not values:
        return "-"
    mean = form(statistics.fmean(values))
    return f"{mean} ± {form(statistics.stdev(values))}" if len(values) > 1 else f"{mean} (1)"


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def _accuracy_table(results: Sequence[Result], models: Sequence[str], depth_name: str) -> str:
    rows = _rows(results)
    lines = []
    for depth in DEPTHS[models[0]]:
        for name in dict.fromkeys(key[0] for key in sorted(rows, key=lambda key: _order(key[0]))):
            if name.removesuffix(" constrained") not in models or not rows[name, depth, FLOAT_BITS]:
                continue
            cells = [list(rows[name, depth, bits].values()) for bits in BITS]
            accuracies = [_spread([row["test"] for row in cell], _percent) for cell in cells]
            energies = [_spread([row["energy"] for row in cell], "{:.2g}".format) for cell in cells]
            lines.append(
                [str(depth), name, *accuracies, energies[0].split(" ")[0], energies[-1].split(" ")[0]]
            )
    header = [depth_name, "model", *TITLES.values(), "energy FP32", "energy INT2"]
    return _table(header, lines)


def _order(name: str) -> tuple[int, str]:
    names = ["gcn", *PROPAGATIONS]
    return names.index(name.removesuffix(" constrained")), name


def _verdict(results: Sequence[Result], base: str, other: str, what: str) -> str:
    """Where ``other`` beats ``base``, seed by seed, and where not."""
    rows = _rows(results)
    found: dict[str, list[str]] = {"helps": [], "does not": [], "harms": [], "one seed": []}
    for (name, depth, bits), by_seed in sorted(rows.items(), key=lambda item: (-item[0][2], item[0][1])):
        if name != other:
            continue
        partner = rows.get((base, depth, bits), {})
        gains = [100 * (by_seed[seed]["test"] - partner[seed]["test"]) for seed in by_seed if seed in partner]
        if not gains:
            continue
        mean = statistics.fmean(gains)
        place = f"{TITLES[bits]} depth {depth}"
        if len(gains) == 1:
            found["one seed"].append(f"{place} ({mean:+.1f})")
            continue
        error = statistics.stdev(gains) / len(gains) ** 0.5
        kind = "does not" if abs(mean) <= 2 * error or abs(mean) < 0.05 else "helps" if mean > 0 else "harms"
        found[kind].append(f"{place} ({mean:+.1f} ± {error:.1f})")
    if not any(found.values()):
        return ""
    lines = [f"{what}, difference in points (mean ± standard error of the paired difference):\n"]
    # Without a second seed nothing can be said, and it is not.
    for kind, text in (
        ("helps", "helps by more than two standard errors"),
        ("harms", "harms by more than two standard errors"),
        ("does not", "makes no difference that these seeds show"),
        ("one seed", "one seed only, which shows nothing by itself"),
    ):
        if found[kind] or kind != "one seed":
            lines.append(f"- {text}: {', '.join(found[kind]) or 'nowhere'}.")
    return "\n".join(lines) + "\n"


def _multiplier_table(results: Sequence[Result]) -> str:
    """Multipliers as training leaves them, and how many steps keep the bound."""
    rows = _rows(results)
    lines = []
    for (name, depth, bits), by_seed in sorted(rows.items(), key=lambda item: (item[0][1], -item[0][2])):
        if not name.startswith("smp") or bits not in (FLOAT_BITS, 2):
            continue
        layers = [layer for row in by_seed.values() for layer in row["layers"]]
        multipliers = [layer["multiplier"] for layer in layers]
        held = statistics.fmean(layer["held"] for layer in layers)
        first = statistics.fmean(row["layers"][0]["multiplier"] for row in by_seed.values())
        cells = [f"{first:.3g}", f"{statistics.fmean(multipliers):.3g}", f"{100 * held:.0f} %"]
        lines.append([str(depth), name, TITLES[bits], *cells])
    if not lines:
        return ""
    header = ["K", "model", "", "multiplier of step 1", "mean over steps", "steps within the bound"]
    return _table(header, lines)


def _error_curves(results: Sequence[Result], bits: int, state: str, name: str) -> dict[str, list[float]]:
    """The mean over seeds of ``measured`` and ``bound``, at the largest depth that is there."""
    own = [result for result in results if result["job"]["model"] == name]
    if not own:
        return {}
    depth = max(result["job"]["depth"] for result in own)
    rows = [
        row["errors"][state]
        for result in own
        if result["job"]["depth"] == depth
        for row in result["result"]["rows"]
        if row["bits"] == bits
    ]
    return {
        kind: [statistics.fmean(values) for values in zip(*(row[kind] for row in rows), strict=True)]
        for kind in ("measured", "bound")
    }


def _error_table(results: Sequence[Result]) -> str:
    lines = []
    for bits in WIDTHS:
        for state in ("calibrated", "fine-tuned"):
            for name in COMPARED:
                curves = _error_curves(results, bits, state, name)
                if not curves:
                    continue
                for kind, values in curves.items():
                    cells = [f"{values[k]:.3g}" if k < len(values) else "-" for k in ERROR_STEPS]
                    lines.append([TITLES[bits], state, name, kind, *cells])
    text = (
        "Relative error `|H_k quantized - H_k exact| / |H_k exact|` after k steps, for the model with the "
        "most steps, with the same weights on both sides, and the bound that is derived below from the "
        "scales. Means over seeds.\n\n"
    )
    header = ["", "model is", "propagation", "", *(f"k = {k}" for k in ERROR_STEPS)]
    return text + _table(header, lines)


def _error_panel(results: Sequence[Result], bits: int) -> Panel:
    lines = []
    for colour, name in enumerate(COMPARED):
        curves = _error_curves(results, bits, "fine-tuned", name)
        for kind, values in curves.items():
            points = [(float(k), value) for k, value in enumerate(values)]
            lines.append(Line(f"{name}, {kind}", points, colour, dashed=kind == "bound"))
    return Panel(TITLES[bits], lines, "step k", "relative error", log_y=True)


def _over_depth(rows: Rows, names: Sequence[str], depth_name: str) -> list[Panel]:
    panels = []
    for bits in (FLOAT_BITS, 4, 2):
        lines = []
        for colour, name in enumerate(names):
            points = [
                (float(depth), 100 * statistics.fmean(row["test"] for row in by_seed.values()))
                for (other, depth, width), by_seed in sorted(rows.items())
                if other == name and width == bits and by_seed
            ]
            lines.append(Line(name, points, colour))
        panels.append(Panel(TITLES[bits], lines, depth_name, "accuracy", log_x=True))
    energy = [
        Line(
            name,
            [
                (float(depth), statistics.fmean(row["energy"] for row in by_seed.values()))
                for (other, depth, width), by_seed in sorted(rows.items())
                if other == name and width == FLOAT_BITS and by_seed
            ],
            colour,
        )
        for colour, name in enumerate(names)
    ]
    return [*panels, Panel("FP32", energy, depth_name, "energy of the scores", log_x=True, log_y=True)]
