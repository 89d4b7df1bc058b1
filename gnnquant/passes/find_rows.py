"""Which axis of every tensor holds its rows: the one whose length changes with the graph."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from gnnquant.passes.base import Pass, PassResult
from gnnquant.tracing.check import evaluate
from gnnquant.tracing.merge import path_graph
from gnnquant.tracing.module import TracedModule

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import fx


@dataclass(frozen=True)
class FindRows(Pass):
    """Note in ``meta["row_axis"]`` where the rows of a tensor stand, wherever that is not the first axis.

    A quantizer "per row" has one scale per node (or edge, or graph). ``x.unsqueeze(0)`` and a stack of
    several results have their rows second; shapes tell, compared between two graphs of different sizes.

    Attributes:
        graphs: Arguments by parameter name of two graphs that differ in size.
    """

    name: ClassVar[str] = "find-rows"
    graphs: tuple[Mapping[str, Any], ...] = ()

    def run(self, module: fx.GraphModule) -> PassResult:
        """Compare the shapes of every tensor on the graphs; the graph stays as it is."""
        assert isinstance(module, TracedModule)
        first, second = (_shapes(module, arguments) for arguments in self.graphs)
        changed = 0
        for node in module.graph.nodes:
            pairs = zip(first.get(node.name, ()), second.get(node.name, ()), strict=True)
            axis = next((axis for axis, (one, other) in enumerate(pairs) if one != other), 0)
            if axis:
                node.meta["row_axis"] = axis
                changed += 1
        return PassResult(changed)


def _shapes(module: TracedModule, arguments: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors that ``module`` computes in eval mode, by name of node."""
    graph = path_graph(module.graph, training=False)
    nodes = [node for node in graph.nodes if "shape" in node.meta]
    body = next(node for node in graph.nodes if node.op != "placeholder")
    found = {}
    for node in nodes:
        with graph.inserting_before(body) if node.op == "placeholder" else graph.inserting_after(node):
            found[node.name] = graph.call_function(getattr, (node, "shape"))
    (result,) = (node for node in graph.nodes if node.op == "output")
    result.args = (found,)
    shapes: dict[str, tuple[int, ...]] = evaluate(TracedModule.from_graph(module, graph), arguments)
    return shapes
