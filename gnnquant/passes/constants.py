"""Constant expressions: nodes that depend on parameters and buffers alone, such as effective weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx

from gnnquant.passes.base import works_in_place
from gnnquant.passes.rewriting import call_name, is_random
from gnnquant.tracing.graph_ops import device_of, dtype_of

if TYPE_CHECKING:
    from collections.abc import Hashable


class Constants:
    """The constant expressions of a graph module.

    A node is constant where it reads a parameter or buffer, or computes (without drawing random numbers
    and without working in place) from constants. The dtype and device of an input are constant too.
    """

    def __init__(self, module: fx.GraphModule) -> None:
        self._module = module
        self._known: dict[fx.Node, bool] = {}
        self._keys: dict[fx.Node, Hashable] = {}

    def is_constant(self, value: Any) -> bool:
        """Whether ``value`` is a node that depends on parameters alone, and is a tensor."""
        return isinstance(value, fx.Node) and "shape" in value.meta and self._depends_on_none(value)

    def _depends_on_none(self, node: fx.Node) -> bool:
        if node not in self._known:
            self._known[node] = self._decide(node)
        return self._known[node]

    def _decide(self, node: fx.Node) -> bool:
        if node.op == "get_attr" or node.target in (dtype_of, device_of):
            return True
        if node.op not in ("call_function", "call_method"):
            return False
        name = call_name(node)
        if is_random(name) or works_in_place(self._module, node):
            return False
        changed = any(works_in_place(self._module, user) for user in node.users)
        return not changed and all(map(self._depends_on_none, node.all_input_nodes))

    def leaves(self, node: fx.Node) -> list[str]:
        """Qualified names of the parameters and buffers that ``node`` depends on."""
        if node.op == "get_attr":
            return [str(node.target)]
        names: dict[str, None] = {}
        for operand in node.all_input_nodes:
            names.update(dict.fromkeys(self.leaves(operand)))
        return list(names)

    def key(self, node: fx.Node) -> Hashable:
        """Equal for nodes that compute the same: tied parameters, the same slice taken twice."""
        if node not in self._keys:
            if node.op == "get_attr":
                self._keys[node] = ("tensor", id(_attribute(self._module, str(node.target))))
            else:
                operands = tuple(map(self.key, node.all_input_nodes))
                # Operands are written by position: their names differ where what they compute does not.
                place = {operand: position for position, operand in enumerate(node.all_input_nodes)}
                args = fx.node.map_arg((node.args, node.kwargs), lambda operand: f"%{place[operand]}")
                self._keys[node] = (node.op, node.target, operands, repr(args))
        return self._keys[node]

    @torch.no_grad()
    def evaluate(self, node: fx.Node) -> Tensor:
        """The value of a constant expression, on its device."""
        values: dict[fx.Node, Any] = {}
        device = next((v.device for v in self._module.parameters()), torch.device("cpu"))

        def value(operand: fx.Node) -> Any:
            if operand not in values:
                values[operand] = self._compute(operand, value, device)
            return values[operand]

        result = value(node)
        assert isinstance(result, Tensor)
        return result

    def _compute(self, node: fx.Node, value: Any, device: torch.device) -> Any:
        if node.op == "get_attr":
            return _attribute(self._module, str(node.target)).detach()
        if node.target is dtype_of:
            return node.all_input_nodes[0].meta["dtype"]
        if node.target is device_of:
            return device
        args, kwargs = fx.node.map_arg(node.args, value), fx.node.map_arg(node.kwargs, value)
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        assert callable(node.target)
        return node.target(*args, **kwargs)


def _attribute(module: fx.GraphModule, path: str) -> Tensor:
    value: Any = module
    for part in path.split("."):
        value = getattr(value, part)
    assert isinstance(value, Tensor)
    return value


def weight_name(paths: list[str]) -> str:
    """What a layer is called whose weight is made of the parameters ``paths``.

    ``conv.lin.weight`` belongs to ``conv.lin``, ``conv.root`` is ``conv.root``, and several parameters
    belong to the module that holds them.
    """
    owners_of = (f".{path}".partition(".parametrizations.")[0].removeprefix(".") for path in paths)
    names = list(dict.fromkeys(name.removesuffix(".weight") for name in owners_of))
    if len(names) == 1:
        return "" if names[0] == "weight" else names[0]
    owners = [name.split(".")[:-1] for name in names] or [[]]
    common = []
    for parts in zip(*owners, strict=False):
        if len(set(parts)) > 1:
            break
        common.append(parts[0])
    return ".".join(common)
