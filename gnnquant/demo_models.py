"""The models of the demo, written as a user of PyG would: nothing in them knows of gnnquant.

All map node features [N, F] and ``edge_index`` [2, E] to class scores [N, C]. The exception is the
SMP model, whose propagation layer is ours.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric.nn import GATConv, GCNConv, GINConv, SAGEConv

from gnnquant.smoothness import SmoothPropagation

if TYPE_CHECKING:
    from collections.abc import Callable

HIDDEN = 64
HEADS = 8
DROPOUT = 0.5


class GCN(nn.Module):
    """Two graph convolutions (Kipf and Welling, ICLR 2017)."""

    def __init__(self, features: int, classes: int, hidden: int = HIDDEN, dropout: float = DROPOUT) -> None:
        super().__init__()
        self.dropout = dropout
        self.conv1 = GCNConv(features, hidden)
        self.conv2 = GCNConv(hidden, classes)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        """Class scores [N, C]."""
        x = F.dropout(x, self.dropout, self.training)
        x = F.relu(self.conv1(x, edge_index))
        x = F.dropout(x, self.dropout, self.training)
        return self.conv2(x, edge_index)


class SAGE(nn.Module):
    """Two layers of mean aggregation (Hamilton et al., NeurIPS 2017)."""

    def __init__(self, features: int, classes: int, hidden: int = HIDDEN, dropout: float = DROPOUT) -> None:
        super().__init__()
        self.dropout = dropout
        self.conv1 = SAGEConv(features, hidden)
        self.conv2 = SAGEConv(hidden, classes)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        """Class scores [N, C]."""
        x = F.dropout(x, self.dropout, self.training)
        x = F.relu(self.conv1(x, edge_index))
        x = F.dropout(x, self.dropout, self.training)
        return self.conv2(x, edge_index)


class GIN(nn.Module):
    """Two layers of sum aggregation and an MLP (Xu et al., ICLR 2019)."""

    def __init__(self, features: int, classes: int, hidden: int = HIDDEN, dropout: float = DROPOUT) -> None:
        super().__init__()
        self.dropout = dropout
        self.conv1 = GINConv(
            nn.Sequential(
                nn.Linear(features, hidden),
                nn.BatchNorm1d(hidden),
                nn.ReLU(),
                nn.Linear(hidden, hidden),
            )
        )
        self.conv2 = GINConv(
            nn.Sequential(
                nn.Linear(hidden, hidden),
                nn.BatchNorm1d(hidden),
                nn.ReLU(),
                nn.Linear(hidden, classes),
            )
        )

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        """Class scores [N, C]."""
        x = F.dropout(x, self.dropout, self.training)
        x = F.relu(self.conv1(x, edge_index))
        x = F.dropout(x, self.dropout, self.training)
        return self.conv2(x, edge_index)


class GAT(nn.Module):
    """Two layers of attention, 8 heads of 8 (Velickovic et al., ICLR 2018)."""

    def __init__(self, features: int, classes: int, hidden: int = HIDDEN, dropout: float = DROPOUT) -> None:
        super().__init__()
        self.dropout = dropout
        self.conv1 = GATConv(features, hidden // HEADS, heads=HEADS, dropout=dropout)
        self.conv2 = GATConv(hidden, classes, dropout=dropout)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        """Class scores [N, C]."""
        x = F.dropout(x, self.dropout, self.training)
        x = F.elu(self.conv1(x, edge_index))
        x = F.dropout(x, self.dropout, self.training)
        return self.conv2(x, edge_index)


class Propagated(nn.Module):
    """An MLP, and a layer without weights that propagates its class scores."""

    def __init__(
        self,
        features: int,
        classes: int,
        propagation: nn.Module,
        hidden: int = HIDDEN,
        dropout: float = DROPOUT,
    ) -> None:
        super().__init__()
        self.dropout = dropout
        self.lin1 = nn.Linear(features, hidden)
        self.lin2 = nn.Linear(hidden, classes)
        self.propagation = propagation

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        """Class scores [N, C]."""
        x = F.dropout(x, self.dropout, self.training)
        x = F.relu(self.lin1(x))
        x = F.dropout(x, self.dropout, self.training)
        return self.propagation(self.lin2(x), edge_index)


class SMP(Propagated):
    """An MLP and steps of smoothness-aware propagation (Wang et al., CIKM 2023)."""

    def __init__(
        self, features: int, classes: int, hidden: int = HIDDEN, steps: int = 10, dropout: float = DROPOUT
    ) -> None:
        super().__init__(features, classes, SmoothPropagation(K=steps), hidden, dropout)


MODELS: dict[str, Callable[[int, int], nn.Module]] = {
    "gcn": GCN,
    "sage": SAGE,
    "gin": GIN,
    "gat": GAT,
    "smp": SMP,
}
"""Name on the command line -> model class, called with (features, classes)."""
