"""One row: a model is run, traced, quantized and compiled, and compared at every step."""

from __future__ import annotations

import collections
import contextlib
import copy
import functools
import re
import tempfile
import time
import warnings
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch_geometric import seed_everything
from torch_geometric.data.data import BaseData
from torch_geometric.nn import MessagePassing

import gnnquant
from benchmarks.coverage.graphs import example, hard, second
from gnnquant.backends.onnx.session import OnnxSession
from gnnquant.ir import ROLE_MARKERS
from gnnquant.passes.lowering import lower
from gnnquant.quantizers.calibration import quantizers_of
from gnnquant.tracing import trace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from benchmarks.coverage.cases import Case, Inputs
    from gnnquant.converter import QuantizedModule

SEED = 0
BITS = 4
COLUMNS = {
    "eager": "runs here",
    "traced": "traced",
    "second": "equal on another graph",
    "hard": "equal on hard graphs",
    "train": "equal in training",
    "names": "names kept",
    "roles": "messages visible",
    "quantized": "INT4, all ranges learn",
    "lowered": "FP32 of the integer graph",
    "compiled": "compiled INT4",
    "exact": "equals the reference in every bit",
    "trained": "equals the model that trains",
    "onnx": "ONNX",
}
"""Columns of the table, in order, and their titles."""

COMPILE_COLUMNS = ("lowered", "compiled", "exact", "trained", "onnx")

NEAR = 0.01
"""Numbers are near where they differ by at most this share of the largest one."""

MOST = 0.95
"""Share of the numbers that must be near: a code at the edge of its cell may go to the other side."""


@dataclass
class Row:
    """What was found out about a case.

    Attributes:
        key: The case.
        with_compile: Whether the columns about compilation were asked for.
        cells: True or False by column; a column that was not reached is missing.
        reasons: What went wrong, by column.
        refused: Compilation was refused by name of a node, as it should be where there is no rule.
        facts: Numbers for the curious.
        seconds: Time of the whole row.
    """

    key: str
    with_compile: bool
    cells: dict[str, bool] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    refused: bool = False
    facts: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0

    def as_json(self) -> dict[str, Any]:
        """The row as a dictionary."""
        return asdict(self)


class DifferenceError(Exception):
    """Two things that should be equal are not; the message says how."""


# --- running models ---------------------------------------------------------------------------------


def cloned(inputs: Any) -> Any:
    """Copies of all tensors, so that a run cannot change the inputs of another."""

    def clone(leaf: Any) -> Any:
        return leaf.clone() if isinstance(leaf, (Tensor, BaseData)) else leaf

    return pytree.tree_map(clone, inputs)


def run(model: Callable[..., Any], inputs: Inputs) -> Any:
    """Call with copies of the inputs, by position or by name."""
    inputs = cloned(inputs)
    return model(**inputs) if isinstance(inputs, dict) else model(*inputs)


def evaluate(model: nn.Module, inputs: Inputs) -> list[Any]:
    """What the model returns in eval mode, flat."""
    model.eval()  # not chained: some models' own train() returns nothing
    seed_everything(SEED)
    with torch.no_grad():
        return pytree.tree_leaves(run(model, inputs))


def train(model: nn.Module, inputs: Inputs) -> tuple[list[Any], dict[str, Tensor], dict[str, Tensor]]:
    """Outputs, gradients of a fixed weighting of them, and buffers after a run in train mode."""
    model.train()
    model.zero_grad()
    seed_everything(SEED)
    outputs = pytree.tree_leaves(run(model, inputs))
    weights = torch.Generator().manual_seed(SEED)
    total = torch.zeros(())
    for output in outputs:
        if isinstance(output, Tensor) and output.requires_grad:
            total = total + (output * torch.rand(output.shape, generator=weights)).sum()
    # A reversible layer frees its outputs while it runs backwards.
    outputs = [
        out.detach().clone().requires_grad_(out.requires_grad) if isinstance(out, Tensor) else out
        for out in outputs
    ]
    if total.requires_grad:
        total.backward()  # type: ignore[no-untyped-call]
    named = model.named_parameters(remove_duplicate=False)
    gradients = {name: p.grad for name, p in named if p.grad is not None}
    return outputs, gradients, dict(model.named_buffers(remove_duplicate=False))


