"""Parts of tensors: indexing, selection, pieces, and parts replaced."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from gnnquant.integer_graph import ONE
from gnnquant.passes.lowering.operands import (
    align,
    as_rows,
    elementwise,
    normal_axis,
    row_axis,
    tensor,
    without,
)
from gnnquant.passes.lowering.program import positions
from gnnquant.passes.lowering.rules.elementwise import integers
from gnnquant.passes.lowering.rules.shapes import picked, stack, taken
from gnnquant.passes.lowering.values import Adjacency, Index, Rows, Size

if TYPE_CHECKING:
    from collections.abc import Callable

    from gnnquant.passes.lowering.program import Program

    Rule = Callable[..., Any]


# ---------------------------------------------------------------- parts


def select(program: Program, x: Any, dim: int, index: Any) -> Any:
    """One entry of an axis."""
    x = tensor(program, x)
    return get_item(program, x, (*[slice(None)] * normal_axis(program, dim, x.rank), index))


def narrow(program: Program, x: Any, dim: int, start: Any, length: Any) -> Any:
    """A stretch of an axis."""
    x = tensor(program, x)
    stop = program.arithmetic("add", start, length)
    return get_item(program, x, (*[slice(None)] * normal_axis(program, dim, x.rank), slice(start, stop)))


def chunk(program: Program, x: Any, chunks: int, dim: int = 0) -> Any:
    """An axis cut into pieces of equal length."""
    x = tensor(program, x)
    axis = normal_axis(program, dim, x.rank)
    if axis == x.axis:
        raise program.refuse("it cuts the rows into pieces")
    return split(program, x, -(-int(x.sizes[axis]) // chunks), dim)


def tensor_split(program: Program, x: Any, indices_or_sections: Any, dim: int = 0) -> Any:
    """An axis cut into pieces, the first of them longer by one where they cannot be equal."""
    x = tensor(program, x)
    axis = normal_axis(program, dim, x.rank)
    if axis == x.axis or not isinstance(indices_or_sections, int):
        raise program.refuse("it cuts the rows into pieces")
    pieces = np.array_split(np.arange(int(x.sizes[axis])), indices_or_sections)
    return split(program, x, [len(piece) for piece in pieces], dim)


def split(program: Program, x: Any, split_size_or_sections: Any, dim: int = 0, **kwargs: Any) -> Any:
    """An axis cut into pieces of given lengths."""
    x = tensor(program, x)
    lengths = kwargs.get("split_size", split_size_or_sections)
    axis = normal_axis(program, dim, x.rank)
    if isinstance(lengths, int):
        if axis == x.axis:
            raise program.refuse("it cuts the rows into pieces")
        total = int(x.sizes[axis])
        lengths = [min(lengths, total - start) for start in range(0, total, lengths)]
    pieces, start = [], 0
    for length in lengths:
        pieces.append(narrow(program, x, axis, start, length))
        start = program.arithmetic("add", start, length)  # type: ignore[assignment]
    return tuple(pieces)


def unbind(program: Program, x: Any, dim: int = 0) -> Any:
    """The entries of an axis."""
    x = tensor(program, x)
    axis = normal_axis(program, dim, x.rank)
    count = program.arithmetic("add", x.sizes[axis], 0)
    if isinstance(count, Size):
        raise program.refuse("it takes the rows apart")
    return tuple(select(program, x, axis, place) for place in range(count))


def get_item(program: Program, x: Any, index: Any) -> Any:
    """``x[index]``."""
    if isinstance(x, (tuple, list, dict)):
        if isinstance(index, Size):
            raise program.refuse("it looks up a container by a number that depends on the inputs")
        return x[index]
    if isinstance(x, Tensor):
        return _constant_item(program, x, index)
    if isinstance(x, Adjacency):
        raise program.refuse("it indexes a sparse matrix")
    x = tensor(program, x)
    items = list(index) if isinstance(index, tuple) else [index]
    consumed = sum(item is not None and item is not Ellipsis for item in items)
    if Ellipsis in items:
        place = items.index(Ellipsis)
        items[place : place + 1] = [slice(None)] * (x.rank - consumed)
    items += [slice(None)] * (x.rank - sum(item is not None for item in items))
    return _item(program, x, items)


def _item(program: Program, x: Rows | Index, items: list[Any]) -> Rows | Index | Size:
    """``x[items]`` with one item for every axis, and ``None`` for new ones."""
    axis = 0
    at_rows: Any = slice(None)
    inner: list[Any] = []
    new_axis = x.axis
    out = 0
    for item in items:
        if item is None:
            inner.append(None)
            out += 1
            continue
        if axis == x.axis:
            at_rows, new_axis = item, out
            out += 1
        else:
            inner.append(_column_index(program, item))
            out += not isinstance(item, int)
        axis += 1
    if x.axis is not None and not _is_everything(at_rows):
        if isinstance(at_rows, int):
            return _single_row(program, x, at_rows, inner)
        x = taken(program, x, rows_at(program, x, at_rows), safe=isinstance(at_rows, slice))
    if all(_is_everything(item) for item in inner):
        return x
    return picked(program, x, positions(x.shape)[tuple(inner)], new_axis)


def _is_everything(item: Any) -> bool:
    return isinstance(item, slice) and item == slice(None)


def _column_index(program: Program, item: Any) -> Any:
    """An index of an axis within the row, as numpy takes it."""
    if isinstance(item, Tensor):
        return item.cpu().numpy()
    parts = (item.start, item.stop, item.step) if isinstance(item, slice) else (item,)
    if any(isinstance(part, (Size, Index, Rows)) for part in parts):
        raise program.refuse("it indexes columns by values that depend on the inputs")
    return item


def _single_integer(program: Program, x: Index, place: str, inner: list[Any]) -> Size:
    """One entry of a vector of integers: it is the largest of its kind."""
    if not x.is_vector or inner or x.boolean:
        raise program.refuse("it takes a row of integers")
    return Size(program.size("extent", (program.take(x.name, place),)).name, -1)


def _single_row(program: Program, x: Rows | Index, place: int, inner: list[Any]) -> Rows | Index | Size:
    """One row by its number, counted from the end where it is negative."""
    one = program.size_of(1)
    if place >= 0:
        index = program.values([place])
    else:
        index = program.combine("add", program.values([place]), Size(x.rows), one)
    array = program.array("bounded", (index, program.find(x.rows)), one)
    if isinstance(x, Index):
        return _single_integer(program, x, array, inner)
    name = program.write("gather", (x,), x.shape, ONE, index=array)
    return picked(program, Rows(name, x.shape), positions(x.shape)[tuple(inner)], None)


def rows_at(program: Program, x: Rows | Index, item: Any) -> str:
    """The index array that ``x[item]`` takes along the rows."""
    if isinstance(item, slice):
        return _slice_rows(program, x.rows, item)
    if isinstance(item, Tensor) and item.dim() == 1:
        if item.dtype is torch.bool:
            raise program.refuse(
                "it selects rows by a constant mask, which stands for one number of rows only"
            )
        return program.values(item.tolist())
    if isinstance(item, (list, tuple)) and all(isinstance(entry, int) for entry in item):
        return program.values(item)
    if not isinstance(item, Index) or not item.is_vector:
        what = (
            "values that are computed from floats" if isinstance(item, Rows) else f"a {type(item).__name__}"
        )
        raise program.refuse(
            f"it selects rows by {what}: which rows there are must follow from integer inputs"
        )
    if item.boolean:
        program.unify(item.rows, x.rows)
        return program.where_true(item.name)
    return item.name


def _slice_rows(program: Program, rows: str, item: slice) -> str:
    """Positions of a slice of a space; the array's own space is as long as the slice."""
    step = 1 if item.step is None else item.step
    if not isinstance(step, int) or step < 1:
        raise program.refuse("a slice of rows with a negative step")
    total = Size(rows)
    start = _bound(program, item.start, total, 0)
    stop = _bound(program, item.stop, total, total)
    length = stop if start == 0 else program.arithmetic("sub", stop, start)
    if start != 0 and isinstance(item.stop, Size) and isinstance(item.start, Size):
        length = _difference(program, item.stop, item.start)
    if step != 1:
        length = program.arithmetic("floordiv", program.arithmetic("add", length, step - 1), step)
    count = program.size_of(length)
    index = program.arange(count)
    if step != 1:
        index = program.combine("mul", index, step, count)
    if start != 0:
        index = program.combine("add", index, start, count)
    return program.array("bounded", (index, rows), count)


