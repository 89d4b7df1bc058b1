"""``python -m benchmarks.speed.floor``: how fast compiled models were if no row came from far away.

Every destination keeps its degree, but gathers from a row near its own number, which is in cache: what is
left of the time are instructions and streams. What own FP32 takes on the real graph, over that, is more than
any better use of the caches could give these kernels. Matrix products alone, at the speed at which the
processor makes products in registers, are less than any kernels could take.
"""

from __future__ import annotations

import argparse
import functools
import math
import statistics
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import torch

import gnnquant
from benchmarks.report import code_state, grid, machine
from benchmarks.speed.graphs import load
from benchmarks.speed.models import MODELS
from benchmarks.speed.peak import products_per_second
from benchmarks.speed.runs import OWN, SOURCES, WIDTHS, quantized_model, some_nodes
from benchmarks.speed.table import TARGETS
from gnnquant.config import FLOAT_BITS
from gnnquant.passes.lowering import lower
from gnnquant.timing import interleaved_times

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from gnnquant.integer_graph import IntegerGraph

ROWS = tuple((model, graph) for model, graph in TARGETS if graph not in ("Cora", "PubMed"))
"""Those whose gathered rows are not in cache anyway."""
NEAR = 4
"""So many destinations, one after the other, gather from the same row."""
TEXT = """\
# What the instructions take

Written by `python -m benchmarks.speed.floor`; do not edit by hand. Milliseconds of one call with 1 thread, as
in speed.md. *Near*: on a graph of the same degrees whose edges come from rows in cache. *At best*: own FP32
on the real graph over the model on the near one, more than these kernels could reach if no row had to be
waited for. *Products*: what the matrix products alone would take at the most that this processor makes of
them, {floats} G a second in float32, {eight}, {four} and {two} G of codes of 8, 4 and 2 bits. *Wanted*: the
target, beside the strongest float32, which takes as long as own FP32 or less, and the time that it leaves.

"""


def main() -> int:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed.floor", description=__doc__)
    parser.add_argument("--seconds", type=float, default=12.0, help="time of each row")
    parser.add_argument("--table", type=Path, help="also write this Markdown file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for model, graph in ROWS:
        rows += _measured(model, graph, options.seconds)
        print(f"{model}, {graph}: done", file=sys.stderr, flush=True)
    heading = ["model", "graph", "kernels", "real", "near", "products"]
    heading += ["faster than FP32", "at best", "wanted", "wanted, ms"]
    peaks = {
        name: f"{_peak(bits) / 1e9:.0f}"
        for name, bits in (("floats", FLOAT_BITS), ("eight", 8), ("four", 4), ("two", 2))
    }
    text = TEXT.format(**peaks) + f"Machine: {machine()}. Code: {code_state(*SOURCES)}.\n\n"
    text += "\n".join(grid(heading, rows))
    print(text)
    if options.table:
        options.table.write_text(text + "\n", encoding="utf-8")
    return 0


@functools.cache
def _peak(bits: int) -> float:
    """Products a second; NaN where they are not made of bytes."""
    return products_per_second(bits) or math.nan


def products(program: IntegerGraph, nodes: int) -> int:
    """Products of the matrix products of a model, all of which are of its nodes."""
    found = 0
    for node in program.nodes:
        if node.op == "gemm":
            found += nodes * program.weights[node.attrs["weight"]].integers.size
        elif node.op == "float_gemm":
            found += nodes * program.constants[node.attrs["array"]].size
    return found


def _measured(model: str, graph: str, seconds: float) -> list[list[str]]:
    x, edge_index, classes = load(graph)
    near = torch.stack([edge_index[1] // NEAR, edge_index[1]])
    built = MODELS[model].build(x.size(1), classes)
    calls: dict[str, Callable[[], Tensor]] = {}
    least: dict[str, float] = {}
    for bits, name in OWN.items():
        quantized = quantized_model(built, some_nodes(x, edge_index), bits, "tensor")
        least[name] = 1e3 * products(lower(quantized), x.size(0)) / _peak(bits)
        for kind, edges in (("real", edge_index), ("near", near)):
            # one for each graph: what follows from a graph alone is kept until another one comes
            compiled = gnnquant.compile(quantized, threads=1)
            calls[f"{name} {kind}"] = functools.partial(compiled, x, compiled.prepare(edges, x.size(0)))
    times = interleaved_times(calls, seconds=seconds)
    medians = {name: statistics.median(values) for name, values in times.items()}
    best = medians[f"{OWN[FLOAT_BITS]} real"]
    targets = zip(WIDTHS, TARGETS[model, graph], strict=True)
    wanted = {OWN[bits]: factor for bits, factor in targets}
    found = []
    for name in OWN.values():
        real, without = medians[f"{name} real"], medians[f"{name} near"]
        cells = [f"{value:.1f}" for value in (real, without, least[name])]
        cells += [f"{best / real:.2f}x", f"{best / without:.2f}x"]
        factor = wanted.get(name)
        cells += ["–", "–"] if factor is None else [f"{factor:g}x", f"{best / factor:.1f}"]
        found.append([MODELS[model].title, graph, name, *cells])
    return found


if __name__ == "__main__":
    sys.exit(main())
