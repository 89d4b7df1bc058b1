"""What the kernels of one model share: buffers, constants, values that live in memory."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from gnnquant.backends.tvm.emit import Builder, span
from gnnquant.backends.tvm.layout import CodeLayout, round_up
from gnnquant.errors import BackendError
from gnnquant.runtime.plan import Buffer

if TYPE_CHECKING:
    from gnnquant.backends.tvm.emit import Machine
    from gnnquant.backends.tvm.layout import WeightLayout
    from gnnquant.integer_graph import IntegerGraph, Node

GRAPH_PARTS = {"indptr": "ends", "indices": "entries", "edge_id": "entries", "partition": "shares"}
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
    layout: CodeLayout
    scale: str


@dataclass
class Context:
    """State of one build.

    Attributes:
        graph: What is built.
        machine: For which vectors.
        threads: For how many threads.
        buffers: Plan buffers by name.
        constants: Arrays of the constant buffers (the float pool is added at the end).
        stored: Values in memory by node name.
        weights: Layouts of integer weights in use.
        sparse: Weights whose unpacked rows are read by the kernel for sparse codes.
        scratch: Elements of scratch per thread by type.
    """

    graph: IntegerGraph
    machine: Machine
    threads: int
    buffers: dict[str, Buffer] = field(default_factory=dict)
    constants: dict[str, np.ndarray[Any, Any]] = field(default_factory=dict)
    stored: dict[str, StoredRows | StoredCodes] = field(default_factory=dict)
    weights: dict[str, WeightLayout] = field(default_factory=dict)
    scratch: dict[str, int] = field(default_factory=dict)
    _pool: list[np.ndarray[Any, Any]] = field(default_factory=list)
    _pooled: dict[bytes, int] = field(default_factory=dict)
    _size: int = 0

    def add(self, name: str, dtype: str, shape: tuple[int | str, ...], kind: str) -> str:
        """Declare a plan buffer."""
        self.buffers.setdefault(name, Buffer(name, dtype, shape, kind))
        return name

    def pool(self, values: np.ndarray[Any, Any]) -> int:
        """Offset of float32 (or int32) ``values``, padded to vectors, in the constant pool."""
        flat = np.ascontiguousarray(values).reshape(-1).view(np.float32)
        key = flat.tobytes()
        if key not in self._pooled:
            padded = np.zeros(round_up(flat.size, 2 * self.machine.lanes), dtype=np.float32)
            padded[: flat.size] = flat
            self._pooled[key] = self._size
            self._pool.append(padded)
            self._size += padded.size
        return self._pooled[key]

    def pooled(self) -> np.ndarray[Any, Any]:
        """The constant pool."""
        return np.concatenate(self._pool) if self._pool else np.zeros(0, dtype=np.float32)


class Kernel:
    """A PrimFunc that reads and writes plan buffers."""

    def __init__(self, context: Context, name: str) -> None:
        """Start the kernel ``name``."""
        self.context = context
        self.machine = context.machine
        self.lanes = context.machine.lanes
        self.b = Builder(name)
        self._used: dict[str, int] = {}
        self.thread: Any = 0

    def function(self) -> Any:
        """The PrimFunc."""
        return self.b.function(self.body)

    def body(self) -> None:
        """Emit the statements."""
        raise NotImplementedError

    def buffer(self, name: str) -> Any:
        """The plan buffer ``name`` as an argument."""
        plan = self.context.buffers[name]
        shape = []
        for position, dim in enumerate(plan.shape):
            if isinstance(dim, int):
                shape.append(dim)
            elif plan.kind == "input" and dim != "N":
                shape.append(self.b.size(f"given_{len(self.b.argument_names)}"))
            else:
                shape.append(self.b.size("nodes" if dim == "N" else f"edges_{position}_{dim[2:]}"))
        align = 4 if plan.kind in ("input", "output") else -1
        return self.b.argument(name, shape, plan.dtype, align)

    def graph_buffer(self, graph: str, part: str) -> Any:
        """One of the runtime's buffers of a graph."""
        return self.b.argument(f"{graph}.{part}", (self.b.size(f"{GRAPH_PARTS[part]}_{graph}"),), "int32")

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

    def load(self, dtype: str, index: Any, lanes: int = 1) -> Any:
        """``lanes`` scratch elements of this thread."""
        return self.scratch(dtype)[self.thread, span(index, lanes)]

    def save(self, dtype: str, value: Any, index: Any, lanes: int = 1) -> None:
        """Write scratch elements of this thread."""
        self.b.store(self.scratch(dtype), value, self.thread, span(index, lanes))

    def pool(self, index: Any, lanes: int = 1) -> Any:
        """Elements of the constant pool."""
        return self.b.argument("constants", (self.b.size("pool"),), "float32")[span(index, lanes)]

    def each(self, count: int, body: Any) -> None:
        """``body(i)`` for i below ``count``: a loop, or the body itself for one."""
        if count == 1:
            body(0)
        else:
            with self.b.loop(count) as i:
                body(i)

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
        from tvm import tirx

        lanes = self.lanes
        if not padded and count < lanes:
            self.each(count, lambda i: body(i, 1))
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
