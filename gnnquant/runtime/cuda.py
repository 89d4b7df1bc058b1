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
from gnnquant.runtime.cuda_driver import DEFAULT_STREAM, Gpu
from gnnquant.runtime.device import DeviceArray, current_stream, empty, on_host
from gnnquant.runtime.executor import ORDER, check_plan, check_reads
from gnnquant.runtime.indexing import EDGE_PARTS, check_int32
from gnnquant.runtime.inputs import check_finite
from gnnquant.runtime.memory import lay_out

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from gnnquant.runtime.indexing import EdgeList, IndexResults
    from gnnquant.runtime.plan import Buffer, Plan

GPU = "cuda:0"
"""torch's name of the GPU that models run on."""
THREADS = 256
"""Threads of a block: the kernels are made for this number."""
ALIGNMENT = 256
GRAPH_PARTS = ("indptr", *EDGE_PARTS, ORDER)
FLAG = "not_finite"
"""The buffer that kernels write 1 to where a float input is NaN or infinite."""


@dataclass(frozen=True, eq=False)
class Prepared:
    """Sizes, and index arrays in the memory of the GPU, which goes when this goes.

    Attributes:
        sizes: Number of rows of each space, and as ``<graph>.crowded`` of crowded destinations.
        addresses: Index arrays, int32, on the GPU.
    """

    sizes: dict[str, int]
    addresses: dict[str, int]


@dataclass(frozen=True)
class _Launch:
    """A kernel with its arguments, ready to start.

    Attributes:
        name: Of the kernel.
        function: The kernel.
        blocks: How many.
        arguments: Address of the array of pointers to the arguments.
        per_graph: See ``plan.Call``.
        flags: Whether it looks for NaN.
        keep: What the addresses point to.
    """

    name: str
    function: int
    blocks: int
    arguments: int
    per_graph: bool
    flags: bool
    keep: Any


@dataclass
class _Bound:
    """The launches for one prepared graph, and the addresses of buffers that they read.

    Attributes:
        prepared: The graph; dead where it is gone.
        cells: Address of each buffer: those of inputs and outputs change from call to call.
        launches: In order.
        stands: Whether what follows from the graph alone is computed.
    """

    prepared: weakref.ref[Prepared]
    cells: dict[str, ctypes.c_uint64]
    launches: list[_Launch]
    stands: bool = False


