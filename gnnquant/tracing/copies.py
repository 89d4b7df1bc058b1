"""Private copies and random state: how tracing leaves the user's model and process untouched."""

from __future__ import annotations

import contextlib
import copy
import random
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from torch_geometric.nn import MessagePassing

from gnnquant.errors import TraceError
from gnnquant.tracing.tracer import tensors_in

if TYPE_CHECKING:
    from collections.abc import Iterator


def private_copy(model: nn.Module) -> nn.Module:
    """A deep copy of ``model`` with empty caches; raises ``TraceError`` when it cannot be copied."""
    memo: dict[int, Any] = {}
    for module in model.modules():
        for tensor in tensors_in(vars(module)):
            # Results of the last forward pass, kept on the module: autograd forbids copying them.
            if not tensor.is_leaf:
                memo[id(tensor)] = tensor.detach().clone()
    try:
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
    return copied


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
