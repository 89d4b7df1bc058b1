"""Operations of both programs one by one beside numpy and the reference."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest

from gnnquant.backends.onnx.emit import EMITTERS, emit_model
from gnnquant.backends.onnx.index import ARRAYS, OTHERS, SIZES
from gnnquant.errors import BackendError
from gnnquant.integer_graph import (
    ELEMENTWISE,
    INDEX_OPS,
    LOOPS,
    ONE,
    OPS,
    GraphInput,
    IndexNode,
    IntegerGraph,
    Node,
    Parameter,
)
from tests.backends.onnx.helpers import reference, session
from tests.backends.reference import test_kernels as kernels
from tests.backends.tvm.models import MODELS, calls_of, graph_of

F = np.float32


def test_every_operation_has_an_emitter() -> None:
    assert EMITTERS.keys() == OPS.keys()
    assert SIZES.keys() | ARRAYS.keys() | OTHERS == INDEX_OPS.keys()


def program(
    inputs: list[GraphInput], index: list[IndexNode], *nodes: Node, outputs: list[str] | None = None
) -> IntegerGraph:
    parameters = [Parameter(item.name, "positional", {"input": item.name}) for item in inputs]
    return IntegerGraph(inputs, parameters, index, list(nodes), outputs or [nodes[-1].name])


# ---------------------------------------------------------------- sums over edges

EDGES = np.array([[0, 2, 2, 2, 4, 1, 0, 3, 3], [1, 1, 0, 0, 2, 1, 2, 3, 3]])
"""To five rows: duplicates (2 -> 0), loops (twice at 3), and nothing for the row 4."""
NO_EDGES = EDGES[:, :0]


def edge_graph(loops: str, *nodes: Node, outputs: list[str] | None = None) -> IntegerGraph:
    inputs = [GraphInput("x", "rows", (3,)), GraphInput("e", "edges"), GraphInput("w", "rows", (3,))]
    index = [
        IndexNode("n", "rows", (), {"input": "x"}),
        IndexNode("src", "index_input", (), {"input": "e", "part": 0}),
        IndexNode("dst", "index_input", (), {"input": "e", "part": 1}),
        IndexNode("g", "graph", ("src", "dst", "n", "n"), {"loops": loops}),
    ]
    x = Node("x", "input", (), {"input": "x"}, (3,), "n")
    # A value for every edge, appended loops included.
    edge = Node("xe", "gather", ("x",), {"index": "g.src"}, (3,), "g")
    return program(inputs, index, x, edge, *nodes, outputs=outputs)


def rows(count: int = 5) -> np.ndarray:
    return np.random.default_rng(count).standard_normal((count, 3)).astype(F)


def by_hand(x: np.ndarray, edges: np.ndarray, reduce: str) -> np.ndarray:
    """Rows of sources by destination, as a loop; 0 where there is no edge."""
    result = np.zeros_like(x)
    for row in range(x.shape[0]):
        found = x[edges[0][edges[1] == row]]
        if reduce == "softmax" or not len(found):
            continue
        result[row] = getattr(found, reduce)(axis=0)
    return result


@pytest.mark.parametrize("edges", [EDGES, NO_EDGES], ids=["edges", "none"])
@pytest.mark.parametrize("reduce", ["sum", "mean", "max", "min"])
@pytest.mark.parametrize("op", ["segment_reduce", "float_spmm"])
def test_aggregation_of_duplicates_and_of_nothing(op: str, reduce: str, edges: np.ndarray) -> None:
    attrs = {"graph": "g", "reduce": reduce, "heads": 1}
    operand = "xe" if op == "segment_reduce" else "x"
    graph = edge_graph("keep", Node("out", op, (operand,), attrs, (3,), "n"))
    x = rows()
    got = session(graph)(x, edges, x[:0])
    np.testing.assert_allclose(got, by_hand(x, edges, reduce), rtol=1e-6, atol=1e-6)


def test_products_of_nothing_are_one() -> None:
    graph = edge_graph(
        "keep", Node("out", "segment_reduce", ("xe",), {"graph": "g", "reduce": "mul"}, (3,), "n")
    )
    x = rows()
    got = session(graph)(x, EDGES, x[:0])
    np.testing.assert_allclose(got[0], x[2] * x[2], rtol=1e-6)
    np.testing.assert_array_equal(got[4], np.ones(3, F))


@pytest.mark.parametrize("edges", [EDGES, NO_EDGES], ids=["edges", "none"])
def test_softmax_over_the_edges_of_a_destination(edges: np.ndarray) -> None:
    graph = edge_graph("keep", Node("out", "segment_softmax", ("xe",), {}, (3,), "g"))
    x = rows() * 30
    got = session(graph)(x, edges, x[:0])
    wanted = np.zeros((edges.shape[1], 3))
    for row in range(5):
        at = np.flatnonzero(edges[1] == row)
        if at.size:
            power = np.exp(x[edges[0][at]].astype(np.float64) - x[edges[0][at]].max(axis=0))
            wanted[at] = power / power.sum(axis=0)
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("edges", [EDGES, NO_EDGES], ids=["edges", "none"])
@pytest.mark.parametrize("loops", LOOPS)
def test_self_loops(loops: str, edges: np.ndarray) -> None:
    """Which edges there are, what became of each given one, and how many reach a row."""
    parts = ("src", "dst", "edge_id")
    nodes = [Node(f"out_{part}", "from_index", (), {"index": f"g.{part}"}, (), "g") for part in parts]
    graph = edge_graph(loops, *nodes, outputs=[node.name for node in nodes])
    found = np.stack(session(graph)(rows(), edges, rows(0)), axis=1)
    wanted = np.stack(reference(graph)(rows(), edges, rows(0)), axis=1)
    # The reference sorts by destination, stable: the order within a destination is ours.
    np.testing.assert_array_equal(found[np.argsort(found[:, 1], kind="stable")], wanted)


@pytest.mark.parametrize("count", [0, 1, 4])
@pytest.mark.parametrize("reduce", ["sum", "mean", "max", "min"])
def test_reduction_of_all_rows(reduce: str, count: int) -> None:
    node = Node("out", "row_reduce", ("x",), {"reduce": reduce}, (3,), ONE)
    x = -np.abs(rows(count))
    got = session(edge_graph("keep", node))(x, NO_EDGES, x[:0])
    wanted = getattr(x, reduce)(axis=0) if count else np.zeros(3)
    np.testing.assert_allclose(got[0], wanted, rtol=1e-6, atol=1e-7)


# ---------------------------------------------------------------- the index program

NUMBERS = np.array([3, 0, 2, 3, 1, 0, 0], np.int64)
MORE = np.array([1, 1, -2, 2, 3, -1, 4], np.int64)
SIGNED = np.array([-7, 5, -3, 8, 0, -1, 6], np.int64)
INDEX_CASES: dict[str, list[IndexNode]] = {
    "arange": [IndexNode("out", "arange", ("n",))],
    "full": [IndexNode("out", "full", ("n",), {"value": -3})],
    "values": [IndexNode("out", "values", (), {"values": [4, -1]})],
    "not": [
        IndexNode("m", "combine", ("a",), {"function": "gt", "right": 1}),
        IndexNode("out", "not", ("m",)),
    ],
    "join": [IndexNode("out", "join", ("a", "b", "a"))],
    "select": [
        IndexNode("m", "combine", ("a",), {"function": "ne", "right": 0}),
        IndexNode("out", "select", ("b", "m")),
    ],
    "nonzero": [
        IndexNode("m", "combine", ("a",), {"function": "le", "left": 2}),
        IndexNode("out", "nonzero", ("m",)),
    ],
    "take": [IndexNode("out", "take", ("b", "a"))],
    "put": [IndexNode("out", "put", ("b", "a", "b"))],
    "count": [IndexNode("s", "extent", ("a",)), IndexNode("out", "count", ("a", "s"))],
    "cumsum": [IndexNode("out", "cumsum", ("b",))],
    "argsort": [IndexNode("out", "argsort", ("a",))],
    "bounded": [IndexNode("s", "extent", ("a",)), IndexNode("out", "bounded", ("a", "s"))],
    "length": [IndexNode("s", "length", ("a",)), IndexNode("out", "arange", ("s",))],
    **{
        f"{name} of arrays": [IndexNode("out", "combine", ("c", "b"), {"function": name})]
        for name in ("add", "sub", "mul", "floordiv", "mod", "max", "min", "eq", "ne", "lt", "le", "gt", "ge")
    },
    **{
        f"{name} of masks": [
            IndexNode("l", "combine", ("c",), {"function": "gt", "right": 0}),
            IndexNode("r", "combine", ("b",), {"function": "gt", "right": 1}),
            IndexNode("out", "combine", ("l", "r"), {"function": name}),
        ]
        for name in ("and", "or")
    },
    **{
        f"{name} of sizes": [
            IndexNode("s", "size", ("n",), {"function": name, "right": 3}),
            IndexNode("out", "full", ("s",), {"value": 1}),
        ]
        for name in ("add", "sub", "mul", "floordiv", "mod", "max", "min")
    },
}


def index_graph(case: list[IndexNode]) -> IntegerGraph:
    inputs = [GraphInput(name, "index") for name in "abc"]
    index = [IndexNode("n", "rows", (), {"input": "a"})]
    index += [IndexNode(name, "index_input", (), {"input": name}) for name in "abc"]
    index += [*case, IndexNode("rows_of_out", "length", ("out",))]
    return program(inputs, index, Node("y", "from_index", (), {"index": "out"}, (), "rows_of_out"))


@pytest.mark.parametrize(
    ("name", "empty"),
    # Nothing minus a number would be a negative size.
    [
        (name, empty)
        for name in INDEX_CASES
        for empty in (False, True)
        if not (empty and name == "sub of sizes")
    ],
)
def test_index_program(name: str, empty: bool) -> None:
    graph = index_graph(INDEX_CASES[name])
    arrays = [array[: 0 if empty else None] for array in (NUMBERS, MORE, SIGNED)]
    np.testing.assert_array_equal(session(graph)(*arrays), reference(graph)(*arrays))


def test_every_index_operation_is_tested() -> None:
    tested = {node.op for case in INDEX_CASES.values() for node in case}
    assert INDEX_OPS.keys() - tested <= {"rows", "size_input", "same_size", "index_input", "graph", "part"}


# ---------------------------------------------------------------- the row program


def kernel_graph(nodes: tuple[Node, ...]) -> IntegerGraph:
    """A graph of the reference's own tests; of edges their destinations come too."""
    outputs = [nodes[-1].name]
    if nodes[-1].rows in ("g", "square"):
        place = Node("place", "from_index", (), {"index": f"{nodes[-1].rows}.dst"}, (), nodes[-1].rows)
        nodes, outputs = (*nodes, place), [*outputs, "place"]
    parameters = [Parameter(item.name, "positional", {"input": item.name}) for item in kernels.INPUTS]
    return IntegerGraph(
        kernels.INPUTS,
        parameters,
        kernels.INDEX,
        list(nodes),
        outputs,
        weights=kernels.WEIGHTS,
        constants=kernels.CONSTANTS,
    )


