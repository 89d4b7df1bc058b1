"""Rows on a GPU: all contestants for a model on a graph, in one process, in turns, timed by CUDA events."""

from __future__ import annotations

import copy
import multiprocessing
import os
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

import gnnquant
from benchmarks.report import code_state
from benchmarks.speed.graphs import RANDOM, load
from benchmarks.speed.models import MODELS
from benchmarks.speed.rivals import SortedModel
from benchmarks.speed.runs import (
    COMPILED,
    EAGER,
    HALF,
    OWN,
    SORTED,
    WIDTHS,
    inference,
    quantized_model,
    some_nodes,
    torch_compiled,
)
from gnnquant.config import FLOAT_BITS
from gnnquant.runtime.cuda import THREADS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor, nn

REPLAYED, TF32 = "torch CSR, CUDA graph", "torch CSR, TF32 products"
FLOAT_RIVALS = (EAGER, COMPILED, SORTED, REPLAYED, OWN[FLOAT_BITS])
"""The strongest of these is what speed-ups refer to; TF32 and bf16 products are told apart."""
CONTESTANTS = (EAGER, COMPILED, SORTED, REPLAYED, TF32, HALF, *OWN.values())
TOLERANCE = {HALF: 0.05, TF32: 0.01}
"""Largest difference to our own FP32 in units of the largest score; 1e-3 in float32, in any order of sums."""
SOURCES = ("gnnquant/backends/cuda/*.py", "gnnquant/runtime/*.py", "benchmarks/speed/[gmr]*.py")
COMPILED_BY_TORCH = ("gcn64", "gcn256")
"""Models that ``torch.compile`` takes part for: it needs a minute for each."""
MODELS_ON_GPU = ("gcn64", "gcn256", "sage64", "gin64", "gat", "smp")
CHECKED = ("Cora", "PubMed")
"""Graphs on which all scores are compared with the integer reference, which is slow on larger ones."""
WARM_UP = 3
IN_A_ROW = 20
"""Launches between two events: Python takes as long for one as a small kernel runs."""
LEAST, MOST = 10, 100
"""Measurements of a contestant."""


@dataclass(frozen=True)
class GpuRun:
    """What one run is.

    Attributes:
        model: A name from ``MODELS``.
        graph: A name from ``GRAPHS``.
        seconds: Time of the measurement.
    """

    model: str
    graph: str
    seconds: float = field(default=4.0, compare=False)

    @property
    def key(self) -> str:
        """Name of the result's file."""
        return f"{self.graph}-{self.model}"


def perform(run: GpuRun) -> dict[str, Any]:
    """Do one run.

    Returns:
        ``rows``: by contestant ``times`` (milliseconds), ``median``, ``difference``; of ours also
        ``prepare_ms`` and ``kernels`` (name and milliseconds of each launch); or ``skipped``: why it was not
        measured. Of the graph: ``nodes``, ``edges``, ``features``. ``checked``: whether all scores were
        compared with the integer reference. ``gpu`` and ``cuda``: the card and torch's CUDA. ``code``:
        state of the code.

    Raises:
        AssertionError: A contestant computes something else, or compiled integers are not those of the
            reference.
    """
    x, edge_index, classes = load(run.graph)
    model = MODELS[run.model].build(x.size(1), classes)
    few = some_nodes(x, edge_index)
    there = x.cuda(), edge_index.cuda()
    rows: dict[str, dict[str, Any]] = {name: {} for name in CONTESTANTS}
    calls = _rivals(copy.deepcopy(model).cuda(), *there, rows, compiled=run.model in COMPILED_BY_TORCH)
    own: dict[str, gnnquant.CompiledModel] = {}
    checked = run.graph in CHECKED
    for bits, name in OWN.items():
        q = quantized_model(model, few, bits)
        own[name] = compiled = gnnquant.compile(q, target="cuda")
        start = time.perf_counter()
        graph = compiled.prepare(there[1], x.size(0))
        rows[name]["prepare_ms"] = round(1e3 * (time.perf_counter() - start), 2)
        calls[name] = lambda compiled=compiled, graph=graph: compiled(there[0], graph)  # type: ignore[misc]
        if checked and bits in WIDTHS:
            wanted: Tensor = gnnquant.compile(q, target="reference")(x, edge_index)
            assert torch.equal(calls[name]().cpu(), wanted), f"{name} differs from the reference"
    _compare(calls, rows)
    for name, times in event_times(calls, run.seconds).items():
        rows[name] |= {"times": [round(value, 4) for value in times], "median": statistics.median(times)}
    for name, compiled in own.items():
        rows[name]["kernels"] = kernel_times(compiled, calls[name])
    return {
        "rows": rows,
        "nodes": x.size(0),
        "edges": edge_index.size(1),
        "features": x.size(1),
        "checked": checked,
        "gpu": torch.cuda.get_device_name(),
        "cuda": torch.version.cuda,
        "code": code_state(*SOURCES),
    }


