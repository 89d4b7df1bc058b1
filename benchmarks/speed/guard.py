"""A minute's check that nothing has become slower: ratios that can be compared between commits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from benchmarks.report import grid
from benchmarks.speed.models import MODELS
from benchmarks.speed.runs import OWN, SORTED, Run

if TYPE_CHECKING:
    from collections.abc import Sequence

Result = dict[str, Any]

RUNS = tuple(
    Run(model, graph, 1, seconds=4.0, messages=False)
    for model, graph in (("gcn64", "Cora"), ("gcn256", "PubMed"), ("appnp", "PubMed"))
)
"""A small row, one that is bound by products, one that is bound by memory."""
SLOWER = 1.2
"""Ratios of medians differ by up to a tenth from run to run on a machine that others use too."""
MORE_BYTES = 1.01


def compare(now: Sequence[Result], then: Sequence[Result]) -> tuple[str, list[str]]:
    """A table of both, and a line for each contestant of ours that has become slower or moves more.

    Time is in units of that of sorted float32 matrices in the same process (``rivals.SortedModel``), which
    is not our code; bytes are those of ``roofline.kernel_costs``, which do not depend on the machine.

    Args:
        now: Results of ``RUNS``.
        then: Results of the same runs at another commit, on the same machine.
    """
    before = {_name(result): result["result"]["rows"] for result in then}
    rows, worse = [], []
    for result in now:
        key = _name(result)
        for name in OWN.values():
            new, old = _measures(result["result"]["rows"], name), None
            if key in before:
                old = _measures(before[key], name)
            where = f"{MODELS[result['job']['model']].title}, {result['job']['graph']}, {name}"
            rows.append([where, *_cells(new), *_cells(old)])
            if old is None:
                continue
            if new[0] > SLOWER * old[0]:
                worse.append(f"{where}: takes {new[0] / old[0]:.2f} of the time it took")
            if new[1] > MORE_BYTES * old[1]:
                worse.append(f"{where}: moves {new[1] / old[1]:.2f} of the bytes it moved")
    heading = ["row", "time of sorted FP32's", "MiB moved", "time before", "MiB before"]
    return "\n".join(grid(heading, rows)), worse


def _name(result: Result) -> tuple[str, str]:
    return result["job"]["model"], result["job"]["graph"]


def _measures(rows: dict[str, dict[str, Any]], name: str) -> tuple[float, int]:
    moved = sum(kernel["streamed"] + kernel["gathered"] for kernel in rows[name]["kernels"])
    return rows[name]["median"] / rows[SORTED]["median"], moved


def _cells(measures: tuple[float, int] | None) -> list[str]:
    return ["–", "–"] if measures is None else [f"{measures[0]:.3f}", f"{measures[1] / 2**20:.2f}"]
