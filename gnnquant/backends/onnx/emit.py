"""From an integer graph to an ONNX model."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from onnx import TensorProto, checker, helper, shape_inference

import gnnquant
from gnnquant.backends.onnx.builder import Builder
from gnnquant.backends.onnx.codes import CODES
from gnnquant.backends.onnx.edges import EDGES
from gnnquant.backends.onnx.elementwise import ELEMENTWISE
from gnnquant.backends.onnx.index import emit_index
from gnnquant.backends.onnx.naming import Labels, output_names, scopes_of
from gnnquant.backends.onnx.rows import ROWS
from gnnquant.backends.onnx.state import Codes, State
from gnnquant.errors import BackendError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from onnx import ModelProto, ValueInfoProto

    from gnnquant.integer_graph import GraphInput, IntegerGraph

EMITTERS: dict[str, Callable[..., str | Codes]] = {**ELEMENTWISE, **ROWS, **EDGES, **CODES}
"""Operation of the row program -> emitter(state, node, *operands)."""


def emit_model(graph: IntegerGraph, opset: int, metadata: Mapping[str, Any]) -> ModelProto:
    """The ONNX model of ``graph``, checked by ``onnx.checker`` with strict shape inference.

    Args:
        graph: A lowered model.
        opset: Version of the operator set; the caller made sure that it has what is needed.
        metadata: Written to ``metadata_props``: strings as they are, anything else as JSON.

    Raises:
        BackendError: A node has no form in ONNX; the message names it.
    """
    graph.verify()
    labels = Labels(graph)
    inputs, names = _input_names(graph.inputs), output_names(graph)
    state = State(Builder(opset), graph, inputs)
    state.to.reserve([*inputs.values(), *names])
    for item in graph.index:
        emit_index(state, item)
    scopes = scopes_of(graph)
    values = _emit_rows(state, scopes)
    outputs = [_output(state, values, labels, position, name) for position, name in enumerate(names)]
    nodes, initializers = state.to.pruned(names)
    proto = helper.make_graph(
        nodes,
        "gnnquant",
        [info for item in graph.inputs for info in _input_infos(item, labels)],
        outputs,
        initializers,
        doc_string="Row spaces are named dimensions; see docs/onnx.md of gnnquant.",
        value_info=_value_infos(
            state, values, scopes, labels, {name for node in nodes for name in node.output}
        ),
    )
    opsets = [helper.make_opsetid("", opset)]
    model = helper.make_model(
        proto,
        producer_name="gnnquant",
        producer_version=gnnquant.__version__,
        opset_imports=opsets,
        ir_version=helper.find_min_ir_version_for(opsets),
        doc_string=_description(metadata),
    )
    helper.set_model_props(
        model, {k: v if isinstance(v, str) else json.dumps(v, sort_keys=True) for k, v in metadata.items()}
    )
    return _checked(model)


def _output(
    state: State, values: dict[str, str | Codes], labels: Labels, position: int, name: str
) -> ValueInfoProto:
    """Give an output its name; a single row comes without its axis where the model returns it so."""
    node = state.nodes[state.graph.outputs[position]]
    value = values[node.name]
    assert isinstance(value, str)
    squeezed = _is_squeezed(state.graph.result, position)
    if squeezed:
        value = state.with_shape("Squeeze", value, state.to.integers([0]), name=f"{name}/Squeeze")
    state.to.output(value, name)
    return _float_info(name, [] if squeezed else [labels.of(node.rows)], node.shape)


def _emit_rows(state: State, scopes: dict[str, str]) -> dict[str, str | Codes]:
    values: dict[str, str | Codes] = {}
    for node in state.graph.nodes:
        emitter = EMITTERS.get(node.op)
        if emitter is None:
            where = f" ({node.source})" if node.source else ""
            raise BackendError(
                f"{node.name!r}{where} cannot be exported: the operation {node.op!r} has no form in ONNX; "
                "keep this layer out of the exported model"
            )
        state.nodes[node.name] = node
        state.to.scope = scopes[node.name]
        values[node.name] = emitter(state, node, *[values[name] for name in node.inputs])
    return values


# ---------------------------------------------------------------- inputs and outputs


def input_parts(item: GraphInput) -> list[tuple[str, str, int]]:
    """The ONNX inputs of one input: name, part and element type; a sparse matrix has several."""
    if item.kind == "adjacency":
        integers = [(f"{item.name}.{part}", part, TensorProto.INT64) for part in ("row", "col", "size")]
        return [*integers, (f"{item.name}.values", "values", TensorProto.FLOAT)]
    kinds = {"rows": TensorProto.FLOAT, "mask": TensorProto.BOOL}
    return [(item.name, "", kinds.get(item.kind, TensorProto.INT64))]


def _input_names(inputs: list[GraphInput]) -> dict[tuple[str, str], str]:
    return {(item.name, part): name for item in inputs for name, part, _ in input_parts(item)}


def _input_infos(item: GraphInput, labels: Labels) -> list[ValueInfoProto]:
    infos = []
    for name, part, kind in input_parts(item):
        rows = labels.of_input(item.name, -1 if item.kind == "adjacency" else 0)
        shape: list[int | str] = [rows, *item.shape]
        if item.kind == "edges":
            shape = [2, rows]
        elif item.kind == "size":
            shape = []
        elif part in ("row", "col"):
            shape = [rows]
        elif part == "size":
            shape = [2]
        infos.append(helper.make_tensor_value_info(name, kind, shape))
    return infos


def _float_info(name: str, rows: list[int | str], shape: tuple[int, ...]) -> ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, [*rows, *shape])


def _value_infos(
    state: State, values: dict[str, str | Codes], scopes: dict[str, str], labels: Labels, made: set[str]
) -> list[ValueInfoProto]:
    """Types and shapes of the ends of edges and of the values of the row program, rows by name."""
    infos: dict[str, ValueInfoProto] = {}
    for name, edges in state.edges.items():
        for part in (edges.src, edges.dst, edges.edge_id):
            if part in made:
                infos[part] = helper.make_tensor_value_info(part, TensorProto.INT64, [labels.of(name)])
    for node in state.graph.nodes:
        value = values[node.name]
        name = value.integers if isinstance(value, Codes) else value
        # A value that is an operand's, passed on, has the name of its maker.
        if name in made and name not in infos and name.startswith(scopes[node.name]):
            infos[name] = _float_info(name, [labels.of(node.rows)], node.shape)
    return list(infos.values())


def _is_squeezed(tree: Any, position: int) -> bool:
    """Whether the output ``position`` comes without its axis of one row."""
    if not isinstance(tree, dict):
        return False
    if tree.get("output") == position:
        return bool(tree.get("squeeze"))
    content = next(iter(tree.values()))
    if "tuple" in tree or "list" in tree:
        return any(_is_squeezed(item, position) for item in content)
    if "dict" in tree or "data" in tree:
        return any(_is_squeezed(item, position) for _, item in content)
    return False


# ---------------------------------------------------------------- the whole model


def _description(metadata: Mapping[str, Any]) -> str:
    bits = metadata.get("bits")
    what = "float32" if bits == 32 else f"quantized to {bits} bits"
    return f"A PyTorch Geometric model, {what}, exported by gnnquant."


def _checked(model: ModelProto) -> ModelProto:
    """The model with the shapes of all values.

    Raises:
        BackendError: It is not valid: a mistake of this package.
    """
    try:
        checker.check_model(model, full_check=True)
        inferred = shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    except (checker.ValidationError, shape_inference.InferenceError) as error:
        raise BackendError(
            f"the exported model is not valid ONNX, please report the model: {' '.join(str(error).split())}"
        ) from error
    _name_dimensions(inferred)
    return inferred


def _name_dimensions(model: ModelProto) -> None:
    """Name dimensions to which shape inference gave numbers after the first value that has them."""
    names: dict[str, str] = {}
    for info in model.graph.value_info:
        for dim in info.type.tensor_type.shape.dim:
            if re.fullmatch(r"unk__\d+", dim.dim_param):
                dim.dim_param = names.setdefault(dim.dim_param, f"{info.name}_rows")
