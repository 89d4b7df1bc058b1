"""Changes in place that other nodes see: lowering gives every result a value of its own."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING

import torch
from torch import fx, nn

from gnnquant import ir
from gnnquant.passes.base import works_in_place
from gnnquant.tracing.graph_ops import set_item

if TYPE_CHECKING:
    from collections.abc import Iterator

_VIEWS = frozenset(
    {
        *("view", "view_as", "reshape", "reshape_as", "transpose", "swapaxes", "t", "permute", "movedim"),
        *("select", "narrow", "getitem", "chunk", "split", "tensor_split", "unbind", "diagonal"),
        *("unsqueeze", "squeeze", "expand", "expand_as", "flatten", "unflatten"),
        *("detach", "contiguous", "to", "type_as", "float", "dropout"),
    }
)
_VIEW_MODULES = (nn.Identity, nn.Flatten, nn.Unflatten, nn.modules.dropout._DropoutNd)


def seen_elsewhere(module: fx.GraphModule, node: fx.Node, order: dict[fx.Node, int]) -> fx.Node | None:
    """The node that reads, under another name, what ``node`` changes in place; ``None`` if there is none.

    Args:
        module: Where ``node`` belongs.
        node: Any node.
        order: Positions of all nodes in the graph.
    """
    changes = works_in_place(module, node) or node.target is operator.setitem
    if not changes or not node.args or not isinstance(node.args[0], fx.Node):
        return None
    if "out" in node.kwargs and node.kwargs["out"] is None and not _named_in_place(node):
        return None
    value = node.args[0]
    for other in _sharing_memory(module, value, order[node], order):
        for user in other.users:
            if order[user] > order[node] and not _writes_back(user, node, value):
                return user
    return None


def _named_in_place(node: fx.Node) -> bool:
    name = str(getattr(node.target, "__name__", node.target))
    return (name.endswith("_") and not name.endswith("__")) or bool(node.kwargs.get("inplace"))


def _writes_back(user: fx.Node, node: fx.Node, value: fx.Node) -> bool:
    """Whether ``user`` is ``x[i] = node`` after ``node`` changed ``value = x[i]``: the change, once more."""
    if user.target is not set_item or len(user.args) != 3 or user.args[2] is not node:
        return False
    return value.target is operator.getitem and value.args == user.args[:2]


def _sharing_memory(
    module: fx.GraphModule, value: fx.Node, until: int, order: dict[fx.Node, int]
) -> Iterator[fx.Node]:
    """``value`` and all earlier nodes that may share its memory."""
    waiting, seen = [value], {value}
    while waiting:
        node = waiting.pop()
        yield node
        near = [user for user in node.users if _is_view(module, user)]
        near += node.all_input_nodes[:1] if _is_view(module, node) else []
        for other in near:
            if other not in seen and order[other] < until:
                seen.add(other)
                waiting.append(other)


def _is_view(module: fx.GraphModule, node: fx.Node) -> bool:
    if node.op == "call_module":
        return isinstance(module.get_submodule(str(node.target)), _VIEW_MODULES)
    if node.target in ir.ROLE_MARKERS.values() or works_in_place(module, node):
        return True
    name = str(getattr(node.target, "__name__", node.target))
    if name == "getitem":
        # An index of tensors or lists copies; numbers and slices do not.
        index = node.args[1]
        items = index if isinstance(index, tuple) else (index,)
        return not any(isinstance(item, (fx.Node, torch.Tensor, list)) for item in items)
    return name in _VIEWS
