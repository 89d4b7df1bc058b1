"""The index program: what follows from integer inputs and sizes, interpreted in numpy.

See ``gnnquant.integer_graph``, ``INDEX_OPS``. Every index is checked before anything is read with it:
what is wrong with the data of a call is an ``InputError`` that names the first offending entry.
"""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from gnnquant.errors import BackendError, InputError
from gnnquant.integer_graph import INDEX_OPS, LOOPS
from gnnquant.runtime.graph import ADDING, INT32_MAX, sort_edges, sorted_destinations

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from gnnquant.integer_graph import GraphInput, IndexNode
    from gnnquant.runtime.graph import SortedEdges

INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1
SIZE, ARRAY, GRAPH, CHECK = "size", "array", "graph", "check"
"""Kinds of values."""
EDGE_PARTS = ("src", "dst", "edge_id")
"""Index arrays of a graph."""
ADJACENCY_PARTS = ("row", "col")


@dataclass(frozen=True, eq=False)
class IndexInputs:
    """What the index program reads of a call.

    Attributes:
        rows: Number of rows by input (edges of ``"edges"``, entries of an ``"adjacency"``).
        arrays: Integer inputs: [2, E] of ``"edges"``, [R, *shape] of ``"index"`` and (bool) of
            ``"mask"``, rows and columns [2, E] of an ``"adjacency"``. Nobody may write them while the
            results are in use.
        numbers: ``(value,)`` of a ``"size"``, both extents of an ``"adjacency"``.
    """

    rows: Mapping[str, int]
    arrays: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    numbers: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class EdgeList:
    """A graph, its indices checked.

    Attributes:
        edges: int64 [2, E], sources and destinations in the order in which they were given.
        sources: Number of rows that edges come from.
        destinations: Number of rows that they lead to.
        loops: One of ``LOOPS``.
    """

    edges: NDArray[np.int64]
    sources: int
    destinations: int
    loops: str

    @cached_property
    def csr(self) -> SortedEdges:
        """The edges in CSR order, self-loops as ``loops`` says."""
        return sort_edges(self.edges, self.destinations, self.loops)

    @cached_property
    def dst(self) -> NDArray[np.int64]:
        """``csr.dst``, without sorting."""
        return sorted_destinations(self.edges, self.destinations, self.loops)

    def part(self, name: str) -> NDArray[np.int64]:
        """One of ``EDGE_PARTS``, in CSR order."""
        found: NDArray[np.int64] = self.dst if name == "dst" else getattr(self.csr, name)
        return found


@dataclass(frozen=True, eq=False)
class IndexResults:
    """Values of an index program by the names of its nodes."""

    sizes: dict[str, int]
    arrays: dict[str, NDArray[np.int64]]
    graphs: dict[str, EdgeList]

    def array(self, name: str) -> NDArray[np.int64]:
        """The array ``name``, which may be a part of a graph: ``<graph>.src``."""
        if name in self.arrays:
            return self.arrays[name]
        graph, _, part = name.rpartition(".")
        return self.graphs[graph].part(part)


