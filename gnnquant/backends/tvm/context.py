"""What the kernels of one model share: buffers, constants, values that live in memory."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from tvm import tirx

from gnnquant.backends.tvm import maths
from gnnquant.backends.tvm.emit import Builder, cast, const, number, span, splat
from gnnquant.backends.tvm.layout import ByteLayout, PlaneLayout, round_up, vector_lanes
from gnnquant.backends.tvm.partition import resolve
from gnnquant.backends.tvm.values import Rows
from gnnquant.errors import BackendError
from gnnquant.integer_graph import ONE
from gnnquant.runtime.plan import Buffer

if TYPE_CHECKING:
    from collections.abc import Callable

    from gnnquant.backends.tvm.emit import Machine
    from gnnquant.backends.tvm.layout import WeightLayout
    from gnnquant.backends.tvm.partition import Known
    from gnnquant.integer_graph import IntegerGraph, Node

GRAPH_PARTS = {"indptr": "ends", "src": "entries", "dst": "entries", "edge_id": "entries"}
GRAPH_PARTS |= {"partition": "shares"}
INPUT_ALIGNMENT = 4
"""Bytes: users' arrays lie anywhere; all other memory is aligned to 64."""
NEAR, FAR = 16, 64
"""Edges (or rows) ahead of which rows of floats are asked for, into the first cache and into the second.

The second takes many more requests at a time than the first, and keeps what came before it is needed. All
distances are less than ``GRAPH_PADDING`` less the edges that a kernel reads together.
"""
AHEAD, WAITING = 960, 2**16
"""Most edges ahead of which codes, and what edges weigh, are asked for, into the second cache; and most bytes
that wait there. They are more than a block of rows has: its edges are weighed before the first is summed.
"""
LINE = 64
"""Bytes of a cache line."""
SCRATCH = {"float32": "scratch.f32", "uint8": "scratch.u8", "int32": "scratch.i32"}
SCRATCH |= {"uint16": "scratch.u16", "int64": "scratch.i64"}


@dataclass(frozen=True)
class StoredRows:
    """Float rows in memory: buffer name, columns between rows, whether whole vectors may be read."""

    buffer: str
    stride: int
    padded: bool


@dataclass(frozen=True)
class StoredCodes:
    """Codes in memory; ``scale`` is the buffer of row scales, or ``""``."""

    buffer: str
    layout: ByteLayout | PlaneLayout
    scale: str


@dataclass
class Context:
    """State of one build.

    Attributes:
        graph: What is built.
        machine: For which vectors.
        threads: For how many threads.
        buffers: Plan buffers by name.
        constants: Arrays of the constant buffers.
        stored: Values in memory by node name.
        weights: Layouts of integer weights in use.
        scratch: Elements of scratch per thread by type.
        weighed: Numbers of rows by which the scales of quantized values are multiplied (``weighed_rows``).
        beside: Those that are multiplied where the value is quantized (``weighed_beside``).
        known: By sums the 8-bit weights of their edges that are the same in every call (``known_codes``).
        features: Values that are quantized ahead of the calls, before there is a graph.
        nodes: Nodes of the row program by name.
        graphs: Graphs of the index program by name.
    """

    graph: IntegerGraph
    machine: Machine
    threads: int
    buffers: dict[str, Buffer] = field(default_factory=dict)
    constants: dict[str, np.ndarray[Any, Any]] = field(default_factory=dict)
    stored: dict[str, StoredRows | StoredCodes] = field(default_factory=dict)
    weights: dict[str, WeightLayout] = field(default_factory=dict)
    scratch: dict[str, int] = field(default_factory=dict)
    weighed: dict[str, list[str]] = field(default_factory=dict)
    beside: dict[str, list[str]] = field(default_factory=dict)
    known: dict[str, Known] = field(default_factory=dict)
    features: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        """Look-up tables."""
        self.nodes = {node.name: node for node in self.graph.nodes}
        self.graphs = {node.name: node for node in self.graph.index if node.op == "graph"}

    def add(self, name: str, dtype: str, shape: tuple[int | str, ...], kind: str) -> str:
        """Declare a plan buffer."""
        dims = tuple(1 if dim == ONE else dim for dim in shape)
        self.buffers.setdefault(name, Buffer(name, dtype, dims, kind))
        return name