class CudaExecutor:
    """Runs a plan on the GPU; see ``gnnquant.runtime.model.Executor``.

    Calls from several threads are put in order, and run on the GPU in that order, whatever their streams.
    Buffers between kernels are kept for the next call. ``plan.notes["launches"]`` has, for
    every call of the plan, ``"work"`` (a space and the threads for each of its rows), ``"scalars"`` (what
    follows the pointers among the arguments: ``["rows", space]``, or ``["float", bits]``) and
    maybe ``"crowded"``: a graph whose crowded destinations get a block each, before all others. Crowded are
    those with more edges than ``plan.notes["crowded"]``; they are the index array ``<graph>.order``.
    ``"checked"`` names the float inputs in which kernels look for NaN; ``"reads"`` is that of
    ``TvmExecutor``.

    Args:
        plan: What to launch on which buffers.
        constants: Arrays of the plan's constant buffers, by name.
        image: A fatbin with the kernels.

    Raises:
        ArtifactError: The plan is malformed.
        BackendError: The GPU or the driver refuses something.
    """

    gpu = GPU

    def __init__(self, plan: Plan, constants: Mapping[str, NDArray[Any]], image: bytes) -> None:
        check_plan(plan, constants)
        for buffer in plan.buffers:
            if buffer.in_output:
                raise ArtifactError(f"the plan is malformed: {buffer.name!r} lies in an output")
        self._notes = _launches(plan)
        self._crowded = plan.notes.get("crowded", 0)
        self.checks_finite = frozenset(plan.notes.get("checked", ()))
        self._plan = plan
        self._buffers = {buffer.name: buffer for buffer in plan.buffers}
        self._gpu = Gpu()
        self._lock = threading.Lock()
        module = self._gpu.load(image)
        self._owned(self._gpu.unload, module)
        self._functions = {call.function: self._gpu.function(module, call.function) for call in plan.calls}
        self._constants = self._keep({name: constants[name] for name in _named(plan, "constant")})
        used = {name for call in plan.calls for name in call.arguments}
        self._parts = {
            node.name: [part for part in GRAPH_PARTS if f"{node.name}.{part}" in used]
            for node in plan.index
            if node.op == "graph"
        }
        here, self._flag_address = self._gpu.shared_memory(ctypes.sizeof(ctypes.c_int32))
        self._owned(self._gpu.free_shared, here)
        self._flag = ctypes.c_int32.from_address(here)
        self._checked, self._done = self._gpu.event(), self._gpu.event()
        for event in (self._checked, self._done):
            self._owned(self._gpu.destroy_event, event)
        self._stream = DEFAULT_STREAM
        self._arenas: dict[str, tuple[int, int, weakref.finalize[Any, Any]]] = {}
        self._bound: _Bound | None = None

    def prepare(self, index: IndexResults) -> Prepared:
        """Index arrays and CSR forms of the plan's graphs, on the GPU."""
        sizes = {ONE: 1, **index.sizes}
        arrays: dict[str, NDArray[Any]] = {}
        for name, parts in self._parts.items():
            graph = _csr(index.graphs[name])
            sizes[name] = graph["src"].size
            if ORDER in parts:
                crowded = graph[ORDER] = np.flatnonzero(np.diff(graph["indptr"]) > self._crowded)
                sizes[f"{name}.crowded"] = crowded.size
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

    def run(
        self,
        prepared: Prepared,
        inputs: Mapping[str, NDArray[np.float32] | DeviceArray],
        *,
        on_gpu: bool = False,
    ) -> list[Any]:
        """Launch the kernels in order.

        Args:
            prepared: What :meth:`prepare` returned.
            inputs: Float rows, on the CPU or the GPU.
            on_gpu: Whether to work on torch's current stream, and return what will be on the GPU in its
                order; else this returns when all is done.

        Returns:
            ``DeviceArray`` or numpy arrays [rows, *shape].

        Raises:
            InputError: A float input holds NaN or infinity.
        """
        stream = current_stream(GPU) if on_gpu else DEFAULT_STREAM
        with self._lock, self._gpu.current():
            if stream != self._stream:
                self._gpu.follow(stream, self._done)
                self._stream = stream
            bound = self._bind(prepared)
            stands, bound.stands = bound.stands, False  # what an error leaves behind is not used again
            kept = self._take_inputs(prepared, bound, inputs, stream)
            outputs = self._make_outputs(prepared, bound, on_gpu=on_gpu)
            self._flag.value = 0
            flags = False
            for launch in bound.launches:
                if not (launch.per_graph and stands):
                    self._gpu.launch(launch.function, launch.blocks, THREADS, launch.arguments, stream)
                    if launch.flags:
                        self._gpu.record(self._checked, stream)
                        flags = True
            self._gpu.record(self._done, stream)
            found = outputs if on_gpu else self._download(outputs, bound)
            if flags:
                self._gpu.wait(self._checked)
            wrong = self._flag.value
            bound.stands = True
        del kept
        if wrong:
            with np.errstate(all="ignore"):
                for name in self.checks_finite & inputs.keys():
                    check_finite(name, on_host(inputs[name]))
        return found

    def _owned(self, free: Any, handle: int) -> None:
        """Let something on the GPU go with this."""
        weakref.finalize(self, _quietly, free, handle).atexit = False

    def _keep(self, arrays: dict[str, NDArray[Any]], owner: object = None) -> dict[str, int]:
        """Copy arrays into one block on the GPU, which is freed with ``owner`` (default: this)."""
        offsets, size = _offsets({name: array.nbytes for name, array in arrays.items()})
        block = self._gpu.allocate(size)
        weakref.finalize(owner or self, _quietly, self._gpu.free, block).atexit = False
        for name, array in arrays.items():
            self._gpu.upload(block + offsets[name], np.ascontiguousarray(array))
        self._gpu.synchronize()  # other streams do not wait for it
        return {name: block + offset for name, offset in offsets.items()}

    def _arena(self, kind: str, size: int) -> int:
        """The address of at least ``size`` bytes that are kept for the next call."""
        known = self._arenas.get(kind)
        if known is not None and known[1] >= size:
            return known[0]
        self._bound = None
        if known is not None:
            del self._arenas[kind]
            known[2]()
        block = self._gpu.allocate(size)
        owner = weakref.finalize(self, _quietly, self._gpu.free, block)
        owner.atexit = False
        self._arenas[kind] = block, size, owner
        return block

    def _bind(self, prepared: Prepared) -> _Bound:
        """Launches on buffers for graphs of this size."""
        if self._bound is not None and self._bound.prepared() is prepared:
            return self._bound
        starts, size = lay_out(self._plan.buffers, prepared.sizes)
        block = self._arena("workspace", size)
        addresses = {**self._constants, **prepared.addresses}
        addresses |= {name: block + start for name, start in starts.items()}
        addresses[FLAG] = self._flag_address
        names = {name for call in self._plan.calls for name in call.arguments} | self._buffers.keys()
        cells = {name: ctypes.c_uint64(addresses.get(name, 0)) for name in names}
        launches = []
        for call, note in zip(self._plan.calls, self._notes, strict=True):
            blocks = note.blocks(prepared.sizes)
            if blocks == 0:
                continue
            arguments: list[Any] = [cells[name] for name in call.arguments]
            arguments += note.arguments(prepared.sizes)
            pointers = (ctypes.c_void_p * len(arguments))(*map(ctypes.addressof, arguments))
            launches.append(
                _Launch(
                    call.function,
                    self._functions[call.function],
                    blocks,
                    ctypes.addressof(pointers),
                    call.per_graph,
                    FLAG in call.arguments,
                    (arguments, pointers),
                )
            )
        self._bound = _Bound(weakref.ref(prepared), cells, launches)
        return self._bound

    def _take_inputs(
        self,
        prepared: Prepared,
        bound: _Bound,
        inputs: Mapping[str, NDArray[np.float32] | DeviceArray],
        stream: int,
    ) -> list[Any]:
        """Point kernels to the inputs, copied to the GPU where they are not; returns what must be kept."""
        kept: list[Any] = []
        read = [name for name in inputs if name in self._buffers]
        offsets, size = _offsets({name: _bytes(self._buffers[name], prepared.sizes) for name in read})
        block = 0
        for name in offsets:
            array, rows = inputs[name], _shape(self._buffers[name], prepared.sizes)[0]
            if array.shape[0] != rows:
                raise BackendError(f"{name} has {array.shape[0]} rows, where the plan has {rows}")
            if isinstance(array, DeviceArray):
                bound.cells[name].value = array.address
                kept.append(array)
            else:
                block = block or self._arena("inputs", size)
                self._gpu.upload(block + offsets[name], np.ascontiguousarray(array, np.float32), stream)
                bound.cells[name].value = block + offsets[name]
        return kept

    def _make_outputs(self, prepared: Prepared, bound: _Bound, *, on_gpu: bool) -> list[Any]:
        """New arrays for the outputs, to which kernels are pointed where they are on the GPU."""
        shapes = [
            (_shape(self._buffers[name], prepared.sizes)[0], *shape)
            for name, shape in zip(self._plan.outputs, self._plan.output_shapes, strict=True)
        ]
        found: list[Any]
        if on_gpu:
            found = [empty(shape, GPU) for shape in shapes]
            addresses = [array.address for array in found]
        else:
            found = [np.empty(shape, np.float32) for shape in shapes]
            offsets, size = _offsets({str(index): array.nbytes for index, array in enumerate(found)})
            block = self._arena("outputs", size)
            addresses = [block + offset for offset in offsets.values()]
        for name, address in zip(self._plan.outputs, addresses, strict=True):
            bound.cells[name].value = address
        return found

    def _download(self, outputs: list[NDArray[np.float32]], bound: _Bound) -> list[NDArray[np.float32]]:
        for name, array in zip(self._plan.outputs, outputs, strict=True):
            self._gpu.download(array, bound.cells[name].value)
        self._gpu.synchronize()
        return outputs


