"""Messages that are (weighted) copies of their source become one message-passing operation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from torch import fx

from gnnquant import ir
from gnnquant.passes.base import Pass, PassResult, remove_dead_nodes
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

    Result::

        m = ir.message(x, conv, call)                    [N, F]
        a = ops.propagate(m, None, edge_index, w, n, "sum")

    Where a message does more than that, it stays as it is and the note says why.
    """

    name: ClassVar[str] = "recognize-propagation"

    def run(self, module: fx.GraphModule) -> PassResult:
        """Rewrite every message of the given form."""
        changed, notes = 0, []
        for node in list(module.graph.nodes):
            if node.op == "call_function" and node.target is ir.message:
                reason = _rewrite(module, node)
                if reason:
                    notes.append(f"{node.args[1]}: {reason}")
                else:
                    changed += 1
        remove_dead_nodes(module)
        return PassResult(changed, tuple(notes))


def _rewrite(module: fx.GraphModule, marker: fx.Node) -> str:
    """Rewrite the message at ``marker``; returns why not, or an empty string."""
    if len(marker.users) != 1:
        return f"its messages have {len(marker.users)} users"
    aggregation = next(iter(marker.users))
    found = _aggregation(module, aggregation, marker)
    if isinstance(found, str):
        return found
    reduce, target, num_nodes = found
    value = marker.args[0]
    assert isinstance(value, fx.Node)
    match = _weighted_gather(value)
    if match is None:
        return "its message is not a (weighted) copy of the source's features"
    x, source, weight = match
    if source[0] is not target[0] or (source[1], target[1]) != (0, 1):
        return "it gathers and aggregates over different edge lists"
    if weight is not None and reduce == "max":
        return "its maximum runs over weighted messages"
    heads = None if weight is None else _heads(weight, x)
    if isinstance(heads, str):
        return heads
    graph = module.graph
    with graph.inserting_before(aggregation):
        if weight is not None and heads is not None:
            # A size-1 trailing axis is dropped: weights are [E] or [E, H].
            shape = (-1,) if heads == 1 else (-1, heads)
            flat = graph.call_method("reshape", (weight, shape))
            flat.meta = dict(weight.meta, shape=(weight.meta["shape"][0], *shape[1:]))
            weight = flat
        rows = graph.call_function(ir.message, (x, *marker.args[1:]))
        rows.meta = dict(marker.meta, shape=x.meta["shape"], dtype=x.meta.get("dtype"))
        out = graph.call_function(ops.propagate, (rows, None, source[0], weight, num_nodes, reduce))
    out.meta = dict(aggregation.meta, conv=marker.args[1])
    aggregation.replace_all_uses_with(out)
    graph.erase_node(aggregation)
    return ""


def _aggregation(
    module: fx.GraphModule, node: fx.Node, marker: fx.Node
) -> tuple[str, tuple[fx.Node, int], Any] | str:
    """(reduce, (edge_index, row), num_nodes) of an aggregation over the messages, or why not."""
    from torch_geometric.nn import aggr
    from torch_geometric.utils import scatter

    kinds: dict[type[nn.Module], str] = {
        aggr.SumAggregation: "sum",
        aggr.MeanAggregation: "mean",
        aggr.MaxAggregation: "max",
    }
    if node.op == "call_module":
        layer = module.get_submodule(str(node.target))
        reduce = kinds.get(type(layer))
        if reduce is None:
            return f"it aggregates with {type(layer).__name__}"
        names = ("x", "index", "ptr", "dim_size", "dim")
    elif node.op == "call_function" and node.target is scatter:
        names = ("src", "index", "dim", "dim_size", "reduce")
        found = _argument(node, names, "reduce")
        reduce = {"sum": "sum", "add": "sum", None: "sum", "mean": "mean", "max": "max"}.get(found)
        if reduce is None:
            return f"it aggregates with scatter(reduce={found!r})"
    else:
        return f"its messages go to {node.target}, not to an aggregation"
    if node.args and node.args[0] is not marker:
        return "its messages are not the first argument of the aggregation"
    if names[2] == "ptr" and _argument(node, names, "ptr") is not None:
        return "it aggregates over sorted segments"
    rank = len(marker.meta["shape"])
    if _argument(node, names, "dim") not in (0, -rank):
        return "it aggregates along another axis than the first"
    index = _edge_row(_argument(node, names, "index"))
    if index is None:
        return "its index is not a row of edge_index"
    return reduce, index, _argument(node, names, "dim_size")


def _argument(node: fx.Node, names: tuple[str, ...], name: str) -> Any:
    position = names.index(name)
    if position < len(node.args):
        return node.args[position]
    return node.kwargs.get(name)


def _edge_row(node: Any) -> tuple[fx.Node, int] | None:
    """``edge_index[row]`` -> (edge_index, row)."""
    import operator

    if (
        isinstance(node, fx.Node)
        and node.target in (operator.getitem, "select")
        and isinstance(node.args[0], fx.Node)
    ):
        row = node.args[-1]
        if node.target == "select" and node.args[1] != 0:
            return None
        if row in (0, 1, -1, -2):
            return node.args[0], int(row) % 2  # type: ignore[arg-type]
    return None


def _gather(node: Any) -> tuple[fx.Node, tuple[fx.Node, int]] | None:
    """``index_select(x, 0, edge_index[row])`` -> (x, (edge_index, row))."""
    if not isinstance(node, fx.Node) or node.target != "index_select":
        return None
    x, dim, index = node.args
    assert isinstance(x, fx.Node)
    if dim not in (0, -len(x.meta["shape"])):
        return None
    row = _edge_row(index)
    return None if row is None else (x, row)


def _weighted_gather(
    node: fx.Node,
) -> tuple[fx.Node, tuple[fx.Node, int], fx.Node | None] | None:
    """``gather`` or ``weight * gather`` -> (x, (edge_index, row), weight or None)."""
    import operator

    import torch

    found = _gather(node)
    if found is not None:
        return (*found, None)
    if node.target not in ("mul", operator.mul, torch.mul):
        return None
    for first, second in (node.args, node.args[::-1]):
        found = _gather(first)
        if found is not None and isinstance(second, fx.Node) and _gather(second) is None:
            return (*found, second)
    return None


def _heads(weight: fx.Node, x: fx.Node) -> int | str:
    """Number of heads of an edge weight [E, 1, ...] or [E, H, 1], or why it is none."""
    shape, row = weight.meta["shape"][1:], x.meta["shape"][1:]
    if not shape or all(size == 1 for size in shape):
        return 1
    if len(shape) == len(row) == 2 and shape[1] == 1 and shape[0] == row[0]:
        return int(shape[0])
    return f"its edge weight of row shape {tuple(shape)} is neither a scalar nor one per head"
