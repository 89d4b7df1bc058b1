"""Roles and marker functions: the vocabulary of a traced graph.

A traced graph is an ``fx.GraphModule`` in which every message, aggregate and update of a
``MessagePassing`` layer is named by an identity call of one of the markers below. The role data
sits in the node's arguments (``value, conv, call``), not only in ``node.meta``, so that it
survives copying, pickling and ``torch.fx`` transformations.

``conv`` is the qualified module name of the layer (``"convs.0"``; ``""`` for the root), ``call``
counts the calls of that layer's method within one forward pass, from 0.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def message(value: Tensor, conv: str, call: int) -> Tensor:
    """Mark ``value`` [E, ...] as the messages of ``conv``; returns it unchanged."""
    return value


def aggregate(value: Tensor, conv: str, call: int) -> Tensor:
    """Mark ``value`` [N, ...] as the aggregate of ``conv``; returns it unchanged."""
    return value


def update(value: Tensor, conv: str, call: int) -> Tensor:
    """Mark ``value`` [N, ...] as the update of ``conv``; returns it unchanged."""
    return value


def edge_update(value: Tensor, conv: str, call: int) -> Tensor:
    """Mark ``value`` [E, ...] as the edge update (e.g. attention) of ``conv``."""
    return value


def message_and_aggregate(value: Tensor, conv: str, call: int) -> Tensor:
    """Mark ``value`` [N, ...] as the fused message and aggregate of ``conv``."""
    return value


ROLE_MARKERS = {
    "message": message,
    "aggregate": aggregate,
    "update": update,
    "edge_update": edge_update,
    "message_and_aggregate": message_and_aggregate,
}
"""Name of the ``MessagePassing`` method -> its marker."""
