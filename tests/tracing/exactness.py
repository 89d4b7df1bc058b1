"""One run of a model and of its trace, compared bit for bit."""

from __future__ import annotations

import random
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils import _pytree as pytree

from gnnquant.tracing.copies import private_copy


class Run(NamedTuple):
    """What one seeded run of a copy of a module left behind."""

    output: list[Any]
    gradients: dict[str, torch.Tensor]
    buffers: dict[str, torch.Tensor]


def run(module: nn.Module, training: bool, *args: Any, **kwargs: Any) -> Run:
    module = private_copy(module).train(training)
    torch.manual_seed(7)
    random.seed(7)
    leaves = pytree.tree_leaves(module(*args, **kwargs))
    values = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor) and leaf.requires_grad]
    if values:
        sum(value.float().cos().sum() for value in values).backward()
    gradients = {n: p.grad for n, p in module.named_parameters() if p.grad is not None}
    return Run(leaves, gradients, dict(module.named_buffers()))


def assert_same(
    model: nn.Module, traced: nn.Module, *args: Any, rounding: float = 0.0, **kwargs: Any
) -> None:
    """Both modes give the same outputs, gradients (up to ``rounding``) and buffers."""
    for training in (False, True):
        expected = run(model, training, *args, **kwargs)
        got = run(traced, training, *args, **kwargs)
        assert len(expected.output) == len(got.output)
        for a, b in zip(expected.output, got.output, strict=True):
            assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
        assert expected.gradients.keys() == got.gradients.keys()
        for name, gradient in expected.gradients.items():
            torch.testing.assert_close(got.gradients[name], gradient, rtol=rounding, atol=rounding)
        for name in expected.buffers.keys() & got.buffers.keys():
            assert torch.equal(expected.buffers[name], got.buffers[name]), name
