"""Run a plan with the kernels of a library that TVM compiled."""

from __future__ import annotations

import ctypes
import math
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from gnnquant.errors import ArtifactError, BackendError, InputError
from gnnquant.integer_graph import LOOPS, ONE
from gnnquant.runtime import tvm_abi
from gnnquant.runtime.graph import ADDING, INT32_MAX, partition_rows
from gnnquant.runtime.indexing import ARRAY, EDGE_PARTS, GRAPH, SIZE, check_int32, check_program
from gnnquant.runtime.inputs import INPUT_KINDS, check_finite
from gnnquant.runtime.memory import (
    ALIGNMENT,
    OutputBuffer,
    address_of,
    aligned_array,
    aligned_bytes,
    aligned_copy,
    lay_out,
    padded_rows,
)
from gnnquant.runtime.plan import GRAPH_PADDING
from gnnquant.runtime.trees import check_trees

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from gnnquant.integer_graph import GraphInput
    from gnnquant.runtime.indexing import EdgeList, IndexResults
    from gnnquant.runtime.plan import Buffer, Plan

GRAPH_PARTS = ("indptr", *EDGE_PARTS, "partition")
"""Buffers that the runtime provides for each graph of a plan that a call names."""
ORDER = "order"
"""Another one, of plans for GPUs: see ``gnnquant.runtime.cuda``."""
BUFFER_KINDS = frozenset({"input", "index", "constant", "graph", "workspace", "output"})
DTYPES = frozenset({"bool", "int8", "uint8", "int16", "uint16", "int32", "int64", "float32", "float64"})
"""Element types of buffers."""
MAX_FREE_WORKSPACES = 8


def check_plan(plan: Plan, constants: Mapping[str, NDArray[Any]]) -> None:
    """Check that the names of a plan resolve and that its constants are what it says.

    Raises:
        ArtifactError: Naming what is wrong.
    """
    _need(plan.threads >= 1, "it is for no thread")
    for item in plan.inputs:
        _need(item.kind in INPUT_KINDS, f"input {item.name!r} has the kind {item.kind!r}")
    try:
        kinds = check_program(plan.index, plan.inputs)
        names_of_inputs = [item.name for item in plan.inputs]
        check_trees(plan.parameters, names_of_inputs, plan.result, len(plan.outputs))
    except BackendError as error:
        raise ArtifactError(f"the plan is malformed: {error}") from error
    names = {
        f"{name}.{part}" for name, kind in kinds.items() if kind == GRAPH for part in (*GRAPH_PARTS, ORDER)
    }
    for buffer in plan.buffers:
        _need(buffer.name not in names, f"buffer {buffer.name!r} is defined twice")
        names.add(buffer.name)
        _check_buffer(buffer, kinds)
        if buffer.kind == "input":
            _check_input(buffer, {item.name: item for item in plan.inputs})
        if buffer.kind == "index":
            _need(kinds.get(buffer.name) == ARRAY, f"buffer {buffer.name!r} is no index array")
            _need(buffer.dtype == "int32" and len(buffer.shape) == 1, f"index {buffer.name!r} is no list")
        if buffer.kind == "constant":
            constant = constants.get(buffer.name)
            _need(constant is not None, f"constant {buffer.name!r} is missing")
            found = (constant.dtype.name, constant.shape) if constant is not None else None
            wanted = (buffer.dtype, buffer.shape)
            _need(found == wanted, f"constant {buffer.name!r} is {found} instead of {wanted}")
    for call in plan.calls:
        for argument in call.arguments:
            _need(argument in names, f"{call.function!r} uses the unknown buffer {argument!r}")
    _check_outputs(plan)
    _check_places(plan)
    _check_notes(plan, kinds)


def _check_buffer(buffer: Buffer, kinds: dict[str, str]) -> None:
    _need(buffer.dtype in DTYPES, f"buffer {buffer.name!r} has type {buffer.dtype!r}")
    _need(buffer.kind in BUFFER_KINDS, f"buffer {buffer.name!r} has kind {buffer.kind!r}")
    for dim in buffer.shape:
        if isinstance(dim, str):
            good = dim == ONE or kinds.get(dim) in (SIZE, GRAPH)
        else:
            good = isinstance(dim, int) and dim >= 0
        _need(good, f"buffer {buffer.name!r} has the dimension {dim!r}")


