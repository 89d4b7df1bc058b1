"""What each kernel of a compiled model has to move, and how near to the memory's speed it does so.

Bytes are counted from the plan: every array that a kernel has as an argument once, and of arrays that are
read by the source of an edge one row an edge. Their time at best is that of streaming the former from memory,
and the latter from whichever cache holds the array that is gathered from (``memory.read_bandwidth`` of arrays
of that size). An array that one kernel gathers from counts so in every kernel over the same edges. What a
kernel computes is not counted: where it is bound by arithmetic, its share is low.
"""

from __future__ import annotations

import functools
import math
import statistics
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.speed.memory import STREAM, read_bandwidth
from gnnquant.backends.tvm.partition import resolve
from gnnquant.runtime.executor import GRAPH_PARTS

if TYPE_CHECKING:
    from collections.abc import Callable

    from gnnquant.integer_graph import IntegerGraph
    from gnnquant.runtime import CompiledModel


@dataclass(frozen=True)
class KernelCost:
    """One kernel of a call.

    Attributes:
        name: Its name; kernels of equal layers share one.
        ms: Median of its time.
        streamed: Bytes of its arguments, those that are gathered from left out.
        gathered: Bytes of the rows that it reads by edges.
        best_ms: Time at the memory's speed.
    """

    name: str
    ms: float
    streamed: int
    gathered: int
    best_ms: float


def kernel_costs(
    compiled: CompiledModel, program: IntegerGraph, call: Callable[[], Any], threads: int, repeats: int = 5
) -> list[KernelCost]:
    """The kernels that a call of ``compiled`` runs, timed one by one.

    Args:
        compiled: A model compiled by TVM.
        program: What it was compiled from.
        call: Calls it on a prepared graph.
        threads: That it was compiled for, and torch uses.
        repeats: Measurements of each kernel.
    """
    call()
    executor: Any = compiled._executor
    workspace = executor._free[-1]
    sizes = workspace.prepared.sizes
    buffers = {buffer.name: buffer for buffer in executor._plan.buffers}
    measured: list[list[float]] = [[] for _ in workspace._calls]
    for _ in range(repeats):
        call()
        for times, (function, arguments, count) in zip(measured, workspace._calls, strict=True):
            start = time.perf_counter()
            function(None, arguments, count, workspace._result_address)
            times.append(1e3 * (time.perf_counter() - start))
    sources = _gathered(program)
    costs = []
    for planned, times in zip(executor._plan.calls, measured, strict=True):
        if planned.per_graph:
            continue
        streamed, gathered, best = 0, 0, 0.0
        graphs = {
            name.rpartition(".")[0]
            for name in planned.arguments
            if name.rpartition(".")[2] in GRAPH_PARTS and name not in buffers
        }
        for name in set(planned.arguments):
            if name not in buffers or buffers[name].kind == "index":
                array = workspace.prepared.arrays[name]
                streamed += array.nbytes
                continue
            buffer = buffers[name]
            if name.startswith(("scratch.", "extent.")):
                continue
            shape = [sizes[dim] if isinstance(dim, str) else dim for dim in buffer.shape]
            whole = math.prod(shape) * np.dtype(buffer.dtype).itemsize
            edges = sum(sizes[graph] for graph in graphs if (graph, name) in sources)
            if edges and shape[0]:
                gathered += whole // shape[0] * edges
                best += whole // shape[0] * edges / _bandwidth(whole, threads)
            else:
                streamed += whole
        best += streamed / _bandwidth(STREAM, threads)
        costs.append(KernelCost(planned.function, statistics.median(times), streamed, gathered, 1e3 * best))
    return costs


def _gathered(program: IntegerGraph) -> set[tuple[str, str]]:
    """Graphs and the buffers of which kernels read a row for each of their edges, by its source."""
    found = set()
    for node in program.nodes:
        graph = None
        if node.op in ("spmm", "float_spmm"):
            graph = node.attrs["graph"]
        elif node.op == "gather" and node.attrs["index"].endswith(".src"):
            graph = node.attrs["index"].rpartition(".")[0]
        if graph is not None:
            value = resolve(program, node.inputs[0])
            found |= {(graph, f"{part}.{value}") for part in ("codes", "scale", "rows")}
            if program[value].op == "input":
                found.add((graph, program[value].attrs["input"]))
            found |= {(graph, f"weighed.{value}.{resolve(program, name)}") for name in node.inputs[1:]}
    return found


def _bandwidth(size: int, threads: int) -> float:
    """Bytes per second of arrays of about this size."""
    return _measured_bandwidth(min(1 << max(size - 1, 1).bit_length(), STREAM), threads)


@functools.cache
def _measured_bandwidth(size: int, threads: int) -> float:
    del threads  # what torch uses, but another figure
    return read_bandwidth(size, seconds=0.2)
