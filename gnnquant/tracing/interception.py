"""Puts a recorder in the way of the model's calls, and takes it out again.

What cannot be seen through a torch function mode is patched: module calls, autograd functions, PyG's
semantic helpers and a few builtins. The patches are global, so they stand under one lock, act only in
the recording thread, and are undone whatever happens. The model itself must be a private copy.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
import sys
import threading
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional
from torch_geometric.nn import Aggregation, InstanceNorm, MessagePassing, MultiAggregation

from gnnquant.tracing.graph_ops import sorted_index
from gnnquant.tracing.leaves import is_leaf_module, leaf_functions, open_modules
from gnnquant.tracing.numbers import (
    BUILTIN_STAND_INS,
    MATH_STAND_IN,
    ModelFloat,
    TrainingFlag,
    current_recorder,
    set_current_recorder,
)
from gnnquant.tracing.tracer import flag_position, wrap_roles

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor

    from gnnquant.tracing.tracer import Recorder

TRACE_LOCK = threading.RLock()
"""Held while a model is traced: one trace at a time in a process."""

_DROPOUTS = ("dropout", "alpha_dropout", "feature_alpha_dropout")
_FLAGGED = (*_DROPOUTS, "feature_dropout", "native_dropout", "rrelu", "batch_norm", "instance_norm")
"""Functions of ``torch`` that take a training flag."""
_NEVER_PATCHED = frozenset({"torch", "builtins", "numpy", "gnnquant", "typing", "sys"})
_OWN_LAYERS = "gnnquant.smoothness"
"""The part of gnnquant that users put into their models: patched like their own code."""


@contextlib.contextmanager
def patched(model: nn.Module) -> Iterator[None]:
    """Inside of the block, calls can be recorded. Needs ``TRACE_LOCK``."""
    with contextlib.ExitStack() as undo:
        _patch_module_calls(undo)
        _patch_autograd_functions(undo)
        _patch_sortedness(undo)
        _patch_flags_of_torch(undo)
        _patch_globals(model, undo)
        yield


@contextlib.contextmanager
def recording(recorder: Recorder) -> Iterator[None]:
    """Inside of the block, this thread's calls are recorded. Needs ``patched``."""
    _prepare_copy(recorder)
    set_current_recorder(recorder)
    try:
        with recorder.mode():
            yield
    finally:
        set_current_recorder(None)


def _prepare_copy(recorder: Recorder) -> None:
    """Markers and training flags on the private copy; nothing to undo."""
    for module in open_modules(recorder.model, recorder.whole):
        path = recorder.paths[module]
        if isinstance(module, MessagePassing):
            wrap_roles(recorder, module, path)
        if isinstance(module, MultiAggregation):
            module.fused_aggr = None  # the same results, from aggregations that passes know
        if isinstance(module, InstanceNorm):  # it reads the flag only where it has running statistics
            continue
        flag = TrainingFlag(module.training)
        flag.path = path
        vars(module)["training"] = flag
        for key, value in vars(module).items():
            if type(value) is float:
                vars(module)[key] = ModelFloat(value)


def _patch_module_calls(undo: contextlib.ExitStack) -> None:
    for cls in (nn.Module, Aggregation):  # Aggregation.__call__ does work before nn.Module's
        original: Callable[..., Any] = cls.__call__

        def call(
            module: nn.Module,
            *args: Any,
            _original: Callable[..., Any] = original,
            **kwargs: Any,
        ) -> Any:
            recorder = current_recorder()
            path = None if recorder is None else recorder.open_module(module)
            if recorder is None or path is None:
                return _original(module, *args, **kwargs)
            if path in recorder.whole or (module is not recorder.model and is_leaf_module(module)):
                return recorder.leaf_module(path, module, _original, args, kwargs)
            with recorder.inside(path):
                return _original(module, *args, **kwargs)

        _replace(cls, "__call__", call, undo)


