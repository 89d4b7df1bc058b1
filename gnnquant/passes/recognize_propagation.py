"""Messages that are (weighted) copies of their source become one message-passing operation."""

from __future__ import annotations

import operator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import fx

from gnnquant import ir
from gnnquant.passes.base import Pass, PassResult, remove_dead_nodes
from gnnquant.passes.rewriting import (
    Builder,
    argument,
    call_name,
    is_float,
    is_index,
    row_gather,
    scalar_of,
    shape_of,
)
from gnnquant.quantizers import ops

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class RecognizePropagation(Pass):
    """Gather, weight, aggregate -> :func:`gnnquant.quantizers.ops.propagate`.

    Quantizing a message before the gather, on [N, F] node rows instead of [E, F] edge rows,
    commutes with the gather; and the sum over edges becomes an integer SpMM.

    Given::

        m = index_select(x, 0, edge_index[0])            [E, F]
        m = w.view(-1, 1) * m                            optional; w [E] or [E, H]
        m = ir.message(m, conv, call)
        a = call_module[conv.aggr_module](m, edge_index[1], dim_size=n)
        b = spmm(adj, x, "sum")                          adj sparse, rows are destinations

    Result::

        m = ir.message(x, conv, call)                    [N, F]
        a = ops.propagate(m, None, edge_index, w, n, "sum")
        b = ops.propagate(ir.message(x, conv, call), None, *ops.adjacency(adj), adj.size(0), "sum")

    Sources and destinations may be different sets of rows, edges may point either way or be given as two
    vectors, and a message may have several aggregations. Numbers and parameters that multiply a message
    multiply the aggregate instead. A plain gather with an aggregation of another kind is marked before
    the gather, and stays otherwise. Where a message does more than that, it stays as it is and the note
    says why.
    """

    name: ClassVar[str] = "recognize-propagation"

    def run(self, module: fx.GraphModule) -> PassResult:
        """Rewrite every message, and every product with a sparse matrix, of the given form."""
        changed, notes = 0, []
        lists = _EdgeLists()
        for node in list(module.graph.nodes):
            if node.op != "call_function":
                continue
            if node.target is ir.message:
                done, reasons = _rewrite_message(module, node, lists)
                changed += done
                notes += [f"{node.args[1]}: {reason}" for reason in reasons]
            else:
                found = _sparse_product(node)
                if found is not None:
                    _rewrite_sparse(module, node, found, lists)
                    changed += 1
        remove_dead_nodes(module)
        return PassResult(changed, tuple(notes))


class _EdgeLists:
    """Edge lists [2, E] as new nodes, each once."""

    def __init__(self) -> None:
        self._made: dict[tuple[Any, ...], fx.Node] = {}

    def joined(self, build: Builder, source: fx.Node, target: fx.Node) -> fx.Node:
        """The edge list with these sources and destinations."""
        ends = _edge_row(source), _edge_row(target)
        if ends[0] and ends[1] and ends[0][0] is ends[1][0] and ends[0][1] != ends[1][1]:
            whole, row = ends[0]
            return whole if row == 0 else self._once(build, ("flip", whole), "flip", whole, 0)
        return self._once(build, (source, target), torch.stack, [source, target])

    def entries(self, build: Builder, matrix: fx.Node) -> tuple[fx.Node, fx.Node]:
        """Edge list and values of a sparse matrix."""
        if ("entries", matrix, 0) not in self._made:
            pair = build.call(ops.adjacency, matrix)
            # How many entries there are is known in a run only: this stands in for it.
            count = sum(matrix.meta["shape"])
            for part, meta in enumerate(
                (
                    {"shape": (2, count), "dtype": torch.int64},
                    {"shape": (count,), "dtype": matrix.meta["dtype"]},
                )
            ):
                node = build.call(operator.getitem, pair, part)
                node.meta.update(meta)
                self._made["entries", matrix, part] = node
        return self._made["entries", matrix, 0], self._made["entries", matrix, 1]

    def _once(self, build: Builder, key: tuple[Any, ...], target: Any, *args: Any) -> fx.Node:
        if key not in self._made:
            self._made[key] = build.call(target, *args)
        return self._made[key]


# ---------------------------------------------------------------- messages


