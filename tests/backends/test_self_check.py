"""The calls on which compiled code is compared, and what the comparison notices."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch_geometric import nn as gnn

import gnnquant
from gnnquant import backends
from gnnquant.backends.reference import ReferenceExecutor
from gnnquant.backends.self_check import RandomCall, as_call, check_compiled
from gnnquant.errors import BackendError, InputError
from gnnquant.integer_graph import ONE, GraphInput, IndexNode, IntegerGraph, Node, Parameter
from gnnquant.quantizers.calibration import calibrate
from gnnquant.runtime import CompiledModel
from gnnquant.runtime.indexing import IndexResults
from tests import zoo
from tests.parity import converted


def leaf(name: str) -> dict[str, Any]:
    return {"input": name}


def reference(graph: IntegerGraph) -> CompiledModel:
    return CompiledModel(ReferenceExecutor(graph), graph, {})


def size(name: str, of: str, **attrs: Any) -> IndexNode:
    return IndexNode(name, "size_input" if attrs or of == "count" else "rows", (), {"input": of, **attrs})


def tie(left: str, right: str) -> IndexNode:
    return IndexNode(f"{left}={right}", "same_size", (left, right))


def many_kinds(*more: IndexNode) -> IntegerGraph:
    """Two kinds of nodes, edges between them with weights, groups, relations, a matrix and a number."""
    inputs = [
        GraphInput("x[a]", "rows", (3,)),
        GraphInput("x[b]", "rows", (3,)),
        GraphInput("edges", "edges"),
        GraphInput("weight", "rows"),
        GraphInput("batch", "index"),
        GraphInput("relation", "index"),
        GraphInput("places", "index", (2,)),
        GraphInput("adj", "adjacency"),
        GraphInput("count", "size"),
        GraphInput("mask", "mask", (2,)),
    ]
    index = [
        size("a", "x[a]"),
        size("b", "x[b]"),
        size("edge_count", "edges"),
        size("weights", "weight"),
        tie("weights", "edge_count"),
        IndexNode("src", "index_input", (), {"input": "edges", "part": 0}),
        IndexNode("dst", "index_input", (), {"input": "edges", "part": 1}),
        IndexNode("g", "graph", ("src", "dst", "a", "b"), {"loops": "keep"}),
        IndexNode("group", "index_input", (), {"input": "batch"}),
        IndexNode("groups_of", "length", ("group",)),
        tie("groups_of", "b"),
        size("n", "count"),
        IndexNode("bounded_group", "bounded", ("group", "n")),
        IndexNode("relation_of", "index_input", (), {"input": "relation"}),
        IndexNode("of_two", "values", (), {"values": [7, 8]}),
        IndexNode("taken", "take", ("of_two", "relation_of")),
        IndexNode("place", "index_input", (), {"input": "places", "part": 1}),
        IndexNode("twice", "size", ("b",), {"function": "mul", "right": 2}),
        IndexNode("second", "count", ("place", "twice")),
        size("height", "adj", axis=0),
        tie("height", "a"),
        IndexNode("row", "index_input", (), {"input": "adj", "part": "row"}),
        IndexNode("bounded_row", "bounded", ("row", "height")),
        IndexNode("masked", "index_input", (), {"input": "mask", "part": 1}),
        IndexNode("masked_b", "select", ("place", "masked")),
        *more,
    ]
    parameters = [
        Parameter("x", "positional", {"dict": [["a", leaf("x[a]")], [["b", "c"], leaf("x[b]")]]}),
        Parameter("rest", "*", {"tuple": [leaf("edges"), leaf("weight")]}),
        Parameter("batch", "keyword", leaf("batch")),
        Parameter("flag", "keyword", {"constant": 3}),
        Parameter(
            "more", "**", {"dict": [[n, leaf(n)] for n in ("relation", "places", "adj", "count", "mask")]}
        ),
    ]
    nodes = [
        Node("xa", "input", (), {"input": "x[a]"}, (3,), "a"),
        Node("sum", "segment_reduce", ("xe",), {"graph": "g", "reduce": "sum"}, (3,), "b"),
        Node("all", "row_reduce", ("sum",), {"reduce": "mean"}, (3,), ONE),
    ]
    nodes.insert(1, Node("xe", "gather", ("xa",), {"index": "g.src"}, (3,), "g"))
    return IntegerGraph(inputs, parameters, index, nodes, ["sum", "all"])


def test_random_calls_fit() -> None:
    """Sizes agree where they must and differ where they may; indices are in range."""
    graph = many_kinds()
    args, kwargs = RandomCall(graph, distinct=True).make()
    features, edges, weight = args
    assert list(features) == ["a", ("b", "c")]
    a, b = features["a"], features["b", "c"]
    assert len(a) != len(b)
    assert len(weight) == edges.shape[1]
    assert len(kwargs["batch"]) == len(b)
    assert kwargs["batch"].max() < kwargs["count"]
    assert kwargs["relation"].max() == 1
    assert kwargs["places"].shape[1:] == (2,)
    assert kwargs["mask"].shape == kwargs["places"].shape
    assert kwargs["mask"].dtype == bool
    assert 0 < kwargs["mask"].sum() < kwargs["mask"].size
    assert kwargs["adj"].shape[0] == len(a)
    assert kwargs["flag"] == 3
    model = reference(graph)
    assert check_compiled(model, model, graph, None)
    same, _ = RandomCall(graph, distinct=False).make()
    assert len(same[0]["a"]) == len(same[0]["b", "c"])


def test_inputs_that_must_agree_for_another_reason() -> None:
    """Self-loops need as many sources as destinations: the second try has them."""
    loops = IndexNode("loops", "graph", ("src", "dst", "a", "b"), {"loops": "add"})
    graph = many_kinds(loops)
    model = reference(graph)
    args, kwargs = RandomCall(graph, distinct=True).make()
    with pytest.raises(InputError, match="self-loops need the same rows"):
        model(*args, **kwargs)
    assert check_compiled(model, model, graph, None)


class Wrong(ReferenceExecutor):
    """Gets one value of its last output wrong."""

    def __init__(self, graph: IntegerGraph, by: float) -> None:
        super().__init__(graph)
        self.by = by

    def run(self, prepared: Any, inputs: Any) -> list[np.ndarray]:
        outputs = super().run(prepared, inputs)
        outputs[-1][0, 1] += self.by
        return outputs


@pytest.mark.parametrize("by", [1e-3, np.nan])
def test_one_wrong_value_is_noticed(by: float) -> None:
    graph = many_kinds()
    with pytest.raises(
        BackendError, match="output 1 of the compiled model differs from the integer reference"
    ):
        check_compiled(CompiledModel(Wrong(graph, by), graph, {}), reference(graph), graph, None)


def small(op: str, **attrs: Any) -> IntegerGraph:
    node = Node("y", op, ("x",), attrs, (3,), "n")
    return IntegerGraph(
        [GraphInput("x", "rows", (3,))],
        [Parameter("x", "positional", leaf("x"))],
        [size("n", "x")],
        [Node("x", "input", (), {"input": "x"}, (3,), "n"), node],
        ["y"],
        constants={"w": np.eye(3, dtype=np.float32)},
    )


def test_float_products_may_be_rounded_otherwise() -> None:
    graph = small("float_gemm", array="w")
    assert check_compiled(CompiledModel(Wrong(graph, 1e-6), graph, {}), reference(graph), graph, None)
    with pytest.raises(BackendError, match="differs"):
        check_compiled(CompiledModel(Wrong(graph, 1e-2), graph, {}), reference(graph), graph, None)


def test_not_a_number_equals_itself() -> None:
    graph = small("mul", scalar=float("nan"))
    assert check_compiled(reference(graph), reference(graph), graph, None)


def test_integers_that_cannot_be_guessed() -> None:
    """Without an example nothing is compared, which is said."""
    key = IndexNode("key", "values", (), {"values": [12345]})
    index = IndexNode("given", "index_input", (), {"input": "relation"})
    sum_of = IndexNode("off", "combine", ("given",), {"function": "sub", "right": 12345})
    graph = many_kinds(key, index, sum_of, IndexNode("odd", "bounded", ("off", "n")))
    model = reference(graph)
    assert not check_compiled(model, model, graph, None)


def test_examples_by_name() -> None:
    parameters = [
        Parameter("x", "positional", leaf("x")),
        Parameter("rest", "*", {"tuple": [leaf("y"), leaf("z")]}),
        Parameter("flag", "keyword", leaf("flag")),
        Parameter("more", "**", {"dict": [["w", leaf("w")]]}),
    ]
    assert as_call(parameters, (1, 2)) == ((1, 2), {})
    example = {"flag": 4, "rest": (2, 3), "x": 1, "more": {"w": 5}}
    assert as_call(parameters, example) == ((1, 2, 3), {"flag": 4, "w": 5})
    assert as_call(parameters[:1], {"x": 1}) == ((), {"x": 1})


class Keyed(nn.Module):
    """Node features, some of which are hidden, by name; so are the scores."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = gnn.GCNConv(zoo.FEATURES, zoo.CLASSES)

    def forward(self, inputs: dict[str, Tensor], edge_index: Tensor) -> dict[str, Tensor]:
        shown = torch.where(inputs["mask"], 0.0, inputs["x"])
        return {"scores": self.conv(shown, edge_index)}


