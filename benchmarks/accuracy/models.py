"""The rows of the table: models as their papers have them, and how each is trained in FP32."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric.nn import APPNP, GCN2Conv

from gnnquant.demo_models import DROPOUT, GAT, GCN, GIN, HIDDEN, SAGE, SMP

if TYPE_CHECKING:
    from collections.abc import Callable


class PersonalizedPropagation(nn.Module):
    """An MLP and K steps of personalised PageRank (Gasteiger et al., ICLR 2019): SMP's control."""

    def __init__(self, features: int, classes: int, steps: int = 10) -> None:
        super().__init__()
        self.lin1 = nn.Linear(features, HIDDEN)
        self.lin2 = nn.Linear(HIDDEN, classes)
        self.propagation = APPNP(K=steps, alpha=0.1)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        """Class scores [N, C]."""
        x = F.dropout(x, DROPOUT, self.training)
        x = F.relu(self.lin1(x))
        x = F.dropout(x, DROPOUT, self.training)
        scores: Tensor = self.propagation(self.lin2(x), edge_index)
        return scores


class GCNII(nn.Module):
    """Deep GCN with initial residual and identity mapping (Chen et al., ICML 2020)."""

    def __init__(self, features: int, classes: int, depth: int = 16) -> None:
        super().__init__()
        self.lin1 = nn.Linear(features, HIDDEN)
        self.convs = nn.ModuleList(
            GCN2Conv(HIDDEN, alpha=0.1, theta=0.5, layer=layer) for layer in range(1, depth + 1)
        )
        self.lin2 = nn.Linear(HIDDEN, classes)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        """Class scores [N, C]."""
        x = F.dropout(x, DROPOUT, self.training)
        x = first = F.relu(self.lin1(x))
        for conv in self.convs:
            x = F.dropout(x, DROPOUT, self.training)
            x = F.relu(conv(x, first, edge_index))
        x = F.dropout(x, DROPOUT, self.training)
        scores: Tensor = self.lin2(x)
        return scores


@dataclass(frozen=True)
class Training:
    """How a model is trained in FP32, and then fine-tuned; the same for all seeds and datasets.

    Attributes:
        epochs: Of the FP32 training.
        lr: Of the FP32 training (Adam, cosine schedule).
        weight_decay: Of both.
    """

    epochs: int = 200
    lr: float = 0.01
    weight_decay: float = 5e-4


@dataclass(frozen=True)
class Model:
    """A row of the table.

    Attributes:
        title: As the table has it.
        build: Called with the numbers of features and of classes.
        training: Its settings.
    """

    title: str
    build: Callable[[int, int], nn.Module]
    training: Training = Training()


MODELS: dict[str, Model] = {
    "gcn": Model("GCN", GCN),
    "sage": Model("SAGE", SAGE),
    "gin": Model("GIN", GIN),
    "gat": Model("GAT", GAT),
    "appnp": Model("APPNP, K = 10", PersonalizedPropagation),
    "smp": Model("SMP, K = 10", SMP),
    "smp64": Model("SMP, K = 64", functools.partial(SMP, steps=64)),
    "gcnii": Model("GCNII, depth 16", GCNII),
}
"""Name on the command line -> row."""
