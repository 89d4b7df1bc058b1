"""Operations element by element: one ONNX operator each, or a few."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnx import TensorProto

from gnnquant.integer_graph import ONE

if TYPE_CHECKING:
    from collections.abc import Callable

    from gnnquant.backends.onnx.state import State
    from gnnquant.integer_graph import Node

OPERATORS = {
    "add": "Add",
    "sub": "Sub",
    "mul": "Mul",
    "div": "Div",
    "maximum": "Max",
    "minimum": "Min",
    "neg": "Neg",
    "abs": "Abs",
    "sqrt": "Sqrt",
    "floor": "Floor",
    "relu": "Relu",
    "exp": "Exp",
    "log": "Log",
    "sigmoid": "Sigmoid",
    "tanh": "Tanh",
}
"""Operations that are one operator."""
_COMPARISONS = {"eq": "Equal", "lt": "Less", "le": "LessOrEqual"}
_REVERSED = {"rsub": "Sub", "rdiv": "Div"}
_WITH_ALPHA = {"leaky_relu": "LeakyRelu", "elu": "Elu"}


def _operands(state: State, node: Node, operands: tuple[str, ...]) -> list[str]:
    """The operands, the scalar last; where all are one row, the first is repeated."""
    found = list(operands)
    if found and node.rows != ONE and all(state.nodes[name].rows == ONE for name in node.inputs):
        found[0] = state.operand(node, 0, found[0])
    if "scalar" in node.attrs and node.op not in _WITH_ALPHA:
        found.append(state.to.scalar(node.attrs["scalar"]))
    return found


def _plain(state: State, node: Node, *operands: str) -> str:
    return state.to.op(OPERATORS[node.op], *_operands(state, node, operands))


def _reversed(state: State, node: Node, *operands: str) -> str:
    return state.to.op(_REVERSED[node.op], *_operands(state, node, operands)[::-1])


def _comparison(state: State, node: Node, *operands: str) -> str:
    truth = state.to.op(_COMPARISONS[node.op], *_operands(state, node, operands))
    return state.to.cast(truth, TensorProto.FLOAT)


def _where(state: State, node: Node, *operands: str) -> str:
    condition, x, y = _operands(state, node, operands)
    return state.to.op("Where", state.to.cast(condition, TensorProto.BOOL), x, y)


def _with_alpha(state: State, node: Node, *operands: str) -> str:
    (x,) = _operands(state, node, operands)
    return state.to.op(_WITH_ALPHA[node.op], x, alpha=float(node.attrs["scalar"]))


ELEMENTWISE: dict[str, Callable[..., str]] = {
    **dict.fromkeys(OPERATORS, _plain),
    **dict.fromkeys(_COMPARISONS, _comparison),
    **dict.fromkeys(_REVERSED, _reversed),
    **dict.fromkeys(_WITH_ALPHA, _with_alpha),
    "where": _where,
}
"""Operation -> emitter(state, node, *operands)."""
