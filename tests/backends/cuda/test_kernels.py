"""Every kernel, run on this processor, against the integer reference, bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gnnquant.backends.reference import ReferenceExecutor
from gnnquant.integer_graph import OPS, IntegerGraph
from gnnquant.runtime import CompiledModel
from gnnquant.runtime.artifact import model_from_payload
from tests.backends.cuda import emulation
from tests.backends.tvm import graphs
from tests.backends.tvm.models import MODELS, SIZES, graph_of


def compare(graph: IntegerGraph, calls: list[dict[str, Any]]) -> None:
    model = model_from_payload(emulation.payload(graph))
    reference = CompiledModel(ReferenceExecutor(graph), graph, {})
    for inputs in calls:
        ours, theirs = (model(**inputs), reference(**inputs))
        if not isinstance(ours, tuple):
            ours, theirs = (ours,), (theirs,)
        for index, (got, wanted) in enumerate(zip(ours, theirs, strict=True)):
            where = f"{graph.outputs[index]} of {[value.shape for value in inputs.values()]}"
            np.testing.assert_array_equal(got, wanted, strict=True, err_msg=where)


@pytest.mark.parametrize("name", MODELS)
def test_kernels_equal_the_reference(name: str, emulated: Path) -> None:
    """No node, no edge, hubs, self-loops; sizes grow, shrink and come back."""
    graph = graph_of(name)
    compare(graph, [graphs.values(graph, *size) for size in (*SIZES, SIZES[2], SIZES[-1])])


def test_these_graphs_have_every_operation() -> None:
    found = {node.op for name in MODELS for node in graph_of(name).nodes}
    assert found == set(OPS)