class Kernel:
    """A PrimFunc that reads and writes plan buffers.

    Its code holds no number of the model: scales, biases and other constants are read from a pool of its
    own, at offsets that depend on shapes. Layers of the same shapes therefore have the same code, and so
    has a model that was tuned further.
    """

    def __init__(self, context: Context, name: str) -> None:
        """Start the kernel ``name``."""
        self.context = context
        self.machine = context.machine
        self.lanes = context.machine.lanes
        self.b = Builder(name)
        self._used: dict[str, int] = {}
        self._pool: list[np.ndarray[Any, Any]] = []
        self._pooled = 0
        self._counted: set[str] = set()
        self._bound: set[str] = set()
        self.thread: Any = 0

    def function(self) -> Any:
        """The PrimFunc."""

        def body() -> None:
            self.body()
            for space in sorted(self._counted - self._bound):
                # no other argument has these rows: one that is there for its shape alone
                self.buffer(self.context.add(f"extent.{space}", "uint8", (space,), "workspace"))

        function = self.b.function(body)
        if self._pool:
            # a vector may be read beyond the last row of a table
            tail = np.zeros(self.lanes, dtype=np.float32)
            pool = self.context.constants[self._pool_name] = np.concatenate([*self._pool, tail])
            self.context.add(self._pool_name, "float32", pool.shape, "constant")
        return function

    def body(self) -> None:
        """Emit the statements."""
        raise NotImplementedError

    def count(self, space: str) -> Any:
        """Number of rows of a space."""
        if space == ONE:
            return const(1)
        self._counted.add(space)
        return self.b.size(f"rows of {space}")

    def buffer(self, name: str) -> Any:
        """The plan buffer ``name`` as an argument."""
        plan = self.context.buffers[name]
        shape = []
        for dim in plan.shape:
            if isinstance(dim, int):
                shape.append(dim)
            elif plan.kind == "index":  # padded
                shape.append(self.b.size(f"entries of {name}"))
            else:
                self._bound.add(dim)
                shape.append(self.b.size(f"rows of {dim}"))
        align = INPUT_ALIGNMENT if plan.kind in ("input", "output") else -1
        return self.b.argument(name, shape, plan.dtype, align)

    def graph_buffer(self, graph: str, part: str) -> Any:
        """One of the runtime's buffers of a graph."""
        return self.b.argument(f"{graph}.{part}", (self.b.size(f"{GRAPH_PARTS[part]} of {graph}"),), "int32")

    def index_array(self, name: str, space: str) -> Any:
        """An index array with an entry for each row of ``space``."""
        graph, _, part = name.rpartition(".")
        if graph in self.context.graphs and part in GRAPH_PARTS:
            return self.graph_buffer(graph, part)
        return self.buffer(self.context.add(name, "int32", (space,), "index"))

    def reader(self, name: str) -> Rows:
        """How to read rows of a float value that is in memory, or gathered from there."""
        node = self.context.nodes[resolve(self.context.graph, name)]
        if node.op == "constant":
            array = self.context.graph.constants[node.attrs["array"]]
            offset = self.keep(array.astype(np.float32))
            return Rows(node.columns, True, lambda _, j, lanes: self.kept(offset + j, lanes), True)
        if node.op in ("from_index", "lookup"):
            return self._indexed(node)
        if node.op == "gather":
            return self._gathered(node)
        if node.op == "input":
            stored: StoredRows | StoredCodes = StoredRows(node.attrs["input"], node.columns, False)
        elif node.name in self.context.stored:
            stored = self.context.stored[node.name]
        else:
            raise fail(node, "it is not finished where it is read")
        if not isinstance(stored, StoredRows):
            raise fail(node, "codes are read where floats are expected")
        single = node.rows == ONE

        def at(r: Any, j: Any, lanes: int) -> Any:
            buffer = self.buffer(stored.buffer)
            row = 0 if single else r
            return buffer[row] if len(buffer.shape) == 1 else buffer[row, span(j, lanes)]

        return Rows(node.columns, stored.padded, at, True)

    def _indexed(self, node: Node) -> Rows:
        """Rows that follow from an index array: its numbers, or rows of a constant table."""
        index = self.index_array(node.attrs["index"], node.rows)
        single = node.rows == ONE
        offset = 0
        if node.op == "lookup":
            offset = self.keep(self.context.graph.constants[node.attrs["array"]].astype(np.float32))

        def at(r: Any, j: Any, lanes: int) -> Any:
            entry = index[0 if single else r]
            if node.op == "lookup":
                return self.kept(offset + entry * node.columns + j, lanes)
            return splat(cast(entry, "float32"), lanes)

        return Rows(node.columns, True, at, True)

    def _gathered(self, node: Node) -> Rows:
        x = self.reader(node.inputs[0])
        index = self.index_array(node.attrs["index"], node.rows)
        fill = node.attrs.get("fill")
        single = node.rows == ONE

        def at(r: Any, j: Any, lanes: int) -> Any:
            row = index[0 if single else r]
            value = x.at(row, j, lanes)
            return value if fill is None else self.b.lazy(row >= 0, value, number(fill, lanes))

        return Rows(x.columns, x.padded, at, x.loaded and fill is None)

    def prefetch(self, x: Rows, r: Any, column: Any, columns: int, *, cache: int = 1) -> None:
        """Ask for columns of a row of ``x`` that will be read soon, where it is a mere load."""
        for first in range(0, columns, LINE // 4):
            load = x.at(r, column + first, 1)
            if hasattr(load, "indices"):
                self.b.prefetch(load, cache)

    def reserve(self, dtype: str, count: int) -> int:
        """Offset of ``count`` scratch elements of every thread."""
        start = self._used.get(dtype, 0)
        self._used[dtype] = start + round_up(count, 64)
        sizes = self.context.scratch
        sizes[dtype] = max(sizes.get(dtype, 0), self._used[dtype])
        return start

    def scratch(self, dtype: str) -> Any:
        """Scratch of all threads, [threads, size]."""
        size = self.b.size(f"size_{dtype}")
        return self.b.argument(SCRATCH[dtype], (self.context.threads, size), dtype)

    def element(self, dtype: str, index: Any) -> Any:
        """A scratch element of this thread, to take its address."""
        return self.scratch(dtype)[self.thread, index]

    def load(self, dtype: str, index: Any, lanes: int = 1) -> Any:
        """``lanes`` scratch elements of this thread."""
        return self.scratch(dtype)[self.thread, span(index, lanes)]

    def save(self, dtype: str, value: Any, index: Any, lanes: int = 1) -> None:
        """Write scratch elements of this thread."""
        self.b.store(self.scratch(dtype), value, self.thread, span(index, lanes))

    @property
    def _pool_name(self) -> str:
        return f"constants.{self.b.name}"

    def keep(self, values: np.ndarray[Any, Any]) -> int:
        """Put float32 (or int32) ``values``, padded to vectors, into this kernel's pool; their offset."""
        flat = np.ascontiguousarray(values).reshape(-1).view(np.float32)
        padded = np.zeros(round_up(flat.size, 2 * self.lanes), dtype=np.float32)
        padded[: flat.size] = flat
        self._pool.append(padded)
        self._pooled += padded.size
        return self._pooled - padded.size

    def kept(self, index: Any, lanes: int = 1) -> Any:
        """Elements of the pool."""
        return self.b.argument(self._pool_name, (self.b.size("pool"),), "float32")[span(index, lanes)]

    def learned(self, value: float) -> Callable[..., Any]:
        """A number of the model, rounded to float32, in as many lanes as one asks for (1).

        Neither TVM nor LLVM knows it: both rewrite ``x / c``.
        """
        offset = self.keep(np.array([value], dtype=np.float32))
        return lambda lanes=1: splat(self.kept(offset), lanes)

    def operation(self, node: Node) -> Callable[[list[Any], int], Any]:
        """An elementwise node as ``operation(values of its operands, lanes)``; its scalar is learned."""
        scalar = None if "scalar" not in node.attrs else self.learned(node.attrs["scalar"])

        def apply(values: list[Any], lanes: int) -> Any:
            given = values if scalar is None else [*values, scalar(lanes)]
            return maths.elementwise(node.op, given, lanes)

        return apply

    def each(self, count: int, body: Any) -> None:
        """``body(i)`` for i below ``count``: a loop, or the body itself for one."""
        if count == 1:
            body(0)
        else:
            with self.b.loop(count) as i:
                body(i)

    def lanes_of(self, count: int) -> int:
        """Lanes of the vectors of :meth:`columns`, where these do not run over the end."""
        return self.lanes if count >= self.lanes else vector_lanes(count, self.lanes)

    def columns(self, count: int, padded: bool, body: Any, width: int = 1) -> None:
        """``body(first column, lanes)`` over ``count`` columns.

        Columns may be visited twice, so that ``body`` must be idempotent. With ``padded`` whole
        vectors may be touched beyond the end.

        Args:
            count: Number of columns.
            padded: Whether vectors may run over the end.
            body: Emits code.
            width: Vectors at a time where there are enough columns.
        """
        lanes = self.lanes
        if not padded and count < lanes:
            lanes = self.lanes_of(count)
            self.each(count // lanes, lambda i: body(i * lanes, lanes))
            return
        while width > 1 and count < width * lanes:
            width //= 2
        lanes *= width
        steps = -(-count // lanes)
        if count % lanes == 0 or (padded and width == 1):
            self.each(steps, lambda i: body(i * lanes, lanes))
        else:
            last = count - lanes
            self.each(steps, lambda i: body(last if steps == 1 else tirx.min(i * lanes, last), lanes))


def fail(node: Node, reason: str) -> BackendError:
    """The error for a node that cannot be lowered."""
    where = f" ({node.source})" if node.source else ""
    return BackendError(f"tvm backend: {node.op} {node.name!r}{where}: {reason}")