def _check_input(buffer: Buffer, inputs: dict[str, GraphInput]) -> None:
    item = inputs.get(buffer.name)
    if item is None or item.kind not in ("rows", "adjacency"):
        raise ArtifactError(f"the plan is malformed: input buffer {buffer.name!r} is no float input")
    _need(_holds_rows(buffer, item.shape), f"input buffer {buffer.name!r} is {list(buffer.shape)}")


def _check_outputs(plan: Plan) -> None:
    outputs = {buffer.name: buffer for buffer in plan.buffers if buffer.kind == "output"}
    _need(set(plan.outputs) == set(outputs), "its outputs are not its output buffers")
    _need(len(plan.outputs) == len(plan.output_shapes), "outputs and their shapes differ in number")
    for name, shape in zip(plan.outputs, plan.output_shapes, strict=True):
        _need(_holds_rows(outputs[name], shape), f"output {name!r} is {list(outputs[name].shape)}")


def _check_places(plan: Plan) -> None:
    outputs = {buffer.name: buffer for buffer in plan.buffers if buffer.kind == "output"}
    for buffer in plan.buffers:
        what = f"buffer {buffer.name!r} lies at {buffer.offset!r} of {buffer.region!r}"
        _need(isinstance(buffer.offset, int) and buffer.offset >= 0, what)
        if buffer.kind != "workspace":
            _need((buffer.region, buffer.offset) == ("", 0), what)
        elif buffer.in_output:
            output = outputs.get(buffer.region)
            _need(output is not None and output.space == buffer.space, what)
            room = 0 if output is None else output.row_bytes
            _need(buffer.offset + buffer.row_bytes <= room, what)
        elif not buffer.space:
            _need(buffer.offset % ALIGNMENT == 0, what)


def _check_notes(plan: Plan, kinds: dict[str, str]) -> None:
    inputs = {item.name for item in plan.inputs}
    used = {name for call in plan.calls for name in call.arguments}
    scales = used & {buffer.name for buffer in plan.buffers if buffer.kind == "workspace"}
    for name, scale in plan.notes.get("finite", {}).items():
        _need(name in inputs and scale in scales, f"it looks for NaN of {name!r} in {scale!r}")
    for name, most in plan.notes.get("max_rows", {}).items():
        known = name == ONE or kinds.get(name) in (SIZE, GRAPH)
        _need(known and isinstance(most, int), f"it limits the rows of {name!r} to {most!r}")
    for index, rows, lowest in plan.notes.get("reads", []):
        graph, _, part = index.rpartition(".")
        known = kinds.get(index) == ARRAY or (kinds.get(graph) == GRAPH and part in EDGE_PARTS)
        known = known and (rows == ONE or kinds.get(rows) in (SIZE, GRAPH) or isinstance(rows, int))
        _need(known and lowest in (0, -1), f"it reads {rows!r} by {index!r}")


def _holds_rows(buffer: Buffer, shape: tuple[int, ...]) -> bool:
    """Whether ``buffer`` holds float rows of ``shape``, one for each element of a space."""
    columns = [dim for dim in buffer.shape[1:] if isinstance(dim, int)]
    good = buffer.dtype == "float32" and len(buffer.shape) == len(columns) + 1
    return good and math.prod(columns) == math.prod(shape)


def _need(condition: bool, message: str) -> None:
    if not condition:
        raise ArtifactError(f"the plan is malformed: {message}")


@dataclass(frozen=True, eq=False)
class Prepared:
    """What the kernels read of the integers of one call.

    Attributes:
        sizes: Rows of every space.
        arrays: Parts of graphs, by ``<graph>.<part>``, and index arrays; those with an entry per edge or
            row are padded.
        layout: Equal for calls whose buffers have the same shapes.
        kept: What the kernels have computed of the graphs, by buffer of the kind ``"graph"``.
        starts: Where each workspace buffer of such a call starts in one piece of memory.
        size: Bytes of that.
    """

    sizes: dict[str, int]
    arrays: dict[str, NDArray[np.int32]]
    layout: tuple[Any, ...]
    kept: dict[str, NDArray[Any]]
    starts: dict[str, int]
    size: int