def _difference(program: Program, stop: Size, start: Size) -> Size | int:
    """``stop - start``, simplified where ``stop`` was made by adding to ``start``."""
    node = program.index[stop.name]
    if stop.offset == start.offset == 0 and node.op == "size" and node.attrs["function"] == "add":
        left = [item for item in node.inputs if item != start.name]
        if len(node.inputs) == 2 and len(left) == 1:
            return Size(left[0])
    return program.arithmetic("sub", stop, start)


def _bound(program: Program, item: Any, total: Size, default: Any) -> Any:
    """A bound of a slice, counted from the front."""
    if item is None:
        return default
    if isinstance(item, Size):
        return item
    if item < 0:
        return program.arithmetic("max", program.arithmetic("add", total, item), 0)
    if item == 0:
        return 0
    return program.arithmetic("min", total, item)


def _constant_item(program: Program, x: Tensor, index: Any) -> Any:
    """Rows of a constant table."""
    if isinstance(index, tuple) and isinstance(index[0], Index) and all(map(_is_everything, index[1:])):
        index = index[0]
    if not isinstance(index, Index):
        raise program.refuse("it indexes a constant by something else than an index of rows")
    return look_up(program, x, index)


def look_up(program: Program, table: Tensor, index: Index) -> Rows | Index:
    """Rows of a constant table [V, ...] by an index."""
    if index.boolean:
        raise program.refuse("it selects entries of a constant by a mask")
    if not index.is_vector:
        parts = [
            as_rows(program, look_up(program, table, Index(np.array(str(part), dtype=object), index.rows)))
            for part in index.parts.reshape(-1)
        ]
        joined = stack(program, parts, 1)
        return replace(program.reshape(joined, (*index.shape, *table.shape[1:])), axis=index.axis)
    if not table.is_floating_point():
        if table.dim() != 1:
            raise program.refuse("it looks up rows of a constant table of integers")
        array = program.take(program.values(table.tolist()), index.name)
        return Index(np.array(array, dtype=object), index.rows, index.axis)
    stored = program.constant_array(table, "table")
    name = program.write(
        "lookup", (), table.shape[1:], index.rows, array=stored, index=index.name, checked=True
    )
    return Rows(name, tuple(table.shape[1:]), index.rows, index.axis)


