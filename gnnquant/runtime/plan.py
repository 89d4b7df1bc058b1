"""The plan: how compiled kernels are called, as plain data that an artifact can store.

A compiled model is a list of kernels called in order on buffers. The plan is JSON-able and knows
nothing of the compiler, so that a runtime in any language can execute it.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from gnnquant.integer_graph import ONE, GraphInput, IndexNode, Parameter

GRAPH_PADDING = 1024
"""Entries appended to every index array (zeros), so that kernels may prefetch ahead."""
ROW_PADDING = 64
"""Memory for the rows of a space has room for a multiple of so many: all that lies in it is then aligned."""


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
            appended), ``"constant"`` (stored in the artifact), ``"graph"`` (written by calls ``per_graph``
            alone, and kept with a prepared graph), ``"workspace"`` or ``"output"``.
        region: Of a workspace buffer, the memory in which it lies: that of all buffers of the same
            :attr:`space`, under the name of the space, or an output's, before that is written.
        offset: Where it starts there: bytes, in a region of rows times their number, which is rounded
            up to :data:`ROW_PADDING`. Buffers may overlap where no call needs both:
            ``gnnquant.backends.placement``.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]
    kind: str
    region: str = ""
    offset: int = 0

    @property
    def space(self) -> str:
        """What its rows are; ``""`` where its size is fixed."""
        first = self.shape[0] if self.shape else ONE
        return first if isinstance(first, str) and first != ONE else ""

    @property
    def in_output(self) -> bool:
        """Whether it lies in the memory of an output."""
        return self.kind == "workspace" and self.region != self.space

    @property
    def row_bytes(self) -> int:
        """Bytes of a row, of all of it where its size is fixed."""
        dims = self.shape[1:] if self.space else self.shape
        return math.prod(1 if dim == ONE else int(dim) for dim in dims) * np.dtype(self.dtype).itemsize


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
                Buffer(
                    item["name"],
                    item["dtype"],
                    tuple(item["shape"]),
                    item["kind"],
                    item["region"],
                    item["offset"],
                )
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
