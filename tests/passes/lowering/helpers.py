"""Helpers of the lowering tests: lower a model, and compare what comes out with the model."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils import _pytree as pytree

import gnnquant
from gnnquant.integer_graph import EDGE_LEVELS
from gnnquant.passes.lowering import lower
from tests.backends.tvm import graphs
from tests.backends.tvm.oracle import Oracle

if TYPE_CHECKING:
    from torch import nn

    from gnnquant.integer_graph import IntegerGraph

TOLERANCE = 1e-4
"""Of float graphs: another order of summation, and another polynomial for exp."""


def lowered(
    model: nn.Module, *inputs: Any, bits: int = 32, config: gnnquant.QuantConfig | None = None
) -> IntegerGraph:
    """The integer graph of a model, verified; ranges are not needed."""
    torch.manual_seed(0)
    converted = gnnquant.convert(model.eval(), inputs, bits=bits, config=config)
    return lower(converted, require_ranges=False)


def ops(graph: IntegerGraph) -> Counter[str]:
    """How often each operation of the row program occurs."""
    return Counter(node.op for node in graph.nodes)


def index_ops(graph: IntegerGraph) -> Counter[str]:
    """How often each operation of the index program occurs."""
    return Counter(node.op for node in graph.index)


def largest_difference(model: nn.Module, example: tuple[Any, ...], *calls: tuple[Any, ...]) -> float:
    """Between the model and the reference at 32 bits, relative to the largest output."""
    model.eval()
    converted = gnnquant.convert(model, example, bits=32)
    compiled = gnnquant.compile(converted, example, target="reference")
    worst = 0.0
    for inputs in (example, *calls):
        with torch.no_grad():
            wanted = pytree.tree_leaves(model(*inputs))
        found = pytree.tree_leaves(compiled(*inputs))
        assert len(found) == len(wanted)
        for result, expected in zip(found, wanted, strict=True):
            assert tuple(result.shape) == tuple(expected.shape)
            if expected.numel():
                difference = (torch.as_tensor(result) - expected).abs().max()
                worst = max(worst, float(difference / (1 + expected.abs().max())))
    return worst


def assert_rounded_elsewhere(plain: IntegerGraph, factored: IntegerGraph, nodes: int, edges: int) -> None:
    """Both graphs are products in another order: an edge weight may go to the next of its 127 levels."""
    inputs = graphs.values(plain, nodes, edges)
    before, after = (Oracle(graph, inputs).outputs() for graph in (plain, factored))
    for one, other in zip(before, after, strict=True):
        assert np.isfinite(other).all()
        assert np.abs(one - other).max(initial=0) <= np.abs(one).max(initial=0) / EDGE_LEVELS
        assert np.median(np.abs(one - other)) <= 1e-6 * max(np.abs(one).max(initial=0), 1e-9)
