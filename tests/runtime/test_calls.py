"""How a call becomes inputs, and outputs its result: trees, kinds of inputs, the cache."""

from __future__ import annotations

import pickle
import threading
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import scipy.sparse
import torch
from torch_geometric import EdgeIndex
from torch_geometric.data import Data, HeteroData
from torch_geometric.index import Index

from gnnquant.errors import BackendError, InputError
from gnnquant.integer_graph import GraphInput, IndexNode, Parameter
from gnnquant.runtime import CompiledModel

if TYPE_CHECKING:
    from gnnquant.runtime.indexing import IndexResults


class Recorder:
    """An executor that keeps what it is given, and gives back as many outputs as it is told to."""

    def __init__(self, outputs: int = 1) -> None:
        self.outputs = outputs
        self.prepared: list[IndexResults] = []
        self.inputs: dict[str, np.ndarray] = {}

    def prepare(self, index: IndexResults) -> IndexResults:
        self.prepared.append(index)
        return index

    def run(self, prepared: IndexResults, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        self.inputs = inputs
        total = sum(int(array.sum()) for array in prepared.arrays.values())
        return [np.full((1, 2), total + position, np.float32) for position in range(self.outputs)]


def leaf(name: str) -> dict[str, Any]:
    return {"input": name}


def parameter(name: str, tree: Any = None, kind: str = "positional", optional: bool = False) -> Parameter:
    return Parameter(name, kind, leaf(name) if tree is None else tree, optional)


def make(
    inputs: list[GraphInput],
    parameters: list[Parameter] | None = None,
    index: tuple[IndexNode, ...] = (),
    outputs: int = 1,
    result: Any = None,
) -> CompiledModel:
    parameters = [parameter(item.name) for item in inputs] if parameters is None else parameters
    program = SimpleNamespace(
        inputs=inputs, parameters=parameters, index=index, outputs=["y"] * outputs, result=result
    )
    return CompiledModel(Recorder(outputs), program, {"target": "recorder"})


def rows(name: str, *shape: int) -> GraphInput:
    return GraphInput(name, "rows", shape)


def edges(name: str) -> GraphInput:
    return GraphInput(name, "edges")


def graph_of(name: str, nodes: str) -> tuple[IndexNode, ...]:
    """The index program of a graph input over the rows of ``nodes``."""
    ends = tuple(
        IndexNode(f"{name}.{part}", "index_input", (), {"input": name, "part": part}) for part in (0, 1)
    )
    size = IndexNode(f"{name}.rows", "rows", (), {"input": nodes})
    inputs = (ends[0].name, ends[1].name, size.name, size.name)
    return (*ends, size, IndexNode(f"{name}.graph", "graph", inputs, {"loops": "keep"}))


X = np.arange(20, dtype=np.float32).reshape(5, 4)
E = np.array([[0, 3, 2, 4], [1, 1, 0, 4]])


# ---------------------------------------------------------------- arguments


NESTED = {
    "tuple": [
        leaf("a"),
        {"dict": [["p", leaf("b")], [["p", "to", "q"], leaf("c")]]},
        {"list": [{"constant": None}, leaf("d")]},
    ]
}


def nested_model() -> CompiledModel:
    return make([rows(name, 4) for name in "abcd"], [parameter("x", NESTED)])


def test_nested_arguments_reach_their_leaves() -> None:
    model = nested_model()
    a, b, c, d = (X + i for i in range(4))
    model((a, {"p": b, ("p", "to", "q"): c}, [None, d]))
    for name, wanted in zip("abcd", (a, b, c, d), strict=True):
        assert model._executor.inputs[name] is wanted
    model(x=[a, {("p", "to", "q"): c, "p": b}, (None, d)])
    assert model._executor.inputs["c"] is c


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (X, r"x is a numpy\.ndarray: pass a tuple of 3"),
        ((X, {}), "x has 2 entries, but the model was compiled for 3"),
        ((X, X, [None, X]), r"x\[1\] is a numpy\.ndarray: pass a dictionary"),
        ((X, {"p": X}, [None, X]), r"x\[1\] has no entry \('p', 'to', 'q'\)"),
        ((X, {"p": X, "q": X}, [None, X]), r"x\[1\] has the entry 'q', which was not there"),
        ((X, {"p": X, ("p", "to", "q"): X}, [X, X]), r"'x\[2\]\[0\]' was None when the model was compiled"),
        ((X, {"p": X, ("p", "to", "q"): None}, [None, X]), r"'x\[1\]\[p,to,q\]' is None"),
        (({}, {"p": X, ("p", "to", "q"): X}, [None, X]), r"a is a builtins\.dict: pass a torch tensor"),
    ],
)
def test_other_containers_are_refused(value: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        nested_model()(value)


@pytest.mark.parametrize(
    ("constant", "equal", "others"),
    [
        (None, [None], [0, False, X]),
        (True, [True], [1, False, None]),
        (3, [3, 3.0, np.int64(3)], [4, True, "3", torch.tensor(3)]),
        (0.5, [0.5, np.float32(0.5)], [0.25, X]),
        ("max", ["max"], ["min", None]),
        (float("nan"), [float("nan")], [0.0]),
    ],
)
def test_constants_of_the_trace_must_stay(constant: Any, equal: list[Any], others: list[Any]) -> None:
    model = make([rows("x", 4)], [parameter("x"), parameter("flag", {"constant": constant}, optional=True)])
    model(X)
    for value in equal:
        model(X, value)
    for value in others:
        with pytest.raises(InputError, match=r"'flag' was .* when the model was compiled"):
            model(X, value)


def test_data_objects() -> None:
    tree = {"data": [["x", leaf("data.x")], ["edge_index", leaf("data.edge_index")]]}
    model = make([rows("data.x", 4), edges("data.edge_index")], [parameter("data", tree)])
    tensors = {"x": torch.from_numpy(X), "edge_index": torch.from_numpy(E)}
    for data in (Data(y=torch.zeros(2), **tensors), tensors, SimpleNamespace(**tensors)):
        assert isinstance(model(data), torch.Tensor)
        np.testing.assert_array_equal(model._executor.inputs["data.x"], X)
    for data in (Data(x=tensors["x"]), {"x": X}, SimpleNamespace(x=X), X):
        with pytest.raises(InputError, match=r"without 'edge_index'|without 'x'|is None"):
            model(data)


def test_heterogeneous_data() -> None:
    key = ("paper", "cites", "paper")
    tree = {
        "data": [
            ["paper", {"data": [["x", leaf("x")]]}],
            [list(key), {"data": [["edge_index", leaf("edge_index")]]}],
        ]
    }
    model = make([rows("x", 4), edges("edge_index")], [parameter("data", tree)])
    data = HeteroData()
    data["paper"].x, data[key].edge_index = torch.from_numpy(X), torch.from_numpy(E)
    model(data)
    model({"paper": {"x": X}, key: {"edge_index": E}})
    with pytest.raises(InputError, match=r"data is a dict without \('paper', 'cites', 'paper'\)"):
        model({"paper": {"x": X}})


def test_kinds_of_parameters() -> None:
    model = make(
        [rows(name, 4) for name in "abcd"],
        [
            parameter("a"),
            parameter("rest", {"tuple": [leaf("b")]}, "*"),
            parameter("c", kind="keyword"),
            parameter("options", {"dict": [["d", leaf("d")]]}, "**"),
        ],
    )
    model(X, X, c=X, d=X)
    assert repr(model) == "CompiledModel(a, *rest, c, **options; target=recorder)"
    for args, kwargs, message in [
        ((X,), {"c": X, "d": X}, "rest has 0 entries, but the model was compiled for 1"),
        ((X, X, X), {"c": X, "d": X}, "rest has 2 entries"),
        ((X, X), {"d": X}, "input 'c' is missing"),
        ((X, X), {"c": X}, "options has no entry 'd'"),
        ((X, X), {"c": X, "d": X, "e": X}, "options has the entry 'e'"),
        ((), {"a": X, "c": X, "d": X}, "rest has 0 entries"),
    ]:
        with pytest.raises(InputError, match=message):
            model(*args, **kwargs)
    only_names = make([rows("a", 4)], [parameter("a", kind="keyword")])
    only_names(a=X)
    with pytest.raises(InputError, match="takes 0 inputs by position"):
        only_names(X)


def test_unused_arguments_may_be_anything() -> None:
    model = make([rows("x", 4)], [parameter("x"), parameter("batch", {"unused": True})])
    for value in (X, None, "anything"):
        model(X, value)
    with pytest.raises(InputError, match="'batch' is missing"):
        model(X)


# ---------------------------------------------------------------- results


@pytest.mark.parametrize(
    ("result", "shown"),
    [
        ({"output": 0}, [[0, 0]]),
        ({"output": 0, "squeeze": True}, [0, 0]),
        ({"tuple": [{"output": 0}]}, ([[0, 0]],)),
        ({"list": [{"output": 1}, {"output": 1}]}, [[[1, 1]], [[1, 1]]]),
        ({"dict": [["a", {"output": 1}], [["a", "b"], {"constant": 3}]]}, {"a": [[1, 1]], ("a", "b"): 3}),
        ({"tuple": [{"constant": None}, {"tuple": []}, {"output": 1}]}, (None, (), [[1, 1]])),
        (None, ([[0, 0]], [[1, 1]])),
    ],
)
@pytest.mark.parametrize("wrap", [np.asarray, torch.from_numpy])
def test_results_have_the_form_of_the_model(result: Any, shown: Any, wrap: Any) -> None:
    def plain(value: Any) -> Any:
        if isinstance(value, (np.ndarray, torch.Tensor)):
            assert type(value) is type(wrap(X))
            return value.tolist()
        if isinstance(value, (tuple, list)):
            return type(value)(map(plain, value))
        return {key: plain(item) for key, item in value.items()} if isinstance(value, dict) else value

    model = make([rows("x", 4)], outputs=2, result=result)
    assert plain(model(wrap(X))) == shown


def test_data_as_a_result() -> None:
    model = make([rows("x", 4)], result={"data": [["x", {"output": 0}]]})
    assert model(X).x.shape == (1, 2)


@pytest.mark.parametrize(
    ("parameters", "result"),
    [
        ([parameter("y")], None),
        ([], None),
        ([parameter("x"), parameter("x")], None),
        ([parameter("x", kind="novel")], None),
        ([parameter("x", {"input": "x", "tuple": []})], None),
        ([parameter("x")], {"output": 1}),
        ([parameter("x")], {"output": -1}),
        ([parameter("x")], {"output": "0"}),
        ([parameter("x")], {"output": 0, "shape": 3}),
        ([parameter("x")], []),
    ],
)
def test_malformed_trees(parameters: list[Parameter], result: Any) -> None:
    with pytest.raises(BackendError):
        make([rows("x", 4)], parameters, result=result)


def test_unknown_kind_of_input() -> None:
    with pytest.raises(BackendError, match="'x' has the unknown kind 'node'"):
        make([GraphInput("x", "node")])


# ---------------------------------------------------------------- kinds of inputs


def index_of(name: str, **attrs: Any) -> IndexNode:
    return IndexNode("values", "index_input", (), {"input": name, **attrs})


def test_rows_of_any_shape() -> None:
    model = make([rows("x", 2, 3), rows("w")])
    x, w = np.zeros((5, 2, 3), np.float32), np.zeros(7, np.float32)
    model(x, w)
    for bad, message in [
        (x.reshape(5, 6), r"x has shape \[5, 6\], but \[N, 2, 3\] is needed$"),
        (x[0, 0, 0], r"x is a numpy.float32"),
        (np.array(1, np.float32), r"x has shape \[\]"),
    ]:
        with pytest.raises(InputError, match=message):
            model(bad, w)
    with pytest.raises(InputError, match=r"w has shape \[7, 1\], but \[N\] is needed: pass w\.reshape\(-1\)"):
        model(x, w[:, None])
    column = make([rows("w", 1)])
    with pytest.raises(InputError, match=r"but \[N, 1\] is needed: pass w\.reshape\(-1, 1\)"):
        column(w)
    x[4, 1, 2] = np.nan
    with pytest.raises(InputError, match=r"x\[4, 1, 2\] is nan"):
        model(x, w)


def test_index_inputs() -> None:
    model = make([GraphInput("batch", "index")], index=(index_of("batch"),))
    batch = np.array([0, 0, 2])
    for value in (batch, torch.from_numpy(batch), Index(torch.from_numpy(batch), dim_size=3)):
        assert model(value)[0, 0] == 2
    columns = make([GraphInput("t", "index", (3,))], index=(index_of("t", part=2),))
    assert columns(np.arange(6).reshape(2, 3))[0, 0] == 7
    for bad, message in [
        (batch.astype(np.int32), "batch is int32, but int64 is needed"),
        (batch.astype(np.float32), "float32.*if it really holds node indices"),
        (batch[:, None], r"batch has shape \[3, 1\], but \[N\] is needed: pass batch\.reshape\(-1\)"),
        (batch > 0, "batch is bool"),
        (torch.zeros(3, dtype=torch.int64).to_sparse(), r"batch is sparse.*batch\.to_dense\(\)"),
    ]:
        with pytest.raises(InputError, match=message):
            model(bad)


def test_masks() -> None:
    index = (index_of("mask"), IndexNode("x.rows", "rows", (), {"input": "mask"}))
    model = make([GraphInput("mask", "mask")], index=index)
    mask = np.array([True, False, True, True])
    for value in (mask, torch.from_numpy(mask), mask.copy()):
        assert model(value)[0, 0] == 3
    assert len(model._executor.prepared) == 1
    mask[1] = True
    assert model(mask)[0, 0] == 4
    assert model._executor.prepared[-1].arrays["values"].dtype == np.int64
    columns = make([GraphInput("m", "mask", (2,))], index=(index_of("m", part=1),))
    assert columns(mask.reshape(2, 2) & [True, False])[0, 0] == 0
    for bad, message in [
        (mask.astype(np.uint8), r"mask is uint8, but bool is needed: pass mask\.astype\(np\.bool\)"),
        (torch.ones(3, dtype=torch.int64), r"mask is int64, but bool is needed: pass mask\.bool\(\)"),
        (mask[:, None], r"mask has shape \[4, 1\], but \[N\] is needed: pass mask\.reshape\(-1\)"),
    ]:
        with pytest.raises(InputError, match=message):
            model(bad)


def test_edge_index_objects() -> None:
    model = make([rows("x", 4), edges("e")], index=graph_of("e", "x"))
    plain = model(X, E)
    found = model(torch.from_numpy(X), EdgeIndex(torch.from_numpy(E), sparse_size=(5, 5)))
    assert type(found) is torch.Tensor
    np.testing.assert_array_equal(found.numpy(), plain)


@pytest.mark.parametrize("value", [3, np.int32(3), np.array(3), torch.tensor(3)])
def test_sizes(value: Any) -> None:
    size = IndexNode("n", "size_input", (), {"input": "n"})
    model = make([GraphInput("n", "size")], index=(size, IndexNode("a", "arange", ("n",))))
    assert np.asarray(model(value))[0, 0] == 3


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (-1, r"n is -1: it must be in 0 \.\. 2147483647"),
        (2**31, "n is 2147483648"),
        (2.0, r"n is 2\.0: pass an integer"),
        (True, "n is True: pass an integer"),
        (torch.tensor(2.0), "n is a torch.Tensor: pass an integer"),
        (np.array([2]), "n is a numpy.ndarray: pass an integer"),
        (torch.tensor(2, device="meta"), "n has no number that can be read"),
        ("2", "n is '2': pass an integer"),
    ],
)
def test_what_is_no_size(value: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make([GraphInput("n", "size")])(value)


DENSE = np.array([[0, 2, 0, 1], [0, 0, 0, 0], [5, 0, 3, 0]], np.float32)


FORMS = [
    "coo", "shuffled", "doubled", "csr", "csc", "unsorted", "32 bits", "gradients", "scipy csr", "scipy csc",
    "scipy coo", "scipy doubled",
]  # fmt: skip


def adjacency_model() -> CompiledModel:
    index = [IndexNode(part, "index_input", (), {"input": "a", "part": part}) for part in ("row", "col")]
    index += [IndexNode(f"n{axis}", "size_input", (), {"input": "a", "axis": axis}) for axis in (0, 1)]
    graph = IndexNode("g", "graph", ("col", "row", "n1", "n0"), {"loops": "keep"})
    count = IndexNode("entries", "rows", (), {"input": "a"})
    return make([GraphInput("a", "adjacency")], index=(*index, count, graph))


def sparse_forms() -> dict[str, Any]:
    dense = torch.from_numpy(DENSE)
    coo = dense.to_sparse_coo()
    twice = torch.cat([coo.indices(), coo.indices()], 1)
    rows_first = dense.to_sparse_csr()
    parts = torch.tensor([0, 2, 2, 4]), torch.tensor([3, 1, 2, 0]), torch.tensor([1.0, 2, 3, 5])
    return {
        "coo": coo,
        "shuffled": torch.sparse_coo_tensor(coo.indices().flip(1), coo.values().flip(0), coo.shape),
        "doubled": torch.sparse_coo_tensor(twice, torch.cat([coo.values(), coo.values()]) / 2, coo.shape),
        "csr": rows_first,
        "csc": dense.to_sparse_csc(),
        "unsorted": torch.sparse_csr_tensor(*parts, (3, 4)),
        "32 bits": torch.sparse_csr_tensor(parts[0].int(), parts[1].int(), parts[2], (3, 4)),
        "gradients": coo.clone().requires_grad_(),
        "scipy csr": scipy.sparse.csr_matrix(DENSE),
        "scipy csc": scipy.sparse.csc_array(DENSE),
        "scipy coo": scipy.sparse.coo_array(DENSE),
        "scipy doubled": scipy.sparse.coo_array(
            (np.full(8, [2, 1, 5, 3, 2, 1, 5, 3], np.float32) / 2, np.tile(np.nonzero(DENSE), 2))
        ),
    }


@pytest.mark.filterwarnings("ignore:Sparse")
@pytest.mark.parametrize("form", FORMS)
def test_adjacency(form: str) -> None:
    model = adjacency_model()
    result = model(sparse_forms()[form])
    assert isinstance(result, np.ndarray if form.startswith("scipy") else torch.Tensor)
    (index,) = model._executor.prepared
    np.testing.assert_array_equal([index.arrays["row"], index.arrays["col"]], np.nonzero(DENSE))
    assert index.sizes == {"n0": 3, "n1": 4, "entries": 4}
    values = model._executor.inputs["a"]
    assert values.dtype == np.float32
    np.testing.assert_array_equal(values, DENSE[np.nonzero(DENSE)])


@pytest.mark.filterwarnings("ignore:Sparse")
def test_what_is_no_adjacency() -> None:
    model = adjacency_model()
    dense = torch.from_numpy(DENSE)
    outside = torch.sparse_csr_tensor(
        torch.tensor([0, 1]), torch.tensor([9]), torch.ones(1), (1, 4), check_invariants=False
    )
    for bad, message in {
        torch.from_numpy(DENSE): "a has the layout strided: pass a.to_sparse_csr()",
        dense.double().to_sparse(): r"a is float64, but float32 is needed: pass a\.float\(\)",
        dense.to_sparse().to("meta"): r"a is on meta.*pass a\.cpu\(\)",
        torch.ones(4, 4).to_sparse_bsr((2, 2)): "a has the layout sparse_bsr",
        dense.to_sparse_coo().to_dense()[0].to_sparse(): r"a has shape \[4\]",
        torch.ones(2, 2, 2).to_sparse(): r"a has shape \[2, 2, 2\]: a sparse matrix \[N, M\]",
        outside: "a: col index 0 = 9 is not below 4, the number of columns of a",
    }.items():
        with pytest.raises(InputError, match=message):
            model(bad)
    for bad, message in [
        (DENSE, "a is a numpy.ndarray: pass a sparse matrix of torch"),
        (scipy.sparse.csr_matrix(DENSE.astype(np.float64)), r"float64.*a\.astype\(np\.float32\)"),
        (scipy.sparse.coo_array(DENSE[0]), r"a has shape \[4\]"),
    ]:
        with pytest.raises(InputError, match=message):
            model(bad)
    with pytest.raises(InputError, match=r"a\[2\] is nan"):
        model(torch.where(dense == 5, torch.nan, dense).to_sparse())


def test_a_sparse_matrix_for_an_edge_index() -> None:
    model = make([edges("e")])
    with pytest.raises(InputError, match=r"e is sparse.*pass edge_index as int64 \[2, E\]"):
        model(torch.from_numpy(DENSE).to_sparse())


# ---------------------------------------------------------------- what is kept between calls


def two_graphs() -> CompiledModel:
    index = (*graph_of("first", "x"), *graph_of("second", "x"))
    return make([rows("x", 4), edges("first"), edges("second")], index=index)


def test_every_integer_counts() -> None:
    model = make(
        [rows("x", 4), edges("e"), GraphInput("b", "index"), GraphInput("n", "size"), rows("w")],
        index=(*graph_of("e", "x"), index_of("b"), IndexNode("n", "size_input", (), {"input": "n"})),
    )
    batch, weight = np.array([0, 1]), np.zeros(3, np.float32)
    prepared = model._executor.prepared
    first = model(X, E, batch, 7, weight)
    np.testing.assert_array_equal(model(X.copy(), E.copy(), batch.copy(), 7, weight.copy()), first)
    assert len(prepared) == 1
    model(X, E, batch, 8, weight)
    assert [index.sizes["n"] for index in prepared] == [7, 8]
    model(X, E, batch, 7, weight[:2])
    assert len(prepared) == 3
    batch[1] = 3
    assert (model(X, E, batch, 7, weight) == first + 2).all()
    model(np.vstack([X, X]), E, batch, 7, weight)
    assert prepared[-1].sizes["e.rows"] == 10
    model(X, E[:, :3], batch, 7, weight)
    assert len(prepared) == 6


def test_changes_in_place_are_seen() -> None:
    model = two_graphs()
    first, second = E.copy(), np.asfortranarray(E)
    total = 2 * E.sum()
    for step in range(4):
        assert (model(X, first, second) == total).all()
        array = (first, second)[step % 2]
        total += 1 - array[0, step]
        array[0, step] = 1
        assert (model(X, first, second) == total).all()


def test_what_is_kept_is_not_what_was_given() -> None:
    model = two_graphs()
    given = E.copy()
    model(X, given, E)
    (index,) = model._executor.prepared
    given[:] = 0
    np.testing.assert_array_equal(index.graphs["first.graph"].edges, E)


def test_several_threads_and_graphs() -> None:
    model = two_graphs()
    generator = np.random.default_rng(0)
    graphs = [generator.integers(0, 5, (2, 9)) for _ in range(7)]
    failures: list[Any] = []

    def work(first: int) -> None:
        try:
            for step in range(200):
                a, b = graphs[(first + step) % 7], graphs[(first * step) % 7]
                if not (model(X, a, b) == a.sum() + b.sum()).all():
                    failures.append((first, step))
        except Exception as error:
            failures.append(error)

    workers = [threading.Thread(target=work, args=(first,)) for first in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not failures


def test_models_of_other_graphs_prepare_themselves() -> None:
    batched = make([rows("x", 4), edges("e"), GraphInput("b", "index")], index=graph_of("e", "x"))
    for model in (two_graphs(), batched, make([rows("x", 4)]), adjacency_model()):
        with pytest.raises(InputError, match=r"keeps what it made of the last few graphs.*just call it"):
            model.prepare(E, 5)


def test_prepared_graph_counts_rows_of_edges() -> None:
    """Inputs that the index program ties to the edges have their number, others that of the nodes."""
    tie = IndexNode("fit", "same_size", ("w.rows", "e.count"), {"message": "one row per edge is needed"})
    counts = [IndexNode(name, "rows", (), {"input": name[0]}) for name in ("w.rows", "e.count")]
    model = make([rows("x", 4), edges("e"), rows("w")], index=(*graph_of("e", "x"), *counts, tie))
    handle = model.prepare(E, 5)
    weight = np.zeros(4, np.float32)
    assert (model(X, handle, weight) == E.sum()).all()
    assert len(model._executor.prepared) == 1
    with pytest.raises(InputError, match="w has 3 rows, but e has 4 edges: one row per edge is needed"):
        model(X, handle, weight[:3])
    with pytest.raises(InputError, match="e was prepared for 5 nodes, but x has 4 rows"):
        model(X[:4], handle, weight)
    with pytest.raises(InputError, match=r"e\[0, 3\] = 4 is not below 4"):
        model.prepare(E, 4)


def test_a_target_that_cannot_be_saved() -> None:
    model = two_graphs()
    with pytest.raises(BackendError, match="recorder cannot be saved"):
        model.save("anywhere.gnnq")
    with pytest.raises(BackendError, match="cannot be pickled"):
        pickle.dumps(model)


def test_sizes_beyond_int32_are_refused() -> None:
    model = make([rows("x", 1), edges("e")])
    many = np.broadcast_to(np.float32(0), (2**31, 1))
    long = np.broadcast_to(np.int64(0), (2, 2**31))
    with pytest.raises(InputError, match="x has 2147483648 rows"):
        model(many, np.zeros((2, 0), np.int64))
    with pytest.raises(InputError, match="e has 2147483648 edges"):
        model(np.zeros((1, 1), np.float32), long)
