"""Compiled code against the integer reference, bit for bit, over the zoo; artifacts of real models."""

from __future__ import annotations

import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch_geometric.nn import MessagePassing

import gnnquant
from gnnquant.errors import ArtifactError, BackendError, InputError
from gnnquant.quantizers.calibration import calibrate
from tests import zoo
from tests.parity import converted, float_model, reference

LOWERED = [
    "gcn", "sage_mean", "sage_max", "gin", "gat", "appnp", "residual_gcn", "jumping_gcn",
    "pyg_gcn", "pyg_gat",
]  # fmt: skip
GRAPHS = [*zoo.GRAPH_SIZES, (400, 6000)]


def compiled(name: str, bits: int, threads: int = 1) -> gnnquant.CompiledModel:
    """The compiled model, made once."""
    return _compiled(name, bits, threads)


@cache
def _compiled(name: str, bits: int, threads: int) -> gnnquant.CompiledModel:
    return gnnquant.compile(converted(name, bits), threads=threads)


@pytest.mark.parametrize("name", [*LOWERED, "smp"])
@pytest.mark.parametrize("bits", [8, 4, 2])
def test_compiled_equals_reference(name: str, bits: int) -> None:
    """Hubs, self-loops, duplicates, isolated nodes, no edges, one node: the same bits.

    The softmax of attention and of the output is made of exact operations, so nothing is excepted.
    """
    ours, theirs = compiled(name, bits, threads=2 if bits == 4 else 1), reference(name, bits)
    for nodes, edges in GRAPHS:
        graph = zoo.random_graph(nodes, edges, seed=nodes + edges)
        arguments = (graph.x, graph.edge_index)
        assert torch.equal(ours(*arguments), theirs(*arguments)), (nodes, edges)


@pytest.mark.parametrize("name", [*LOWERED, "smp"])
def test_compiled_float_model_is_close(name: str) -> None:
    """bits=32, our FP32 baseline, equals eager PyG to float32 precision."""
    model = float_model(name)
    ours = gnnquant.compile(gnnquant.convert(model, bits=32), threads=1)
    for nodes, edges in GRAPHS:
        graph = zoo.random_graph(nodes, edges, seed=nodes + edges)
        with torch.no_grad():
            wanted = model(graph.x, graph.edge_index)
        torch.testing.assert_close(ours(graph.x, graph.edge_index), wanted, rtol=1e-4, atol=1e-5)


def test_codes_beyond_sixteen_bits_of_degree() -> None:
    """A hub with 70,000 edges: sums beyond 16 bits, and beyond 2^24, stay exact."""
    generator = torch.Generator().manual_seed(0)
    edge_index = torch.randint(0, 300, (2, 70_000), generator=generator)
    edge_index[1] = 7
    x = torch.rand(300, zoo.FEATURES, generator=generator)
    for threads in (1, 2):
        assert torch.equal(compiled("gcn", 8, threads)(x, edge_index), reference("gcn", 8)(x, edge_index))


def test_edge_weights() -> None:
    """Edge weights as an input, signed, with self-loops among them."""
    model = zoo.build("pyg_gcn").eval()
    graph = zoo.random_graph(50, 200)
    example = {"x": graph.x, "edge_index": graph.edge_index, "edge_weight": graph.edge_weight}
    q = calibrate(gnnquant.convert(model, example, bits=4), [example])
    ours, theirs = gnnquant.compile(q, example, threads=1), gnnquant.compile(q, target="reference")
    for nodes, edges in GRAPHS:
        other = zoo.random_graph(nodes, edges, seed=3)
        arguments = (other.x, other.edge_index)
        got = ours(*arguments, edge_weight=other.edge_weight)
        assert torch.equal(got, theirs(*arguments, edge_weight=other.edge_weight))


