"""Deep models, as a user would write them: stacks of GCN layers, and an MLP with K steps of propagation."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric.nn import APPNP, GCNConv

from gnnquant import SmoothPropagation
from gnnquant.demo_models import DROPOUT, HIDDEN, Propagated

if TYPE_CHECKING:
    from collections.abc import Callable

TELEPORT = 0.1


class DeepGCN(nn.Module):
    """``depth`` graph convolutions (Kipf and Welling, ICLR 2017), nothing between them but ReLU.

    Weights start at sqrt(2) times Glorot's, so that ReLU keeps the variance (He et al., ICCV 2015): as PyG
    has them, stacks of 8 layers and more do not train.
    """

    def __init__(self, features: int, classes: int, depth: int) -> None:
        super().__init__()
        widths = (features, *[HIDDEN] * (depth - 1), classes)
        convs = [GCNConv(a, b) for a, b in pairwise(widths)]
        for conv in convs[:-1]:
            nn.init.xavier_uniform_(conv.lin.weight, gain=2**0.5)
        self.convs = nn.ModuleList(convs)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        """Class scores [N, C]."""
        x = F.dropout(x, DROPOUT, self.training)
        for conv in self.convs[:-1]:
            x = F.relu(conv(x, edge_index))
        x = F.dropout(x, DROPOUT, self.training)
        return self.convs[-1](x, edge_index)


def _propagated(make: Callable[[int], nn.Module], features: int, classes: int, depth: int) -> nn.Module:
    return Propagated(features, classes, make(depth))


PROPAGATIONS: dict[str, Callable[[int], nn.Module]] = {
    "plain": lambda steps: APPNP(steps, 0.0),
    "appnp": lambda steps: APPNP(steps, TELEPORT),
    "smp-descent": lambda steps: SmoothPropagation(steps, update="descent"),
    "smp-laplacian": lambda steps: SmoothPropagation(steps, update="laplacian"),
    "smp-adjacency": lambda steps: SmoothPropagation(steps, update="adjacency"),
}
"""Name -> layer of so many steps. ``plain`` is ``H <- A~ H``; APPNP is SMP without its multiplier."""

MODELS: dict[str, Callable[[int, int, int], nn.Module]] = {
    "gcn": DeepGCN,
    **{name: functools.partial(_propagated, make) for name, make in PROPAGATIONS.items()},
}
"""Name -> model, called with (features, classes, depth)."""

DEPTHS = {
    "gcn": (2, 4, 8, 16, 32),
    **dict.fromkeys(("plain", "appnp", "smp-descent"), (2, 4, 8, 16, 32, 64)),
    **dict.fromkeys(("smp-laplacian", "smp-adjacency"), (2, 8, 64)),
}
"""Layers of a stack, steps of a propagation; of the updates that are not the default, for comparison."""

DEEP = 8
"""From so many GCN layers on training takes small steps, and many."""


@dataclass(frozen=True)
class Schedule:
    """How a model is trained in FP32 and fine-tuned at each width; the same for all seeds.

    Attributes:
        epochs: Of the FP32 training.
        lr: Of the FP32 training.
        tuning_epochs: Of fine-tuning.
        tuning_lr: Of fine-tuning.
    """

    epochs: int = 100
    lr: float = 0.01
    tuning_epochs: int = 30
    tuning_lr: float = 0.005


def schedule(model: str, depth: int) -> Schedule:
    """Of deep stacks chosen by validation accuracy on Cora."""
    return Schedule(400, 0.001, 300, 0.001) if model == "gcn" and depth >= DEEP else Schedule()