@dataclass(frozen=True)
class _Copy:
    """A message ``weight * x[source]``, and what remains to be done to its aggregate.

    Attributes:
        x: The node rows that are gathered.
        source: Which row every edge reads.
        axis: The axis of rows in ``x`` and in the message.
        weights: Edge values that multiply the message, each [E, 1, ..] or [E, H, 1, ..].
        after: What commutes with a sum: ``("mul", number or tensor without rows)`` and
            ``("reshape", row shape)``, in order.
    """

    x: fx.Node
    source: fx.Node
    axis: int
    weights: tuple[fx.Node, ...] = ()
    after: tuple[tuple[str, Any], ...] = ()


@dataclass(frozen=True)
class _Aggregation:
    """An aggregation over messages.

    Attributes:
        node: The call.
        reduce: ``"sum"``, ``"mean"``, ``"max"`` or ``"min"``.
        target: Destination of every edge.
        num_nodes: Number of rows: a node, a number or ``None``.
    """

    node: fx.Node
    reduce: str
    target: fx.Node
    num_nodes: Any


def _rewrite_message(module: fx.GraphModule, marker: fx.Node, lists: _EdgeLists) -> tuple[int, list[str]]:
    """Rewrite the aggregations of the message at ``marker``; returns how many, and why not others."""
    value = marker.args[0]
    assert isinstance(value, fx.Node)
    copy = _copy(Builder(module, marker), value)
    if copy is None:
        return 0, ["its message is not a (weighted) copy of the source's features"]
    build = Builder(module, marker)
    x = copy.x if copy.axis == 0 else build.call("movedim", copy.x, copy.axis, 0)
    rows = build.call(ir.message, x, *marker.args[1:])
    rows.meta.update(marker.meta, shape=x.meta["shape"], dtype=x.meta["dtype"])
    done, reasons = 0, []
    for user in list(marker.users):
        found = _aggregation(module, user, marker, copy.axis)
        reason = found if isinstance(found, str) else _aggregate(module, copy, rows, found, lists)
        if reason:
            reasons.append(reason)
        else:
            done += 1
    if marker.users and not copy.weights and not copy.after and copy.axis == 0:
        edges = build.call("index_select", rows, 0, copy.source)
        marker.replace_all_uses_with(edges)
        done += 1
    return done, reasons


def _aggregate(
    module: fx.GraphModule, copy: _Copy, rows: fx.Node, found: _Aggregation, lists: _EdgeLists
) -> str:
    """Replace one aggregation; returns why not, or an empty string."""
    if found.reduce in ("max", "min") and (copy.weights or copy.after):
        return f"its {found.reduce}imum runs over weighted messages"
    heads = [_heads(weight, copy) for weight in copy.weights]
    wrong = next((head for head in heads if isinstance(head, str)), None)
    if wrong:
        return wrong
    build = Builder(module, found.node)
    weight = None
    for node, count in zip(copy.weights, heads, strict=True):
        assert isinstance(count, int)
        flat = build.call("reshape", node, (-1,) if count == 1 else (-1, count))
        if weight is not None and len(weight.meta["shape"]) != len(flat.meta["shape"]):
            weight, flat = (
                build.call("reshape", part, (-1, 1)) if len(part.meta["shape"]) == 1 else part
                for part in (weight, flat)
            )
        weight = flat if weight is None else build.call("mul", weight, flat)
    edges = lists.joined(build, copy.source, found.target)
    out = build.call(ops.propagate, rows, None, edges, weight, found.num_nodes, found.reduce)
    shape = (found.node.meta["shape"][copy.axis], *rows.meta["shape"][1:])
    out.meta.update(found.node.meta, shape=shape, conv=rows.args[1])
    for name, given in copy.after:
        out = build.call("reshape", out, (-1, *given)) if name == "reshape" else build.call("mul", out, given)
    if copy.axis:
        out = build.call("movedim", out, 0, copy.axis)
    found.node.replace_all_uses_with(out)
    module.graph.erase_node(found.node)
    return ""


