"""CSR graphs for the reference backend, in numpy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from gnnquant.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor


@dataclass(frozen=True)
class Csr:
    """Edges sorted by destination, stable; appended self-loops last in their row.

    Attributes:
        source: int64 [E'].
        target: int64 [E'], ascending.
        edge_id: int64 [E'], position in ``edge_index``; -1 for a self-loop that was added.
        num_nodes: Number of rows.
    """

    source: Tensor
    target: Tensor
    edge_id: Tensor
    num_nodes: int

    @property
    def degree(self) -> Tensor:
        """int64 [N], number of incoming edges."""
        return torch.bincount(self.target, minlength=self.num_nodes)


def build_csr(edge_index: NDArray[np.int64], num_nodes: int, loops: str) -> Csr:
    """Sort ``edge_index`` [2, E] and treat its self-loops as ``loops`` says.

    Raises:
        InputError: If an index is negative or not below ``num_nodes``.
    """
    wrong = np.flatnonzero(((edge_index < 0) | (edge_index >= num_nodes)).any(axis=0))
    if wrong.size:
        position = int(wrong[0])
        raise InputError(
            f"edge_index[:, {position}] = {edge_index[:, position].tolist()} is out of range for "
            f"{num_nodes} nodes: indices must lie in 0 .. {num_nodes - 1}"
        )
    source, target = edge_index
    edge_id = np.arange(source.size, dtype=np.int64)
    is_loop = source == target
    if loops in ("remove", "replace", "remaining"):
        source, target, edge_id = source[~is_loop], target[~is_loop], edge_id[~is_loop]
    if loops in ("add", "replace", "remaining"):
        nodes = np.arange(num_nodes, dtype=np.int64)
        loop_id = np.full(num_nodes, -1, dtype=np.int64)
        if loops == "remaining":
            # Of several self-loops of one node, the last one counts, as in PyG.
            loop_id[edge_index[0][is_loop]] = np.flatnonzero(is_loop)
        source = np.concatenate([source, nodes])
        target = np.concatenate([target, nodes])
        edge_id = np.concatenate([edge_id, loop_id])
    order = np.argsort(target, kind="stable")
    return Csr(
        torch.from_numpy(source[order]),
        torch.from_numpy(target[order]),
        torch.from_numpy(edge_id[order]),
        num_nodes,
    )
