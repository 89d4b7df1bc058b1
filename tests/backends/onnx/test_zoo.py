"""Exported models of the zoo in ONNX Runtime beside the integer reference, on graphs of other sizes."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch_geometric import nn as gnn

import gnnquant
from gnnquant import QuantConfig, QuantSpec
from gnnquant.backends.onnx.check import FLOAT_TOLERANCE
from gnnquant.passes.lowering import lower
from gnnquant.quantizers.calibration import calibrate
from tests import zoo
from tests.backends.onnx.helpers import (
    assert_same_classes,
    exported,
    random_graphs,
    session,
)
from tests.backends.onnx.helpers import reference as interpreted
from tests.backends.test_parity import EdgeScores
from tests.parity import float_model, reference

MODELS = [
    "gcn", "sage_mean", "sage_max", "gin", "gat", "appnp", "residual_gcn", "own_conv", "edge_conv",
    "pyg_sage", "smp",
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "bits"),
    [(name, 4) for name in MODELS]
    + [(name, bits) for name in ("gcn", "sage_max", "gin", "gat", "edge_conv", "smp") for bits in (8, 2)],
)
def test_exported_equals_reference(name: str, bits: int) -> None:
    _, ours = exported(name, bits, 25)
    theirs = reference(name, bits)
    arguments = [(graph.x, graph.edge_index) for graph in random_graphs()]
    assert_same_classes([(ours(*args), theirs(*args)) for args in arguments], bits)


@pytest.mark.parametrize(("bits", "opset"), [(8, 18), (4, 21), (2, 21), (4, 24)])
@pytest.mark.parametrize("name", ["gcn", "gat", "own_conv"])
def test_older_operator_sets_compute_the_same(name: str, bits: int, opset: int) -> None:
    _, ours = exported(name, bits, opset)
    theirs = reference(name, bits)
    arguments = [(graph.x, graph.edge_index) for graph in random_graphs()]
    assert_same_classes([(ours(*args), theirs(*args)) for args in arguments], bits)


class Heads(nn.Module):
    """Attention with several heads, whose signed codes are reshaped before they are gathered."""

    def __init__(self) -> None:
        super().__init__()
        self.first = gnn.GATConv(zoo.FEATURES, 6, heads=3)
        self.second = gnn.GATConv(18, zoo.CLASSES)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return self.second(self.first(x, edge_index).relu(), edge_index)


@pytest.mark.parametrize("granularity", ["row", "tensor"])
@pytest.mark.parametrize("opset", range(18, 26))
def test_reshaped_codes_keep_their_sign(opset: int, granularity: str) -> None:
    """ONNX Runtime would repeat quantization behind the reshape, and take UINT8 for INT8."""
    torch.manual_seed(0)
    graph = zoo.random_graph(60, 300, seed=5)
    example = (graph.x, graph.edge_index)
    config = QuantConfig(message=QuantSpec(granularity=granularity))
    q = calibrate(gnnquant.convert(Heads().eval(), example, bits=8, config=config), [example])
    lowered = lower(q)
    ours, theirs = session(lowered, opset), interpreted(lowered)
    arguments = [(graph.x, graph.edge_index) for graph in random_graphs()]
    assert_same_classes([(ours(*args), theirs(*args)) for args in arguments], bits=8)


@pytest.mark.parametrize("name", [name for name in MODELS if name not in ("residual_gcn", "smp")])
def test_float_model_is_close(name: str) -> None:
    """bits=32 equals the float reference and eager PyG."""
    _, ours = exported(name, 32, 18)
    model = float_model(name)
    for graph in random_graphs():
        got = ours(graph.x, graph.edge_index)
        wanted = reference(name, 32)(graph.x, graph.edge_index)
        limit = FLOAT_TOLERANCE * max(1.0, float(wanted.abs().max()))
        torch.testing.assert_close(got, wanted, rtol=FLOAT_TOLERANCE, atol=limit)
        with torch.no_grad():
            torch.testing.assert_close(got, model(graph.x, graph.edge_index), rtol=1e-4, atol=1e-4)


def per_tensor(name: str, bits: int) -> gnnquant.QuantizedModule:
    """A model with one scale per tensor: quantized values are pairs with that scale."""
    graph = zoo.random_graph(60, 300, seed=5)
    spec = QuantSpec(granularity="tensor")
    kinds = ("input", "weight", "message", "aggregate", "update", "skip")
    config = QuantConfig(**dict.fromkeys(kinds, spec))
    example = (graph.x, graph.edge_index)
    q = gnnquant.convert(float_model(name), example, bits=bits, config=config)
    gnnquant.calibrate(q, [example])
    return q


@pytest.mark.parametrize("name", ["gin", "residual_gcn"])
@pytest.mark.parametrize(("bits", "opset"), [(8, 25), (4, 25), (4, 21), (2, 25), (2, 21)])
def test_scales_per_tensor(name: str, bits: int, opset: int) -> None:
    lowered = lower(per_tensor(name, bits))
    ours, theirs = session(lowered, opset), interpreted(lowered)
    arguments = [(graph.x, graph.edge_index) for graph in random_graphs()]
    assert_same_classes([(ours(*args), theirs(*args)) for args in arguments], bits)


def test_large_codes_do_not_saturate() -> None:
    """Products of the largest 8-bit codes, which 16-bit sums of pairs cannot hold."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64, bias=False), nn.ReLU(), nn.Linear(64, 8, bias=False)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1.0)
    x = torch.ones(5, 64)
    for spec in (QuantSpec(granularity="tensor"), QuantSpec()):
        q = gnnquant.convert(model, (x,), bits=8, config=QuantConfig(input=spec, update=spec))
        gnnquant.calibrate(q, [(x,)])
        lowered = lower(q)
        wanted = interpreted(lowered)(x)
        assert float(wanted.min()) > 4000
        torch.testing.assert_close(session(lowered)(x), wanted, rtol=1e-5, atol=0)