GIVEN = {"x": kernels.X, "y": kernels.Y, "e": kernels.E, "b": kernels.B, "w": kernels.W}


def assert_as_reference(graph: IntegerGraph, given: dict[str, Any], rtol: float = 1e-5) -> None:
    found, wanted = (flat(model(**given)) for model in (session(graph), reference(graph)))
    if graph.outputs[-1] == "place":  # the reference sorts edges by destination
        order = np.argsort(found[-1], kind="stable")
        found = [value[order] for value in found]
    for got, value in zip(found, wanted, strict=True):
        assert got.shape == value.shape
        np.testing.assert_allclose(got, value, rtol=rtol, atol=rtol)


def flat(result: Any) -> list[np.ndarray]:
    return [np.asarray(item) for item in result] if isinstance(result, tuple) else [np.asarray(result)]


@pytest.mark.parametrize("case", kernels.EXACT)
def test_value(case: str) -> None:
    assert_as_reference(kernel_graph(kernels.EXACT[case][0]), GIVEN)


@pytest.mark.parametrize("op", sorted(ELEMENTWISE))
def test_elementwise(op: str) -> None:
    count = {"where": 3}.get(op, 1 if op in UNARY else 2)
    x = np.abs(kernels.X) + F(0.1) if op in ("log", "sqrt") else kernels.X
    floor = Node("f", "floor", ("x",), {}, (2, 3), "n")
    scalar = {"scalar": 0.3} if op in WITH_SCALAR else {}
    names = [["x"], ["x", "y"], ["f", "x", "y"]][count - 1]
    names = names[: len(names) - bool(scalar)]
    nodes = (kernels.NX, kernels.NY, floor, kernels.out(op, *names, **scalar))
    assert_as_reference(kernel_graph(nodes), {**GIVEN, "x": x})
    # A constant row in the place of the last operand, and of all of them.
    if not scalar:
        constant = (*names[:-1], "c")
        last = (kernels.NX, kernels.NY, kernels.NC, floor, kernels.out(op, *constant))
        alone = (kernels.NC, kernels.out(op, *["c"] * count))
        if op not in ("log", "sqrt"):
            assert_as_reference(kernel_graph(last), GIVEN)
            assert_as_reference(kernel_graph(alone), GIVEN)