def event_times(calls: Mapping[str, Callable[[], object]], seconds: float) -> dict[str, list[float]]:
    """Milliseconds between two events around each call, from an idle GPU; all contestants in turns."""
    begin, end = _event(), _event()
    for _ in range(WARM_UP):
        for call in calls.values():
            call()
    measured: dict[str, list[float]] = {name: [] for name in calls}
    share = 1e3 * seconds / len(calls)
    for _ in range(MOST):
        for name, call in calls.items():
            if len(measured[name]) >= LEAST and sum(measured[name]) > share:
                continue
            torch.cuda.synchronize()
            begin.record()
            call()
            end.record()
            end.synchronize()
            measured[name].append(begin.elapsed_time(end))
    return measured


def kernel_times(
    compiled: gnnquant.CompiledModel, call: Callable[[], object], repeats: int = 10
) -> list[Any]:
    """Name and median milliseconds of each launch of a call, repeated by itself."""
    call()
    executor: Any = compiled._executor
    begin, end = _event(), _event()
    stream = torch.cuda.current_stream().cuda_stream
    found = []
    for launch in executor._bound.launches:
        if launch.per_graph:
            continue
        times = []
        for _ in range(repeats):
            begin.record()
            with executor._gpu.current():
                for _ in range(IN_A_ROW):
                    executor._gpu.launch(launch.function, launch.blocks, THREADS, launch.arguments, stream)
            end.record()
            end.synchronize()
            times.append(begin.elapsed_time(end) / IN_A_ROW)
        found.append([launch.name, round(statistics.median(times), 5)])
    return found


def _event() -> Any:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


def build_ahead(runs: Sequence[GpuRun], workers: int) -> None:
    """Let nvcc make the kernels of all runs, several at once; runs then find them in the cache."""
    jobs = {(run.model, *_extents(run.graph), bits) for run in runs for bits in OWN}
    # forked processes could not use CUDA, which the first comparison in ``compile`` does
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        list(pool.map(_build, sorted(jobs)))


def _extents(graph: str) -> tuple[int, int]:
    if graph in RANDOM:
        return RANDOM[graph].features, RANDOM[graph].classes
    x, _, classes = load(graph)
    return x.size(1), classes


def _build(job: tuple[str, int, int, int]) -> None:
    from gnnquant.backends.cuda import build
    from gnnquant.passes.lowering import lower

    name, features, classes, bits = job
    torch.set_num_threads(1)
    x, edges = torch.rand(64, features), torch.randint(0, 64, (2, 256))
    model = MODELS[name].build(features, classes)
    build(lower(quantized_model(model, (x, edges), bits)))


