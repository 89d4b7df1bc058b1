"""Builds an integer graph: names, constants, common subexpressions, broadcasting."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from gnnquant.errors import BackendError
from gnnquant.integer_graph import GraphInput, IntegerGraph, Node, PackedWeight, pack_codes
from gnnquant.passes.lowering.values import EdgeIndex, Rows, WeightCodes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor, fx

Operand = Rows | torch.Tensor | float | int


class Emitter:
    """Appends nodes to an :class:`IntegerGraph`; equal nodes are emitted once.

    Attributes:
        graph: The graph so far.
        source: Where the nodes being emitted come from, for errors and dumps.
    """

    def __init__(self, inputs: list[GraphInput]) -> None:
        """Start an empty graph with the given inputs."""
        self.graph = IntegerGraph(inputs=inputs, nodes=[], outputs=[])
        self.source = ""
        self._names: set[str] = set()
        self._emitted: dict[str, Node] = {}
        self._weights: dict[int, tuple[WeightCodes, str]] = {}

    def emit(
        self,
        op: str,
        inputs: Sequence[str] = (),
        shape: Sequence[int] = (),
        rows: str = "node",
        name: str = "",
        **attrs: Any,
    ) -> Node:
        """Append a node, or return the equal one that exists."""
        key = json.dumps([op, list(inputs), list(shape), rows, attrs], sort_keys=True)
        if key not in self._emitted:
            node = Node(
                name=self._unique(name or op),
                op=op,
                inputs=tuple(inputs),
                attrs=attrs,
                shape=tuple(int(size) for size in shape),
                rows=rows,
                source=self.source,
            )
            self.graph.nodes.append(node)
            self._emitted[key] = node
        return self._emitted[key]

    def rows(self, op: str, inputs: Sequence[str], like: Rows, **attrs: Any) -> Rows:
        """Emit ``op`` with the row shape and the rows of ``like``."""
        node = self.emit(op, inputs, like.shape, like.rows, **attrs)
        return Rows(node.name, node.shape, node.rows)

    def csr(self, edge_index: EdgeIndex) -> str:
        """Name of the graph node for ``edge_index``."""
        return self.emit("graph", rows="", input=edge_index.input, loops=edge_index.loops, name="csr").name

    def constant(self, value: Tensor, rows: str = "node", name: str = "constant") -> Rows:
        """A row constant; ``value`` has the shape of a row."""
        array = self.array(value, name)
        node = self.emit("constant", (), value.shape, rows, array=array, name=name)
        return Rows(node.name, node.shape, rows)

    def array(self, value: Tensor, name: str) -> str:
        """Store a float32 constant; equal arrays are stored once."""
        data = np.ascontiguousarray(value.detach().cpu().numpy().astype(np.float32))
        for existing, stored in self.graph.constants.items():
            if stored.shape == data.shape and np.array_equal(stored, data):
                return existing
        name = self._unique(name)
        self.graph.constants[name] = data
        return name

    def weight(self, codes: WeightCodes, name: str) -> str:
        """Store a quantized weight [M, K] as packed codes [K, M]."""
        known = self._weights.get(id(codes))
        if known is not None:
            return known[1]
        zero2, bits = int(codes.quantizer.zero2), codes.quantizer.bits
        unsigned = (codes.codes.t() + zero2 / 2).round().to(torch.uint8).cpu().numpy()
        outputs = unsigned.shape[1]
        scale = codes.scale.detach().reshape(-1).expand(outputs).cpu().numpy().astype(np.float32)
        name = self._unique(name)
        self.graph.weights[name] = PackedWeight(
            bits, zero2, unsigned.shape, pack_codes(unsigned, bits), np.ascontiguousarray(scale)
        )
        self._weights[id(codes)] = codes, name
        return name

    def binary(self, op: str, x: Operand, y: Operand) -> Rows:
        """Elementwise ``op`` of two operands, at least one of them rows."""
        if not isinstance(x, Rows):
            if not isinstance(y, Rows):
                raise BackendError(f"{self.source}: neither operand depends on the inputs")
            swapped = {"add": "add", "mul": "mul", "sub": "rsub"}.get(op)
            scalar = self._scalar(x)
            if scalar is not None and swapped:
                return self.rows(swapped, (y.name,), y, scalar=scalar)
            x = self._as_rows(x, y)
            return self._join(op, x, y)
        scalar = self._scalar(y)
        if scalar is not None:
            return self.rows(op, (x.name,), x, scalar=scalar)
        return self._join(op, x, self._as_rows(y, x))

    def _join(self, op: str, x: Rows, y: Rows) -> Rows:
        if x.rows != y.rows:
            raise BackendError(f"{self.source}: mixes rows of {x.rows!r} and {y.rows!r}")
        try:
            shape = np.broadcast_shapes(x.shape, y.shape)
        except ValueError as error:
            raise BackendError(f"{self.source}: {error}") from error
        if len(x.shape) != len(y.shape):
            raise BackendError(
                f"{self.source}: row shapes {x.shape} and {y.shape} would broadcast across rows"
            )
        node = self.emit(op, (x.name, y.name), shape, x.rows)
        return Rows(node.name, node.shape, node.rows)

    @staticmethod
    def _scalar(value: Operand) -> float | None:
        if isinstance(value, (int, float)):
            return float(np.float32(value))
        if isinstance(value, torch.Tensor) and value.numel() == 1:
            return float(value.detach().to(torch.float32))
        return None

    def _as_rows(self, value: Operand, like: Rows) -> Rows:
        """A constant tensor as a row constant that broadcasts against ``like``."""
        if isinstance(value, Rows):
            return value
        if not isinstance(value, torch.Tensor):
            value = torch.tensor(float(value))
        axes = len(like.shape)
        if value.dim() == axes + 1 and value.size(0) == 1:
            value = value[0]
        if value.dim() > axes:
            raise BackendError(
                f"{self.source}: a constant of shape {tuple(value.shape)} has one row per node, "
                "which fixes the number of nodes"
            )
        value = value.reshape(*[1] * (axes - value.dim()), *value.shape)
        return self.constant(value, like.rows)

    def _unique(self, name: str) -> str:
        candidate, count = name, 1
        while candidate in self._names:
            candidate, count = f"{name}_{count}", count + 1
        self._names.add(candidate)
        return candidate

    def finish(self, outputs: Sequence[Rows]) -> IntegerGraph:
        """Remove what no output needs and check the rest."""
        self.graph.outputs = [output.name for output in outputs]
        live, kept = set(self.graph.outputs), []
        for node in reversed(self.graph.nodes):
            if node.name in live:
                live.update(node.inputs)
                if node.rows:
                    live.add(node.rows)
                kept.append(node)
        self.graph.nodes = kept[::-1]
        arrays = {node.attrs["array"] for node in kept if "array" in node.attrs}
        weights = {node.attrs["weight"] for node in kept if "weight" in node.attrs}
        constants = self.graph.constants
        self.graph.constants = {name: constants[name] for name in constants if name in arrays}
        packed = self.graph.weights
        self.graph.weights = {name: packed[name] for name in packed if name in weights}
        self.graph.verify()
        return self.graph


def describe(node: fx.Node) -> str:
    """How an fx node is called in messages: its module and itself."""
    path = str(node.meta.get("module_path") or "")
    return f"{path}:{node.name}" if path else node.name
