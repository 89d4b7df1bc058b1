"""``python -m benchmarks.speed.overhead``: what a call costs beside its kernels, in microseconds."""

from __future__ import annotations

import functools
import statistics
import sys
import time
from typing import TYPE_CHECKING, Any

import torch

import gnnquant
from benchmarks.report import grid, machine
from benchmarks.speed.graphs import load
from benchmarks.speed.models import MODELS
from benchmarks.speed.runs import OWN, WIDTHS, quantized_model

if TYPE_CHECKING:
    from collections.abc import Callable

NODES = 20
"""Of Cora, so that kernels take next to nothing."""
CALLS = 2000


def main() -> int:
    """Print a table: a prepared graph, an ``edge_index`` that is compared with the last one, kernels."""
    torch.set_num_threads(1)
    x, edge_index, classes = load("Cora")
    x, edge_index = x[:NODES], edge_index[:, (edge_index < NODES).all(0)]
    model = MODELS["gcn64"].build(x.size(1), classes)
    rows = []
    for bits in WIDTHS:
        compiled = gnnquant.compile(quantized_model(model, (x, edge_index), bits), threads=1)
        handle = compiled.prepare(edge_index, x.size(0))
        times = [_median(functools.partial(compiled, x, edges)) for edges in (handle, edge_index)]
        rows.append([OWN[bits], *(f"{us:.1f}" for us in (*times, _median(_kernels(compiled))))])
    print(f"{machine()}; GCN, 64 hidden units, {NODES} nodes of Cora, median of {CALLS} calls, us")
    print("\n".join(grid(["model", "prepared graph", "edge_index", "kernels alone"], rows)))
    return 0


def _kernels(compiled: Any) -> Callable[[], None]:
    """The kernels of the last call, without anything around them."""
    executor = compiled._executor
    workspace = executor._free[-1]
    planned = zip(executor._plan.calls, workspace._calls, strict=True)
    kernels = [kernel for plan, kernel in planned if not plan.per_graph]

    def run() -> None:
        for function, arguments, count in kernels:
            function(None, arguments, count, workspace._result_address)

    return run


def _median(call: Callable[[], Any]) -> float:
    """Microseconds of a call."""
    for _ in range(CALLS // 20):
        call()
    times = []
    for _ in range(CALLS):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return 1e6 * statistics.median(times)


if __name__ == "__main__":
    sys.exit(main())
