"""Run a plan with the kernels of a library that TVM compiled."""

from __future__ import annotations

import ctypes
import math
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from gnnquant.errors import ArtifactError, InputError
from gnnquant.integer_graph import LOOPS
from gnnquant.runtime import tvm_abi
from gnnquant.runtime.graph import INT32_MAX, partition_rows
from gnnquant.runtime.inputs import check_finite
from gnnquant.runtime.memory import (
    ALIGNMENT,
    OutputBuffer,
    address_of,
    aligned_array,
    aligned_bytes,
    aligned_copy,
    round_up,
)
from gnnquant.runtime.plan import GRAPH_PADDING

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from gnnquant.runtime.plan import Buffer, Plan

GRAPH_PARTS = ("indptr", "indices", "edge_id", "partition")
"""Buffers that the runtime provides for each graph of a plan."""
BUFFER_KINDS = frozenset({"input", "constant", "workspace", "output"})
DTYPES = frozenset({"bool", "int8", "uint8", "int16", "uint16", "int32", "int64", "float32", "float64"})
"""Element types of buffers."""
MAX_FREE_WORKSPACES = 8


def check_plan(plan: Plan, constants: Mapping[str, NDArray[Any]]) -> None:
    """Check that the names of a plan resolve and that its constants are what it says.

    Raises:
        ArtifactError: Naming what is wrong.
    """
    inputs = {item.name: item for item in plan.inputs}
    _need(plan.threads >= 1, "it is for no thread")
    for graph in plan.graphs:
        _need(graph.loops in LOOPS, f"graph {graph.name!r} has loops {graph.loops!r}")
        known = graph.edge_index in inputs and inputs[graph.edge_index].kind == "edge_index"
        _need(known, f"graph {graph.name!r} has no edge_index input")
    graphs = {graph.name for graph in plan.graphs}
    names = {f"{graph}.{part}" for graph in graphs for part in GRAPH_PARTS}
    for buffer in plan.buffers:
        _need(buffer.name not in names, f"buffer {buffer.name!r} is defined twice")
        names.add(buffer.name)
        _check_buffer(buffer, graphs)
        if buffer.kind == "input":
            _need(buffer.name in inputs, f"input buffer {buffer.name!r} is no input")
        if buffer.kind == "constant":
            constant = constants.get(buffer.name)
            _need(constant is not None, f"constant {buffer.name!r} is missing")
            found = (constant.dtype.name, constant.shape) if constant is not None else None
            wanted = (buffer.dtype, buffer.shape)
            _need(found == wanted, f"constant {buffer.name!r} is {found} instead of {wanted}")
    for call in plan.calls:
        for argument in call.arguments:
            _need(argument in names, f"{call.function!r} uses the unknown buffer {argument!r}")
    outputs = {buffer.name for buffer in plan.buffers if buffer.kind == "output"}
    _need(set(plan.outputs) == outputs, "its outputs are not its output buffers")
    _need(len(plan.outputs) == len(plan.output_shapes), "outputs and their shapes differ in number")
    scales = {buffer.name for buffer in plan.buffers if buffer.kind == "workspace"}
    for name, scale in plan.notes.get("finite", {}).items():
        _need(name in inputs and scale in scales, f"it looks for NaN of {name!r} in {scale!r}")


def _check_buffer(buffer: Buffer, graphs: set[str]) -> None:
    _need(buffer.dtype in DTYPES, f"buffer {buffer.name!r} has type {buffer.dtype!r}")
    _need(buffer.kind in BUFFER_KINDS, f"buffer {buffer.name!r} has kind {buffer.kind!r}")
    for dim in buffer.shape:
        if isinstance(dim, str):
            good = dim == "N" or (dim.startswith("E:") and dim[2:] in graphs)
        else:
            good = isinstance(dim, int) and dim >= 0
        _need(good, f"buffer {buffer.name!r} has the dimension {dim!r}")


def _need(condition: bool, message: str) -> None:
    if not condition:
        raise ArtifactError(f"the plan is malformed: {message}")


@dataclass(frozen=True, eq=False)
class PreparedGraphs:
    """CSR forms of the graphs of one call.

    Attributes:
        num_nodes: Number of nodes.
        edges: Number of edges of each plan graph, self-loops as its mode says.
        arrays: The four buffers of each graph, by ``<graph>.<part>``.
    """

    num_nodes: int
    edges: tuple[int, ...]
    arrays: dict[str, NDArray[np.int32]]


