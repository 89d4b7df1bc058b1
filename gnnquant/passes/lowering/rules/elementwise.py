"""Arithmetic, comparisons and activations, entry by entry; on integers they are index program."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from gnnquant.passes.lowering.operands import (
    as_number,
    as_rows,
    elementwise,
    float_operand,
)
from gnnquant.passes.lowering.values import Index, Rows, Size

if TYPE_CHECKING:
    from collections.abc import Callable

    from gnnquant.passes.lowering.program import Program

    Rule = Callable[..., Any]

# Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.26: |error| <= 1.5e-7.
ERF_SCALE = 0.3275911
ERF_COEFFICIENTS = (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592)
SELU_SCALE, SELU_ALPHA = 1.0507009873554805, 1.6732632423543772


# ---------------------------------------------------------------- integers


def is_integer(value: Any) -> bool:
    """Whether ``value`` is made of integers (masks among them)."""
    if isinstance(value, Tensor):
        return not value.is_floating_point()
    return isinstance(value, (Index, Size, int))


def integers(program: Program, function: str, x: Any, y: Any, *, boolean: bool = False) -> Any:
    """``function`` of the index op ``combine`` on integer tensors, sizes and numbers."""
    x, y = (item.item() if isinstance(item, Tensor) and item.dim() == 0 else item for item in (x, y))
    if not isinstance(x, Index) and not isinstance(y, Index):
        if isinstance(x, (Size, int)) and isinstance(y, (Size, int)) and not boolean:
            return program.arithmetic(function, x, y)
        raise program.refuse(f"{function} of numbers that are known only when the model runs")
    indices = [item for item in (x, y) if isinstance(item, Index)]
    rows = program.unify(*(item.rows for item in indices))
    rank = max(item.rank if isinstance(item, Index) else _rank(item) for item in (x, y))
    behind = {item.rank - item.axis for item in indices}
    if len(behind) > 1:
        raise program.refuse("it broadcasts integers across rows: every row meets every other")
    axis = rank - behind.pop()
    left, right = (_integer_parts(program, item, rank, axis) for item in (x, y))
    shape = np.broadcast_shapes(left.shape, right.shape)
    left, right = np.broadcast_to(left, shape), np.broadcast_to(right, shape)
    parts = np.empty(shape, dtype=object)
    for place in np.ndindex(*shape):
        parts[place] = program.combine(function, left[place], right[place], rows)
    return Index(parts, rows, axis, boolean)


def _rank(value: Any) -> int:
    return value.dim() if isinstance(value, Tensor) else 0


def _integer_parts(program: Program, value: Any, rank: int, axis: int) -> Any:
    """Entries of a row as an array of ``rank - 1`` axes: names of arrays, sizes or numbers."""
    if isinstance(value, Index):
        return value.parts.reshape((*[1] * (rank - value.rank), *value.shape))
    if isinstance(value, Tensor):
        shape = [*[1] * (rank - value.dim()), *value.shape]
        if shape.pop(axis) != 1:
            raise program.refuse("it combines rows with a constant that has one entry per row")
        parts = np.empty(shape, dtype=object)
        parts.reshape(-1)[:] = [int(item) for item in value.reshape(-1)]
        return parts
    parts = np.empty((1,) * (rank - 1), dtype=object)
    parts[...] = value
    return parts


# ---------------------------------------------------------------- two operands


def _arithmetic(op: str) -> Rule:
    def rule(program: Program, x: Any, y: Any, *, alpha: Any = 1) -> Any:
        if alpha != 1:
            y = y * alpha if isinstance(y, (Tensor, int, float)) else elementwise(program, "mul", y, alpha)
        if is_integer(x) and is_integer(y):
            return integers(program, op, x, y)
        return elementwise(program, op, x, y)

    return rule


def _extreme(op: str, function: str) -> Rule:
    def rule(program: Program, x: Any, y: Any) -> Any:
        if is_integer(x) and is_integer(y):
            return integers(program, function, x, y)
        return elementwise(program, op, x, y)

    return rule


def divide(program: Program, x: Any, y: Any, *, rounding_mode: str | None = None) -> Any:
    """``x / y``, rounded down with ``rounding_mode="floor"``."""
    if rounding_mode is None:
        return elementwise(program, "div", x, y)
    if rounding_mode != "floor":
        raise program.refuse(f"a division with rounding_mode={rounding_mode!r}")
    return floor_divide(program, x, y)


def floor_divide(program: Program, x: Any, y: Any) -> Any:
    """``x // y``."""
    if is_integer(x) and is_integer(y):
        return integers(program, "floordiv", x, y)
    return program.local("floor", elementwise(program, "div", x, y))


