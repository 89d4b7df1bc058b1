"""The index program in ONNX: sizes are int64 [], arrays int64 [n], masks int64 of 0 and 1.

What the runtime checks before it reads (``bounded``, ``same_size``, ranges) has no operator: see
docs/onnx.md.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from onnx import TensorProto

from gnnquant.backends.onnx.state import Edges
from gnnquant.runtime.indexing import EDGE_PARTS

if TYPE_CHECKING:
    from collections.abc import Callable

    from gnnquant.backends.onnx.state import State
    from gnnquant.integer_graph import IndexNode


_DIRECT = {"add": "Add", "sub": "Sub", "mul": "Mul", "mod": "Mod", "max": "Max", "min": "Min"}
_COMPARISONS = {"eq": "Equal", "lt": "Less", "le": "LessOrEqual", "gt": "Greater", "ge": "GreaterOrEqual"}
_LOGIC = {"and": "And", "or": "Or"}


def emit_index(state: State, node: IndexNode) -> None:
    """Write one node of the index program."""
    state.to.scope = f"graph/{node.name}"
    operands = [_operand(state, name) for name in node.inputs]
    if node.op in SIZES:
        state.sizes[node.name] = SIZES[node.op](state, node, *operands)
    elif node.op in ARRAYS:
        state.arrays[node.name] = ARRAYS[node.op](state, node, *operands)
    elif node.op == "graph":
        state.edges[node.name] = _graph(state, node, *operands[:3])
    elif node.op == "part":
        state.arrays[node.name] = state.array(f"{node.inputs[0]}.{node.attrs['part']}")


def _operand(state: State, name: str) -> str:
    """A size or an array; graphs and checks are read by name."""
    return state.sizes.get(name) or state.arrays.get(name) or ""


def _vector(state: State, size: str) -> str:
    """A scalar as int64 [1]."""
    return state.to.op("Unsqueeze", size, state.to.integers([0]))


def _length(state: State, value: str, axis: int = 0) -> str:
    return state.to.op("Gather", state.to.op("Shape", value), state.to.integer(axis))


def _range(state: State, size: str) -> str:
    return state.to.op("Range", state.to.integer(0), size, state.to.integer(1))


def _kind(state: State, name: str) -> str:
    return next(item.kind for item in state.graph.inputs if item.name == name)


# ---------------------------------------------------------------- sizes


def _rows(state: State, node: IndexNode) -> str:
    name = node.attrs["input"]
    kind = _kind(state, name)
    part = "row" if kind == "adjacency" else ""
    return _length(state, state.inputs[name, part], 1 if kind == "edges" else 0)


def _size_input(state: State, node: IndexNode) -> str:
    name = node.attrs["input"]
    if _kind(state, name) == "size":
        return state.inputs[name, ""]
    return state.to.op("Gather", state.inputs[name, "size"], state.to.integer(node.attrs["axis"]))


def _array_length(state: State, node: IndexNode, array: str) -> str:
    return _length(state, array)


def _extent(state: State, node: IndexNode, array: str) -> str:
    # With -1 in front, so that the extent of an empty array is 0.
    entries = state.to.op("Concat", state.to.integers([-1]), array, axis=0)
    largest = state.to.op("ReduceMax", entries, state.to.integers([0]), keepdims=0)
    return state.to.op("Add", largest, state.to.integer(1))


def _function(state: State, node: IndexNode, *operands: str) -> str:
    """A function of two sizes or arrays, one of which may be a constant."""
    rest = iter(operands)
    left, right = (
        state.to.integer(node.attrs[side]) if side in node.attrs else next(rest) for side in ("left", "right")
    )
    name = node.attrs["function"]
    if name in _DIRECT:
        return state.to.op(_DIRECT[name], left, right)
    if name == "floordiv":  # Div truncates; Mod has the sign of the divisor
        exact = state.to.op("Sub", left, state.to.op("Mod", left, right))
        return state.to.op("Div", exact, right)
    if name in _LOGIC:
        truths = [state.to.cast(side, TensorProto.BOOL) for side in (left, right)]
        return state.to.cast(state.to.op(_LOGIC[name], *truths), TensorProto.INT64)
    if name == "ne":
        result = state.to.op("Not", state.to.op("Equal", left, right))
    else:
        result = state.to.op(_COMPARISONS[name], left, right)
    return state.to.cast(result, TensorProto.INT64)


# ---------------------------------------------------------------- arrays


def _index_input(state: State, node: IndexNode) -> str:
    name, part = node.attrs["input"], node.attrs.get("part")
    kind = _kind(state, name)
    if kind == "adjacency":
        return state.inputs[name, str(part)]
    value = state.inputs[name, ""]
    if kind == "edges":
        return state.to.op("Gather", value, state.to.integer(part or 0), axis=0)
    if kind == "mask":
        value = state.to.cast(value, TensorProto.INT64)
    shape = next(item.shape for item in state.graph.inputs if item.name == name)
    if not shape:
        return value
    columns = state.reshape(value, (math.prod(shape),))
    return state.to.op("Gather", columns, state.to.integer(part or 0), axis=1)


def _values(state: State, node: IndexNode) -> str:
    return state.to.integers(node.attrs["values"])


def _arange(state: State, node: IndexNode, size: str) -> str:
    return _range(state, size)


def _full(state: State, node: IndexNode, size: str) -> str:
    return state.to.op("Expand", state.to.integer(node.attrs["value"]), _vector(state, size))


def _not(state: State, node: IndexNode, mask: str) -> str:
    return state.to.op("Sub", state.to.integer(1), mask)


def _join(state: State, node: IndexNode, *arrays: str) -> str:
    return state.to.op("Concat", *arrays, axis=0)


def _is_one(state: State, mask: str) -> str:
    return state.to.op("Equal", mask, state.to.integer(1))


def _select(state: State, node: IndexNode, array: str, mask: str) -> str:
    return state.to.op("Compress", array, _is_one(state, mask), axis=0)


def _nonzero(state: State, node: IndexNode, mask: str) -> str:
    return _positions(state, _is_one(state, mask))


def _positions(state: State, truth: str) -> str:
    """Where ``truth`` (bool [n]) holds."""
    return state.to.op("Squeeze", state.to.op("NonZero", truth), state.to.integers([0]))


def _take(state: State, node: IndexNode, array: str, index: str) -> str:
    return state.to.op("Gather", array, index, axis=0)


def _put(state: State, node: IndexNode, array: str, index: str, value: str) -> str:
    # The last of equal indices is the one with the largest position, whatever order a scatter has.
    none = state.to.op("Expand", state.to.integer(-1), state.to.op("Shape", array))
    places = _range(state, _length(state, index))
    last = state.to.op("ScatterElements", none, index, places, axis=0, reduction="max")
    with_dummy = state.to.op("Concat", value, state.to.integers([0]), axis=0)  # which -1 reads
    moved = state.to.op("Gather", with_dummy, last, axis=0)
    was_put = state.to.op("GreaterOrEqual", last, state.to.integer(0))
    return state.to.op("Where", was_put, moved, array)


def _count(state: State, node: IndexNode, index: str, size: str) -> str:
    zeros = state.to.op("Expand", state.to.integer(0), _vector(state, size))
    ones = state.to.op("Expand", state.to.integer(1), state.to.op("Shape", index))
    return state.to.op("ScatterElements", zeros, index, ones, axis=0, reduction="add")


def _cumsum(state: State, node: IndexNode, array: str) -> str:
    return state.to.op("CumSum", array, state.to.integer(0))


def _argsort(state: State, node: IndexNode, array: str) -> str:
    # TopK is stable: of equal entries the one that comes first wins.
    length = _vector(state, _length(state, array))
    return state.to.ops("TopK", array, length, outputs=2, axis=0, largest=0, sorted=1)[1]


def _bounded(state: State, node: IndexNode, index: str, size: str) -> str:
    return index


# ---------------------------------------------------------------- graphs


def _graph(state: State, node: IndexNode, src: str, dst: str, nodes: str) -> Edges:
    """Edges in the given order, self-loops as ``attrs['loops']`` says."""
    to, loops = state.to, node.attrs["loops"]
    sources, destinations = node.inputs[2:]
    edge_id = _range(state, _length(state, src))
    if loops == "keep":
        return Edges(src, dst, edge_id, sources, destinations)
    is_loop = to.op("Equal", src, dst)
    kept = [src, dst, edge_id]
    if loops != "add":
        differ = to.op("Not", is_loop)
        kept = [to.op("Compress", array, differ, axis=0) for array in kept]
    names = [f"{to.scope}/{part}" for part in EDGE_PARTS]
    if loops == "remove":
        parts = [to.op("Identity", array, name=name) for array, name in zip(kept, names, strict=True)]
        return Edges(parts[0], parts[1], parts[2], sources, destinations)
    everyone = _range(state, nodes)
    loop_id = to.op("Expand", to.integer(-1), _vector(state, nodes))
    if loops == "remaining":
        # Of several self-loops of one node, the last one counts.
        old = _positions(state, is_loop)
        at = to.op("Gather", src, old, axis=0)
        loop_id = to.op("ScatterElements", loop_id, at, old, axis=0, reduction="max")
    parts = [
        to.op("Concat", array, new, axis=0, name=name)
        for array, new, name in zip(kept, (everyone, everyone, loop_id), names, strict=True)
    ]
    return Edges(parts[0], parts[1], parts[2], sources, destinations)


SIZES: dict[str, Callable[..., str]] = {
    "rows": _rows,
    "size_input": _size_input,
    "size": _function,
    "length": _array_length,
    "extent": _extent,
}
ARRAYS: dict[str, Callable[..., str]] = {
    "index_input": _index_input,
    "values": _values,
    "arange": _arange,
    "full": _full,
    "combine": _function,
    "not": _not,
    "join": _join,
    "select": _select,
    "nonzero": _nonzero,
    "take": _take,
    "put": _put,
    "count": _count,
    "cumsum": _cumsum,
    "argsort": _argsort,
    "bounded": _bounded,
}
"""Operation -> emitter(state, node, *operands)."""
OTHERS = frozenset({"graph", "part", "same_size"})
"""Operations whose results are no tensor, or that only check."""
