"""Private copies and random state: how tracing leaves the user's model and process untouched."""

from __future__ import annotations

import contextlib
import copy
import random
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from torch.nn.parameter import UninitializedBuffer, is_lazy
from torch_geometric.nn import Linear, MessagePassing
from torch_geometric.nn.models.rev_gnn import InvertibleModule

from gnnquant.errors import TraceError
from gnnquant.tracing.signature import call
from gnnquant.tracing.tracer import tensors_in

if TYPE_CHECKING:
    import inspect
    from collections.abc import Iterator, Mapping


def private_copy(model: nn.Module) -> nn.Module:
    """A deep copy of ``model`` with empty caches; raises ``TraceError`` when it cannot be copied."""
    try:
        memo = _copies_of_special_tensors(model)
        copy_linears(model, memo)
        copied: nn.Module = copy.deepcopy(model, memo)
    except Exception as error:
        raise TraceError(
            f"the model cannot be copied ({type(error).__name__}: {error}); gnnquant traces a deep copy, "
            "so make 'copy.deepcopy(model)' work, e.g. remove weight norm or open handles first"
        ) from error
    for module in copied.modules():
        if isinstance(module, MessagePassing):
            for key in vars(module):
                if key.startswith("_cached"):  # cached=True: the graph of an earlier call
                    setattr(module, key, None)
        elif isinstance(module, InvertibleModule):  # backward would free the results of forward
            module.disable = True
    return copied


def _copies_of_special_tensors(model: nn.Module) -> dict[int, Any]:
    """Copies of what ``copy.deepcopy`` refuses, by ``id``."""
    memo: dict[int, Any] = {}
    for module in model.modules():
        for tensor in tensors_in(vars(module)):
            # Results of the last forward pass, kept on the module.
            if not is_lazy(tensor) and not tensor.is_leaf:
                memo[id(tensor)] = tensor.detach().clone()
    for buffer in model.buffers():
        if is_lazy(buffer):  # unlike lazy parameters
            memo[id(buffer)] = UninitializedBuffer(  # type: ignore[call-arg]
                device=buffer.device, dtype=buffer.dtype
            )
    return memo


def copy_linears(model: nn.Module, memo: dict[int, Any]) -> None:
    """Put copies of PyG's linear layers into ``memo``, whole.

    PyG before 2.7 copies them by building new ones: children, hooks and parametrizations (thus
    quantizers) are lost, and drawing weights that nobody needs advances the random state.
    """
    theirs = getattr(Linear, "__deepcopy__", None)
    if theirs is None:
        return
    replicas = {
        module: module.__new__(type(module))
        for module in model.modules()
        if isinstance(module, Linear) and type(module).__deepcopy__ is theirs and id(module) not in memo
    }
    # All of them before the first attribute: attributes may lead from one to another.
    memo.update({id(module): replica for module, replica in replicas.items()})
    for module, replica in replicas.items():
        replica.__dict__ = copy.deepcopy(module.__dict__, memo)


def materialized(model: nn.Module, signature: inspect.Signature, example: Mapping[str, Any]) -> nn.Module:
    """``model``, a private copy, with shapes for all parameters that wait for their first input."""
    if not any(is_lazy(tensor) for tensor in (*model.parameters(), *model.buffers())):
        return model
    training = {module: module.training for module in model.modules()}
    try:
        with fixed_randomness(0), torch.no_grad():
            model.eval()
            call(model, signature, example)
    except Exception as error:
        raise TraceError(
            f"the model itself fails on the example inputs ({type(error).__name__}: {error}), from which its "
            "lazily initialised layers were to get their shapes; give example_inputs that it runs on"
        ) from error
    for module, flag in training.items():
        module.training = flag
    lazy = [n for n, p in (*model.named_parameters(), *model.named_buffers()) if is_lazy(p)]
    if lazy:
        raise TraceError(f"'{lazy[0]}' has no shape, and the model does not use it; remove that layer")
    return private_copy(model)  # without what the run has left in caches


@contextlib.contextmanager
def fixed_randomness(seed: int) -> Iterator[None]:
    """Seed torch, NumPy and Python for the block, and restore all of them after it."""
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]
    # The user's model may draw from NumPy's global generator, hence the legacy calls.
    numpy_state, python_state = np.random.get_state(), random.getstate()  # noqa: NPY002
    with torch.random.fork_rng(devices=devices):
        try:
            torch.default_generator.manual_seed(seed)
            for device in devices:
                torch.cuda.default_generators[device].manual_seed(seed)
            np.random.seed(seed)  # noqa: NPY002
            random.seed(seed)
            yield
        finally:
            np.random.set_state(numpy_state)  # noqa: NPY002
            random.setstate(python_state)
