"""Run a plan with the kernels of a fatbin on an NVIDIA GPU; see ``gnnquant.backends.cuda``."""

from __future__ import annotations

import contextlib
import ctypes
import math
import threading
import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from gnnquant.errors import ArtifactError, BackendError
from gnnquant.integer_graph import ONE
from gnnquant.runtime.cuda_driver import Gpu
from gnnquant.runtime.executor import check_plan, check_reads
from gnnquant.runtime.indexing import EDGE_PARTS, check_int32

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from gnnquant.runtime.indexing import EdgeList, IndexResults
    from gnnquant.runtime.plan import Buffer, Call, Plan

THREADS = 128
"""Threads of a block: the kernels are made for this number."""
ALIGNMENT = 256
GRAPH_PARTS = ("indptr", *EDGE_PARTS)


@dataclass(frozen=True, eq=False)
class Prepared:
    """Sizes, and index arrays in the memory of the GPU, which goes when this goes.

    Attributes:
        sizes: Number of rows of each space.
        addresses: Index arrays, int32, on the GPU.
    """

    sizes: dict[str, int]
    addresses: dict[str, int]


class CudaExecutor:
    """Runs a plan on the GPU; see ``gnnquant.runtime.model.Executor``.

    Calls from several threads run one after the other. Buffers between kernels are kept for the next
    call. ``plan.notes["launches"]`` has, for every call of the plan, ``"work"`` (a space and the threads for
    each of its rows) and ``"scalars"`` (what follows the pointers among the arguments: ``["rows", space]``
    or ``["float", bits]``); ``"reads"`` is that of ``TvmExecutor``.

    Args:
        plan: What to launch on which buffers.
        constants: Arrays of the plan's constant buffers, by name.
        image: A fatbin with the kernels.

    Raises:
        ArtifactError: The plan is malformed.
        BackendError: The GPU or the driver refuses something.
    """

    def __init__(self, plan: Plan, constants: Mapping[str, NDArray[Any]], image: bytes) -> None:
        check_plan(plan, constants)
        self._launches = _launches(plan)
        self._plan = plan
        self._gpu = Gpu()
        self._lock = threading.Lock()
        module = self._gpu.load(image)
        weakref.finalize(self, _quietly, self._gpu.unload, module).atexit = False
        self._functions = {call.function: self._gpu.function(module, call.function) for call in plan.calls}
        self._constants = self._keep({name: constants[name] for name in _named(plan, "constant")})
        used = {name for call in plan.calls for name in call.arguments}
        self._parts = {
            node.name: [part for part in GRAPH_PARTS if f"{node.name}.{part}" in used]
            for node in plan.index
            if node.op == "graph"
        }
        self._arena: tuple[int, int] | None = None
        self._arena_owner: weakref.finalize[Any, Any] | None = None
        self._last: weakref.ref[Prepared] | None = None

    def prepare(self, index: IndexResults) -> Prepared:
        """Index arrays and CSR forms of the plan's graphs, on the GPU."""
        sizes = {ONE: 1, **index.sizes}
        arrays: dict[str, NDArray[Any]] = {}
        for name, parts in self._parts.items():
            graph = _csr(index.graphs[name])
            sizes[name] = graph["src"].size
            arrays |= {f"{name}.{part}": graph[part] for part in parts}
        check_reads(self._plan, index, sizes)
        for buffer in self._plan.buffers:
            if buffer.kind == "index":
                array = index.arrays[buffer.name]
                (rows,) = _shape(buffer, sizes)
                if array.size != rows:
                    raise BackendError(f"index {buffer.name!r} has {array.size} entries for {rows} rows")
                check_int32(buffer.name, array)
                arrays[buffer.name] = array
        addresses: dict[str, int] = {}
        prepared = Prepared(sizes, addresses)
        narrow = {name: np.ascontiguousarray(array, np.int32) for name, array in arrays.items()}
        addresses |= self._keep(narrow, owner=prepared)
        return prepared

    def run(self, prepared: Prepared, inputs: dict[str, NDArray[np.float32]]) -> list[NDArray[np.float32]]:
        """Launch the kernels in order."""
        with self._lock, self._gpu.current():
            addresses = self._layout(prepared)
            self._upload(prepared, addresses, inputs)
            same = self._last is not None and self._last() is prepared
            self._last = None  # what an error leaves behind is not used again
            for call, (work, scalars) in zip(self._plan.calls, self._launches, strict=True):
                if not (call.per_graph and same):
                    self._launch(call, work, scalars, addresses, prepared.sizes)
            self._gpu.synchronize()
            outputs = [self._download(name, prepared, addresses) for name in self._plan.outputs]
            self._last = weakref.ref(prepared)
        return [
            output.reshape(output.shape[:1] + shape)
            for output, shape in zip(outputs, self._plan.output_shapes, strict=True)
        ]

    def _keep(self, arrays: dict[str, NDArray[Any]], owner: object = None) -> dict[str, int]:
        """Copy arrays into one block on the GPU, which is freed with ``owner`` (default: this)."""
        offsets, size = _offsets({name: array.nbytes for name, array in arrays.items()})
        block = self._gpu.allocate(size)
        weakref.finalize(owner or self, _quietly, self._gpu.free, block).atexit = False
        for name, array in arrays.items():
            self._gpu.upload(block + offsets[name], np.ascontiguousarray(array))
        return {name: block + offset for name, offset in offsets.items()}

    def _layout(self, prepared: Prepared) -> dict[str, int]:
        """The address of every buffer for graphs of this size."""
        sizes = {
            buffer.name: _bytes(buffer, prepared.sizes)
            for buffer in self._plan.buffers
            if buffer.kind in ("input", "workspace", "output")
        }
        offsets, size = _offsets(sizes)
        if self._arena is None or self._arena[1] < size:
            if self._arena_owner is not None:
                self._arena_owner()
            self._arena, self._last = None, None
            block = self._gpu.allocate(size)
            self._arena = block, size
            self._arena_owner = weakref.finalize(self, _quietly, self._gpu.free, block)
            self._arena_owner.atexit = False
        block, _ = self._arena
        own = {name: block + offset for name, offset in offsets.items()}
        return {**self._constants, **prepared.addresses, **own}

    def _upload(
        self, prepared: Prepared, addresses: dict[str, int], inputs: dict[str, NDArray[np.float32]]
    ) -> None:
        for buffer in self._plan.buffers:
            if buffer.kind == "input":
                array, rows = inputs[buffer.name], _shape(buffer, prepared.sizes)[0]
                if array.shape[0] != rows:
                    raise BackendError(f"{buffer.name} has {array.shape[0]} rows, where the plan has {rows}")
                self._gpu.upload(addresses[buffer.name], np.ascontiguousarray(array, np.float32))

    def _download(self, name: str, prepared: Prepared, addresses: dict[str, int]) -> NDArray[np.float32]:
        (buffer,) = (item for item in self._plan.buffers if item.name == name)
        array = np.empty(_shape(buffer, prepared.sizes), np.float32)
        self._gpu.download(array, addresses[name])
        return array

    def _launch(
        self,
        call: Call,
        work: tuple[str, int],
        scalars: list[tuple[str, Any]],
        addresses: dict[str, int],
        sizes: dict[str, int],
    ) -> None:
        blocks = -(-sizes[work[0]] * work[1] // THREADS)
        if blocks == 0:
            return
        arguments: list[Any] = [ctypes.c_uint64(addresses[name]) for name in call.arguments]
        for kind, value in scalars:
            arguments.append(ctypes.c_int64(sizes[value]) if kind == "rows" else ctypes.c_uint32(value))
        self._gpu.launch(self._functions[call.function], blocks, THREADS, arguments)


def _launches(plan: Plan) -> list[tuple[tuple[str, int], list[tuple[str, Any]]]]:
    """Work and scalar arguments of every call, checked."""
    notes = plan.notes.get("launches")
    spaces = {ONE, *(node.name for node in plan.index)}
    if not isinstance(notes, list) or len(notes) != len(plan.calls):
        raise ArtifactError("the plan is malformed: its calls do not all say how they are launched")
    return [_launch_of(call, note, spaces) for call, note in zip(plan.calls, notes, strict=True)]


def _launch_of(call: Call, note: Any, spaces: set[str]) -> tuple[tuple[str, int], list[tuple[str, Any]]]:
    try:
        space, each = note["work"]
        scalars = [(kind, value) for kind, value in note["scalars"]]
        good = space in spaces and isinstance(each, int) and each > 0
        for kind, value in scalars:
            good &= value in spaces if kind == "rows" else kind == "float" and value in range(2**32)
    except (KeyError, TypeError, ValueError):
        good = False
    if not good:
        raise ArtifactError(f"the plan is malformed: {call.function!r} cannot be launched so: {note}")
    return (space, each), scalars


def _csr(graph: EdgeList) -> dict[str, NDArray[np.int64]]:
    edges = graph.csr
    indptr = np.zeros(graph.destinations + 1, np.int64)
    np.cumsum(np.bincount(edges.dst, minlength=graph.destinations), out=indptr[1:])
    return {"indptr": indptr, "src": edges.src, "dst": edges.dst, "edge_id": edges.edge_id}


def _named(plan: Plan, kind: str) -> list[str]:
    return [buffer.name for buffer in plan.buffers if buffer.kind == kind]


def _offsets(sizes: dict[str, int]) -> tuple[dict[str, int], int]:
    """Where each of several things begins in one block, aligned; and the size of the block."""
    offsets, end = {}, 0
    for name, size in sizes.items():
        offsets[name] = end
        end += -(-size // ALIGNMENT) * ALIGNMENT
    return offsets, end


def _shape(buffer: Buffer, sizes: dict[str, int]) -> tuple[int, ...]:
    return tuple(sizes[dim] if isinstance(dim, str) else dim for dim in buffer.shape)


def _bytes(buffer: Buffer, sizes: dict[str, int]) -> int:
    return math.prod(_shape(buffer, sizes)) * np.dtype(buffer.dtype).itemsize


def _quietly(free: Any, handle: int) -> None:
    """Free something of which nobody is left to hear that it failed."""
    with contextlib.suppress(BackendError):
        free(handle)
