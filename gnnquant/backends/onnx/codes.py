"""Quantization and integer products.

With one scale per tensor, values are a ``QuantizeLinear`` and a ``DequantizeLinear`` with that scale, and a
product is a ``MatMul`` of two dequantized matrices: the form that tools recognise. A scale per row follows
from the row, so it stays outside: ``x / s`` is quantized in units of 1, the product is one of whole numbers
(exact in float32 while sums stay below 2^24), and scales are multiplied to it, which is the arithmetic of
``gnnquant.integer_graph``. So is it with the four symmetric levels of 2 bits, whose sums are often exactly 0,
which ``floor`` must not see as slightly less.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from gnnquant.backends.onnx.containers import value_container, weight_container
from gnnquant.backends.onnx.state import Codes, float32
from gnnquant.integer_graph import SMALLEST

if TYPE_CHECKING:
    from collections.abc import Callable

    from gnnquant.backends.onnx.containers import Container
    from gnnquant.backends.onnx.state import State
    from gnnquant.integer_graph import Node


def _quantize(state: State, node: Node, x: str) -> Codes:
    attrs, to = node.attrs, state.to
    container = value_container(attrs["bits"], attrs["zero2"], to.opset, node.name)
    x = state.operand(node, 0, x)
    per_row = attrs["granularity"] == "row"
    if per_row:
        scale = _row_scale(state, node, x)
        codes = _store(state, to.op("Mul", x, state.inverse(scale)), container)
    else:
        value = float32(attrs["scale"])
        scale = to.scalar(value)
        if not container.half and value >= SMALLEST:
            codes = _store(state, x, container, value)
            return Codes(_integers(state, codes, container), scale, node.shape, False, container, codes)
        inverse = np.float32(1) / np.float32(value) if value >= SMALLEST else np.float32(0)
        codes = _store(state, to.op("Mul", x, to.scalar(inverse)), container)
    return Codes(_integers(state, codes, container), scale, node.shape, per_row, container)


def _row_scale(state: State, node: Node, x: str) -> str:
    """``max |x| * factor`` (``max(0, max x)`` for unsigned codes) of every row, [R, 1, ...]."""
    to = state.to
    magnitude = to.op("Abs" if node.attrs["zero2"] else "Relu", x)
    if node.shape:
        axes = to.integers(range(1, len(node.shape) + 1))
        magnitude = to.op("ReduceMax" if node.columns else "ReduceSum", magnitude, axes, keepdims=1)
    return to.op("Mul", magnitude, to.scalar(node.attrs["factor"]))


def _store(state: State, t: str, container: Container, scale: float = 1.0) -> str:
    """``t`` rounded to whole multiples of ``scale`` and stored."""
    to = state.to
    if container.half:  # v + 1/2 with v = floor(t)
        t = to.op("Floor", t)
    if container.clips:  # not Clip: ONNX Runtime cannot fold it into a QuantizeLinear to INT4, and fails
        t = to.op("Max", t, to.scalar(container.low * scale))
        t = to.op("Min", t, to.scalar(container.high * scale))
    return to.op("QuantizeLinear", t, to.scalar(scale), state.zero_point(container.kind))


def _integers(state: State, codes: str, container: Container, zero_point: str = "") -> str:
    """What stored codes stand for in units of their scale."""
    to = state.to
    value = state.dequantize(codes, to.scalar(1.0), container, zero_point)
    return to.op("Add", value, to.scalar(0.5)) if container.half else value


def _dequantize(state: State, node: Node, q: Codes) -> str:
    return state.real(q)


def _gemm(state: State, node: Node, q: Codes) -> str:
    to, name = state.to, node.attrs["weight"]
    weight = state.graph.weights[name]
    inputs, outputs = weight.shape
    container, zero, data = weight_container(weight, to.opset, name)
    stored = state.to.packed(name, container.kind, weight.shape, data)
    # ``weight.scale`` is that of a code, also where codes are halves.
    scale = to.constant(weight.scale.astype(np.float32), f"{name}.scale")
    if q.codes and not container.half:
        operands = [stored, scale]
        if zero:
            operands.append(state.zero_point(container.kind, zero, outputs))
        real = to.op("DequantizeLinear", *operands, axis=1)
        return _shaped(state, node, to.op("MatMul", _last(state, state.real(q), q, inputs), real), outputs)
    zero_point = state.zero_point(container.kind, zero) if zero else ""
    whole = _integers(state, stored, container, zero_point)
    total = to.op("MatMul", _last(state, q.integers, q, inputs), whole)
    rank = _inner_rank(node, outputs)
    row_scale = q.scale
    if q.per_row and len(q.shape) != rank:
        row_scale = state.reshape(q.scale, (1,) * rank)
    return _shaped(state, node, to.op("Mul", to.op("Mul", total, row_scale), scale), outputs)


def _inner_rank(node: Node, outputs: int) -> int:
    """Row axes of the product before it gets its row shape: [columns] or [groups, columns]."""
    return 1 if node.columns == outputs else 2


def _last(state: State, value: str, q: Codes, inputs: int) -> str:
    """A quantized operand as [R, inputs] or [R, groups, inputs]."""
    columns = int(np.prod(q.shape, dtype=np.int64))
    shape = (inputs,) if columns == inputs else (columns // inputs, inputs)
    return value if q.shape == shape else state.reshape(value, shape)


def _shaped(state: State, node: Node, value: str, outputs: int) -> str:
    """A product as [R, *row shape]."""
    made = (outputs,) if _inner_rank(node, outputs) == 1 else (node.columns // outputs, outputs)
    return value if made == node.shape else state.reshape(value, node.shape)


CODES: dict[str, Callable[..., str | Codes]] = {
    "quantize": _quantize,
    "dequantize": _dequantize,
    "gemm": _gemm,
}
"""Operation -> emitter(state, node, *operands)."""
