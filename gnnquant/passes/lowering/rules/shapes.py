"""Shapes: where the rows stand, what a row looks like, and tensors put together."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from gnnquant.integer_graph import ONE
from gnnquant.passes.lowering.operands import (
    as_rows,
    constant_rows,
    elementwise,
    normal_axis,
    row_axis,
    tensor,
    without,
)
from gnnquant.passes.lowering.program import positions
from gnnquant.passes.lowering.rules.creation import cast, sizes_of
from gnnquant.passes.lowering.values import Adjacency, Index, Rows, Size

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from gnnquant.passes.lowering.program import Program

    Rule = Callable[..., Any]


# ---------------------------------------------------------------- both kinds of tensors


def reshaped(program: Program, x: Rows | Index, shape: Sequence[int], axis: int | None) -> Rows | Index:
    """Another row shape of as many columns, and another place of the row axis."""
    if isinstance(x, Index):
        assert axis is not None
        return program.pair(Index(x.parts.reshape(tuple(shape)), x.rows, axis, x.boolean))
    return replace(program.reshape(x, shape), axis=axis)


def picked(program: Program, x: Rows | Index, places: NDArray[np.int64], axis: int | None) -> Rows | Index:
    """The columns ``places`` in their shape, and the place of the row axis."""
    if isinstance(x, Index):
        assert axis is not None
        parts = np.empty(places.shape, dtype=object)
        parts.reshape(-1)[:] = x.parts.reshape(-1)[places.reshape(-1)]
        return program.pair(Index(parts, x.rows, axis, x.boolean))
    return replace(program.columns(x, places), axis=axis)


def taken(program: Program, x: Rows | Index, index: str, *, safe: bool = False) -> Rows | Index:
    """Rows of ``x`` by an index array."""
    if isinstance(x, Rows):
        if x.axis is None:
            raise program.refuse("it selects rows of a tensor that has none")
        return program.gather(x, index, x.axis, safe=safe)
    parts = np.empty(x.shape, dtype=object)
    for place in np.ndindex(*x.shape):
        parts[place] = program.take(str(x.parts[place]), index)
    return program.pair(Index(parts, program.spaces[index], x.axis, x.boolean))


# ---------------------------------------------------------------- views


def view(program: Program, x: Any, *shape: Any, dtype: Any = None) -> Any:
    """``view`` and ``reshape``."""
    if len(shape) == 1 and isinstance(shape[0], torch.dtype):
        return cast(program, x, shape[0])
    if dtype is not None:
        return cast(program, x, dtype)
    wanted = list(shape[0]) if len(shape) == 1 and isinstance(shape[0], (tuple, list)) else list(shape)
    if isinstance(x, Tensor):
        if any(isinstance(item, Size) for item in wanted):
            raise program.refuse("it reshapes a constant to a number of rows")
        return x.reshape(wanted)
    x = tensor(program, x)
    return _viewed(program, x, wanted)


def _viewed(program: Program, x: Rows | Index, wanted: list[Any]) -> Rows | Index:
    if x.axis is None:
        if any(isinstance(item, Size) for item in wanted):
            raise program.refuse("it reshapes a single row to a number of rows")
        return reshaped(program, x, np.empty(x.shape, dtype=bool).reshape(wanted).shape, None)
    place, fixed = _free_axis(program, x, wanted)
    before = math.prod(x.shape[: x.axis])
    ahead, behind = math.prod(fixed[:place]), math.prod(fixed[place:])
    after = math.prod(x.shape[x.axis :])
    if (ahead, behind) == (before, after):
        return reshaped(program, x, fixed, place)
    if behind == after and ahead and before % ahead == 0:
        return _merged(program, x, before // ahead, fixed, place, outer=True)
    if ahead == before and behind and after % behind == 0:
        return _merged(program, x, after // behind, fixed, place, outer=False)
    if behind == after and before and ahead % before == 0:
        return _divided(program, x, ahead // before, fixed, place, outer=True)
    if ahead == before and after and behind % after == 0:
        return _divided(program, x, behind // after, fixed, place, outer=False)
    raise program.refuse(f"it reshapes across rows: {x.shape} per row to {tuple(fixed)}")


def _times(program: Program, rows: str, size: Size) -> int:
    """How many times ``size`` a space is that was made by turning columns into rows."""
    node = program.index[rows]
    made = node.op == "size" and node.attrs["function"] == "mul" and "right" in node.attrs
    if made and not size.offset and program.find(node.inputs[0]) == program.find(size.name):
        return int(node.attrs["right"])
    return 1


def _free_axis(program: Program, x: Rows | Index, wanted: list[Any]) -> tuple[int, list[int]]:
    """Which of the wanted sizes is the axis of rows, and the others."""
    free = [place for place, item in enumerate(wanted) if isinstance(item, Size)]
    if len(free) > 1:
        raise program.refuse("it reshapes to more than one axis of rows")
    if free and -1 in wanted:
        rest = math.prod(item for item in wanted if isinstance(item, int) and item != -1)
        width = math.prod(x.shape) * _times(program, x.rows, wanted[free[0]])
        wanted = [width // max(rest, 1) if item == -1 else item for item in wanted]
    elif not free:
        free = [place for place, item in enumerate(wanted) if item == -1]
    if len(free) != 1:
        raise program.refuse(f"it reshapes rows to the fixed shape {tuple(wanted)}")
    return free[0], [int(item) for item in without(wanted, free[0])]


def _merged(
    program: Program, x: Rows | Index, count: int, fixed: list[int], place: int, *, outer: bool
) -> Rows | Index:
    """An axis of the row becomes rows: in front of them (``outer``: block by block) or behind them."""
    before, after = math.prod(x.shape[: x.axis]), math.prod(x.shape[x.axis :])
    flat = positions(x.shape).reshape(
        (before // count, count, after) if outer else (before, count, after // count)
    )
    pieces = [picked(program, x, flat[:, item], 0) for item in range(count)]
    rows = program.size_of(program.arithmetic("mul", Size(x.rows), count))
    if outer:
        joined = cat(program, pieces, 0)
    elif isinstance(x, Rows):
        joined = _interleaved(program, pieces, rows)
    else:
        raise program.refuse("it turns columns of integers into rows")
    return reshaped(program, joined, fixed, place)


def _interleaved(program: Program, pieces: Sequence[Any], rows: str) -> Rows:
    """Row ``r`` of piece ``p`` as row ``r * pieces + p``."""
    everything = program.arange(rows)
    turn = program.combine("mod", everything, len(pieces), rows)
    source = program.combine("floordiv", everything, len(pieces), rows)
    result: Rows | None = None
    for number, piece in enumerate(pieces):
        chosen = program.combine("eq", turn, number, rows)
        # source where it is this piece's turn, else -1
        index = program.combine("add", source, 1, rows)
        index = program.combine("sub", program.combine("mul", chosen, index, rows), 1, rows)
        moved = program.gather(piece, index, 0, fill=0.0)
        result = moved if result is None else elementwise(program, "add", result, moved)
    assert result is not None
    return result


def _divided(
    program: Program, x: Rows | Index, count: int, fixed: list[int], place: int, *, outer: bool
) -> Rows | Index:
    """The axis of the rows becomes two, the reverse of ``_merged``."""
    node = program.index[x.rows]
    if node.op == "size" and node.attrs == {"function": "mul", "right": count}:
        rows = node.inputs[0]
    else:
        rows = program.size_of(program.arithmetic("floordiv", Size(x.rows), count))
    pieces = []
    for number in range(count):
        if outer:
            start = program.arithmetic("mul", Size(rows), number)
            index = program.arange(rows)
            index = index if number == 0 else program.combine("add", index, start, rows)
        else:
            index = program.combine(
                "add", program.combine("mul", program.arange(rows), count, rows), number, rows
            )
        pieces.append(taken(program, x, index, safe=True))
    before = math.prod(x.shape[: x.axis])
    whole = stack(
        program,
        [_viewed(program, piece, [before, -1, math.prod(x.shape) // before]) for piece in pieces],
        1 if outer else 2,
    )
    return reshaped(program, whole, fixed, place)


def view_as(program: Program, x: Any, other: Any) -> Any:
    """The shape of another tensor."""
    return view(program, x, list(sizes_of(program, other)))


def flatten(program: Program, x: Any, start_dim: int = 0, end_dim: int = -1) -> Any:
    """Axes joined into one."""
    x = tensor(program, x)
    start, end = start_dim % max(x.rank, 1), end_dim % max(x.rank, 1)
    if start == end:
        return x
    sizes = list(x.sizes)
    inner = sizes[start : end + 1]
    joined: Any = -1 if any(isinstance(item, Size) for item in inner) else math.prod(inner)
    return _viewed(program, x, [*sizes[:start], joined, *sizes[end + 1 :]])


def unflatten(program: Program, x: Any, dim: int, sizes: Sequence[Any]) -> Any:
    """One axis divided into several."""
    x = tensor(program, x)
    axis = normal_axis(program, dim, x.rank)
    return _viewed(program, x, [*x.sizes[:axis], *sizes, *x.sizes[axis + 1 :]])


def unsqueeze(program: Program, x: Any, dim: int) -> Any:
    """A new axis of length 1."""
    x = tensor(program, x)
    axis = dim % (x.rank + 1)
    if x.axis is None:
        return reshaped(program, x, (*x.shape[:axis], 1, *x.shape[axis:]), None)
    if axis <= x.axis:
        return reshaped(program, x, (*x.shape[:axis], 1, *x.shape[axis:]), x.axis + 1)
    return reshaped(program, x, (*x.shape[: axis - 1], 1, *x.shape[axis - 1 :]), x.axis)


def squeeze(program: Program, x: Any, dim: Any = None) -> Any:
    """Axes of length 1 removed."""
    x = tensor(program, x)
    axes = (
        range(x.rank)
        if dim is None
        else [item % x.rank for item in (dim if isinstance(dim, (tuple, list)) else [dim])]
    )
    gone = {axis for axis in axes if axis != x.axis and x.sizes[axis] == 1}
    shape = [size for axis, size in enumerate(x.sizes) if axis not in gone and axis != x.axis]
    axis = None if x.axis is None else x.axis - sum(item < x.axis for item in gone)
    return reshaped(program, x, shape, axis)


def permute(program: Program, x: Any, *dims: Any) -> Any:
    """Axes in another order."""
    x = tensor(program, x)
    order = list(dims[0]) if len(dims) == 1 and isinstance(dims[0], (tuple, list)) else list(dims)
    order = [item % x.rank for item in order]
    places = positions(x.shape)
    if x.axis is None:
        return picked(program, x, places.transpose(order), None)
    inner = [row_axis(x, item) for item in order if item != x.axis]
    return picked(program, x, places.transpose(inner), order.index(x.axis))  # type: ignore[arg-type]


def transpose(program: Program, x: Any, dim0: int, dim1: int) -> Any:
    """Two axes exchanged."""
    x = tensor(program, x)
    order = list(range(x.rank))
    first, second = dim0 % x.rank, dim1 % x.rank
    order[first], order[second] = order[second], order[first]
    return permute(program, x, order)


def move_axis(program: Program, x: Any, source: int, destination: int) -> Any:
    """One axis moved to another place."""
    x = tensor(program, x)
    order = [axis for axis in range(x.rank) if axis != source % x.rank]
    order.insert(destination % x.rank, source % x.rank)
    return permute(program, x, order)


def transposed(program: Program, x: Any) -> Any:
    """``t()``."""
    if isinstance(x, Adjacency):
        edges = x.edges
        flipped = program.pair(Index(edges.parts[::-1].copy(), edges.rows, 1))
        return Adjacency(flipped, x.weight, (x.extents[1], x.extents[0]))
    x = tensor(program, x)
    return x if x.rank < 2 else transpose(program, x, 0, 1)


def matrix_transposed(program: Program, x: Any) -> Any:
    """``mT``."""
    return transpose(program, x, -2, -1)


# ---------------------------------------------------------------- repetition


def expand(program: Program, x: Any, *shape: Any) -> Any:
    """Axes of length 1 repeated; a single row may become many."""
    wanted = list(shape[0]) if len(shape) == 1 and isinstance(shape[0], (tuple, list)) else list(shape)
    x = tensor(program, x) if not isinstance(x, Tensor) or any(isinstance(s, Size) for s in wanted) else x
    if isinstance(x, Tensor):
        return x.expand(wanted)
    sizes = [*[1] * (len(wanted) - x.rank), *x.sizes]
    new = [old if item == -1 else item for old, item in zip(sizes, wanted, strict=True)]
    return _repeated(program, _viewed(program, x, sizes) if x.rank < len(sizes) else x, new)


def expand_as(program: Program, x: Any, other: Any) -> Any:
    """Repeated to the shape of another tensor."""
    return expand(program, x, list(sizes_of(program, other)))


def _repeated(program: Program, x: Rows | Index, new: list[Any]) -> Rows | Index:
    """Axes of length 1 repeated to the sizes ``new`` of as many axes."""
    if x.axis is not None and isinstance(new[x.axis], Size):
        program.unify(x.rows, program.size_of(new[x.axis]))
    rows_at = [axis for axis, item in enumerate(new) if isinstance(item, Size)]
    fixed = [item for item in new if not isinstance(item, Size)]
    if x.axis is None and rows_at:
        assert isinstance(x, Rows)
        if len(rows_at) > 1 or x.shape[rows_at[0]] != 1:
            raise program.refuse("it repeats a value over more than one axis of rows")
        x = replace(
            program.reshape(x, [s for axis, s in enumerate(x.shape) if axis != rows_at[0]]), axis=None
        )
        x = program.expand(x, program.size_of(new[rows_at[0]]), rows_at[0])
    axis = x.axis
    places = np.broadcast_to(positions(x.shape), fixed if axis is None or rows_at else without(new, axis))
    return picked(program, x, places, axis)


def repeat(program: Program, x: Any, *counts: Any) -> Any:
    """The whole tensor again and again along its axes."""
    times = list(counts[0]) if len(counts) == 1 and isinstance(counts[0], (tuple, list)) else list(counts)
    if isinstance(x, Tensor) and not x.is_floating_point():
        return _repeat_integers(program, x, times)
    x = tensor(program, x)
    if x.rank < len(times):
        x = _viewed(program, x, [*[1] * (len(times) - x.rank), *x.sizes])
    if x.axis is not None and times[x.axis] != 1:
        raise program.refuse("it repeats the rows")
    rows_at = [axis for axis, item in enumerate(times) if isinstance(item, Size)]
    if rows_at:
        new = [times[axis] if axis in rows_at else size for axis, size in enumerate(x.sizes)]
        x = _repeated(program, x, new)
        times = [1 if axis in rows_at else item for axis, item in enumerate(times)]
    inner = times if x.axis is None else without(times, x.axis)
    return picked(program, x, np.tile(positions(x.shape), inner), x.axis)


def _repeat_integers(program: Program, x: Tensor, times: list[Any]) -> Any:
    """Constant integers repeated over a number of rows."""
    x = x.reshape(*[1] * (len(times) - x.dim()), *x.shape)
    rows_at = [axis for axis, item in enumerate(times) if isinstance(item, Size)]
    if len(rows_at) != 1 or x.shape[rows_at[0]] != 1:
        raise program.refuse("it repeats integers over more than one axis of rows")
    axis = rows_at[0]
    rows = program.size_of(times[axis])
    whole = x.squeeze(axis).repeat(*without(times, axis)) if x.dim() > 1 else x.squeeze(axis)
    parts = np.empty(tuple(whole.shape), dtype=object)
    for place in np.ndindex(*parts.shape):
        parts[place] = program.full(rows, int(whole[place]))
    return program.pair(Index(parts, rows, axis))


def repeat_interleave(program: Program, x: Any, repeats: Any, dim: Any = None, **_: Any) -> Any:
    """Every entry several times in a row."""
    x = tensor(program, x)
    if not isinstance(repeats, int):
        raise program.refuse("repeats that are not one number")
    if dim is None:
        if x.rank != 1:
            raise program.refuse("repeat_interleave without dim")
        dim = 0
    axis = row_axis(x, normal_axis(program, dim, x.rank))
    if axis is None:
        total = program.arithmetic("mul", Size(x.rows), repeats)
        rows = program.size_of(total)
        index = program.combine("floordiv", program.arange(rows), repeats, rows)
        return taken(program, x, index, safe=True)
    return picked(program, x, np.repeat(positions(x.shape), repeats, axis), x.axis)


def flip(program: Program, x: Any, *dims: Any) -> Any:
    """Axes read backwards."""
    x = tensor(program, x)
    axes = list(dims[0]) if len(dims) == 1 and isinstance(dims[0], (tuple, list)) else list(dims)
    for dim in axes:
        axis = row_axis(x, normal_axis(program, dim, x.rank))
        if axis is None:
            last = program.arithmetic("sub", Size(x.rows), 1)
            index = program.combine("sub", last, program.arange(x.rows), x.rows)
            x = taken(program, x, index, safe=True)
        else:
            x = picked(program, x, np.flip(positions(x.shape), axis), x.axis)
    return x


# ---------------------------------------------------------------- together


def cat(program: Program, tensors: Any, dim: int = 0, axis: int | None = None) -> Any:
    """Tensors one after the other along an axis."""
    items = [item for item in tensors if not (isinstance(item, Tensor) and item.shape == (0,))]
    if len(items) == 1:
        return items[0]
    rank = max(_rank(item) for item in items)
    at = normal_axis(program, dim if axis is None else axis, rank)
    if all(
        isinstance(item, Index) or (isinstance(item, Tensor) and not item.is_floating_point())
        for item in items
    ):
        return _cat_integers(program, items, at)
    values = [as_rows(program, item) for item in items]
    with_rows = {item.axis for item in values if item.axis is not None}
    if at in with_rows or not with_rows:
        return _cat_rows(program, values, at) if with_rows else _cat_columns(program, values, at, ONE, None)
    if len(with_rows) > 1:
        raise program.refuse("it concatenates tensors whose rows are different axes")
    row = with_rows.pop()
    rows = program.unify(*(item.rows for item in values))
    aligned = [_over_rows(program, item, rows, row) for item in values]
    return _cat_columns(program, aligned, at if at < row else at - 1, rows, row)


def _over_rows(program: Program, item: Rows, rows: str, row: int) -> Rows:
    """A single row repeated over the rows that it is put next to."""
    if item.axis is not None:
        return item
    if item.shape[row] != 1:
        raise program.refuse("it concatenates rows with a constant of a fixed number of rows")
    return program.expand(program.reshape(item, without(item.shape, row)), rows, row)


def pad(program: Program, x: Any, pad: Any, mode: str = "constant", value: Any = None) -> Any:
    """``F.pad`` of columns with a number."""
    x = as_rows(program, x)
    if mode != "constant" or any(item < 0 for item in pad):
        raise program.refuse("padding by something else than a number")
    for place in range(len(pad) // 2):
        axis = x.rank - 1 - place
        for count, front in ((pad[2 * place], True), (pad[2 * place + 1], False)):
            if count and axis == x.axis:
                raise program.refuse("it pads the rows")
            if count:
                shape = [1 if at == x.axis else size for at, size in enumerate(x.sizes)]
                shape[axis] = count
                new = program.constant(torch.full(shape, float(value or 0)))
                x = cat(program, [new, x] if front else [x, new], axis)
    return x


def hstack(program: Program, tensors: Any) -> Any:
    """Side by side: along the second axis, or the only one."""
    return cat(program, tensors, min(_rank(tensors[0]) - 1, 1))


def vstack(program: Program, tensors: Any) -> Any:
    """One below the other."""
    return cat(program, [unsqueeze(program, item, 0) if _rank(item) == 1 else item for item in tensors], 0)


def _rank(value: Any) -> int:
    return value.dim() if isinstance(value, Tensor) else int(value.rank)


def _cat_columns(program: Program, values: list[Rows], at: int, rows: str, axis: int | None) -> Rows:
    """Concatenation along an axis of the row shape."""
    if at == len(values[0].shape) - 1:
        shape = (*values[0].shape[:-1], sum(item.shape[-1] for item in values))
        return Rows(program.write("concat", values, shape, rows), shape, rows, axis)
    starts = np.cumsum([0, *(int(np.prod(item.shape)) for item in values)])
    places = [positions(item.shape) + start for item, start in zip(values, starts[:-1], strict=True)]
    flat = [program.reshape(item, (int(np.prod(item.shape)),)) for item in values]
    width = int(starts[-1])
    joined = Rows(program.write("concat", flat, (width,), rows), (width,), rows, axis)
    return replace(program.columns(joined, np.concatenate(places, axis=at)), axis=axis)


def _cat_rows(program: Program, values: list[Rows], at: int) -> Rows:
    """Concatenation of rows: every part is moved to its place among zeros, and they are added."""
    values = [_many(program, item, at) for item in values]
    shape = values[0].shape
    if any(item.shape != shape or item.axis != at for item in values):
        raise program.refuse("it concatenates rows of different shapes")
    result: Rows | None = None
    spaces = [item.rows for item in values]
    for place, item in enumerate(values):
        arrays = [
            program.arange(rows) if other == place else program.full(rows, -1)
            for other, rows in enumerate(spaces)
        ]
        moved = program.gather(item, program.join(arrays), at, fill=0.0)
        result = moved if result is None else elementwise(program, "add", result, moved)
    assert result is not None
    return result


def _many(program: Program, item: Rows, at: int) -> Rows:
    """Rows of a space of its own for a constant number of rows."""
    if item.axis is not None:
        return item
    count = item.shape[at]
    if count == 1:
        return program.expand(program.reshape(item, without(item.shape, at)), program.size_of(1), at)
    return constant_rows(program, item, at)


def _cat_integers(program: Program, items: list[Any], at: int) -> Index:
    indices = [item for item in items if isinstance(item, Index)]
    axis = indices[0].axis
    if at != axis:
        rows = program.unify(*(item.rows for item in indices))
        if len(indices) < len(items):
            raise program.refuse("it concatenates an index with constants")
        place = at if at < axis else at - 1
        parts = np.concatenate([item.parts for item in indices], axis=place)
        return program.pair(Index(parts, rows, axis, indices[0].boolean))
    parts = np.empty(indices[0].shape, dtype=object)
    for place in np.ndindex(*parts.shape):
        arrays = []
        for item in items:
            if isinstance(item, Index):
                arrays.append(str(item.parts[place]))
            else:
                arrays.append(program.values(item.movedim(axis, -1)[place].tolist()))
        parts[place] = program.join(arrays)
    name = str(parts.reshape(-1)[0])
    return program.pair(Index(parts, program.spaces[name], axis, indices[0].boolean))


def stack(program: Program, tensors: Any, dim: int = 0) -> Any:
    """Tensors along a new axis."""
    rank = max(_rank(item) for item in tensors) + 1
    axis = normal_axis(program, dim, rank)
    values = list(tensors)
    if not all(isinstance(item, Index) for item in values):
        values = [as_rows(program, item) for item in values]
    return cat(program, [unsqueeze(program, item, axis) for item in values], axis)


NAMES: dict[str, Rule] = {
    **dict.fromkeys(("view", "reshape"), view),
    **dict.fromkeys(("view_as", "reshape_as"), view_as),
    "flatten": flatten,
    "unflatten": unflatten,
    "unsqueeze": unsqueeze,
    "squeeze": squeeze,
    "permute": permute,
    **dict.fromkeys(("transpose", "swapaxes", "swapdims"), transpose),
    **dict.fromkeys(("movedim", "moveaxis"), move_axis),
    "t": transposed,
    "adjoint": matrix_transposed,
    "expand": expand,
    "expand_as": expand_as,
    **dict.fromkeys(("repeat", "tile"), repeat),
    "repeat_interleave": repeat_interleave,
    "flip": flip,
    **dict.fromkeys(("cat", "concat", "concatenate"), cat),
    "stack": stack,
    "hstack": hstack,
    "pad": pad,
    "vstack": vstack,
}
