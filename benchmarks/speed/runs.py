"""One row of the table: all contestants for a model on a graph, in one process, in turns."""

from __future__ import annotations

import copy
import statistics
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import gnnquant
from benchmarks.report import code_state
from benchmarks.speed.graphs import load
from benchmarks.speed.memory import available_bytes, peak_bytes
from benchmarks.speed.models import MODELS
from benchmarks.speed.rivals import SortedModel
from benchmarks.speed.roofline import kernel_costs
from gnnquant.backends.onnx.session import OnnxSession, find_runtime
from gnnquant.config import FLOAT_BITS
from gnnquant.passes.lowering import lower
from gnnquant.timing import interleaved_times

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, nn

WIDTHS = (8, 4, 2)
OWN = {FLOAT_BITS: "own FP32", **{bits: f"INT{bits}" for bits in WIDTHS}}
CODES = {bits: f"INT{bits} from codes" for bits in WIDTHS}
"""The same models on features that were quantized before."""
EAGER, COMPILED, SORTED, HALF = "PyG eager", "torch.compile", "torch CSR", "torch CSR, bf16 products"
ONNX = "ONNX Runtime"
FLOAT_RIVALS = (EAGER, COMPILED, SORTED, ONNX, OWN[FLOAT_BITS])
"""The strongest of these is what speed-ups refer to; with bf16 it is another model, and told apart."""
CONTESTANTS = (EAGER, COMPILED, SORTED, HALF, ONNX, *OWN.values(), *CODES.values())
SOURCES = (
    "gnnquant/backends/tvm/*.py",
    "gnnquant/backends/onnx/*.py",
    "gnnquant/runtime/*.py",
    "benchmarks/speed/[mr]*.py",
)
"""What decides about speed."""
TOLERANCE = {HALF: 0.05}
"""Largest difference to eager PyG in units of the largest score; 1e-4 in float32."""
SPARE = 0.8
"""Share of the available memory that a message-passing rival may be expected to need."""
CALIBRATED = 20_000
"""Nodes on which ranges are calibrated, at most."""
ONNX_BYTES = 36
"""Memory of ONNX Runtime for each number of each message: measured 34 on a GCN of two layers."""
PAUSE = 5e-3
"""Seconds after which threads that wait for work have gone to sleep."""


@dataclass(frozen=True)
class Run:
    """What one run is.

    Attributes:
        model: A name from ``MODELS``.
        graph: A name from ``GRAPHS``.
        threads: Of every contestant.
        seconds: Time of the measurement.
        messages: Whether the rivals take part that compute a message for every edge.
        granularity: What has a scale: each activation (``"tensor"``) or each of its rows (``"row"``).
    """

    model: str
    graph: str
    threads: int
    seconds: float = field(default=20.0, compare=False)
    messages: bool = True
    granularity: str = "tensor"

    @property
    def key(self) -> str:
        """Name of the result's file."""
        return f"{self.graph}-{self.model}-threads{self.threads}"


