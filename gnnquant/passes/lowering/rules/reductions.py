"""Sums, means and the like over axes: within a row, or over all rows."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from gnnquant.passes.lowering.operands import as_rows, elementwise, float_operand, normal_axis, row_axis
from gnnquant.passes.lowering.program import positions
from gnnquant.passes.lowering.rules.elementwise import NAMES as ELEMENTWISE
from gnnquant.passes.lowering.rules.elementwise import is_integer
from gnnquant.passes.lowering.values import Index, Rows, Size
from gnnquant.tracing import graph_ops

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from gnnquant.passes.lowering.program import Program

    Rule = Callable[..., Any]


class Positions:
    """The positions of largest entries, which no rule reads."""


def axes_of(program: Program, x: Rows, dim: Any) -> list[int]:
    """Axes from the front; all where ``dim`` is ``None``."""
    if dim is None or (isinstance(dim, (tuple, list)) and not dim):
        return list(range(x.rank))
    return [normal_axis(program, axis, x.rank) for axis in (dim if isinstance(dim, (tuple, list)) else [dim])]


def reduce_axes(program: Program, x: Rows, axes: Sequence[int], reduce: str, keepdim: bool) -> Rows:
    """``reduce`` over axes of a tensor."""
    over_rows = x.axis is not None and x.axis in axes
    inner = sorted({row_axis(x, axis) for axis in axes if axis != x.axis}, reverse=True)  # type: ignore[type-var]
    for place in inner:
        assert place is not None
        shape = (*x.shape[:place], 1, *x.shape[place + 1 :])
        if x.shape[place] == 1:
            continue
        name = program.write(
            "reduce", (x,), (*x.shape[:place], *x.shape[place + 1 :]), x.rows, axis=place, reduce=reduce
        )
        dropped = Rows(name, (*x.shape[:place], *x.shape[place + 1 :]), x.rows, x.axis)
        x = replace(program.reshape(dropped, shape), axis=x.axis)
    if over_rows:
        assert x.axis is not None
        if reduce == "mul":
            raise program.refuse("a product over all rows")
        at = x.axis
        x = Rows(program.write("row_reduce", (x,), x.shape, reduce=reduce), x.shape)
        x = replace(program.reshape(x, (*x.shape[:at], 1, *x.shape[at:])), axis=None)
    if keepdim:
        return x
    kept = [size for axis, size in enumerate(x.sizes) if axis not in axes and axis != x.axis]
    axis = None if x.axis is None else x.axis - sum(item < x.axis for item in axes)
    return replace(program.reshape(x, kept), axis=axis)  # type: ignore[arg-type]


def _reduction(reduce: str) -> Rule:
    def rule(
        program: Program,
        x: Any,
        dim: Any = None,
        keepdim: bool = False,
        *,
        dtype: Any = None,
        axis: Any = None,
    ) -> Any:
        dim = axis if dim is None else dim
        if isinstance(x, (tuple, list)) and reduce == "sum":
            return _python_sum(program, x, 0 if dim is None else dim)
        if isinstance(x, Index) and reduce == "sum" and x.is_vector and not keepdim:
            return count_true(program, x)
        x = float_operand(program, x, reduce)
        return reduce_axes(program, x, axes_of(program, x, dim), reduce, keepdim)

    return rule


def _python_sum(program: Program, values: Sequence[Any], start: Any) -> Any:
    total = start
    for value in values:
        total = value if isinstance(total, int) and total == 0 else ELEMENTWISE["add"](program, total, value)
    return total


def count_true(program: Program, mask: Index) -> Any:
    """How many entries of a mask hold."""
    if not mask.boolean:
        raise program.refuse("a sum over integers")
    return Size(program.spaces[program.where_true(mask.name)])


def _extreme(reduce: str, name: str) -> Rule:
    """``max`` and ``min``: of two tensors, over an axis, or over everything."""

    def rule(
        program: Program, x: Any, *args: Any, dim: Any = None, keepdim: bool = False, **kwargs: Any
    ) -> Any:
        other = args[0] if args else kwargs.get("other")
        if isinstance(x, (tuple, list)):
            return _many(program, x, name)
        if isinstance(other, (Rows, Index, Tensor, Size)) or isinstance(x, (int, Size)):
            return _many(program, [x, *args], name)
        if isinstance(x, Index):
            return largest_entry(program, x, reduce)
        dim = other if dim is None else dim
        keepdim = args[1] if len(args) > 1 else keepdim
        x = float_operand(program, x, reduce)
        result = reduce_axes(program, x, axes_of(program, x, dim), reduce, keepdim)
        return result if dim is None else (result, Positions())

    return rule


def _many(program: Program, values: Sequence[Any], name: str) -> Any:
    result = values[0]
    for value in values[1:]:
        result = ELEMENTWISE[name](program, result, value)
    return result


def largest_entry(program: Program, x: Any, reduce: str = "max") -> Size:
    """The largest integer."""
    if not isinstance(x, Index):
        raise program.refuse("a number that depends on the values of features")
    if reduce != "max" or x.boolean:
        raise program.refuse("the smallest entry of integers")
    arrays = [str(item) for item in x.parts.reshape(-1)]
    size = program.size("extent", (program.join(arrays),))
    return Size(size.name, -1)


def _amax(reduce: str) -> Rule:
    def rule(program: Program, x: Any, dim: Any = None, keepdim: bool = False) -> Any:
        if isinstance(x, Index):
            return largest_entry(program, x, reduce)
        x = float_operand(program, x, reduce)
        return reduce_axes(program, x, axes_of(program, x, dim), reduce, keepdim)

    return rule


def entries(program: Program, x: Rows, axes: Sequence[int]) -> Size | int:
    """Number of entries along axes."""
    total: Size | int = 1
    for axis in axes:
        total = program.arithmetic("mul", total, x.sizes[axis])
    return total


def variance(
    program: Program,
    x: Any,
    dim: Any = None,
    unbiased: Any = None,
    keepdim: bool = False,
    *,
    correction: Any = None,
) -> Rows:
    """``var``: the mean square of deviations, over ``n - correction``."""
    if isinstance(dim, bool):
        dim, unbiased = None, dim
    if correction is None:
        correction = 1 if unbiased is None else int(unbiased)
    x = float_operand(program, x, "var")
    axes = axes_of(program, x, dim)
    deviation = elementwise(program, "sub", x, reduce_axes(program, x, axes, "mean", True))
    total = reduce_axes(program, program.local("mul", deviation, deviation), axes, "sum", keepdim)
    count = program.arithmetic("sub", entries(program, x, axes), correction)
    return elementwise(program, "div", total, count)


def deviation(program: Program, x: Any, *args: Any, **kwargs: Any) -> Rows:
    """``std``."""
    return program.local("sqrt", variance(program, x, *args, **kwargs))


def norm(
    program: Program, x: Any, p: Any = 2, dim: Any = None, keepdim: bool = False, dtype: Any = None
) -> Rows:
    """The p-norm over axes."""
    x = float_operand(program, x, "norm")
    axes = axes_of(program, x, dim)
    p = 2 if p in {None, "fro"} else p
    size = program.local("abs", x)
    if p == math.inf:
        return reduce_axes(program, size, axes, "max", keepdim)
    if p == 1:
        return reduce_axes(program, size, axes, "sum", keepdim)
    if p == 2:
        return program.local("sqrt", reduce_axes(program, program.local("mul", x, x), axes, "sum", keepdim))
    power = ELEMENTWISE["pow"]
    return power(program, reduce_axes(program, power(program, size, p), axes, "sum", keepdim), 1 / p)


def linalg_norm(
    program: Program, x: Any, ord: Any = None, dim: Any = None, keepdim: bool = False, **_: Any
) -> Rows:
    """``torch.linalg.norm`` of vectors."""
    return norm(program, x, ord, dim, keepdim)


def normalize(
    program: Program, x: Any, p: float = 2.0, dim: Any = 1, eps: float = 1e-12, out: Any = None
) -> Rows:
    """``F.normalize``: divided by the norm."""
    x = float_operand(program, x, "normalize")
    length = program.local("maximum", norm(program, x, p, dim, True), scalar=float(np.float32(eps)))
    return elementwise(program, "div", x, length)


def log_sum_exp(program: Program, x: Any, dim: Any, keepdim: bool = False) -> Rows:
    """``max + log(sum(exp(x - max)))``."""
    x = float_operand(program, x, "logsumexp")
    axes = axes_of(program, x, dim)
    largest = reduce_axes(program, x, axes, "max", True)
    total = reduce_axes(
        program, program.local("exp", elementwise(program, "sub", x, largest)), axes, "sum", True
    )
    result = elementwise(program, "add", largest, program.local("log", total))
    return result if keepdim else reduce_axes(program, result, axes, "sum", False)


def softmax_over(op: str) -> Rule:
    """``softmax`` and ``log_softmax`` over one axis."""

    def rule(program: Program, x: Any, dim: Any = None, _stacklevel: int = 3, dtype: Any = None) -> Rows:
        x = float_operand(program, x, op)
        axis = normal_axis(program, -1 if dim is None else dim, x.rank)
        if axis == x.axis:
            return _softmax_over_rows(program, x, op)
        place = row_axis(x, axis)
        assert place is not None
        if place == len(x.shape) - 1:
            return program.local(op, x)
        order = np.swapaxes(positions(x.shape), place, -1)
        moved = program.local(op, program.columns(x, order))
        return program.columns(moved, np.swapaxes(positions(moved.shape), place, -1))

    return rule


def _softmax_over_rows(program: Program, x: Rows, op: str) -> Rows:
    assert x.axis is not None
    shifted = elementwise(program, "sub", x, reduce_axes(program, x, [x.axis], "max", True))
    total = reduce_axes(program, program.local("exp", shifted), [x.axis], "sum", True)
    if op == "log_softmax":
        return elementwise(program, "sub", shifted, program.local("log", total))
    return elementwise(program, "div", program.local("exp", shifted), total)


def cross(program: Program, x: Any, y: Any, dim: Any = None) -> Rows:
    """The cross product along an axis of length 3 within the row."""
    x, y = as_rows(program, x), as_rows(program, y)
    axis = normal_axis(program, -1 if dim is None else dim, x.rank)
    place = row_axis(x, axis)
    if place is None:
        raise program.refuse("a cross product along the rows")

    def rolled(value: Rows, steps: int) -> Rows:
        return program.columns(value, np.roll(positions(value.shape), -steps, place))

    first = elementwise(program, "mul", rolled(x, 1), rolled(y, 2))
    return elementwise(program, "sub", first, elementwise(program, "mul", rolled(x, 2), rolled(y, 1)))


def cosine_similarity(program: Program, x: Any, y: Any, dim: int = 1, eps: float = 1e-8) -> Rows:
    """The inner product of normalized vectors."""
    first, second = (normalize(program, as_rows(program, item), 2.0, dim, eps) for item in (x, y))
    product = elementwise(program, "mul", first, second)
    return reduce_axes(program, product, axes_of(program, product, dim), "sum", False)


def einsum(program: Program, equation: Any, *operands: Any) -> Rows:
    """Products of operands with named axes, summed: the rows may be one of the names."""
    values = (
        list(operands[0]) if len(operands) == 1 and isinstance(operands[0], (tuple, list)) else list(operands)
    )
    inputs, _, output = str(equation).replace(" ", "").partition("->")
    terms = inputs.split(",")
    if "." in inputs or not output or any(len(set(term)) != len(term) for term in terms):
        raise program.refuse(f"the einsum {equation!r}")
    result, names = None, ""
    for position, (term, value) in enumerate(zip(terms, values, strict=True)):
        rest = output + "".join(terms[position + 1 :])
        operand = as_rows(program, value)
        if result is None:
            result, names = operand, term
        else:
            every = names + "".join(name for name in term if name not in names)
            left = _spread(program, result, names, every)
            right = _spread(program, operand, term, every)
            result, names = elementwise(program, "mul", left, right), every
        gone = [axis for axis, name in enumerate(names) if name not in rest]
        if gone:
            result = reduce_axes(program, result, gone, "sum", False)
            names = "".join(name for name in names if name in rest)
    assert result is not None
    return _arranged(program, result, names, output)


def _spread(program: Program, x: Rows, names: str, every: str) -> Rows:
    """``x`` with an axis for each of the names ``every``."""
    from gnnquant.passes.lowering.rules.shapes import unsqueeze

    x = _arranged(program, x, names, "".join(name for name in every if name in names))
    for axis, name in enumerate(every):
        if name not in names:
            x = unsqueeze(program, x, axis)
    return x


def _arranged(program: Program, x: Rows, names: str, wanted: str) -> Rows:
    from gnnquant.passes.lowering.rules.shapes import permute

    return x if names == wanted else permute(program, x, [names.index(name) for name in wanted])


def any_true(program: Program, x: Any, dim: Any = None, keepdim: bool = False) -> Any:
    """Whether one entry of a mask holds."""
    if not is_integer(x) and not (isinstance(x, Rows) and x.boolean):
        raise program.refuse("any of something else than a mask")
    rows = as_rows(program, x)
    return replace(reduce_axes(program, rows, axes_of(program, rows, dim), "max", keepdim), boolean=True)


def all_true(program: Program, x: Any, dim: Any = None, keepdim: bool = False) -> Any:
    """Whether all entries of a mask hold."""
    if not is_integer(x) and not (isinstance(x, Rows) and x.boolean):
        raise program.refuse("all of something else than a mask")
    rows = as_rows(program, x)
    return replace(reduce_axes(program, rows, axes_of(program, rows, dim), "min", keepdim), boolean=True)


NAMES: dict[str, Rule] = {
    "sum": _reduction("sum"),
    "mean": _reduction("mean"),
    "prod": _reduction("mul"),
    "max": _extreme("max", "maximum"),
    "min": _extreme("min", "minimum"),
    "amax": _amax("max"),
    "amin": _amax("min"),
    "var": variance,
    "std": deviation,
    "norm": norm,
    "vector_norm": linalg_norm,
    "linalg_norm": linalg_norm,
    "linalg_vector_norm": linalg_norm,
    "normalize": normalize,
    "logsumexp": log_sum_exp,
    "softmax": softmax_over("softmax"),
    "log_softmax": softmax_over("log_softmax"),
    **dict.fromkeys(("cross", "linalg_cross"), cross),
    "cosine_similarity": cosine_similarity,
    "einsum": einsum,
    "any": any_true,
    "all": all_true,
}

FUNCTIONS: dict[Any, Rule] = {graph_ops.largest: largest_entry}