class TvmExecutor:
    """Runs a plan; see ``gnnquant.runtime.model.Executor``.

    ``plan.notes`` may hold ``"finite"``: ``{input: buffer}`` where the float32 workspace ``buffer``
    holds a NaN or an infinity whenever ``input`` does (scales of rows, say). The executor then
    looks at that buffer after the run in place of reading the whole input before it.
    ``"input_alignment"`` is the alignment in bytes that kernels need of inputs (64 by default);
    inputs that lack it are copied.

    Args:
        plan: What to call on which buffers.
        constants: Arrays of the plan's constant buffers, by name.
        library_path: Shared library with the kernels; it may be deleted afterwards.
    """

    def __init__(
        self,
        plan: Plan,
        constants: Mapping[str, NDArray[Any]],
        library_path: str | os.PathLike[str],
    ) -> None:
        check_plan(plan, constants)
        self._tvm = tvm_abi.runtime()
        self._library = self._tvm.load_library(str(library_path))
        self._pooled = tvm_abi.uses_thread_pool(self._library)
        self._plan = plan
        self._functions = {call.function: self._function(call.function) for call in plan.calls}
        if plan.graphs:
            self._count = self._function("graph_count")
            self._fill = self._function("graph_fill")
        self._constants = {
            buffer.name: aligned_copy(constants[buffer.name])
            for buffer in plan.buffers
            if buffer.kind == "constant"
        }
        self._finite: dict[str, str] = dict(plan.notes.get("finite", {}))
        self.checks_finite = frozenset(self._finite)
        self._alignment = int(plan.notes.get("input_alignment", ALIGNMENT))
        self._lock = threading.Lock()
        self._free: list[_Workspace] = []

    def prepare(self, edge_indices: dict[str, NDArray[np.int64]], num_nodes: int) -> PreparedGraphs:
        """CSR forms of the plan's graphs; the indices must be in range."""
        self._check_size("nodes", num_nodes)
        if self._pooled:
            tvm_abi.use_threads(self._plan.threads)
        arrays: dict[str, NDArray[np.int32]] = {}
        counts = []
        for graph in self._plan.graphs:
            edges = edge_indices[graph.edge_index]
            self._check_size("edges", edges.shape[1] + num_nodes)
            if not edges.flags.c_contiguous or address_of(edges) % ALIGNMENT:
                edges = aligned_copy(edges)
            mode = aligned_array((1,), np.int32)
            mode[0] = LOOPS.index(graph.loops)
            indptr = aligned_array((num_nodes + 1,), np.int32)
            self._call("graph_count", self._count, edges, indptr, mode)
            count = int(indptr[-1])
            indices, edge_id = (aligned_array((count + GRAPH_PADDING,), np.int32) for _ in range(2))
            cursor = aligned_array((num_nodes,), np.int32)
            self._call("graph_fill", self._fill, edges, indptr, indices, edge_id, cursor, mode)
            partition = aligned_copy(partition_rows(indptr, self._plan.threads))
            for part, array in zip(GRAPH_PARTS, (indptr, indices, edge_id, partition), strict=True):
                arrays[f"{graph.name}.{part}"] = array
            counts.append(count)
        return PreparedGraphs(num_nodes, tuple(counts), arrays)

    def run(
        self,
        prepared: PreparedGraphs,
        inputs: dict[str, NDArray[np.float32]],
        num_nodes: int,  # noqa: ARG002 - other executors need it
    ) -> list[NDArray[np.float32]]:
        """Call the kernels in order."""
        if self._pooled:
            tvm_abi.use_threads(self._plan.threads)
        workspace = self._acquire(prepared)
        try:
            outputs = workspace.run(prepared, inputs)
            for name, buffer in self._finite.items():
                if name in inputs and not np.isfinite(workspace.arrays[buffer]).all():
                    with np.errstate(all="ignore"):
                        check_finite(name, inputs[name])
        finally:
            with self._lock:
                self._free.append(workspace)
                del self._free[:-MAX_FREE_WORKSPACES]
        return outputs

    def _check_size(self, what: str, size: int) -> None:
        """Refuse graphs beyond the 32-bit offsets of the kernels."""
        most = min(self._plan.notes.get(f"max_{what}", INT32_MAX), INT32_MAX)
        if size > most:
            raise InputError(f"{size} {what}, self-loops included, are more than this model can take: {most}")

    def _acquire(self, prepared: PreparedGraphs) -> _Workspace:
        """A workspace that nobody uses: the best of the free ones, or a new one."""
        with self._lock:
            free = self._free
            best = None
            for index in range(len(free) - 1, -1, -1):
                if free[index].prepared is prepared:
                    return free.pop(index)
                if best is None and free[index].fits(prepared):
                    best = index
            if best is not None:
                return free.pop(best)
            # A free workspace that is too small for this graph would only hold memory.
            if free:
                free.pop()
        return _Workspace(self._plan, self._functions, self._constants, self._alignment, self._tvm)

    def _function(self, name: str) -> Callable[..., int]:
        function = tvm_abi.find_function(self._library, name)
        if function is None:
            raise ArtifactError(f"the compiled code has no function {name!r}")
        return function

    def _call(self, name: str, function: Callable[..., int], *arrays: NDArray[Any]) -> None:
        views = [tvm_abi.tensor_view(array.dtype.name, array.shape, address_of(array)) for array in arrays]
        packed = tvm_abi.tensor_arguments(views)
        result = tvm_abi.AnyValue()
        status = function(None, ctypes.addressof(packed), len(views), ctypes.addressof(result))
        self._tvm.check(status, name)


