"""Puts a recorder in the way of the model's calls, and takes it out again.

What cannot be seen through a torch function mode is patched: module calls, autograd functions, PyG's
semantic helpers and a few builtins. The patches are global, so they stand under one lock, act only in
the recording thread, and are undone whatever happens. The model itself must be a private copy.
"""

from __future__ import annotations

import contextlib
import functools
import sys
import threading
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch_geometric.nn import Aggregation, MessagePassing

from gnnquant.tracing.leaves import is_leaf_module, leaf_functions, open_modules
from gnnquant.tracing.numbers import (
    BUILTIN_STAND_INS,
    TrainingFlag,
    current_recorder,
    set_current_recorder,
)
from gnnquant.tracing.tracer import flag_position, wrap_roles

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from gnnquant.tracing.tracer import Recorder

TRACE_LOCK = threading.RLock()
"""Held while a model is traced: one trace at a time in a process."""

_NEVER_PATCHED = frozenset({"torch", "builtins", "numpy", "gnnquant", "typing", "sys"})
_OWN_LAYERS = "gnnquant.smoothness"
"""The part of gnnquant that users put into their models: patched like their own code."""


@contextlib.contextmanager
def patched(model: nn.Module) -> Iterator[None]:
    """Inside of the block, calls can be recorded. Needs ``TRACE_LOCK``."""
    with contextlib.ExitStack() as undo:
        _patch_module_calls(undo)
        _patch_autograd_functions(undo)
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
    for module in open_modules(recorder.model):
        path = recorder.paths[module]
        if isinstance(module, MessagePassing):
            wrap_roles(recorder, module, path)
        flag = TrainingFlag(module.training)
        flag.path = path
        vars(module)["training"] = flag


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
            if module is not recorder.model and is_leaf_module(module):
                return recorder.leaf_module(path, module, _original, args, kwargs)
            recorder.enter_module(path)
            try:
                return _original(module, *args, **kwargs)
            finally:
                recorder.leave_module()

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


def _patch_globals(model: nn.Module, undo: contextlib.ExitStack) -> None:
    wrapped = {id(function): _as_leaf(function) for function in leaf_functions()}
    tops = {
        cls.__module__.partition(".")[0] for m in model.modules() for cls in type(m).__mro__
    } - _NEVER_PATCHED
    tops.add("torch_geometric")
    for name, module in list(sys.modules.items()):
        own_layers = name.startswith(_OWN_LAYERS)
        top = name.partition(".")[0]
        if not isinstance(module, ModuleType) or (top in _NEVER_PATCHED and not own_layers):
            continue
        names = vars(module)
        for key, value in list(names.items()):
            if id(value) in wrapped:
                names[key] = wrapped[id(value)]
                undo.callback(names.__setitem__, key, value)
        if top in tops or own_layers:
            for key, stand_in in BUILTIN_STAND_INS.items():
                if key not in names:
                    names[key] = stand_in
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
