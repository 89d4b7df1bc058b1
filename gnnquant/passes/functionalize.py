"""Operations in place become operations with a result of their own."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from gnnquant import ir
from gnnquant.passes.base import Pass, PassResult, works_in_place
from gnnquant.passes.rewriting import call_name, is_random
from gnnquant.tracing.graph_ops import set_item

if TYPE_CHECKING:
    from collections.abc import Iterator

_VIEWS = frozenset(
    {
        *(
            "view",
            "view_as",
            "reshape",
            "transpose",
            "t",
            "permute",
            "select",
            "getitem",
            "unsqueeze",
            "squeeze",
        ),
        *(
            "expand",
            "expand_as",
            "flatten",
            "unflatten",
            "chunk",
            "split",
            "tensor_split",
            "unbind",
            "narrow",
        ),
        *("movedim", "swapaxes", "diagonal", "unfold", "detach", "contiguous", "to", "type_as", "float"),
        *("dropout", "view_as_real", "ravel", "atleast_2d", "getattr"),
    }
)
"""Operations whose result may share memory with their operand."""
_VIEW_MODULES = (nn.Identity, nn.Flatten, nn.Unflatten, nn.modules.dropout._DropoutNd)


@dataclass(frozen=True)
class Functionalize(Pass):
    """Give the result of every operation in place a node of its own, where nothing else sees the change.

    A quantizer reads a value where it is computed; a later change in place would go unnoticed.

    Given::

        h = leaky_relu_(h)                        setitem(v, mask, 0.0); y = f(v)

    Result::

        h = leaky_relu(h)                         w = set_item(v, mask, 0.0); y = f(w)

    Where a view of the same memory is read afterwards, or the memory is an input's or a parameter's, the
    operation stays and the note says so.
    """

    name: ClassVar[str] = "functionalize"

    def run(self, module: fx.GraphModule) -> PassResult:
        """Rewrite every such operation."""
        changed, notes = 0, []
        order = {node: position for position, node in enumerate(module.graph.nodes)}
        for node in list(module.graph.nodes):
            if node.op == "output" or not works_in_place(module, node):
                continue
            value = _changed_operand(node)
            if value is None:
                continue
            reason = _why_not(module, node, value, order)
            if reason:
                notes.append(f"{node.name}: {reason}")
                continue
            result = _rewritten(module, node)
            if result is None:
                notes.append(f"{node.name}: {call_name(node)!r} works in place only")
                continue
            result.meta.pop("effect", None)
            for user in _later(value, node, order):
                user.replace_input_with(value, result)
            changed += 1
        return PassResult(changed, tuple(notes))


def _changed_operand(node: fx.Node) -> fx.Node | None:
    operand = node.args[0] if node.args else node.kwargs.get("input")
    return operand if isinstance(operand, fx.Node) and "shape" in operand.meta else None


def _why_not(module: fx.GraphModule, node: fx.Node, value: fx.Node, order: dict[fx.Node, int]) -> str:
    """Who else sees the change, or an empty string."""
    dtypes = {operand.meta["dtype"] for operand in node.all_input_nodes if operand.meta.get("shape")}
    floats = {dtype for dtype in dtypes if dtype.is_floating_point}
    if len(floats) > 1:
        return "it mixes dtypes"
    mode = node.meta.get("mode")
    if any(user.meta.get("mode") != mode for user in _later(value, node, order) if mode):
        return f"it runs in {mode} mode only"
    for other in _sharing_memory(module, value, order[node], order):
        if other.op in ("placeholder", "get_attr"):
            return f"it changes {other.target!r}"
        later = [user for user in _later(other, node, order) if not _puts_back(user, value, other, node)]
        if other is not value and later:
            return f"{other.name!r}, a view of the same memory, is read afterwards"
    return ""


def _puts_back(user: fx.Node, value: fx.Node, whole: fx.Node, node: fx.Node) -> bool:
    """Whether ``user`` is the last step of ``whole[index] += ...``, for ``value = whole[index]``."""
    if user.target not in (set_item, operator.setitem) or call_name(value) != "getitem":
        return False
    return value.args[0] is whole and user.args == (whole, value.args[1], node)


def _later(value: fx.Node, node: fx.Node, order: dict[fx.Node, int]) -> list[fx.Node]:
    """Users of ``value`` after ``node``."""
    return [user for user in value.users if order.get(user, -1) > order[node]]


def _sharing_memory(
    module: fx.GraphModule, value: fx.Node, until: int, order: dict[fx.Node, int]
) -> Iterator[fx.Node]:
    """``value`` and all earlier nodes that may share its memory."""
    waiting, seen = [value], {value}
    while waiting:
        node = waiting.pop()
        yield node
        near = list(node.users)
        if _is_view(module, node):
            near += node.all_input_nodes[:1]
        for other in near:
            is_near = other not in node.users or _is_view(module, other)
            if other not in seen and order.get(other, until) < until and is_near:
                seen.add(other)
                waiting.append(other)


def _is_view(module: fx.GraphModule, node: fx.Node) -> bool:
    if node.target in ir.ROLE_MARKERS.values() or works_in_place(module, node):
        return True
    if node.op == "call_module":
        return isinstance(module.get_submodule(str(node.target)), _VIEW_MODULES)
    if call_name(node) == "getitem" and _has_nodes(node.args[1]):
        return False  # what an index or a mask selects is a copy
    return call_name(node) in _VIEWS


def _has_nodes(index: Any) -> bool:
    """Whether a tensor is part of ``index``; bounds of slices may be numbers that a node computes."""
    parts = index if isinstance(index, tuple) else (index,)
    return any(isinstance(part, fx.Node) and "shape" in part.meta for part in parts)


def _rewritten(module: fx.GraphModule, node: fx.Node) -> fx.Node | None:
    """The node, changed to leave its operand alone; ``None`` if there is no such operation."""
    if node.op == "call_module":
        module.get_submodule(str(node.target)).inplace = False  # type: ignore[assignment]
        return node
    if node.target is operator.setitem:
        node.target = set_item
        value = node.args[0]
        assert isinstance(value, fx.Node)
        node.meta.update(shape=value.meta["shape"], dtype=value.meta["dtype"])
        return node
    if node.kwargs.get("inplace"):
        node.kwargs = {**node.kwargs, "inplace": False}
        return node
    target = _functional(node)
    if target is None:
        return None
    node.target = target
    return node


def _functional(node: fx.Node) -> Any:
    name = str(getattr(node.target, "__name__", node.target))
    if node.op == "call_method":
        plain = name.removesuffix("_")
        return plain if hasattr(Tensor, plain) and not is_random(plain) else None
    if name.endswith("_"):
        homes = (functional, torch)
        return next((getattr(home, name[:-1]) for home in homes if hasattr(home, name[:-1])), None)
    plain = name.removeprefix("i")
    return getattr(operator, plain, None) or getattr(operator, f"{plain}_", None)