def dense(value: Any) -> Any:
    """A tensor without layout and graph; anything else as it is."""
    if isinstance(value, Tensor):
        value = value.detach()
        return value if value.layout == torch.strided else value.to_dense()
    return value


def require_close(found: Any, wanted: Any, what: str, tolerance: float = 1e-5) -> float:
    """Raise ``DifferenceError`` unless two values agree; returns the largest relative difference."""
    found, wanted = dense(found), dense(wanted)
    if not isinstance(wanted, Tensor):
        if isinstance(found, Tensor) or found != wanted:
            raise DifferenceError(f"{what} is {found!r} instead of {wanted!r}")
        return 0.0
    if not isinstance(found, Tensor) or found.shape != wanted.shape or found.dtype != wanted.dtype:
        shown = f"{found.dtype} {tuple(found.shape)}" if isinstance(found, Tensor) else repr(found)
        raise DifferenceError(f"{what} is {shown} instead of {wanted.dtype} {tuple(wanted.shape)}")
    a, b = found.double(), wanted.double()
    finite = b.abs()[b.isfinite()]
    scale = max(1.0, float(finite.max())) if finite.numel() else 1.0
    if not torch.allclose(a, b, rtol=tolerance, atol=tolerance * scale, equal_nan=True):
        raise DifferenceError(f"{what} differs by {float((a - b).abs().nan_to_num().max()):.3g}")
    return float((a - b).abs().nan_to_num().max()) / scale if a.numel() else 0.0


def require_same_outputs(found: list[Any], wanted: list[Any], tolerance: float = 1e-5) -> float:
    """Raise ``DifferenceError`` unless two flat lists of outputs agree; returns the largest difference."""
    if len(found) != len(wanted):
        raise DifferenceError(f"there are {len(found)} outputs instead of {len(wanted)}")
    return max(
        (
            require_close(f, w, f"output {number}", tolerance)
            for number, (f, w) in enumerate(zip(found, wanted, strict=True))
        ),
        default=0.0,
    )


def require_same_bits(found: list[Any], wanted: list[Any]) -> None:
    """Raise ``DifferenceError`` unless two flat lists of outputs are equal in every bit."""
    if len(found) != len(wanted):
        raise DifferenceError(f"there are {len(found)} outputs instead of {len(wanted)}")
    for number, (f, w) in enumerate(zip(found, wanted, strict=True)):
        if not np.array_equal(np.asarray(f), np.asarray(w), equal_nan=True):
            raise DifferenceError(f"output {number} has other bits than the reference")


@contextlib.contextmanager
def on(graph: str) -> Iterator[None]:
    """Whatever fails in the block is said to fail on this graph."""
    try:
        yield
    except DifferenceError as error:
        raise DifferenceError(f"{graph}: {error}") from error
    except Exception as error:
        raise DifferenceError(f"{graph}: {type(error).__name__}: {error}") from error


def counted_roles(model: nn.Module) -> collections.Counter[tuple[str, str]]:
    """Count calls of ``message`` and the like from now on, by role and layer."""
    calls: collections.Counter[tuple[str, str]] = collections.Counter()

    def counted(method: Callable[..., Any], role: str, path: str) -> Callable[..., Any]:
        @functools.wraps(method)
        def call(*args: Any, **kwargs: Any) -> Any:
            calls[role, path] += 1
            return method(*args, **kwargs)

        return call

    for path, layer in model.named_modules():
        if isinstance(layer, MessagePassing):
            for role in ROLE_MARKERS:
                if getattr(layer, role, None) is not None:
                    vars(layer)[role] = counted(getattr(layer, role), role, path)
    return calls


# --- one row ----------------------------------------------------------------------------------------