UNARY = {"neg", "abs", "sqrt", "floor", "relu", "exp", "log", "sigmoid", "tanh"}
WITH_SCALAR = {"rsub", "rdiv", "leaky_relu", "elu"}


@pytest.mark.parametrize("op", ["softmax", "log_softmax"])
def test_softmaxes(op: str) -> None:
    assert_as_reference(kernel_graph((kernels.NX, kernels.out(op, "x"))), GIVEN)


@pytest.mark.parametrize("granularity", ["row", "tensor"])
@pytest.mark.parametrize(("bits", "zero2"), [(8, 256), (8, 0), (4, 16), (4, 0), (2, 4), (2, 3), (2, 0)])
@pytest.mark.parametrize("opset", [18, 25])
def test_codes(bits: int, zero2: int, granularity: str, opset: int) -> None:
    """Every code, at the borders of its cell and beyond the range too, a row of zeros among them."""
    nodes = (kernels.NX, quantizer(bits, zero2, granularity), kernels.out("dequantize", "q"))
    graph = kernel_graph(nodes)
    x = np.linspace(-2.25, 2.25, 30, dtype=F).reshape(5, 2, 3)
    x[3] = 0
    got = session(graph, opset)(**{**GIVEN, "x": x})
    np.testing.assert_allclose(got, reference(graph)(**{**GIVEN, "x": x}), rtol=1e-6, atol=1e-7)