def _copy(build: Builder, node: fx.Node) -> _Copy | None:
    """What ``node`` copies, if it is a copy: nodes that this writes are dead if it is not used."""
    found = row_gather(node)
    if found is not None:
        x, source, axis = found
        return _Copy(x, source, axis) if is_float(x) and is_index(source) else None
    name = call_name(node)
    if name in ("clone", "contiguous"):
        return _copy(build, node.args[0])  # type: ignore[arg-type]
    if name == "neg":
        return _with_factor(build, node, node.args[0], -1.0, divide=False)
    if name in ("mul", "div", "truediv") and len(node.args) == 2 and not node.kwargs:
        first, second = node.args
        found_copy = _with_factor(build, node, first, second, divide=name != "mul")
        if found_copy is None and name == "mul":
            found_copy = _with_factor(build, node, second, first, divide=False)
        return found_copy
    if name in ("view", "reshape", "unsqueeze", "squeeze", "flatten", "unflatten"):
        return _reshaped(build, node)
    return None


def _with_factor(build: Builder, node: fx.Node, value: Any, factor: Any, *, divide: bool) -> _Copy | None:
    """``value * factor`` or ``value / factor``, where ``value`` is a copy."""
    if not isinstance(value, fx.Node) or shape_of(value) is None:
        return None
    copy = _copy(build, value)
    if copy is None or shape_of(value) != shape_of(node):
        return None
    number = scalar_of(factor)
    if number is not None:
        if divide and number == 0:
            return None
        return replace(copy, after=(*copy.after, ("mul", 1 / number if divide else number)))
    if shape_of(factor) is None or not is_float(factor):
        return None
    if divide:
        factor = build.call("reciprocal", factor)
    return _with_tensor(copy, factor, node.meta["shape"])


def _with_tensor(copy: _Copy, factor: fx.Node, message: tuple[int, ...]) -> _Copy | None:
    """A factor with one value per edge (and head), or without rows."""
    shape, rank = factor.meta["shape"], len(message) - copy.axis
    if len(shape) < rank or (shape and shape[0] == 1 and len(shape) == rank):
        fits = copy.axis == 0 or len(shape) == 0
        return replace(copy, after=(*copy.after, ("mul", factor))) if fits else None
    if len(shape) != rank or shape[0] != message[copy.axis]:
        return None
    moved = copy.axis or any(name == "reshape" for name, _ in copy.after)
    if moved and any(size != 1 for size in shape[1:]):
        return None
    return replace(copy, weights=(*copy.weights, factor))


def _reshaped(build: Builder, node: fx.Node) -> _Copy | None:
    """A reshape that keeps rows apart."""
    operand, shape = node.args[0], node.meta["shape"]
    old = shape_of(operand)
    if not old or not shape or old[0] != shape[0]:
        return None
    copy = _copy(build, operand)  # type: ignore[arg-type]
    if copy is None or copy.axis:
        return None
    if copy.weights or copy.after:
        return replace(copy, after=(*copy.after, ("reshape", tuple(shape[1:]))))
    return replace(copy, x=build.call("reshape", copy.x, (-1, *shape[1:])))


def _heads(weight: fx.Node, copy: _Copy) -> int | str:
    """Number of heads of an edge weight [E, 1, ...] or [E, H, 1], or why it is none."""
    shape, row = weight.meta["shape"][1:], copy.x.meta["shape"][1:]
    if all(size == 1 for size in shape):
        return 1
    if len(shape) == len(row) == 2 and shape[1] == 1 and shape[0] == row[0]:
        return int(shape[0])
    return f"its edge weight of row shape {tuple(shape)} is neither a scalar nor one per head"


