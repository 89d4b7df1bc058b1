from __future__ import annotations

import pickle
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from gnnquant.errors import BackendError, InputError
from gnnquant.runtime.artifact import model_from_payload
from gnnquant.runtime.graph import partition_rows
from tests.runtime.conftest import make_payload, random_graph
from tests.runtime.tiny_library import expected

if TYPE_CHECKING:
    from gnnquant.runtime import CompiledModel

LOOPS = ["keep", "remove", "add", "replace", "remaining"]


def assert_right(result: tuple, graph: tuple, loops: str = "keep") -> None:
    y, degree = expected(*graph, loops)
    np.testing.assert_allclose(np.asarray(result[0]), y, atol=1e-3)
    np.testing.assert_array_equal(np.asarray(result[1]), degree)


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("loops", LOOPS)
def test_runs_graphs_of_every_size(library: bytes, loops: str, threads: int) -> None:
    model = model_from_payload(make_payload(library, loops=loops, threads=threads))
    for nodes, edges in [(1, 0), (1, 3), (50, 0), (50, 300), (9, 40), (700, 3000)]:
        graph = random_graph(nodes, edges, seed=nodes)
        assert_right(model(*graph), graph, loops)


def test_hub_gets_a_share_of_its_own(library: bytes) -> None:
    model = model_from_payload(make_payload(library, threads=4))
    x, edge_index, weight = random_graph(100, 2000)
    edge_index[1, 100:] = 17
    assert_right(model(x, edge_index, weight), (x, edge_index, weight))


def test_numpy_in_numpy_out(model: CompiledModel) -> None:
    y, degree = model(*random_graph(10, 20))
    assert type(y) is np.ndarray
    assert y.dtype == np.float32
    assert y.shape == (10, 2, 2)
    assert degree.shape == (10, 1)


def test_torch_in_torch_out(model: CompiledModel) -> None:
    graph = random_graph(10, 20)
    x, edge_index, weight = map(torch.from_numpy, graph)
    y, degree = model(x.requires_grad_(), edge_index, edge_weight=weight)
    assert isinstance(y, torch.Tensor)
    assert not y.requires_grad
    assert_right((y, degree), graph)
    assert isinstance(model(graph[0], edge_index, graph[2])[0], torch.Tensor)


def test_keywords_and_absent_optional_input(model: CompiledModel) -> None:
    graph = random_graph(10, 20)
    x, edge_index, weight = graph
    assert_right(model(edge_weight=weight, x=x, edge_index=edge_index, batch=None), graph)
    assert_right(model(x, edge_index, weight, None), graph)


def test_results_are_not_overwritten_by_later_calls(model: CompiledModel) -> None:
    graph = random_graph(10, 20)
    first = model(*graph)[0]
    view, copy = first[2:5], first.copy()
    tensor = torch.from_numpy(model(*graph)[0])
    del first
    for seed in range(1, 4):
        model(*random_graph(10, 20, seed))
    np.testing.assert_array_equal(view, copy[2:5])
    np.testing.assert_array_equal(tensor.numpy(), copy)


def test_graph_of_no_node(model: CompiledModel) -> None:
    y, degree = model(*random_graph(0, 0))
    assert y.shape == (0, 2, 2)
    assert degree.shape == (0, 1)
    handle = model.prepare(np.empty((2, 0), np.int64), 0)
    assert model(np.empty((0, 4), np.float32), handle, np.empty(0, np.float32))[0].shape[0] == 0


def test_strided_unaligned_and_readonly_arrays(model: CompiledModel) -> None:
    graph = random_graph(30, 90)
    x, edge_index, weight = graph
    fortran = np.asfortranarray(x)
    unaligned = np.frombuffer(b"...." + x.tobytes(), np.float32, offset=4).reshape(x.shape)
    odd = np.frombuffer(b"." + x.tobytes(), np.float32, offset=1).reshape(x.shape)
    assert not unaligned.flags.writeable
    transposed = np.ascontiguousarray(edge_index.T).T
    repeated = np.repeat(weight, 2)[::2]
    for features in (fortran, unaligned, odd):
        assert_right(model(features, transposed, repeated), graph)
    tensor = torch.from_numpy(np.ascontiguousarray(edge_index.T)).t()
    assert_right(model(torch.from_numpy(fortran), tensor, torch.from_numpy(weight)), graph)


