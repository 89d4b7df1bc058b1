"""Compiled code against the integer reference, bit for bit, over the zoo; artifacts of real models."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import gnnquant
from gnnquant.errors import ArtifactError, BackendError, InputError
from gnnquant.quantizers.calibration import calibrate
from tests import zoo

LOWERED = [
    "gcn", "sage_mean", "sage_max", "gin", "gat", "appnp", "residual_gcn", "jumping_gcn",
    "pyg_gcn", "pyg_gat",
]  # fmt: skip
GRAPHS = [*zoo.GRAPH_SIZES, (400, 6000)]


class SmoothNet(nn.Module):
    """A feature network with smoothness-aware propagation."""

    def __init__(self) -> None:
        super().__init__()
        self.lin1 = nn.Linear(zoo.FEATURES, zoo.HIDDEN)
        self.lin2 = nn.Linear(zoo.HIDDEN, zoo.CLASSES)
        self.propagation = gnnquant.SmoothPropagation(K=3)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return self.propagation(self.lin2(self.lin1(x).relu()), edge_index)


def _model(name: str) -> nn.Module:
    if name == "smp":
        torch.manual_seed(0)
        return SmoothNet()
    return zoo.build(name)


def _converted(name: str, bits: int) -> nn.Module:
    q = gnnquant.convert(_model(name).eval(), bits=bits)
    graph = zoo.random_graph(60, 300, seed=5)
    return calibrate(q, [(graph.x, graph.edge_index)])


@pytest.mark.parametrize("name", [*LOWERED, "smp"])
@pytest.mark.parametrize("bits", [8, 4, 2])
def test_compiled_equals_reference(name: str, bits: int) -> None:
    """Hubs, self-loops, duplicates, isolated nodes, no edges, one node: the same bits.

    The softmax of attention and of the output is made of exact operations, so nothing is excepted.
    """
    q = _converted(name, bits)
    compiled = gnnquant.compile(q, threads=2 if bits == 4 else 1)
    reference = gnnquant.compile(q, target="reference")
    for nodes, edges in GRAPHS:
        graph = zoo.random_graph(nodes, edges, seed=nodes + edges)
        got = compiled(graph.x, graph.edge_index)
        assert torch.equal(got, reference(graph.x, graph.edge_index)), (nodes, edges)


@pytest.mark.parametrize("name", [*LOWERED, "smp"])
def test_compiled_float_model_is_close(name: str) -> None:
    """bits=32, our FP32 baseline, equals eager PyG to float32 precision."""
    model = _model(name).eval()
    compiled = gnnquant.compile(gnnquant.convert(model, bits=32), threads=1)
    for nodes, edges in GRAPHS:
        graph = zoo.random_graph(nodes, edges, seed=nodes + edges)
        with torch.no_grad():
            wanted = model(graph.x, graph.edge_index)
        torch.testing.assert_close(compiled(graph.x, graph.edge_index), wanted, rtol=1e-4, atol=1e-5)


def test_codes_beyond_sixteen_bits_of_degree() -> None:
    """A hub with 70,000 edges: sums beyond 16 bits, and beyond 2^24, stay exact."""
    q = _converted("gcn", 8)
    compiled, reference = gnnquant.compile(q, threads=2), gnnquant.compile(q, target="reference")
    generator = torch.Generator().manual_seed(0)
    edge_index = torch.randint(0, 300, (2, 70_000), generator=generator)
    edge_index[1] = 7
    x = torch.rand(300, zoo.FEATURES, generator=generator)
    assert torch.equal(compiled(x, edge_index), reference(x, edge_index))


def test_edge_weights() -> None:
    """Edge weights as an input, signed, with self-loops among them."""
    model = zoo.build("pyg_gcn").eval()
    graph = zoo.random_graph(50, 200)
    example = {"x": graph.x, "edge_index": graph.edge_index, "edge_weight": graph.edge_weight}
    q = calibrate(gnnquant.convert(model, example, bits=4), [example])
    compiled = gnnquant.compile(q, example, threads=1)
    reference = gnnquant.compile(q, target="reference")
    for nodes, edges in GRAPHS:
        other = zoo.random_graph(nodes, edges, seed=3)
        arguments = (other.x, other.edge_index)
        got = compiled(*arguments, edge_weight=other.edge_weight)
        assert torch.equal(got, reference(*arguments, edge_weight=other.edge_weight))


def test_portable_targets_compute_the_same() -> None:
    """Lesser instruction sets of this architecture give the same bits."""
    q = _converted("gcn", 4)
    graph = zoo.random_graph(100, 700)
    wanted = gnnquant.compile(q, target="reference")(graph.x, graph.edge_index)
    for cpu in ("x86-64", "x86-64-v2", "x86-64-v3"):
        compiled = gnnquant.compile(q, target={"kind": "llvm", "mcpu": cpu}, threads=1)
        assert torch.equal(compiled(graph.x, graph.edge_index), wanted)


def test_code_for_another_processor_is_not_run(tmp_path: Path) -> None:
    """It can be compiled and saved here; running it here says what is missing instead of crashing."""
    cpu = "sapphirerapids" if "amx_tile" not in Path("/proc/cpuinfo").read_text() else "diamondrapids"
    foreign = gnnquant.compile(_converted("gcn", 4), target={"kind": "llvm", "mcpu": cpu}, threads=1)
    graph = zoo.random_graph()
    with pytest.raises(BackendError, match="another machine"):
        foreign(graph.x, graph.edge_index)
    foreign.save(tmp_path / "model.gnnq")
    with pytest.raises(ArtifactError, match="another machine"):
        gnnquant.load(tmp_path / "model.gnnq")


def test_artifact_without_torch(tmp_path: Path) -> None:
    """A saved model runs in a process that cannot import torch, with the same bits."""
    q = _converted("gat", 2)
    compiled = gnnquant.compile(q, threads=1)
    graph = zoo.random_graph(80, 400)
    compiled.save(tmp_path / "model.gnnq")
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
    wanted = compiled(graph.x, graph.edge_index).numpy()
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), wanted)


@pytest.fixture(scope="module")
def gcn() -> gnnquant.CompiledModel:
    return gnnquant.compile(_converted("gcn", 8), threads=1)


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
    q = _converted("gcn", 4)
    compiled, reference = gnnquant.compile(q, threads=1), gnnquant.compile(q, target="reference")
    graphs = [zoo.random_graph(30, 120, seed=seed) for seed in (1, 2)]
    handles = [compiled.prepare(graph.edge_index, 30) for graph in graphs]
    for index in (0, 1, 0, 0, 1, 1, 0):
        graph = graphs[index]
        wanted = reference(graph.x, graph.edge_index)
        assert torch.equal(compiled(graph.x, graph.edge_index), wanted)
        assert torch.equal(compiled(graph.x, handles[index]), wanted)


def test_changed_graphs_are_noticed(gcn: gnnquant.CompiledModel) -> None:
    """The cached CSR form is never stale: edges changed in place count."""
    graph = zoo.random_graph(20, 64)
    edge_index = graph.edge_index.clone()
    before = gcn(graph.x, edge_index)
    edge_index[0] = edge_index[0].roll(1)
    after = gcn(graph.x, edge_index)
    assert not torch.equal(before, after)
    assert torch.equal(after, gcn(graph.x, edge_index.clone()))