def test_portable_targets_compute_the_same() -> None:
    """Lesser instruction sets of this architecture give the same bits."""
    graph = zoo.random_graph(100, 700)
    wanted = reference("gcn", 4)(graph.x, graph.edge_index)
    for cpu in ("x86-64", "x86-64-v2", "x86-64-v3"):
        portable = gnnquant.compile(converted("gcn", 4), target={"kind": "llvm", "mcpu": cpu}, threads=1)
        assert torch.equal(portable(graph.x, graph.edge_index), wanted)


def test_code_for_another_processor_is_not_run(tmp_path: Path) -> None:
    """It can be compiled and saved here; running it here says what is missing instead of crashing."""
    cpu = "sapphirerapids" if "amx_tile" not in Path("/proc/cpuinfo").read_text() else "diamondrapids"
    foreign = gnnquant.compile(converted("gcn", 4), target={"kind": "llvm", "mcpu": cpu}, threads=1)
    graph = zoo.random_graph()
    with pytest.raises(BackendError, match="another machine"):
        foreign(graph.x, graph.edge_index)
    foreign.save(tmp_path / "model.gnnq")
    with pytest.raises(ArtifactError, match="another machine"):
        gnnquant.load(tmp_path / "model.gnnq")


def test_artifact_without_torch(tmp_path: Path) -> None:
    """A saved model runs in a process that cannot import torch, with the same bits."""
    model = compiled("gat", 2)
    graph = zoo.random_graph(80, 400)
    model.save(tmp_path / "model.gnnq")
    np.savez(tmp_path / "in.npz", x=graph.x.numpy(), edge_index=graph.edge_index.numpy())
    script = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "torch_geometric", "tvm"):
            raise ImportError(f"{name} is blocked")