_OPERANDS: dict[str, tuple[str, ...]] = {
    "rows": (),
    "size_input": (),
    "length": (ARRAY,),
    "extent": (ARRAY,),
    "same_size": (SIZE, SIZE),
    "index_input": (),
    "values": (),
    "arange": (SIZE,),
    "full": (SIZE,),
    "not": (ARRAY,),
    "select": (ARRAY, ARRAY),
    "nonzero": (ARRAY,),
    "take": (ARRAY, ARRAY),
    "put": (ARRAY, ARRAY, ARRAY),
    "count": (ARRAY, SIZE),
    "cumsum": (ARRAY,),
    "argsort": (ARRAY,),
    "bounded": (ARRAY, SIZE),
    "part": (GRAPH,),
    "graph": (ARRAY, ARRAY, SIZE, SIZE),
}
"""Kinds of operands; ``size``, ``combine`` and ``join`` take several forms."""
_RESULTS = {
    **dict.fromkeys(("rows", "size_input", "size", "length", "extent"), SIZE),
    "same_size": CHECK,
    "graph": GRAPH,
}
_PLAIN: dict[str, Callable[..., Any]] = {
    "length": lambda array: array.size,
    "not": lambda mask: 1 - mask,
    "nonzero": lambda mask: np.flatnonzero(mask == 1),
    "argsort": lambda array: np.argsort(array, kind="stable"),
}
"""Operations that cannot fail."""
_READING = ("rows", "size_input", "index_input", "graph")
"""Operations that read inputs."""
_SIZE_FUNCTIONS: dict[str, Callable[[int, int], int]] = {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "floordiv": operator.floordiv,
    "mod": operator.mod,
    "max": max,
    "min": min,
}
_COMPARISONS: dict[str, Callable[..., Any]] = {
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "and": np.logical_and,
    "or": np.logical_or,
}
_ARITHMETIC: dict[str, Callable[..., Any]] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "floordiv": np.floor_divide,
    "mod": np.mod,
    "max": np.maximum,
    "min": np.minimum,
}


def check_program(index: Sequence[IndexNode], inputs: Iterable[GraphInput]) -> dict[str, str]:
    """Check that operands come first and fit, and that constants are what their operations need.

    Returns:
        The kind of every value: a size, an array, a graph or a check.

    Raises:
        BackendError: Naming the first node that breaks a rule.
    """
    kinds: dict[str, str] = {}
    given = {item.name: item for item in inputs}
    for node in index:
        wrong = _wrong_operands(node, kinds) or _wrong_constants(node, given)
        if not wrong and node.name in kinds:
            wrong = "is defined twice"
        if wrong:
            raise BackendError(f"index program: {node.name!r} {wrong}")
        kinds[node.name] = _RESULTS.get(node.op, ARRAY)
    return kinds


def _wrong_operands(node: IndexNode, kinds: dict[str, str]) -> str:
    if node.op not in INDEX_OPS:
        return f"has the unknown op {node.op!r}"
    found = tuple(kinds.get(name, "nothing") for name in node.inputs)
    if node.op in ("size", "combine"):
        numbers = [node.attrs[key] for key in ("left", "right") if key in node.attrs]
        allowed = {SIZE} if node.op == "size" else {SIZE, ARRAY}
        good = len(found) + len(numbers) == 2 and set(found) <= allowed and all(map(_is_int64, numbers))
        good = good and (node.op == "size" or ARRAY in found)
    elif node.op == "join":
        good = set(found) == {ARRAY}
    else:
        good = found == _OPERANDS[node.op]
    return "" if good else f"cannot take {', '.join(found) or 'no operand'}"


def _wrong_constants(node: IndexNode, inputs: Mapping[str, GraphInput]) -> str:  # noqa: PLR0911 - one a rule
    attrs = node.attrs
    if node.op in ("rows", "size_input", "index_input"):
        if attrs.get("input") not in inputs:
            return f"reads the unknown input {attrs.get('input')!r}"
        if not _reads_right(node, inputs[attrs["input"]]):
            return f"cannot read the input {attrs['input']!r} so"
    if node.op == "size" and attrs.get("function") not in _SIZE_FUNCTIONS:
        return f"has the unknown function {attrs.get('function')!r}"
    if node.op == "combine" and attrs.get("function") not in _ARITHMETIC | _COMPARISONS:
        return f"has the unknown function {attrs.get('function')!r}"
    if node.op == "values" and not all(map(_is_int64, attrs.get("values", [None]))):
        return "has values that are no integers"
    if node.op == "full" and not _is_int64(attrs.get("value")):
        return "has a value that is no integer"
    if node.op == "part" and attrs.get("part") not in EDGE_PARTS:
        return f"has the unknown part {attrs.get('part')!r}"
    if node.op == "graph" and attrs.get("loops") not in LOOPS:
        return f"has loops {attrs.get('loops')!r}"
    return ""