def _rivals(
    model: nn.Module, x: Tensor, edge_index: Tensor, rows: dict[str, dict[str, Any]], *, compiled: bool
) -> dict[str, Callable[[], Tensor]]:
    """What is timed of others; facts about their making go to ``rows``."""
    calls: dict[str, Callable[[], Tensor]] = {}

    calls[EAGER] = inference(model, x, edge_index)
    if compiled:
        _try(inference(torch_compiled(model), x, edge_index), COMPILED, calls, rows)
    else:
        rows[COMPILED]["skipped"] = "not asked for"
    rival = SortedModel(model, edge_index, x.size(0))
    calls[SORTED] = lambda: rival(x)
    _try(_with_tf32(lambda: rival(x)), TF32, calls, rows)
    half = SortedModel(model, edge_index, x.size(0), torch.bfloat16)
    calls[HALF] = lambda: half(x)
    graph = torch.cuda.CUDAGraph()

    def record() -> Callable[[], Tensor]:
        side: Any = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UP):
                rival(x)
        torch.cuda.current_stream().wait_stream(side)
        with torch.cuda.graph(graph):
            scores = rival(x)

        def replay() -> Tensor:
            graph.replay()
            return scores

        return replay

    try:
        calls[REPLAYED] = record()
    except Exception as error:  # not everything can be recorded
        rows[REPLAYED]["skipped"] = _words(error)
        torch.cuda.synchronize()
    return calls


def _with_tf32(call: Callable[[], Tensor]) -> Callable[[], Tensor]:
    def rounded() -> Tensor:
        torch.backends.cuda.matmul.allow_tf32 = True
        try:
            return call()
        finally:
            torch.backends.cuda.matmul.allow_tf32 = False

    return rounded


def _try(
    call: Callable[[], Tensor],
    name: str,
    calls: dict[str, Callable[[], Tensor]],
    rows: dict[str, dict[str, Any]],
) -> None:
    """Let ``call`` take part if it works: compilers of others may fail in any way."""
    start = time.perf_counter()
    try:
        call()
    except Exception as error:
        rows[name]["skipped"] = _words(error)
    else:
        calls[name] = call
        rows[name]["compile_s"] = round(time.perf_counter() - start, 2)


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:120]}"


def _compare(calls: Mapping[str, Callable[[], Tensor]], rows: dict[str, dict[str, Any]]) -> None:
    """Float contestants against each other; integers are compared with their reference."""
    truth = calls[OWN[FLOAT_BITS]]()
    largest = float(truth.abs().max())
    for name, call in calls.items():
        rows[name]["difference"] = difference = float((call() - truth).abs().max()) / largest
        if name not in OWN.values() or name == OWN[FLOAT_BITS]:
            limit = TOLERANCE.get(name, 1e-3)
            assert difference < limit, f"{name} differs by {difference:.2g} of the largest score"


def check_all(runs: Sequence[GpuRun], workers: int) -> list[str]:
    """Compare all scores of INT8, INT4 and INT2 with the integer reference, several runs at once.

    Returns:
        A line for each comparison.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        # the longest first
        jobs = [(run, bits) for run in sorted(runs, key=lambda run: run.model != "smp") for bits in WIDTHS]
        return list(pool.map(_check, jobs))


def _check(job: tuple[GpuRun, int]) -> str:
    run, bits = job
    torch.set_num_threads(1)
    x, edge_index, classes = load(run.graph)
    model = MODELS[run.model].build(x.size(1), classes)
    q = quantized_model(model, some_nodes(x, edge_index), bits)
    wanted: Tensor = gnnquant.compile(q, target="reference")(x, edge_index)
    found = gnnquant.compile(q, target="cuda")(x.cuda(), edge_index.cuda()).cpu()
    same = "every bit" if torch.equal(found, wanted) else f"{int((found != wanted).sum())} scores differ"
    return f"{run.graph}, {MODELS[run.model].title}, INT{bits}: {same}"


def workers() -> int:
    """Processes that build at once."""
    return max(1, (os.cpu_count() or 2) - 1)