sys.meta_path.insert(0, Blocker())
import numpy as np
from gnnquant.runtime import load
data = np.load(sys.argv[1] + "/in.npz")
out = load(sys.argv[1] + "/model.gnnq")(data["x"], data["edge_index"])
assert isinstance(out, np.ndarray)
np.save(sys.argv[1] + "/out.npy", out)
"""
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=True)
    wanted = model(graph.x, graph.edge_index).numpy()
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), wanted)


@pytest.fixture(scope="module")
def gcn() -> gnnquant.CompiledModel:
    return compiled("gcn", 8)


def test_bad_input_is_refused(gcn: gnnquant.CompiledModel) -> None:
    """Each with the argument and the remedy; nothing crashes, and the model still works."""
    graph = zoo.random_graph(20, 64)
    x, edge_index = graph.x, graph.edge_index
    wanted = gcn(x, edge_index)
    negative, beyond = edge_index.clone(), edge_index.clone()
    negative[0, 5], beyond[1, 9] = -1, 20
    nan, infinite = x.clone(), x.clone()
    nan[3, 2], infinite[4, 1] = torch.nan, torch.inf
    for arguments, message in [
        ((x, negative), "-1"),
        ((x, beyond), "20"),
        ((x, edge_index.float()), "int64"),
        ((x, edge_index.int()), "int64"),
        ((x, edge_index.t()), r"\[2, E\]"),
        ((x[:, :-1], edge_index), "6"),
        ((x.double(), edge_index), "float32"),
        ((x.half(), edge_index), "float32"),
        ((nan, edge_index), "NaN|finite"),
        ((infinite, edge_index), "inf|finite"),
        ((x.to("meta"), edge_index), "device|meta"),
        ((x,), "edge_index"),
        ((x, edge_index, x), "'edge_weight' was None when the model was compiled"),
        ((x, edge_index, None, x), "4 were given"),
    ]:
        with pytest.raises(InputError, match=message):
            gcn(*arguments)
    assert torch.equal(gcn(x, edge_index), wanted)


def test_unusual_but_right_input_works(gcn: gnnquant.CompiledModel) -> None:
    """Strides, alignment, numpy, no nodes, no edges, gradients, keywords, prepared graphs."""
    graph = zoo.random_graph(20, 64)
    x, edge_index = graph.x, graph.edge_index
    wanted = gcn(x, edge_index)
    shifted = torch.empty(20 * zoo.FEATURES + 1)[1:].view(20, zoo.FEATURES).copy_(x)
    strided = torch.stack([x, x], dim=-1)[..., 0]
    for features in (shifted, strided, x.clone().requires_grad_()):
        assert torch.equal(gcn(features, edge_index), wanted)
    assert torch.equal(gcn(x=x, edge_index=edge_index.t().contiguous().t()), wanted)
    array = gcn(x.numpy(), edge_index.numpy())
    assert isinstance(array, np.ndarray)
    np.testing.assert_array_equal(array, wanted.numpy())
    assert torch.equal(gcn(x, gcn.prepare(edge_index, 20)), wanted)
    assert gcn(x[:0], edge_index[:, :0]).shape == (0, zoo.CLASSES)
    assert gcn(x, edge_index[:, :0]).shape == (20, zoo.CLASSES)


def test_values_of_the_graph_follow_the_graph() -> None:
    """Norms are computed once per graph: alternating graphs of one size must not mix them up."""
    model = compiled("gcn", 4, threads=2)
    graphs = [zoo.random_graph(30, 120, seed=seed) for seed in (1, 2)]
    handles = [model.prepare(graph.edge_index, 30) for graph in graphs]
    for index in (0, 1, 0, 0, 1, 1, 0):
        graph = graphs[index]
        wanted = reference("gcn", 4)(graph.x, graph.edge_index)
        assert torch.equal(model(graph.x, graph.edge_index), wanted)
        assert torch.equal(model(graph.x, handles[index]), wanted)


def test_changed_graphs_are_noticed(gcn: gnnquant.CompiledModel) -> None:
    """The cached CSR form is never stale: edges changed in place count."""
    graph = zoo.random_graph(20, 64)
    edge_index = graph.edge_index.clone()
    before = gcn(graph.x, edge_index)
    edge_index[0] = edge_index[0].roll(1)
    after = gcn(graph.x, edge_index)
    assert not torch.equal(before, after)
    assert torch.equal(after, gcn(graph.x, edge_index.clone()))


class EdgeScores(MessagePassing):
    """Messages that are aggregated and returned too."""

    def __init__(self) -> None:
        super().__init__(aggr="sum")
        self.edge = nn.Linear(2 * zoo.FEATURES, zoo.HIDDEN)
        self.node = nn.Linear(zoo.HIDDEN, zoo.CLASSES)

    def forward(self, x: Tensor, edge_index: Tensor) -> tuple[Tensor, Tensor]:
        message = self.edge_updater(edge_index, x=x)
        return self.node(self.propagate(edge_index, value=message)), message

    def edge_update(self, x_i: Tensor, x_j: Tensor) -> Tensor:
        return self.edge(torch.cat([x_i, x_j], dim=-1)).relu()

    def message(self, value: Tensor) -> Tensor:
        return value


def test_edge_values_that_are_returned_too() -> None:
    """They come back in the order of the user's edges, whatever order the kernels work in."""
    torch.manual_seed(0)
    model = EdgeScores().eval()
    graph = zoo.random_graph(50, 200)
    example = (graph.x, graph.edge_index)
    floats = gnnquant.compile(gnnquant.convert(model, example, bits=32), threads=1)
    q = calibrate(gnnquant.convert(model, example, bits=4), [example])
    compiled, reference = gnnquant.compile(q, threads=1), gnnquant.compile(q, target="reference")
    for nodes, edges in GRAPHS:
        other = zoo.random_graph(nodes, edges, seed=3)
        arguments = (other.x, other.edge_index)
        with torch.no_grad():
            wanted = model(*arguments)
        for got, value in zip(floats(*arguments), wanted, strict=True):
            torch.testing.assert_close(got, value, rtol=1e-4, atol=1e-5)
        for got, value in zip(compiled(*arguments), reference(*arguments), strict=True):
            assert torch.equal(got, value)