def remainder(program: Program, x: Any, y: Any) -> Any:
    """``x % y``."""
    if is_integer(x) and is_integer(y):
        return integers(program, "mod", x, y)
    return elementwise(program, "sub", x, elementwise(program, "mul", floor_divide(program, x, y), y))


def _reversed(rule: Rule) -> Rule:
    def swapped(program: Program, x: Any, y: Any) -> Any:
        return rule(program, y, x)

    return swapped


def _comparison(function: str) -> Rule:
    def rule(program: Program, x: Any, y: Any) -> Any:
        if is_integer(x) and is_integer(y):
            return integers(program, function, x, y, boolean=True)
        if function == "ne":
            return logical_not(program, elementwise(program, "eq", x, y, boolean=True))
        if function in {"gt", "ge"}:
            return elementwise(program, "lt" if function == "gt" else "le", y, x, boolean=True)
        return elementwise(program, function, x, y, boolean=True)

    return rule


def logical_not(program: Program, x: Any) -> Any:
    """Its opposite for every entry of a mask."""
    if isinstance(x, Index):
        if not x.boolean:
            raise program.refuse("a bitwise operation on integers")
        parts = np.empty(x.shape, dtype=object)
        for place in np.ndindex(*x.shape):
            parts[place] = program.array("not", (str(x.parts[place]),), x.rows)
        return Index(parts, x.rows, x.axis, boolean=True)
    if not isinstance(x, Rows) or not x.boolean:
        raise program.refuse("a logical operation on something else than a mask")
    return replace(program.local("rsub", x, scalar=1.0), boolean=True)


def _logical(function: str, op: str) -> Rule:
    def rule(program: Program, x: Any, y: Any) -> Any:
        if is_integer(x) and is_integer(y):
            return integers(program, function, x, y, boolean=True)
        return elementwise(program, op, x, y, boolean=True)

    return rule


def power(program: Program, x: Any, exponent: Any) -> Any:
    """``x ** exponent``: products and roots for multiples of a half, ``exp(exponent * log(x))`` else."""
    number = as_number(exponent)
    if number is None or as_number(x) is not None:
        return exponential(program, elementwise(program, "mul", logarithm(program, x), exponent))
    if number == 2 and isinstance(x, Index):
        return integers(program, "mul", x, x)
    rows = as_rows(program, x)
    size = abs(number)
    if size > 8 or size * 2 != int(size * 2):
        logs = program.local("log", rows)
        return program.local("exp", program.local("mul", logs, scalar=number))
    result = program.local("sqrt", rows) if size != int(size) else None
    for _ in range(int(size)):
        result = rows if result is None else elementwise(program, "mul", result, rows)
    if result is None:
        return program.local("add", program.local("mul", rows, scalar=0.0), scalar=1.0)
    return program.local("rdiv", result, scalar=1.0) if number < 0 else result


# ---------------------------------------------------------------- one operand


def _unary(op: str) -> Rule:
    def rule(program: Program, x: Any, inplace: bool = False) -> Any:
        return program.local(op, float_operand(program, x, op))

    return rule


def logarithm(program: Program, x: Any) -> Rows:
    """``log(x)``."""
    return program.local("log", as_rows(program, x))


def exponential(program: Program, x: Any) -> Rows:
    """``exp(x)``."""
    return program.local("exp", as_rows(program, x))


def leaky_relu(program: Program, x: Any, negative_slope: float = 0.01, inplace: bool = False) -> Rows:
    """``x`` where it is positive, ``x * negative_slope`` else."""
    return program.local("leaky_relu", float_operand(program, x, "leaky_relu"), scalar=float(negative_slope))


def rrelu(program: Program, x: Any, lower: float = 1 / 8, upper: float = 1 / 3, *_: Any, **__: Any) -> Rows:
    """In eval mode a leaky ReLU with the mean slope."""
    return leaky_relu(program, x, (lower + upper) / 2)