def test_threads_do_not_change_sums() -> None:
    """A hub with many duplicate edges, in a pool of threads: sums must not race."""
    generator = torch.Generator().manual_seed(0)
    edge_index = torch.randint(0, 300, (2, 70_000), generator=generator)
    edge_index[1] %= 5
    x = torch.rand(300, zoo.FEATURES, generator=generator)
    lowered = lower(gnnquant.convert(float_model("sage_mean"), (x, edge_index), bits=32))
    one, many = session(lowered, threads=1), session(lowered, threads=4)
    for _ in range(3):
        assert torch.equal(one(x, edge_index), many(x, edge_index))


# --- other inputs and outputs ---------------------------------------------------------------------


def check(model: nn.Module, example: tuple[object, ...], *others: tuple[object, ...]) -> onnx.ModelProto:
    """INT4 and FP32 of a model equal the reference on all calls; returns the INT4 model."""
    for bits in (32, 4):
        q = gnnquant.convert(model.eval(), example, bits=bits)
        if bits != 32:
            calibrate(q, [example])
        lowered = lower(q)
        ours, theirs = session(lowered), interpreted(lowered)
        for arguments in (example, *others):
            got, wanted = ours(*arguments), theirs(*arguments)
            torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)
    return onnx.load_from_string(gnnquant.backends.onnx.emit.emit_model(lowered, 25, {}).SerializeToString())


def shapes(values: object) -> dict[str, list[object]]:
    return {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in values  # type: ignore[attr-defined]
    }


def test_groups_of_nodes() -> None:
    """Pooling over a batch, also with a group that nothing belongs to."""
    torch.manual_seed(0)
    graph, other = zoo.random_graph(), zoo.random_graph(31, 90, seed=2)
    gap = torch.tensor([0] * 10 + [2] * 21)
    model = check(
        zoo.GraphClassifier(zoo.FEATURES, zoo.CLASSES),
        (graph.x, graph.edge_index, graph.batch),
        (other.x, other.edge_index, other.batch),
        (other.x, other.edge_index[:, :0], gap),
    )
    assert shapes(model.graph.input)["batch"] == ["nodes"]


class Pooled(nn.Module):
    """Sums of groups whose number is an input."""

    def forward(self, x: Tensor, batch: Tensor, count: int) -> Tensor:
        return gnn.global_add_pool(x, batch, size=count)


def test_numbers_are_scalars() -> None:
    graph = zoo.random_graph()
    model = check(Pooled(), (graph.x, graph.batch, 4), (graph.x, graph.batch, 9))
    assert shapes(model.graph.input)["count"] == []
    assert shapes(model.graph.output)["output"] == ["count", zoo.FEATURES]


def test_edge_values_come_back_in_the_given_order() -> None:
    torch.manual_seed(0)
    graph, other = zoo.random_graph(50, 200), zoo.random_graph(20, 33, seed=1)
    model = check(EdgeScores(), (graph.x, graph.edge_index), (other.x, other.edge_index))
    # PyG sums up to the largest destination where a layer is not told how many there are.
    assert shapes(model.graph.output) == {
        "output[0]": ["extent", zoo.CLASSES],
        "output[1]": ["edges", zoo.HIDDEN],
    }


