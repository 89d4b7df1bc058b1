"""Every operation of the row program beside plain numpy: one rounding per written operation, in order."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from gnnquant.backends.reference import ReferenceExecutor
from gnnquant.errors import BackendError, InputError
from gnnquant.integer_graph import (
    ELEMENTWISE,
    ONE,
    OPS,
    GraphInput,
    IndexNode,
    IntegerGraph,
    Node,
    PackedWeight,
    Parameter,
    pack_codes,
)
from gnnquant.runtime import CompiledModel
from tests.backends.tvm.models import MODELS, calls_of, graph_of
from tests.backends.tvm.oracle import Oracle

if TYPE_CHECKING:
    from collections.abc import Callable

F = np.float32
RANDOM = np.random.default_rng(0)
X = RANDOM.standard_normal((5, 2, 3)).astype(F)
Y = RANDOM.standard_normal((5, 2, 3)).astype(F)
E = np.array([[0, 2, 2, 4, 1, 0, 3], [1, 1, 0, 2, 1, 2, 2]])
"""From the rows of x to four others; no edge leads to the last one."""
M = 4
B = np.array([2, 0, 2, 2, 0])
"""Which of four groups a row of x belongs to; nothing belongs to 1 and 3."""
ORDER = np.argsort(E[1], kind="stable")
W = RANDOM.standard_normal((7, 2)).astype(F)

INPUTS = [
    GraphInput("x", "rows", (2, 3)),
    GraphInput("y", "rows", (2, 3)),
    GraphInput("e", "edges"),
    GraphInput("b", "index"),
    GraphInput("w", "rows", (2,)),
]
INDEX = [
    IndexNode("n", "rows", (), {"input": "x"}),
    IndexNode("m", "size", (), {"function": "add", "left": M, "right": 0}),
    IndexNode("edges", "rows", (), {"input": "w"}),
    IndexNode("src", "index_input", (), {"input": "e", "part": 0}),
    IndexNode("dst", "index_input", (), {"input": "e", "part": 1}),
    IndexNode("g", "graph", ("src", "dst", "n", "m"), {"loops": "keep"}),
    IndexNode("square", "graph", ("src", "dst", "n", "n"), {"loops": "add"}),
    IndexNode("group", "index_input", (), {"input": "b"}),
    IndexNode("picked", "values", (), {"values": [3, 0, 3]}),
    IndexNode("three", "length", ("picked",)),
    IndexNode("maybe", "values", (), {"values": [-1, 4]}),
    IndexNode("two", "length", ("maybe",)),
    IndexNode("two_first", "arange", ("two",)),
    IndexNode("none", "size", (), {"function": "add", "left": 0, "right": 0}),
    IndexNode("nothing", "arange", ("none",)),
    IndexNode("large", "full", ("two",), {"value": 2**25 + 1}),
]
TABLE = RANDOM.standard_normal((4, 3)).astype(F)
CONSTANTS = {"c": RANDOM.standard_normal((2, 3)).astype(F), "k": RANDOM.standard_normal((3, 4)).astype(F)}
CONSTANTS["table"] = TABLE
CODES = RANDOM.integers(0, 16, (3, 4)).astype(np.uint8)
WEIGHTS = {"w4": PackedWeight(4, 16, (3, 4), pack_codes(CODES, 4), np.linspace(0.1, 0.4, 4, dtype=F))}


def given(name: str, rows: str = "n", shape: tuple[int, ...] = (2, 3)) -> Node:
    return Node(name, "input", (), {"input": name}, shape, rows)


NX, NY, NW = given("x"), given("y"), given("w", "edges", (2,))
NC = Node("c", "constant", (), {"array": "c"}, (2, 3))
EDGE = Node("xe", "gather", ("x",), {"index": "g.src"}, (2, 3), "g")
EDGE_W = Node("we", "gather", ("w",), {"index": "square.edge_id", "fill": 0.5}, (2,), "square")


def out(op: str, *inputs: str, shape: tuple[int, ...] = (2, 3), rows: str = "n", **attrs: Any) -> Node:
    return Node("out", op, inputs, attrs, shape, rows)


def run(*nodes: Node, **changes: np.ndarray) -> np.ndarray:
    parameters = [Parameter(item.name, "positional", {"input": item.name}) for item in INPUTS]
    graph = IntegerGraph(
        INPUTS, parameters, INDEX, list(nodes), [nodes[-1].name], weights=WEIGHTS, constants=CONSTANTS
    )
    model = CompiledModel(ReferenceExecutor(graph), graph, {})
    return model(**{"x": X, "y": Y, "e": E, "b": B, "w": W, **changes})


def in_order(parts: Any, start: Any = None, function: Callable[..., Any] = np.add) -> Any:
    """One after the other."""
    parts = list(parts)
    total = parts[0] if start is None else start
    for part in parts[1:] if start is None else parts:
        total = function(total, part)
    return total


def by_destination(value: np.ndarray, reduce: str) -> np.ndarray:
    """Edge rows of ``g`` by destination, as a loop."""
    rows = []
    for i in range(M):
        own = [value[k] for k, e in enumerate(ORDER) if E[1, e] == i]
        zero = np.zeros(value.shape[1:], F)
        if reduce in ("sum", "mean"):
            total = in_order(own, zero)
            rows.append(total / F(max(len(own), 1)) if reduce == "mean" else total)
        elif reduce == "mul":
            rows.append(in_order(own, zero + 1, np.multiply))
        else:
            rows.append(getattr(np, reduce)(own, axis=0) if own else zero)
    return np.stack(rows)


XE = X[E[0, ORDER]]
REDUCTIONS = ["sum", "mean", "max", "min"]
EXACT: dict[str, tuple[tuple[Node, ...], Any]] = {
    "input": ((NX,), X),
    "constant": ((NC,), CONSTANTS["c"][None]),
    "constant on rows": ((NC, out("add", "c", scalar=0.0)), np.broadcast_to(CONSTANTS["c"], X.shape)),
    "lookup": ((out("lookup", index="picked", array="table", shape=(3,), rows="three"),), TABLE[[3, 0, 3]]),
    "from_index": ((out("from_index", index="group", shape=()),), B.astype(F)),
    "from_index column": ((out("from_index", index="group", shape=(1,)),), B.astype(F)[:, None]),
    "from_index rounds": ((out("from_index", index="large", shape=(), rows="two"),), np.full(2, F(2**25))),
    "from_index of a part": ((out("from_index", index="g.edge_id", shape=(), rows="g"),), ORDER.astype(F)),
    "gather": ((NX, out("gather", "x", index="g.src", rows="g")), XE),
    "gather of destinations": ((NX, out("gather", "x", index="g.dst", rows="g")), X[E[1, ORDER]]),
    "gather with a fill": (
        (NX, out("gather", "x", index="maybe", fill=0.5, rows="two")),
        np.stack([np.full((2, 3), 0.5, F), X[4]]),
    ),
    "gather of one row": ((NC, out("gather", "c", index="nothing", rows="none")), np.empty((0, 2, 3), F)),
    **{
        f"segment_reduce {reduce}": (
            (NX, EDGE, out("segment_reduce", "xe", graph="g", reduce=reduce, rows="m")),
            by_destination(XE, reduce),
        )
        for reduce in [*REDUCTIONS, "mul"]
    },
    **{
        f"row_reduce {reduce}": (
            (NX, out("row_reduce", "x", reduce=reduce, rows=ONE)),
            {
                "sum": in_order(X, F(0)),
                "mean": in_order(X, F(0)) / F(5),
                "max": X.max(0),
                "min": X.min(0),
            }[reduce][None],
        )
        for reduce in REDUCTIONS
    },
    **{
        f"float_spmm {reduce}": (
            (NX, out("float_spmm", "x", graph="g", reduce=reduce, heads=1, rows="m")),
            by_destination(XE, reduce),
        )
        for reduce in REDUCTIONS
    },
    "float_gemm": ((NX, out("float_gemm", "x", array="k", shape=(2, 4))), None),
    "matmul": (
        (NX, NY, Node("t", "reshape", ("y",), {}, (3, 2), "n"), out("matmul", "x", "t", shape=(2, 2))),
        in_order(X[:, :, k, None] * Y.reshape(5, 3, 2)[:, k, None, :] for k in range(3)),
    ),
    "matmul with one row": (
        (NX, NC, Node("t", "reshape", ("c",), {}, (3, 2)), out("matmul", "x", "t", shape=(2, 2))),
        in_order(X[:, :, k, None] * CONSTANTS["c"].reshape(1, 3, 2)[:, k, None, :] for k in range(3)),
    ),
    "reshape": ((NX, out("reshape", "x", shape=(6,))), X.reshape(5, 6)),
    "columns": ((NX, out("columns", "x", index=[5, 0, 0, 2], shape=(4,))), X.reshape(5, 6)[:, [5, 0, 0, 2]]),
    "concat": (
        (NX, NC, out("concat", "x", "c", "x", shape=(2, 9))),
        np.concatenate([X, np.broadcast_to(CONSTANTS["c"], X.shape), X], -1),
    ),
    **{
        f"reduce {reduce} {axis}": (
            (NX, out("reduce", "x", axis=axis, reduce=reduce, shape=(3,) if axis == 0 else (2,))),
            {
                "sum": in_order(np.moveaxis(X, axis + 1, 0)),
                "mean": in_order(np.moveaxis(X, axis + 1, 0)) / F(X.shape[axis + 1]),
                "mul": in_order(np.moveaxis(X, axis + 1, 0), None, np.multiply),
                "max": X.max(axis + 1),
                "min": X.min(axis + 1),
            }[reduce],
        )
        for reduce in [*REDUCTIONS, "mul"]
        for axis in (0, 1)
    },
}


@pytest.mark.parametrize("case", EXACT)
def test_value(case: str) -> None:
    nodes, wanted = EXACT[case]
    got = run(*nodes)
    assert got.dtype == np.float32
    if wanted is None:  # any order of summation
        np.testing.assert_allclose(got, X @ CONSTANTS["k"], rtol=1e-5)
    else:
        np.testing.assert_array_equal(got, wanted, strict=True)


def close(function: Callable[..., Any]) -> Callable[..., Any]:
    """float64, for what polynomials compute."""
    return lambda *operands: function(*(np.asarray(operand, np.float64) for operand in operands))


S = F(0.3)
ELEMENTS: dict[str, Callable[..., Any]] = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide,
    "rsub": lambda x, s: s - x, "rdiv": lambda x, s: s / x,
    "maximum": np.maximum, "minimum": np.minimum,
    "eq": lambda x, y: (x == y).astype(F), "lt": lambda x, y: (x < y).astype(F),
    "le": lambda x, y: (x <= y).astype(F),
    "where": lambda c, x, y: np.where(c != 0, x, y),
    "neg": np.negative, "abs": np.abs, "sqrt": np.sqrt, "floor": np.floor,
    "relu": lambda x: np.maximum(x, F(0)),
    "leaky_relu": lambda x, s: np.where(x > 0, x, x * s),
    "elu": close(lambda x, s: np.where(x > 0, x, s * np.expm1(x))),
    "exp": close(np.exp), "log": close(np.log),
    "sigmoid": close(lambda x: 1 / (1 + np.exp(-x))), "tanh": close(np.tanh),
}  # fmt: skip
ROUNDED = {"elu", "exp", "log", "sigmoid", "tanh"}
SCALAR_ONLY = {"rsub", "rdiv", "leaky_relu", "elu"}


def assert_element(op: str, got: np.ndarray, wanted: np.ndarray) -> None:
    if op in ROUNDED:
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)
    else:
        np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize("op", sorted(ELEMENTWISE))
def test_elementwise(op: str) -> None:
    function = ELEMENTS[op]
    count = function.nin if isinstance(function, np.ufunc) else function.__code__.co_argcount
    count = {"elu": 2, "exp": 1, "log": 1, "sigmoid": 1, "tanh": 1}.get(op, count)
    x = np.abs(X) if op in ("log", "sqrt") else X.copy()
    x[0, 0, 0] = S
    changed = {"x": x, "y": np.where(Y > 0.5, x, Y)}
    y = changed["y"]
    if count == 1:
        assert_element(op, run(NX, out(op, "x"), **changed), function(x))
        return
    operands, names = [x, y][: count - 1], ["x", "y"][: count - 1]
    if op == "where":
        operands, names = [np.floor(x), y], ["f", "y"]
    floor = Node("f", "floor", ("x",), {}, (2, 3), "n")
    sources = (NX, NY, NC, floor)
    got = run(*sources, out(op, *names, scalar=float(S)), **changed)
    assert_element(op, got, function(*operands, S))
    if op not in SCALAR_ONLY:
        for name, last in (("y", y), ("c", CONSTANTS["c"]), ("x", x)):
            got = run(*sources, out(op, *names, name), **changed)
            assert_element(op, got, function(*operands, last))


def test_elementwise_broadcasts_row_shapes() -> None:
    first = Node("a", "columns", ("x",), {"index": [0, 3]}, (2, 1), "n")
    np.testing.assert_array_equal(run(NX, first, out("sub", "x", "a")), X - X[:, :, :1])


def test_square_roots_are_rounded_correctly() -> None:
    x = np.arange(30, dtype=F).reshape(5, 2, 3) * 163
    np.testing.assert_array_equal(run(NX, out("sqrt", "x"), x=x), np.sqrt(x.astype(np.float64)).astype(F))


def test_softmaxes() -> None:
    x = X.astype(np.float64)
    power = np.exp(x - x.max(-1, keepdims=True))
    soft = power / power.sum(-1, keepdims=True)
    np.testing.assert_allclose(run(NX, out("softmax", "x")), soft, rtol=1e-5)
    np.testing.assert_allclose(run(NX, out("log_softmax", "x")), np.log(soft), rtol=1e-5)
    got = run(NX, EDGE, out("segment_softmax", "xe", rows="g"))
    for i in range(M):
        power = np.exp(XE[E[1, ORDER] == i].astype(np.float64))
        np.testing.assert_allclose(got[E[1, ORDER] == i], power / power.sum(0), rtol=1e-5)


def test_gcn_norm() -> None:
    """Self-loops take the fill; degrees are weighted in-degrees."""
    got = run(out("gcn_norm", fill=2.0, shape=(), rows="square"))
    dst = np.concatenate([E[1], np.arange(5)])
    src = np.concatenate([E[0], np.arange(5)])
    order = np.argsort(dst, kind="stable")
    weight = np.concatenate([np.ones(7), np.full(5, 2.0)])
    root = np.bincount(dst, weight, 5) ** -0.5
    np.testing.assert_allclose(got, (root[src] * weight * root[dst])[order], rtol=1e-6)
    weighted = run(NW, EDGE_W, out("gcn_norm", "we", shape=(2,), rows="square"), w=np.abs(W))
    weight = np.concatenate([np.abs(W), np.full((5, 2), 0.5)])
    root = np.stack([np.bincount(dst, weight[:, j], 5) for j in range(2)], 1) ** -0.5
    np.testing.assert_allclose(weighted, (root[src] * weight * root[dst])[order], rtol=1e-5)


def codes_by_hand(x: np.ndarray, bits: int, zero2: int, scale: np.ndarray) -> np.ndarray:
    t = x * np.where(scale > 0, 1 / np.where(scale > 0, scale, 1), 0).astype(F)
    rounded = np.floor(t) if zero2 % 2 else np.rint(t)
    return np.clip(rounded + (zero2 + 1) // 2, 0, 2**bits - 1).astype(np.int64)


GRIDS = [(8, 0), (8, 256), (4, 16), (2, 3), (2, 0)]


def quantized(x: np.ndarray, bits: int, zero2: int, granularity: str) -> tuple[Node, np.ndarray, np.ndarray]:
    """A node that quantizes x, its doubled codes (signed) and scales [N, 1]."""
    flat = x.reshape(5, 6)
    stat = np.abs(flat).max(1, keepdims=True) if zero2 else np.maximum(flat, 0).max(1, keepdims=True)
    scale = stat * F(0.01) if granularity == "row" else np.full((5, 1), 0.02, F)
    attrs = {"bits": bits, "zero2": zero2, "granularity": granularity}
    attrs |= {"factor": 0.01} if granularity == "row" else {"scale": float(F(0.02))}
    node = Node("q", "quantize", ("x",), attrs, (2, 3), "n")
    return node, 2 * codes_by_hand(flat, bits, zero2, scale) - zero2, scale


@pytest.mark.parametrize("granularity", ["row", "tensor"])
@pytest.mark.parametrize(("bits", "zero2"), GRIDS)
def test_quantized(bits: int, zero2: int, granularity: str) -> None:
    x = X.copy()
    x[2] = 0  # a row without a range
    x[3] = -np.abs(x[3])
    node, doubled, scale = quantized(x, bits, zero2, granularity)
    half = scale * F(0.5)
    got = run(NX, node, out("dequantize", "q"), x=x)
    np.testing.assert_array_equal(got, (doubled.astype(F) * half).reshape(5, 2, 3))
    rows = Node("p", "gather", ("q",), {"index": "picked"}, (2, 3), "three")
    got = run(NX, node, rows, out("dequantize", "p", rows="three"), x=x)
    np.testing.assert_array_equal(got, (doubled.astype(F) * half).reshape(5, 2, 3)[[3, 0, 3]])
    got = run(NX, node, out("gemm", "q", weight="w4", shape=(2, 4)), x=x)
    sums = doubled.reshape(5, 2, 3) @ (CODES.astype(np.int64) - 8)
    np.testing.assert_array_equal(got, (sums.astype(F) * half[:, :, None]) * WEIGHTS["w4"].scale)


@pytest.mark.parametrize("reduce", ["sum", "mean"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("granularity", ["row", "tensor", "unscaled"])
def test_spmm(granularity: str, weighted: bool, reduce: str) -> None:
    """Two heads of three columns, from the rows of x to four others, one of which has no edge."""
    unscaled = {"unscaled": True} if granularity == "unscaled" and weighted else {}
    granularity = "row" if granularity == "row" else "tensor"
    node, doubled, scale = quantized(X, 4, 16, granularity)
    weight = Node("a", "gather", ("w",), {"index": "g.edge_id"}, (2,), "g")
    operands = ("q", "a") if weighted else ("q",)
    attrs = {"graph": "g", "reduce": reduce, "heads": 2, "rows": "m", **unscaled}
    got = run(NX, NW, node, weight, out("spmm", *operands, **attrs))
    scale = np.ones_like(scale) if unscaled else scale
    for i in range(M):
        edges = [e for e in ORDER if E[1, e] == i]
        for h in range(2):
            values = [F(W[e, h] if weighted else 1) * scale[E[0, e], 0] for e in edges]
            largest = max(map(abs, values), default=F(0))
            ratio = F(127) / largest if largest > 0 else F(0)
            total = np.zeros(3, np.int64)
            for e, value in zip(edges, values, strict=True):
                total += int(np.rint(value * ratio)) * doubled[E[0, e], 3 * h : 3 * h + 3]
            wanted = total.astype(F) * (largest * F(0.5 / 127))
            if reduce == "mean":
                wanted = wanted / F(max(len(edges), 1))
            np.testing.assert_array_equal(got[i, h], wanted)


@pytest.mark.parametrize("reduce", ["max", "min"])
def test_spmm_of_extremes(reduce: str) -> None:
    node, doubled, _ = quantized(X, 4, 16, "tensor")
    got = run(NX, node, out("spmm", "q", graph="g", reduce=reduce, heads=1, rows="m"))
    wanted = by_destination(doubled.reshape(5, 2, 3)[E[0, ORDER]], reduce).astype(F) * (F(0.02) * F(0.5))
    np.testing.assert_array_equal(got, wanted)


def test_float_spmm_with_weights() -> None:
    weight = Node("a", "gather", ("w",), {"index": "g.edge_id"}, (2,), "g")
    got = run(NX, NW, weight, out("float_spmm", "x", "a", graph="g", reduce="sum", heads=2, rows="m"))
    np.testing.assert_array_equal(got, by_destination(XE * W[ORDER][:, :, None], "sum"))


def test_no_rows() -> None:
    """Spaces may be empty; constants on their rows are, too."""
    nothing = {"x": X[:0], "y": Y[:0], "e": E[:, :0], "b": B[:0], "w": W[:0]}
    node = quantized(X, 4, 16, "row")[0]
    assert run(NX, NC, out("add", "x", "c"), **nothing).shape == (0, 2, 3)
    assert run(NX, node, out("gemm", "q", weight="w4", shape=(2, 4)), **nothing).shape == (0, 2, 4)
    spread = run(NX, node, out("spmm", "q", graph="g", reduce="mean", heads=2, rows="m"), **nothing)
    np.testing.assert_array_equal(spread, np.zeros((M, 2, 3), F))
    for reduce in REDUCTIONS:
        got = run(NX, out("row_reduce", "x", reduce=reduce, rows=ONE), **nothing)
        np.testing.assert_array_equal(got, np.zeros((1, 2, 3), F))
    assert run(NX, EDGE, out("segment_softmax", "xe", rows="g"), **nothing).shape == (0, 2, 3)


def test_indices_that_nobody_checked_are_found() -> None:
    """They would read other rows silently, or memory that is not there in compiled code."""
    with pytest.raises(BackendError, match=r"reads the rows -1 \.\. 4 of 5: the index program must check"):
        run(NX, out("gather", "x", index="maybe", rows="two"))
    half = Node("h", "gather", ("x",), {"index": "two_first"}, (2, 3), "two")
    with pytest.raises(BackendError, match=r"reads the rows 0 \.\. 2 of 2"):
        run(NX, half, out("gather", "h", index="group"))
    with pytest.raises(BackendError, match="reads 3 rows of 'y' as the 5 rows of 'n'"):
        run(NY, y=Y[:3])
    with pytest.raises(BackendError, match="has 2 indices for the 5 rows of 'n'"):
        run(NX, out("gather", "x", index="maybe"))
    with pytest.raises(InputError, match=r"group\[0\] = 1099511627776 does not fit 32 bits"):
        run(out("from_index", index="group", shape=()), b=np.full(5, 2**40))


def test_every_operation_is_tested() -> None:
    tested = {nodes[-1].op for nodes, _ in EXACT.values()} | ELEMENTWISE
    tested |= {
        "softmax",
        "log_softmax",
        "segment_softmax",
        "gcn_norm",
        "quantize",
        "dequantize",
        "gemm",
        "spmm",
    }
    assert tested == set(OPS)


@pytest.mark.parametrize("name", MODELS)
def test_models_equal_the_oracle(name: str) -> None:
    """Whole models, interpreted twice: in torch here, in numpy by an oracle that shares no code."""
    graph = graph_of(name)
    model = CompiledModel(ReferenceExecutor(graph), graph, {})
    for inputs in calls_of(name, ((0, 0), (1, 4), (13, 40), (60, 300))):
        got = model(**inputs)
        got = got if isinstance(got, tuple) else (got,)
        for output, wanted in zip(got, Oracle(graph, inputs).outputs(), strict=True):
            np.testing.assert_array_equal(output, wanted, strict=True)
