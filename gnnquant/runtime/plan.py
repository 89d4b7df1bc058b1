"""The plan: how compiled kernels are called, as plain data that an artifact can store.

A compiled model is a list of kernels called in order on buffers. The plan is JSON-able and knows
nothing of the compiler, so that a runtime in any language can execute it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from gnnquant.integer_graph import GraphInput, IndexNode, Parameter

GRAPH_PADDING = 128
"""Entries appended to every index array (zeros), so that kernels may prefetch ahead."""


@dataclass(frozen=True)
class Buffer:
    """A tensor that kernels read or write, contiguous and 64-byte aligned.

    The parts of graphs are buffers too, but are not listed. For every graph of the index program that a
    call names, the runtime provides ``<graph>.indptr`` int32 [destinations + 1]; ``<graph>.src``,
    ``<graph>.dst`` and ``<graph>.edge_id`` int32 [E + GRAPH_PADDING], in CSR order; and
    ``<graph>.partition`` int32 [threads + 1] (first destination of each thread's share, balanced by edges
    plus a cost per row, multiples of 8 except for the last).

    Attributes:
        name: Unique name. An input's buffer has the input's name, an index array's that of its node.
        dtype: numpy name of the element type.
        shape: Dimensions: numbers, and names of spaces (a size, a graph's edges, ``ONE``).
        kind: ``"input"``, ``"index"`` (an array of the index program as int32, with ``GRAPH_PADDING`` zeros
            appended), ``"constant"`` (stored in the artifact), ``"workspace"`` or ``"output"``.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]
    kind: str


@dataclass(frozen=True)
class Call:
    """One kernel call.

    Attributes:
        function: An exported function.
        arguments: Names of its buffers.
        per_graph: What it writes depends on constants and the index program alone, and no other call
            writes it: it need not be repeated while the same buffers serve the same graphs.
        per_features: It quantizes the float input and does nothing else: it can be done ahead of the calls.
    """

    function: str
    arguments: tuple[str, ...]
    per_graph: bool = False
    per_features: bool = False


@dataclass(frozen=True)
class Plan:
    """Everything that executing a compiled model needs besides code and constants.

    Attributes:
        inputs: All tensors and numbers of a call.
        parameters: The parameters of ``forward``, in order.
        index: The index program.
        buffers: All buffers but the graphs'.
        calls: Kernel calls in order.
        outputs: Names of the output buffers (float32).
        output_shapes: Row shape of each output.
        result: Tree of what a call returns, over positions in ``outputs``.
        threads: Threads that the kernels were compiled for.
    """

    inputs: tuple[GraphInput, ...]
    parameters: tuple[Parameter, ...]
    index: tuple[IndexNode, ...]
    buffers: tuple[Buffer, ...]
    calls: tuple[Call, ...]
    outputs: tuple[str, ...]
    output_shapes: tuple[tuple[int, ...], ...]
    result: Any = None
    threads: int = 1
    notes: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """A JSON-able dictionary."""
        return asdict(self)

    @staticmethod
    def from_json(data: dict[str, Any]) -> Plan:
        """Inverse of :meth:`to_json`."""
        return Plan(
            inputs=tuple(
                GraphInput(item["name"], item["kind"], tuple(item["shape"])) for item in data["inputs"]
            ),
            parameters=tuple(Parameter(**item) for item in data["parameters"]),
            index=tuple(
                IndexNode(item["name"], item["op"], tuple(item["inputs"]), item["attrs"])
                for item in data["index"]
            ),
            buffers=tuple(
                Buffer(item["name"], item["dtype"], tuple(item["shape"]), item["kind"])
                for item in data["buffers"]
            ),
            calls=tuple(
                Call(
                    item["function"],
                    tuple(item["arguments"]),
                    bool(item["per_graph"]),
                    bool(item.get("per_features", False)),
                )
                for item in data["calls"]
            ),
            outputs=tuple(data["outputs"]),
            output_shapes=tuple(tuple(shape) for shape in data["output_shapes"]),
            result=data["result"],
            threads=data["threads"],
            notes=data["notes"],
        )