def _reads_right(node: IndexNode, item: GraphInput) -> bool:
    part = node.attrs.get("part")
    if node.op == "rows":
        return item.kind != "size"
    if node.op == "size_input":
        axis = node.attrs.get("axis")
        return item.kind == "size" or (item.kind == "adjacency" and _is_int64(axis) and axis in (0, 1))
    if item.kind == "adjacency":
        return part in ADJACENCY_PARTS
    if part is None:
        return item.kind in ("index", "mask") and math.prod(item.shape) == 1
    count = math.prod(item.shape)
    columns = {"edges": 2, "index": count, "mask": count}.get(item.kind, 0)
    return _is_int64(part) and part in range(columns)


def _is_int64(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and INT64_MIN <= value <= INT64_MAX


class IndexProgram:
    """An index program that is ready to run.

    Args:
        index: Its nodes.
        inputs: The inputs of the model.

    Raises:
        BackendError: It is malformed.
    """

    def __init__(self, index: Sequence[IndexNode], inputs: Sequence[GraphInput]) -> None:
        self.kinds = check_program(index, inputs)
        self.nodes = tuple(index)
        self._node = {node.name: node for node in index}
        self._inputs = {item.name: item for item in inputs}
        self._values = {
            node.name: np.array(node.attrs["values"], np.int64).reshape(-1)
            for node in index
            if node.op == "values"
        }
        self._origins: dict[str, IndexNode] = {}
        for node in index:
            if node.op == "index_input":
                self._origins[node.name] = node
            elif node.op == "bounded" and node.inputs[0] in self._origins:
                self._origins[node.name] = self._origins[node.inputs[0]]

    def run(self, given: IndexInputs) -> IndexResults:
        """Compute all values.

        Raises:
            InputError: An index is out of range, sizes do not fit, or a number becomes too large.
        """
        values: dict[str, Any] = dict(self._values)
        for node in self.nodes:
            operands = [values[name] for name in node.inputs]
            if node.op in _PLAIN:
                values[node.name] = _PLAIN[node.op](*operands)
            elif node.op in _READING:
                values[node.name] = getattr(self, f"_{node.op}")(node, given, *operands)
            elif node.op == "size":
                values[node.name] = size_of(node, *operands)
            elif node.op != "values":
                values[node.name] = getattr(self, f"_{node.op}")(node, *operands)
        by_kind: dict[str, dict[str, Any]] = {SIZE: {}, ARRAY: {}, GRAPH: {}, CHECK: {}}
        for name, kind in self.kinds.items():
            by_kind[kind][name] = values[name]
        return IndexResults(by_kind[SIZE], by_kind[ARRAY], by_kind[GRAPH])

    def origin(self, name: str) -> IndexNode | None:
        """The ``index_input`` whose values the array ``name`` holds unchanged, if there is one."""
        return self._origins.get(name)

    def size_source(self, name: str) -> tuple[str, int] | None:
        """What the size ``name`` repeats: an input and its axis (0: rows, or the value of a size)."""
        node = self._node[name]
        if node.op == "rows":
            return node.attrs["input"], -1 if self._inputs[node.attrs["input"]].kind == "adjacency" else 0
        if node.op == "size_input":
            return node.attrs["input"], node.attrs.get("axis", 0)
        return self.length_source(node.inputs[0]) if node.op == "length" else None

    def length_source(self, name: str) -> tuple[str, int] | None:
        """As :meth:`size_source`, for the length of the array ``name``."""
        origin = self._origins.get(name)
        if origin is None:
            return None
        item = self._inputs[origin.attrs["input"]]
        return item.name, -1 if item.kind == "adjacency" else 0

    # ------------------------------------------------------------ sizes

    def _rows(self, node: IndexNode, given: IndexInputs) -> int:
        return given.rows[node.attrs["input"]]

    def _size_input(self, node: IndexNode, given: IndexInputs) -> int:
        return given.numbers[node.attrs["input"]][node.attrs.get("axis", 0)]

    def _extent(self, node: IndexNode, array: NDArray[np.int64]) -> int:
        return _checked_size(node, int(array.max()) + 1) if array.size else 0

    def _same_size(self, node: IndexNode, left: int, right: int) -> None:
        if left != right:
            ours, theirs = (
                self._size_in_words(name, size) for name, size in zip(node.inputs, (left, right), strict=True)
            )
            message = node.attrs.get("message", "they must be equal")
            raise InputError(f"{ours}, but {theirs}: {message}")

    # ------------------------------------------------------------ arrays

    def _index_input(self, node: IndexNode, given: IndexInputs) -> NDArray[np.int64]:
        array: NDArray[Any] = given.arrays[node.attrs["input"]]
        kind, part = self._inputs[node.attrs["input"]].kind, node.attrs.get("part")
        if kind == "edges":
            return array[part]
        if kind == "adjacency":
            return array[ADJACENCY_PARTS.index(str(part))]
        columns = array.reshape(array.shape[0], math.prod(array.shape[1:]))
        return np.ascontiguousarray(columns[:, part or 0], dtype=np.int64)

    def _arange(self, node: IndexNode, size: int) -> NDArray[np.int64]:
        return np.arange(_checked_length(node, size), dtype=np.int64)

    def _full(self, node: IndexNode, size: int) -> NDArray[np.int64]:
        return np.full(_checked_length(node, size), node.attrs["value"], np.int64)

    def _combine(self, node: IndexNode, *operands: Any) -> NDArray[np.int64]:
        left, right = _fill_in(node, operands)
        lengths = {operand.size for operand in operands if isinstance(operand, np.ndarray)}
        if len(lengths) > 1:
            raise InputError(f"{_label(node)}: {left.size} and {right.size} entries cannot be combined")
        function = node.attrs["function"]
        if function in _COMPARISONS:
            return _COMPARISONS[function](left, right).astype(np.int64)
        if lengths == {0}:
            return np.empty(0, np.int64)
        _check_arithmetic(node, function, left, right)
        result: NDArray[np.int64] = _ARITHMETIC[function](left, right)
        return result

    def _join(self, node: IndexNode, *arrays: NDArray[np.int64]) -> NDArray[np.int64]:
        _checked_length(node, sum(array.size for array in arrays))
        return np.concatenate(arrays)

    def _select(
        self, node: IndexNode, array: NDArray[np.int64], mask: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        _same_length(node, array, mask)
        return array[mask == 1]

    def _take(self, node: IndexNode, array: NDArray[np.int64], index: NDArray[np.int64]) -> NDArray[np.int64]:
        self._check_range(node, 1, index, array.size)
        return array[index]

    def _put(
        self,
        node: IndexNode,
        array: NDArray[np.int64],
        index: NDArray[np.int64],
        value: NDArray[np.int64],
    ) -> NDArray[np.int64]:
        _same_length(node, index, value)
        self._check_range(node, 1, index, array.size)
        result = array.copy()
        result[index] = value
        return result

    def _count(self, node: IndexNode, index: NDArray[np.int64], size: int) -> NDArray[np.int64]:
        self._check_range(node, 0, index, size, node.inputs[1])
        return np.bincount(index, minlength=_checked_length(node, size)).astype(np.int64, copy=False)

    def _cumsum(self, node: IndexNode, array: NDArray[np.int64]) -> NDArray[np.int64]:
        if array.size:
            low, high = _span(array)
            _check_int64(node, array.size * low, array.size * high)
        return np.cumsum(array, dtype=np.int64)

    def _bounded(self, node: IndexNode, index: NDArray[np.int64], size: int) -> NDArray[np.int64]:
        self._check_range(node, 0, index, size, node.inputs[1])
        return index

    def _part(self, node: IndexNode, graph: EdgeList) -> NDArray[np.int64]:
        return graph.part(node.attrs["part"])

    # ------------------------------------------------------------ graphs

    def _graph(self, node: IndexNode, given: IndexInputs, *operands: Any) -> EdgeList:
        src, dst, sources, destinations = operands
        _same_length(node, src, dst)
        hint = "; does the graph belong to these features?"
        self._check_range(node, 0, src, sources, node.inputs[2], hint=hint)
        self._check_range(node, 1, dst, destinations, node.inputs[3], hint=hint)
        _checked_length(node, max(sources, destinations))
        loops = node.attrs["loops"]
        if loops != "keep" and sources != destinations:
            raise InputError(
                f"{_label(node)} joins {sources} sources to {destinations} destinations: self-loops need "
                "the same rows at both ends"
            )
        total = src.size + (destinations if loops in ADDING else 0)
        if total > INT32_MAX:
            raise InputError(
                f"{_label(node)} has {total} edges, self-loops included: at most {INT32_MAX} are supported"
            )
        ends = [self._origins.get(name) for name in node.inputs[:2]]
        pairs = [(end.attrs["input"], end.attrs.get("part")) for end in ends if end is not None]
        name = pairs[0][0] if pairs else ""
        if pairs == [(name, 0), (name, 1)] and self._inputs[name].kind == "edges":
            edges = given.arrays[name]  # no copy
        else:
            edges = np.stack([src, dst])
        return EdgeList(edges, sources, destinations, loops)

    # ------------------------------------------------------------ checks and words

    def _check_range(
        self,
        node: IndexNode,
        operand: int,
        index: NDArray[np.int64],
        size: int,
        size_name: str = "",
        *,
        hint: str = "",
    ) -> None:
        if index.size == 0 or (int(index.min()) >= 0 and int(index.max()) < size):
            return
        position = int(np.argmax((index < 0) | (index >= size)))
        value = int(index[position])
        of = self._words_after_size(size_name)
        wrong = "is negative" if value < 0 else f"is not below {size}{of}"
        right = f"every index must be in 0 .. {size - 1}" if size else "there is nothing that it could name"
        where = self._place(node, node.inputs[operand], position)
        raise InputError(f"{where} = {value} {wrong}: {right}{hint}")

    def _place(self, node: IndexNode, name: str, position: int) -> str:
        """Words for an entry of the array ``name``, an operand of ``node``."""
        origin = self._origins.get(name)
        if origin is None:
            return f"{node.attrs.get('label', node.name)}[{position}]"
        item = self._inputs[origin.attrs["input"]]
        label, part = node.attrs.get("label", item.name), origin.attrs.get("part")
        if item.kind == "edges":
            return f"{label}[{part}, {position}]"
        if item.kind == "adjacency":
            return f"{label}: {part} index {position}"
        columns = np.unravel_index(part or 0, item.shape) if item.shape else ()
        return f"{label}[{', '.join(map(str, (position, *map(int, columns))))}]"

    def _words_after_size(self, name: str) -> str:
        source = self.size_source(name) if name else None
        if source is None:
            return ""
        item = self._inputs[source[0]]
        if item.kind == "size":
            return f", which is {item.name}"
        if item.kind == "adjacency" and source[1] >= 0:
            return f", the number of {('rows', 'columns')[source[1]]} of {item.name}"
        return f", the number of {_rows_word(item)} of {item.name}"

    def _size_in_words(self, name: str, size: int) -> str:
        source = self.size_source(name)
        if source is None:
            return f"{_label(self._node[name])} is {size}"
        item = self._inputs[source[0]]
        if item.kind == "size":
            return f"{item.name} is {size}"
        if item.kind == "adjacency" and source[1] >= 0:
            return f"{item.name} has {size} {('rows', 'columns')[source[1]]}"
        return f"{item.name} has {size} {_rows_word(item)}"


def tied_inputs(program: IndexProgram) -> dict[tuple[str, int], tuple[str, int]]:
    """Which sizes of inputs every call must make equal.

    Returns:
        For every size that the program reads of an input (see ``IndexProgram.size_source``) the first
        one that it must equal, possibly itself.
    """
    first: dict[tuple[str, int], tuple[str, int]] = {}
    for sources in _ties(program):
        known = [source for source in sources if source is not None]
        for source in known:
            first.setdefault(source, source)
        leaders = {first[source] for source in known}
        for source, leader in first.items():
            if leader in leaders:
                first[source] = first[known[0]]
    return first


def _ties(program: IndexProgram) -> Iterator[list[tuple[str, int] | None]]:
    for node in program.nodes:
        if program.kinds[node.name] == SIZE:
            yield [program.size_source(node.name)]
        elif node.op == "same_size":
            yield [program.size_source(name) for name in node.inputs]
        elif node.op == "index_input":
            yield [program.length_source(node.name)]
        elif node.op in ("graph", "select", "combine"):
            arrays = [name for name in node.inputs if program.kinds[name] == ARRAY]
            yield [program.length_source(name) for name in arrays]


def size_of(node: IndexNode, *operands: int) -> int:
    """The value of a ``size`` node.

    Raises:
        InputError: It would be negative, or is divided by zero.
    """
    left, right = _fill_in(node, operands)
    function = node.attrs["function"]
    if function in ("floordiv", "mod") and right == 0:
        raise InputError(f"{_label(node)}: {left} is to be divided by a size of 0")
    return _checked_size(node, _SIZE_FUNCTIONS[function](left, right))


def check_int32(name: str, array: NDArray[np.int64]) -> None:
    """Check that kernels can hold ``array``.

    Raises:
        InputError: With the first entry that is too large.
    """
    if array.size:
        low, high = _span(array)
        if low < -INT32_MAX - 1 or high > INT32_MAX:
            position = int(np.argmax((array < -INT32_MAX - 1) | (array > INT32_MAX)))
            raise InputError(f"{name}[{position}] = {int(array[position])} does not fit 32 bits")


def _label(node: IndexNode) -> str:
    return str(node.attrs.get("label", node.name))


def _rows_word(item: GraphInput) -> str:
    return {"edges": "edges", "adjacency": "entries"}.get(item.kind, "rows")


def _fill_in(node: IndexNode, operands: Sequence[Any]) -> tuple[Any, Any]:
    """Both operands of a function, one of which may be a constant."""
    rest = iter(operands)
    left = node.attrs["left"] if "left" in node.attrs else next(rest)
    right = node.attrs["right"] if "right" in node.attrs else next(rest)
    return left, right


def _span(value: Any) -> tuple[int, int]:
    """Smallest and largest entry of an array, or the number twice."""
    if isinstance(value, np.ndarray):
        return int(value.min()), int(value.max())
    return value, value


def _check_arithmetic(node: IndexNode, function: str, left: Any, right: Any) -> None:
    """Refuse divisions by zero and results that might not fit 64 bits."""
    (low, high), (small, large) = _span(left), _span(right)
    if function in ("floordiv", "mod"):
        zeros = np.flatnonzero(np.equal(right, 0))
        if zeros.size:
            raise InputError(f"{_label(node)}[{int(zeros[0])}] is to be divided by 0")
        if small <= -1 <= large:
            _check_int64(node, -low)
    elif function == "add":
        _check_int64(node, low + small, high + large)
    elif function == "sub":
        _check_int64(node, low - large, high - small)
    elif function == "mul":
        _check_int64(node, low * small, low * large, high * small, high * large)


def _check_int64(node: IndexNode, *results: int) -> None:
    for result in results:
        if not INT64_MIN <= result <= INT64_MAX:
            raise InputError(f"{_label(node)}: a number near {result} does not fit 64 bits")


def _checked_size(node: IndexNode, size: int) -> int:
    if size < 0:
        raise InputError(f"{_label(node)} would be {size}: a size cannot be negative")
    _check_int64(node, size)
    return size


def _checked_length(node: IndexNode, size: int) -> int:
    if size > INT32_MAX:
        raise InputError(
            f"{_label(node)} would have {size} entries or rows: at most {INT32_MAX} are supported"
        )
    return size


def _same_length(node: IndexNode, left: NDArray[np.int64], right: NDArray[np.int64]) -> None:
    if left.size != right.size:
        raise InputError(f"{_label(node)}: {left.size} and {right.size} entries do not belong together")