class Types(nn.Module):
    """Two types of nodes; dictionaries in and out."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = gnn.HeteroConv(
            {
                ("paper", "cites", "paper"): gnn.GCNConv(-1, 6),
                ("author", "writes", "paper"): gnn.SAGEConv((-1, -1), 6, aggr="max"),
                ("paper", "by", "author"): gnn.GATConv((-1, -1), 6, add_self_loops=False),
            }
        )

    def forward(self, x_dict: dict[str, Tensor], edge_index_dict: dict[object, Tensor]) -> dict[str, Tensor]:
        return self.conv(x_dict, edge_index_dict)


def typed(papers: int, authors: int, edges: int, seed: int) -> tuple[object, ...]:
    generator = torch.Generator().manual_seed(seed)

    def between(sources: int, destinations: int) -> Tensor:
        ends = [torch.randint(rows, (edges,), generator=generator) for rows in (sources, destinations)]
        return torch.stack(ends)

    x_dict = {
        "paper": torch.randn(papers, 5, generator=generator),
        "author": torch.randn(authors, 4, generator=generator),
    }
    return x_dict, {
        ("paper", "cites", "paper"): between(papers, papers),
        ("author", "writes", "paper"): between(authors, papers),
        ("paper", "by", "author"): between(papers, authors),
    }


def test_types_of_nodes() -> None:
    torch.manual_seed(0)
    model = Types()
    example = typed(20, 9, 40, 0)
    with torch.no_grad():
        model(*example)
    exported_model = check(model, example, typed(13, 17, 25, 1), typed(6, 3, 0, 2))
    assert {value.name for value in exported_model.graph.input} == {
        "x_dict[paper]",
        "x_dict[author]",
        "edge_index_dict[paper,cites,paper]",
        "edge_index_dict[author,writes,paper]",
        "edge_index_dict[paper,by,author]",
    }
    assert {value.name for value in exported_model.graph.output} == {"output[paper]", "output[author]"}
    assert shapes(exported_model.graph.input)["x_dict[author]"] == ["x_dict[author]_rows", 4]


class OnMatrix(nn.Module):
    """A layer on a sparse matrix, and the mean over all nodes as a single row."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = gnn.GCNConv(zoo.FEATURES, 6)

    def forward(self, x: Tensor, adj_t: Tensor) -> tuple[Tensor, Tensor]:
        x = self.conv(x, adj_t)
        return x, x.mean(dim=0)


def matrix(graph: zoo.Graph) -> Tensor:
    nodes = graph.x.size(0)
    unique = torch.unique(graph.edge_index.flip(0), dim=1)
    values = torch.rand(unique.size(1), generator=torch.Generator().manual_seed(0)) + 0.1
    return torch.sparse_coo_tensor(unique, values, (nodes, nodes), check_invariants=True).to_sparse_csr()


@pytest.mark.filterwarnings("ignore:Sparse invariant checks are implicitly disabled:UserWarning")
@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta:UserWarning")
def test_sparse_matrices_are_four_inputs() -> None:
    torch.manual_seed(0)
    graph, other = zoo.random_graph(), zoo.random_graph(33, 150, seed=4)
    model = check(OnMatrix(), (graph.x, matrix(graph)), (other.x, matrix(other)))
    assert shapes(model.graph.input) == {
        "x": ["x_rows", zoo.FEATURES],  # the matrix has rows too: a model may have other ones
        "adj_t.row": ["edges"],
        "adj_t.col": ["edges"],
        "adj_t.size": [2],
        "adj_t.values": ["edges"],
    }
    assert shapes(model.graph.output)["output[1]"] == [6]


@pytest.mark.parametrize("name", ["gcn", "gat", "own_conv", "edge_conv"])
def test_named_dimensions_are_what_they_say(name: str) -> None:
    """Every value of an exported model has the declared shape, one number for each name."""
    model, ours = exported(name, 4, 25)
    graph = zoo.random_graph(31, 90, seed=1)
    feeds = ours.feeds(graph.x, graph.edge_index)
    values = {value.name: value for value in [*model.graph.value_info, *model.graph.output]}
    packed = (onnx.TensorProto.INT4, onnx.TensorProto.UINT4)
    kept = {key: value for key, value in values.items() if value.type.tensor_type.elem_type not in packed}
    spread = onnx.ModelProto()
    spread.CopyFrom(model)
    del spread.graph.output[:]
    spread.graph.output.extend(kept.values())
    found = onnxruntime.InferenceSession(spread.SerializeToString()).run(list(kept), feeds)
    sizes: dict[str, set[int]] = {}
    for (key, declared), value in zip(kept.items(), found, strict=True):
        dims = declared.type.tensor_type.shape.dim
        assert len(dims) == np.ndim(value), key
        for dim, size in zip(dims, np.shape(value), strict=True):
            if dim.dim_param:
                sizes.setdefault(dim.dim_param, set()).add(size)
            else:
                assert dim.dim_value == size, key
    assert sizes["nodes"] == {31}
    assert all(len(found) == 1 for found in sizes.values()), sizes