class TestGraphCache:
    def test_change_in_place_is_seen(self, model: CompiledModel) -> None:
        x, edge_index, weight = random_graph(40, 100)
        for position in range(5):
            assert_right(model(x, edge_index, weight), (x, edge_index, weight))
            edge_index[position % 2, 7 * position] = (edge_index[position % 2, 7 * position] + 1) % 40

    def test_change_in_place_of_a_strided_array_is_seen(self, model: CompiledModel) -> None:
        x, edge_index, weight = random_graph(40, 100)
        edge_index = np.asfortranarray(edge_index)
        model(x, edge_index, weight)
        edge_index[1, 99] = (edge_index[1, 99] + 1) % 40
        assert_right(model(x, edge_index, weight), (x, edge_index, weight))

    def test_same_edges_with_more_nodes(self, model: CompiledModel) -> None:
        _, edge_index, weight = random_graph(40, 100)
        for nodes in (40, 60, 40, 50):
            x = random_graph(nodes, 0, seed=nodes)[0]
            assert_right(model(x, edge_index, weight), (x, edge_index, weight))

    def test_more_graphs_than_it_holds(self, model: CompiledModel) -> None:
        graphs = [random_graph(20 + size, 60, seed=size) for size in range(7)]
        for graph in graphs + graphs[::-1] + graphs:
            assert_right(model(*graph), graph)

    def test_a_known_graph_is_not_prepared_again(self, model: CompiledModel) -> None:
        calls = []
        executor = model._executor
        original = executor.prepare
        executor.prepare = lambda *args: calls.append(1) or original(*args)
        graphs = [random_graph(20, 60, seed=seed) for seed in range(4)]
        for graph in graphs * 3:
            x, edge_index, weight = graph
            model(x, edge_index.copy(), weight)
        assert len(calls) == 4

    def test_bad_indices_are_found_after_good_ones(self, model: CompiledModel) -> None:
        x, edge_index, weight = random_graph(40, 100)
        model(x, edge_index, weight)
        edge_index[0, 5] = 40
        for _ in range(2):
            with pytest.raises(InputError, match=r"edge_index\[0, 5\] = 40"):
                model(x, edge_index, weight)


class TestGraphHandle:
    def test_stands_for_its_graph(self, model: CompiledModel) -> None:
        x, edge_index, weight = random_graph(40, 100)
        handle = model.prepare(edge_index, 40)
        before = edge_index.copy()
        edge_index[:] = 0
        assert_right(model(x, handle, weight), (x, before, weight))
        assert isinstance(model(torch.from_numpy(x), handle, weight)[0], torch.Tensor)
        assert repr(handle) == "GraphHandle(num_nodes=40, num_edges=100)"

    def test_of_other_size(self, model: CompiledModel) -> None:
        x, edge_index, weight = random_graph(40, 100)
        handle = model.prepare(torch.from_numpy(edge_index), 40)
        with pytest.raises(InputError, match="prepared for 40 nodes, but x has 39 rows"):
            model(x[:39], handle, weight)
        with pytest.raises(InputError, match="edge_weight has 99 rows, but edge_index has 100"):
            model(x, handle, weight[:99])

    def test_of_other_model(self, model: CompiledModel, library: bytes) -> None:
        x, edge_index, weight = random_graph(40, 100)
        handle = model_from_payload(make_payload(library)).prepare(edge_index, 40)
        with pytest.raises(InputError, match="prepared by another model"):
            model(x, handle, weight)

    def test_bad_arguments(self, model: CompiledModel) -> None:
        edge_index = random_graph(40, 100)[1]
        with pytest.raises(InputError, match=r"must be in 0 \.\. 19"):
            model.prepare(edge_index, 20)
        with pytest.raises(InputError, match=r"num_nodes is 2.5"):
            model.prepare(edge_index, 2.5)  # type: ignore[arg-type]
        with pytest.raises(InputError, match="num_nodes is -1"):
            model.prepare(edge_index, -1)
        with pytest.raises(InputError, match=f"num_nodes is {2**31}"):
            model.prepare(edge_index, 2**31)
        with pytest.raises(InputError, match="prepared graph already"):
            model.prepare(model.prepare(edge_index, 40), 40)


def edited(array: np.ndarray, where: tuple[int, ...], value: float) -> np.ndarray:
    array = array.copy()
    array[where] = value
    return array


