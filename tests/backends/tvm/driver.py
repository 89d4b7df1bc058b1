"""Runs a compiled library on numpy arrays: no artifact, no checks, nothing kept between calls."""

from __future__ import annotations

import ctypes
import math
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gnnquant.runtime import tvm_abi
from gnnquant.runtime.memory import address_of, aligned_array, aligned_copy
from gnnquant.runtime.plan import GRAPH_PADDING

if TYPE_CHECKING:
    from gnnquant.backends.tvm import BuiltModel
    from gnnquant.runtime.plan import Plan
    from tests.backends.tvm.oracle import Index


class Library:
    """The functions of a compiled model."""

    def __init__(self, built: BuiltModel) -> None:
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

    def run(self, index: Index, inputs: dict[str, Any], buffers: dict[str, Any] | None = None) -> list[Any]:
        """Call the kernels of the plan, twice; what depends on the index program only the first time.

        Fills ``buffers`` by name.
        """
        buffers = {} if buffers is None else buffers
        buffers |= _graph_parts(self.plan, index)
        for item in self.plan.buffers:
            shape = tuple(index.rows(dim) if isinstance(dim, str) else dim for dim in item.shape)
            if item.kind == "input":
                buffers[item.name] = aligned_copy(inputs[item.name].reshape(shape))
            elif item.kind == "constant":
                buffers[item.name] = aligned_copy(self.constants[item.name])
            elif item.kind == "index":
                buffers[item.name] = _padded(index.arrays[item.name])
                assert shape == index.arrays[item.name].shape
            else:
                # room for one element: empty arrays need not have an address
                array = aligned_array((max(math.prod(shape), 1),), np.dtype(item.dtype))
                array.view(np.uint8)[:] = 0xA5
                buffers[item.name] = array[: math.prod(shape)].reshape(shape)
        for time in range(2):
            for call in self.plan.calls:
                if not (call.per_graph and time):
                    self.call(call.function, *(buffers[name] for name in call.arguments))
        return [
            buffers[name].reshape(-1 if buffers[name].size else buffers[name].shape[0], *shape)
            for name, shape in zip(self.plan.outputs, self.plan.output_shapes, strict=True)
        ]


def _graph_parts(plan: Plan, index: Index) -> dict[str, Any]:
    named = {name for call in plan.calls for name in call.arguments}
    parts: dict[str, Any] = {}
    for name, (src, dst, edge_id, destinations) in index.graphs.items():
        indptr = np.concatenate(([0], np.cumsum(np.bincount(dst, minlength=destinations))))
        borders = [destinations * share // plan.threads // 8 * 8 for share in range(plan.threads)]
        arrays = {"indptr": indptr, "partition": np.array([*borders, destinations])}
        found = {part: aligned_copy(array.astype(np.int32)) for part, array in arrays.items()}
        found |= {"src": _padded(src), "dst": _padded(dst), "edge_id": _padded(edge_id)}
        parts |= {f"{name}.{part}": array for part, array in found.items()}
    return {name: array for name, array in parts.items() if name in named}


def _padded(array: Any) -> Any:
    return aligned_copy(np.concatenate([array, np.zeros(GRAPH_PADDING)]).astype(np.int32))
