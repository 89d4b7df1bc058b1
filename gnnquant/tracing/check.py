"""Always check, never trust: a trace is run against the model on two graphs in both modes.

What baked a size or a branch of the first graph into the trace announces itself nowhere else:
``0.5 * x.size(0)`` through C code, ``math.sqrt(n)``, ``lst[:n]``, a cache filled by an earlier call.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from gnnquant.errors import TraceError
from gnnquant.tracing.copies import fixed_randomness, private_copy
from gnnquant.tracing.examples import doubled_example, second_example
from gnnquant.tracing.signature import attributes_left_out, call
from gnnquant.tracing.tracer import tensors_in

if TYPE_CHECKING:
    import inspect
    from collections.abc import Callable, Iterable, Mapping

    from gnnquant.tracing.module import TracedModule
    from gnnquant.tracing.tracer import Note

_SEED = 20240
_MODES = {"eval": False, "train": True}
_CAUSES = (
    "escape",
    "number-lost",
    "data-branch",
    "loop",
    "constant",
    "attribute",
    "size-branch",
    "training-branch",
)
"""Kinds of notes, the most telling first."""


@dataclasses.dataclass
class Outcome:
    """What one run left behind."""

    output: Any
    gradients: dict[str, Tensor]
    state: dict[str, Tensor]


def cloned(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Copies of the tensors, so that a run cannot change the user's inputs."""

    def clone(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        return leaf.detach().clone().requires_grad_(leaf.requires_grad)

    return {name: pytree.tree_map(clone, value) for name, value in arguments.items()}


@torch.no_grad()
def evaluate(module: TracedModule, arguments: Mapping[str, Any]) -> Any:
    """Run ``module`` in eval mode on copies of ``arguments`` (by parameter name), with a fixed seed."""
    was_training = module.training
    module.eval()
    try:
        with fixed_randomness(_SEED):
            return call(module, module.signature.parameters, cloned(arguments))
    finally:
        module.train(was_training)


def run_once(
    module: nn.Module, signature: inspect.Signature, arguments: Mapping[str, Any], training: bool
) -> Outcome:
    """Run a copy of ``module`` forwards and backwards with a fixed seed."""
    copied = private_copy(module)
    copied.train(training)  # a user's train() may return nothing
    with fixed_randomness(_SEED), torch.enable_grad():
        output = call(copied, signature, cloned(arguments))
        gradients = _gradients(copied, output)
    state = {**dict(copied.named_buffers()), **dict(copied.named_parameters())}
    return Outcome(output, gradients, state)


def _gradients(module: nn.Module, output: Any) -> dict[str, Tensor]:
    """Gradients of a fixed weighting of all outputs, by parameter name.

    ``backward`` rather than ``autograd.grad``, which reentrant checkpoints do not support.
    """
    named = {n: p for n, p in module.named_parameters() if p.requires_grad and p.is_leaf}
    results = [t for t in tensors_in(output) if t.requires_grad and t.layout == torch.strided]
    if not named or not results:
        return {}
    weights = torch.Generator().manual_seed(_SEED)
    total = torch.zeros((), dtype=torch.float64)
    for result in results:
        weight = torch.rand(result.shape, generator=weights).to(result.device, result.dtype)
        total = total + (result * weight).sum().abs().cpu().double()
    for parameter in named.values():
        parameter.grad = None
    total.backward()  # type: ignore[no-untyped-call]
    return {name: p.grad for name, p in named.items() if p.grad is not None}


class Verifier:
    """Runs the user's model first, so that its own failures are told apart from those of the trace."""

    def __init__(self, model: nn.Module, signature: inspect.Signature, example: Mapping[str, Any]) -> None:
        self.model = model
        self.signature = signature
        self.graphs: list[tuple[str, Mapping[str, Any], dict[str, Outcome]]] = []
        self._add_example(example)

    def _add_example(self, example: Mapping[str, Any]) -> None:
        outcomes = self._run_both_modes(lambda: example)
        if isinstance(outcomes, Exception):
            left_out = sorted({name for value in example.values() for name in attributes_left_out(value)})
            hint = f" (the model was run without {', '.join(left_out)}: no tensors)" if left_out else ""
            raise TraceError(
                f"the model itself fails on the example inputs ({type(outcomes).__name__}: {outcomes})"
                f"{hint}; give example_inputs that it runs on in both train and eval mode"
            ) from outcomes
        self.graphs.append(("the example", *outcomes))

    def add_second_graph(self, example: Mapping[str, Any], given: Mapping[str, Any] | None) -> None:
        """Find another graph that the model accepts: the ``given`` one, or a drawn one."""
        draws: list[Callable[[], Mapping[str, Any]]] = [
            lambda: second_example(dict(example)),
            lambda: second_example(dict(example), same_graphs=True),
            lambda: doubled_example(dict(example)),
        ]
        name = "graphs of other sizes drawn from the example"
        if given is not None:
            draws, name = [lambda: given], "check_inputs"
        failures = []
        for draw in draws:
            outcomes = self._run_both_modes(draw)
            if not isinstance(outcomes, Exception):
                self.graphs.append(("a second graph", *outcomes))
                return
            failures.append(outcomes)
        raise TraceError(
            f"the model itself fails on {name} ({type(failures[0]).__name__}: {failures[0]}), so the trace "
            "cannot be verified; pass check_inputs= with another graph that the model accepts"
        ) from failures[0]

    def _run_both_modes(
        self, draw: Callable[[], Mapping[str, Any]]
    ) -> tuple[Mapping[str, Any], dict[str, Outcome]] | Exception:
        """The drawn inputs and what the model makes of them, or the error it raises."""
        try:
            arguments = draw()
            return arguments, {
                mode: run_once(self.model, self.signature, arguments, training)
                for mode, training in _MODES.items()
            }
        except TraceError:
            raise
        except Exception as error:
            return error

    def verify(self, traced: TracedModule, notes: Mapping[Note, None]) -> None:
        """Raise ``TraceError`` unless ``traced`` agrees with the model everywhere."""
        for label, arguments, outcomes in self.graphs:
            for mode, training in _MODES.items():
                where = f"on {label} in {mode} mode"
                try:
                    got = run_once(traced, self.signature, arguments, training)
                except Exception as error:
                    raise TraceError(
                        f"the traced model fails {where} where the model does not "
                        f"({type(error).__name__}: {error}){likely_causes(notes)}"
                    ) from error
                difference = _difference(outcomes[mode], got)
                if difference:
                    raise TraceError(
                        f"the traced model differs from the model {where}: {difference}{likely_causes(notes)}"
                    )


def ranked_notes(notes: Mapping[Note, None]) -> list[Note]:
    """What tracing noticed, the most telling first."""
    return sorted(notes, key=lambda note: _CAUSES.index(note.kind))


def likely_causes(notes: Mapping[Note, None]) -> str:
    """What tracing noticed, the most telling first, as the end of an error message."""
    ranked = ranked_notes(notes)
    lines = [f"\n  - {note}" for note in ranked[:5]]
    lines.append(
        f"\n  - {'something' if ranked else 'nothing was noticed while tracing, so something'} that leaves "
        "no trail: a float times a size (write n * 0.5, not 0.5 * n), a list slice [:n], NumPy, or a "
        "result kept from an earlier call"
    )
    return (
        f". Likely causes:{''.join(lines)}\nKeep such values in tensors, or move that code out of the model"
    )


def _difference(expected: Outcome, got: Outcome) -> str | None:
    """What is not equal, in words; None when all agrees."""
    return (
        _outputs_differ(expected.output, got.output)
        or _states_differ(expected.state, got.state)
        or _gradients_differ(expected.gradients, got.gradients, got.state.keys())
    )


def _outputs_differ(expected: Any, got: Any) -> str | None:
    theirs, their_layout = pytree.tree_flatten(expected)
    ours, our_layout = pytree.tree_flatten(got)
    if their_layout != our_layout:
        return f"the output is {our_layout} instead of {their_layout}"
    for number, (a, b) in enumerate(zip(theirs, ours, strict=True)):
        problem = _values_differ(a, b, 1e-5, 1e-6)
        if problem:
            return f"output {number} {problem}" if len(theirs) > 1 else f"the output {problem}"
    return None


def _states_differ(expected: dict[str, Tensor], got: dict[str, Tensor]) -> str | None:
    for name, value in got.items():
        problem = _values_differ(expected[name], value, 1e-5, 1e-6) if name in expected else None
        if problem:
            return f"after the run '{name}' {problem}"
    return None


def _gradients_differ(
    expected: dict[str, Tensor], got: dict[str, Tensor], names: Iterable[str]
) -> str | None:
    for name in names:
        a, b = expected.get(name), got.get(name)
        if a is not None and b is not None:
            problem = _values_differ(a, b, 1e-4, 1e-5)
            if problem:
                return f"the gradient of '{name}' {problem}"
        elif (a is not None and a.any()) or (b is not None and b.any()):
            side = "the model" if b is None else "the traced model"
            return f"only {side} has a gradient for '{name}'"
    return None


def _values_differ(expected: Any, got: Any, relative: float, absolute: float) -> str | None:
    if not isinstance(expected, Tensor) or not isinstance(got, Tensor):
        return None if expected == got else f"is {got!r} instead of {expected!r}"
    for kind in ("layout", "shape", "dtype"):
        theirs, ours = getattr(expected, kind), getattr(got, kind)
        if theirs != ours:
            shown = (tuple(ours), tuple(theirs)) if kind == "shape" else (ours, theirs)
            return f"has {kind} {shown[0]} instead of {shown[1]}"
    if expected.layout != torch.strided:
        expected, got = expected.to_dense(), got.to_dense()
    if torch.equal(expected, got) or expected.numel() == 0:
        return None
    a, b = expected.detach().double(), got.detach().double()
    finite = a.abs()[a.isfinite()]
    scale = max(1.0, float(finite.max())) if finite.numel() else 1.0
    if torch.allclose(a, b, rtol=relative, atol=absolute * scale, equal_nan=True):
        return None
    return f"is off by up to {float((a - b).abs().nan_to_num(torch.inf).max()):.3g}"
