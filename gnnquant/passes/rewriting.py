"""What several passes need: names of calls, arguments, new nodes that know their shape."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx

if TYPE_CHECKING:
    from collections.abc import Callable

PRODUCTS = frozenset(
    {
        *("matmul", "mm", "bmm", "mv", "dot", "einsum", "addmm", "baddbmm", "linear", "bilinear"),
        "scaled_dot_product_attention",
    }
)
"""Names of products of tensors."""
MOVEMENTS = frozenset(
    {
        *("transpose", "permute", "t", "movedim", "view", "reshape", "unsqueeze", "squeeze", "flatten"),
        *("unflatten", "contiguous", "clone"),
    }
)
"""Operations that only arrange the elements of a tensor."""
_RANDOM = frozenset(
    {
        *("bernoulli", "multinomial", "normal", "log_normal", "poisson", "uniform", "exponential"),
        *("geometric", "cauchy", "random"),
    }
)


def is_random(name: str) -> bool:
    """Whether what is called so draws random numbers."""
    return name.rstrip("_") in _RANDOM or "rand" in name or "dropout" in name


def call_name(node: Any) -> str:
    """``"matmul"`` for ``torch.matmul``, ``x.matmul`` and ``x @ y``; ``""`` for other nodes and for PyG's.

    What works in place keeps the underscore at its end.
    """
    if not isinstance(node, fx.Node):
        return ""
    if node.op == "call_method":
        name = str(node.target)
        return name.strip("_") if name.startswith("__") else name
    if node.op != "call_function":
        return ""
    home = (getattr(node.target, "__module__", None) or "torch").split(".")[0]
    name = str(getattr(node.target, "__name__", ""))
    if home in ("_operator", "operator", "builtins"):
        return name.strip("_")
    return name if home == "torch" else ""


def argument(node: fx.Node, position: int, name: str, default: Any = None) -> Any:
    """The argument of a call that may be given by position or by name."""
    return node.args[position] if position < len(node.args) else node.kwargs.get(name, default)


def shape_of(node: Any) -> tuple[int, ...] | None:
    """Shape of the tensor that ``node`` computed on the example; ``None`` where it is no tensor."""
    return node.meta.get("shape") if isinstance(node, fx.Node) else None


def is_float(node: Any) -> bool:
    """Whether ``node`` is a dense tensor of floating point numbers."""
    return (
        isinstance(node, fx.Node)
        and node.meta.get("dtype") is not None
        and node.meta["dtype"].is_floating_point
        and node.meta.get("layout", torch.strided) is torch.strided
    )


def is_index(node: Any) -> bool:
    """Whether ``node`` is a vector of integers."""
    return (
        isinstance(node, fx.Node)
        and node.meta.get("dtype") in (torch.int64, torch.int32)
        and len(node.meta.get("shape", ())) == 1
    )


def row_gather(node: Any) -> tuple[fx.Node, fx.Node, int] | None:
    """``index_select(x, dim, index)`` or ``x[index]`` -> (x, index, dim >= 0)."""
    name = call_name(node)
    if name == "index_select":
        x, dim, index = (
            argument(node, 0, "input"), argument(node, 1, "dim"), argument(node, 2, "index")
        )  # fmt: skip
        shape = shape_of(x)
        if shape and isinstance(dim, int) and isinstance(index, fx.Node):
            return x, index, dim % len(shape)
    if name == "getitem" and shape_of(node.args[0]) and is_index(node.args[1]):
        return node.args[0], node.args[1], 0
    return None


def scalar_of(value: Any) -> float | None:
    """``value`` where it is a plain number."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    return None


