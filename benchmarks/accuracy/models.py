"""The rows of the table: models as their papers have them, and how each is trained in FP32."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric.nn import APPNP, GCN2Conv, GINConv

from gnnquant.demo_models import DROPOUT, GAT, GCN, HIDDEN, SAGE, SMP, Propagated

if TYPE_CHECKING:
    from collections.abc import Callable


class GIN(nn.Module):
    """Two layers of sum aggregation and an MLP (Xu et al., ICLR 2019).

    Without batch norm, as PyG's own ``GIN`` has it: with it validation accuracy is 7 points lower.
    """

    def __init__(self, features: int, classes: int, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.conv1 = GINConv(nn.Sequential(nn.Linear(features, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, HIDDEN)))
        self.conv2 = GINConv(nn.Sequential(nn.Linear(HIDDEN, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, classes)))

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        """Class scores [N, C]."""
        x = F.dropout(x, self.dropout, self.training)
        x = F.relu(self.conv1(x, edge_index))
        x = F.dropout(x, self.dropout, self.training)
        scores: Tensor = self.conv2(x, edge_index)
        return scores


class PersonalizedPropagation(Propagated):
    """An MLP and K steps of personalised PageRank (Gasteiger et al., ICLR 2019): SMP's control."""

    def __init__(self, features: int, classes: int, dropout: float, steps: int = 10) -> None:
        super().__init__(features, classes, APPNP(K=steps, alpha=0.1), dropout=dropout)


class GCNII(nn.Module):
    """Deep GCN with initial residual and identity mapping (Chen et al., ICML 2020)."""

    def __init__(self, features: int, classes: int, dropout: float, depth: int = 16) -> None:
        super().__init__()
        self.dropout = dropout
        self.lin1 = nn.Linear(features, HIDDEN)
        self.convs = nn.ModuleList(
            GCN2Conv(HIDDEN, alpha=0.1, theta=0.5, layer=layer) for layer in range(1, depth + 1)
        )
        self.lin2 = nn.Linear(HIDDEN, classes)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        """Class scores [N, C]."""
        x = F.dropout(x, self.dropout, self.training)
        x = first = F.relu(self.lin1(x))
        for conv in self.convs:
            x = F.dropout(x, self.dropout, self.training)
            x = F.relu(conv(x, first, edge_index))
        x = F.dropout(x, self.dropout, self.training)
        scores: Tensor = self.lin2(x)
        return scores


@dataclass(frozen=True)
class Training:
    """How a model is trained in FP32; the same for all seeds and datasets.

    Attributes:
        epochs: Of the FP32 training.
        lr: Of the FP32 training (Adam, cosine schedule).
        weight_decay: Of the FP32 training; fine-tuning has its own default.
        dropout: Of the model, in FP32 training and in fine-tuning.
    """

    epochs: int = 200
    lr: float = 0.01
    weight_decay: float = 5e-4
    dropout: float = DROPOUT


@dataclass(frozen=True)
class Model:
    """A row of the table.

    Attributes:
        title: As the table has it.
        make: Its class, called with the numbers of features and of classes and ``dropout=``.
        training: Its settings.
    """

    title: str
    make: Callable[..., nn.Module]
    training: Training = Training()

    def build(self, features: int, classes: int) -> nn.Module:
        """The model with new weights."""
        return self.make(features, classes, dropout=self.training.dropout)


PROPAGATION = Training(epochs=400, dropout=0.8)
"""Chosen by validation accuracy on Cora, as the settings of GIN and GCNII."""

MODELS: dict[str, Model] = {
    "gcn": Model("GCN", GCN),
    "sage": Model("SAGE", SAGE),
    "gin": Model("GIN", GIN, Training(lr=0.005, weight_decay=1e-3, dropout=0.8)),
    "gat": Model("GAT", GAT),
    "appnp": Model("APPNP, K = 10", PersonalizedPropagation, PROPAGATION),
    "smp": Model("SMP, K = 10", SMP, PROPAGATION),
    "smp64": Model("SMP, K = 64", functools.partial(SMP, steps=64), PROPAGATION),
    "gcnii": Model("GCNII, depth 16", GCNII, Training(epochs=400)),
}
"""Name on the command line -> row."""
