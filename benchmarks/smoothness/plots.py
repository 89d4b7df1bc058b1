"""Line charts as SVG, written by hand: a few kilobytes each, and no plotting package is needed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#777777", "#e69f00")
"""Told apart by the colour-blind too (Okabe and Ito, 2008)."""
WIDTH, HEIGHT = 300, 220
LEFT, RIGHT, TOP, BOTTOM = 52, 10, 28, 36
LEGEND_LINE = 15


@dataclass(frozen=True)
class Line:
    """One line of a chart.

    Attributes:
        label: In the legend; lines with the same label and style share an entry.
        points: (x, y); points that are not finite are left out.
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
        y_label: In front of its title.
        log_x: Logarithmic x axis (base 2 ticks).
        log_y: Logarithmic y axis (base 10 ticks).
    """

    title: str
    lines: Sequence[Line]
    x_label: str
    y_label: str
    log_x: bool = False
    log_y: bool = False


def write(path: Path, panels: Sequence[Panel]) -> None:
    """Write the panels side by side, with one legend below."""
    entries = list(
        dict.fromkeys((line.label, line.colour, line.dashed) for panel in panels for line in panel.lines)
    )
    columns = max(len(panels) * WIDTH // 200, 1)
    height = HEIGHT + LEGEND_LINE * math.ceil(len(entries) / columns) + 8
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{len(panels) * WIDTH}" height="{height}">',
        "<style>text { font: 11px sans-serif }</style>",
        '<rect width="100%" height="100%" fill="white"/>',
    ]
    for index, panel in enumerate(panels):
        parts += [f'<g transform="translate({index * WIDTH} 0)">', *_panel(panel), "</g>"]
    for index, (label, colour, dashed) in enumerate(entries):
        x, y = 12 + index % columns * 200, HEIGHT + 8 + index // columns * LEGEND_LINE
        parts.append(_path([(x, y), (x + 24, y)], colour, dashed=dashed))
        parts.append(f'<text x="{x + 30}" y="{y + 4}">{escape(label)}</text>')
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([*parts, "</svg>", ""]), encoding="utf-8")


def _panel(panel: Panel) -> list[str]:
    points = [point for line in panel.lines for point in _finite(line.points, panel)]
    if not points:
        return [f'<text x="{LEFT}" y="{TOP}">{escape(panel.title)}: no results</text>']
    x_axis = _Axis([x for x, _ in points], LEFT, WIDTH - RIGHT, 2 if panel.log_x else 0)
    y_axis = _Axis([y for _, y in points], HEIGHT - BOTTOM, TOP, 10 if panel.log_y else 0)
    middle = (LEFT + WIDTH) / 2
    parts = [
        f'<text x="{LEFT}" y="16" font-weight="bold">{escape(panel.y_label)}: {escape(panel.title)}</text>',
        f'<text x="{middle}" y="{HEIGHT - 6}" text-anchor="middle">{escape(panel.x_label)}</text>',
    ]
    for value in x_axis.ticks():
        x = x_axis.at(value)
        parts.append(f'<path d="M{x:.1f} {TOP}V{HEIGHT - BOTTOM}" stroke="#ddd"/>')
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 14}" text-anchor="middle">{value:g}</text>')
    for value in y_axis.ticks():
        y = y_axis.at(value)
        parts.append(f'<path d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}" stroke="#ddd"/>')
        parts.append(f'<text x="{LEFT - 4}" y="{y + 4:.1f}" text-anchor="end">{value:g}</text>')
    for line in panel.lines:
        places = [(x_axis.at(x), y_axis.at(y)) for x, y in _finite(line.points, panel)]
        if places:
            parts.append(_path(places, line.colour, dashed=line.dashed))
    return parts


def _finite(points: Sequence[tuple[float, float]], panel: Panel) -> list[tuple[float, float]]:
    """The points that the axes can show."""
    return [
        (x, y)
        for x, y in points
        if math.isfinite(x) and math.isfinite(y) and (x > 0 or not panel.log_x) and (y > 0 or not panel.log_y)
    ]


def _path(places: Sequence[tuple[float, float]], colour: int, *, dashed: bool) -> str:
    steps = "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
    style = ' stroke-dasharray="5 3"' if dashed else ""
    return f'<path d="M{steps}" fill="none" stroke="{COLOURS[colour]}" stroke-width="1.6"{style}/>'


class _Axis:
    """From values to places on the page."""

    def __init__(self, values: Sequence[float], start: float, end: float, base: int) -> None:
        self._base = base
        low, high = min(values), max(values)
        if base == 10:
            low, high = 10 ** math.floor(math.log10(low)), 10 ** math.ceil(math.log10(high))
        if low == high:
            low, high = (low / 2, high * 2) if base else (low - 0.5, high + 0.5)
        self._low, self._high = low, high
        self._start, self._end = start, end

    def at(self, value: float) -> float:
        low, high = self._low, self._high
        if self._base:
            low, high, value = math.log(low), math.log(high), math.log(value)
        return self._start + (value - low) / (high - low) * (self._end - self._start)

    def ticks(self) -> list[float]:
        if self._base:
            first = math.ceil(math.log(self._low, self._base) - 1e-9)
            last = math.floor(math.log(self._high, self._base) + 1e-9)
            step = max(1, (last - first) // 5)
            return [float(self._base**power) for power in range(first, last + 1, step)]
        step = 10 ** math.floor(math.log10((self._high - self._low) / 2))
        while (self._high - self._low) / step > 6:
            step *= 2
        first = math.ceil(self._low / step)
        return [round(k * step, 10) for k in range(first, math.floor(self._high / step + 1e-9) + 1)]
