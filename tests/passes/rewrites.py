"""Small models for the tests of passes, and how a pass is run on them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch_geometric import nn as gnn

from gnnquant.tracing import trace

if TYPE_CHECKING:
    from torch import fx

    from gnnquant.passes.base import Pass, PassResult
    from gnnquant.tracing import TracedModule

NODES, EDGES, FEATURES = 20, 64, 7


def inputs(seed: int = 0) -> tuple[Tensor, Tensor]:
    """Features and edges of a random graph."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(NODES, FEATURES, generator=generator)
    return x, torch.randint(NODES, (2, EDGES), generator=generator)


def edge_features(columns: int = 3) -> Tensor:
    return torch.randn(EDGES, columns, generator=torch.Generator().manual_seed(1))


def rewrite(
    model: nn.Module, example: tuple[Any, ...], *passes: Pass, exact: bool = False
) -> tuple[TracedModule, PassResult]:
    """Trace ``model``, run ``passes``; the numbers must stay. Returns the result of the last pass."""
    torch.manual_seed(0)
    model = model.eval()
    module = trace(model, example)
    with torch.no_grad():
        expected = model(*example)
    result = None
    for step in passes:
        result = step.run(module)
        module.graph.lint()
        module.recompile()
    with torch.no_grad():
        computed = module.eval()(*example)
    if exact:
        assert torch.equal(computed, expected)
    else:
        torch.testing.assert_close(computed, expected, rtol=1e-4, atol=1e-5)
    assert result is not None
    return module, result


def calls(module: fx.GraphModule, target: Any) -> list[fx.Node]:
    """Nodes that call ``target``: a function, a method's name or a module's type."""
    return [
        node
        for node in module.graph.nodes
        if node.target is target
        or (isinstance(target, str) and node.target == target)
        or (
            isinstance(target, type)
            and node.op == "call_module"
            and isinstance(module.get_submodule(str(node.target)), target)
        )
    ]


class Messages(gnn.MessagePassing):
    """A layer whose message is a function given by the test."""

    def __init__(self, message: Any, **options: Any) -> None:
        super().__init__(**options)
        self.function = message

    def forward(self, x: Any, edge_index: Any, **values: Tensor) -> Tensor:
        return self.propagate(edge_index, x=x, **values)

    def message(self, x_i: Tensor, x_j: Tensor) -> Tensor:
        return self.function(x_i, x_j)