def perform(run: Run) -> dict[str, Any]:
    """Do one run.

    Returns:
        ``rows``: by contestant ``times`` (milliseconds), ``median``, ``peak`` (bytes of memory beyond
        inputs, weights and the prepared graph), ``difference`` to eager PyG in units of its largest
        score; of ours also ``compile_s``, ``prepare_ms`` and ``kernels`` (``roofline.KernelCost``); or
        ``skipped``: why it was not measured. Of the graph: ``nodes``, ``edges``, ``features``. ``code``:
        state of the code.

    Raises:
        AssertionError: A contestant computes something else, or compiled integers are not those of the
            reference.
    """
    torch.set_num_threads(run.threads)
    x, edge_index, classes = load(run.graph)
    model = MODELS[run.model].build(x.size(1), classes)
    rows: dict[str, dict[str, Any]] = {name: {} for name in CONTESTANTS}
    calls = rival_calls(model, x, edge_index, rows, messages=run.messages)
    own: dict[str, gnnquant.CompiledModel] = {}
    few = some_nodes(x, edge_index)
    quantized = {name: quantized_model(model, few, bits, run.granularity) for bits, name in OWN.items()}
    for name, q in quantized.items():
        calls[name], own[name] = _own(q, run.threads, x, edge_index, rows[name])
    for bits, name in CODES.items():
        calls[name], _ = _own(quantized[OWN[bits]], run.threads, x, edge_index, rows[name], from_codes=True)
    if run.messages:
        exported = _exported(quantized[OWN[FLOAT_BITS]], run.threads, x, edge_index, rows[ONNX])
        calls |= {} if exported is None else {ONNX: exported}
    else:
        rows[ONNX]["skipped"] = "not asked for"
    for name, call in calls.items():
        rows[name]["peak"] = peak_bytes(call)
    compare_scores(calls, rows)
    for name in (OWN[bits] for bits in WIDTHS):
        # the reference takes a minute on a large graph; what one thread computes was compared with it
        how: dict[str, Any] = {"target": "reference"} if run.threads == 1 else {"threads": 1}
        wanted: Tensor = gnnquant.compile(quantized[name], **how)(x, edge_index)
        assert torch.equal(calls[name](), wanted), f"{name} differs from {how}"
    for bits, name in CODES.items():
        assert torch.equal(calls[name](), calls[OWN[bits]]()), f"{name} differs from {OWN[bits]}"
    pause = PAUSE if run.threads > 1 else 0.0
    # the peak and the comparison were two calls already
    for name, times in interleaved_times(calls, seconds=run.seconds, warm_up=0, pause=pause).items():
        rows[name] |= {"times": [round(value, 4) for value in times], "median": statistics.median(times)}
    for name, compiled in own.items():
        costs = kernel_costs(compiled, lower(quantized[name]), calls[name], run.threads)
        rows[name]["kernels"] = [asdict(cost) for cost in costs]
    return {
        "rows": rows,
        "nodes": x.size(0),
        "edges": edge_index.size(1),
        "features": x.size(1),
        "code": code_state(*SOURCES),
    }


def inference(model: Callable[..., Any], x: Tensor, edge_index: Tensor) -> Callable[[], Tensor]:
    """A call of a torch model, without gradients."""

    @torch.inference_mode()
    def call() -> Tensor:
        scores: Tensor = model(x, edge_index)
        return scores

    return call


def torch_compiled(model: nn.Module) -> Callable[..., Any]:
    """What ``torch.compile`` makes of a copy of ``model``, for inputs of one size."""
    torch._dynamo.reset()
    compiled: Callable[..., Any] = torch.compile(copy.deepcopy(model), dynamic=False)
    return compiled


def rival_calls(
    model: nn.Module, x: Tensor, edge_index: Tensor, rows: dict[str, dict[str, Any]], *, messages: bool
) -> dict[str, Callable[[], Tensor]]:
    """What is timed of others; facts about their making go to ``rows``."""
    calls: dict[str, Callable[[], Tensor]] = {}

    # each edge's message, and the copy of it that has a weight
    needed = 2 * edge_index.size(1) * _widest(model, x) * 4
    if not messages:
        rows[EAGER]["skipped"] = rows[COMPILED]["skipped"] = "not asked for"
    elif needed < SPARE * available_bytes():
        calls[EAGER] = inference(model, x, edge_index)
        compiled_by_torch = inference(torch_compiled(model), x, edge_index)
        start = time.perf_counter()
        try:
            compiled_by_torch()
        except Exception as error:  # a compiler of others may fail in any way
            rows[COMPILED]["skipped"] = f"{type(error).__name__}: {str(error).splitlines()[0][:120]}"
        else:
            calls[COMPILED] = compiled_by_torch
            rows[COMPILED]["compile_s"] = round(time.perf_counter() - start, 2)
    else:
        reason = f"messages of {needed / 2**30:.0f} GiB do not fit the memory"
        rows[EAGER]["skipped"] = rows[COMPILED]["skipped"] = reason
    for name, dense in ((SORTED, torch.float32), (HALF, torch.bfloat16)):
        start = time.perf_counter()
        rival = SortedModel(model, edge_index, x.size(0), dense)
        rows[name]["prepare_ms"] = round(1e3 * (time.perf_counter() - start), 2)
        calls[name] = lambda rival=rival: rival(x)  # type: ignore[misc]
    return calls


