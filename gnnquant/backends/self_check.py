"""Calls on which compiled code is compared with the reference before it is trusted."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np

from gnnquant.errors import BackendError, InputError
from gnnquant.runtime.indexing import ARRAY, SIZE, IndexProgram, size_of, tied_inputs
from gnnquant.runtime.trees import tree_key

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from gnnquant.integer_graph import GraphInput, IndexNode, IntegerGraph, Parameter
    from gnnquant.runtime import CompiledModel

ROWS = (37, 29, 41, 23)
"""Rows of inputs that need not agree with each other."""
EDGES = (160, 148, 131)
UNBOUNDED = 4
"""Integers of which nothing is known lie below this."""
Call = tuple[tuple[Any, ...], dict[str, Any]]
Source = tuple[str, int]


def check_compiled(
    compiled: CompiledModel,
    reference: CompiledModel,
    graph: IntegerGraph,
    example: tuple[Any, ...] | Mapping[str, Any] | None,
) -> bool:
    """Compare both on a small random call and on ``example``.

    Returns:
        Whether there was a call to compare them on: random integers may be no input of some models.

    Raises:
        BackendError: They differ.
    """
    calls = list(calls_of(reference, graph, example))
    for (args, kwargs), wanted in calls:
        _compare(compiled(*args, **kwargs), wanted, graph)
    return bool(calls)


def calls_of(
    reference: CompiledModel, graph: IntegerGraph, example: tuple[Any, ...] | Mapping[str, Any] | None
) -> Iterator[tuple[Call, Any]]:
    """Calls to compare on, and what the reference makes of them: a small random one, and ``example``."""
    for distinct in (True, False):
        call = RandomCall(graph, distinct=distinct).make()
        try:
            wanted = reference(*call[0], **call[1])
        except InputError:
            continue
        yield call, wanted
        break
    if example is not None:
        args, kwargs = as_call(graph.parameters, example)
        yield (args, kwargs), reference(*args, **kwargs)


def as_call(parameters: Sequence[Parameter], example: tuple[Any, ...] | Mapping[str, Any]) -> Call:
    """Arguments by position and by name from an example: a tuple, or values by parameter.

    Raises:
        InputError: It is something else.
    """
    if isinstance(example, tuple):
        return example, {}
    if not isinstance(example, Mapping):
        raise InputError(
            "example_inputs must be a tuple of positional arguments or a dict by parameter name, "
            f"not {type(example).__name__}"
        )
    kinds = {item.name: item.kind for item in parameters}
    args: list[Any] = []
    named: dict[str, Any] = {}
    with_rest = any(kinds.get(name) == "*" for name in example)
    for name, value in example.items():
        if kinds.get(name) == "**":
            named.update(value)
        elif not with_rest or kinds.get(name) not in ("positional", "*"):
            named[name] = value
    if with_rest:
        for item in parameters:
            if item.kind == "positional" and item.name in example:
                args.append(example[item.name])
            elif item.kind == "*":
                args.extend(example[item.name])
    return tuple(args), named


def _compare(got: Any, wanted: Any, graph: IntegerGraph) -> None:
    """Raise unless both results are the same: in every bit, or to float32 precision."""
    ops = {node.op for node in graph.nodes}
    for index, (ours, theirs) in enumerate(zip(arrays_of(got), arrays_of(wanted), strict=True)):
        if not _same(ours, theirs, exact="float_gemm" not in ops, rounded="quantize" in ops):
            raise BackendError(
                f"output {index} of the compiled model differs from the integer reference by "
                f"{np.nanmax(np.abs(ours - theirs)):.3g}: the code for this processor is wrong, please "
                "report the model and the processor; target='reference' computes the right values"
            )


def _same(ours: NDArray[Any], theirs: NDArray[Any], *, exact: bool, rounded: bool) -> bool:
    if exact:
        return np.array_equal(ours, theirs, equal_nan=True)
    scale = float(np.nanmax(np.abs(theirs), initial=0))
    close = np.isclose(ours, theirs, 1e-4, 1e-5 * (1 + scale), equal_nan=True)
    if not rounded or close.all():
        return bool(close.all())
    # Where float products meet quantizers, one code may round the other way and reach some results.
    near = np.isclose(ours, theirs, 0, 0.1 * scale, equal_nan=True)
    return bool(close.mean() >= 0.9 or near.all())


def arrays_of(result: Any) -> Iterator[NDArray[Any]]:
    """The arrays of a nested result, in order."""
    if isinstance(result, (tuple, list)):
        for item in result:
            yield from arrays_of(item)
    elif isinstance(result, dict):
        yield from arrays_of(list(result.values()))
    elif isinstance(result, SimpleNamespace):
        yield from arrays_of(list(vars(result).values()))
    elif hasattr(result, "shape"):
        yield np.asarray(result)


class RandomCall:
    """A small random call of a graph: inputs that must agree do, indices name rows that exist.

    Edges have a hub, self-loops and isolated nodes.

    Args:
        graph: The graph.
        distinct: Whether inputs that need not have as many rows have different numbers of rows.
    """

    def __init__(self, graph: IntegerGraph, *, distinct: bool) -> None:
        self._graph = graph
        self._program = IndexProgram(graph.index, graph.inputs)
        self._random = np.random.default_rng(0)
        self._ties = tied_inputs(self._program)
        self._numbers = self._choose(distinct)
        self._bounds = self._collect_bounds()

    def make(self) -> Call:
        """Arguments by position and by name."""
        values = {item.name: self._value(item) for item in self._graph.inputs}
        args: list[Any] = []
        named: dict[str, Any] = {}
        for parameter in self._graph.parameters:
            value = _build(parameter.tree, values)
            if parameter.kind == "positional":
                args.append(value)
            elif parameter.kind == "*":
                args.extend(value)
            elif parameter.kind == "**":
                named.update(value)
            else:
                named[parameter.name] = value
        return tuple(args), named

    def _choose(self, distinct: bool) -> dict[Source, int]:
        """A number for every group of sizes that must be equal."""
        numbers: dict[Source, int] = {}
        edges = (axis for axis in self._sources() if self._kind(axis) == "edges")
        rows = (axis for axis in self._sources() if self._kind(axis) == "rows")
        others = (axis for axis in self._sources() if self._kind(axis) == "number")
        for choices, sources in ((EDGES, edges), (ROWS, rows), ((UNBOUNDED,), others)):
            count = 0
            for source in sources:
                leader = self._ties.get(source, source)
                if leader not in numbers:
                    numbers[leader] = choices[count % len(choices) if distinct else 0]
                    count += 1
        return numbers

    def _sources(self) -> Iterator[Source]:
        for item in self._graph.inputs:
            axes = (-1, 0, 1) if item.kind == "adjacency" else (0,)
            yield from ((item.name, axis) for axis in axes)

    def _kind(self, source: Source) -> str:
        kinds = {item.name: item.kind for item in self._graph.inputs}
        if kinds[source[0]] == "edges" or source[1] == -1:
            return "edges"
        return "number" if kinds[source[0]] == "size" else "rows"

    def _number(self, name: str, axis: int = 0) -> int:
        source = (name, axis)
        return self._numbers[self._ties.get(source, source)]

    def _value(self, item: GraphInput) -> Any:
        if item.kind == "size":
            return self._number(item.name)
        if item.kind == "adjacency":
            return self._adjacency(item)
        rows = self._number(item.name)
        if item.kind == "rows":
            return np.abs(self._random.standard_normal((rows, *item.shape))).astype(np.float32)
        if item.kind == "edges":
            ends = np.stack([self._indices((item.name, part), rows) for part in (0, 1)])
            ends[1, : rows // 3] = min(1, ends[1].max(initial=0))  # a hub
            return ends
        if item.kind == "mask":
            return self._random.random((rows, *item.shape)) < 0.5
        columns = int(np.prod(item.shape, dtype=np.int64))
        parts = [self._indices((item.name, part), rows) for part in range(columns)]
        return np.stack(parts, axis=1).reshape(rows, *item.shape) if parts else np.empty((rows, 0), np.int64)

    def _indices(self, part: Source, rows: int) -> NDArray[np.int64]:
        bound = self._bounds.get(part)
        if bound is None:  # which graph a row belongs to, say: usually in order
            return np.sort(self._random.integers(0, UNBOUNDED, rows))
        return self._random.integers(0, max(bound - 3 if bound > 8 else bound, 1), rows)

    def _adjacency(self, item: GraphInput) -> Any:
        import torch

        extents = self._number(item.name, 0), self._number(item.name, 1)
        entries = min(self._number(item.name, -1), extents[0] * extents[1])
        places = np.sort(self._random.choice(extents[0] * extents[1], entries, replace=False))
        values = np.abs(self._random.standard_normal((entries, *item.shape))).astype(np.float32)
        indices = torch.from_numpy(np.stack(np.divmod(places, extents[1])))
        size = (*extents, *item.shape)
        return torch.sparse_coo_tensor(
            indices, torch.from_numpy(values), size, check_invariants=True
        ).coalesce()

    def _collect_bounds(self) -> dict[Source, int]:
        """The smallest known size that the program checks each part of an integer input against."""
        sizes: dict[str, int] = {}
        lengths: dict[str, int] = {}
        roots: dict[str, set[Source]] = {}
        bounds: dict[Source, int] = {}
        for node in self._program.nodes:
            self._learn_sizes(node, sizes, lengths)
            if self._program.kinds[node.name] == ARRAY:
                roots[node.name] = _roots(node, roots)
            for array, bound in _checks(node, sizes, lengths):
                for root in roots[array]:
                    bounds[root] = min(bound, bounds.get(root, bound))
        return bounds

    def _learn_sizes(self, node: IndexNode, sizes: dict[str, int], lengths: dict[str, int]) -> None:
        """Add what is known of ``node`` without knowing any index."""
        kind = self._program.kinds[node.name]
        if kind == SIZE:
            source = self._program.size_source(node.name)
            if source is not None:
                sizes[node.name] = self._number(*source)
            elif node.op == "length" and node.inputs[0] in lengths:
                sizes[node.name] = lengths[node.inputs[0]]
            elif node.op == "size" and all(name in sizes for name in node.inputs):
                sizes[node.name] = size_of(node, *(sizes[name] for name in node.inputs))
        elif kind == ARRAY:
            length = self._length(node, sizes, lengths)
            if length is not None:
                lengths[node.name] = length

    def _length(self, node: IndexNode, sizes: dict[str, int], lengths: dict[str, int]) -> int | None:
        source = self._program.length_source(node.name)
        if source is not None:
            return self._number(*source)
        if node.op == "values":
            return len(node.attrs["values"])
        if node.op in ("arange", "full", "count"):
            return sizes.get(node.inputs[-1])
        if node.op == "join":
            parts = [lengths.get(name) for name in node.inputs]
            return None if None in parts else sum(part for part in parts if part is not None)
        if node.op in ("select", "nonzero", "part"):
            return None
        of = node.inputs[1] if node.op == "take" else node.inputs[0]
        return next((lengths[name] for name in (of, *node.inputs) if name in lengths), None)


def _roots(node: IndexNode, roots: dict[str, set[Source]]) -> set[Source]:
    """The parts of inputs whose values the array ``node`` holds, apart from constants."""
    if node.op == "index_input":
        part = node.attrs.get("part") or 0
        return {(node.attrs["input"], part)} if isinstance(part, int) else set()
    carried = {"bounded": 1, "select": 1, "take": 1, "join": len(node.inputs), "put": 1}.get(node.op, 0)
    return set().union(*(roots[name] for name in node.inputs[:carried]))


def _checks(node: IndexNode, sizes: dict[str, int], lengths: dict[str, int]) -> Iterator[tuple[str, int]]:
    """Arrays that ``node`` checks, and the sizes that their entries must be below."""
    pairs: list[tuple[str, int | None]] = []
    if node.op in ("bounded", "count"):
        pairs = [(node.inputs[0], sizes.get(node.inputs[1]))]
    elif node.op == "graph":
        pairs = [(node.inputs[side], sizes.get(node.inputs[side + 2])) for side in (0, 1)]
    elif node.op in ("take", "put"):
        pairs = [(node.inputs[1], lengths.get(node.inputs[0]))]
    for array, bound in pairs:
        if bound is not None:
            yield array, bound


def _build(tree: dict[str, Any], values: dict[str, Any]) -> Any:
    """What a call passes for a parameter with this tree."""
    ((kind, content),) = tree.items()
    if kind == "input":
        return values[content]
    if kind in ("tuple", "list"):
        parts = [_build(item, values) for item in content]
        return tuple(parts) if kind == "tuple" else parts
    if kind in ("dict", "data"):
        return {tree_key(key): _build(item, values) for key, item in content}
    return content if kind == "constant" else None
