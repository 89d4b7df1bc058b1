"""Runs an integer graph in torch. Integer sums are taken in float64, where they are exact."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from gnnquant.backends.reference.csr import Csr, build_csr
from gnnquant.backends.reference.kernels import KERNELS, QuantizedRows, State
from gnnquant.integer_graph import ONE

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from gnnquant.integer_graph import IntegerGraph
    from gnnquant.runtime.indexing import IndexResults


@dataclass(frozen=True, eq=False)
class Prepared:
    """Graphs, indices and the number of rows of every space."""

    index: IndexResults
    csr: dict[str, Csr]
    rows: dict[str, int]


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

    def prepare(self, index: IndexResults) -> Prepared:
        """CSR form of every graph, and the rows of every space."""
        csr = {name: build_csr(graph) for name, graph in index.graphs.items()}
        rows = {ONE: 1, **index.sizes, **{name: graph.source.numel() for name, graph in csr.items()}}
        return Prepared(index, csr, rows)

    def run(self, prepared: Prepared, inputs: dict[str, NDArray[np.float32]]) -> list[NDArray[np.float32]]:
        """Compute the outputs.

        Args:
            prepared: What :meth:`prepare` returned.
            inputs: float32 arrays by input name.

        Returns:
            float32 arrays [rows, ...].
        """
        values = self.evaluate(prepared, inputs)
        results = []
        for name in self.graph.outputs:
            value = values[name]
            assert isinstance(value, torch.Tensor)
            results.append(value.numpy().copy())
        return results

    @torch.no_grad()
    def evaluate(
        self, prepared: Prepared, inputs: dict[str, NDArray[np.float32]]
    ) -> dict[str, torch.Tensor | QuantizedRows]:
        """The value of every node, by name: what was computed on the way."""
        state = State(
            weights=self._weights,
            constants=self._constants,
            csr=prepared.csr,
            index=prepared.index,
            rows=prepared.rows,
            inputs={name: torch.from_numpy(np.array(a)) for name, a in inputs.items()},
        )
        values: dict[str, Any] = {}
        for node in self.graph.nodes:
            with np.errstate(all="ignore"):
                value = KERNELS[node.op](state, node, *[values[name] for name in node.inputs])
            if isinstance(value, torch.Tensor):
                # Rows of ``ONE`` repeat; what a kernel returns flat gets its row shape.
                value = value.reshape(value.size(0), *node.shape).expand(state.rows[node.rows], *node.shape)
            values[node.name] = value
        return values