def embedding(program: Program, index: Any, weight: Any, *_: Any, **__: Any) -> Any:
    """``F.embedding``."""
    if not isinstance(index, Index) or not isinstance(weight, Tensor):
        raise program.refuse("an embedding of something else than an index")
    return look_up(program, weight, index)


def index_select(program: Program, x: Any, dim: int, index: Any) -> Any:
    """Entries of an axis by an index."""
    if isinstance(x, Tensor) and dim in {0, -x.dim()}:
        return look_up(program, x, index)
    x = tensor(program, x)
    axis = normal_axis(program, dim, x.rank)
    if axis == x.axis:
        return taken(program, x, rows_at(program, x, index))
    if isinstance(index, Tensor):
        return picked(program, x, np.take(positions(x.shape), index.numpy(), row_axis(x, axis)), x.axis)
    if isinstance(index, Index) and isinstance(x, Rows) and x.rows == ONE and x.shape[axis] == 1:
        # Every entry points at the only row there is.
        flat = replace(program.reshape(x, without(x.shape, axis)), axis=None)
        return program.expand(flat, index.rows, axis)
    raise program.refuse("it selects columns by values that depend on the inputs")


def gather_columns(program: Program, x: Any, dim: int, index: Any) -> Any:
    """``torch.gather``: for every entry, the column (or row) that the index names."""
    x = tensor(program, x)
    axis = normal_axis(program, dim, x.rank)
    if not isinstance(index, Index) or index.rank != x.rank:
        raise program.refuse("torch.gather by something else than an index")
    if axis == x.axis:
        names = {str(item) for item in index.parts.reshape(-1)}
        if len(names) > 1 or index.shape != x.shape:
            raise program.refuse("torch.gather of other rows for every column")
        return taken(program, x, names.pop())
    if index.axis != x.axis or len(x.shape) != 1:
        raise program.refuse("torch.gather along one of several axes of columns")
    x, width = as_rows(program, x), x.shape[0]
    picks = []
    for part in index.parts:
        column = Index(np.array([part], dtype=object), index.rows, 0)
        chosen = integers(program, "eq", column, torch.arange(width), boolean=True)
        value = elementwise(program, "where", chosen, x, 0.0)
        name = program.write("reduce", (value,), (), value.rows, axis=0, reduce="sum")
        picks.append(Rows(name, (), value.rows, 0))
    return replace(stack(program, picks, 1), axis=x.axis)


# ---------------------------------------------------------------- parts replaced


def set_item(program: Program, x: Any, index: Any, source: Any) -> Any:
    """A copy of ``x`` with ``x[index] = source``."""
    x = tensor(program, x)
    items = list(index) if isinstance(index, tuple) else [index]
    if isinstance(items[0], Rows) and items[0].boolean and len(items) == 1:
        return elementwise(
            program, "where", _to_rank(program, items[0], x), _single_value(program, source), x
        )
    if Ellipsis in items:
        place = items.index(Ellipsis)
        items[place : place + 1] = [slice(None)] * (x.rank - len(items) + 1)
    items += [slice(None)] * (x.rank - len(items))
    at_rows = slice(None) if x.axis is None else items[x.axis]
    inner = items if x.axis is None else without(items, x.axis)
    if _is_everything(at_rows):
        return _set_columns(program, x, [_column_index(program, item) for item in inner], source)
    if not all(map(_is_everything, inner)):
        raise program.refuse("it assigns to some rows and some columns at once")
    return set_rows(program, x, rows_at(program, x, at_rows), source)