class _Workspace:
    """Buffers of one running call, and the argument arrays that point to them."""

    def __init__(
        self,
        plan: Plan,
        functions: dict[str, Callable[..., int]],
        constants: dict[str, NDArray[Any]],
        alignment: int,
        tvm: tvm_abi.TvmRuntime,
    ) -> None:
        self.prepared: PreparedGraphs | None = None
        self.arrays: dict[str, NDArray[Any]] = {}
        self._plan = plan
        self._functions = functions
        self._constants = constants
        self._alignment = alignment
        self._tvm = tvm
        self._arena = aligned_bytes(0)
        self._views: dict[str, tvm_abi.TensorView] = {}
        self._arguments: list[Any] = []
        self._calls: list[tuple[Callable[..., int], int, int]] = []
        self._graph_values_stand = False
        self._copies: dict[str, NDArray[np.float32]] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._outputs = [OutputBuffer() for _ in plan.outputs]
        self._result = tvm_abi.AnyValue()
        self._result_address = ctypes.addressof(self._result)

    def fits(self, prepared: PreparedGraphs) -> bool:
        """Whether the memory is large enough for graphs of this size."""
        return self._size(prepared) <= self._arena.size

    def run(
        self, prepared: PreparedGraphs, inputs: dict[str, NDArray[np.float32]]
    ) -> list[NDArray[np.float32]]:
        """Call the kernels in order."""
        if prepared is not self.prepared:
            self._bind(prepared)
        for name, array in inputs.items():
            self._point_input(name, array)
        outputs = []
        for name, buffer in zip(self._plan.outputs, self._outputs, strict=True):
            output, self._views[name].data = buffer.take(self._shapes[name])
            outputs.append(output)
        result = self._result_address
        for call, (function, arguments, count) in zip(self._plan.calls, self._calls, strict=True):
            if call.per_graph and self._graph_values_stand:
                continue
            status = function(None, arguments, count, result)
            if status:
                self._tvm.check(status, call.function)
        self._graph_values_stand = True
        return [
            output.reshape(output.shape[0], *shape)
            for output, shape in zip(outputs, self._plan.output_shapes, strict=True)
        ]

    def _bind(self, prepared: PreparedGraphs) -> None:
        """Lay the buffers out for graphs of this size and point the kernels' arguments to them."""
        size = self._size(prepared)
        if size > self._arena.size:
            self._arena = aligned_bytes(size)
        same_sizes = (
            self.prepared is not None
            and self.prepared.num_nodes == prepared.num_nodes
            and self.prepared.edges == prepared.edges
        )
        self.prepared = prepared
        self._graph_values_stand = False
        if same_sizes:
            for name, array in prepared.arrays.items():
                self._views[name].data = address_of(array)
            return
        self.arrays.clear()
        views = self._views = {}
        offset = 0
        for buffer in self._plan.buffers:
            shape = self._shapes[buffer.name] = _shape(buffer, self._plan, prepared)
            address = 0
            if buffer.kind == "constant":
                address = self._constants[buffer.name].ctypes.data
            elif buffer.kind == "workspace":
                length = _bytes(buffer, shape)
                raw = self._arena[offset : offset + length]
                self.arrays[buffer.name] = raw.view(buffer.dtype).reshape(shape)
                address = self._arena.ctypes.data + offset
                offset += round_up(length)
            views[buffer.name] = tvm_abi.tensor_view(buffer.dtype, shape, address)
        for name, array in prepared.arrays.items():
            views[name] = tvm_abi.tensor_view("int32", array.shape, address_of(array))
        self._arguments = []
        self._calls = []
        for call in self._plan.calls:
            packed = tvm_abi.tensor_arguments([views[name] for name in call.arguments])
            self._arguments.append(packed)
            function = self._functions[call.function]
            self._calls.append((function, ctypes.addressof(packed), len(call.arguments)))

    def _point_input(self, name: str, array: NDArray[np.float32]) -> None:
        view = self._views.get(name)
        if view is None:  # an input that no kernel reads
            return
        address = address_of(array) if array.flags.c_contiguous else 0
        if address % self._alignment or address == 0:
            copy = self._copies.get(name)
            if copy is None or copy.shape != array.shape:
                copy = self._copies[name] = aligned_array(array.shape, np.float32)
            np.copyto(copy, array)
            address = address_of(copy)
        view.data = address
        view.shape[0] = array.shape[0]  # edge inputs have the given edges, without added self-loops

    def _size(self, prepared: PreparedGraphs) -> int:
        return sum(
            round_up(_bytes(buffer, _shape(buffer, self._plan, prepared)))
            for buffer in self._plan.buffers
            if buffer.kind == "workspace"
        )


def _shape(buffer: Buffer, plan: Plan, prepared: PreparedGraphs) -> tuple[int, ...]:
    sizes = {f"E:{graph.name}": edges for graph, edges in zip(plan.graphs, prepared.edges, strict=True)}
    sizes["N"] = prepared.num_nodes
    return tuple(sizes[dim] if isinstance(dim, str) else dim for dim in buffer.shape)


def _bytes(buffer: Buffer, shape: tuple[int, ...]) -> int:
    return math.prod(shape) * np.dtype(buffer.dtype).itemsize
