"""Sizes, casts, copies and new tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from gnnquant.passes.lowering.operands import as_rows, tensor, without
from gnnquant.passes.lowering.rules.elementwise import integers
from gnnquant.passes.lowering.values import Adjacency, Index, Rows, Size

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from gnnquant.passes.lowering.program import Program

    Rule = Callable[..., Any]


# ---------------------------------------------------------------- sizes and casts


def sizes_of(program: Program, x: Any) -> tuple[Any, ...]:
    """Shape of a tensor: numbers and sizes."""
    if isinstance(x, Tensor):
        return tuple(x.shape)
    if isinstance(x, Adjacency):
        return x.extents
    if isinstance(x, Size):
        return ()
    return tensor(program, x).sizes


def size(program: Program, x: Any, dim: Any = None) -> Any:
    """``size()`` and ``size(dim)``."""
    sizes = sizes_of(program, x)
    return sizes if dim is None else sizes[dim]


def numel(program: Program, x: Any) -> Any:
    """Number of entries."""
    total: Size | int = 1
    for item in sizes_of(program, x):
        total = program.arithmetic("mul", total, item)
    return total


def rank_of(program: Program, x: Any) -> int:
    """Number of axes."""
    return len(sizes_of(program, x))


def length(program: Program, x: Any) -> Any:
    """``len``."""
    return len(x) if isinstance(x, (tuple, list, dict)) else sizes_of(program, x)[0]


def item(program: Program, x: Any) -> Any:
    """A single integer as a number."""
    if isinstance(x, Size) or (isinstance(x, Index) and not x.boolean):
        return x
    raise program.refuse("it takes a number out of a tensor of floats")


def cast(program: Program, x: Any, *args: Any, dtype: Any = None, **_: Any) -> Any:
    """``to`` and its kin."""
    for argument in (*args, dtype):
        like = isinstance(argument, (Tensor, Rows, Index))
        wanted = dtype_of(program, argument) if like else argument
        if isinstance(wanted, torch.dtype):
            return _cast(program, x, wanted)
    return x


def _cast(program: Program, x: Any, dtype: torch.dtype) -> Any:
    if dtype.is_floating_point:
        return as_rows(program, x)
    if isinstance(x, Size):
        return x
    if isinstance(x, Index):
        if dtype is torch.bool and not x.boolean:
            return integers(program, "ne", x, 0, boolean=True)
        return Index(x.parts, x.rows, x.axis, boolean=dtype is torch.bool)
    if isinstance(x, Rows) and x.boolean and dtype is torch.bool:
        return x
    raise program.refuse(f"it converts floats to {dtype}: integers must follow from integer inputs")


def _cast_to(dtype: torch.dtype) -> Rule:
    def rule(program: Program, x: Any) -> Any:
        return _cast(program, x, dtype)

    return rule


def type_as(program: Program, x: Any, other: Any) -> Any:
    """The dtype of another tensor."""
    return _cast(program, x, dtype_of(program, other))


def dtype_of(program: Program, x: Any) -> torch.dtype:
    """The element type of a value."""
    if isinstance(x, Tensor):
        return x.dtype
    if isinstance(x, Index):
        return torch.bool if x.boolean else torch.int64
    return torch.float32


def device_of(program: Program, x: Any) -> torch.device:
    """The device: lowering computes on the CPU."""
    return torch.device("cpu")


def dropout(program: Program, x: Any, p: float = 0.5, training: bool = True, inplace: bool = False) -> Any:
    """``F.dropout``, which must be off."""
    if training and p:
        raise program.refuse("it drops entries at random in eval mode too: pass training=self.training")
    return x


def identity(program: Program, x: Any, *_: Any, **__: Any) -> Any:
    """Markers, dropout in eval mode, copies."""
    return x


# ---------------------------------------------------------------- new tensors


def filled(program: Program, shape: Sequence[Any], value: Any, dtype: Any = None) -> Any:
    """A tensor of one number, over a space where its shape names one."""
    dtype = dtype or torch.get_default_dtype()
    rows_at = [axis for axis, item in enumerate(shape) if isinstance(item, Size)]
    if not isinstance(value, (bool, int, float)):
        value = value.item() if isinstance(value, Tensor) else value
    if not rows_at:
        return torch.full(tuple(shape), value, dtype=dtype)
    if len(rows_at) > 1:
        raise program.refuse("a tensor with more than one axis of rows")
    axis = rows_at[0]
    rows = program.size_of(shape[axis])
    row_shape = without(shape, axis)
    if dtype.is_floating_point:
        if isinstance(value, (Size, Rows)):
            raise program.refuse("a tensor filled with a computed number")
        return program.expand(program.constant(torch.full(row_shape, float(value))), rows, axis)
    parts = np.empty(tuple(row_shape), dtype=object)
    for place in np.ndindex(*parts.shape):
        parts[place] = program.full(rows, int(value))
    return program.pair(Index(parts, rows, axis, boolean=dtype is torch.bool))


def _shape_of(shape: tuple[Any, ...]) -> list[Any]:
    return list(shape[0]) if len(shape) == 1 and isinstance(shape[0], (tuple, list)) else list(shape)


def _new(value: float) -> Rule:
    def rule(program: Program, *shape: Any, dtype: Any = None, size: Any = None, **_: Any) -> Any:
        return filled(program, _shape_of(shape) if size is None else list(size), value, dtype)

    return rule


def full(program: Program, size: Any, fill_value: Any, *, dtype: Any = None, **_: Any) -> Any:
    """``torch.full``."""
    if dtype is None and isinstance(fill_value, int):
        dtype = torch.bool if isinstance(fill_value, bool) else torch.int64
    return filled(program, list(size), fill_value, dtype)


def _new_like(value: float) -> Rule:
    """``x.new_zeros(shape)``."""

    def rule(program: Program, x: Any, *shape: Any, dtype: Any = None, size: Any = None, **_: Any) -> Any:
        wanted = _shape_of(shape) if size is None else list(size)
        return filled(program, wanted, value, dtype or dtype_of(program, x))

    return rule


def new_full(program: Program, x: Any, size: Any, fill_value: Any, *, dtype: Any = None, **_: Any) -> Any:
    """``x.new_full(shape, value)``."""
    return filled(program, list(size), fill_value, dtype or dtype_of(program, x))


def _like(value: float) -> Rule:
    """``torch.zeros_like(x)``."""

    def rule(program: Program, x: Any, *, dtype: Any = None, **_: Any) -> Any:
        return filled(program, sizes_of(program, x), value, dtype or dtype_of(program, x))

    return rule


def full_like(program: Program, x: Any, fill_value: Any, *, dtype: Any = None, **_: Any) -> Any:
    """``torch.full_like(x, value)``."""
    return filled(program, sizes_of(program, x), fill_value, dtype or dtype_of(program, x))


def arange(
    program: Program, start: Any, end: Any = None, step: Any = 1, *, dtype: Any = None, **_: Any
) -> Any:
    """0, 1, ... up to a size."""
    if end is None:
        start, end = 0, start
    if step != 1:
        raise program.refuse("arange with a step")
    count = program.arithmetic("sub", end, start) if start != 0 else end
    rows = program.size_of(count)
    array = program.arange(rows)
    if start != 0:
        array = program.combine("add", array, start, rows)
    index = Index(np.array(array, dtype=object), rows)
    return as_rows(program, index) if dtype is not None and dtype.is_floating_point else index


_COPIES = (
    "contiguous",
    "clone",
    "detach",
    "requires_grad",
    "alpha_dropout",
    "feature_dropout",
    "cpu",
    "copy",
)
NAMES: dict[str, Rule] = {
    "size": size,
    "numel": numel,
    "dim": rank_of,
    "ndimension": rank_of,
    "len": length,
    "item": item,
    **dict.fromkeys(("to", "type"), cast),
    "float": _cast_to(torch.float32),
    "long": _cast_to(torch.int64),
    "bool": _cast_to(torch.bool),
    "int": item,
    "type_as": type_as,
    "zeros": _new(0),
    "ones": _new(1),
    "empty": _new(0),
    "full": full,
    "new_zeros": _new_like(0),
    "new_ones": _new_like(1),
    "new_empty": _new_like(0),
    "new_full": new_full,
    "zeros_like": _like(0),
    "ones_like": _like(1),
    "empty_like": _like(0),
    "full_like": full_like,
    "arange": arange,
    **dict.fromkeys(_COPIES, identity),
    "dropout": dropout,
}