class Builder:
    """Writes nodes before ``anchor``; each gets the shape that its operation gives on the example.

    Attributes:
        graph: The graph that is written into.
        anchor: The node that is being rewritten; new nodes inherit where it came from.
    """

    def __init__(self, module: fx.GraphModule, anchor: fx.Node) -> None:
        self.module = module
        self.graph = module.graph
        self.anchor = anchor
        self._parts: dict[fx.Node, Any] = {}

    def parameter(self, path: str) -> fx.Node:
        """``get_attr`` of a parameter or buffer."""
        value: Any = self.module
        for part in path.split("."):
            value = getattr(value, part)
        with self.graph.inserting_before(self.anchor):
            node = self.graph.get_attr(path)
        self._describe(node)
        node.meta.update(shape=tuple(value.shape), dtype=value.dtype, module_path=path.rpartition(".")[0])
        return node

    def call(self, target: str | Callable[..., Any], *args: Any, **kwargs: Any) -> fx.Node:
        """A function, or a method by name, whose shape follows from its operands'."""
        with self.graph.inserting_before(self.anchor):
            if isinstance(target, str):
                node = self.graph.call_method(target, args, kwargs)
            else:
                node = self.graph.call_function(target, args, kwargs)
        self._describe(node)
        result = self._on_stand_ins(node)
        if isinstance(result, Tensor):
            node.meta.update(shape=tuple(result.shape), dtype=result.dtype)
        else:
            node.meta.pop("dtype", None)
            self._parts[node] = result
        return node

    def linear(self, x: fx.Node, weight: fx.Node, bias: fx.Node | None, name: str) -> fx.Node:
        """``ops.linear`` on values; ``name`` is the user's layer."""
        from gnnquant.quantizers import ops

        node = self.call(ops.linear, x, None, weight, None, bias)
        node.meta["linear"] = name
        return node

    def layer(self, path: str, shape: tuple[int, ...] | None, *args: Any, **kwargs: Any) -> fx.Node:
        """A call of an existing module; ``shape`` of its result, ``None`` where that is no tensor."""
        with self.graph.inserting_before(self.anchor):
            node = self.graph.call_module(path, args, kwargs)
        self._describe(node)
        if shape is None:
            node.meta.pop("dtype", None)
        else:
            node.meta.update(shape=shape, dtype=args[0].meta["dtype"])
        return node

    def submodule(self, path: str, stem: str, layer: Any, x: fx.Node) -> fx.Node:
        """A call of the new module ``path.stem0`` (or 1, 2, ...) that keeps the shape of ``x``."""
        owner = self.module.get_submodule(path)
        count = 0
        while hasattr(owner, f"{stem}{count}"):
            count += 1
        target = f"{path}.{stem}{count}" if path else f"{stem}{count}"
        layer.train(owner.training)
        self.module.add_submodule(target, layer)
        with self.graph.inserting_before(self.anchor):
            node = self.graph.call_module(target, (x,))
        self._describe(node)
        node.meta.update(shape=x.meta["shape"], dtype=x.meta["dtype"])
        return node

    def _on_stand_ins(self, node: fx.Node) -> Any:
        """The result of a call on tensors without data; ``None`` where sizes are known in a run only."""

        def stand_in(operand: fx.Node) -> Any:
            if "shape" in operand.meta:
                return torch.empty(operand.meta["shape"], dtype=operand.meta.get("dtype"), device="meta")
            return self._parts[operand]

        try:
            args = fx.node.map_arg(node.args, stand_in)
            kwargs = fx.node.map_arg(node.kwargs, stand_in)
            with torch.no_grad():
                if node.op == "call_method":
                    return getattr(args[0], str(node.target))(*args[1:], **kwargs)
                assert callable(node.target)
                return node.target(*args, **kwargs)
        except Exception:
            return None

    def _describe(self, node: fx.Node) -> None:
        keys = ("module_path", "source", "mode", "dtype")
        node.meta.update({key: self.anchor.meta[key] for key in keys if key in self.anchor.meta})


def is_getitem(node: fx.Node) -> bool:
    """Whether ``node`` takes a part of a tuple or of a tensor."""
    return node.target is operator.getitem
