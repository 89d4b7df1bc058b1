"""Random graphs: exported files in bare ONNX Runtime beside the reference, and beside a loop in numpy."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from onnx.reference import ReferenceEvaluator
from torch import Tensor, nn
from torch_geometric import nn as gnn
from torch_geometric.utils import softmax

import gnnquant
from gnnquant.backends.onnx.emit import emit_model
from gnnquant.passes.lowering import lower
from gnnquant.quantizers.calibration import calibrate
from tests import zoo
from tests.backends.onnx.helpers import assert_same_classes, exported
from tests.parity import reference

FEATURES, CLASSES = 5, 4
OPSETS = {32: 18, 8: 18, 4: 21, 2: 25}


class Aggregate(gnn.MessagePassing):
    """The reduction of neighbours alone, of linear messages or of ones that look at both ends."""

    def __init__(self, reduce: str, *, ends: bool) -> None:
        super().__init__(aggr="sum" if reduce == "softmax" else reduce)
        self.reduce, self.ends = reduce, ends
        self.lin = nn.Linear(FEATURES * (1 + ends), CLASSES)
        self.score = nn.Linear(CLASSES, 1)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return self.propagate(edge_index, x=x if self.ends else self.lin(x))

    def message(self, x_i: Tensor, x_j: Tensor, index: Tensor, ptr: Tensor | None, size_i: int) -> Tensor:
        if self.ends:
            x_j = self.lin(torch.cat([x_i, x_j - x_i], dim=-1)).relu() - 0.25
        if self.reduce == "softmax":
            x_j = x_j * softmax(self.score(x_j), index, ptr, size_i)
        return x_j


def by_hand(model: Aggregate, x: np.ndarray, edge_index: np.ndarray) -> np.ndarray:
    """A loop over destinations in float64; 0 where there is no edge."""
    weight, bias, *score = (p.detach().double().numpy() for p in model.parameters())
    result = np.zeros((len(x), CLASSES))
    for row in range(len(x)):
        found = x[edge_index[0, edge_index[1] == row]].astype(np.float64)
        if not len(found):
            continue
        if model.ends:
            both = np.concatenate([np.broadcast_to(x[row], found.shape), found - x[row]], axis=1)
            found = np.maximum(both @ weight.T + bias, 0) - 0.25
        else:
            found = found @ weight.T + bias
        if model.reduce == "softmax":
            power = found @ score[0].T + score[1]
            power = np.exp(power - power.max())
            result[row] = (found * (power / power.sum())).sum(axis=0)
        else:
            result[row] = getattr(found, model.reduce)(axis=0)
    return result


@cache
def built(reduce: str, ends: bool, bits: int) -> tuple[Aggregate, Any, onnxruntime.InferenceSession]:
    """A model, its integer reference, and its exported file in ONNX Runtime with the settings of a user."""
    torch.manual_seed(0)
    model = Aggregate(reduce, ends=ends).eval()
    traced = tuple(map(torch.from_numpy, graph_of(12, 40, "duplicates", 0)))
    q = calibrate(gnnquant.convert(model, traced, bits=bits), [traced])
    file = emit_model(lower(q), OPSETS[bits], {}).SerializeToString()
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return model, gnnquant.compile(q, target="reference"), session


def graph_of(nodes: int, edges: int, kind: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    edge_index = rng.integers(0, max(nodes, 1), (2, edges if nodes else 0))
    half = edge_index.shape[1] // 2
    if kind == "duplicates":
        edge_index[:, :half] = edge_index[:, half : 2 * half]
    elif kind == "isolated":
        edge_index[1] //= 4
    elif kind == "loops":
        edge_index[1] = edge_index[0]
    elif kind == "hub":
        edge_index[1] = 0
    return rng.standard_normal((nodes, FEATURES)).astype(np.float32), edge_index


GRAPHS = st.builds(
    graph_of,
    st.integers(0, 60),
    st.integers(0, 250),
    st.sampled_from(("random", "duplicates", "isolated", "loops", "hub")),
    st.integers(0, 2**16),
)


@pytest.mark.parametrize("ends", [False, True], ids=["linear", "ends"])
@pytest.mark.parametrize("reduce", ["sum", "mean", "max", "min", "softmax"])
@settings(max_examples=10, deadline=None, derandomize=True, database=None)
@given(graph=GRAPHS)
@example(graph=graph_of(0, 0, "random", 0))
@example(graph=graph_of(7, 0, "random", 0))
def test_random_graphs(reduce: str, ends: bool, graph: tuple[np.ndarray, np.ndarray]) -> None:
    """Duplicates, isolated nodes, no edges, no nodes: FP32 beside the loop, codes beside the reference."""
    x, edge_index = graph
    for bits in OPSETS:
        model, theirs, session = built(reduce, ends, bits)
        (found,) = session.run(None, {"x": x, "edge_index": edge_index})
        wanted = theirs(x, edge_index)
        assert found.shape == wanted.shape == (len(x), CLASSES)
        if not len(x):
            continue
        if bits == 32:
            limit = 1e-5 * max(1.0, np.abs(wanted).max())
            np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=limit)
            np.testing.assert_allclose(found, by_hand(model, x, edge_index), rtol=1e-5, atol=limit)
        else:
            step = 2 * np.abs(wanted).max(axis=1, keepdims=True) / (2**bits - 1)
            assert (np.abs(found - wanted) <= step + 1e-6).all()
            assert np.isclose(found, wanted, 1e-5, 1e-5).mean() >= 0.95


@pytest.mark.parametrize("name", ["gcn", "sage_max", "gat"])
def test_another_implementation_computes_the_same(name: str) -> None:
    """ONNX's own evaluator, which shares no code with ONNX Runtime."""
    model, ours = exported(name, 4, 25)
    evaluator, theirs = ReferenceEvaluator(model), reference(name, 4)
    graphs = [zoo.random_graph(31, 120, seed=3), zoo.random_graph(6, 0)]
    arguments = [(graph.x, graph.edge_index) for graph in graphs]
    with np.errstate(divide="ignore"):  # 1 / 0 of rows of zeros, which a Where drops
        found = [evaluator.run(None, ours.feeds(*args))[0] for args in arguments]
    assert_same_classes(
        [(value, theirs(*args)) for value, args in zip(found, arguments, strict=True)], bits=4
    )
