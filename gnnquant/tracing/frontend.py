"""``trace``: from a user's model to a verified ``TracedModule``."""

from __future__ import annotations

import operator
import traceback
import warnings
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from gnnquant.errors import TraceError
from gnnquant.tracing.check import Verifier, cloned, likely_causes
from gnnquant.tracing.copies import fixed_randomness, materialized, private_copy
from gnnquant.tracing.examples import synthesize_inputs
from gnnquant.tracing.fallback import keep_layers_whole, suspects
from gnnquant.tracing.interception import TRACE_LOCK, patched, recording
from gnnquant.tracing.merge import merge_modes
from gnnquant.tracing.module import TracedModule
from gnnquant.tracing.numbers import SymbolicNumber
from gnnquant.tracing.signature import (
    CallSignature,
    Fields,
    call,
    forward_signature,
    layout_of,
    plain_edge_index,
    spec_of,
    taken_apart,
)
from gnnquant.tracing.tracer import Recorder

if TYPE_CHECKING:
    import inspect

    from torch import fx


def trace(
    model: nn.Module,
    example_inputs: tuple[Any, ...] | Mapping[str, Any] | None = None,
    *,
    check_inputs: tuple[Any, ...] | Mapping[str, Any] | None = None,
    strict: bool = True,
) -> TracedModule:
    """Turn ``model`` into one graph with explicit messages and aggregates.

    The model is left as it is: what is traced, run and returned are deep copies. The copy in the result
    keeps the model's qualified names (parameters that the graph does not use are left out), its
    training flags, and its way of being called. Layers with ``cached=True`` compute instead of caching;
    layers that wait for their first input (``in_channels=-1``) get their shapes from the example.

    The result is checked against the model on the example and on a second graph of another size, in
    eval mode and, with the same seed, in train mode: outputs, gradients and running statistics.

    Args:
        model: any module over tensors; its ``MessagePassing`` layers are looked into.
        example_inputs: positional arguments as a tuple, or a dict by parameter name. Left out, they are
            made up where ``forward`` takes ``x`` and ``edge_index`` (see ``synthesize_inputs``).
            Tensors, containers of them, numbers and PyG's ``Data`` objects become inputs of the graph;
            ``None``, strings, flags, numbers left at their default and numbers that only steer Python
            become constants.
        check_inputs: the second graph, where the one drawn from the example does not suit the model.
        strict: ``False`` lets layers that cannot be traced stay one node each, with a ``UserWarning`` that
            names them and says why; see ``TracedModule.whole_layers``.

    Raises:
        TraceError: when the model cannot be traced, or the trace would not hold; it says why, where in
            the model's code, and what to do.
    """
    return trace_with_graphs(model, example_inputs, check_inputs=check_inputs, strict=strict)[0]


def trace_with_graphs(
    model: nn.Module,
    example_inputs: tuple[Any, ...] | Mapping[str, Any] | None = None,
    *,
    check_inputs: tuple[Any, ...] | Mapping[str, Any] | None = None,
    strict: bool = True,
) -> tuple[TracedModule, list[dict[str, Any]]]:
    """:func:`trace`, and the graphs that the result was checked on: the example, and one of another size.

    The graphs are arguments by parameter name, for :func:`gnnquant.tracing.check.evaluate`.
    """
    _reject_wrappers(model)
    with TRACE_LOCK, torch.inference_mode(False), torch.enable_grad():
        attempts = _Attempts(model, example_inputs, check_inputs)
        try:
            return attempts.trace(()), attempts.graphs
        except TraceError as error:
            found = None if strict else keep_layers_whole(attempts, error)
            if found is None:
                raise
    traced, reasons = found
    for reason in reasons:
        warnings.warn(reason, UserWarning, stacklevel=3)
    return traced, attempts.graphs