def _single_value(program: Program, source: Any) -> Any:
    if isinstance(source, Rows) and source.rows != ONE:
        raise program.refuse("it assigns rows to where a mask of floats holds")
    return source


def _to_rank(program: Program, mask: Rows, x: Rows | Index) -> Rows:
    """A mask of rows as one of the tensor's rank."""
    return replace(program.reshape(mask, (*mask.shape, *[1] * (x.rank - mask.rank))), axis=mask.axis)


def _set_columns(program: Program, x: Rows | Index, inner: list[Any], source: Any) -> Rows | Index:
    places = positions(x.shape)
    target = places[tuple(inner)]
    if isinstance(x, Index):
        if not isinstance(source, Index) or np.ndim(target) != source.parts.ndim:
            raise program.refuse("it assigns something else than an index to integers")
        rows = program.unify(x.rows, source.rows)
        parts = x.parts.copy()
        parts.reshape(-1)[target] = source.parts
        return program.pair(Index(parts, rows, x.axis, x.boolean))
    source = as_rows(program, source)
    wanted = Rows("", target.shape, x.rows, None if x.axis is None else 0)
    width = int(places.size)
    places = places.copy()
    moved = np.arange(int(np.prod(source.shape))).reshape(source.shape)
    missing = target.ndim - moved.ndim
    if missing < 0:
        moved = moved.reshape(moved.shape[-missing:])
    places[tuple(inner)] = width + np.broadcast_to(moved, wanted.shape)
    rows = program.unify(x.rows, source.rows)
    flat = [program.reshape(item, (int(np.prod(item.shape)),)) for item in (x, source)]
    name = program.write("concat", flat, (width + flat[1].shape[0],), rows)
    joined = Rows(name, (width + flat[1].shape[0],), rows, x.axis)
    return picked(program, joined, places, x.axis)


def set_rows(program: Program, x: Rows | Index, index: str, source: Any) -> Rows | Index:
    """A copy of ``x`` whose rows ``index`` are those of ``source``, the last of equal ones."""
    if isinstance(x, Index):
        return _set_entries(program, x, index, source)
    source = as_rows(program, source)
    chosen = program.spaces[index]
    if source.axis is None:
        (source, _), _, _ = align(program, (source, x))
        source = program.expand(source, chosen, x.axis)
    program.unify(source.rows, chosen)
    absent = program.full(x.rows, -1)
    # Who writes each row of x last, -1 for nobody.
    writer = program.array("put", (absent, index, program.arange(chosen)), x.rows)
    written = program.combine("ge", writer, 0, x.rows)
    moved = program.gather(source, writer, x.axis, fill=0.0)
    mask = Rows(program.write("from_index", (), (), x.rows, index=written), (), x.rows, 0)
    mask = replace(program.reshape(mask, [1] * len(x.shape)), axis=x.axis)
    return elementwise(program, "where", mask, moved, x)


def _set_entries(program: Program, x: Index, index: str, source: Any) -> Index:
    if isinstance(source, int):
        source = Index(
            np.array(program.full(program.spaces[index], source), dtype=object), program.spaces[index]
        )
    if not isinstance(source, Index) or source.shape != x.shape:
        raise program.refuse("it assigns something else than an index to integers")
    program.unify(source.rows, program.spaces[index])
    parts = np.empty(x.shape, dtype=object)
    for place in np.ndindex(*x.shape):
        parts[place] = program.array("put", (str(x.parts[place]), index, str(source.parts[place])), x.rows)
    return Index(parts, x.rows, x.axis, x.boolean)


def index_copy(program: Program, x: Any, dim: int, index: Any, source: Any) -> Any:
    """``x`` with some rows replaced."""
    x = tensor(program, x)
    if normal_axis(program, dim, x.rank) != x.axis:
        raise program.refuse("index_copy along another axis than that of the rows")
    return set_rows(program, x, rows_at(program, x, index), source)


NAMES: dict[str, Rule] = {
    "gather": gather_columns,
    "select": select,
    "narrow": narrow,
    "chunk": chunk,
    "tensor_split": tensor_split,
    "split": split,
    "unbind": unbind,
    "getitem": get_item,
    "embedding": embedding,
    "index_select": index_select,
    "setitem": set_item,
    "index_copy": index_copy,
}
