"""Inputs of a call: what kind each tensor is, and how it is nested in the arguments."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import fx

from gnnquant.integer_graph import GraphInput, Parameter
from gnnquant.passes.lowering.values import Adjacency, Index, Rows

if TYPE_CHECKING:
    from gnnquant.passes.lowering.program import Program
    from gnnquant.tracing import TracedModule

UNUSED = {"unused": True}
_KINDS = {"VAR_POSITIONAL": "*", "VAR_KEYWORD": "**", "KEYWORD_ONLY": "keyword"}
_SPARSE_USERS = ("spmm", "gcn_norm")


def read_inputs(
    program: Program, module: TracedModule, graph: fx.Graph
) -> tuple[dict[str, Any], list[Parameter]]:
    """Values of the placeholders by their target, and the parameters of ``forward``."""
    placeholders = {str(node.target).lstrip("*"): node for node in graph.nodes if node.op == "placeholder"}
    values: dict[str, Any] = {}
    parameters = []
    for name, parameter in module.signature.parameters.parameters.items():
        kind = _KINDS.get(parameter.kind.name, "positional")
        node = placeholders.get(name)
        if node is None:
            default = module.signature.baked.get(name, parameter.default)
            optional = parameter.default is not parameter.empty and default is parameter.default
            parameters.append(Parameter(name, kind, _constant_tree(default), optional))
            continue
        program.node = node
        layout = module.signature.inputs[name]
        spec = node.meta["spec"] if "spec" in node.meta else _spec(node, layout)
        value, tree = _read(program, name, tuple(spec) if kind == "*" else spec, [node])
        values[str(node.target)] = value
        parameters.append(Parameter(name, kind, tree))
    program.node = None
    return values, parameters


def _constant_tree(value: Any) -> Any:
    if value is None or isinstance(value, (bool, int, float, str)):
        return {"constant": value}
    if isinstance(value, dict):
        return {"dict": [[_key(key), _constant_tree(item)] for key, item in value.items()]}
    if isinstance(value, (tuple, list)):
        return {type(value).__name__: [_constant_tree(item) for item in value]}
    return UNUSED


def _key(key: Any) -> Any:
    return list(key) if isinstance(key, tuple) else key


def _spec(node: fx.Node, layout: Any) -> Any:
    """Shapes and dtypes of an argument's leaves, from the nodes that read them."""
    if isinstance(layout, dict):
        return type(layout)({key: _spec_of_item(node, key, item) for key, item in layout.items()})
    if isinstance(layout, list):
        return [_spec_of_item(node, key, item) for key, item in enumerate(layout)]
    if layout == "a tensor" and node.meta.get("shape") is not None:
        dtype = node.meta["dtype"]
        users = {getattr(user.target, "__name__", "") for user in node.users}
        sparse = dtype.is_floating_point and any(name in users for name in _SPARSE_USERS)
        return {"shape": tuple(node.meta["shape"]), "dtype": dtype, "sparse": sparse}
    return 0 if layout == "a number" else layout


def _spec_of_item(node: fx.Node, key: Any, layout: Any) -> Any:
    for user in node.users:
        if user.target is operator.getitem and user.args[1] == key:
            return _spec(user, layout)
    return None


def _is_tensor(spec: Any) -> bool:
    return isinstance(spec, dict) and set(spec) == {"shape", "dtype", "sparse"}


def _read(program: Program, path: str, spec: Any, readers: list[fx.Node] | None) -> tuple[Any, Any]:
    """Value and tree of one argument or item.

    ``readers`` are the nodes that stand for it; ``None`` where a node uses the whole container around it.
    """
    if isinstance(spec, (dict, tuple, list)) and not _is_tensor(spec):
        pairs = list(spec.items() if isinstance(spec, dict) else enumerate(spec))
        read = [(key, *_read(program, _path(path, key), item, _item(readers, key))) for key, item in pairs]
        if isinstance(spec, dict):
            kind = "dict" if type(spec) is dict else "data"
            return {key: value for key, value, _ in read}, {
                kind: [[_key(key), tree] for key, _, tree in read]
            }
        return tuple(value for _, value, _ in read), {type(spec).__name__: [tree for _, _, tree in read]}
    if readers is not None and not any(reader.users for reader in readers):
        return None, UNUSED
    if _is_tensor(spec):
        return _tensor(program, path, spec["shape"], spec["dtype"], spec["sparse"]), {"input": path}
    if spec is None or isinstance(spec, (bool, str)):
        return spec, {"constant": spec}
    if isinstance(spec, int):
        program.inputs.append(GraphInput(path, "size"))
        return program.size("size_input", name=path, input=path), {"input": path}
    raise program.refuse(
        f"the input {path!r} is a {type(spec).__name__}; compiled models take tensors and integers"
    )