def elu(
    program: Program,
    x: Any,
    alpha: float = 1.0,
    scale: float = 1.0,
    input_scale: float = 1.0,
    *,
    inplace: bool = False,
) -> Rows:
    """``elu``."""
    if scale != 1 or input_scale != 1:
        raise program.refuse("an ELU with scales")
    return program.local("elu", float_operand(program, x, "elu"), scalar=float(alpha))


def selu(program: Program, x: Any, inplace: bool = False) -> Rows:
    """``selu``."""
    return program.local("mul", elu(program, x, SELU_ALPHA), scalar=SELU_SCALE)


def celu(program: Program, x: Any, alpha: float = 1.0, inplace: bool = False) -> Rows:
    """``max(0, x) + min(0, alpha * (exp(x / alpha) - 1))``: an ELU in units of ``alpha``."""
    scaled = program.local("div", float_operand(program, x, "celu"), scalar=float(alpha))
    return program.local("mul", program.local("elu", scaled, scalar=1.0), scalar=float(alpha))


def prelu(program: Program, x: Any, weight: Any) -> Rows:
    """A leaky ReLU with one slope, or one per channel (the second axis)."""
    x = float_operand(program, x, "prelu")
    if isinstance(weight, Tensor) and weight.numel() > 1:
        weight = weight.reshape(-1, *[1] * (x.rank - 2))
    negative = elementwise(program, "mul", program.local("minimum", x, scalar=0.0), weight)
    return elementwise(program, "add", program.local("relu", x), negative)


def softplus(program: Program, x: Any, beta: float = 1.0, threshold: float = 20.0) -> Rows:
    """``log(1 + exp(beta x)) / beta`` as ``max(y, 0) + log(1 + exp(-|y|))`` with ``y = beta x``."""
    y = float_operand(program, x, "softplus")
    y = y if beta == 1 else program.local("mul", y, scalar=float(beta))
    small = program.local("exp", program.local("neg", program.local("abs", y)))
    small = program.local("log", program.local("add", small, scalar=1.0))
    result = program.local("add", program.local("relu", y), small)
    return result if beta == 1 else program.local("div", result, scalar=float(beta))


def log_sigmoid(program: Program, x: Any) -> Rows:
    """``-softplus(-x)``."""
    return program.local(
        "neg", softplus(program, program.local("neg", float_operand(program, x, "logsigmoid")))
    )


def silu(program: Program, x: Any, inplace: bool = False) -> Rows:
    """``x * sigmoid(x)``."""
    x = float_operand(program, x, "silu")
    return program.local("mul", x, program.local("sigmoid", x))


def mish(program: Program, x: Any, inplace: bool = False) -> Rows:
    """``x * tanh(softplus(x))``."""
    x = float_operand(program, x, "mish")
    return program.local("mul", x, program.local("tanh", softplus(program, x)))


def error_function(program: Program, x: Any) -> Rows:
    """``erf(x) = sign(x) (1 - polynomial(t) exp(-x^2))`` with ``t = 1 / (1 + p |x|)``."""
    x = float_operand(program, x, "erf")
    size = program.local("abs", x)
    t = program.local("mul", size, scalar=float(np.float32(ERF_SCALE)))
    t = program.local("rdiv", program.local("add", t, scalar=1.0), scalar=1.0)
    result = None
    for coefficient in ERF_COEFFICIENTS:
        number = float(np.float32(coefficient))
        if result is None:
            result = program.local("mul", t, scalar=number)
        else:
            result = program.local("mul", program.local("add", result, scalar=number), t)
    assert result is not None
    tail = program.local("exp", program.local("neg", program.local("mul", x, x)))
    result = program.local("rsub", program.local("mul", result, tail), scalar=1.0)
    return program.local("where", program.local("lt", x, scalar=0.0), program.local("neg", result), result)