X, EDGES, WEIGHT = random_graph(10, 20)
BAD_INPUTS = {
    "too many": ((X, EDGES, WEIGHT, None, None), {}, "takes 4 inputs by position .*but 5 were given"),
    "unknown": ((X, EDGES), {"edge_attr": WEIGHT}, "no input 'edge_attr': its inputs are x"),
    "twice": ((X, EDGES, WEIGHT), {"x": X}, "'x' was given twice"),
    "missing": ((X, EDGES), {}, "'edge_weight' is missing: the model takes x, .*, batch=None"),
    "none": ((X, None, WEIGHT), {}, "'edge_index' is None"),
    "was none": ((X, EDGES, WEIGHT, X), {}, "'batch' was None when the model was compiled"),
    "list": ((X.tolist(), EDGES, WEIGHT), {}, r"x is a builtins.list: pass a torch tensor"),
    "masked": ((np.ma.masked_array(X), EDGES, WEIGHT), {}, "masked array"),
    "float64": ((X.astype(np.float64), EDGES, WEIGHT), {}, r"x is float64.*astype\(np.float32"),
    "byte order": ((X.astype(">f4"), EDGES, WEIGHT), {}, "x is >f4, but float32 is needed"),
    "float edges": ((X, EDGES.astype(np.float32), WEIGHT), {}, "is float32, but int64 .* really"),
    "int32 edges": ((X, EDGES.astype(np.int32), WEIGHT), {}, r"int32.*\.astype\(np.int64\)"),
    "bool edges": ((X, EDGES > 3, WEIGHT), {}, "edge_index is bool"),
    "edges shape": ((X, EDGES[0], WEIGHT), {}, r"shape \[20\], but \[2, E\] is needed"),
    "transposed": ((X, EDGES.T, WEIGHT), {}, r"looks transposed: pass edge_index\.T"),
    "negative": ((X, edited(EDGES, (1, 3), -1), WEIGHT), {}, r"\[1, 3\] = -1 is negative"),
    "too large": (
        (X, edited(EDGES, (0, 9), 10), WEIGHT),
        {},
        r"\[0, 9\] = 10 is not below 10, the number of rows of x: .* 0 \.\. 9",
    ),
    "huge": ((X, edited(EDGES, (0, 9), 2**40), WEIGHT), {}, r"\[0, 9\] = 1099511627776"),
    "x 1-D": ((X[:, 0], EDGES, WEIGHT), {}, r"x has shape \[10\], but \[N, 4\]"),
    "x 3-D": ((X[None], EDGES, WEIGHT), {}, r"x has shape \[1, 10, 4\]"),
    "width": ((X[:, :3], EDGES, WEIGHT), {}, "compiled for 4 columns, not 3"),
    "weight 2-D": ((X, EDGES, WEIGHT[:, None]), {}, r"edge_weight\.reshape\(-1\)"),
    "weight rows": ((X, EDGES, WEIGHT[:5]), {}, "5 rows, but edge_index has 20 edges: one row per edge"),
    "nan": ((edited(X, (2, 1), np.nan), EDGES, WEIGHT), {}, r"x\[2, 1\] is nan"),
    "inf": ((edited(X, (9, 3), np.inf), EDGES, WEIGHT), {}, r"x\[9, 3\] is inf"),
    "-inf": ((X, EDGES, edited(WEIGHT, (7,), -np.inf)), {}, r"edge_weight\[7\] is -inf"),
    "edges of no node": ((X[:0], EDGES, WEIGHT), {}, "is not below 0, the number of rows of x: there is"),
}


@pytest.mark.parametrize("case", BAD_INPUTS)
def test_bad_input(model: CompiledModel, case: str) -> None:
    args, kwargs, message = BAD_INPUTS[case]
    with pytest.raises(InputError, match=message):
        model(*args, **kwargs)


def test_bad_torch_input(model: CompiledModel) -> None:
    x, edges, weight = map(torch.from_numpy, (X, EDGES, WEIGHT))
    for bad, message in {
        x.double(): r"x is float64, but float32 is needed: pass x\.float\(\)",
        x.half(): r"x is float16.*x\.float\(\)",
        x.bfloat16(): r"x is bfloat16",
        x.int(): r"x is int32",
        x.to("meta"): r"x is on meta.*pass x\.cpu\(\)",
        x.to_sparse(): r"x is sparse.*x\.to_dense\(\)",
    }.items():
        with pytest.raises(InputError, match=message):
            model(bad, edges, weight)
    for bad, message in {
        edges.int(): r"edge_index is int32, but int64 is needed: pass edge_index\.long\(\)",
        edges.float(): r"edge_index is float32.*node indices",
        edges.to("meta"): r"edge_index is on meta",
        edges.to_sparse(): r"edge_index is sparse.*pass edge_index as int64 \[2, E\]",
    }.items():
        with pytest.raises(InputError, match=message):
            model(x, bad, weight)


def test_finite_values_whose_sum_overflows(model: CompiledModel) -> None:
    x, edge_index, weight = random_graph(10, 0)
    x[:] = 3e38
    assert np.isfinite(model(x, edge_index, weight)[1]).all()


