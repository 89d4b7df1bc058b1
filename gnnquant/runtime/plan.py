"""The plan: how compiled kernels are called, as plain data that an artifact can store.

A compiled model is a list of kernels called in order on buffers. The plan is JSON-able and knows
nothing of the compiler, so that a runtime in any language can execute it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

GRAPH_PADDING = 64
"""Entries appended to ``indices`` and ``edge_id`` (zeros), so that kernels may prefetch ahead."""


@dataclass(frozen=True)
class PlanInput:
    """One input of a call: see ``gnnquant.integer_graph.GraphInput``."""

    name: str
    kind: str
    columns: int = 0
    edge_index: str = ""
    optional: bool = False


@dataclass(frozen=True)
class PlanGraph:
    """A CSR graph derived from an ``edge_index`` input.

    The runtime provides four buffers for it, by destination (rows sorted by destination, stable):
    ``<name>.indptr`` int32 [N + 1], ``<name>.indices`` int32 [E' + GRAPH_PADDING] (source nodes),
    ``<name>.edge_id`` int32 [E' + GRAPH_PADDING] (position in ``edge_index``, -1 for a self-loop
    that was added) and ``<name>.partition`` int32 [threads + 1] (first row of each thread's share,
    balanced by edges plus a cost per row, multiples of 8 except for the last).
    """

    name: str
    edge_index: str
    loops: str


@dataclass(frozen=True)
class Buffer:
    """A tensor that kernels read or write, contiguous and 64-byte aligned.

    Attributes:
        name: Unique name. An input's buffer has the input's name; graph buffers are not listed.
        dtype: numpy name of the element type.
        shape: Dimensions: a number, ``"N"`` (nodes) or ``"E:<graph>"`` (edges of a plan graph).
        kind: ``"input"``, ``"constant"`` (stored in the artifact), ``"workspace"`` or ``"output"``.
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
        per_graph: What it writes depends on the graphs alone, and no other call writes it: it need
            not be repeated while the same buffers serve the same graphs.
    """

    function: str
    arguments: tuple[str, ...]
    per_graph: bool = False


@dataclass(frozen=True)
class Plan:
    """Everything that executing a compiled model needs besides code and constants.

    Attributes:
        inputs: In the order of the model's ``forward``.
        graphs: CSR graphs to prepare.
        buffers: All buffers but the graphs'.
        calls: Kernel calls in order.
        outputs: Names of the output buffers (float32), in the order of the model's outputs.
        output_shapes: Row shape of each output.
        threads: Threads that the kernels were compiled for.
    """

    inputs: tuple[PlanInput, ...]
    graphs: tuple[PlanGraph, ...]
    buffers: tuple[Buffer, ...]
    calls: tuple[Call, ...]
    outputs: tuple[str, ...]
    output_shapes: tuple[tuple[int, ...], ...]
    threads: int = 1
    notes: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """A JSON-able dictionary."""
        return asdict(self)

    @staticmethod
    def from_json(data: dict[str, Any]) -> Plan:
        """Inverse of :meth:`to_json`."""
        return Plan(
            inputs=tuple(PlanInput(**item) for item in data["inputs"]),
            graphs=tuple(PlanGraph(**item) for item in data["graphs"]),
            buffers=tuple(
                Buffer(item["name"], item["dtype"], tuple(item["shape"]), item["kind"])
                for item in data["buffers"]
            ),
            calls=tuple(
                Call(item["function"], tuple(item["arguments"]), bool(item.get("per_graph", False)))
                for item in data["calls"]
            ),
            outputs=tuple(data["outputs"]),
            output_shapes=tuple(tuple(shape) for shape in data["output_shapes"]),
            threads=data["threads"],
            notes=data["notes"],
        )
