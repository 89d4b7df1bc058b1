"""A compiled model: checks what a call is given, prepares graphs, runs an executor."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from gnnquant.errors import BackendError, InputError
from gnnquant.runtime import inputs as checks
from gnnquant.runtime import trees
from gnnquant.runtime.device import DeviceArray, on_host
from gnnquant.runtime.graph import INT32_MAX, FeatureHandle, GraphCache, GraphHandle
from gnnquant.runtime.indexing import IndexInputs, IndexProgram, IndexResults, tied_inputs
from gnnquant.runtime.memory import aligned_copy

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from gnnquant.integer_graph import GraphInput, IndexNode, Parameter
    from gnnquant.runtime.artifact import ArtifactPayload


class Program(Protocol):
    """What a model needs to know of its graph or plan: how it is called, and the index program."""

    @property
    def inputs(self) -> Sequence[GraphInput]:
        """All tensors and numbers of a call."""

    @property
    def parameters(self) -> Sequence[Parameter]:
        """The parameters of ``forward``."""

    @property
    def index(self) -> Sequence[IndexNode]:
        """The index program."""

    @property
    def outputs(self) -> Sequence[str]:
        """Names of the outputs."""

    @property
    def result(self) -> Any:
        """Tree of the result over positions in ``outputs``."""


class Executor(Protocol):
    """What runs a compiled model; it must allow concurrent calls of both methods.

    An executor that finds NaN and infinity in some float inputs by itself, raising ``InputError``
    through ``inputs.check_finite``, names them in an attribute ``checks_finite: frozenset[str]``.

    One that takes tensors on a GPU names it, as torch does, in an attribute ``gpu: str``. Inputs are then
    arrays of either kind, and ``run(prepared, inputs, on_gpu=True)`` returns ``DeviceArray``.
    """

    def prepare(self, index: IndexResults) -> Any:
        """What :meth:`run` needs of the graphs, indices and sizes of a call."""

    def run(self, prepared: Any, inputs: dict[str, NDArray[np.float32]]) -> list[NDArray[np.float32]]:
        """The outputs [rows, *shape], as arrays that no later call writes. Inputs may have any strides."""


@dataclass
class _Call:
    """The leaves of one call.

    Attributes:
        floats: Float rows by input, wherever they are.
        integers: Integer arrays and masks by input, in the order of the parameters, wherever they are.
        numbers: Sizes of each input, in order: its number of rows, a number or a matrix's extents.
        handle: A prepared graph that was passed.
        features: Prepared features that were passed.
        wants_torch: Whether torch tensors came in.
        on_gpu: Whether some of them are on a GPU: so are the results.
    """

    floats: dict[str, NDArray[np.float32] | DeviceArray] = field(default_factory=dict)
    integers: dict[str, NDArray[Any] | DeviceArray] = field(default_factory=dict)
    numbers: dict[str, tuple[int, ...]] = field(default_factory=dict)
    handle: GraphHandle | None = None
    features: FeatureHandle | None = None
    wants_torch: bool = False
    on_gpu: bool = False


class CompiledModel:
    """A model that runs without torch: call it with the inputs of the model it was compiled from.

    torch tensors in, torch tensors out; numpy arrays in, numpy arrays out. A model for a GPU takes tensors
    there too, and then works on torch's current stream and returns tensors on the GPU. Several threads may
    call one model at the same time.

    Args:
        executor: What runs it.
        program: Its inputs, its index program and the form of its result: a graph or a plan.
        info: Facts about it, JSON-able.
        payload: What :meth:`save` writes; None where the target cannot be saved.
    """

    def __init__(
        self,
        executor: Executor,
        program: Program,
        info: dict[str, Any],
        payload: ArtifactPayload | None = None,
    ) -> None:
        self._executor = executor
        self._inputs = {item.name: item for item in program.inputs}
        self._signature = trees.Signature(program.parameters)
        self._result = program.result
        self._info = dict(info)
        self._payload = payload
        self._cache = GraphCache()
        self._index = IndexProgram(program.index, program.inputs)
        self._gpu: str = getattr(executor, "gpu", "")
        self._checks_finite: frozenset[str] = getattr(executor, "checks_finite", frozenset())
        for item in program.inputs:
            if item.kind not in checks.INPUT_KINDS:
                raise BackendError(f"input {item.name!r} has the unknown kind {item.kind!r}")
        trees.check_trees(program.parameters, list(self._inputs), self._result, len(program.outputs))
        integer = [item for item in program.inputs if item.kind != "rows"]
        self._only_edges = integer[0].name if [item.kind for item in integer] == ["edges"] else None
        # Float inputs have a row for every edge where the index program says so, else for every node.
        ties = tied_inputs(self._index)
        self._per_edge = {
            name
            for name in self._inputs
            if name == self._only_edges or ties.get((name, 0), name) == ties.get((self._only_edges or "", 0))
        }

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model.

        Returns:
            What the original model returns, with float32 arrays [rows, ...] in the place of its tensors.

        Raises:
            InputError: An input is wrong; the message says which, how, and what to do.
        """
        call = self._bind(args, kwargs)
        outputs: list[Any] = self._run(call)
        if call.on_gpu:
            outputs = [output.tensor for output in outputs]
        elif call.wants_torch:
            from_numpy = sys.modules["torch"].from_numpy
            outputs = [from_numpy(output) for output in outputs]
        return trees.assemble(self._result, outputs)

    def prepare(self, edge_index: Any, num_nodes: int) -> GraphHandle:
        """Prepare a graph ahead of time.

        Args:
            edge_index: int64 [2, E], as the model takes it.
            num_nodes: Number of nodes of the graph.

        Returns:
            A handle that calls of this model accept in place of ``edge_index``. Calls with it skip
            the comparison with cached graphs.

        Raises:
            InputError: The edges or the number are wrong, or the model takes other graphs than one
                ``edge_index``.
        """
        name = self._only_edges
        if name is None:
            raise InputError(
                "only a model whose single integer input is one edge_index has graphs to prepare; this one "
                "keeps what it made of the last few graphs, found by their contents: just call it"
            )
        if isinstance(edge_index, GraphHandle):
            raise InputError(f"{name} is a prepared graph already")
        if isinstance(num_nodes, bool) or not isinstance(num_nodes, (int, np.integer)):
            raise InputError(f"num_nodes is {num_nodes!r}: pass the number of nodes, an integer")
        if not 0 <= num_nodes <= INT32_MAX:
            raise InputError(f"num_nodes is {num_nodes}: it must be in 0 .. {INT32_MAX}")
        edges: NDArray[np.int64] = aligned_copy(on_host(checks.edge_array(name, edge_index, self._gpu)))
        numbers: dict[str, tuple[int, ...]] = {
            item: (edges.shape[1] if item in self._per_edge else int(num_nodes),) for item in self._inputs
        }
        prepared = self._executor.prepare(self._index.run(self._index_inputs({name: edges}, numbers)))
        return GraphHandle(int(num_nodes), edges.shape[1], edges, self, numbers, prepared)

    def prepare_features(self, x: Any) -> FeatureHandle:
        """Quantize the float input ahead of time.

        Args:
            x: float32 [rows, ...], as the model takes it.

        Returns:
            A handle that calls of this model accept in its place, any number of them, with any graph. It
            holds codes at the width of the input's quantizer, and no reference to ``x``.

        Raises:
            InputError: The model was compiled without ``prepared_features=True``, or ``x`` is wrong.
        """
        if not getattr(self._executor, "prepares_features", False):
            raise InputError(
                "this model quantizes its input within its first kernel: compile it with "
                "prepared_features=True"
            )
        executor: Any = self._executor
        (item,) = (item for item in self._inputs.values() if item.kind == "rows")
        array = on_host(checks.rows_array(item, x))
        checks.check_finite(item.name, array)
        return FeatureHandle(item.name, array.shape[0], self, checks.is_torch(x), executor.features(array))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the model to one file, which ``gnnquant.runtime.load`` reads.

        The file appears under its name only when it is complete.

        Raises:
            BackendError: The target cannot be saved.
        """
        from gnnquant.runtime.artifact import write_artifact

        if self._payload is None:
            target = self._info.get("target", "this target")
            raise BackendError(f"a model for {target} cannot be saved: compile for target='native'")
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
        target = self._info.get("target", "unknown")
        if isinstance(target, dict):
            target = target.get("mcpu") or target.get("triple") or target.get("kind")
        return f"CompiledModel({self._signature}; target={target})"

    def __reduce__(self) -> Any:
        """Pickle as an artifact in memory, where the target can be saved."""
        from gnnquant.runtime.artifact import load_bytes, to_bytes

        if self._payload is None:
            raise BackendError("this compiled model cannot be pickled: it cannot be saved")
        return load_bytes, (to_bytes(self._payload),)

    def _bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Call:
        """Check the arguments of a call, but for values of indices and floats."""
        call = _Call()
        for name, value in self._signature.bind(args, kwargs):
            item = self._inputs[name]
            call.wants_torch = call.wants_torch or checks.is_torch(value)
            if isinstance(value, FeatureHandle):
                call.numbers[name] = self._features(call, name, value)
            elif item.kind == "rows":
                array = call.floats[name] = checks.rows_array(item, value, self._gpu)
                call.numbers[name] = (array.shape[0],)
            elif item.kind == "edges":
                edges = call.integers[name] = self._edges(call, name, value)
                call.numbers[name] = (edges.shape[1],)
            elif item.kind in ("index", "mask"):
                check = checks.index_array if item.kind == "index" else checks.mask_array
                index = call.integers[name] = check(item, value, self._gpu)
                call.numbers[name] = (index.shape[0],)
            elif item.kind == "size":
                call.numbers[name] = (checks.size_number(name, value),)
            else:
                places, values, extents = checks.adjacency_arrays(item, value)
                call.integers[name], call.floats[name] = places, values
                call.numbers[name] = (values.shape[0], *extents)
        given = (*call.floats.values(), *call.integers.values())
        call.on_gpu = any(isinstance(array, DeviceArray) for array in given)
        return call

    def _features(self, call: _Call, name: str, value: FeatureHandle) -> tuple[int]:
        if value.owner is not self or value.name != name:
            raise InputError(
                f"{name} was prepared by another model or for another input: prepare it with this one"
            )
        call.features = value
        call.wants_torch = call.wants_torch or value.torch
        return (value.num_rows,)

    def _edges(self, call: _Call, name: str, value: Any) -> NDArray[np.int64] | DeviceArray:
        if not isinstance(value, GraphHandle):
            return checks.edge_array(name, value, self._gpu)
        if value.owner is not self:
            raise InputError(f"{name} was prepared by another model: prepare it with this one")
        call.handle = value
        return value.edges

    def _run(self, call: _Call) -> list[Any]:
        prepared = self._prepared(call)
        names = call.floats.keys() - self._checks_finite
        if names:
            with np.errstate(all="ignore"):
                for name in names:
                    checks.check_finite(name, call.floats[name])
        executor: Any = self._executor
        found: list[Any]
        if call.features is not None:
            found = executor.run(prepared, call.floats, call.features.prepared)
        elif call.on_gpu:
            found = executor.run(prepared, call.floats, on_gpu=True)
        else:
            found = executor.run(prepared, call.floats)
        return found

    def _prepared(self, call: _Call) -> Any:
        """What the executor made of the integers and sizes of ``call``."""
        if call.handle is not None:
            if call.handle.numbers == call.numbers:
                return call.handle.prepared
            self._check_handle(call.handle, call)
        names = tuple(call.integers)

        def prepare(arrays: tuple[NDArray[Any], ...]) -> Any:
            named = dict(zip(names, arrays, strict=True))
            return self._executor.prepare(self._index.run(self._index_inputs(named, call.numbers)))

        flat = tuple(number for item in call.numbers.values() for number in item)
        return self._cache.find(tuple(call.integers.values()), flat, prepare)

    def _check_handle(self, handle: GraphHandle, call: _Call) -> None:
        for name, (rows, *_) in call.numbers.items():
            if rows != handle.numbers[name][0] and name not in self._per_edge:
                raise InputError(
                    f"{self._only_edges} was prepared for {handle.num_nodes} nodes, but {name} has "
                    f"{rows} rows"
                )

    def _index_inputs(
        self, arrays: dict[str, NDArray[Any]], numbers: dict[str, tuple[int, ...]]
    ) -> IndexInputs:
        rows, others = {}, {}
        for name, values in numbers.items():
            kind = self._inputs[name].kind
            if kind != "size":
                rows[name] = values[0]
            if kind in ("size", "adjacency"):
                others[name] = values if kind == "size" else values[1:]
        return IndexInputs(rows, arrays, others)
