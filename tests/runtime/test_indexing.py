"""Every operation of the index program beside one line of numpy, and what each check says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gnnquant.errors import BackendError, InputError
from gnnquant.integer_graph import INDEX_OPS, LOOPS, GraphInput, IndexNode
from gnnquant.runtime.graph import sort_edges
from gnnquant.runtime.indexing import EdgeList, IndexInputs, IndexProgram, IndexResults, tied_inputs

INPUTS = (
    GraphInput("x", "rows", (4,)),
    GraphInput("w", "rows"),
    GraphInput("e", "edges"),
    GraphInput("f", "edges"),
    GraphInput("batch", "index"),
    GraphInput("types", "index", (2, 3)),
    GraphInput("count", "size"),
    GraphInput("adj", "adjacency"),
    GraphInput("mask", "mask", (2, 3)),
)
E = np.array([[0, 3, 2, 2, 4, 0, 2], [1, 3, 2, 0, 1, 1, 2]])
F = np.array([[1, 0], [4, 2]])
BATCH = np.array([0, 0, 2, 2, 5])
TYPES = np.arange(30).reshape(5, 2, 3) % 7
ADJ = np.array([[0, 0, 2], [1, 3, 0]])
GIVEN = IndexInputs(
    rows={"x": 5, "w": 7, "e": 7, "f": 2, "batch": 5, "types": 5, "adj": 3, "mask": 5},
    arrays={"e": E, "f": F, "batch": BATCH, "types": TYPES, "adj": ADJ, "mask": TYPES > 2},
    numbers={"count": (6,), "adj": (3, 4)},
)

N = IndexNode("n", "rows", (), {"input": "x"})
SRC, DST = (
    IndexNode(name, "index_input", (), {"input": "e", "part": i}) for i, name in enumerate(("s", "d"))
)
B = IndexNode("b", "index_input", (), {"input": "batch"})
MASK = IndexNode("mask", "combine", ("s",), {"function": "ge", "right": 2})


def node(op: str, *inputs: str, name: str = "out", **attrs: Any) -> IndexNode:
    return IndexNode(name, op, inputs, attrs)


def listing(name: str, *values: int) -> IndexNode:
    return node("values", name=name, values=list(values))


def run(*nodes: IndexNode, given: IndexInputs = GIVEN) -> IndexResults:
    return IndexProgram(nodes, INPUTS).run(given)


def value(*nodes: IndexNode, given: IndexInputs = GIVEN) -> Any:
    results = run(*nodes, given=given)
    name = nodes[-1].name
    return results.sizes[name] if name in results.sizes else results.arrays[name]


NAT = listing("a", 7, -3, 0, 5)
OTHER = listing("c", 2, 2, -4, 5)
VALUES: dict[str, tuple[tuple[IndexNode, ...], Any]] = {
    "rows": ((node("rows", input="x"),), 5),
    "rows of edges": ((node("rows", input="e"),), 7),
    "rows of a matrix": ((node("rows", input="adj"),), 3),
    "size_input": ((node("size_input", input="count"),), 6),
    "size_input of a matrix": ((node("size_input", input="adj", axis=1),), 4),
    "size": ((N, node("size", "n", "n", function="mul")), 25),
    "size with a number": ((N, node("size", "n", function="sub", left=9)), 4),
    "size of numbers": ((node("size", function="floordiv", left=7, right=2),), 3),
    "size mod": ((N, node("size", "n", function="mod", right=3)), 2),
    "size max": ((N, node("size", "n", function="max", right=1)), 5),
    "size min": ((N, node("size", "n", function="min", right=1)), 1),
    "size add": ((N, node("size", "n", function="add", right=1)), 6),
    "length": ((SRC, node("length", "s")), 7),
    "extent": ((B, node("extent", "b")), 6),
    "extent of nothing": ((listing("a"), node("extent", "a")), 0),
    "index_input": ((node("index_input", input="batch"),), BATCH),
    "index_input of edges": ((node("index_input", input="e", part=1),), E[1]),
    "index_input of columns": ((node("index_input", input="types", part=4),), TYPES[:, 1, 1]),
    "index_input of a mask": ((node("index_input", input="mask", part=3),), (TYPES[:, 1, 0] > 2).astype(int)),
    "index_input of a matrix": ((node("index_input", input="adj", part="col"),), ADJ[1]),
    "values": ((listing("out", 3, -1),), np.array([3, -1])),
    "arange": ((N, node("arange", "n")), np.arange(5)),
    "full": ((N, node("full", "n", value=-2)), np.full(5, -2)),
    "not": ((SRC, MASK, node("not", "mask")), (E[0] < 2).astype(int)),
    "join": ((SRC, B, node("join", "s", "b", "s")), np.concatenate([E[0], BATCH, E[0]])),
    "select": ((SRC, DST, MASK, node("select", "d", "mask")), E[1][E[0] >= 2]),
    "nonzero": ((SRC, MASK, node("nonzero", "mask")), np.flatnonzero(E[0] >= 2)),
    "take": ((B, SRC, node("take", "b", "s")), BATCH[E[0]]),
    "put": (
        (
            N,
            node("full", "n", name="z", value=9),
            listing("i", 1, 4, 1),
            listing("v", 5, 6, 7),
            node("put", "z", "i", "v"),
        ),
        np.array([9, 7, 9, 9, 6]),
    ),
    "count": ((DST, N, node("count", "d", "n")), np.bincount(E[1], minlength=5)),
    "cumsum": ((NAT, node("cumsum", "a")), np.cumsum([7, -3, 0, 5])),
    "argsort": ((DST, node("argsort", "d")), np.argsort(E[1], kind="stable")),
    "bounded": ((SRC, N, node("bounded", "s", "n")), E[0]),
    "part": (
        (
            SRC,
            DST,
            N,
            node("graph", "s", "d", "n", "n", name="g", loops="keep"),
            node("part", "g", part="edge_id"),
        ),
        np.argsort(E[1], kind="stable"),
    ),
}
FUNCTIONS = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "floordiv": np.floor_divide, "mod": np.mod,
    "max": np.maximum, "min": np.minimum, "eq": np.equal, "ne": np.not_equal, "lt": np.less,
    "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal,
}  # fmt: skip


@pytest.mark.parametrize("case", VALUES)
def test_value(case: str) -> None:
    nodes, wanted = VALUES[case]
    got = value(*nodes)
    np.testing.assert_array_equal(got, wanted)
    if isinstance(wanted, int):
        assert type(got) is int
    else:
        assert got.dtype == np.int64
        assert got.shape == wanted.shape


def test_every_operation_is_tested() -> None:
    tested = {nodes[-1].op for nodes, _ in VALUES.values()}
    assert tested | {"combine", "same_size", "graph"} == set(INDEX_OPS)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_combine(function: str) -> None:
    a, c = np.array([7, -3, 0, 5]), np.array([2, 2, -4, 5])
    ufunc = FUNCTIONS[function]
    np.testing.assert_array_equal(
        value(NAT, OTHER, node("combine", "a", "c", function=function)), ufunc(a, c)
    )
    np.testing.assert_array_equal(value(NAT, node("combine", "a", function=function, right=2)), ufunc(a, 2))
    np.testing.assert_array_equal(value(OTHER, node("combine", "c", function=function, left=3)), ufunc(3, c))
    np.testing.assert_array_equal(value(N, OTHER, node("combine", "n", "c", function=function)), ufunc(5, c))
    np.testing.assert_array_equal(value(N, NAT, node("combine", "a", "n", function=function)), ufunc(a, 5))
    empty = listing("a")
    assert value(empty, node("combine", "a", function=function, right=0)).shape == (0,)


@pytest.mark.parametrize(("function", "wanted"), [("and", [1, 0, 0, 0]), ("or", [1, 1, 1, 0])])
def test_masks(function: str, wanted: list[int]) -> None:
    masks = listing("a", 1, 1, 0, 0), listing("c", 1, 0, 1, 0)
    assert value(*masks, node("combine", "a", "c", function=function)).tolist() == wanted


def loops_by_hand(edges: np.ndarray, nodes: int, loops: str) -> list[tuple[int, int, int]]:
    """(source, destination, position), by destination, appended loops last: plain Python."""
    given = [(int(s), int(d), i) for i, (s, d) in enumerate(edges.T)]
    appended = dict.fromkeys(range(nodes), -1) if loops in ("add", "replace", "remaining") else {}
    if loops == "remaining":
        appended |= {d: i for s, d, i in given if s == d}
    if loops in ("remove", "replace", "remaining"):
        given = [edge for edge in given if edge[0] != edge[1]]
    given += [(i, i, position) for i, position in appended.items()]
    return sorted(given, key=lambda edge: edge[1])


@pytest.mark.parametrize("loops", LOOPS)
@pytest.mark.parametrize("edges", [E, np.empty((2, 0), np.int64), E[:, [1, 2]]])
def test_graph_in_csr_order(loops: str, edges: np.ndarray) -> None:
    given = IndexInputs(GIVEN.rows, {"e": edges})
    graph = run(SRC, DST, N, node("graph", "s", "d", "n", "n", loops=loops), given=given)
    found = graph.graphs["out"].csr
    wanted = loops_by_hand(edges, 5, loops)
    assert list(zip(found.src.tolist(), found.dst.tolist(), found.edge_id.tolist(), strict=True)) == wanted
    np.testing.assert_array_equal(graph.array("out.dst"), found.dst)


def test_graph_of_one_input_is_not_copied() -> None:
    graph = node("graph", "s", "d", "n", "n", loops="keep")
    assert run(SRC, DST, N, graph).graphs["out"].edges is E
    bounded = node("bounded", "s", "n", name="s2")
    assert (
        run(SRC, DST, N, bounded, node("graph", "s2", "d", "n", "n", loops="keep")).graphs["out"].edges is E
    )
    turned = run(SRC, DST, N, node("graph", "d", "s", "n", "n", loops="keep")).graphs["out"]
    np.testing.assert_array_equal(turned.edges, E[::-1])


def test_bipartite_graph() -> None:
    m = node("size", name="m", function="add", left=4, right=0)
    graph = run(SRC, DST, N, m, node("graph", "s", "d", "n", "m", loops="keep")).graphs["out"]
    assert (graph.sources, graph.destinations) == (5, 4)


G = ("s", "d", "n", "n")
SMALL = node("size", name="m", function="add", left=3, right=0)
FAILURES: dict[str, tuple[tuple[IndexNode, ...], str]] = {
    "graph": (
        (SRC, DST, SMALL, node("graph", "s", "d", "m", "m", loops="keep")),
        r"^e\[0, 1\] = 3 is not below 3: every index must be in 0 \.\. 2; does the graph belong",
    ),
    "graph, destinations": (
        (SRC, DST, N, SMALL, node("graph", "s", "d", "n", "m", loops="keep", label="edge_index")),
        r"^edge_index\[1, 1\] = 3 is not below 3",
    ),
    "graph of other lengths": (
        (SRC, B, N, node("graph", "s", "b", "n", "n", loops="keep")),
        "7 and 5 entries do not belong together",
    ),
    "bipartite loops": (
        (
            SRC,
            DST,
            N,
            node("size", name="m", function="add", left=9, right=0),
            node("graph", "s", "d", "n", "m", loops="add"),
        ),
        "joins 5 sources to 9 destinations: self-loops need the same rows",
    ),
    "bounded": (
        (B, N, node("bounded", "b", "n")),
        r"^batch\[4\] = 5 is not below 5, the number of rows of x: every index must be in 0 \.\. 4$",
    ),
    "bounded by an input": (
        (SRC, node("size_input", name="m", input="adj", axis=0), node("bounded", "s", "m")),
        r"^e\[0, 1\] = 3 is not below 3, the number of rows of adj",
    ),
    "bounded column": (
        (node("index_input", name="t", input="types", part=4), SMALL, node("bounded", "t", "m")),
        r"^types\[0, 1, 1\] = 4 is not below 3",
    ),
    "bounded matrix": (
        (node("index_input", name="t", input="adj", part="col"), SMALL, node("bounded", "t", "m")),
        r"^adj: col index 1 = 3 is not below 3",
    ),
    "bounded by nothing": (
        (B, node("size", name="m", function="add", left=0, right=0), node("bounded", "b", "m")),
        r"^batch\[0\] = 0 is not below 0: there is nothing that it could name",
    ),
    "negative": (
        (listing("a", 1, -1, -2), N, node("bounded", "a", "n", label="the list")),
        r"^the list\[1\] = -1 is negative",
    ),
    "take": ((B, listing("a", 0, 5), node("take", "b", "a")), r"^out\[1\] = 5 is not below 5"),
    "put": (
        (B, listing("a", 5), listing("v", 1), node("put", "b", "a", "v")),
        r"^out\[0\] = 5 is not below 5",
    ),
    "put of other lengths": ((B, listing("a", 1, 2), listing("v", 1), node("put", "b", "a", "v")), "2 and 1"),
    "count": ((B, N, node("count", "b", "n", label="degree")), r"^degree\[4\] = 5 is not below 5"),
    "select": ((B, SRC, MASK, node("select", "b", "mask")), "5 and 7 entries do not belong together"),
    "combine": ((B, SRC, node("combine", "b", "s", function="add")), "5 and 7 entries cannot be combined"),
    "same_size": (
        (N, node("rows", name="m", input="e"), node("same_size", "n", "m", message="one row per edge")),
        "^x has 5 rows, but e has 7 edges: one row per edge$",
    ),
    "same_size of a number": (
        (N, node("size_input", name="m", input="count"), node("same_size", "m", "n")),
        "^count is 6, but x has 5 rows: they must be equal$",
    ),
    "same_size of a matrix": (
        (N, node("size_input", name="m", input="adj", axis=1), node("same_size", "m", "n")),
        "^adj has 4 columns, but x has 5 rows",
    ),
    "same_size of a length": (
        (N, SRC, node("length", "s", name="l"), node("same_size", "l", "n")),
        "^e has 7 edges, but x has 5 rows",
    ),
    "same_size of something": ((N, SMALL, node("same_size", "m", "n")), "^m is 3, but x has 5 rows"),
    "negative size": ((N, node("size", "n", function="sub", right=6)), "out would be -1: a size cannot be"),
    "extent": ((listing("a", -5), node("extent", "a")), "out would be -4: a size cannot be negative"),
    "size by 0": ((N, node("size", "n", function="mod", right=0)), "5 is to be divided by a size of 0"),
    "by 0": ((NAT, node("combine", "a", function="floordiv", left=1)), r"out\[2\] is to be divided by 0"),
    "by the number 0": (
        (NAT, node("combine", "a", function="mod", right=0)),
        r"out\[0\] is to be divided by 0",
    ),
    "sum": (
        (listing("a", 2**62), node("combine", "a", "a", function="add")),
        "9223372036854775808 does not fit 64 bits",
    ),
    "difference": (
        (listing("a", 2**62, -(2**63)), node("combine", "a", function="sub", left=1)),
        "does not fit 64 bits",
    ),
    "product": ((listing("a", -3, 2**40), node("combine", "a", "a", function="mul")), "does not fit 64 bits"),
    "quotient": (
        (listing("a", -(2**63)), node("combine", "a", function="floordiv", right=-1)),
        "does not fit 64 bits",
    ),
    "running sum": ((listing("a", 2**62, 2**62), node("cumsum", "a")), "does not fit 64 bits"),
    "size product": (
        (node("size", name="m", function="add", left=2**62, right=0), node("size", "m", "m", function="mul")),
        "does not fit 64 bits",
    ),
    "arange": (
        (node("size", name="m", function="add", left=2**31, right=0), node("arange", "m")),
        "out would have 2147483648 entries or rows: at most 2147483647",
    ),
    "full": (
        (node("size", name="m", function="add", left=2**40, right=0), node("full", "m", value=0)),
        "out would have 1099511627776 entries",
    ),
    "graph between too many": (
        (
            SRC,
            DST,
            node("size", name="m", function="add", left=2**31, right=0),
            node("graph", "s", "d", "m", "m", loops="keep"),
        ),
        "would have 2147483648 entries or rows",
    ),
    "edges and loops": (
        (
            SRC,
            DST,
            node("size", name="m", function="add", left=2**31 - 1, right=0),
            node("graph", "s", "d", "m", "m", loops="add"),
        ),
        "out has 2147483654 edges, self-loops included: at most 2147483647",
    ),
}


@pytest.mark.parametrize("case", FAILURES)
def test_wrong_data_is_named(case: str) -> None:
    nodes, message = FAILURES[case]
    with pytest.raises(InputError, match=message):
        run(*nodes)


MALFORMED: dict[str, tuple[IndexNode, ...]] = {
    "unknown op": (node("novel"),),
    "operand that comes later": (node("length", "s"), SRC),
    "size for an array": (N, node("length", "n")),
    "array for a size": (SRC, node("arange", "s")),
    "too many operands": (N, node("arange", "n", "n")),
    "check as a value": (N, node("same_size", "n", "n"), node("arange", "out", name="again")),
    "graph as an array": (SRC, DST, N, node("graph", *G, loops="keep"), node("length", "out", name="again")),
    "defined twice": (N, N),
    "unknown input": (node("rows", input="y"),),
    "no input": (node("index_input"),),
    "size of rows": (node("size_input", input="x"),),
    "rows of a size": (node("rows", input="count"),),
    "no axis": (node("size_input", input="adj"),),
    "third end": (node("index_input", input="e", part=2),),
    "negative end": (node("index_input", input="e", part=-1),),
    "truth for an end": (node("index_input", input="e", part=True),),
    "no end": (node("index_input", input="e"),),
    "no column": (node("index_input", input="types"),),
    "no column of a mask": (node("index_input", input="mask"),),
    "seventh column": (node("index_input", input="types", part=6),),
    "floats as indices": (node("index_input", input="x"),),
    "unknown function": (N, node("size", "n", "n", function="pow")),
    "comparison of sizes": (N, node("size", "n", "n", function="eq")),
    "sizes combined": (N, node("combine", "n", "n", function="add")),
    "three operands": (N, node("size", "n", "n", function="add", left=1)),
    "float operand": (N, node("size", "n", function="add", left=1.5)),
    "float values": (node("values", values=[1.0]),),
    "large values": (node("values", values=[2**63]),),
    "no values": (node("values"),),
    "large value": (N, node("full", "n", value=2**63)),
    "unknown part": (
        SRC,
        DST,
        N,
        node("graph", *G, name="g", loops="keep"),
        node("part", "g", part="indptr"),
    ),
    "unknown loops": (SRC, DST, N, node("graph", *G, loops="some")),
    "join of nothing": (node("join"),),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_program(case: str) -> None:
    with pytest.raises(BackendError, match="index program: '"):
        IndexProgram(MALFORMED[case], INPUTS)


def test_inputs_that_belong_together() -> None:
    program = IndexProgram(
        (
            N,
            node("rows", name="w", input="w"),
            node("rows", name="e", input="e"),
            node("rows", name="f", input="f"),
            node("same_size", "w", "e", name="c1"),
            B,
            node("length", "b", name="l"),
            node("same_size", "l", "n", name="c2"),
            node("size_input", name="m", input="adj", axis=0),
            node("same_size", "n", "m", name="c3"),
            node("index_input", name="t", input="types", part=0),
            node("combine", "t", "b", name="tb", function="add"),
        ),
        INPUTS,
    )
    ties = tied_inputs(program)
    groups: dict[tuple[str, int], set[tuple[str, int]]] = {}
    for source, leader in ties.items():
        groups.setdefault(leader, set()).add(source)
    assert sorted(map(sorted, groups.values())) == [
        [("adj", 0), ("batch", 0), ("types", 0), ("x", 0)],
        [("e", 0), ("w", 0)],
        [("f", 0)],
    ]


def test_sorting_is_stable_for_many_edges() -> None:
    edges = np.random.default_rng(0).integers(0, 50, (2, 2000))
    for loops in LOOPS:
        found = sort_edges(edges, 50, loops)
        got = list(zip(found.src.tolist(), found.dst.tolist(), found.edge_id.tolist(), strict=True))
        assert got == loops_by_hand(edges, 50, loops)


@pytest.mark.parametrize("loops", LOOPS)
@pytest.mark.parametrize(("nodes", "edges"), [(50, 2000), (50, 20), (3, 0), (0, 0)])
def test_destinations_are_known_without_sorting(
    loops: str, nodes: int, edges: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Roots of degrees read them: sorting took ten times as long as all else that prepares a graph."""
    ends = np.random.default_rng(nodes + edges).integers(0, max(nodes, 1), (2, edges))
    expected = sort_edges(ends, nodes, loops).dst
    monkeypatch.delattr(EdgeList, "csr")
    np.testing.assert_array_equal(EdgeList(ends, nodes, nodes, loops).part("dst"), expected, strict=True)
