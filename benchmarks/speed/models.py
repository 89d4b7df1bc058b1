"""The models, as users write them, with random weights: neither time nor size depends on training."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch_geometric.nn import APPNP

from benchmarks.accuracy.models import GIN
from gnnquant import SmoothPropagation
from gnnquant.demo_models import GAT, GCN, SAGE, Propagated

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

STEPS = 10
PROPAGATED = 64
"""Columns that APPNP and SMP propagate here."""


@dataclass(frozen=True)
class Model:
    """A model of the table.

    Attributes:
        title: As the table has it.
        make: Called with the numbers of features and of classes.
    """

    title: str
    make: Callable[[int, int], nn.Module]

    def build(self, features: int, classes: int) -> nn.Module:
        """The model with its own random weights."""
        torch.manual_seed(0)
        return self.make(features, classes).eval()


def _gin(features: int, classes: int) -> nn.Module:
    return GIN(features, classes, dropout=0.5)


def _propagated(make: Callable[[], nn.Module], features: int, _: int) -> nn.Module:
    return Propagated(features, PROPAGATED, make())


MODELS = {
    "gcn64": Model("GCN, 64", functools.partial(GCN, hidden=64)),
    "gcn256": Model("GCN, 256", functools.partial(GCN, hidden=256)),
    "sage64": Model("SAGE, 64", functools.partial(SAGE, hidden=64)),
    "sage256": Model("SAGE, 256", functools.partial(SAGE, hidden=256)),
    "gin64": Model("GIN, 64", _gin),
    "gat": Model("GAT, 8 x 8", GAT),
    "appnp": Model(
        f"APPNP, K = {STEPS}, {PROPAGATED}",
        functools.partial(_propagated, lambda: APPNP(K=STEPS, alpha=0.1)),
    ),
    "smp": Model(
        f"SMP, K = {STEPS}, {PROPAGATED}",
        functools.partial(_propagated, lambda: SmoothPropagation(K=STEPS)),
    ),
}
"""Name on the command line -> model."""