class TvmExecutor:
    """Runs a plan; see ``gnnquant.runtime.model.Executor``.

    ``plan.notes`` may hold ``"finite"``: ``{input: buffer}`` where the float32 workspace ``buffer``
    holds a NaN or an infinity whenever ``input`` does (scales of rows, say). The executor then
    looks at that buffer once it is written in place of reading the whole input before the run.
    ``"input_alignment"`` is the alignment in bytes that kernels need of inputs (64 by default);
    inputs that lack it are copied. ``"max_rows"`` holds the most rows of some spaces, and ``"reads"``
    lists ``[index, space or number, lowest]`` for every index array by which kernels read rows of a
    space or of a table: its entries must be in ``lowest .. rows - 1``. The index program sees to that;
    it is made sure of again here, because compiled code cannot.

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
        self._spaces = tuple(
            dict.fromkeys(dim for buffer in plan.buffers for dim in buffer.shape if isinstance(dim, str))
        )
        used = {argument for call in plan.calls for argument in call.arguments}
        self._parts = {
            node.name: {part for part in GRAPH_PARTS if f"{node.name}.{part}" in used}
            for node in plan.index
            if node.op == "graph"
        }
        self._parts = {name: parts for name, parts in self._parts.items() if parts or name in self._spaces}
        if self._parts:
            self._count = self._function("graph_count")
            self._fill = self._function("graph_fill")
        self._constants = {
            buffer.name: aligned_copy(constants[buffer.name])
            for buffer in plan.buffers
            if buffer.kind == "constant"
        }
        self.checks_finite = frozenset(plan.notes.get("finite", {}))
        self._alignment = int(plan.notes.get("input_alignment", ALIGNMENT))
        self._of_features = feature_buffers(plan)
        self._lock = threading.Lock()
        self._free: list[_Workspace] = []

    def prepare(self, index: IndexResults) -> Prepared:
        """CSR forms of the plan's graphs, its index arrays and what follows from them, as kernels read it."""
        if self._pooled:
            tvm_abi.use_threads(self._plan.threads)
        sizes = {ONE: 1, **index.sizes}
        arrays: dict[str, NDArray[np.int32]] = {}
        for name, parts in self._parts.items():
            graph = self._csr(index.graphs[name], parts)
            sizes[name] = int(graph["indptr"][-1])
            arrays |= {f"{name}.{part}": graph[part] for part in GRAPH_PARTS if part in parts}
        self._check_sizes(index, sizes)
        for buffer in self._plan.buffers:
            if buffer.kind == "index":
                array, (rows,) = index.arrays[buffer.name], _shape(buffer, sizes)
                if array.size != rows:
                    raise BackendError(f"index {buffer.name!r} has {array.size} entries for {rows} rows")
                check_int32(buffer.name, array)
                arrays[buffer.name] = _padded(array)
        layout = (
            tuple(sizes[space] for space in self._spaces),
            tuple(array.shape for array in arrays.values()),
        )
        kept = {
            buffer.name: aligned_array(_shape(buffer, sizes), buffer.dtype)
            for buffer in self._plan.buffers
            if buffer.kind == "graph"
        }
        prepared = Prepared(sizes, arrays, layout, kept, *lay_out(self._plan.buffers, sizes))
        if kept:
            # in memory of its own, which is let go: calls need a workspace, handles do not
            self._new_workspace().keep(prepared)
        return prepared

    @property
    def prepares_features(self) -> bool:
        """Whether the float input is quantized by calls of its own."""
        return any(call.per_features for call in self._plan.calls)

    def features(self, array: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
        """The codes and scales of the float input [rows, ...], as :meth:`run` takes them, by buffer."""
        if self._pooled:
            tvm_abi.use_threads(self._plan.threads)
        buffers = {buffer.name: buffer for buffer in self._plan.buffers}
        kept: dict[str, NDArray[Any]] = {}
        for call in self._plan.calls:
            if not call.per_features:
                continue
            arrays = []
            for name in call.arguments:
                buffer = buffers[name]
                shape = tuple(dim if isinstance(dim, int) else array.shape[0] for dim in buffer.shape)
                if buffer.kind == "input":
                    arrays.append(aligned_copy(array).reshape(shape))
                elif buffer.kind == "constant":
                    arrays.append(self._constants[name])
                else:
                    arrays.append(aligned_array(shape, buffer.dtype))
                    if name in self._of_features:
                        kept[name] = arrays[-1]
            self._call(call.function, self._functions[call.function], *arrays)
        return kept

    def run(
        self,
        prepared: Prepared,
        inputs: dict[str, NDArray[np.float32]],
        features: dict[str, NDArray[Any]] | None = None,
    ) -> list[NDArray[np.float32]]:
        """Call the kernels in order; with ``features`` without those that quantize the input."""
        if self._pooled:
            tvm_abi.use_threads(self._plan.threads)
        workspace = self._acquire(prepared)
        try:
            return workspace.run(prepared, inputs, features)
        finally:
            with self._lock:
                self._free.append(workspace)
                del self._free[:-MAX_FREE_WORKSPACES]

    def _csr(self, graph: EdgeList, parts: set[str]) -> dict[str, NDArray[np.int32]]:
        """``graph`` by destination, sorted by the library's kernels."""
        edges = graph.edges
        if not edges.flags.c_contiguous or address_of(edges) % ALIGNMENT:
            edges = aligned_copy(edges)
        mode = aligned_array((1,), np.int32)
        mode[0] = LOOPS.index(graph.loops)
        indptr = aligned_array((graph.destinations + 1,), np.int32)
        self._call("graph_count", self._count, edges, indptr, mode)
        count = int(indptr[-1]) + GRAPH_PADDING
        src, edge_id = (aligned_array((count,), np.int32) for _ in range(2))
        cursor = aligned_array((graph.destinations,), np.int32)
        self._call("graph_fill", self._fill, edges, indptr, src, edge_id, cursor, mode)
        found = {"indptr": indptr, "src": src, "edge_id": edge_id}
        if "dst" in parts:
            found["dst"] = _padded(np.repeat(np.arange(graph.destinations), np.diff(indptr)))
        if "partition" in parts:
            found["partition"] = aligned_copy(partition_rows(indptr, self._plan.threads))
        return found

    def _check_sizes(self, index: IndexResults, sizes: dict[str, int]) -> None:
        """Refuse what is beyond the 32-bit offsets of the kernels, and reads out of bounds."""
        limits = self._plan.notes.get("max_rows", {})
        for space in self._spaces:
            most = min(limits.get(space, INT32_MAX), INT32_MAX)
            if sizes[space] > most:
                of = next((node.attrs.get("input") for node in self._plan.index if node.name == space), None)
                raise InputError(
                    f"{of or space} has {sizes[space]} rows or edges, self-loops included: this model takes "
                    f"at most {most}"
                )
        check_reads(self._plan, index, sizes)

    def _acquire(self, prepared: Prepared) -> _Workspace:
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
        return self._new_workspace()

    def _new_workspace(self) -> _Workspace:
        return _Workspace(
            self._plan,
            self._functions,
            self._constants,
            self._alignment,
            self._tvm,
            of_features=self._of_features,
        )

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
        *,
        of_features: set[str],
    ) -> None:
        self.prepared: Prepared | None = None
        self._plan = plan
        self._functions = functions
        self._constants = constants
        self._alignment = alignment
        self._tvm = tvm
        self._buffers = {buffer.name: buffer for buffer in plan.buffers if buffer.kind != "index"}
        self._of_features = of_features
        kept = {buffer.name for buffer in plan.buffers if buffer.kind == "graph"}
        self._keeping = {call.function for call in plan.calls if call.per_graph and kept & {*call.arguments}}
        self._scales = _by_call(plan, plan.notes.get("finite", {}))
        self._arena = aligned_bytes(0)
        self._starts: dict[str, int] = {}
        self._in_outputs: dict[str, tuple[str, int]] = {}
        self._rows: dict[str, int] = {}
        self._views: dict[str, tvm_abi.TensorView] = {}
        self._arguments: list[Any] = []
        self._calls: list[tuple[Callable[..., int], int, int]] = []
        self._graph_values_stand = False
        self._copies: dict[str, NDArray[np.float32]] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._outputs = {name: OutputBuffer() for name in plan.outputs}
        self._result = tvm_abi.AnyValue()
        self._result_address = ctypes.addressof(self._result)

    def fits(self, prepared: Prepared) -> bool:
        """Whether the memory is large enough for graphs of this size."""
        return prepared.size <= self._arena.size

    def keep(self, prepared: Prepared) -> None:
        """Compute what depends on the graphs alone, ``prepared.kept`` too."""
        self._bind(prepared)
        self._take_outputs()
        for call, (function, arguments, count) in zip(self._plan.calls, self._calls, strict=True):
            if call.per_graph and (status := function(None, arguments, count, self._result_address)):
                self._tvm.check(status, call.function)

    def run(
        self,
        prepared: Prepared,
        inputs: dict[str, NDArray[np.float32]],
        features: dict[str, NDArray[Any]] | None = None,
    ) -> list[NDArray[np.float32]]:
        """Call the kernels in order."""
        if prepared is not self.prepared:
            self._bind(prepared)
        outputs = self._take_outputs()
        for name in self._of_features:
            self._views[name].data = address_of(features[name] if features else self.array(name))
        for name, array in inputs.items():
            self._point_input(name, array)
        result = self._result_address
        planned = zip(self._plan.calls, self._calls, self._scales, strict=True)
        for call, (function, arguments, count), scales in planned:
            stands = call.per_graph and (self._graph_values_stand or call.function in self._keeping)
            if stands or (features and call.per_features):
                continue
            status = function(None, arguments, count, result)
            if status:
                self._tvm.check(status, call.function)
            for name, scale in scales:
                if name in inputs and not np.isfinite(self.array(scale)).all():
                    with np.errstate(all="ignore"):
                        check_finite(name, inputs[name])
        self._graph_values_stand = True
        return outputs

    def array(self, name: str) -> NDArray[Any]:
        """A workspace buffer, as it is now."""
        buffer, shape = self._buffers[name], self._shapes[name]
        if name in self._starts:
            return np.ndarray(shape, buffer.dtype, buffer=self._arena, offset=self._starts[name])
        region, start = self._in_outputs[name]
        return self._outputs[region].view(shape, buffer.dtype, start)

    def _take_outputs(self) -> list[NDArray[np.float32]]:
        """Arrays for the outputs, to which kernels are pointed, and for what lies in them at first."""
        found, moved = [], False
        for (name, memory), shape in zip(self._outputs.items(), self._plan.output_shapes, strict=True):
            output, address = memory.take(self._shapes[name], self._rows[name])
            view = self._views[name]
            if view.data != address:
                view.data, moved = address, True
            found.append(output.reshape(output.shape[:1] + shape))
        if moved:
            for name, (output_name, start) in self._in_outputs.items():
                self._views[name].data = self._views[output_name].data + start
        return found

    def _bind(self, prepared: Prepared) -> None:
        """Lay the buffers out for graphs of this size and point the kernels' arguments to them."""
        self._starts = prepared.starts
        if prepared.size > self._arena.size:
            self._arena = aligned_bytes(prepared.size)
        same_layout = self.prepared is not None and self.prepared.layout == prepared.layout
        self.prepared = prepared
        self._graph_values_stand = False
        if same_layout:
            for name, array in (prepared.arrays | prepared.kept).items():
                self._views[name].data = address_of(array)
            return
        views = self._views = {}
        self._in_outputs = {}
        for name, buffer in self._buffers.items():
            shape = self._shapes[name] = _shape(buffer, prepared.sizes)
            rows = padded_rows(buffer, prepared.sizes)
            if buffer.kind == "output":
                self._rows[name] = max(shape[0], rows)
            elif buffer.in_output:
                self._in_outputs[name] = buffer.region, buffer.offset * rows
            views[name] = tvm_abi.tensor_view(buffer.dtype, shape, self._fixed_address(name))
        for name, array in (prepared.arrays | prepared.kept).items():
            views[name] = tvm_abi.tensor_view(array.dtype.name, array.shape, address_of(array))
        self._arguments = []
        self._calls = []
        for call in self._plan.calls:
            packed = tvm_abi.tensor_arguments([views[name] for name in call.arguments])
            self._arguments.append(packed)
            function = self._functions[call.function]
            self._calls.append((function, ctypes.addressof(packed), len(call.arguments)))

    def _fixed_address(self, name: str) -> int:
        """Where a buffer lies in every run; 0 where runs differ."""
        if name in self._constants:
            return self._constants[name].ctypes.data
        return self._arena.ctypes.data + self._starts[name] if name in self._starts else 0

    def _point_input(self, name: str, array: NDArray[np.float32]) -> None:
        view = self._views.get(name)
        if view is None:  # an input that no kernel reads
            return
        if array.shape[0] != self._shapes[name][0]:
            raise BackendError(
                f"{name} has {array.shape[0]} rows, where the plan has {self._shapes[name][0]}"
            )
        address = address_of(array) if array.flags.c_contiguous else 0
        if address % self._alignment or address == 0:
            copy = self._copies.get(name)
            if copy is None or copy.shape != array.shape:
                copy = self._copies[name] = aligned_array(array.shape, np.float32)
            np.copyto(copy, array)
            address = address_of(copy)
        view.data = address