def _aggregation(module: fx.GraphModule, node: fx.Node, marker: fx.Node, axis: int) -> _Aggregation | str:
    """The aggregation at ``node`` over the messages, or why it is none."""
    from torch_geometric.nn import aggr
    from torch_geometric.utils import scatter

    kinds: dict[type[nn.Module], str] = {
        aggr.SumAggregation: "sum",
        aggr.MeanAggregation: "mean",
        aggr.MaxAggregation: "max",
        aggr.MinAggregation: "min",
    }
    if node.op == "call_module":
        layer = module.get_submodule(str(node.target))
        reduce = kinds.get(type(layer))
        if reduce is None:
            return f"it aggregates with {type(layer).__name__}"
        value, index = argument(node, 0, "x"), argument(node, 1, "index")
        if argument(node, 2, "ptr") is not None:
            return "it aggregates over sorted segments"
        size, dim = argument(node, 3, "dim_size"), argument(node, 4, "dim", -2)
    elif node.target is scatter:
        value, index = argument(node, 0, "src"), argument(node, 1, "index")
        dim, size = argument(node, 2, "dim", 0), argument(node, 3, "dim_size")
        given = argument(node, 4, "reduce", "sum")
        reduce = {"add": "sum"}.get(given, given)
        if reduce not in kinds.values():
            return f"it aggregates with scatter(reduce={given!r})"
    else:
        return f"its messages go to {call_name(node) or node.target}, not to an aggregation"
    if value is not marker:
        return "its messages are not the first argument of the aggregation"
    if dim % len(marker.meta["shape"]) != axis:
        return "it aggregates along another axis than that of the edges"
    if not is_index(index):
        return "its index is not a vector"
    return _Aggregation(node, reduce, index, size)


def _edge_row(node: fx.Node) -> tuple[fx.Node, int] | None:
    """``edge_index[row]`` -> (edge_index, row), for an int64 [2, E]."""
    name = call_name(node)
    if name not in ("getitem", "select") or not isinstance(node.args[0], fx.Node):
        return None
    if name == "select" and node.args[1] != 0:
        return None
    whole: Any = node.args[0]
    row = node.args[-1]
    if call_name(whole) == "unbind" and argument(whole, 1, "dim", 0) == 0:
        whole = whole.args[0]
    shape = shape_of(whole)
    if not shape or len(shape) != 2 or shape[0] != 2 or row not in (0, 1, -1, -2):
        return None
    assert isinstance(whole, fx.Node)
    return whole, int(row) % 2  # type: ignore[arg-type]


# ---------------------------------------------------------------- products with a sparse matrix


def _sparse_product(node: fx.Node) -> tuple[fx.Node, fx.Node, str] | None:
    """``spmm(adj, x, reduce)`` or ``adj @ x`` -> (adj, x, reduce)."""
    from torch_geometric.utils import spmm

    if node.target is spmm:
        matrix, x = argument(node, 0, "src"), argument(node, 1, "other")
        reduce = argument(node, 2, "reduce", "sum")
    elif call_name(node) in ("matmul", "mm", "spmm", "_sparse_mm", "sparse_mm"):
        matrix, x = argument(node, 0, "input"), argument(node, 1, "mat2")
        reduce = argument(node, 2, "reduce", "sum")
        layout = matrix.meta.get("layout", torch.strided) if isinstance(matrix, fx.Node) else None
        if layout in (None, torch.strided):
            return None
    else:
        return None
    shape = shape_of(matrix)
    if shape is None or len(shape) != 2 or not matrix.meta["dtype"].is_floating_point or not is_float(x):
        return None
    if len(x.meta["shape"]) != 2:
        return None
    return matrix, x, {"add": "sum"}.get(reduce, reduce)


def _rewrite_sparse(
    module: fx.GraphModule, node: fx.Node, product: tuple[fx.Node, fx.Node, str], lists: _EdgeLists
) -> None:
    from torch_geometric.utils import scatter

    matrix, x, reduce = product
    build = Builder(module, node)
    marks = [user for user in node.users if user.target is ir.message_and_aggregate]
    conv, call = marks[0].args[1:] if marks else (node.meta.get("module_path") or "", 0)
    edges, values = lists.entries(build, matrix)
    rows = build.call("size", matrix, 0)
    if reduce in ("sum", "mean"):
        message = build.call(ir.message, x, conv, call)
        out = build.call(ops.propagate, message, None, edges, values, rows, reduce)
    else:
        source, target = (build.call("select", edges, 0, row) for row in (0, 1))
        copies = build.call("index_select", x, 0, source)
        weighted = build.call("mul", copies, build.call("unsqueeze", values, -1))
        message = build.call(ir.message, weighted, conv, call)
        out = build.call(scatter, message, target, 0, rows, reduce)
    out.meta.update(node.meta, conv=conv)
    node.replace_all_uses_with(out)
    module.graph.erase_node(node)
