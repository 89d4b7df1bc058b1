"""CSR graphs for the reference backend, as tensors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from gnnquant.quantizers.spmm import Order

if TYPE_CHECKING:
    from torch import Tensor

    from gnnquant.runtime.indexing import EdgeList


@dataclass(frozen=True)
class Csr:
    """Edges sorted by destination, stable; appended self-loops last in their row.

    Attributes:
        source: int64 [E'].
        target: int64 [E'], ascending.
        edge_id: int64 [E'], position in the given list; -1 for a self-loop that was added.
        num_rows: Number of destinations.
    """

    source: Tensor
    target: Tensor
    edge_id: Tensor
    num_rows: int

    @property
    def degree(self) -> Tensor:
        """int64 [destinations], number of incoming edges."""
        return torch.bincount(self.target, minlength=self.num_rows)

    @property
    def order(self) -> Order:
        """The same edges for sums over them."""
        ends = self.degree.cumsum(0)
        return Order(torch.arange(self.source.numel()), self.source, ends - self.degree)


def build_csr(graph: EdgeList) -> Csr:
    """The edges of ``graph``, which may join rows of two kinds."""
    edges = graph.csr
    return Csr(
        torch.from_numpy(edges.src),
        torch.from_numpy(edges.dst),
        torch.from_numpy(edges.edge_id),
        graph.destinations,
    )