def test_compile_says_what_was_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = zoo.random_graph(30, 90)
    mask = torch.arange(30).view(-1, 1) % 3 == 0
    example = {"inputs": {"x": graph.x, "mask": mask}, "edge_index": graph.edge_index}
    q = calibrate(gnnquant.convert(Keyed().eval(), example, bits=4), [example])
    compiled = gnnquant.compile(q, example, threads=1)
    assert "self_check" not in compiled.info
    for _ in range(2):
        wanted = gnnquant.compile(q, target="reference")(**example)
        assert torch.equal(compiled(**example)["scores"], wanted["scores"])
        with torch.no_grad():
            torch.testing.assert_close(wanted["scores"], q(**example)["scores"], rtol=1e-4, atol=1e-5)
        mask.logical_not_()
    monkeypatch.setattr("gnnquant.backends.self_check.check_compiled", lambda *args: False)
    assert backends.compile(q, threads=1).info["self_check"] == "skipped"


def test_reads_out_of_bounds_are_refused() -> None:
    """Compiled code cannot notice that the index program forgot a check; the runtime does."""
    graph = zoo.random_graph(30, 90)
    compiled = gnnquant.compile(converted("gat", 4), threads=1)
    reads = compiled._payload.plan.notes["reads"]
    assert reads
    index, rows, lowest = reads[0]
    reads[0] = (index, 3, lowest)
    broken = gnnquant.runtime.artifact.load_bytes(gnnquant.runtime.artifact.to_bytes(compiled._payload))
    reads[0] = (index, rows, lowest)
    with pytest.raises(BackendError, match=r"would read the rows 0 \.\. 29 of 3 by"):
        broken(graph.x, graph.edge_index)


def test_index_results_name_parts_of_graphs() -> None:
    results = IndexResults({}, {"a.b": np.arange(3)}, {})
    assert results.array("a.b").size == 3
