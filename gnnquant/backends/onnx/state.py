"""What emitters share: values by name, sizes, and tensors that several of them need."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from onnx import TensorProto, helper

from gnnquant.integer_graph import ONE, SMALLEST

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gnnquant.backends.onnx.builder import Builder
    from gnnquant.backends.onnx.containers import Container
    from gnnquant.integer_graph import IntegerGraph, Node


@dataclass(frozen=True)
class Edges:
    """A graph in ONNX: int64 values [E'], edges in the given order and appended self-loops last.

    The integer graph sorts edges by destination; here nothing depends on their order, because all of its
    arrays are permuted alike, and edges of one destination follow each other in the same order.

    Attributes:
        src: Sources.
        dst: Destinations.
        edge_id: Positions in the given list, -1 for a loop that was appended.
        sources: Name of the size: rows that edges come from.
        destinations: Name of the size: rows that they lead to.
    """

    src: str
    dst: str
    edge_id: str
    sources: str
    destinations: str


@dataclass
class Codes:
    """A quantized value.

    Attributes:
        integers: float32 [R, *shape], what the codes stand for in units of the scale: whole numbers, or
            whole numbers plus 1/2 (four symmetric levels).
        scale: float32, [R, 1, ...] (one per row) or [].
        shape: Shape of a row.
        per_row: Whether there is one scale per row.
        codes: The stored codes, where ``DequantizeLinear`` with ``scale`` gives the real value; or ``""``.
        container: How they are stored.
    """

    integers: str
    scale: str
    shape: tuple[int, ...]
    per_row: bool
    container: Container
    codes: str = ""


@dataclass
class State:
    """What emitters read besides their operands.

    Attributes:
        to: The nodes so far.
        graph: The integer graph.
        inputs: ONNX inputs by input of the integer graph and part (``""`` but for an adjacency).
        sizes: int64 scalars [] by name.
        arrays: int64 [n] by name.
        edges: Graphs by name.
        nodes: Nodes of the row program by name.
    """

    to: Builder
    graph: IntegerGraph
    inputs: dict[tuple[str, str], str]
    sizes: dict[str, str] = field(default_factory=dict)
    arrays: dict[str, str] = field(default_factory=dict)
    edges: dict[str, Edges] = field(default_factory=dict)
    nodes: dict[str, Node] = field(default_factory=dict)
    _cache: dict[tuple[object, ...], str] = field(default_factory=dict)
    _dequantized: dict[str, tuple[str, str, Container]] = field(default_factory=dict)

    def array(self, name: str) -> str:
        """An index array, which may be a part of a graph: ``<graph>.src``."""
        if name in self.arrays:
            return self.arrays[name]
        graph, _, part = name.rpartition(".")
        return str(getattr(self.edges[graph], part))

    def count(self, space: str) -> str:
        """Number of rows of a space, an int64 scalar."""
        if space == ONE:
            return self.to.integer(1)
        if space in self.sizes:
            return self.sizes[space]
        key = ("count", space)
        if key not in self._cache:
            with_scope, self.to.scope = self.to.scope, f"graph/{space}/edges"
            shape = self.to.op("Shape", self.edges[space].src)
            self._cache[key] = self.to.op("Gather", shape, self.to.integer(0))
            self.to.scope = with_scope
        return self._cache[key]

    def dims(self, space: str, *columns: int) -> str:
        """The shape [rows of ``space``, *columns], int64 [n]."""
        if space == ONE:
            return self.to.integers([1, *columns])
        key = ("dims", space, columns)
        if key not in self._cache:
            first = self.to.op("Unsqueeze", self.count(space), self.to.integers([0]))
            self._cache[key] = (
                self.to.op("Concat", first, self.to.integers(columns), axis=0) if columns else first
            )
        return self._cache[key]

    def reshape(self, value: str, shape: Sequence[int]) -> str:
        """``value`` [R, ...] as [R, *shape]."""
        if all(shape):
            return self.with_shape("Reshape", value, self.to.integers([0, *shape]))
        rows = self.to.op("Shape", value, start=0, end=1)
        target = self.to.op("Concat", rows, self.to.integers(shape), axis=0)
        return self.with_shape("Reshape", value, target, allowzero=1)

    def with_shape(self, op_type: str, value: str, operand: str, name: str = "", **attrs: Any) -> str:
        """``value`` after an operator that only changes its shape (``Reshape``, ``Squeeze``).

        Of what is read from codes of 8 bits the codes change their shape: ONNX Runtime would repeat the
        quantization behind the operator, and take UINT8 for INT8 there.
        """
        if value not in self._dequantized:
            return self.to.op(op_type, value, operand, name=name, **attrs)
        codes, scale, container = self._dequantized[value]
        return self.dequantize(self.to.op(op_type, codes, operand, name=name, **attrs), scale, container)

    def flat(self, value: str, shape: tuple[int, ...]) -> str:
        """``value`` [R, *shape] as [R, columns]."""
        return value if len(shape) == 1 else self.reshape(value, (math.prod(shape),))

    def unflat(self, value: str, shape: tuple[int, ...]) -> str:
        """``value`` [R, columns] as [R, *shape]."""
        return value if len(shape) == 1 else self.reshape(value, shape)

    def fit(self, value: str, rows: str, space: str, rank: int) -> str:
        """``value``, whose space is ``rows``, with the rows of ``space``; a single row repeats.

        Args:
            value: float32 [R, ...].
            rows: Its space.
            space: The space that is wanted.
            rank: Length of its row shape.
        """
        if rows != ONE or space == ONE:
            return value
        return self.to.op("Expand", value, self.dims(space, *[1] * rank))

    def operand(self, node: Node, position: int, value: str, space: str = "") -> str:
        """An operand of ``node``, repeated to the rows of ``space`` (default: those of ``node``)."""
        given = self.nodes[node.inputs[position]]
        return self.fit(value, given.rows, space or node.rows, len(given.shape))

    # ------------------------------------------------------------ sums by destination

    def scatter_index(self, graph: str, columns: int) -> str:
        """Destinations of the edges of ``graph``, int64 [E', columns]."""
        key = ("index", graph, columns)
        if key not in self._cache:
            column = self._cached("column", graph, self.edges[graph].dst)
            self._cache[key] = (
                column if columns == 1 else self.to.op("Expand", column, self.dims(graph, columns))
            )
        return self._cache[key]

    def _cached(self, what: str, graph: str, value: str) -> str:
        key = (what, graph)
        if key not in self._cache:
            self._cache[key] = self.to.op("Unsqueeze", value, self.to.integers([1]))
        return self._cache[key]

    def scatter(self, graph: str, value: str, columns: int, reduction: str, start: float) -> str:
        """Edge rows [E', columns] by destination, from ``start``: float32 [N, columns].

        ScatterElements, because the sums of ScatterND race between the threads of ONNX Runtime where
        indices occur twice.
        """
        edges = self.edges[graph]
        begin = self.to.op("Expand", self.to.scalar(start), self.dims(edges.destinations, columns))
        index = self.scatter_index(graph, columns)
        return self.to.op("ScatterElements", begin, index, value, axis=0, reduction=reduction)

    def degree(self, graph: str) -> str:
        """Edges of every destination of ``graph``, int64 [N, 1]."""
        key = ("degree", graph)
        if key not in self._cache:
            edges = self.edges[graph]
            zeros = self.to.op("Expand", self.to.integer(0), self.dims(edges.destinations, 1))
            ones = self.to.op("Expand", self.to.integer(1), self.dims(graph, 1))
            index = self.scatter_index(graph, 1)
            self._cache[key] = self.to.op("ScatterElements", zeros, index, ones, axis=0, reduction="add")
        return self._cache[key]

    def at_least_one(self, graph: str) -> str:
        """``max(degree, 1)``, float32 [N, 1]."""
        key = ("divisor", graph)
        if key not in self._cache:
            count = self.to.op("Max", self.degree(graph), self.to.integer(1))
            self._cache[key] = self.to.cast(count, TensorProto.FLOAT)
        return self._cache[key]

    def inverse(self, value: str, numerator: float = 1.0) -> str:
        """``numerator / value`` where ``value >= SMALLEST``, else 0."""
        large = self.to.op("GreaterOrEqual", value, self.to.scalar(SMALLEST))
        quotient = self.to.op("Div", self.to.scalar(numerator), value)
        return self.to.op("Where", large, quotient, self.to.scalar(0.0))

    def zero_point(self, kind: int, value: int = 0, count: int = 0) -> str:
        """A zero point [] or [count] of a type, which also says what type is quantized to."""
        shape = [count] if count else []
        # Types of less than a byte only have the zero point 0, one of them: a byte of padding.
        size = max(count, 1)
        name = f"zero_point/{helper.tensor_dtype_to_string(kind).partition('.')[2]}/{value}"
        return self.to.packed(f"{name}[{count}]" if count else name, kind, shape, bytes([value]) * size)

    def dequantize(self, codes: str, scale: str, container: Container, zero_point: str = "") -> str:
        """Stored codes times ``scale`` [], float32."""
        made = self.to.op("DequantizeLinear", codes, scale, *([zero_point] if zero_point else []))
        if container.width == 8 and not zero_point:
            self._dequantized[made] = codes, scale, container
        return made

    def real(self, value: Codes) -> str:
        """What codes stand for, float32 [R, *shape]."""
        key = ("real", value.integers)
        if key not in self._cache:
            if value.codes:
                made = self.dequantize(value.codes, value.scale, value.container)
            else:
                made = self.to.op("Mul", value.integers, value.scale)
            self._cache[key] = made
        return self._cache[key]


def float32(value: float) -> float:
    """``value`` rounded to float32."""
    return float(np.float32(value))
