"""Runs an integer graph in torch. Integer sums are taken in float64, where they are exact."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from gnnquant.backends.reference.csr import Csr, build_csr
from gnnquant.backends.reference.kernels import KERNELS, QuantizedRows, State

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from gnnquant.integer_graph import IntegerGraph


class ReferenceExecutor:
    """Interpreter of one integer graph.

    Attributes:
        graph: The graph.
    """

    def __init__(self, graph: IntegerGraph) -> None:
        """Verify ``graph`` and decode its weights."""
        graph.verify()
        self.graph = graph
        self._weights = {
            name: (torch.from_numpy(weight.integers), torch.from_numpy(weight.column_scale.copy()))
            for name, weight in graph.weights.items()
        }
        self._constants = {name: torch.from_numpy(a) for name, a in graph.constants.items()}

    def prepare(self, edge_indices: dict[str, NDArray[np.int64]], num_nodes: int) -> dict[str, Csr]:
        """CSR form of every graph node.

        Args:
            edge_indices: int64 [2, E] by input name.
            num_nodes: Number of nodes.

        Raises:
            InputError: If an index is out of range.
        """
        return {
            node.name: build_csr(edge_indices[node.attrs["input"]], num_nodes, node.attrs["loops"])
            for node in self.graph.nodes
            if node.op == "graph"
        }

    def run(
        self, prepared: dict[str, Csr], inputs: dict[str, NDArray[np.float32]], num_nodes: int
    ) -> list[NDArray[np.float32]]:
        """Compute the outputs.

        Args:
            prepared: What :meth:`prepare` returned.
            inputs: float32 arrays by input name.
            num_nodes: Number of nodes.

        Returns:
            float32 arrays [N, ...].
        """
        values = self.evaluate(prepared, inputs, num_nodes)
        results = []
        for name in self.graph.outputs:
            value = values[name]
            assert isinstance(value, torch.Tensor)
            results.append(value.reshape(num_nodes, *self.graph[name].shape).numpy().copy())
        return results

    @torch.no_grad()
    def evaluate(
        self, prepared: dict[str, Csr], inputs: dict[str, NDArray[np.float32]], num_nodes: int
    ) -> dict[str, torch.Tensor | QuantizedRows]:
        """The value of every node but graphs, by name: what was computed on the way."""
        state = State(
            graph=self.graph,
            weights=self._weights,
            constants=self._constants,
            csr=prepared,
            inputs={name: torch.from_numpy(np.array(a)) for name, a in inputs.items()},
            num_nodes=num_nodes,
        )
        values: dict[str, Any] = {}
        for node in self.graph.nodes:
            if node.op != "graph":
                operands = [values.get(name) for name in node.inputs]
                values[node.name] = KERNELS[node.op](state, node, *operands)
        return values
