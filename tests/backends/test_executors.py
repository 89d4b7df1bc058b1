"""Compiled plans through the whole runtime, on graphs that no converter makes so small."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from gnnquant.backends.reference import ReferenceExecutor
from gnnquant.errors import InputError
from gnnquant.runtime import CompiledModel
from gnnquant.runtime.artifact import ArtifactPayload, load_bytes, model_from_payload, to_bytes
from tests.backends.tvm import graphs
from tests.backends.tvm.models import SIZES, THREADS, built, graph_of

NAMES = [
    "gcn-weighted",
    "gcn-tensor-8",
    "gcn-tensor-replace",
    "gatv2-8",
    "edges-8",
    "bipartite",
    "pooled",
    "products-4",
    "floats-max",
]


def compiled(name: str) -> CompiledModel:
    found = built(name, THREADS.get(name, 1))
    metadata = {"target": found.target}
    return model_from_payload(ArtifactPayload(found.plan, found.constants, found.library, metadata))


def outputs(model: CompiledModel, inputs: dict[str, Any]) -> tuple[np.ndarray, ...]:
    found = model(**inputs)
    return found if isinstance(found, tuple) else (found,)


@pytest.mark.parametrize("name", NAMES)
def test_compiled_equals_reference(name: str) -> None:
    """Every size may be 0, and sizes may grow, shrink and come back."""
    graph = graph_of(name)
    reference = CompiledModel(ReferenceExecutor(graph), graph, {})
    model = compiled(name)
    loaded = load_bytes(to_bytes(model._payload))
    for nodes, edges in (*SIZES, *SIZES[::-1], SIZES[-1]):
        inputs = graphs.values(graph, nodes, edges)
        wanted = outputs(reference, inputs)
        for candidate in (model, loaded):
            for got, value in zip(outputs(candidate, inputs), wanted, strict=True):
                np.testing.assert_array_equal(got, value, strict=True)


def test_values_of_indices_follow_the_indices() -> None:
    """Groups of other rows between two calls of one size: index arrays and graphs are the new ones."""
    graph = graph_of("pooled")
    reference = CompiledModel(ReferenceExecutor(graph), graph, {})
    model = compiled("pooled")
    inputs = graphs.values(graph, 40, 200)
    (name,) = [item.name for item in graph.inputs if item.kind == "index"]
    for step in range(4):
        for got, wanted in zip(outputs(model, inputs), outputs(reference, inputs), strict=True):
            np.testing.assert_array_equal(got, wanted)
        inputs[name][step] = inputs[name][-1]
    inputs[name][7] = -1
    with pytest.raises(InputError, match=r"\[7\] = -1 is negative"):
        model(**inputs)


def test_what_follows_from_a_graph_is_computed_once() -> None:
    """All workspaces read what belongs to the prepared graph, and graphs come and go."""
    model, graph = compiled("gcn-tensor-8"), graph_of("gcn-tensor-8")
    reference = CompiledModel(ReferenceExecutor(graph), graph, {})
    executor: Any = model._executor
    counts = Counter[str]()

    def counted(name: str, function: Any) -> Any:
        def call(*arguments: Any) -> int:
            counts[name] += 1
            status: int = function(*arguments)
            return status

        return call

    for name, function in executor._functions.items():
        executor._functions[name] = counted(name, function)
    given = [graphs.values(graph, nodes, edges) for nodes, edges in ((40, 200), (41, 200), (40, 200))]
    given[2]["edge_index"] = given[2]["edge_index"][:, ::-1].copy() % 17
    handles = [model.prepare(inputs["edge_index"], len(inputs["x"])) for inputs in given]
    kept = {buffer.name for buffer in executor._plan.buffers if buffer.kind == "graph"}
    (rounds,) = (
        call.function for call in executor._plan.calls if call.per_graph and kept & {*call.arguments}
    )
    with ThreadPoolExecutor(4) as pool:
        turns = [0, 1, 2, 1, 0, 2] * 4
        results = list(pool.map(lambda i: outputs(model, {**given[i], "edge_index": handles[i]}), turns))
    assert counts[rounds] == len(handles)
    for turn, result in zip(turns, results, strict=True):
        for got, wanted in zip(result, outputs(reference, given[turn]), strict=True):
            np.testing.assert_array_equal(got, wanted, strict=True)