def _widest(model: nn.Module, x: Tensor) -> int:
    """Numbers of the widest message of an edge."""
    from torch_geometric.nn import MessagePassing

    found = [1]
    edges = torch.tensor([[0, 1], [1, 0]])
    layers = [module for module in model.modules() if isinstance(module, MessagePassing)]
    hooks = [
        layer.register_message_forward_hook(lambda _, __, out: found.append(out[0].numel()))
        for layer in layers
    ]
    with torch.no_grad():
        model(x[:2], edges)
    for hook in hooks:
        hook.remove()
    return max(found)


def _own(
    q: gnnquant.QuantizedModule,
    threads: int,
    x: Tensor,
    edge_index: Tensor,
    row: dict[str, Any],
    *,
    from_codes: bool = False,
) -> tuple[Callable[[], Tensor], gnnquant.CompiledModel]:
    start = time.perf_counter()
    compiled = gnnquant.compile(q, threads=threads, prepared_features=from_codes)
    row["compile_s"] = round(time.perf_counter() - start, 2)
    start = time.perf_counter()
    graph = compiled.prepare(edge_index, x.size(0))
    row["prepare_ms"] = round(1e3 * (time.perf_counter() - start), 2)

    given = compiled.prepare_features(x) if from_codes else x

    def call() -> Tensor:
        scores: Tensor = compiled(given, graph)
        return scores

    return call, compiled


def _exported(
    q: gnnquant.QuantizedModule, threads: int, x: Tensor, edge_index: Tensor, row: dict[str, Any]
) -> Callable[[], Tensor] | None:
    """The exported model in ONNX Runtime, which makes a message and its index for each edge."""
    graph = lower(q)
    columns = sum(node.columns for node in graph.nodes if node.op.endswith(("spmm", "segment_reduce")))
    needed = edge_index.size(1) * columns * ONNX_BYTES
    if find_runtime() is None:
        row["skipped"] = "onnxruntime is not installed"
        return None
    if needed > SPARE * available_bytes():
        row["skipped"] = f"messages of {needed / 2**30:.0f} GiB do not fit the memory"
        return None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        start = time.perf_counter()
        gnnquant.export_onnx(q, path)
        session = OnnxSession(graph, path, threads)
        row["compile_s"] = round(time.perf_counter() - start, 2)
    feeds = session.feeds(x, edge_index)

    def call() -> Tensor:
        return torch.from_numpy(session.run(feeds)[0])

    return call


def some_nodes(x: Tensor, edge_index: Tensor) -> tuple[Tensor, Tensor]:
    """At most ``CALIBRATED`` nodes and the edges between them: ranges need no more."""
    x = x[:CALIBRATED]
    return x, edge_index[:, (edge_index < x.size(0)).all(0)]


def quantized_model(
    model: nn.Module, few: tuple[Tensor, Tensor], bits: int, granularity: str = "row"
) -> gnnquant.QuantizedModule:
    """``model`` at a width, its ranges calibrated on ``few``; activations have scales by ``granularity``."""
    config = gnnquant.QuantConfig(activations=gnnquant.QuantSpec(granularity=granularity))
    q = gnnquant.convert(model, bits=bits, config=config)
    if bits != FLOAT_BITS:
        gnnquant.calibrate(q, [few])
    return q


def compare_scores(calls: dict[str, Callable[[], Tensor]], rows: dict[str, dict[str, Any]]) -> None:
    """Float contestants against each other; integers were compared with their reference."""
    truth = calls[OWN[FLOAT_BITS]]()
    largest = float(truth.abs().max())
    for name, call in calls.items():
        difference = float((call() - truth).abs().max()) / largest
        rows[name]["difference"] = difference
        if name in FLOAT_RIVALS or name in TOLERANCE:
            limit = TOLERANCE.get(name, 1e-4)
            assert difference < limit, f"{name} differs by {difference:.2g} of the largest score"