def test_threads_may_call_one_model(library: bytes) -> None:
    model = model_from_payload(make_payload(library, threads=2))
    graphs = [random_graph(200 + 10 * seed, 900, seed) for seed in range(6)]
    answers = [model(*graph) for graph in graphs]
    failures: list[object] = []

    def work(first: int) -> None:
        try:
            for step in range(60):
                index = (first + step) % len(graphs)
                for got, wanted in zip(model(*graphs[index]), answers[index], strict=True):
                    if not np.array_equal(got, wanted):
                        failures.append(index)
        except Exception as error:
            failures.append(error)

    workers = [threading.Thread(target=work, args=(first,)) for first in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not failures


def test_pickles_as_its_artifact(model: CompiledModel) -> None:
    graph = random_graph(10, 20)
    assert_right(pickle.loads(pickle.dumps(model))(*graph), graph)


def test_info_and_repr(model: CompiledModel) -> None:
    assert model.info["sites"] == {"conv.message": 8}
    assert model.info["outputs"][0] == {"name": "y", "dtype": "float32", "shape": ["nodes", 2, 2]}
    assert [item["name"] for item in model.info["inputs"]][:2] == ["x", "edge_index"]
    assert model.info["size_bytes"] > 0
    text = "CompiledModel(x, edge_index, edge_weight, batch=None; target=generic)"
    assert repr(model) == text


def test_executor_may_look_for_nan_after_the_run(library: bytes) -> None:
    model = model_from_payload(make_payload(library, finite={"x": "shifted"}))
    graph = random_graph(10, 20)
    assert_right(model(*graph), graph)
    with pytest.raises(InputError, match=r"x\[2, 1\] is nan"):
        model(edited(graph[0], (2, 1), np.nan), *graph[1:])
    with pytest.raises(InputError, match=r"edge_weight\[3\] is inf"):
        model(graph[0], graph[1], edited(graph[2], (3,), np.inf))
    assert_right(model(*graph), graph)


def test_sizes_beyond_those_of_the_kernels_are_refused(library: bytes) -> None:
    """Spaces are limited one by one; a graph counts the self-loops that it adds."""
    model = model_from_payload(make_payload(library, max_rows={"nodes": 10, "edges": 2}))
    assert_right(model(*random_graph(10, 20)), random_graph(10, 20))
    with pytest.raises(InputError, match=r"x has 11 rows or edges, .*this model takes at most 10"):
        model(*random_graph(11, 20))


def test_reads_are_made_sure_of(library: bytes) -> None:
    """``edge_id`` may be -1 where loops are added, and is below the number of given edges."""
    graph = random_graph(10, 20)
    for loops, reads, bad in [
        ("keep", ("g.src", "nodes", 0), False),
        ("keep", ("g.edge_id", "weights", 0), False),
        ("add", ("g.edge_id", "weights", -1), False),
        ("add", ("g.edge_id", "weights", 0), True),
        ("keep", ("g.edge_id", "nodes", 0), True),
        ("keep", ("source", "nodes", 0), False),
        ("keep", ("g.dst", 9, 0), True),
        ("keep", ("source", 3, 0), True),
    ]:
        model = model_from_payload(make_payload(library, loops=loops, reads=[reads]))
        if bad:
            with pytest.raises(BackendError, match=f"would read the rows .* by '{reads[0]}'"):
                model(*graph)
        else:
            assert_right(model(*graph), graph, loops)


def test_output_memory_is_reused_once_it_is_free(model: CompiledModel) -> None:
    graph = random_graph(10, 20)
    address = model(*graph)[0].ctypes.data
    assert model(*graph)[0].ctypes.data == address
    kept = model(*graph)[0]
    assert model(*graph)[0].ctypes.data != kept.ctypes.data


def test_rows_are_shared_out_by_cost() -> None:
    degrees = np.array([0, 0, 1000] + [1] * 97)
    indptr = np.concatenate(([0], np.cumsum(degrees))).astype(np.int32)
    for threads in (1, 2, 3, 8, 200):
        borders = partition_rows(indptr, threads)
        assert borders.dtype == np.int32
        assert borders.size == threads + 1
        assert (borders[0], borders[-1]) == (0, 100)
        assert (np.diff(borders) >= 0).all()
        assert (borders[:-1] % 8 == 0).all()
    assert partition_rows(indptr, 2)[1] == 8


FORK = """
    import os
    import sys

    import numpy as np

    from gnnquant.errors import BackendError
    from gnnquant.runtime import load

    model = load(sys.argv[1])
    x = np.ones((100, 4), np.float32)
    edge_index = np.zeros((2, 50), np.int64)
    weight = np.ones(50, np.float32)
    if sys.argv[2] == "used":
        model(x, edge_index, weight)
    child = os.fork()
    if child == 0:
        code = 0
        try:
            model(x, edge_index, weight)
        except BackendError as error:
            code = 7 if "forked" in str(error) else 1
        os._exit(code)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.parametrize(("threads", "state", "code"), [(1, "used", 0), (2, "used", 7), (2, "new", 0)])
def test_forked_process(library: bytes, tmp_path: Path, threads: int, state: str, code: int) -> None:
    path = tmp_path / "model.gnnq"
    model_from_payload(make_payload(library, threads=threads)).save(path)
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(FORK), str(path), state],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        cwd=Path(__file__).parents[2],
    )
    assert result.stdout == f"{code}\n", result.stderr