def gelu(program: Program, x: Any, approximate: str = "none") -> Rows:
    """``x Phi(x)``, or its approximation by ``tanh``."""
    x = float_operand(program, x, "gelu")
    if approximate == "tanh":
        cubed = program.local("mul", program.local("mul", x, x), x)
        inner = program.local("add", x, program.local("mul", cubed, scalar=float(np.float32(0.044715))))
        part = program.local(
            "tanh", program.local("mul", inner, scalar=float(np.float32(math.sqrt(2 / math.pi))))
        )
    else:
        part = error_function(program, program.local("mul", x, scalar=float(np.float32(math.sqrt(0.5)))))
    half = program.local("mul", x, scalar=0.5)
    return program.local("mul", half, program.local("add", part, scalar=1.0))


def clamp(program: Program, x: Any, min: Any = None, max: Any = None) -> Any:
    """``x`` within bounds, each of which may be missing."""
    for bound, op, function in ((min, "maximum", "max"), (max, "minimum", "min")):
        if bound is not None:
            x = _extreme(op, function)(program, x, bound)
    return x


def hardtanh(
    program: Program,
    x: Any,
    min_val: float = -1.0,
    max_val: float = 1.0,
    inplace: bool = False,
) -> Any:
    """``clamp``."""
    return clamp(program, x, min_val, max_val)


def relu6(program: Program, x: Any, inplace: bool = False) -> Any:
    """``clamp(x, 0, 6)``."""
    return clamp(program, x, 0.0, 6.0)


def hardsigmoid(program: Program, x: Any, inplace: bool = False) -> Any:
    """``clamp(x + 3, 0, 6) / 6``."""
    shifted = program.local("add", float_operand(program, x, "hardsigmoid"), scalar=3.0)
    return program.local("div", relu6(program, shifted), scalar=6.0)


def hardswish(program: Program, x: Any, inplace: bool = False) -> Any:
    """``x * hardsigmoid(x)``."""
    x = float_operand(program, x, "hardswish")
    return program.local("mul", x, hardsigmoid(program, x))


def softsign(program: Program, x: Any) -> Rows:
    """``x / (1 + |x|)``."""
    x = float_operand(program, x, "softsign")
    return program.local("div", x, program.local("add", program.local("abs", x), scalar=1.0))


def glu(program: Program, x: Any, dim: int = -1) -> Rows:
    """The first half times the sigmoid of the second."""
    from gnnquant.passes.lowering.rules.parts import chunk

    first, second = chunk(program, x, 2, dim)
    return elementwise(program, "mul", first, program.local("sigmoid", second))


def reciprocal(program: Program, x: Any) -> Rows:
    """``1 / x``."""
    return program.local("rdiv", float_operand(program, x, "reciprocal"), scalar=1.0)


def rsqrt(program: Program, x: Any) -> Rows:
    """``1 / sqrt(x)``."""
    return reciprocal(program, program.local("sqrt", float_operand(program, x, "rsqrt")))


def square(program: Program, x: Any) -> Any:
    """``x * x``."""
    return power(program, x, 2)


def _log_of(base: float, shift: float) -> Rule:
    def rule(program: Program, x: Any) -> Rows:
        rows = float_operand(program, x, "log")
        rows = program.local("add", rows, scalar=shift) if shift else rows
        result = program.local("log", rows)
        return (
            result
            if base == math.e
            else program.local("div", result, scalar=float(np.float32(math.log(base))))
        )

    return rule


def expm1(program: Program, x: Any) -> Rows:
    """``exp(x) - 1``."""
    return program.local("sub", exponential(program, x), scalar=1.0)


def sign(program: Program, x: Any) -> Rows:
    """-1, 0 or 1."""
    x = float_operand(program, x, "sign")
    negative = program.local("lt", x, scalar=0.0)
    positive = elementwise(program, "lt", 0.0, x)
    return program.local("sub", positive, negative)


def ceil(program: Program, x: Any) -> Rows:
    """``-floor(-x)``."""
    x = float_operand(program, x, "ceil")
    return program.local("neg", program.local("floor", program.local("neg", x)))


def is_infinite(program: Program, x: Any) -> Rows:
    """Where it is positive or negative infinity."""
    size = program.local("abs", float_operand(program, x, "isinf"))
    return elementwise(program, "eq", size, math.inf, boolean=True)


def is_nan(program: Program, x: Any) -> Rows:
    """Where it is not a number: it differs from itself."""
    x = float_operand(program, x, "isnan")
    return logical_not(program, replace(program.local("eq", x, x), boolean=True))