def _by_call(plan: Plan, scales: Mapping[str, str]) -> list[list[tuple[str, str]]]:
    """For each call, the entries of ``scales`` whose buffers it writes: no call before it names them."""
    left = dict(scales)
    return [
        [(name, left.pop(name)) for name, scale in scales.items() if name in left and scale in call.arguments]
        for call in plan.calls
    ]


def feature_buffers(plan: Plan) -> set[str]:
    """Workspace buffers with the rows of the float input that its own calls write."""
    spaced = {
        buffer.name
        for buffer in plan.buffers
        if buffer.kind == "workspace" and any(isinstance(dim, str) for dim in buffer.shape)
    }
    return {name for call in plan.calls if call.per_features for name in call.arguments if name in spaced}


def check_reads(plan: Plan, index: IndexResults, sizes: Mapping[str, int]) -> None:
    """Make sure that kernels read rows that exist, by every index array of ``plan.notes["reads"]``.

    Raises:
        BackendError: With the index that leads beyond them: the index program should have seen it.
    """
    for name, rows, lowest in plan.notes.get("reads", []):
        _check_read(index, name, sizes[rows] if isinstance(rows, str) else rows, lowest)


def _check_read(index: IndexResults, name: str, rows: int, lowest: int) -> None:
    """Make sure that the entries of an index array are in ``lowest .. rows - 1``."""
    graph, _, part = name.rpartition(".")
    if name in index.arrays:
        array = index.arrays[name]
        span = (int(array.min()), int(array.max())) if array.size else (0, -1)
    elif part == "edge_id":
        span = (-1 if index.graphs[graph].loops in ADDING else 0, index.graphs[graph].edges.shape[1] - 1)
    else:
        ends = index.graphs[graph]
        span = (0, (ends.sources if part == "src" else ends.destinations) - 1)
        if ends.edges.shape[1] == 0 and ends.loops not in ADDING:
            return
    if span[0] < lowest or span[1] >= rows:
        raise BackendError(
            f"the compiled code would read the rows {span[0]} .. {span[1]} of {rows} by {name!r}: please "
            "report the model"
        )


def _padded(array: NDArray[Any]) -> NDArray[np.int32]:
    """``array`` as int32, with ``GRAPH_PADDING`` zeros at its end."""
    padded: NDArray[np.int32] = aligned_array((array.size + GRAPH_PADDING,), np.int32)
    padded[: array.size] = array
    padded[array.size :] = 0
    return padded


def _shape(buffer: Buffer, sizes: dict[str, int]) -> tuple[int, ...]:
    return tuple(sizes[dim] if isinstance(dim, str) else dim for dim in buffer.shape)
