"""What a model computes twice is computed once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from torch import fx

from gnnquant import ir
from gnnquant.passes.base import Pass, PassResult, works_in_place
from gnnquant.passes.rewriting import MOVEMENTS, call_name, is_float, is_random

if TYPE_CHECKING:
    from collections.abc import Hashable

_PARTS = ("index_select", "getitem", "select", "chunk", "split", "unbind", "gather")


@dataclass(frozen=True)
class ShareValues(Pass):
    """Merge gathers, reshapes, index arithmetic and graph functions on the same operands.

    A value then has one quantizer, however often the model computes it, and codes are stored once.
    Elementwise operations are not merged: to compute them twice is cheaper than to keep the result.

    Given::

        k = f(transpose(x, 0, 1)); v = g(transpose(x, 0, 1))

    Result::

        t = transpose(x, 0, 1); k = f(t); v = g(t)

    Modules are not merged (they may draw random numbers), nor is what is changed in place or runs in
    another mode.
    """

    name: ClassVar[str] = "share-values"

    def run(self, module: fx.GraphModule) -> PassResult:
        """Merge every such pair."""
        first: dict[Hashable, fx.Node] = {}
        changed = 0
        for node in list(module.graph.nodes):
            if not _is_pure(module, node):
                continue
            key = (node.op, node.target, _text(node.args), _text(node.kwargs), node.meta.get("mode"))
            kept = first.setdefault(key, node)
            if kept is not node:
                node.replace_all_uses_with(kept)
                module.graph.erase_node(node)
                changed += 1
        return PassResult(changed)


def _text(value: Any) -> str:
    """Arguments as text: nodes by name, which are unique in a graph."""
    return repr(fx.node.map_arg(value, lambda operand: operand))


def _is_pure(module: fx.GraphModule, node: fx.Node) -> bool:
    """Whether another call on the same operands gives the same, and nobody changes the result."""
    if node.op not in ("call_function", "call_method") or node.target in ir.ROLE_MARKERS.values():
        return False
    if is_float(node) and call_name(node) not in (*MOVEMENTS, *_PARTS, ""):
        return False
    name = call_name(node) or str(getattr(node.target, "__name__", ""))
    if is_random(name) or name.startswith(("set", "new_empty", "empty")):
        return False
    near = [node, *node.all_input_nodes]
    return not any(_is_changed(module, item) for item in near)


def _is_changed(module: fx.GraphModule, node: fx.Node) -> bool:
    return any(works_in_place(module, user) for user in (node, *node.users) if user.op != "output")
