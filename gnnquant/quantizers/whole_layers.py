"""Quantizers inside of layers that stay one node: they sit behind PyG's own hooks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gnnquant.quantizers import ops

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch_geometric.nn import MessagePassing

    from gnnquant.quantizers.modules import Quantizer

ROLES = ("message", "aggregate")
"""What a layer hands to its hooks. A fused message and aggregate counts as an aggregate."""


def attach(layer: MessagePassing, role: str, quantizer: Quantizer) -> None:
    """Let ``layer`` go on with the quantized values of ``role``; its child ``quantizer`` owns the range."""
    layer.add_module(_child(role), quantizer)
    _register(layer, role, _HOOKS[role])


def observe_values(layer: MessagePassing, role: str, see: Callable[[Tensor], None]) -> Callable[[], None]:
    """Hand what ``role`` of ``layer`` computes to ``see``, if it can be quantized; returns how to stop."""

    def hook(_layer: MessagePassing, _inputs: Any, output: Any) -> None:
        if _can_be_quantized(output):
            see(output)

    handles = _register(layer, role, hook)

    def stop() -> None:
        for handle in handles:
            handle.remove()

    return stop


def _child(role: str) -> str:
    return f"{role}_quantizer"


def _register(layer: MessagePassing, role: str, hook: Callable[..., Any]) -> list[Any]:
    if role == "message":
        return [layer.register_message_forward_hook(hook)]
    return [
        layer.register_aggregate_forward_hook(hook),
        layer.register_message_and_aggregate_forward_hook(hook),
    ]


def _can_be_quantized(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point() and value.layout == torch.strided


# Hooks are functions of the layer, so that copies and pickles of a layer use quantizers of their own.


def quantize_message(layer: MessagePassing, _inputs: Any, output: Any) -> Any:
    """The forward hook of messages."""
    return _quantized(layer, "message", output)


def quantize_aggregate(layer: MessagePassing, _inputs: Any, output: Any) -> Any:
    """The forward hook of aggregates."""
    return _quantized(layer, "aggregate", output)


def _quantized(layer: MessagePassing, role: str, value: Any) -> Any:
    return ops.dequantize(*getattr(layer, _child(role))(value)) if _can_be_quantized(value) else value


_HOOKS = {"message": quantize_message, "aggregate": quantize_aggregate}