class _Attempts:
    """Traces one model, again and again with other layers kept whole if need be."""

    def __init__(
        self,
        model: nn.Module,
        example_inputs: tuple[Any, ...] | Mapping[str, Any] | None,
        check_inputs: tuple[Any, ...] | Mapping[str, Any] | None,
    ) -> None:
        """Run the model on the example and a second graph; its own failures are told apart here."""
        self.signature = forward_signature(model)
        if example_inputs is None:
            example_inputs = synthesize_inputs(model)
        self.example = _by_name(self.signature, example_inputs, "example_inputs")
        given = None
        if check_inputs is not None:
            given = _by_name(self.signature, check_inputs, "check_inputs")
        _check_devices(model, self.example)
        self.original = materialized(private_copy(model), self.signature, self.example)
        self.verifier = Verifier(self.original, self.signature, self.example)
        self.verifier.add_second_graph(self.example, given)
        self.evidence: list[str] = []

    @property
    def graphs(self) -> list[dict[str, Any]]:
        """The example and the second graph, as arguments by parameter name."""
        return [dict(arguments) for _, arguments, _ in self.verifier.graphs]

    def trace(self, whole: Collection[str]) -> TracedModule:
        """One attempt; the layers ``whole`` stay one node each.

        On a ``TraceError``, ``evidence`` holds the modules that may be to blame, the likeliest first.
        """
        original = self.original
        if "" in whole:  # a graph cannot call its own root
            original, whole = _Holder(original), ["layer"]
        with patched(original):
            evaluation, _ = self._record(original, whole, training=False)
            recorder, inputs = self._record(original, whole, training=True)
        recorder = merge_modes(recorder, evaluation)
        _drop_unused_numbers(recorder, inputs)
        traced = _build(original, recorder, self.signature, self.example, inputs)
        traced.whole_layers = tuple(whole)
        self.evidence = suspects(recorder.notes)
        self.verifier.verify(traced, recorder.notes)
        return traced

    def _record(
        self, model: nn.Module, whole: Collection[str], training: bool
    ) -> tuple[Recorder, dict[str, Any]]:
        """Run a copy of ``model`` under a recorder; returns it and the arguments that became inputs."""
        copied = private_copy(model)
        copied.train(training)
        recorder = Recorder(copied, whole)
        arguments: dict[str, Any] = {}
        inputs: dict[str, Any] = {}
        for name, value in cloned(self.example).items():
            parameter = self.signature.parameters[name]
            arguments[name] = plain_edge_index(value)
            if _can_vary(value) and value is not parameter.default:
                stars = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}
                placeholder = stars.get(parameter.kind, "") + name  # type: ignore[call-overload]
                inputs[name] = recorder.placeholder(placeholder, arguments[name])
                arguments[name] = inputs[name]
        try:
            with fixed_randomness(0), recording(recorder):
                recorder.output(call(copied, self.signature, arguments))
        except Exception as error:
            self.evidence = [recorder.failed_in, *suspects(recorder.notes)]
            if isinstance(error, TraceError):
                raise
            mode = "train" if training else "eval"
            raise TraceError(
                f"the model runs, but not while it is traced in {mode} mode: {type(error).__name__}: "
                f"{error} at {_model_line(error)}{likely_causes(recorder.notes)}"
            ) from error
        recorder.dead_code_removed()
        return recorder, inputs