@dataclass(frozen=True)
class _Note:
    """How a call of the plan is launched: see ``CudaExecutor``."""

    space: str
    each: int
    scalars: list[tuple[str, Any]]
    crowded: str

    def blocks(self, sizes: Mapping[str, int]) -> int:
        """Blocks of threads for graphs of this size."""
        alone = sizes[f"{self.crowded}.crowded"] if self.crowded else 0
        return alone - (-sizes[self.space] * self.each // THREADS)

    def arguments(self, sizes: Mapping[str, int]) -> list[Any]:
        """What follows the pointers."""
        return [
            ctypes.c_int64(sizes[value]) if kind == "rows" else ctypes.c_uint32(value)
            for kind, value in self.scalars
        ]


def _launches(plan: Plan) -> list[_Note]:
    """How every call is launched, checked."""
    notes = plan.notes.get("launches")
    graphs = {node.name for node in plan.index if node.op == "graph"}
    spaces = {ONE, *(node.name for node in plan.index), *(f"{name}.crowded" for name in graphs)}
    if not isinstance(notes, list) or len(notes) != len(plan.calls):
        raise ArtifactError("the plan is malformed: its calls do not all say how they are launched")
    floats = {item.name for item in plan.inputs if item.kind == "rows"}
    if not floats.issuperset(plan.notes.get("checked", ())):
        raise ArtifactError("the plan is malformed: it looks for NaN where there are no floats")
    if not isinstance(plan.notes.get("crowded", 0), int):
        raise ArtifactError("the plan is malformed: it does not say when a destination is crowded")
    return [_note(call.function, note, spaces, graphs) for call, note in zip(plan.calls, notes, strict=True)]


def _note(function: str, note: Any, spaces: set[str], graphs: set[str]) -> _Note:
    try:
        space, each = note["work"]
        scalars = [(kind, value) for kind, value in note["scalars"]]
        crowded = note.get("crowded", "")
        good = space in spaces and isinstance(each, int) and each > 0 and crowded in {"", *graphs}
        for kind, value in scalars:
            good &= value in spaces if kind == "rows" else kind == "float" and value in range(2**32)
    except (KeyError, TypeError, ValueError, AttributeError):
        good = False
    if not good:
        raise ArtifactError(f"the plan is malformed: {function!r} cannot be launched so: {note}")
    return _Note(space, each, scalars, crowded)


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