def nan_to_num(program: Program, x: Any, nan: float = 0.0, posinf: Any = None, neginf: Any = None) -> Rows:
    """Numbers in place of what is none."""
    x = float_operand(program, x, "nan_to_num")
    largest = torch.finfo(torch.float32).max
    x = where(program, is_nan(program, x), nan or 0.0, x)
    return clamp(program, x, -largest if neginf is None else neginf, largest if posinf is None else posinf)


# ---------------------------------------------------------------- choices


def where(program: Program, condition: Any, x: Any, y: Any) -> Any:
    """``x`` where ``condition`` holds, else ``y``."""
    if isinstance(condition, Index) and is_integer(x) and is_integer(y):
        return integer_where(program, condition, x, y)
    return elementwise(program, "where", condition, x, y)


def integer_where(program: Program, condition: Index, x: Any, y: Any) -> Any:
    """``y + condition * (x - y)`` on integers."""
    difference = integers(program, "sub", x, y) if not (isinstance(x, int) and isinstance(y, int)) else x - y
    return integers(program, "add", integers(program, "mul", condition, difference), y)


def masked_fill(program: Program, x: Any, mask: Any, value: Any) -> Any:
    """``value`` where ``mask`` holds, else ``x``."""
    return where(program, mask, value, x)


def atan2(program: Program, y: Any, x: Any) -> Rows:
    """The angle of (x, y): an arctangent in one octant, turned into place."""
    y, x = float_operand(program, y, "atan2"), float_operand(program, x, "atan2")
    above, beside = program.local("abs", y), program.local("abs", x)
    large, small = (
        elementwise(program, "maximum", above, beside),
        elementwise(program, "minimum", above, beside),
    )
    safe = program.local("maximum", large, scalar=float(np.finfo(np.float32).tiny))
    angle = small_arctangent(program, program.local("div", small, safe))
    steep = elementwise(program, "lt", beside, above)
    angle = program.local(
        "where", steep, program.local("rsub", angle, scalar=float(np.float32(math.pi / 2))), angle
    )
    left = program.local("lt", x, scalar=0.0)
    angle = program.local(
        "where", left, program.local("rsub", angle, scalar=float(np.float32(math.pi))), angle
    )
    return program.local("where", program.local("lt", y, scalar=0.0), program.local("neg", angle), angle)


ARCTANGENT = (
    -0.00262222652, 0.01513246220, -0.04112173577, 0.07366695190, -0.10573926731,
    0.14185973859, -0.19990396434, 0.33332987050,
)  # fmt: skip
"""``atan(x) = x - x P(x^2)`` on [0, 1] within 8e-9; P by least squares weighted towards equal ripples, from
its highest power down."""


def small_arctangent(program: Program, x: Rows) -> Rows:
    """``atan(x)`` for ``0 <= x <= 1``."""
    squared = program.local("mul", x, x)
    result = None
    for coefficient in ARCTANGENT:
        number = float(np.float32(coefficient))
        if result is None:
            result = program.local("mul", squared, scalar=number)
        else:
            result = program.local("mul", program.local("add", result, scalar=number), squared)
    assert result is not None
    return program.local("sub", x, program.local("mul", x, result))


PERIOD = (6.28125, 0.0019350051879882812, 3.0199159819e-07)
"""2 pi in three parts: multiples of the first two by a number of at most 13 bits are exact."""
SINE = (-2.38466946e-08, 2.752261889e-06, -0.0001984080404, 0.008333330496, -0.1666666661)
"""``sin(x) = x + x P(x^2)`` on [-pi / 2, pi / 2] within 2e-11, fitted as ``ARCTANGENT``."""


def _within_period(program: Program, x: Rows) -> Rows:
    """``x`` less a multiple of 2 pi, in [-pi, pi]."""
    turns = program.local("mul", x, scalar=float(np.float32(0.5 / math.pi)))
    turns = program.local("floor", program.local("add", turns, scalar=0.5))
    for part in PERIOD:
        x = program.local("sub", x, program.local("mul", turns, scalar=float(np.float32(part))))
    return x


