"""From rows to totals, targets and a Markdown table."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from benchmarks.coverage.catalogue import CASES, PARTS, absent
from benchmarks.coverage.measure import COLUMNS, COMPILE_COLUMNS, MOST, NEAR
from benchmarks.report import grid

if TYPE_CHECKING:
    from collections.abc import Mapping

    from benchmarks.coverage.cases import Case

Row = dict[str, Any]
EXACT_COLUMNS = ("traced", "second", "train", "names", "roles")
"""A model counts as traced where all of these hold."""


@dataclass(frozen=True)
class Target:
    """What the table promises of one part.

    Attributes:
        part: Part of the table; only its counted cases count.
        what: ``traced``, ``quantized``, ``compiled`` or ``exported``.
        wanted: How many at least, None for all.
    """

    part: str
    what: str
    wanted: int | None


TARGETS = (
    Target("conv", "traced", 63),
    Target("conv", "quantized", 63),
    Target("conv", "compiled", 58),
    Target("conv", "exported", 55),
    Target("model", "traced", 31),
    Target("model", "quantized", 31),
    Target("model", "compiled", 28),
    Target("model", "exported", 26),
    Target("user", "traced", None),
    Target("user", "quantized", None),
)


def holds(row: Row, what: str) -> bool:
    """Whether a row counts as ``traced``, ``quantized``, ``compiled`` or ``exported``."""
    cells = row["cells"]
    columns = {
        "traced": EXACT_COLUMNS,
        "quantized": ("quantized",),
        "compiled": ("compiled", "exact", "lowered", "trained"),
        "exported": ("onnx",),
    }[what]
    return all(cells.get(column) for column in columns)


def missed_targets(rows: Mapping[str, Row], with_compile: bool) -> list[str]:
    """Every target that is not reached, in words."""
    problems = []
    for target in TARGETS:
        if target.what in {"compiled", "exported"} and not with_compile:
            continue
        counted = [rows[c.key] for c in CASES if c.counted and c.part == target.part and c.key in rows]
        running = [row for row in counted if row["cells"].get("eager")]
        reached = sum(holds(row, target.what) for row in running)
        wanted = len(running) if target.wanted is None else target.wanted
        if reached < wanted:
            problems.append(f"{target.part}: {reached} of {len(running)} {target.what}, wanted {wanted}")
        if target.what == "compiled":
            problems += [
                f"{row['key']} is not compiled, and not refused by name: {row['reasons'].get('compiled')}"
                for row in running
                if row["cells"].get("quantized") and not row["cells"].get("compiled") and not row["refused"]
            ]
    problems += [f"{row['key']} {row['reasons']['row']}" for row in rows.values() if "row" in row["reasons"]]
    return problems


def totals(rows: Mapping[str, Row]) -> list[list[str]]:
    """One line per part, in counts and per cent of what runs eagerly here."""
    lines = []
    for part, title in PARTS.items():
        cases = [case for case in CASES if case.part == part]
        lines.append(_total(title, cases, rows))
        counted = [case for case in cases if case.counted]
        if 0 < len(counted) < len(cases):
            lines.append(_total(f"{title}: those that targets count", counted, rows))
    lines.append(_total("**all**", list(CASES), rows))
    return lines


def _total(title: str, cases: list[Case], rows: Mapping[str, Row]) -> list[str]:
    running = [rows[c.key]["cells"] for c in cases if c.key in rows and rows[c.key]["cells"].get("eager")]
    line = [title, str(len(cases)), str(len(running))]
    for column in list(COLUMNS)[1:]:
        reached = sum(bool(cells.get(column)) for cells in running)
        share = f" ({100 * reached / len(running):.0f} %)" if running else ""
        line.append(f"{reached}{share}")
    return line


def markdown(rows: Mapping[str, Row], about: Mapping[str, Any]) -> str:
    """The whole document."""
    lines = [
        "# What is covered",
        "",
        "Written by `python -m benchmarks.coverage`; do not edit by hand. One row per configuration of what",
        "`torch_geometric.nn` exports (found by introspection), of models as users write them, and of the",
        "models of PyG's published examples, re-stated in small sizes. Weights are random.",
        "",
        *(f"- **{title}**: {MEANING[column]}" for column, title in COLUMNS.items()),
        "",
        "Graphs: 20 nodes and 64 edges to trace with; 33 and 150 as another graph; hard ones are a hub,",
        "self-loops only, mostly isolated nodes, no edges, where the model itself runs on them.",
        "A dash: not reached. Versions: " + _versions(about),
        "",
        "## Totals",
        "",
        *grid(["part", "rows", *COLUMNS.values()], totals(rows)),
        "",
        "Per cent are of what runs eagerly here.",
    ]
    problems = missed_targets(rows, with_compile=_any_compiled(rows))
    if problems:
        lines += ["", "Targets that are missed:", "", *(f"- {_cell(problem)}" for problem in problems)]
    for part, title in PARTS.items():
        lines += ["", f"## {title}", "", *_part(part, rows)]
    return "\n".join(lines) + "\n"


MEANING = {
    "eager": "the model itself runs, in eval and train mode; otherwise the reason is a missing library.",
    "traced": "`trace` accepts it, and the result equals it on the example.",
    "second": "in eval mode, on a graph of another size.",
    "hard": "in eval mode, on the hard graphs.",
    "train": "with the same seed: outputs, all gradients and buffers, on two graphs.",
    "names": "parameters that learn keep their qualified names.",
    "roles": "every call of `message`, `aggregate`, `update`, `edge_update` of every layer is marked.",
    "quantized": "`convert(bits=4)` and `calibrate`; every range and every weight receives a gradient.",
    "lowered": "`compile(convert(bits=32), target='reference')` equals PyG within 1e-4 on all graphs.",
    "compiled": "`compile` makes machine code of the INT4 model.",
    "exact": "compared with `target='reference'` on all graphs.",
    "trained": f"machine code against the INT4 module in torch that is trained: {MOST:.0%} of the numbers "
    f"within {NEAR:.0%} of the largest, on the example and another graph (a code at the edge of its cell may "
    "go to the other side).",
    "onnx": "`export_onnx` in FP32 and INT4; ONNX Runtime computes what `target='reference'` does on all "
    f"graphs, in FP32 within 1e-5, in INT4 {MOST:.0%} of the numbers within {NEAR:.0%} of the largest.",
}


def _part(part: str, rows: Mapping[str, Row]) -> list[str]:
    titles = [title for column, title in COLUMNS.items() if column != "eager"]
    lines = []
    for case in (case for case in CASES if case.part == part):
        row = rows.get(case.key)
        name = f"{case.name} †" if case.counted else case.name
        if row is None:
            lines.append([name, *["–"] * len(titles), "not run"])
            continue
        cells = row["cells"]
        marks = [_mark(cells.get(column)) for column in COLUMNS if column != "eager"]
        lines.append([name, *marks, _cell(reason(row))])
    lines += [[item.name, *["–"] * len(titles), item.reason] for item in absent() if item.part == part]
    note = ["", "† counted by the targets."] if any(c.counted for c in CASES if c.part == part) else []
    return [*grid(["row", *titles, "why not"], lines), *note]


def reason(row: Row) -> str:
    """Why a row is not all yes, in one line."""
    reasons = row["reasons"]
    if "row" in reasons:
        return str(reasons["row"])
    if "eager" in reasons:
        return f"does not run here: {_first_line(reasons['eager'])}"
    shown = dict.fromkeys(_first_line(text) for text in reasons.values())
    return "; ".join(shown)


def _first_line(text: str) -> str:
    line = text.partition("\n")[0]
    return line if len(line) <= 220 else line[:217] + "..."


def _mark(value: bool | None) -> str:
    return "–" if value is None else "yes" if value else "**no**"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


def _versions(about: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in about.get("versions", {}).items())
    codes = Counter(about.get("code", {}).values())
    states = "" if len(codes) < 2 else f" Rows come from {len(codes)} states of the code."
    return f"{versions}; seed {about.get('seed')}; {about.get('machine')}.{states}"


def _any_compiled(rows: Mapping[str, Row]) -> bool:
    return any(row["with_compile"] for row in rows.values())


def failures(rows: Mapping[str, Row]) -> list[str]:
    """One line per row that runs eagerly and is not all yes."""
    columns = [c for c in COLUMNS if c not in COMPILE_COLUMNS]
    lines = []
    for row in rows.values():
        wanted = list(COLUMNS) if row["with_compile"] else columns
        missing = [c for c in wanted if not row["cells"].get(c)]
        if missing and row["cells"].get("eager", "row" in row["reasons"]):
            lines.append(f"{row['key']}: not {', '.join(missing)}: {reason(row)}")
    return lines
