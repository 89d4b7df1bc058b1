"""A compiled model: checks what a call is given, prepares graphs, runs an executor."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from gnnquant.errors import BackendError, InputError
from gnnquant.runtime import inputs as checks
from gnnquant.runtime.graph import (
    INT32_MAX,
    GraphCache,
    GraphHandle,
    check_range,
    private_copy,
)

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from gnnquant.runtime.artifact import ArtifactPayload
    from gnnquant.runtime.plan import PlanInput

INPUT_KINDS = frozenset({"node", "edge_index", "edge"})


class Executor(Protocol):
    """What runs a compiled model; it must allow concurrent calls of both methods.

    An executor that finds NaN and infinity in some float inputs by itself, raising ``InputError``
    through ``inputs.check_finite``, names them in an attribute ``checks_finite: frozenset[str]``.
    """

    def prepare(self, edge_indices: dict[str, NDArray[np.int64]], num_nodes: int) -> Any:
        """What :meth:`run` needs of the graphs. The arrays are contiguous, in range and private copies."""

    def run(
        self, prepared: Any, inputs: dict[str, NDArray[np.float32]], num_nodes: int
    ) -> list[NDArray[np.float32]]:
        """The outputs, as arrays that no later call writes. Inputs may have any strides."""


class CompiledModel:
    """A model that runs without torch: call it with the inputs of the model it was compiled from.

    torch tensors in, torch tensors out; numpy arrays in, numpy arrays out. Several threads may call
    one model at the same time.

    Args:
        executor: What runs it.
        inputs: Its inputs, in the order of the model's ``forward``.
        output_shapes: Shape of one row of each output.
        info: Facts about it, JSON-able.
        payload: What :meth:`save` writes; None where the target cannot be saved.
    """

    def __init__(
        self,
        executor: Executor,
        inputs: Sequence[PlanInput],
        output_shapes: Sequence[tuple[int, ...]],
        info: dict[str, Any],
        payload: ArtifactPayload | None = None,
    ) -> None:
        self._executor = executor
        self._inputs = tuple(inputs)
        self._output_shapes = tuple(tuple(shape) for shape in output_shapes)
        self._info = dict(info)
        self._payload = payload
        self._cache = GraphCache()
        self._graph_names = tuple(
            item.name for item in inputs if item.kind == "edge_index" and not item.optional
        )
        self._edge_inputs = tuple(item for item in inputs if item.kind == "edge" and not item.optional)
        self._checks_finite: frozenset[str] = getattr(executor, "checks_finite", frozenset())
        for item in self._inputs:
            if item.optional:
                continue
            if item.kind not in INPUT_KINDS:
                raise BackendError(f"input {item.name!r} has the unknown kind {item.kind!r}")
            if item.kind == "edge" and item.edge_index not in self._graph_names:
                raise BackendError(f"input {item.name!r} belongs to no edge_index input")
        self._node_names = [item.name for item in inputs if item.kind == "node" and not item.optional]
        if not self._node_names:
            raise BackendError("a compiled model needs an input with one row per node")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model.

        Returns:
            One float32 array [N, ...], or a tuple of them where the model returns several.

        Raises:
            InputError: An input is wrong; the message says which, how, and what to do.
        """
        graphs: dict[str, NDArray[np.int64] | GraphHandle] = {}
        floats: dict[str, NDArray[np.float32]] = {}
        wants_torch = False
        for item, value in checks.bind(self._inputs, args, kwargs):
            wants_torch = wants_torch or checks.is_torch(value)
            if item.kind == "edge_index":
                graphs[item.name] = self._graph(item.name, value)
            else:
                floats[item.name] = checks.rows_array(item, value)
        num_nodes = self._count_nodes(floats)
        self._check_edge_rows(graphs, floats)
        prepared = self._prepared(graphs, num_nodes)
        self._check_finite(floats)
        if num_nodes == 0:
            outputs = [np.empty((0, *shape), np.float32) for shape in self._output_shapes]
        else:
            outputs = self._executor.run(prepared, floats, num_nodes)
        if wants_torch:
            from_numpy = sys.modules["torch"].from_numpy
            outputs = [from_numpy(output) for output in outputs]
        return outputs[0] if len(outputs) == 1 else tuple(outputs)

    def prepare(self, edge_index: Any, num_nodes: int) -> GraphHandle:
        """Prepare a graph ahead of time.

        Args:
            edge_index: int64 [2, E], as the model takes it.
            num_nodes: Number of nodes of the graph.

        Returns:
            A handle that calls of this model accept in place of ``edge_index``. Calls with it skip
            the comparison with cached graphs.

        Raises:
            InputError: The edges or the number are wrong.
        """
        if not self._graph_names:
            raise InputError("the model has no edge_index input: there is nothing to prepare")
        if isinstance(edge_index, GraphHandle):
            raise InputError("edge_index is a prepared graph already")
        if isinstance(num_nodes, bool) or not isinstance(num_nodes, (int, np.integer)):
            raise InputError(f"num_nodes is {num_nodes!r}: pass the number of nodes, an integer")
        if not 0 <= num_nodes <= INT32_MAX:
            raise InputError(f"num_nodes is {num_nodes}: it must be in 0 .. {INT32_MAX}")
        edges = private_copy(checks.edge_array("edge_index", edge_index))
        num_nodes = int(num_nodes)
        check_range(edges, num_nodes, "edge_index")
        prepared = None
        if len(self._graph_names) == 1 and num_nodes > 0:
            prepared = self._executor.prepare({self._graph_names[0]: edges}, num_nodes)
        return GraphHandle(num_nodes, edges.shape[1], edges, self, prepared)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the model to one file, which ``gnnquant.runtime.load`` reads.

        The file appears under its name only when it is complete.

        Raises:
            BackendError: The target cannot be saved.
        """
        from gnnquant.runtime.artifact import write_artifact

        if self._payload is None:
            target = self._info.get("target", "this target")
            raise BackendError(f"a model for {target} cannot be saved: compile for target='llvm'")
        write_artifact(path, self._payload)

    @staticmethod
    def load(path: str | os.PathLike[str]) -> CompiledModel:
        """Read a model that :meth:`save` wrote: ``gnnquant.runtime.load``."""
        from gnnquant.runtime.artifact import load

        return load(path)

    @property
    def info(self) -> dict[str, Any]:
        """Facts about the model: target, versions, inputs, bits of each site, sizes."""
        return dict(self._info)

    def __repr__(self) -> str:
        """Signature and target."""
        names = ", ".join(f"{item.name}=None" if item.optional else item.name for item in self._inputs)
        target = self._info.get("target", "unknown")
        if isinstance(target, dict):
            target = target.get("mcpu") or target.get("triple")
        return f"CompiledModel({names}; target={target})"

    def __reduce__(self) -> Any:
        """Pickle as an artifact in memory, where the target can be saved."""
        from gnnquant.runtime.artifact import load_bytes, to_bytes

        if self._payload is None:
            raise BackendError("this compiled model cannot be pickled: it cannot be saved")
        return load_bytes, (to_bytes(self._payload),)

    def _graph(self, name: str, value: Any) -> NDArray[np.int64] | GraphHandle:
        if not isinstance(value, GraphHandle):
            return checks.edge_array(name, value)
        if value.owner is not self:
            raise InputError(f"{name} was prepared by another model: prepare it with this one")
        return value

    def _count_nodes(self, floats: dict[str, NDArray[np.float32]]) -> int:
        rows_of, *others = self._node_names
        num_nodes: int = floats[rows_of].shape[0]
        for name in others:
            if floats[name].shape[0] != num_nodes:
                raise InputError(
                    f"{name} has {floats[name].shape[0]} rows, but {rows_of} has {num_nodes}: "
                    "both need one row per node"
                )
        return num_nodes

    def _check_finite(self, floats: dict[str, NDArray[np.float32]]) -> None:
        names = floats.keys() - self._checks_finite
        if names:
            with np.errstate(all="ignore"):
                for name in names:
                    checks.check_finite(name, floats[name])

    def _check_edge_rows(
        self,
        graphs: dict[str, NDArray[np.int64] | GraphHandle],
        floats: dict[str, NDArray[np.float32]],
    ) -> None:
        for item in self._edge_inputs:
            graph = graphs[item.edge_index]
            edges = graph.num_edges if isinstance(graph, GraphHandle) else graph.shape[1]
            rows = floats[item.name].shape[0]
            if rows != edges:
                raise InputError(
                    f"{item.name} has {rows} rows, but {item.edge_index} has {edges} edges: "
                    "one row per edge is needed"
                )

    def _prepared(
        self,
        graphs: dict[str, NDArray[np.int64] | GraphHandle],
        num_nodes: int,
    ) -> Any:
        """What the executor made of ``graphs``; None where there is no node."""
        rows_of = self._node_names[0]
        for name, graph in graphs.items():
            if isinstance(graph, GraphHandle):
                if graph.num_nodes != num_nodes:
                    raise InputError(
                        f"{name} was prepared for {graph.num_nodes} nodes, but {rows_of} has {num_nodes} rows"
                    )
                if graph.prepared is not None:
                    return graph.prepared
        if num_nodes == 0:
            for name, graph in graphs.items():
                if not isinstance(graph, GraphHandle) and graph.shape[1]:
                    raise InputError(f"{name} has {graph.shape[1]} edges, but {rows_of} has no rows")
            return None

        def prepare(edges: tuple[NDArray[np.int64], ...]) -> Any:
            named = dict(zip(graphs, edges, strict=True))
            for name, array in named.items():
                check_range(array, num_nodes, name)
            return self._executor.prepare(named, num_nodes)

        return self._cache.find(tuple(graphs.values()), num_nodes, prepare)
