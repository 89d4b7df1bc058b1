"""Runs a compiled library on numpy arrays: no artifact, no checks, nothing kept between calls."""

from __future__ import annotations

import ctypes
import math
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gnnquant.backends.tvm.context import INPUT_ALIGNMENT
from gnnquant.runtime import tvm_abi
from gnnquant.runtime.memory import ALIGNMENT, address_of, aligned_array
from gnnquant.runtime.plan import GRAPH_PADDING
from tests.backends.tvm.oracle import Index

if TYPE_CHECKING:
    from gnnquant.backends.tvm import BuiltModel


class Memory:
    """Where the arrays of a call lie."""

    def array(self, shape: tuple[int, ...], dtype: Any, alignment: int = ALIGNMENT) -> Any:
        """An array with nothing in particular in it."""
        # room for one element: empty arrays need not have an address
        array = aligned_array((max(math.prod(shape), 1),), np.dtype(dtype))
        array.view(np.uint8)[:] = 0xA5
        return array[: math.prod(shape)].reshape(shape)

    def copy(self, array: Any, alignment: int = ALIGNMENT) -> Any:
        """A contiguous copy."""
        copy = self.array(array.shape, array.dtype, alignment)
        np.copyto(copy, array)
        return copy


class Library:
    """The functions of a compiled model."""

    def __init__(self, built: BuiltModel, memory: Memory | None = None) -> None:
        self.memory = memory or Memory()
        self.plan, self.constants = built.plan, built.constants
        self._tvm = tvm_abi.runtime()
        with tempfile.NamedTemporaryFile(suffix=".so") as file:
            Path(file.name).write_bytes(built.library)
            self._library = self._tvm.load_library(file.name)

    def call(self, name: str, *arrays: Any) -> None:
        """Call one function."""
        function = tvm_abi.find_function(self._library, name)
        assert function is not None
        views = [tvm_abi.tensor_view(array.dtype.name, array.shape, address_of(array)) for array in arrays]
        packed = tvm_abi.tensor_arguments(views)
        result = tvm_abi.AnyValue()
        status = function(None, ctypes.addressof(packed), len(views), ctypes.addressof(result))
        self._tvm.check(status, name)

    def run(self, inputs: dict[str, Any], buffers: dict[str, Any] | None = None) -> list[Any]:
        """Call the kernels of the plan, twice; what depends on the index program only the first time.

        Fills ``buffers`` by name.
        """
        index = Index(self.plan, inputs)
        buffers = {} if buffers is None else buffers
        buffers |= self._graph_parts(index)
        for item in self.plan.buffers:
            shape = tuple(index.rows(dim) if isinstance(dim, str) else dim for dim in item.shape)
            if item.kind == "input":
                given = inputs[item.name].reshape(shape)
                buffers[item.name] = self.memory.copy(given, INPUT_ALIGNMENT)
            elif item.kind == "constant":
                buffers[item.name] = self.memory.copy(self.constants[item.name])
            elif item.kind == "index":
                buffers[item.name] = self._padded(index.arrays[item.name])
                assert shape == index.arrays[item.name].shape
            else:
                alignment = INPUT_ALIGNMENT if item.kind == "output" else ALIGNMENT
                buffers[item.name] = self.memory.array(shape, item.dtype, alignment)
        for time in range(2):
            for call in self.plan.calls:
                if not (call.per_graph and time):
                    self.call(call.function, *(buffers[name] for name in call.arguments))
        return [
            buffers[name].reshape(-1 if buffers[name].size else buffers[name].shape[0], *shape)
            for name, shape in zip(self.plan.outputs, self.plan.output_shapes, strict=True)
        ]

    def _graph_parts(self, index: Index) -> dict[str, Any]:
        named = {name for call in self.plan.calls for name in call.arguments}
        threads = self.plan.threads
        parts: dict[str, Any] = {}
        for name, (src, dst, edge_id, destinations) in index.graphs.items():
            indptr = np.concatenate(([0], np.cumsum(np.bincount(dst, minlength=destinations))))
            borders = [destinations * share // threads // 8 * 8 for share in range(threads)]
            arrays = {"indptr": indptr, "partition": np.array([*borders, destinations])}
            found = {part: self.memory.copy(array.astype(np.int32)) for part, array in arrays.items()}
            found |= {"src": self._padded(src), "dst": self._padded(dst), "edge_id": self._padded(edge_id)}
            parts |= {f"{name}.{part}": array for part, array in found.items()}
        return {name: array for name, array in parts.items() if name in named}

    def _padded(self, array: Any) -> Any:
        return self.memory.copy(np.concatenate([array, np.zeros(GRAPH_PADDING)]).astype(np.int32))