class Measurement:
    """Fills one row, column by column; a failing column does not keep the others from being tried."""

    def __init__(self, case: Case, with_compile: bool) -> None:
        self.case = case
        self.row = Row(case.key, with_compile)
        self.example = self.case.inputs(example())
        self.second = self.case.inputs(second())
        self.check_inputs = self.second if case.check_given else None
        self.rough: dict[str, Inputs] = {}

    def fresh(self) -> nn.Module:
        """The model as it is after construction; lazy layers have seen the example."""
        seed_everything(SEED)
        model = self.case.build()
        if any(nn.parameter.is_lazy(p) for p in (*model.parameters(), *model.buffers())):
            evaluate(model, self.example)
        return model

    def column(self, name: str, check: Callable[[], None]) -> bool:
        """Fill one cell; returns whether the check passed."""
        try:
            check()
        except Exception as error:
            self.row.cells[name] = False
            kind = "" if isinstance(error, DifferenceError) else f"{type(error).__name__}: "
            self.row.reasons[name] = without_folders(kind + str(error).strip())
            return False
        self.row.cells[name] = True
        return True

    def fill(self) -> Row:
        """Measure everything that can be measured."""
        start = time.perf_counter()
        if self.column("eager", self.runs_eagerly):
            self.find_hard_graphs()
            if self.column("traced", self.traces):
                self.column("second", self.is_equal_on_second_graph)
                self.column("hard", self.is_equal_on_hard_graphs)
                self.column("train", self.is_equal_in_training)
                self.column("names", self.keeps_names)
                self.column("roles", self.shows_roles)
            quantized = self.column("quantized", self.quantizes)
            if self.row.with_compile:
                self.column("lowered", self.lowers_float)
                if quantized and self.column("compiled", self.compiles):
                    self.column("exact", self.is_exact)
                    self.column("trained", self.is_what_trains)
                if quantized:
                    self.column("onnx", self.exports)
        self.row.seconds = round(time.perf_counter() - start, 2)
        return self.row

    def fill_onnx(self) -> Row:
        """Measure what the column about ONNX needs, and nothing else."""
        start = time.perf_counter()
        if self.column("eager", self.runs_eagerly):
            self.find_hard_graphs()
            if self.column("quantized", self.quantizes):
                self.column("onnx", self.exports)
        self.row.seconds = round(time.perf_counter() - start, 2)
        return self.row

    # --- eager ------------------------------------------------------------------------------------

    def runs_eagerly(self) -> None:
        """The model itself, in both modes, on both graphs."""
        for inputs in (self.example, self.second):
            self.wanted = evaluate(self.fresh(), inputs)
            train(self.fresh(), inputs)

    def find_hard_graphs(self) -> None:
        """Keep those hard graphs on which the model itself runs and stays finite."""
        for name, graph in hard().items():
            try:
                inputs = self.case.inputs(graph)
                outputs = evaluate(self.fresh(), inputs)
            except Exception:
                continue
            if all(bool(dense(out).isfinite().all()) for out in outputs if isinstance(out, Tensor)):
                self.rough[name] = inputs
        self.row.facts["hard graphs"] = list(self.rough)

    # --- tracing ----------------------------------------------------------------------------------

    def traces(self) -> None:
        """``trace`` accepts the model, and the result equals it on the example."""
        self.traced = trace(self.fresh(), self.example, check_inputs=self.check_inputs)
        require_same_outputs(evaluate(self.traced, self.example), evaluate(self.fresh(), self.example))

    def is_equal_on_second_graph(self) -> None:
        """In eval mode."""
        self.row.facts["difference"] = require_same_outputs(
            evaluate(self.traced, self.second), evaluate(self.fresh(), self.second)
        )

    def is_equal_on_hard_graphs(self) -> None:
        """In eval mode, wherever the model runs."""
        for name, inputs in self.rough.items():
            with on(name):
                require_same_outputs(evaluate(self.traced, inputs), evaluate(self.fresh(), inputs))

    def is_equal_in_training(self) -> None:
        """Same seed, same outputs, gradients and buffers, on both graphs."""
        for inputs in (self.example, self.second):
            wanted, their_gradients, their_buffers = train(self.fresh(), inputs)
            found, our_gradients, our_buffers = train(copy.deepcopy(self.traced), inputs)
            require_same_outputs(found, wanted)
            for name, gradient in their_gradients.items():
                if name in our_gradients:
                    require_close(our_gradients[name], gradient, f"the gradient of {name}", 1e-4)
                elif gradient.any() and not self.is_alias(name):
                    raise DifferenceError(f"{name} receives no gradient")
            for name in our_buffers.keys() & their_buffers.keys():
                require_close(our_buffers[name], their_buffers[name], f"the buffer {name} after a run")

    def is_alias(self, name: str) -> bool:
        """Whether a parameter of this name is known by another name too."""
        model = self.fresh()
        return name not in dict(model.named_parameters())

    def keeps_names(self) -> None:
        """Every parameter that learns has its name and its value; no other name appears."""
        theirs = dict(self.fresh().named_parameters(remove_duplicate=False))
        ours = dict(self.traced.named_parameters(remove_duplicate=False))
        if invented := sorted(ours.keys() - theirs.keys()):
            raise DifferenceError(f"parameters with new names: {', '.join(invented)}")
        for name, parameter in ours.items():
            require_close(parameter, theirs[name], name)
        _, gradients, _ = train(self.fresh(), self.example)
        lost = [n for n, g in gradients.items() if n not in ours and g.any() and not self.is_alias(n)]
        if lost:
            raise DifferenceError(f"parameters that learn and are missing: {', '.join(sorted(lost))}")

    def idle_layers(self) -> set[str]:
        """Layers none of whose parameters learns: nothing that they compute reaches the result."""
        model = self.fresh()
        _, gradients, _ = train(model, self.example)
        layers = [(path, layer) for path, layer in model.named_modules() if isinstance(layer, MessagePassing)]
        parameters = {path: dict(layer.named_parameters(path)) for path, layer in layers}
        return {path for path, named in parameters.items() if named and not named.keys() & gradients.keys()}

    def shows_roles(self) -> None:
        """As many markers as calls of ``message``, ``aggregate`` ... of every layer that matters."""
        model = self.fresh()
        calls = counted_roles(model)
        idle = self.idle_layers()
        evaluate(model, self.example)
        roles = {marker: role for role, marker in ROLE_MARKERS.items()}
        shown: dict[tuple[str, str], set[int]] = collections.defaultdict(set)
        for node in self.traced.graph.nodes:
            if node.op == "call_function" and node.target in roles:
                _, path, call = node.args
                shown[roles[node.target], path].add(call)
        for (role, path), count in calls.items():
            if path not in idle and len(shown[role, path]) < count:
                raise DifferenceError(
                    f"{role} of {path or 'the model'} is called {count} times and marked "
                    f"{len(shown[role, path])} times"
                )
        self.row.facts["roles"] = sum(calls.values())

    # --- quantizing -------------------------------------------------------------------------------

    def quantizes(self) -> None:
        """``convert`` and ``calibrate`` accept the model, and every range receives a finite gradient."""
        q = gnnquant.convert(self.fresh(), self.example, bits=BITS, check_inputs=self.check_inputs)
        gnnquant.calibrate(q, [cloned(self.example)])
        learner = copy.deepcopy(q)
        quantizers = quantizers_of(learner)
        used: set[str] = set()
        for name, quantizer in quantizers.items():
            quantizer.register_forward_hook(lambda *_, name=name: used.add(name))
        evaluate(learner, self.second)
        in_eval = set(used)
        used.clear()
        outputs, gradients, _ = train(learner, self.example)
        unused = sorted(quantizers.keys() - used - in_eval)
        if unused:
            raise DifferenceError(f"quantizers that nothing calls: {', '.join(unused)}")
        learns = any(isinstance(out, Tensor) and out.requires_grad for out in outputs)
        # A range that no gradient can reach (before an argmax, say) is no parameter that learns.
        reachable = (name for name in sorted(used) if quantizers[name].log_scale.requires_grad)
        for name in reachable if learns else ():
            gradient = gradients.get(f"{name}.log_scale")
            if gradient is None or not gradient.isfinite().all():
                raise DifferenceError(
                    f"the range of {name} receives {'no' if gradient is None else 'a NaN'} gradient"
                )
        _, wanted, _ = train(self.fresh(), self.example)
        lost = [n for n, g in wanted.items() if g.any() and n not in gradients and not self.is_alias(n)]
        if lost:
            raise DifferenceError(f"parameters that learn no more: {', '.join(sorted(lost))}")
        self.row.facts["quantizers"] = len(quantizers)
        self.quantized: QuantizedModule = q

    # --- compiling --------------------------------------------------------------------------------

    def graphs(self) -> dict[str, Inputs]:
        """All graphs that results are compared on."""
        return {"the example": self.example, "another graph": self.second, **self.rough}

    def lowers_float(self) -> None:
        """The traced model as an integer graph without integers equals PyG, so that the lowering is right."""
        q = gnnquant.convert(self.fresh(), self.example, bits=32, check_inputs=self.check_inputs)
        reference = gnnquant.compile(q, target="reference")
        for name, inputs in self.graphs().items():
            wanted = evaluate(self.fresh(), inputs)
            with on(name):
                require_same_outputs(pytree.tree_leaves(run(reference, inputs)), wanted, tolerance=1e-4)

    def compiles(self) -> None:
        """``compile`` returns machine code, and equal results on the example."""
        start = time.perf_counter()
        try:
            self.compiled = gnnquant.compile(self.quantized, cloned(self.example), threads=1)
            self.reference = gnnquant.compile(self.quantized, target="reference")
        except gnnquant.BackendError as error:
            self.row.refused = names_a_node(str(error), self.quantized)
            raise
        self.row.facts["compile seconds"] = round(time.perf_counter() - start, 2)

    def is_exact(self) -> None:
        """The same bits as the reference on every graph."""
        for name, inputs in self.graphs().items():
            with on(name):
                found, wanted = (pytree.tree_leaves(run(m, inputs)) for m in (self.compiled, self.reference))
                require_same_bits(found, wanted)

    def is_what_trains(self) -> None:
        """The compiled model against the module with fake quantization that it was lowered from."""
        shares = []
        for inputs in (self.example, self.second):
            found = pytree.tree_leaves(run(self.compiled, inputs))
            shares.append(share_near(found, evaluate(self.quantized, inputs)))
        self.row.facts["share of numbers near the trained model's"] = round(min(shares), 3)
        require_near(min(shares), "those of the model that trains")

    def exports(self) -> None:
        """``export_onnx`` in FP32 and INT4; ONNX Runtime computes what the reference does on every graph."""
        floats = gnnquant.convert(self.fresh(), self.example, bits=32, check_inputs=self.check_inputs)
        shares = [1.0]
        for q in (floats, self.quantized):
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "model.onnx"
                gnnquant.export_onnx(q, path, cloned(self.example))
                session = OnnxSession(lower(q), path, threads=1)
            reference = gnnquant.compile(q, target="reference")
            for name, inputs in self.graphs().items():
                with on(f"{q.bits} bits, {name}"):
                    found, wanted = (pytree.tree_leaves(run(m, inputs)) for m in (session, reference))
                    if q.bits == 32:
                        require_same_outputs(found, wanted)
                    else:
                        shares.append(share_near(found, wanted))
                        require_near(shares[-1], "the reference's")
        self.row.facts["share of numbers near the reference's in ONNX"] = round(min(shares), 3)


