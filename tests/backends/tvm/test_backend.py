"""Every kernel against the numpy oracle, bit for bit."""

from __future__ import annotations

import subprocess
import sys
import zlib
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from gnnquant.backends.tvm import build, codes
from gnnquant.backends.tvm.edge_codes import KEPT, kept_edges
from gnnquant.backends.tvm.partition import never_negative
from gnnquant.errors import BackendError
from gnnquant.integer_graph import (
    LOOPS,
    GraphInput,
    IndexNode,
    IntegerGraph,
    Node,
    PackedWeight,
    pack_codes,
)
from gnnquant.passes.lowering.factor_norms import factor_norms
from gnnquant.passes.lowering.factor_scales import factor_scales
from gnnquant.runtime.host import host_flags
from gnnquant.runtime.memory import aligned_copy
from gnnquant.runtime.plan import GRAPH_PADDING, Plan
from tests.backends.tvm import graphs
from tests.backends.tvm.driver import Library
from tests.backends.tvm.models import MODELS, SIZES, THREADS, built, calls_of, graph_of
from tests.backends.tvm.oracle import Oracle, csr

if TYPE_CHECKING:
    from pathlib import Path

PORTABLE = ("x86-64-v2", "x86-64")
FLAGS = host_flags() or frozenset()
HAS_AVX512 = {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"} <= FLAGS


def check(name: str, sizes: Any = SIZES, threads: int = 1, mcpu: str = "") -> None:
    graph, library = graph_of(name), Library(built(name, threads, mcpu))
    for inputs in calls_of(name, sizes):
        oracle = Oracle(graph, inputs)
        got = library.run(inputs)
        where = f"of {len(inputs['x'])} rows"
        for output, value, expected in zip(graph.outputs, got, oracle.outputs(), strict=True):
            np.testing.assert_array_equal(value, expected, strict=True, err_msg=f"{output} {where}")


@pytest.mark.parametrize("name", MODELS)
def test_models_equal_the_oracle(name: str) -> None:
    check(name)
    plan = built(name).plan
    assert Plan.from_json(plan.to_json()) == plan


@pytest.mark.parametrize(
    ("name", "threads"),
    [
        ("gcn-sparse-4", 3),
        ("gat-1", 3),
        ("gat-roots-8", 2),
        ("gatv2-8", 3),
        ("edges-sums", 3),
        *((name, threads) for name, threads in THREADS.items()),
    ],
)
def test_threads_do_not_change_results(name: str, threads: int) -> None:
    check(name, SIZES[2:], threads)


@pytest.mark.parametrize(
    ("name", "mcpu"),
    [
        *(("gcn-sparse-8", mcpu) for mcpu in PORTABLE),
        *(("gcn-2", mcpu) for mcpu in PORTABLE),
        *((name, PORTABLE[-1]) for name in ("sage-8", "gat-2", "gat-roots", "gatv2-8")),
    ],
)
def test_older_processors(name: str, mcpu: str) -> None:
    """One has products of bytes, the other has not; nothing else differs."""
    check(name, SIZES[1:], mcpu=mcpu)


@pytest.mark.parametrize(
    ("name", "level"),
    [
        *(
            pytest.param(
                name, "x86-64-v3", marks=pytest.mark.skipif("avx2" not in FLAGS, reason="no AVX2 here")
            )
            for name in ("gcn-sparse-8", "gat-4", "gat-roots-3")
        ),
        *(
            pytest.param(
                name, "x86-64-v4", marks=pytest.mark.skipif(not HAS_AVX512, reason="no AVX-512 here")
            )
            for name in (
                "gcn-sparse-8",
                "gcn-sparse-4",
                "gcn-2",
                "sage-8",
                "sage-max",
                "gat-4",
                "gat-roots-8",
                "edges-8",
            )
        ),
    ],
)
def test_newer_processors(name: str, level: str) -> None:
    check(name, SIZES[3:], mcpu=level)


@pytest.mark.parametrize("name", ["gcn-sparse-8", "gatv2-8"])
def test_512_bit_vectors_compile(name: str) -> None:
    model = built(name, mcpu="skylake-avx512")
    assert {"avx512f", "avx512bw"} <= set(model.target["features"])
    pools = [item for item in model.plan.buffers if item.name.startswith("constants.")]
    assert pools
    assert all(item.shape[0] % 16 == 0 for item in pools)


@pytest.mark.parametrize("bits", [2, 4])
def test_512_bit_pairs_of_packed_rows_compile(bits: int) -> None:
    target = {"kind": "llvm", "mcpu": "skylake-avx512"}
    assert build(graphs.gcn(bits, features=20, hidden=256), target=target).library


@pytest.mark.parametrize(("bits", "columns"), [(2, 70), (4, 70), (8, 70), (8, 96)])
def test_sums_of_a_hub_are_exact(bits: int, columns: int) -> None:
    m = graphs.Maker(bits)
    x = m.input("x", columns)
    g = m.graph(x)
    w = m.edge_input("w", g)
    q = m.quantize(x, bits, graphs.SIGNED[bits], "tensor")
    positive = m.unary("abs", w)
    graph = m.finish(m.spmm(q, g, w), m.spmm(q, g, positive), m.spmm(q, g, reduce="mean"))
    nodes, edges = 40, 70_000
    rng = np.random.default_rng(0)
    index = np.stack([rng.integers(0, nodes, edges), np.zeros(edges, np.int64)]).astype(np.int64)
    index[1, :100] = rng.integers(0, nodes, 100)
    # all codes and weights at their ends, so that narrow sums would overflow
    inputs = {
        "x": np.full((nodes, columns), 1000, np.float32),
        "edge_index": index,
        "w": rng.uniform(0.99, 1.0, edges).astype(np.float32),
    }
    oracle = Oracle(graph, inputs)
    for output, expected in zip(Library(build(graph)).run(inputs), oracle.outputs(), strict=True):
        np.testing.assert_array_equal(output, expected)


CODES = ((4, 16), (8, 0), (8, 255), (8, 256))
PROCESSORS = ("", "x86-64-v3", "x86-64-v2", "x86-64")


@pytest.mark.parametrize(
    ("heads", "bits", "zero2", "mcpu"),
    [
        (heads, *CODES[(i + j) % len(CODES)], mcpu)
        for i, heads in enumerate((1, 2, 10, 40))
        for j, mcpu in enumerate(PROCESSORS)
    ],
)
def test_weights_that_are_kept_and_those_that_are_not(heads: int, bits: int, zero2: int, mcpu: str) -> None:
    """Destinations with about as many edges as have their weights kept; weights below zero, or never."""
    m = graphs.Maker(heads)
    x = m.input("x", 40)
    g = m.graph(x)
    q, w = m.quantize(x, bits, zero2), m.edge_input("w", g, heads)
    graph = m.finish(*(m.spmm(q, g, weight, heads=heads) for weight in (w, m.unary("relu", w))))
    model = build(graph, target={"kind": "llvm", "mcpu": mcpu} if mcpu else "llvm")
    kept = {kept_edges(lanes, heads) for lanes in (4, 8, 16)}
    near = [count + more for count in sorted(kept) for more in (-1, 0, 1)]
    degrees = [*near, 3, 2 * KEPT + 5, 0, KEPT // 2 + 1]
    targets = np.repeat(np.arange(len(degrees)), degrees)
    rng = np.random.default_rng(1)
    inputs = {
        "x": rng.normal(size=(60, 40)).astype(np.float32),
        "edge_index": np.stack([rng.integers(0, 60, targets.size), targets]).astype(np.int64),
        "w": rng.normal(size=(targets.size, heads)).astype(np.float32),
    }
    # the largest weight is one that is not kept
    inputs["w"][sum(degrees[:-2]) - 1] = 9
    oracle = Oracle(graph, inputs)
    for value, expected in zip(Library(model).run(inputs), oracle.outputs(), strict=True):
        np.testing.assert_array_equal(value, expected)


def test_which_numbers_are_never_negative() -> None:
    m = graphs.Maker(0)
    x = m.input("x", 3)
    g = m.graph(x)
    w = m.edge_input("w", g, 3)
    positive = m.unary("exp", w)
    norm, odd = (m.add("gcn_norm", (), (), g, fill=fill) for fill in (1.0, -1.0))
    degree = m.add("from_index", (), (), m.rows(x), index=m.index("count", f"{g}.dst", m.rows(x)))
    number = m.add("from_index", (), (), m.rows(x), index=m.index("arange", m.rows(x)))
    source = m.add("from_index", (), (), g, index=f"{g}.src")
    constants = [m.constant(3) for _ in range(2)]
    m.constants[next(n.attrs["array"] for n in m.nodes if n.name == constants[0])][:] = (0, 1, 2)
    yes = [positive, norm, degree, constants[0], m.binary("mul", positive, positive)]
    yes += [m.unary("rdiv", m.unary("sqrt", degree), scalar=1.0), m.reshape(positive, 1, 3)]
    yes += [m.binary("where", w, positive, positive), m.add("segment_softmax", (w,), (3,))]
    no = [
        w,
        odd,
        number,
        source,
        constants[1],
        m.binary("mul", positive, w),
        m.binary("sub", positive, positive),
    ]
    no += [m.unary("mul", positive, scalar=-1.0), m.unary("rdiv", positive, scalar=-1.0)]
    no += [m.binary("where", positive, positive, w), m.unary("neg", positive)]
    graph = m.finish(x)
    assert [never_negative(graph, name) for name in yes] == [True] * len(yes)
    assert [never_negative(graph, name) for name in no] == [False] * len(no)


@pytest.mark.parametrize("mcpu", ["", "x86-64-v3", "x86-64"])
@pytest.mark.parametrize(("bits", "signed"), [(2, False), (8, True)])
def test_weights_that_follow_from_the_graph_are_rounded_once(bits: int, signed: bool, mcpu: str) -> None:
    """Destinations with about as many edges as are summed at once, and one with more than fit 32 bits."""
    m = graphs.Maker(bits)
    x = m.input("x", 70)
    g = m.graph(x)
    norm = m.add("gcn_norm", (), (), g, fill=1.0)
    q = m.quantize(x, bits, graphs.SIGNED[bits] if signed else 0, "tensor")
    y = m.quantize(m.spmm(q, g, norm), bits, graphs.SIGNED[bits], "tensor")
    graph = factor_scales(factor_norms(m.finish(m.spmm(y, g, norm))))
    model = build(graph, target={"kind": "llvm", "mcpu": mcpu} if mcpu else "llvm", threads=2)
    rounds = [call for call in model.plan.calls if "_codes" in call.function]
    assert len(rounds) == 1
    assert rounds[0].per_graph
    degrees = [KEPT - 1, KEPT, KEPT + 1, 3, 2 * KEPT + 5, 0, 40_000, 5]
    targets = np.repeat(np.arange(len(degrees)), degrees)
    rng = np.random.default_rng(bits)
    inputs = {
        "x": rng.normal(size=(60, 70)).astype(np.float32) * 9,
        "edge_index": np.stack([rng.integers(0, 60, targets.size), targets]).astype(np.int64),
    }
    oracle = Oracle(graph, inputs)
    for value, expected in zip(Library(model).run(inputs), oracle.outputs(), strict=True):
        assert expected.any()
        np.testing.assert_array_equal(value, expected)


def test_rows_of_edges_stay_in_scratch() -> None:
    """Only what another kernel needs is stored: the columns that the next layer reads, scores, weights."""
    for name, kept in (("edges-sums", ["columns"]), ("gatv2-4", ["gemm", "reduce"])):
        plan = built(name).plan
        spaces = {node.name for node in plan.index if node.op == "graph"}
        stored = {item.name.rpartition("_")[2] for item in plan.buffers if item.shape[0] in spaces} & {
            item.name.rpartition("_")[2] for item in plan.buffers if item.name.startswith("rows.")
        }
        assert sorted(stored) == kept


@pytest.mark.parametrize("loops", LOOPS)
def test_graphs_are_sorted_by_destination(loops: str) -> None:
    library = Library(built("floats"))
    for nodes, edges in SIZES:
        index = aligned_copy(graphs.edge_index(nodes, nodes, edges))
        source, target, position = csr(index, nodes, loops)
        mode = np.array([LOOPS.index(loops)], np.int32)
        indptr, cursor = np.zeros(nodes + 1, np.int32), np.zeros(nodes, np.int32)
        library.call("graph_count", index, indptr, mode)
        np.testing.assert_array_equal(np.diff(indptr), np.bincount(target, minlength=nodes))
        indices, edge_id = (np.ones(len(source) + GRAPH_PADDING, np.int32) for _ in range(2))
        library.call("graph_fill", index, indptr, indices, edge_id, cursor, mode)
        np.testing.assert_array_equal(indices[: len(source)], source)
        np.testing.assert_array_equal(edge_id[: len(source)], position)
        assert not indices[len(source) :].any()


def test_non_finite_inputs_show_in_a_buffer() -> None:
    """In scales of rows, or in what is kept in place of them where all rows have one."""
    for name in ("gcn-sparse-4", "gcn-4", "gcn-tensor-8", "gcn-tensor-2"):
        graph, model = graph_of(name), built(name)
        assert set(model.plan.notes["finite"]) == {"x"}
        library = Library(model)
        inputs = graphs.values(graph, 9, 20)
        found: dict[str, Any] = {}
        library.run(inputs, buffers=found)
        assert np.isfinite(found[model.plan.notes["finite"]["x"]]).all()
        for bad in (np.nan, np.inf, -np.inf, -np.nan):
            inputs["x"] = np.ones_like(inputs["x"])
            inputs["x"][4, 17] = bad
            buffers: dict[str, Any] = {}
            library.run(inputs, buffers=buffers)
            assert not np.isfinite(buffers[model.plan.notes["finite"]["x"]]).all()


def test_int2_artifact_is_small() -> None:
    model = build(graphs.gcn(2, signed=False, features=500, hidden=256), target="x86-64-v3")
    sizes = [len(zlib.compress(a.tobytes(), 9)) for a in model.constants.values()]
    assert sum(sizes) + len(zlib.compress(model.library, 9)) < 51 * 1024


def _single(node: Node, weight: PackedWeight | None = None) -> IntegerGraph:
    quantized = {"bits": 8, "zero2": 0, "granularity": "row", "factor": 0.1}
    nodes = [
        Node("x", "input", (), {"input": "x"}, (4,), "n"),
        Node("q", "quantize", ("x",), quantized, (4,), "n"),
        node,
    ]
    weights = {} if weight is None else {"w": weight}
    inputs = [GraphInput("x", "rows", (4,))]
    program = [IndexNode("n", "rows", (), {"input": "x"})]
    return IntegerGraph(inputs, [], program, nodes, [node.name], weights=weights)


def test_errors_name_the_node() -> None:
    codes = pack_codes(np.full((4, 2), 255, np.uint8), 8)
    weight = PackedWeight(8, 0, (4, 2), codes, np.ones(2, np.float32))
    node = Node("y", "gemm", ("q",), {"weight": "w"}, (2,), "n", source="layer.lin")
    with pytest.raises(BackendError, match=r"gemm 'y' \(layer.lin\).*8 signed bits"):
        build(_single(node, weight))
    with pytest.raises(BackendError, match=r"quantize 'q': codes are read where floats"):
        build(_single(Node("y", "relu", ("q",), {}, (4,), "n")))
    with pytest.raises(BackendError, match="is quantized"):
        build(_single(Node("y", "reshape", ("q",), {}, (2, 2), "n")))
    with pytest.raises(BackendError, match="threads"):
        build(graphs.floats(), threads=0)


def test_import_does_not_load_tvm() -> None:
    code = "import sys, gnnquant.backends.tvm; sys.exit('tvm' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_dump(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GNNQUANT_DUMP", str(tmp_path))
    build(graphs.floats())
    assert "prim_func" in next(tmp_path.glob("tvm-k*_rows.txt")).read_text()


def test_values_of_codes_are_not_kept_as_floats() -> None:
    """What every step adds is computed again from 8-bit codes; the float steps read it from memory."""
    m = graphs.Maker(1)
    x = m.input("x", 40)
    g = m.graph(x)
    back = m.add("dequantize", (m.quantize(x, 8, 256),), (40,))
    scaled = m.unary("mul", m.binary("add", back, m.constant(40)), scalar=0.1)
    y = x
    for _ in range(3):
        y = m.binary("add", m.spmm(m.quantize(y, 4, 16), g), scaled)
    graph = m.finish(y, scaled)
    model = build(graph)
    floats = [item for item in model.plan.buffers if item.dtype == "float32" and item.shape[-1] == 40]
    assert {item.kind for item in floats} == {"input", "output"}
    inputs = graphs.values(graph, 30, 100)
    oracle = Oracle(graph, inputs)
    for value, expected in zip(Library(model).run(inputs), oracle.outputs(), strict=True):
        np.testing.assert_array_equal(value, expected, strict=True)


@pytest.mark.parametrize("of_input", [True, False])
def test_values_quantized_at_several_widths(of_input: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their rows are searched once for their largest number, and an input is read once."""
    found: list[int] = []

    def counted(kernel: Any, x: Any, r: Any, zero2: int, watched: bool) -> Any:
        found.append(zero2)
        return statistic(kernel, x, r, zero2, watched)

    statistic = codes._statistic
    monkeypatch.setattr(codes, "_statistic", counted)
    m = graphs.Maker(2)
    x = m.input("x", 40)
    g = m.graph(x)
    if not of_input:
        x = m.unary("neg", m.spmm(m.quantize(x, 8, 256, "tensor"), g))
    kept = m.add("dequantize", (m.quantize(x, 8, 256),), (40,))
    sums = [m.spmm(m.quantize(x, bits, zero2), g) for bits, zero2 in ((4, 16), (2, 3), (2, 0), (4, 0))]
    graph = m.finish(*sums, m.binary("add", sums[0], kept))
    model = build(graph)
    assert sorted(map(bool, found)) == [False, True]
    readers = [call.function for call in model.plan.calls if "x" in call.arguments]
    assert len(readers) == 1
    inputs = graphs.values(graph, 30, 100)
    oracle = Oracle(graph, inputs)
    for value, expected in zip(Library(model).run(inputs), oracle.outputs(), strict=True):
        np.testing.assert_array_equal(value, expected, strict=True)
