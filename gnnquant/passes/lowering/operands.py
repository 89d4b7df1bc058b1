"""Operands: values as rows, and rows that meet in one operation."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from gnnquant.integer_graph import ONE
from gnnquant.passes.lowering.values import Codes, Index, Rows, Size

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gnnquant.passes.lowering.program import Program

COMMUTING = frozenset({"add", "mul", "maximum", "minimum", "eq"})
REVERSED = {"sub": "rsub", "div": "rdiv"}


def as_rows(program: Program, value: Any) -> Rows:
    """``value`` as a float tensor of the row program."""
    if isinstance(value, Rows):
        return program.dequantized(value)
    if isinstance(value, (bool, int, float)):
        return program.constant(torch.tensor(float(value)))
    if isinstance(value, Tensor):
        return program.constant(value)
    if isinstance(value, Size):
        return size_as_row(program, value)
    if isinstance(value, Index):
        return index_as_rows(program, value)
    raise program.refuse(f"it computes with a {type(value).__name__}")


def size_as_row(program: Program, size: Size) -> Rows:
    """A size as a single float."""
    array = program.combine("add", program.values([size.offset]), Size(size.name), program.size_of(1))
    return Rows(program.write("from_index", index=array), ())


def index_as_rows(program: Program, value: Index) -> Rows:
    """Integers as floats."""
    parts = []
    for array in value.parts.reshape(-1):
        name = program.write("from_index", (), (), value.rows, index=str(array))
        parts.append(Rows(name, (), value.rows, 0))
    if value.is_vector:
        rows = replace(parts[0], axis=value.axis)
    else:
        rows = concat_flat(program, parts)
        rows = replace(program.reshape(rows, value.shape), axis=value.axis)
    return replace(rows, boolean=value.boolean)


def concat_flat(program: Program, parts: Sequence[Rows]) -> Rows:
    """Rows next to one another, flattened; the rows are the first axis."""
    flat = [program.reshape(part, (int(np.prod(part.shape)),)) for part in parts]
    if len(flat) == 1:
        return flat[0]
    rows = program.unify(*(part.rows for part in flat))
    width = sum(part.shape[0] for part in flat)
    name = program.write("concat", flat, (width,), rows)
    return Rows(name, (width,), rows, None if rows == ONE else 0)


def align(program: Program, operands: Sequence[Rows]) -> tuple[list[Rows], str, int | None]:
    """Operands that broadcast as tensors, as rows of equal rank; their space and the row axis."""
    rank = max(item.rank for item in operands)
    behind = {item.rank - item.axis for item in operands if item.axis is not None}
    if len(behind) > 1:
        shapes = " and ".join(str(item.shape) for item in operands)
        raise program.refuse(
            f"it broadcasts rows across rows (row shapes {shapes}): every row meets every other"
        )
    if not behind:
        return [program.reshape(x, (*[1] * (rank - x.rank), *x.shape)) for x in operands], ONE, None
    axis = rank - behind.pop()
    rows = program.unify(*(item.rows for item in operands))
    aligned = []
    for item in operands:
        padding = [1] * (rank - item.rank)
        at = axis - len(padding)
        if item.axis is not None:
            aligned.append(program.reshape(item, [*padding, *item.shape]))
        elif at < 0 or item.shape[at] == 1:
            shape = [*padding, *item.shape]
            aligned.append(program.reshape(item, without(shape, axis)))
        else:
            whole = constant_rows(program, item, at)
            rows = program.unify(rows, whole.rows)
            aligned.append(program.reshape(whole, [*padding, *whole.shape]))
    return aligned, rows, axis


def elementwise(program: Program, op: str, *values: Any, boolean: bool = False) -> Rows:
    """Elementwise ``op`` of tensors and numbers, at least one of them rows."""
    if len(values) == 2:
        scalar = _with_scalar(program, op, *values)
        if scalar is not None:
            return replace(scalar, boolean=boolean)
    operands, rows, axis = align(program, [as_rows(program, value) for value in values])
    try:
        shape = np.broadcast_shapes(*(item.shape for item in operands))
    except ValueError as error:
        raise program.refuse(str(error)) from error
    name = program.write(op, operands, shape, rows)
    return Rows(name, tuple(shape), rows, axis, boolean)


def _with_scalar(program: Program, op: str, x: Any, y: Any) -> Rows | None:
    """``op`` with a number as its last operand, where it can be written so."""
    number = as_number(y)
    if number is not None and isinstance(x, (Rows, Index)):
        x = as_rows(program, x)
        return program.local(op, x, scalar=number)
    number = as_number(x)
    op = op if op in COMMUTING else REVERSED.get(op, "")
    if number is not None and op and isinstance(y, (Rows, Index)):
        y = as_rows(program, y)
        return program.local(op, y, scalar=number)
    return None


def as_number(value: Any) -> float | None:
    """A finite constant number as a float32."""
    if isinstance(value, Tensor) and value.dim() == 0:
        value = value.item()
    if isinstance(value, (bool, int, float)) and math.isfinite(value):
        return float(np.float32(value))
    return None


def float_operand(program: Program, value: Any, what: str) -> Rows:
    """``value``, which must be a float tensor that depends on the inputs."""
    if isinstance(value, Codes):
        return program.dequantized(value)
    if isinstance(value, Index):
        return index_as_rows(program, value)
    if isinstance(value, Rows):
        return value
    raise program.refuse(f"{what} of a {type(value).__name__}")


def constant_rows(program: Program, x: Rows, axis: int) -> Rows:
    """A constant of more than one row, as rows of a space of as many."""
    node = program.nodes[x.name]
    if node.op != "constant":
        raise program.refuse(f"it takes the axis {axis} of a single row of shape {x.shape} for rows")
    table = torch.from_numpy(program.constants[node.attrs["array"]]).movedim(axis, 0)
    rows = program.size_of(table.size(0))
    array = program.constant_array(table, f"{node.name}.rows")
    shape = tuple(table.shape[1:])
    name = program.write("lookup", (), shape, rows, array=array, index=program.arange(rows))
    return Rows(name, shape, rows, axis)


def normal_axis(program: Program, axis: Any, rank: int) -> int:
    """``axis`` from the front."""
    if isinstance(axis, (tuple, list)) and len(axis) == 1:
        axis = axis[0]
    if not isinstance(axis, int) or not -rank <= axis < rank:
        raise program.refuse(f"it names the axis {axis!r} of a tensor of {rank} axes")
    return axis % rank


def row_axis(x: Rows | Index, axis: int) -> int | None:
    """Where a tensor's axis is within the shape of a row; ``None`` for the axis of the rows."""
    if x.axis is None or axis < x.axis:
        return axis
    return None if axis == x.axis else axis - 1


def tensor(program: Program, value: Any) -> Rows | Index:
    """``value`` as a tensor that depends on the inputs."""
    if isinstance(value, (Rows, Index)):
        return value
    return as_rows(program, value)


def without(items: Sequence[Any], place: int) -> list[Any]:
    """The items but one."""
    return [item for position, item in enumerate(items) if position != place]
