"""Lowering: every fx node of a converted model becomes nodes of the integer graph."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from gnnquant.errors import BackendError
from gnnquant.integer_graph import GraphInput
from gnnquant.passes.lowering.emitter import Emitter, describe
from gnnquant.passes.lowering.rules import FUNCTION_RULES, METHOD_RULES, lower_module
from gnnquant.passes.lowering.values import EdgeIndex, Rows

if TYPE_CHECKING:
    from gnnquant.integer_graph import IntegerGraph

EDGE_INPUTS = ("edge_weight", "edge_attr")


@torch.no_grad()
def lower(module: fx.GraphModule) -> IntegerGraph:
    """The integer graph of a converted model, as it computes in eval mode.

    Parameters are frozen, batch norm is folded into a multiplication and an addition, dropout and
    markers vanish, and what depends on parameters alone is computed now.

    Args:
        module: A ``QuantizedModule``; not changed.

    Raises:
        BackendError: Naming the node that cannot be lowered, and why.
    """
    placeholders = [node for node in module.graph.nodes if node.op == "placeholder"]
    environment: dict[fx.Node, Any] = {}
    inputs = _classify(placeholders)
    emitter = Emitter(list(inputs.values()))
    for node in module.graph.nodes:
        emitter.source = describe(node)
        if node.op == "placeholder":
            environment[node] = _placeholder(emitter, inputs[str(node.target)])
        elif node.op == "output":
            return emitter.finish(_outputs(environment, node))
        else:
            environment[node] = _lower_node(module, emitter, environment, node)
    raise BackendError("the graph has no output")


def _classify(placeholders: list[fx.Node]) -> dict[str, GraphInput]:
    """What every input is: node features, an edge index or edge features."""
    edge_indices = {node: node.meta["shape"][1] for node in placeholders if _is_edge_index(node)}
    inputs = {}
    for node in placeholders:
        name, shape, dtype = str(node.target), node.meta.get("shape"), node.meta.get("dtype")
        if node in edge_indices:
            inputs[name] = GraphInput(name, "edge_index")
            continue
        if shape is None or not 1 <= len(shape) <= 2 or dtype is not torch.float32:
            raise BackendError(
                f"cannot lower the input {name!r} (shape {shape}, dtype {dtype}): compiled models take "
                "float32 node and edge features and int64 edge_index [2, E]"
            )
        columns = shape[1] if len(shape) > 1 else 0
        owner = next((item for item, count in edge_indices.items() if count == shape[0]), None)
        if owner is not None and (name in EDGE_INPUTS or len(shape) == 1):
            inputs[name] = GraphInput(name, "edge", columns, edge_index=str(owner.target))
        else:
            inputs[name] = GraphInput(name, "node", columns)
    return inputs


def _is_edge_index(node: fx.Node) -> bool:
    shape = node.meta.get("shape")
    return shape is not None and len(shape) == 2 and shape[0] == 2 and (node.meta.get("dtype") is torch.int64)


def _placeholder(emitter: Emitter, item: GraphInput) -> EdgeIndex | Rows:
    if item.kind == "edge_index":
        return EdgeIndex(item.name)
    shape = (item.columns,) if item.columns else ()
    if item.kind == "edge":
        csr = emitter.csr(EdgeIndex(item.edge_index))
        emitted = emitter.emit(
            "edge_input", (csr,), shape, csr, name=item.name, input=item.name, fill=1.0
        )
    else:
        emitted = emitter.emit("node_input", (), shape, name=item.name, input=item.name)
    return Rows(emitted.name, emitted.shape, emitted.rows)


def _lower_node(
    module: fx.GraphModule, emitter: Emitter, environment: dict[fx.Node, Any], node: fx.Node
) -> Any:
    def value(argument: Any) -> Any:
        return fx.node.map_arg(argument, lambda operand: environment[operand])

    args, kwargs = value(node.args), value(node.kwargs)
    if node.op == "get_attr":
        return _attribute(module, str(node.target))
    if node.op == "call_module":
        return lower_module(emitter, node, module.get_submodule(str(node.target)), args, kwargs)
    rules = METHOD_RULES if node.op == "call_method" else FUNCTION_RULES
    rule = rules.get(node.target)
    if rule is not None:
        return rule(emitter, node, *args, **kwargs)
    if _is_constant(args) and _is_constant(kwargs):
        return _evaluate(node, args, kwargs)
    what = getattr(node.target, "__name__", node.target)
    raise BackendError(
        f"cannot lower {describe(node)}: there is no rule for {what!r}: keep this layer out of "
        "the compiled model"
    )


def _attribute(module: fx.GraphModule, target: str) -> Any:
    value: Any = module
    for part in target.split("."):
        value = getattr(value, part)
    return value.detach() if isinstance(value, Tensor) else value


def _is_constant(argument: Any) -> bool:
    leaves = pytree.tree_leaves(argument)
    return all(
        leaf is None or isinstance(leaf, (Tensor, int, float, str, torch.dtype, slice)) for leaf in leaves
    )


def _evaluate(node: fx.Node, args: Any, kwargs: Any) -> Any:
    """Fold an operation on parameters."""
    if node.op == "call_method":
        return getattr(args[0], str(node.target))(*args[1:], **kwargs)
    assert callable(node.target)
    return node.target(*args, **kwargs)


def _outputs(environment: dict[fx.Node, Any], node: fx.Node) -> list[Rows]:
    results = fx.node.map_arg(node.args[0], lambda operand: environment[operand])
    if not isinstance(results, (tuple, list)):
        results = [results]
    for result in results:
        if not isinstance(result, Rows) or result.rows != "node":
            raise BackendError(
                f"cannot lower {describe(node)}: an output is not a float tensor with one row per node"
            )
    return list(results)
