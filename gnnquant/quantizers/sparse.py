"""Sparse network inputs in training: bag-of-words features are nearly all zero.

Inside of :func:`sparse_inputs` a quantizer that reads an input of the model directly returns
:class:`SparseCodes` where most of the input is zero and the grid has a code for zero. Only what a converted
graph does with codes knows them: dropout, ``ops.linear``, ``ops.propagate``, ``ops.dequantize``. The
numbers are the same; no pass over the whole matrix is made.
"""

from __future__ import annotations

import operator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, fx, nn

from gnnquant import ir
from gnnquant.quantizers.derived import Derived
from gnnquant.quantizers.spmm import Entries, spmm

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gnnquant.quantizers.modules import Quantizer

DENSEST = 1 / 8
"""Largest share of entries that are not zero: above it a dense product is as fast."""


@dataclass(frozen=True)
class Pattern:
    """Where a matrix [N, K] is not zero, in order of rows.

    Attributes:
        row: int64 [entries].
        column: int64 [entries].
        shape: (N, K).
        entries: Their orders.
        values: The matrix's values there [entries].
    """

    row: Tensor
    column: Tensor
    shape: tuple[int, int]
    entries: Entries
    values: Tensor

    def row_maximum(self, values: Tensor) -> Tensor:
        """Largest of every row's ``values`` [entries] and zero, [N, 1]."""
        out = values.new_zeros(self.shape[0])
        return out.scatter_reduce_(0, self.row, values, "amax").view(-1, 1)

    def row_statistic(self, values: Tensor, zero2: int) -> Tensor:
        """``functional.row_statistic`` of the matrix with ``values`` [entries], [N, 1]."""
        return self.row_maximum(values.abs() if zero2 else values)

    def by_entry(self, of_row: Tensor) -> Tensor:
        """The number of every entry's row [entries], of [N, 1]."""
        return of_row.view(-1).index_select(0, self.row)


@dataclass(frozen=True)
class SparseCodes:
    """Codes [N, K] that are zero beyond a pattern.

    Attributes:
        pattern: Where they need not be zero.
        values: The codes there [entries].
    """

    pattern: Pattern
    values: Tensor

    @property
    def dtype(self) -> torch.dtype:
        """Of the codes."""
        return self.values.dtype

    def with_values(self, values: Tensor) -> SparseCodes:
        """The same pattern with other codes."""
        return SparseCodes(self.pattern, values)

    def dense(self) -> Tensor:
        """The codes [N, K]."""
        out = self.values.new_zeros(self.pattern.shape)
        return out.index_put((self.pattern.row, self.pattern.column), self.values)

    def matmul(self, weight: Tensor) -> Tensor:
        """``codes @ weight.T`` [N, M] for ``weight`` [M, K]."""
        pattern = self.pattern
        rows = weight.t().contiguous()
        return spmm(pattern.entries, pattern.column, pattern.row, self.values.view(-1, 1), rows)


def pattern_of(value: Tensor) -> Pattern | None:
    """Where ``value`` is not zero; ``None`` unless it is a matrix with few such entries.

    Found once for each state of a tensor. NaN counts as an entry.
    """
    if value.dim() != 2 or value.requires_grad or value.is_inference() or value.numel() == 0:
        return None
    return _patterns.get(value, lambda: _find(value))


_patterns: Derived[Pattern | None] = Derived()


def _find(value: Tensor) -> Pattern | None:
    if int(torch.count_nonzero(value)) > DENSEST * value.numel():
        return None
    row, column = value.nonzero().unbind(1)
    row, column = row.contiguous(), column.contiguous()
    entries = Entries(column, row, value.size(1), value.size(0))
    return Pattern(row, column, (value.size(0), value.size(1)), entries, value[row, column])


@contextmanager
def sparse_inputs(module: nn.Module) -> Iterator[None]:
    """Let the input quantizers of a converted model return ``SparseCodes`` inside of the block."""
    found = [quantizer for quantizer in _input_quantizers(module) if not quantizer.sparse_input]
    for quantizer in found:
        quantizer.sparse_input = True
    try:
        yield
    finally:
        for quantizer in found:
            quantizer.sparse_input = False


def _input_quantizers(module: nn.Module) -> list[Quantizer]:
    """Quantizers that read an input of ``module``, and whose codes go only where sparse ones may."""
    from gnnquant.quantizers.modules import Quantizer

    if not isinstance(module, fx.GraphModule):
        return []
    reading: dict[Quantizer, bool] = {}
    for node in module.graph.nodes:
        called = module.get_submodule(str(node.target)) if node.op == "call_module" else None
        if isinstance(called, Quantizer):
            fits = bool(node.args[0].op == "placeholder" and _understood(module, node))
            reading[called] = reading.get(called, True) and fits
    return [quantizer for quantizer, fits in reading.items() if fits]


def _understood(module: nn.Module, codes: fx.Node) -> bool:
    """Whether every user of ``codes`` (or of a quantizer's pair) knows sparse codes."""
    from gnnquant.quantizers import ops
    from gnnquant.quantizers.dropout import Dropout

    for user in codes.users:
        if user.op == "call_module" and isinstance(module.get_submodule(str(user.target)), Dropout):
            fits = _understood(module, user)
        elif user.target is operator.getitem:
            fits = bool(user.args[1] == 1) or _understood(module, user)
        elif user.target is ir.message:
            fits = _understood(module, user)
        elif user.op == "call_function" and user.target in {ops.linear, ops.propagate, ops.dequantize}:
            fits = bool(user.args[0] is codes and codes not in user.args[1:])
        else:
            fits = False
        if not fits:
            return False
    return True
