"""``trace``: from a user's model to a verified ``TracedModule``."""

from __future__ import annotations

import traceback
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils import _pytree as pytree

from gnnquant.errors import TraceError
from gnnquant.tracing.check import Verifier, cloned, likely_causes
from gnnquant.tracing.copies import fixed_randomness, private_copy
from gnnquant.tracing.examples import synthesize_inputs
from gnnquant.tracing.interception import TRACE_LOCK, patched, recording
from gnnquant.tracing.merge import merge_modes
from gnnquant.tracing.module import TracedModule
from gnnquant.tracing.numbers import SymbolicNumber
from gnnquant.tracing.signature import (
    CallSignature,
    call,
    forward_signature,
    layout_of,
    plain_edge_index,
)
from gnnquant.tracing.tracer import Recorder

if TYPE_CHECKING:
    import inspect


def trace(
    model: nn.Module,
    example_inputs: tuple[Any, ...] | Mapping[str, Any] | None = None,
    *,
    check_inputs: tuple[Any, ...] | Mapping[str, Any] | None = None,
) -> TracedModule:
    """Turn ``model`` into one graph with explicit messages and aggregates.

    The model is left as it is: what is traced, run and returned are deep copies. The copy in the result
    keeps the model's qualified names (parameters that the graph does not use are left out), its
    training flags, and its way of being called. Layers with ``cached=True`` compute instead of caching.

    The result is checked against the model on the example and on a second graph of another size, in
    eval mode and, with the same seed, in train mode: outputs, gradients and running statistics.

    Args:
        model: any module over tensors; its ``MessagePassing`` layers are looked into.
        example_inputs: positional arguments as a tuple, or a dict by parameter name. Left out, they are
            made up where ``forward`` takes ``x`` and ``edge_index`` (see ``synthesize_inputs``).
            Tensors, containers of them and numbers become inputs of the graph; ``None``, strings,
            flags, numbers left at their default and numbers that only steer Python become constants.
        check_inputs: the second graph, where the one drawn from the example does not suit the model.

    Raises:
        TraceError: when the model cannot be traced, or the trace would not hold; it says why, where in
            the model's code, and what to do.
    """
    _reject_wrappers(model)
    signature = forward_signature(model)
    with TRACE_LOCK, torch.inference_mode(False), torch.enable_grad():
        if example_inputs is None:
            example = synthesize_inputs(model)
        else:
            example = _by_name(signature, example_inputs, "example_inputs")
        given = None
        if check_inputs is not None:
            given = _by_name(signature, check_inputs, "check_inputs")
        original = private_copy(model)
        verifier = Verifier(original, signature, example)
        verifier.add_second_graph(example, given)
        with patched(original):
            evaluation, _ = _record(original, signature, example, training=False)
            recorder, inputs = _record(original, signature, example, training=True)
        recorder = merge_modes(recorder, evaluation)
        traced = _build(original, recorder, signature, example, inputs)
        verifier.verify(traced, recorder.notes)
    return traced


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
    lazy = [n for n, p in (*model.named_parameters(), *model.named_buffers()) if is_lazy(p)]
    if lazy:
        raise TraceError(f"'{lazy[0]}' has no shape yet; run the model once on your data before tracing it")


def _by_name(signature: inspect.Signature, inputs: object, what: str) -> dict[str, Any]:
    """Inputs by parameter name, with defaults filled in."""
    expected = "a tuple of positional arguments or a dict by parameter name"
    if not isinstance(inputs, (tuple, Mapping)):
        raise TraceError(f"{what} must be {expected}, not {type(inputs).__name__}")
    try:
        bound = signature.bind(**inputs) if isinstance(inputs, Mapping) else signature.bind(*inputs)
    except TypeError as error:
        raise TraceError(f"{what} does not fit forward{signature}: {error}; give {expected}") from None
    for name, value in bound.arguments.items():
        for leaf in pytree.tree_leaves(value):
            if leaf is None or isinstance(leaf, (Tensor, int, float, str, torch.dtype, torch.device)):
                continue
            raise TraceError(
                f"{what}: '{name}' holds a {type(leaf).__name__}, and a traced graph takes tensors "
                "only; write a small module whose forward takes the tensors (x, edge_index, ...) and "
                "calls the model with them"
            )
    bound.apply_defaults()
    return dict(bound.arguments)


def _record(
    model: nn.Module, signature: inspect.Signature, example: Mapping[str, Any], training: bool
) -> tuple[Recorder, set[str]]:
    """Run a copy of ``model`` under a recorder; returns it and the parameters that became inputs."""
    copied = private_copy(model).train(training)
    recorder = Recorder(copied)
    arguments: dict[str, Any] = {}
    inputs: dict[str, Any] = {}
    for name, value in cloned(example).items():
        parameter = signature.parameters[name]
        arguments[name] = plain_edge_index(value)
        if _can_vary(value) and value is not parameter.default:
            stars = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}
            placeholder = stars.get(parameter.kind, "") + name  # type: ignore[call-overload]
            arguments[name] = inputs[name] = recorder.placeholder(placeholder, arguments[name])
    try:
        with fixed_randomness(0), recording(recorder):
            recorder.output(call(copied, signature, arguments))
    except TraceError:
        raise
    except Exception as error:
        mode = "train" if training else "eval"
        raise TraceError(
            f"the model runs, but not while it is traced in {mode} mode: {type(error).__name__}: "
            f"{error} at {_model_line(error)}{likely_causes(recorder.notes)}"
        ) from error
    recorder.dead_code_removed()
    _drop_unused_numbers(recorder, inputs)
    return recorder, set(inputs)


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
    inputs: set[str],
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
    convention = CallSignature(
        signature,
        {name: layout_of(plain_edge_index(example[name])) for name in order},
        {name: value for name, value in example.items() if name not in inputs},
    )
    recorder.graph.lint()
    return TracedModule(root, recorder.graph, convention)


def _model_line(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if "/torch/" not in f.filename and "gnnquant/tracing" not in f.filename]
    if not own:
        return "unknown"
    users = [f for f in own if "site-packages" not in f.filename]
    frame = (users or own)[-1]
    return f"{frame.filename}:{frame.lineno}"
