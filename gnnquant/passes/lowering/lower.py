"""Lowering: every fx node of a converted model is interpreted on abstract values."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from gnnquant.config import FLOAT_BITS
from gnnquant.errors import BackendError
from gnnquant.integer_graph import ONE
from gnnquant.passes.lowering.assemble import assemble
from gnnquant.passes.lowering.factor_attention import factor_attention
from gnnquant.passes.lowering.factor_norms import factor_norms
from gnnquant.passes.lowering.factor_scales import factor_scales
from gnnquant.passes.lowering.in_place import seen_elsewhere
from gnnquant.passes.lowering.inputs import read_inputs
from gnnquant.passes.lowering.merge_factors import merge_factors
from gnnquant.passes.lowering.program import Program
from gnnquant.passes.lowering.rules import find_function_rule, find_method_rule, find_module_rule
from gnnquant.passes.lowering.rules.refused import RANDOM_NAMES
from gnnquant.passes.lowering.values import Adjacency, Index, Rows, Size, depends_on_inputs
from gnnquant.quantizers.modules import Quantizer

if TYPE_CHECKING:
    from gnnquant.integer_graph import IntegerGraph
    from gnnquant.tracing import TracedModule


@torch.no_grad()
def lower(module: TracedModule, *, require_ranges: bool = True) -> IntegerGraph:
    """The integer graph of a converted model, as it computes in eval mode.

    Parameters are frozen, norms are folded, dropout and markers vanish, and what depends on parameters
    alone is computed now.

    Args:
        module: A ``QuantizedModule``; not changed.
        require_ranges: Whether a quantizer that has no range yet is an error. Otherwise its scale is 1:
            enough to look at the graph, not to run it.

    Raises:
        BackendError: Naming the node that cannot be lowered, and why.
    """
    graph = module.path_graph(training=False) if hasattr(module, "path_graph") else module.graph
    program = Program(exact=getattr(module, "bits", FLOAT_BITS) != FLOAT_BITS, require_ranges=require_ranges)
    inputs, parameters = read_inputs(program, module, graph)
    environment: dict[fx.Node, Any] = {}
    order = {node: position for position, node in enumerate(graph.nodes)}
    for node in graph.nodes:
        program.node, program.layer = node, _layer(module, node)
        if node.op == "placeholder":
            environment[node] = inputs[str(node.target)]
        elif node.op == "output":
            outputs: list[Rows] = []
            result = fx.node.map_arg(node.args[0], lambda operand: environment[operand])
            tree = _result(program, result, outputs)
            lowered = assemble(program, parameters, outputs, tree)
            return merge_factors(factor_scales(factor_norms(factor_attention(lowered))))
        else:
            reader = seen_elsewhere(module, node, order)
            if reader is not None:
                raise program.refuse(
                    f"it changes a tensor in place, and {reader.name!r} reads it under another name; write "
                    "it without the change in place (x = x.relu() for x.relu_())"
                )
            environment[node] = _lower_node(module, program, environment, node)
    raise BackendError("the graph has no output")


def _layer(module: TracedModule, node: fx.Node) -> str:
    """The path of the user's layer that a node is; nothing for what is none, and for quantizers."""
    if node.op != "call_module" or isinstance(module.get_submodule(str(node.target)), Quantizer):
        return ""
    return str(node.target)


def _lower_node(
    module: TracedModule, program: Program, environment: dict[fx.Node, Any], node: fx.Node
) -> Any:
    if node.op == "get_attr":
        return _attribute(module, str(node.target))

    def value(operand: fx.Node) -> Any:
        return environment[operand]

    args, kwargs = fx.node.map_arg(node.args, value), fx.node.map_arg(node.kwargs, value)
    known = not any(map(depends_on_inputs, _leaves((args, kwargs))))
    if node.op == "call_module":
        layer = module.get_submodule(str(node.target))
        rule = find_module_rule(layer)
        if rule is not None:
            return rule(program, layer, *args, **kwargs)
        if known:
            return layer(*args, **kwargs)
        raise program.refuse(f"there is no rule for the module {type(layer).__name__}")
    name = str(getattr(node.target, "__name__", node.target)).strip("_")
    if known and name not in RANDOM_NAMES:
        return _evaluate(node, args, kwargs)
    is_method = node.op == "call_method"
    rule = find_method_rule(str(node.target)) if is_method else find_function_rule(node.target)
    if rule is None:
        raise program.refuse(f"there is no rule for {name!r}: keep this layer out of the compiled model")
    return rule(program, *args, **kwargs)


def _leaves(arguments: Any) -> list[Any]:
    """Leaves of nested arguments, those of slices too."""
    leaves = []
    for leaf in pytree.tree_leaves(arguments):
        leaves += [leaf.start, leaf.stop, leaf.step] if isinstance(leaf, slice) else [leaf]
    return leaves


def _attribute(module: fx.GraphModule, target: str) -> Any:
    value: Any = module
    for part in target.split("."):
        value = getattr(value, part)
    return value.detach() if isinstance(value, Tensor) else value


def _evaluate(node: fx.Node, args: Any, kwargs: Any) -> Any:
    """Fold an operation on parameters."""
    if node.op == "call_method":
        return getattr(args[0], str(node.target))(*args[1:], **kwargs)
    assert callable(node.target)
    return node.target(*args, **kwargs)


def _result(program: Program, value: Any, outputs: list[Rows]) -> Any:
    """Tree of what the model returns; its tensors are appended to ``outputs``."""
    if isinstance(value, dict):
        pairs = [
            [list(k) if isinstance(k, tuple) else k, _result(program, v, outputs)] for k, v in value.items()
        ]
        return {"dict": pairs}
    if isinstance(value, (tuple, list)):
        kind = "tuple" if isinstance(value, tuple) else "list"
        return {kind: [_result(program, item, outputs) for item in value]}
    if isinstance(value, Tensor):
        value = program.constant(value)
    if isinstance(value, Rows):
        value = program.dequantized(value)
        if value.axis not in {None, 0}:
            raise program.refuse("an output's rows are not its first axis; transpose it after the call")
        outputs.append(value)
        place = {"output": len(outputs) - 1}
        return {**place, "squeeze": True} if value.rows == ONE else place
    if value is None or isinstance(value, (bool, int, float, str)):
        return {"constant": value}
    if isinstance(value, (Index, Adjacency, Size)):
        raise program.refuse(
            "it returns integers (an edge list, an index or a number), which compiled models do not; "
            "return float tensors only"
        )
    raise program.refuse(f"it returns a {type(value).__name__}")