def _path(path: str, key: Any) -> str:
    return f"{path}[{','.join(map(str, key)) if isinstance(key, tuple) else key}]"


def _item(readers: list[fx.Node] | None, key: Any) -> list[fx.Node] | None:
    """The nodes that take ``key`` out of a container."""
    if readers is None:
        return None
    users = [user for reader in readers for user in reader.users]
    if any(user.target is not operator.getitem for user in users):
        return None
    return [user for user in users if user.args[1] == key]


def _tensor(program: Program, name: str, shape: tuple[int, ...], dtype: torch.dtype, sparse: bool) -> Any:
    if sparse and dtype is torch.float32 and len(shape) == 2:
        return _adjacency(program, name)
    if dtype is torch.float32 and len(shape) >= 1:
        program.inputs.append(GraphInput(name, "rows", tuple(shape[1:])))
        rows = program.size("rows", name=f"{name}_rows", input=name).name
        return Rows(program.write("input", (), shape[1:], rows, name, input=name), tuple(shape[1:]), rows, 0)
    if dtype is torch.int64 and len(shape) == 2 and shape[0] == 2:
        return _edges(program, name)
    if dtype in {torch.int64, torch.bool} and len(shape) >= 1:
        return _index(program, name, tuple(shape[1:]), dtype is torch.bool)
    raise program.refuse(
        f"the input {name!r} is a {dtype} tensor of shape {tuple(shape)}; compiled models take float32 "
        ", int64 and bool tensors with at least one axis, sparse float32 matrices and integers"
    )


def _edges(program: Program, name: str) -> Index:
    program.inputs.append(GraphInput(name, "edges"))
    rows = program.size("rows", name=f"{name}_rows", input=name).name
    parts = np.empty(2, dtype=object)
    for part in (0, 1):
        parts[part] = program.array("index_input", (), rows, name=f"{name}[{part}]", input=name, part=part)
    return program.pair(Index(parts, rows, axis=1))


def _index(program: Program, name: str, shape: tuple[int, ...], boolean: bool) -> Index:
    if len(shape) > 1:
        raise program.refuse(f"the input {name!r} has more than two axes of integers")
    program.inputs.append(GraphInput(name, "mask" if boolean else "index", shape))
    rows = program.size("rows", name=f"{name}_rows", input=name).name
    parts = np.empty(shape, dtype=object)
    if not shape:
        parts[()] = program.array("index_input", (), rows, name=name, input=name)
    for part in range(shape[0] if shape else 0):
        parts[part] = program.array("index_input", (), rows, name=f"{name}[:, {part}]", input=name, part=part)
    return Index(parts, rows, boolean=boolean)


def _adjacency(program: Program, name: str) -> Adjacency:
    program.inputs.append(GraphInput(name, "adjacency"))
    target = program.array("index_input", (), "", name=f"{name}.row", input=name, part="row")
    rows = program.size("length", (target,), name=f"{name}_rows").name
    program.spaces[target] = rows
    source = program.array("index_input", (), rows, name=f"{name}.col", input=name, part="col")
    parts = np.empty(2, dtype=object)
    parts[:] = source, target
    weight = Rows(program.write("input", (), (), rows, name, input=name), (), rows, 0)
    extents = tuple(
        program.size("size_input", name=f"{name}_extent", input=name, axis=axis) for axis in (0, 1)
    )
    return Adjacency(program.pair(Index(parts, rows, axis=1)), weight, (extents[0], extents[1]))
