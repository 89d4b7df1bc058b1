"""Float32 functions on vectors, operation by operation as in ``gnnquant.exact_math``."""
# ruff: noqa: C901, PLR0911, PLR0912
# One branch and return per elementwise operation.

from __future__ import annotations

from typing import Any

from gnnquant import exact_math
from gnnquant.backends.tvm.emit import (
    bind,
    cast,
    choose,
    const,
    maximum,
    minimum,
    number,
    product,
    reinterpret,
    shift_left,
    shift_right,
    splat,
    unary,
)
from gnnquant.errors import BackendError
from gnnquant.integer_graph import SMALLEST, SQUARINGS


def exp(x: Any, lanes: int) -> Any:
    """``exact_math.exp``."""

    def times(a: Any, value: float) -> Any:
        return product(a, number(value, lanes), lanes)

    x = minimum(maximum(x, number(exact_math.EXP_LOW, lanes)), number(exact_math.EXP_HIGH, lanes))
    x = bind(x)
    k = bind(unary("llvm.rint", x * number(exact_math.LOG2_E, lanes), lanes))
    r = bind((x - times(k, exact_math.LN2_HIGH)) - times(k, exact_math.LN2_LOW))
    p = number(exact_math.EXP_COEFFICIENTS[0], lanes)
    for coefficient in exact_math.EXP_COEFFICIENTS[1:]:
        p = product(p, r, lanes) + number(coefficient, lanes)
    y = (product(p, product(r, r, lanes), lanes) + r) + number(1.0, lanes)
    biased = cast(k, "int32", lanes) + splat(const(127), lanes)
    power = reinterpret(shift_left(biased, 23, "int32", lanes), "float32", lanes)
    return product(y, power, lanes)


def inverse(x: Any, numerator: float, lanes: int) -> Any:
    """``numerator / x`` where ``x >= SMALLEST``, else 0."""
    return choose(x >= number(SMALLEST, lanes), number(numerator, lanes) / x, number(0.0, lanes))


def power(t: Any, lanes: int) -> Any:
    """The ``DEPTH``-th power."""
    for _ in range(SQUARINGS):
        t = bind(t)
        t = product(t, t, lanes)
    return t


def log(x: Any, lanes: int) -> Any:
    """``exact_math.log``."""

    def constant(value: int) -> Any:
        return splat(const(value), lanes)

    bits = bind(reinterpret(x, "int32", lanes))
    exponent = (shift_right(bits, 23, "int32", lanes) & constant(255)) - constant(126)
    mantissa = bind(reinterpret((bits & constant(0x7FFFFF)) | constant(0x3F000000), "float32", lanes))
    small = mantissa < number(exact_math.SQRT_HALF, lanes)
    f = bind(choose(small, mantissa + mantissa, mantissa) - number(1.0, lanes))
    e = bind(cast(exponent - choose(small, constant(1), constant(0)), "float32", lanes))
    z = bind(product(f, f, lanes))
    p = number(exact_math.LOG_COEFFICIENTS[0], lanes)
    for coefficient in exact_math.LOG_COEFFICIENTS[1:]:
        p = product(p, f, lanes) + number(coefficient, lanes)
    tail = product(e, number(exact_math.LN2_LOW, lanes), lanes)
    half = product(z, number(0.5, lanes), lanes)
    y = (product(product(p, f, lanes), z, lanes) + tail) - half
    return (f + y) + product(e, number(exact_math.LN2_HIGH, lanes), lanes)


def elementwise(op: str, operands: list[Any], lanes: int) -> Any:
    """An elementwise operation; the scalar, where there is one, is the last operand."""
    x, *others = operands
    y = others[0] if others else None
    zero, one = number(0.0, lanes), number(1.0, lanes)
    if op in ("leaky_relu", "elu", "tanh", "relu"):
        x = bind(x)
    if op == "add":
        return x + y
    if op == "sub":
        return x - y
    if op == "rsub":
        return y - x
    if op == "mul":
        return product(x, y, lanes)
    if op == "div":
        return x / y
    if op == "rdiv":
        return y / x
    if op in ("maximum", "minimum"):
        return (maximum if op == "maximum" else minimum)(x, y)
    if op == "eq":
        return choose(x == y, one, zero)
    if op == "lt":
        return choose(x < y, one, zero)
    if op == "le":
        return choose(x <= y, one, zero)
    if op == "where":
        return choose(x != zero, y, others[1])
    if op == "neg":
        return _negate(x, lanes)
    if op == "abs":
        return unary("llvm.fabs", x, lanes)
    if op in ("sqrt", "floor"):
        return unary(f"llvm.{op}", x, lanes)
    if op == "relu":
        return maximum(x, zero)
    if op == "leaky_relu":
        return choose(x > zero, x, product(x, y, lanes))
    if op == "elu":
        return choose(x > zero, x, product(y, exp(x, lanes) - one, lanes))
    if op == "exp":
        return exp(x, lanes)
    if op == "log":
        return log(x, lanes)
    if op == "sigmoid":
        return one / (one + exp(_negate(x, lanes), lanes))
    if op == "tanh":
        t = bind(exp(product(unary("llvm.fabs", x, lanes), number(-2.0, lanes), lanes), lanes))
        value = bind((one - t) / (one + t))
        return choose(x < zero, _negate(value, lanes), value)
    raise BackendError(f"tvm backend: no elementwise operation {op!r}")


def _negate(x: Any, lanes: int) -> Any:
    """``-x`` by its sign bit: ``0 - x`` would turn 0 into +0."""
    bits = reinterpret(x, "int32", lanes) ^ splat(const(-(2**31)), lanes)
    return reinterpret(bits, "float32", lanes)