def _patch_autograd_functions(undo: contextlib.ExitStack) -> None:
    base = torch.autograd.Function
    original = vars(base)["apply"].__func__

    def apply(cls: type[torch.autograd.Function], *args: Any, **kwargs: Any) -> Any:
        recorder = current_recorder()
        run = functools.partial(original, cls)
        if recorder is None:
            return run(*args, **kwargs)
        return recorder.autograd_function(cls, run, args, kwargs)

    _replace(base, "apply", classmethod(apply), undo)


def _patch_sortedness(undo: contextlib.ExitStack) -> None:
    """Aggregations that need a sorted index check it by a branch on its values: keep the check."""

    def assert_sorted_index(module: Aggregation, index: Tensor | None) -> None:
        recorder = current_recorder()
        if recorder is None or index is None:
            original(module, index)
        else:
            recorder.checked(index, sorted_index)

    original: Callable[..., Any] = Aggregation.assert_sorted_index
    _replace(Aggregation, "assert_sorted_index", assert_sorted_index, undo)


def _patch_flags_of_torch(undo: contextlib.ExitStack) -> None:
    """Functions written in C insist on a ``bool`` where the model hands on its training flag."""
    for home, name in itertools.product((torch, torch._VF), _FLAGGED):
        original = getattr(home, name)
        equivalent = getattr(functional, name) if name in _DROPOUTS else None

        def call(
            *args: Any,
            _original: Callable[..., Any] = original,
            _equivalent: Callable[..., Any] | None = equivalent,
            **kwargs: Any,
        ) -> Any:
            recorder = current_recorder()
            flag = None if recorder is None else flag_position(args, kwargs)
            if recorder is None or flag is None:
                return _original(*args, **kwargs)
            if _equivalent is not None:
                renamed = {"training" if k == "train" else k: v for k, v in kwargs.items()}
                return _equivalent(*args, **renamed)
            return recorder.toggle(_original, flag, args, kwargs)

        setattr(home, name, functools.wraps(original)(call))
        undo.callback(setattr, home, name, original)


def _patch_globals(model: nn.Module, undo: contextlib.ExitStack) -> None:
    wrapped = {id(function): _as_leaf(function) for function in leaf_functions()}
    tops = {
        cls.__module__.partition(".")[0] for m in model.modules() for cls in type(m).__mro__
    } - _NEVER_PATCHED
    tops.add("torch_geometric")
    for name, module in list(sys.modules.items()):
        top = name.partition(".")[0]
        looked_into = top in tops or name.startswith(_OWN_LAYERS)
        if isinstance(module, ModuleType) and (looked_into or top not in _NEVER_PATCHED):
            stand_in = functools.partial(_stand_in, wrapped, looked_into)
            _put(vars(module), stand_in, BUILTIN_STAND_INS if looked_into else {}, undo)


def _stand_in(wrapped: dict[int, Callable[..., Any]], looked_into: bool, value: Any) -> Any:
    """What stands for ``value`` among the globals of a module, or None."""
    if looked_into and value is math:
        return MATH_STAND_IN
    if looked_into and isinstance(value, torch.jit.ScriptFunction):  # what it was compiled from
        return getattr(value, "_torchdynamo_inline", None)
    return wrapped.get(id(value))


def _put(
    names: dict[str, Any],
    stand_in: Callable[[Any], Any],
    missing: dict[str, Any],
    undo: contextlib.ExitStack,
) -> None:
    """Replace the values of ``names`` that have a stand-in, and add those that are ``missing``."""
    for key, value in list(names.items()):
        replacement = stand_in(value)
        if replacement is not None:
            names[key] = replacement
            undo.callback(names.__setitem__, key, value)
    for key, value in missing.items():
        if key not in names:
            names[key] = value
            undo.callback(names.pop, key, None)


def _as_leaf(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def leaf(*args: Any, **kwargs: Any) -> Any:
        recorder = current_recorder()
        if recorder is None:
            return function(*args, **kwargs)
        flag = flag_position(args, kwargs)
        if flag is not None:
            return recorder.toggle(function, flag, args, kwargs)
        return recorder.leaf_function(function, args, kwargs)

    return leaf


def _replace(cls: type, name: str, value: Any, undo: contextlib.ExitStack) -> None:
    before = vars(cls)[name]
    setattr(cls, name, value)
    undo.callback(setattr, cls, name, before)