def quantizer(bits: int, zero2: int, granularity: str) -> Node:
    attrs = {"bits": bits, "zero2": zero2, "granularity": granularity}
    # A scale that is a power of 2, so that borders of cells are hit.
    attrs |= {"factor": 0.75 / 2**bits} if granularity == "row" else {"scale": 4 / 2**bits}
    return Node("q", "quantize", ("x",), attrs, (2, 3), "n")


@pytest.mark.parametrize("granularity", ["row", "tensor", "unscaled"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("reduce", ["sum", "mean"])
def test_sums_of_codes(granularity: str, weighted: bool, reduce: str) -> None:
    attrs: dict[str, Any] = {"graph": "g", "reduce": reduce, "heads": 2 if weighted else 1}
    if granularity == "unscaled":
        granularity = "tensor"
        attrs |= {"unscaled": True} if weighted else {}
    out = Node("out", "spmm", ("q", "wg") if weighted else ("q",), attrs, (2, 3), "m")
    weight = Node("wg", "gather", ("w",), {"index": "g.edge_id"}, (2,), "g")
    nodes = (kernels.NX, kernels.NW, weight, quantizer(4, 16, granularity), out)
    assert_as_reference(kernel_graph(nodes), GIVEN)


@pytest.mark.parametrize("reduce", ["max", "min"])
def test_extremes_of_codes(reduce: str) -> None:
    out = Node("out", "spmm", ("q",), {"graph": "g", "reduce": reduce, "heads": 1}, (2, 3), "m")
    assert_as_reference(kernel_graph((kernels.NX, quantizer(4, 16, "tensor"), out)), GIVEN)


@pytest.mark.parametrize("name", MODELS)
def test_models_of_all_operations(name: str) -> None:
    """The models that compiled code is tested with."""
    graph = copy.copy(graph_of(name))
    edges_of = {node.name for node in graph.index if node.op == "graph"}
    # Values by edge come in another order, which no lowered model shows.
    graph.outputs = [output for output in graph.outputs if graph[output].rows not in edges_of]
    graph.result = None
    ours, theirs = session(graph), reference(graph)
    for call in calls_of(name, ((0, 0), (1, 4), (13, 40))):
        for got, wanted in zip(flat(ours(**call)), flat(theirs(**call)), strict=True):
            assert got.shape == wanted.shape
            near = np.isclose(got, wanted, 1e-4, 1e-5 * max(1.0, np.abs(wanted).max(initial=0)))
            # The exponential of another library: a code at the edge of its cell moves one row of 13.
            assert near.all() or near.mean() >= 0.85


def test_what_has_no_form_is_refused_by_name() -> None:
    graph = edge_graph(
        "keep", Node("conv1.odd", "quantize", ("x",), {"bits": 4, "zero2": 5}, (3,), "n", "conv1:x")
    )
    with pytest.raises(BackendError, match=r"'conv1\.odd' has the doubled zero point 5 at 4 bits"):
        emit_model(graph, 25, {})
