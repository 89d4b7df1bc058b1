"""Sources, rows read by index, and what stays within a row."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from onnx import TensorProto

from gnnquant.backends.onnx.state import Codes

if TYPE_CHECKING:
    from collections.abc import Callable

    from gnnquant.backends.onnx.state import State
    from gnnquant.integer_graph import Node

_REDUCTIONS = {
    "sum": "ReduceSum",
    "mean": "ReduceSum",
    "mul": "ReduceProd",
    "max": "ReduceMax",
    "min": "ReduceMin",
}


def _input(state: State, node: Node) -> str:
    name = node.attrs["input"]
    return state.inputs.get((name, "")) or state.inputs[name, "values"]


def _constant(state: State, node: Node) -> str:
    name = node.attrs["array"]
    return state.to.constant(state.graph.constants[name].reshape(1, *node.shape), name)


def _from_index(state: State, node: Node) -> str:
    value = state.to.cast(state.array(node.attrs["index"]), TensorProto.FLOAT)
    return state.reshape(value, node.shape) if node.shape else value


def _lookup(state: State, node: Node) -> str:
    name = node.attrs["array"]
    table = state.to.constant(state.graph.constants[name], name)
    return state.to.op("Gather", table, state.array(node.attrs["index"]), axis=0)


def _gather(state: State, node: Node, x: str | Codes) -> str | Codes:
    index = state.array(node.attrs["index"])
    if isinstance(x, Codes):
        integers = state.to.op("Gather", x.integers, index, axis=0)
        scale = state.to.op("Gather", x.scale, index, axis=0) if x.per_row else x.scale
        return Codes(integers, scale, x.shape, x.per_row, x.container)
    if "fill" in node.attrs:  # the last row, which -1 reads
        fill = state.to.constant(np.full((1, *node.shape), node.attrs["fill"], np.float32))
        x = state.to.op("Concat", x, fill, axis=0)
    return state.to.op("Gather", x, index, axis=0)


def _row_reduce(state: State, node: Node, x: str) -> str:
    reduce = node.attrs["reduce"]
    first = state.to.integers([0])
    space = state.nodes[node.inputs[0]].rows
    if reduce in ("max", "min"):
        infinite = np.full((1, *node.shape), -np.inf if reduce == "max" else np.inf, np.float32)
        padded = state.to.op("Concat", x, state.to.constant(infinite), axis=0)
        extreme = state.to.op(_REDUCTIONS[reduce], padded, first, keepdims=1)
        any_row = state.to.op("Greater", state.count(space), state.to.integer(0))
        return state.to.op("Where", any_row, extreme, state.to.scalar(0.0))
    total = state.to.op("ReduceSum", x, first, keepdims=1)
    if reduce == "sum":
        return total
    rows = state.to.op("Max", state.count(space), state.to.integer(1))
    return state.to.op("Div", total, state.to.cast(rows, TensorProto.FLOAT))


def _float_gemm(state: State, node: Node, x: str) -> str:
    name = node.attrs["array"]
    weight = state.to.constant(state.graph.constants[name], name)
    return state.to.op("MatMul", state.operand(node, 0, x), weight)


def _matmul(state: State, node: Node, x: str, y: str) -> str:
    return state.to.op("MatMul", state.operand(node, 0, x), y)


def _reshape(state: State, node: Node, x: str) -> str:
    return state.reshape(state.operand(node, 0, x), node.shape)


def _columns(state: State, node: Node, x: str) -> str:
    given = state.nodes[node.inputs[0]].shape
    index = [int(column) for column in node.attrs["index"]]
    x = state.operand(node, 0, x)
    if index == list(range(math.prod(given))):
        return x if given == node.shape else state.reshape(x, node.shape)
    picked = state.to.op("Gather", state.flat(x, given), state.to.integers(index), axis=1)
    return state.unflat(picked, node.shape)


def _concat(state: State, node: Node, *values: str) -> str:
    fitted = [state.operand(node, position, value) for position, value in enumerate(values)]
    return state.to.op("Concat", *fitted, axis=-1)


def _reduce(state: State, node: Node, x: str) -> str:
    shape = state.nodes[node.inputs[0]].shape
    axis = node.attrs["axis"] % len(shape)
    reduce = node.attrs["reduce"] if shape[axis] else "sum"
    x = state.operand(node, 0, x)
    result = state.to.op(_REDUCTIONS[reduce], x, state.to.integers([axis + 1]), keepdims=0)
    if node.attrs["reduce"] == "mean":
        return state.to.op("Div", result, state.to.scalar(shape[axis]))
    return result


def _log_softmax(state: State, node: Node, x: str) -> str:
    return state.to.op("LogSoftmax", state.operand(node, 0, x), axis=-1)


def _softmax(state: State, node: Node, x: str) -> str:
    return state.to.op("Softmax", state.operand(node, 0, x), axis=-1)


ROWS: dict[str, Callable[..., str | Codes]] = {
    "input": _input,
    "constant": _constant,
    "lookup": _lookup,
    "from_index": _from_index,
    "gather": _gather,
    "row_reduce": _row_reduce,
    "float_gemm": _float_gemm,
    "matmul": _matmul,
    "reshape": _reshape,
    "columns": _columns,
    "concat": _concat,
    "reduce": _reduce,
    "log_softmax": _log_softmax,
    "softmax": _softmax,
}
"""Operation -> emitter(state, node, *operands)."""
