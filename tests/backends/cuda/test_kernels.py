"""Every kernel, run on this processor, against the integer reference, bit for bit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from gnnquant.backends.reference import ReferenceExecutor
from gnnquant.errors import BackendError
from gnnquant.integer_graph import OPS, IntegerGraph
from gnnquant.runtime import CompiledModel
from gnnquant.runtime.artifact import model_from_payload
from tests.backends.cuda import emulation
from tests.backends.tvm import graphs
from tests.backends.tvm.models import MODELS, SIZES, calls_of, graph_of

if TYPE_CHECKING:
    from pathlib import Path


CROWDED = ("gcn-2", "gcn-weighted", "sage-8", "gat-2", "gat-4", "gat-8", "gatv2-4", "floats-mean")


def crowded_call(graph: IntegerGraph) -> dict[str, Any]:
    """A call in which a block of threads has a destination, and others a warp."""
    inputs: dict[str, Any] = graphs.values(graph, 90, 3000)
    inputs["edge_index"][1, :1900] = 5
    inputs["edge_index"][1, 1900:2500] = 88
    return inputs


def compare(graph: IntegerGraph, calls: list[dict[str, Any]]) -> None:
    compare_on(model_from_payload(emulation.payload(graph)), graph, calls)


def compare_on(model: CompiledModel, graph: IntegerGraph, calls: list[dict[str, Any]]) -> None:
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
    compare(graph_of(name), calls_of(name, (*SIZES, SIZES[2], SIZES[-1])))


@pytest.mark.parametrize("name", CROWDED)
def test_crowded_destinations(name: str, emulated: Path) -> None:
    graph = graph_of(name)
    compare(graph, [crowded_call(graph)])


def test_these_graphs_have_every_operation() -> None:
    found = {node.op for name in MODELS for node in graph_of(name).nodes}
    assert found == set(OPS)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_gathered_codes_are_read_where_they_lie(bits: int, emulated: Path) -> None:
    """Of edges and, twice over, of other rows; with a scale for each row and with one for all."""
    m = graphs.Maker(bits)
    x = m.input("x", 13)
    g = m.graph(x, "add")
    batch = m.index_input("batch")
    outputs = []
    for granularity in ("row", "tensor"):
        q = m.quantize(x, bits, graphs.SIGNED[bits], granularity)
        near = m.gather(m.gather(q, batch, m.rows(x)), f"{g}.src", g)
        outputs += [m.gemm(near, 6, bits), m.add("dequantize", (near,), (13,))]
    graph = m.finish(*outputs)
    rng = np.random.default_rng(0)
    calls = [graphs.values(graph, nodes, edges) for nodes, edges in SIZES[1:]]
    for call in calls:
        call["batch"] = rng.integers(0, len(call["x"]), len(call["x"]))
    compare(graph, calls)


def test_one_row_for_all(emulated: Path) -> None:
    """Constants stand for every row: quantized, summed over edges, as edge weights, as scores."""
    m = graphs.Maker(3)
    x = m.input("x", 6)
    g = m.graph(x)
    same = m.constant(6)
    q = m.quantize(same, 4, 16)
    weight = m.constant(2)
    sums = m.spmm(q, g, weight, heads=2)
    plain = m.spmm(same, g, weight, "max", heads=2)
    most = m.spmm(m.quantize(same, 4, 16, "tensor"), g, reduce="min")
    soft = m.add("segment_softmax", (weight,), (2,), g)
    total = m.segment(weight, g, "mean")
    row = m.gemm(q, 5, 4)
    both = m.binary("add", x, same)
    norm = m.add("gcn_norm", (m.constant(1),), (1,), g)
    outputs = (sums, plain, most, soft, total, row, both, norm, m.total(same, "sum"))
    graph = m.finish(*outputs)
    compare(graph, [graphs.values(graph, *size) for size in SIZES])


def test_outputs_that_need_no_kernel(emulated: Path) -> None:
    """An input, a view of it, a constant, one value twice, and a part without columns."""
    m = graphs.Maker(4)
    x = m.input("x", 2, 3)
    y = m.unary("relu", x)
    flat = m.reshape(y, 6)
    graph = m.finish(x, m.reshape(x, 6), m.constant(4), y, y, flat, m.pick(flat, []))
    compare(graph, [graphs.values(graph, nodes, 0) for nodes in (0, 1, 9)])


@pytest.mark.parametrize("bits", [2, 8])
def test_sums_of_a_hub_are_exact(bits: int, emulated: Path) -> None:
    """All codes and weights at their ends: 32 bits would not hold the sums."""
    m = graphs.Maker(bits)
    x = m.input("x", 9)
    g = m.graph(x)
    q = m.quantize(x, bits, 0, "tensor")
    graph = m.finish(m.spmm(q, g, m.edge_input("edge_weight", g)), m.spmm(q, g, reduce="mean"))
    nodes, edges = 40, 70_000
    rng = np.random.default_rng(0)
    index = np.stack([rng.integers(0, nodes, edges), np.zeros(edges, np.int64)]).astype(np.int64)
    index[1, :100] = rng.integers(0, nodes, 100)
    inputs = {
        "x": np.full((nodes, 9), 1000, np.float32),
        "edge_index": index,
        "edge_weight": rng.uniform(0.99, 1.0, edges).astype(np.float32),
    }
    compare(graph, [inputs])


def test_long_products_are_exact(emulated: Path) -> None:
    """40,000 inputs, all at their ends: sums beyond 2^31."""
    m = graphs.Maker(5)
    x = m.input("x", 40_000)
    graph = m.finish(m.gemm(m.quantize(x, 8, 0, "tensor"), 2, 8))
    weight = graph.weights["w0"]
    weight.data[:] = 0
    assert "long long total = 0" in emulation.generate(graph).source
    values = np.full((2, 40_000), 1000, np.float32)
    compare(graph, [{"x": values}])


def test_what_is_no_number(emulated: Path) -> None:
    """Weights that overflow inside of the model: both have NaN in the same places."""
    m = graphs.Maker(6)
    x = m.input("x", 5)
    g = m.graph(x)
    huge = m.unary("mul", x, scalar=1e38)
    wild = m.binary("sub", m.unary("mul", huge, scalar=1e10), m.unary("mul", huge, scalar=1e10))
    outputs = (wild, m.segment(m.end(wild, g, "src"), g, "max"), m.unary("softmax", wild))
    graph = m.finish(*outputs, m.unary("relu", wild), m.unary("sigmoid", wild), m.total(wild, "min"))
    inputs = graphs.values(graph, 13, 40)
    compare(graph, [inputs])


def test_code_holds_no_number_of_the_model() -> None:
    """Other weights, scales and slopes: the same source, so that the cache has its fatbin."""
    first, second = (graphs.gat(4) for _ in range(2))
    for node in second.nodes:
        for key in ("factor", "scale", "scalar"):
            if key in node.attrs:
                node.attrs[key] *= 1.25
    ours, theirs = emulation.generate(first), emulation.generate(second)
    assert ours.source == theirs.source
    assert ours.plan != theirs.plan
    assert emulation.generate(graphs.gat(2)).source != ours.source


def test_errors_name_the_node() -> None:
    m = graphs.Maker(0)
    x = m.input("x", 4)
    q = m.quantize(x, 8, 0)
    with pytest.raises(BackendError, match=r"cuda backend: quantize 'v1_quantize': codes are read where"):
        emulation.generate(m.finish(m.unary("relu", q)))
    with pytest.raises(BackendError, match="is quantized"):
        emulation.generate(m.finish(q))
    with pytest.raises(BackendError, match="has floats where codes are expected"):
        emulation.generate(m.finish(m.add("dequantize", (x,), (4,))))
    g = m.graph(x)
    with pytest.raises(BackendError, match=r"spmm 'v.*a scale for each row is not defined"):
        emulation.generate(m.finish(m.spmm(q, g, reduce="max")))
