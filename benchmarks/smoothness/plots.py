"""Line charts side by side, with one legend."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmarks.report import save_svg

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#777777", "#e69f00")
"""Told apart by the colour-blind too (Okabe and Ito, 2008)."""


@dataclass(frozen=True)
class Line:
    """One line of a chart.

    Attributes:
        label: In the legend, where lines with the same label share an entry.
        points: (x, y); points that the axes cannot show are left out.
        colour: Index into ``COLOURS``.
        dashed: Whether it is dashed.
    """

    label: str
    points: Sequence[tuple[float, float]]
    colour: int
    dashed: bool = False


@dataclass(frozen=True)
class Panel:
    """One chart.

    Attributes:
        title: Above it.
        lines: What it shows.
        x_label: Below it.
        y_label: Beside it.
        log_x: Logarithmic x axis (base 2).
        log_y: Logarithmic y axis (base 10).
    """

    title: str
    lines: Sequence[Line]
    x_label: str
    y_label: str
    log_x: bool = False
    log_y: bool = False


def write(path: Path, panels: Sequence[Panel]) -> None:
    """Write the panels as one SVG file."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import ScalarFormatter

    figure = Figure(figsize=(3 * len(panels), 3), layout="constrained")
    entries = {}
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        axes.set(title=panel.title, xlabel=panel.x_label, ylabel=panel.y_label)
        if panel.log_x:
            axes.set_xscale("log", base=2)
            axes.xaxis.set_major_formatter(ScalarFormatter())
        if panel.log_y:
            axes.set_yscale("log")
        axes.grid(color="#dddddd")
        for line in panel.lines:
            points = _shown(line.points, panel)
            style = "--" if line.dashed else "-"
            (drawn,) = axes.plot(
                [x for x, _ in points],
                [y for _, y in points],
                style,
                color=COLOURS[line.colour],
                label=line.label,
                marker="o" if len(points) == 1 else "",
            )
            entries[line.label] = drawn
    figure.legend(entries.values(), entries.keys(), loc="outside lower left", ncols=3, frameon=False)
    save_svg(figure, path)


def _shown(points: Sequence[tuple[float, float]], panel: Panel) -> list[tuple[float, float]]:
    """The points that the axes can show."""
    return [
        (x, y)
        for x, y in points
        if math.isfinite(x) and math.isfinite(y) and (x > 0 or not panel.log_x) and (y > 0 or not panel.log_y)
    ]
