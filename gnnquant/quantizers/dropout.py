"""Dropout whose random numbers cost little: drawing masks was half of a training step."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from gnnquant.quantizers.sparse import SparseCodes

_LEVELS = 1 << 16
_PER_DRAW = 4


class Dropout(nn.Dropout):
    """``nn.Dropout`` with four mask entries per 64 random bits.

    Entries are dropped with probability ``round(p * 2^16) / 2^16``, and the others scaled by exactly what
    keeps the mean. The masks are other ones than those of ``nn.Dropout`` with the same seed.
    """

    def forward(self, input: Any) -> Any:
        """Drop entries of a floating-point tensor of any shape, or of ``SparseCodes``, in train mode."""
        if not self.training or self.p == 0:
            return input
        if isinstance(input, SparseCodes):
            return input.with_values(self._drop(input.values))
        return self._drop(input)

    def _drop(self, input: Tensor) -> Tensor:
        levels = round(self.p * _LEVELS)
        if levels == _LEVELS:
            return input * 0
        dropped: Tensor = _Dropped.apply(input, levels)  # type: ignore[no-untyped-call]
        return dropped


def replace_dropout(module: nn.Module) -> None:
    """Put a :class:`Dropout` in place of every ``nn.Dropout`` inside of ``module``."""
    made: dict[nn.Module, nn.Module] = {}
    for owner in list(module.modules()):
        for name, child in owner._modules.items():
            if type(child) is nn.Dropout:
                if child not in made:
                    made[child] = Dropout(child.p).train(child.training)
                owner._modules[name] = made[child]


class _Dropped(torch.autograd.Function):
    """Saves the mask as bools."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, dropped: int) -> Tensor:
        count = value.numel()
        draws = torch.empty(-(-count // _PER_DRAW), dtype=torch.int64, device=value.device)
        draws.random_(-(2**63), None)
        kept = (draws.view(torch.int16)[:count] >= dropped - _LEVELS // 2).view(value.shape)
        ctx.save_for_backward(kept)
        ctx.factor = _LEVELS / (_LEVELS - dropped)
        return (value * kept).mul_(ctx.factor)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, None]:
        (kept,) = ctx.saved_tensors
        return (gradients[0] * kept).mul_(ctx.factor), None
