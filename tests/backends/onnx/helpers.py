"""Exported models beside the reference."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from gnnquant.backends.onnx.emit import emit_model
from gnnquant.backends.onnx.session import OnnxSession
from gnnquant.backends.reference import ReferenceExecutor
from gnnquant.passes.lowering import lower
from gnnquant.runtime import CompiledModel
from tests import zoo
from tests.parity import converted

if TYPE_CHECKING:
    from onnx import ModelProto

    from gnnquant.integer_graph import IntegerGraph

GRAPHS = [*zoo.GRAPH_SIZES, (300, 2000)]
"""Other sizes than what models were traced with; hubs, self-loops, duplicates, isolated nodes, no edges."""


def reference(graph: IntegerGraph) -> CompiledModel:
    return CompiledModel(ReferenceExecutor(graph), graph, {})


def session(graph: IntegerGraph, opset: int = 25, threads: int | None = 1) -> OnnxSession:
    return OnnxSession(graph, emit_model(graph, opset, {}).SerializeToString(), threads)


@cache
def exported(name: str, bits: int, opset: int) -> tuple[ModelProto, OnnxSession]:
    """A model of the zoo in ONNX."""
    graph = lower(converted(name, bits))
    model = emit_model(graph, opset, {"bits": bits})
    return model, OnnxSession(graph, model.SerializeToString(), 1)


def assert_same_classes(pairs: list[tuple[Any, Any]], bits: int) -> None:
    """Scores of several graphs: the class of 99.9 % of nodes, all numbers within a step, most of them equal.

    A step is the distance of two codes, if the row of scores were quantized to ``bits``: by that much a code
    before the last layer may move a score when it rounds the other way.
    """
    ours, theirs = (np.concatenate([np.asarray(pair[side]) for pair in pairs]) for side in (0, 1))
    assert ours.shape == theirs.shape
    assert (ours.argmax(1) == theirs.argmax(1)).mean() >= 0.999
    close = np.isclose(ours, theirs, 1e-5, 1e-5 * np.abs(theirs).max())
    assert close.mean() >= 0.998
    step = 2 * np.abs(theirs).max(axis=1, keepdims=True) / (2**bits - 1)
    assert (np.abs(ours - theirs) <= step + 1e-6).all()


def random_graphs() -> list[zoo.Graph]:
    return [zoo.random_graph(nodes, edges, seed=nodes + edges) for nodes, edges in GRAPHS]
