"""Every kernel against the numpy oracle, bit for bit."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zlib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from gnnquant.backends.tvm import BuiltModel, build
from gnnquant.errors import BackendError
from gnnquant.integer_graph import GraphInput, IntegerGraph, Node, PackedWeight, pack_codes
from gnnquant.runtime.executor import TvmExecutor
from gnnquant.runtime.plan import Plan
from tests.backends.tvm import graphs
from tests.backends.tvm.oracle import Oracle, csr

if TYPE_CHECKING:
    from collections.abc import Callable

SIZES = ((1, 0), (1, 4), (5, 0), (13, 40), (150, 900))
PORTABLE = ("x86-64-v2", "x86-64")

MODELS: dict[str, Callable[[], IntegerGraph]] = {
    **{f"gcn-{bits}": lambda bits=bits: graphs.gcn(bits) for bits in (2, 4, 8)},  # type: ignore[misc]
    **{  # wide enough for products that skip zeros
        f"gcn-sparse-{bits}": lambda bits=bits: graphs.gcn(  # type: ignore[misc]
            bits, signed=False, loops="add", features=301, hidden=128
        )
        for bits in (2, 4, 8)
    },
    "gcn-tensor": lambda: graphs.gcn(4, granularity="tensor", loops="replace"),
    "gcn-weighted": lambda: graphs.gcn(8, weighted=True, hidden=3, features=6),
    **{f"sage-{bits}": lambda bits=bits: graphs.sage(bits) for bits in (2, 4, 8)},  # type: ignore[misc]
    "sage-max": lambda: graphs.sage(4, "max", hidden=130),
    "sage-max-narrow": lambda: graphs.sage(2, "max", features=5, hidden=8),
    "gat-2": lambda: graphs.gat(2, heads=2, width=70),
    "gat-4": lambda: graphs.gat(4),
    "gat-8": lambda: graphs.gat(8, heads=3, width=5),
    "floats": graphs.floats,
    "floats-mean": lambda: graphs.floats("mean", heads=1, features=16),
    "floats-max": lambda: graphs.floats("max", heads=2, features=16),
}


def check(graph: IntegerGraph, built: BuiltModel, sizes: Any = SIZES) -> None:
    with tempfile.NamedTemporaryFile(suffix=".so") as file:
        Path(file.name).write_bytes(built.library)
        executor = TvmExecutor(built.plan, built.constants, file.name)
    for nodes, edges in sizes:
        index = graphs.edge_index(nodes, edges, seed=nodes)
        inputs = graphs.values(graph, nodes, edges)
        prepared = executor.prepare({"edge_index": index}, nodes)
        # twice: workspaces hold the values of the first call
        for _ in range(2):
            got = executor.run(prepared, inputs, nodes)
        want = Oracle(graph, index, inputs, nodes).outputs()
        for output, expected in zip(got, want, strict=True):
            np.testing.assert_array_equal(output, expected.astype(np.float32), strict=True)


@pytest.mark.parametrize("name", MODELS)
def test_models_equal_the_oracle(name: str) -> None:
    graph = MODELS[name]()
    built = build(graph)
    check(graph, built)
    assert Plan.from_json(built.plan.to_json()) == built.plan


@pytest.mark.parametrize("threads", [2, 3])
@pytest.mark.parametrize("name", ["gcn-sparse-4", "gat-4"])
def test_threads_do_not_change_results(name: str, threads: int) -> None:
    graph = MODELS[name]()
    check(graph, build(graph, threads=threads), SIZES[2:])


@pytest.mark.parametrize("mcpu", PORTABLE)
@pytest.mark.parametrize("name", ["gcn-sparse-8", "gcn-2", "sage-4", "gat-2"])
def test_older_processors(name: str, mcpu: str) -> None:
    graph = MODELS[name]()
    check(graph, build(graph, target={"kind": "llvm", "mcpu": mcpu}), SIZES[1:])


@pytest.mark.parametrize("name", ["gcn-sparse-8", "gat-4"])
def test_512_bit_vectors_compile(name: str) -> None:
    built = build(MODELS[name](), target={"kind": "llvm", "mcpu": "skylake-avx512"})
    assert built.target["vector_features"] == ["avx512f", "avx512bw"]


@pytest.mark.parametrize(("bits", "columns"), [(2, 70), (4, 70), (8, 70), (8, 96)])
def test_sums_of_a_hub_are_exact(bits: int, columns: int) -> None:
    m = graphs.Maker(bits)
    x, g = m.input("x", columns), m.graph("keep")
    w = m.edge_input("w", g)
    q = m.quantize(x, bits, graphs.SIGNED[bits], "tensor")
    y = m.add("spmm", (q, g, w), (columns,), reduce="sum", heads=1)
    z = m.add("spmm", (q, g), (columns,), reduce="mean", heads=1)
    graph = m.finish(y, z)
    built = build(graph)
    nodes, edges = 40, 70_000
    rng = np.random.default_rng(0)
    index = np.stack([rng.integers(0, nodes, edges), np.zeros(edges, np.int64)]).astype(np.int64)
    index[1, :100] = rng.integers(0, nodes, 100)
    # all codes and weights at their ends, so that narrow sums would overflow
    inputs = {
        "x": np.full((nodes, columns), 1000, np.float32),
        "w": rng.uniform(0.99, 1.0, edges).astype(np.float32),
    }
    with tempfile.NamedTemporaryFile(suffix=".so") as file:
        Path(file.name).write_bytes(built.library)
        executor = TvmExecutor(built.plan, built.constants, file.name)
    got = executor.run(executor.prepare({"edge_index": index}, nodes), inputs, nodes)
    for output, expected in zip(got, Oracle(graph, index, inputs, nodes).outputs(), strict=True):
        np.testing.assert_array_equal(output, expected)


@pytest.mark.parametrize("loops", ["keep", "remove", "add", "replace", "remaining"])
def test_graphs_are_sorted_by_destination(loops: str, tiny: TvmExecutor) -> None:
    plan = tiny._plan
    changed = replace(plan, graphs=(replace(plan.graphs[0], loops=loops),))
    tiny._plan = changed
    try:
        for nodes, edges in SIZES:
            index = graphs.edge_index(nodes, edges)
            arrays = tiny.prepare({"edge_index": index}, nodes).arrays
            source, target, position = csr(index, nodes, loops)
            name = changed.graphs[0].name
            np.testing.assert_array_equal(
                np.diff(arrays[f"{name}.indptr"]), np.bincount(target, minlength=nodes)
            )
            np.testing.assert_array_equal(arrays[f"{name}.indices"][: len(source)], source)
            np.testing.assert_array_equal(arrays[f"{name}.edge_id"][: len(source)], position)
            assert not arrays[f"{name}.indices"][len(source) :].any()
    finally:
        tiny._plan = plan


@pytest.fixture(scope="module")
def tiny() -> TvmExecutor:
    built = build(graphs.floats())
    with tempfile.NamedTemporaryFile(suffix=".so") as file:
        Path(file.name).write_bytes(built.library)
        return TvmExecutor(built.plan, built.constants, file.name)


def test_first_bad_index_is_found(tiny: TvmExecutor) -> None:
    check_graph = tiny._function("graph_check")
    status = np.zeros(2, np.int64)
    for index, nodes, expected in (
        ([[0, 3], [1, 2]], 4, [0, 0]),
        ([[0, 3], [9, 2]], 4, [2, 2]),
        ([[0, -1], [9, 2]], 4, [1, 1]),
        ([[], []], 1, [0, 0]),
    ):
        array = np.array(index, dtype=np.int64).reshape(2, -1)
        tiny._call("graph_check", check_graph, array, np.array([nodes], np.int64), status)
        assert status.tolist() == expected


def test_non_finite_inputs_show_in_a_scale() -> None:
    graph = graphs.gcn(4, signed=False, features=20)
    built = build(graph)
    assert set(built.plan.notes["finite"]) == {"x"}
    with tempfile.NamedTemporaryFile(suffix=".so") as file:
        Path(file.name).write_bytes(built.library)
        executor = TvmExecutor(built.plan, built.constants, file.name)
    prepared = executor.prepare({"edge_index": graphs.edge_index(9, 20)}, 9)
    for bad in (np.nan, np.inf, -np.inf, -np.nan):
        x = np.ones((9, 20), np.float32)
        x[4, 17] = bad
        with pytest.raises(ValueError, match="x"):
            executor.run(prepared, {"x": x}, 9)


def test_int2_artifact_is_small() -> None:
    built = build(graphs.gcn(2, signed=False, features=500, hidden=256))
    sizes = [len(zlib.compress(a.tobytes(), 9)) for a in built.constants.values()]
    assert sum(sizes) + len(zlib.compress(built.library, 9)) < 51 * 1024


def _single(node: Node, weight: PackedWeight | None = None) -> IntegerGraph:
    nodes = [
        Node("x", "node_input", (), {"input": "x"}, (4,)),
        Node("q", "quantize", ("x",), {"bits": 8, "zero2": 0, "granularity": "row", "factor": 0.1}, (4,)),
        node,
    ]
    weights = {} if weight is None else {"w": weight}
    return IntegerGraph([GraphInput("x", "node", 4)], nodes, [node.name], weights)


def test_errors_name_the_node() -> None:
    codes = pack_codes(np.full((4, 2), 255, np.uint8), 8)
    weight = PackedWeight(8, 0, (4, 2), codes, np.ones(2, np.float32))
    node = Node("y", "gemm", ("q",), {"weight": "w"}, (2,), source="layer.lin")
    with pytest.raises(BackendError, match=r"gemm 'y' \(layer.lin\).*8 signed bits"):
        build(_single(node, weight))
    with pytest.raises(BackendError, match="threads"):
        build(graphs.floats(), threads=0)
    with pytest.raises(BackendError, match="unknown target"):
        build(graphs.floats(), target="riscv")
    with pytest.raises(BackendError, match="cannot link"):
        build(graphs.floats(), target={"kind": "llvm", "mtriple": "riscv64-unknown-linux-gnu"})


def test_import_does_not_load_tvm() -> None:
    code = "import sys, gnnquant.backends.tvm; sys.exit('tvm' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_dump(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GNNQUANT_DUMP", str(tmp_path))
    build(graphs.gcn(8, features=6, hidden=3))
    assert "prim_func" in next(tmp_path.glob("tvm-k*_rows.txt")).read_text()