def require_near(share: float, what: str) -> None:
    """Raise ``DifferenceError`` unless enough numbers are near."""
    if share < MOST:
        raise DifferenceError(f"only {share:.0%} of the numbers are {what}")


def share_near(found: list[Any], wanted: list[Any]) -> float:
    """Share of numbers that are near, of the output where it is smallest."""
    pairs = [
        (torch.as_tensor(f).double(), w.detach().double())
        for f, w in zip(found, wanted, strict=True)
        if isinstance(w, Tensor) and w.numel()
    ]
    shares = [float(((f - w).abs() <= NEAR * w.abs().max()).double().mean()) for f, w in pairs]
    return min(shares, default=1.0)


def without_folders(message: str) -> str:
    """An error message without what is particular to this machine: paths start at the package."""
    return re.sub(r"/\S*/site-packages/", "", message).replace(f"{Path.cwd()}/", "")


def names_a_node(message: str, module: QuantizedModule) -> bool:
    """Whether an error message names a node, an input or a module of the graph."""
    known = {node.name for node in module.graph.nodes}
    known |= {str(node.target).lstrip("*") for node in module.graph.nodes if isinstance(node.target, str)}
    return bool(known & set(re.findall(r"[\w.]+", message)))


def measure(case: Case, with_compile: bool, only_onnx: bool = False) -> Row:
    """Everything about one case, or ONNX alone; threads and warnings are those of the process."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        measurement = Measurement(case, with_compile)
        return measurement.fill_onnx() if only_onnx else measurement.fill()