class _Holder(nn.Module):
    """A model of one layer, so that the layer has a name."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        self.training = layer.training

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.layer(*args, **kwargs)


def _reject_wrappers(model: object) -> None:
    if not isinstance(model, nn.Module):
        raise TraceError(f"trace needs a torch.nn.Module, not {type(model).__name__}")
    for home, attribute in (("torch._dynamo", "_orig_mod"), ("torch.nn.parallel", "module")):
        if type(model).__module__.startswith(home):
            raise TraceError(
                f"the model is wrapped as {type(model).__name__}; trace model.{attribute} instead"
            )
    if isinstance(model, torch.jit.ScriptModule):
        raise TraceError("the model is a TorchScript module; trace the Python module it was made from")
    if any(isinstance(module, TracedModule) for module in model.modules()):
        raise TraceError("the model is traced already; trace the module that it was made from")


def _check_devices(model: nn.Module, example: Mapping[str, Any]) -> None:
    """Raise ``TraceError`` where the example lies on another device than the model."""
    homes = {str(p.device) for p in model.parameters()}
    for name, value in example.items():
        for leaf in pytree.tree_leaves(value):
            if len(homes) == 1 and isinstance(leaf, Tensor) and leaf.dim() and str(leaf.device) not in homes:
                raise TraceError(
                    f"the model is on {homes.pop()} and example input '{name}' on {leaf.device}; "
                    "move one to the other"
                )


def _by_name(signature: inspect.Signature, inputs: object, what: str) -> dict[str, Any]:
    """Inputs by parameter name, with defaults filled in."""
    expected = "a tuple of positional arguments or a dict by parameter name"
    if not isinstance(inputs, (tuple, Mapping)):
        raise TraceError(f"{what} must be {expected}, not {type(inputs).__name__}")
    try:
        bound = signature.bind(**inputs) if isinstance(inputs, Mapping) else signature.bind(*inputs)
    except TypeError as error:
        raise TraceError(f"{what} does not fit forward{signature}: {error}; give {expected}") from None
    for name, given in bound.arguments.items():
        bound.arguments[name] = value = taken_apart(given)
        for leaf in pytree.tree_leaves(value):
            if leaf is None or isinstance(leaf, (Tensor, int, float, str, torch.dtype, torch.device)):
                continue
            raise TraceError(
                f"{what}: '{name}' holds a {type(leaf).__name__}, and a traced graph takes tensors, "
                "numbers and PyG's Data objects; write a small module whose forward takes the tensors (x, "
                "edge_index, ...) and calls the model with them"
            )
    bound.apply_defaults()
    return dict(bound.arguments)


def _can_vary(value: Any) -> bool:
    """Whether an argument becomes an input: it holds a tensor or a number."""
    leaves = pytree.tree_leaves(value)
    return any(isinstance(leaf, (Tensor, int, float)) and not isinstance(leaf, bool) for leaf in leaves)


def _drop_unused_numbers(recorder: Recorder, inputs: dict[str, Any]) -> None:
    """A number that only steered Python (``num_layers=2``) is a constant of the graph."""
    for node in list(recorder.graph.nodes):
        name = str(node.target).lstrip("*")
        unused = node.op == "placeholder" and not node.users
        if unused and isinstance(inputs[name], SymbolicNumber):
            recorder.graph.erase_node(node)
            del inputs[name]


def _build(
    original: nn.Module,
    recorder: Recorder,
    signature: inspect.Signature,
    example: Mapping[str, Any],
    inputs: Collection[str],
) -> TracedModule:
    """Put the recorded graph over the pristine copy ``original``, which it may keep."""
    root = private_copy(original)
    for name, module in recorder.inserted.items():
        path, _, key = name.rpartition(".")
        owner = root.get_submodule(path)
        owner.add_module(key, module.train(owner.training))
    for name, constant in recorder.constants.items():
        setattr(root, name, constant)
    order = [name for name in signature.parameters if name in inputs]
    layouts = {}
    for node in recorder.graph.find_nodes(op="placeholder"):
        name = str(node.target).lstrip("*")
        value = _read_part(plain_edge_index(example[name]), node)
        layouts[name] = layout_of(value)
        node.meta["spec"] = spec_of(value)
    convention = CallSignature(
        signature,
        {name: layouts[name] for name in order},
        {name: value for name, value in example.items() if name not in inputs},
    )
    recorder.graph.lint()
    return TracedModule(root, recorder.graph, convention)


def _read_part(value: Any, node: fx.Node | None) -> Any:
    """``value`` without the fields of graph objects that nobody reads off ``node``."""
    if not isinstance(value, (dict, tuple, list)) or hasattr(value, "_fields"):
        return value
    read = {u.args[1]: u for u in node.users if u.target is operator.getitem} if node else {}
    if isinstance(value, Fields):
        return Fields({key: _read_part(item, read[key]) for key, item in value.items() if key in read})
    if isinstance(value, dict):
        return {key: _read_part(item, read.get(key)) for key, item in value.items()}
    return type(value)(_read_part(item, read.get(i)) for i, item in enumerate(value))


def _model_line(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if "/torch/" not in f.filename and "gnnquant/tracing" not in f.filename]
    if not own:
        return "unknown"
    users = [f for f in own if "site-packages" not in f.filename]
    frame = (users or own)[-1]
    return f"{frame.filename}:{frame.lineno}"