def _sine_of_quarter(program: Program, x: Rows) -> Rows:
    """``sin(x)`` for ``|x| <= pi / 2``."""
    squared = program.local("mul", x, x)
    result: Rows | None = None
    for coefficient in SINE:
        number = float(np.float32(coefficient))
        if result is None:
            result = program.local("mul", squared, scalar=number)
        else:
            result = program.local("mul", program.local("add", result, scalar=number), squared)
    assert result is not None
    return program.local("add", x, program.local("mul", x, result))


def sine(program: Program, x: Any) -> Rows:
    """``sin(x)``: angles beyond a quarter are mirrored at it."""
    x = _within_period(program, float_operand(program, x, "sin"))
    half = float(np.float32(math.pi))
    over = elementwise(program, "lt", half / 2, x)
    x = program.local("where", over, program.local("rsub", x, scalar=half), x)
    under = program.local("lt", x, scalar=-half / 2)
    return _sine_of_quarter(program, program.local("where", under, program.local("rsub", x, scalar=-half), x))


def cosine(program: Program, x: Any) -> Rows:
    """``cos(x) = 1 - 2 sin(x / 2)^2``."""
    x = _within_period(program, float_operand(program, x, "cos"))
    root = _sine_of_quarter(program, program.local("mul", x, scalar=0.5))
    return program.local(
        "rsub", program.local("mul", program.local("mul", root, root), scalar=2.0), scalar=1.0
    )


_ADD, _SUB, _MUL = _arithmetic("add"), _arithmetic("sub"), _arithmetic("mul")
NAMES: dict[str, Rule] = {
    **dict.fromkeys(("add", "iadd", "radd"), _ADD),
    **dict.fromkeys(("sub", "isub", "subtract"), _SUB),
    "rsub": _reversed(_SUB),
    **dict.fromkeys(("mul", "imul", "rmul", "multiply"), _MUL),
    **dict.fromkeys(("div", "truediv", "itruediv", "divide", "true_divide"), divide),
    **dict.fromkeys(("rtruediv", "rdiv"), _reversed(divide)),
    **dict.fromkeys(("floordiv", "floor_divide", "ifloordiv"), floor_divide),
    **dict.fromkeys(("mod", "remainder", "fmod"), remainder),
    **dict.fromkeys(("pow", "ipow"), power),
    "rpow": _reversed(power),
    "maximum": _extreme("maximum", "max"),
    "minimum": _extreme("minimum", "min"),
    **{name: _comparison(name) for name in ("eq", "ne", "lt", "le", "gt", "ge")},
    "greater": _comparison("gt"),
    "less": _comparison("lt"),
    "not_equal": _comparison("ne"),
    **dict.fromkeys(("invert", "logical_not", "bitwise_not"), logical_not),
    **dict.fromkeys(("and", "logical_and", "bitwise_and", "iand"), _logical("and", "mul")),
    **dict.fromkeys(("or", "logical_or", "bitwise_or", "ior"), _logical("or", "maximum")),
    **{op: _unary(op) for op in ("relu", "sigmoid", "tanh", "sqrt", "neg", "abs", "floor")},
    "negative": _unary("neg"),
    "absolute": _unary("abs"),
    "exp": exponential,
    "log": _log_of(math.e, 0.0),
    "log2": _log_of(2.0, 0.0),
    "log10": _log_of(10.0, 0.0),
    "log1p": _log_of(math.e, 1.0),
    "expm1": expm1,
    "leaky_relu": leaky_relu,
    "rrelu": rrelu,
    "elu": elu,
    "selu": selu,
    "celu": celu,
    "prelu": prelu,
    "softplus": softplus,
    "logsigmoid": log_sigmoid,
    "log_sigmoid": log_sigmoid,
    "silu": silu,
    "mish": mish,
    "gelu": gelu,
    "erf": error_function,
    **dict.fromkeys(("clamp", "clip"), clamp),
    "hardtanh": hardtanh,
    "relu6": relu6,
    "hardsigmoid": hardsigmoid,
    "hardswish": hardswish,
    "softsign": softsign,
    "glu": glu,
    "reciprocal": reciprocal,
    "rsqrt": rsqrt,
    "square": square,
    "sign": sign,
    "ceil": ceil,
    "isinf": is_infinite,
    "isnan": is_nan,
    "nan_to_num": nan_to_num,
    "where": where,
    "masked_fill": masked_fill,
    "atan2": atan2,
    "sin": sine,
    "cos": cosine,
}
