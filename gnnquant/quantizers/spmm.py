"""Sparse matrix times dense matrix, with gradients of both: sums over edges without messages [E, F]."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gnnquant.quantizers.derived import Derived

BLOCK = 2**17
"""Numbers in a block of products of rows: they stay in the processor's cache."""


@dataclass(frozen=True)
class Order:
    """Entries of a sparse matrix in the order of one of their ends.

    Attributes:
        entries: Positions of the entries [E], int64, in that order.
        others: Their other ends [E], int64.
        starts: Where each of the rows begins [R], int64.
    """

    entries: Tensor
    others: Tensor
    starts: Tensor

    @staticmethod
    def of(ends: Tensor, others: Tensor, rows: int) -> Order:
        """Sort by ``ends``, int64 [E] in ``0 .. rows - 1``.

        Raises:
            IndexError: For an end beyond ``rows``.
        """
        entries = torch.argsort(ends, stable=True)
        counts = torch.bincount(ends, minlength=rows)
        if counts.numel() > rows:
            raise IndexError(f"index {counts.numel() - 1} is out of range for {rows} rows")
        return Order(entries, others.index_select(0, entries), counts.cumsum(0) - counts)

    def sums(self, weight: Tensor, rows: Tensor) -> Tensor:
        """``out[r] = sum over its entries e of weight[e] * rows[others[e]]``.

        Args:
            weight: [E, H].
            rows: [S, H * C].

        Returns:
            [R, H * C].
        """
        weight = weight.index_select(0, self.entries)
        heads = weight.size(1)
        if self.entries.numel() == 0 or rows.numel() == 0:
            return rows.new_zeros((self.starts.size(0), rows.size(1)))
        parts = [
            F.embedding_bag(
                self.others,
                part.contiguous(),
                self.starts,
                mode="sum",
                per_sample_weights=weight[:, head].contiguous(),
            )
            for head, part in enumerate(rows.chunk(heads, dim=1))
        ]
        return parts[0] if heads == 1 else torch.cat(parts, dim=1)


class Entries:
    """Where a sparse matrix [T, S] has entries, in either order.

    It keeps no reference to the edges, so that it may be kept for as long as these live.

    Attributes:
        by_target: In order of rows.
    """

    def __init__(self, source: Tensor, target: Tensor, sources: int, targets: int) -> None:
        """Sort entries (target, source), int64 [E] each.

        Raises:
            IndexError: For a target beyond ``targets``.
        """
        self.by_target = Order.of(target, source, targets)
        self._sources = sources
        self._by_source: Order | None = None

    def by_source(self, source: Tensor, target: Tensor) -> Order:
        """In order of columns, which only gradients ask for; the arguments are those of the constructor."""
        if self._by_source is None:
            self._by_source = Order.of(source, target, self._sources)
        return self._by_source


def entries_of(edge_index: Tensor, sources: int, targets: int) -> Entries:
    """``Entries`` of the edges [2, E], kept as long as the tensor lives and does not change."""
    return _entries.get(
        edge_index, lambda: Entries(edge_index[0], edge_index[1], sources, targets), (sources, targets)
    )


_entries: Derived[Entries] = Derived()


def spmm(entries: Entries, source: Tensor, target: Tensor, weight: Tensor, rows: Tensor) -> Tensor:
    """``out[t, h] = sum over entries e at target t of weight[e, h] * rows[source[e], h]``.

    Differentiable in ``weight`` and ``rows``; keeps nothing larger than its operands for that.

    Args:
        entries: Of ``source`` and ``target``.
        source: int64 [E].
        target: int64 [E].
        weight: [E, H], floating point.
        rows: [S, H * C] in the dtype of ``weight``.

    Returns:
        [T, H * C].
    """
    out: Tensor = _Spmm.apply(entries, source, target, weight, rows)  # type: ignore[no-untyped-call]
    return out


class _Spmm(torch.autograd.Function):
    @staticmethod
    def forward(  # noqa: PLR0917 - as torch calls it
        ctx: Any, entries: Entries, source: Tensor, target: Tensor, weight: Tensor, rows: Tensor
    ) -> Tensor:
        ctx.entries = entries
        ctx.save_for_backward(source, target, weight, rows)
        return entries.by_target.sums(weight, rows)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        source, target, weight, rows = ctx.saved_tensors
        of_weight = of_rows = None
        if ctx.needs_input_grad[3]:
            of_weight = row_products(gradients[0], target, rows, source, weight.size(1))
        if ctx.needs_input_grad[4]:
            of_rows = ctx.entries.by_source(source, target).sums(weight, gradients[0])
        return None, None, None, of_weight, of_rows


def row_products(left: Tensor, at: Tensor, right: Tensor, there: Tensor, heads: int) -> Tensor:
    """``out[e, h] = <left[at[e], h], right[there[e], h]>`` [E, H] (SDDMM), in blocks of entries."""
    out = left.new_empty((at.size(0), heads))
    step = max(1, BLOCK // max(1, left.size(1)))
    for start in range(0, at.size(0), step):
        part = slice(start, start + step)
        product = left.index_select(0, at[part]).mul_(right.index_select(0, there[part]))
        torch.sum(product.view(product.size(0), heads, -1), dim=2, out=out[part])
    return out
