"""An exported model behind the call of the original: ONNX Runtime with the inputs of ``forward``."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import numpy as np

from gnnquant.backends.onnx.naming import output_names
from gnnquant.errors import BackendError
from gnnquant.runtime import inputs as checks
from gnnquant.runtime import trees
from gnnquant.runtime.device import on_host

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from gnnquant.integer_graph import GraphInput, IntegerGraph


class OnnxSession:
    """Runs an exported model as the model itself is called.

    Args:
        graph: What the model was exported from.
        model: The model as bytes, or the path of its file.
        threads: Threads of one operator; ``None``: as ONNX Runtime chooses.

    Raises:
        BackendError: ONNX Runtime is not installed, or does not accept the model.
    """

    def __init__(
        self, graph: IntegerGraph, model: bytes | str | os.PathLike[str], threads: int | None = None
    ) -> None:
        self._graph = graph
        self._signature = trees.Signature(graph.parameters)
        self._inputs = {item.name: item for item in graph.inputs}
        self._session = open_session(model, threads)
        self._names = output_names(graph)

    def feeds(self, *args: Any, **kwargs: Any) -> dict[str, NDArray[Any]]:
        """Arrays by the name of the ONNX input, from the arguments of a call.

        Raises:
            InputError: An argument has the wrong type or shape.
        """
        found: dict[str, NDArray[Any]] = {}
        for name, value in self._signature.bind(args, kwargs):
            found |= _arrays(self._inputs[name], value)
        return {name: np.asarray(array, order="C") for name, array in found.items()}

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> list[NDArray[np.float32]]:
        """The outputs of the ONNX model."""
        found: list[NDArray[np.float32]] = self._session.run(self._names, dict(feeds))
        return found

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the original model returns: torch tensors in, torch tensors out."""
        outputs: list[Any] = self.run(self.feeds(*args, **kwargs))
        given = [value for _, value in self._signature.bind(args, kwargs)]
        if any(map(checks.is_torch, given)):
            outputs = [sys.modules["torch"].from_numpy(output.copy()) for output in outputs]
        return trees.assemble(_without_squeeze(self._graph.result), outputs)


def _arrays(item: GraphInput, value: Any) -> dict[str, NDArray[Any]]:
    """The ONNX inputs of one input of a call."""
    if item.kind == "rows":
        return {item.name: on_host(checks.rows_array(item, value))}
    if item.kind == "edges":
        return {item.name: on_host(checks.edge_array(item.name, value))}
    if item.kind == "index":
        return {item.name: on_host(checks.index_array(item, value))}
    if item.kind == "mask":
        return {item.name: on_host(checks.mask_array(item, value))}
    if item.kind == "size":
        return {item.name: np.asarray(checks.size_number(item.name, value), np.int64)}
    places, values, extents = checks.adjacency_arrays(item, value)
    return {
        f"{item.name}.row": places[0],
        f"{item.name}.col": places[1],
        f"{item.name}.size": np.asarray(extents, np.int64),
        f"{item.name}.values": values,
    }


def _without_squeeze(tree: Any) -> Any:
    """The tree of a result whose outputs lack the axis of one row already."""
    if isinstance(tree, dict):
        return {key: _without_squeeze(value) for key, value in tree.items() if key != "squeeze"}
    return [_without_squeeze(item) for item in tree] if isinstance(tree, list) else tree


def open_session(model: bytes | str | os.PathLike[str], threads: int | None = None) -> Any:
    """An ``onnxruntime.InferenceSession`` on the CPU.

    Raises:
        BackendError: ONNX Runtime is not installed, or does not accept the model.
    """
    runtime = find_runtime()
    if runtime is None:
        raise BackendError("ONNX Runtime is not installed: pip install onnxruntime")
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    if threads is not None:
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
    source = model if isinstance(model, (bytes, str)) else str(model)
    try:
        return runtime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exceptions have no common base
        words = " ".join(str(error).split())
        raise BackendError(f"ONNX Runtime does not accept the model: {words}") from error


def find_runtime() -> Any:
    """The module ``onnxruntime``, or None where it is not installed."""
    try:
        import onnxruntime
    except ImportError:
        return None
    return onnxruntime
