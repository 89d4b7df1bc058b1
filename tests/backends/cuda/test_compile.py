"""``compile(target="cuda")``: models of the zoo, artifacts, the driver's failures, nvcc, and a real GPU."""

from __future__ import annotations

import ctypes
import gc
import pickle
import re
import shutil
import subprocess
import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

import gnnquant
from gnnquant import cli
from gnnquant.backends.cuda import generate, is_cuda, nvcc
from gnnquant.errors import ArtifactError, BackendError, InputError
from gnnquant.runtime import cuda, cuda_driver, host, inputs
from gnnquant.runtime.artifact import load_bytes, model_from_payload, to_bytes
from gnnquant.runtime.device import DeviceArray
from tests import zoo
from tests.backends.cuda import emulation
from tests.backends.tvm import graphs
from tests.backends.tvm.models import graph_of
from tests.parity import converted, float_model, reference

if TYPE_CHECKING:
    from pathlib import Path

GRAPHS = [*zoo.GRAPH_SIZES, (400, 6000)]
PRESENT = "" if shutil.which("nvcc") else "needs nvcc"
LACKING = cuda_driver.lacking() or PRESENT


@pytest.fixture
def compiled_here(emulated: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """g++ and the stand-in for the driver in the place of nvcc and of a GPU."""

    def build(source: str) -> bytes:
        return emulation.image_of(source)

    monkeypatch.setattr(nvcc, "build_fatbin", build)


@pytest.mark.parametrize(
    ("name", "bits"), [("gcn", 8), ("gat", 4), ("sage_max", 2), ("residual_gcn", 4), ("smp", 8)]
)
@pytest.mark.usefixtures("compiled_here")
def test_compiled_equals_reference(name: str, bits: int) -> None:
    """The whole of ``compile``, which compares with the reference itself too."""
    ours, theirs = gnnquant.compile(converted(name, bits), target="cuda"), reference(name, bits)
    assert ours.info["target"]["kind"] == "cuda"
    for nodes, edges in GRAPHS:
        graph = zoo.random_graph(nodes, edges, seed=nodes + edges)
        arguments = (graph.x, graph.edge_index)
        assert torch.equal(ours(*arguments), theirs(*arguments)), (nodes, edges)


@pytest.mark.parametrize("name", ["gcn", "gat"])
@pytest.mark.usefixtures("compiled_here")
def test_compiled_float_model_is_close(name: str) -> None:
    model = float_model(name)
    ours = gnnquant.compile(gnnquant.convert(model, bits=32), target="cuda")
    for nodes, edges in GRAPHS:
        graph = zoo.random_graph(nodes, edges, seed=nodes + edges)
        with torch.no_grad():
            wanted = model(graph.x, graph.edge_index)
        torch.testing.assert_close(ours(graph.x, graph.edge_index), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("compiled_here")
def test_values_of_the_graph_follow_the_graph() -> None:
    """Norms are computed once per graph: alternating and prepared graphs must not mix them up."""
    model = gnnquant.compile(converted("gcn", 4), target="cuda")
    drawn = [zoo.random_graph(30, 120, seed=seed) for seed in (1, 2)]
    handles = [model.prepare(graph.edge_index, 30) for graph in drawn]
    for index in (0, 1, 0, 0, 1, 1, 0):
        graph = drawn[index]
        wanted = reference("gcn", 4)(graph.x, graph.edge_index)
        assert torch.equal(model(graph.x, graph.edge_index), wanted)
        assert torch.equal(model(graph.x, handles[index]), wanted)


# ---------------------------------------------------------------- artifacts and machines


def test_artifacts(emulated: Path, tmp_path: Path) -> None:
    """Saved, loaded and pickled where there is a GPU: the same bits."""
    graph = graph_of("gcn-4")
    model = model_from_payload(emulation.payload(graph))
    assert repr(model).endswith("target=cuda)")
    inputs = graphs.values(graph, 13, 40)
    wanted = model(**inputs)
    model.save(tmp_path / "model.gnnq")
    for other in (gnnquant.load(tmp_path / "model.gnnq"), pickle.loads(pickle.dumps(model))):
        np.testing.assert_array_equal(other(**inputs), wanted)


def test_without_a_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A model is made, described and saved; calling and loading it say what is missing."""
    monkeypatch.setattr(cuda_driver, "LIBRARY", "libcuda-is-not-here.so.1")
    graph = graph_of("gcn-4")
    model = model_from_payload(emulation.payload(graph))
    model.save(tmp_path / "model.gnnq")
    needed = r"an NVIDIA GPU of compute capability 8\.0 or newer \(NVIDIA's driver is not installed here"
    with pytest.raises(BackendError, match=f"another machine: it needs {needed}"):
        model(**graphs.values(graph, 13, 40))
    with pytest.raises(ArtifactError, match=f"another machine: it needs {needed}"):
        gnnquant.load(tmp_path / "model.gnnq")
    assert cli.main(["info", str(tmp_path / "model.gnnq")]) == 0
    assert "cannot run here: it needs an NVIDIA GPU" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("failure", "words"),
    [("init", "cuInit failed"), ("count", "shows no GPU"), ("old", r"this one has 7\.0")],
)
def test_a_gpu_that_will_not_do(
    failure: str, words: str, emulated: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not host.missing_requirements(host.gpu_requirements(nvcc.ARCHITECTURES))
    monkeypatch.setenv("FAKE_CUDA", failure)
    (lacking,) = host.missing_requirements(host.gpu_requirements(nvcc.ARCHITECTURES))
    assert lacking.startswith("an NVIDIA GPU of compute capability 8.0 or newer")
    assert re.search(words, lacking)


def test_failures_of_the_driver(emulated: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is an error in the driver's words, and the model works again afterwards."""
    graph = graph_of("gcn-4")
    payload = emulation.payload(graph)
    monkeypatch.setenv("FAKE_CUDA", "module")
    with pytest.raises(BackendError, match=r"cuModuleLoadData failed: CUDA_ERROR \(209"):
        model_from_payload(payload)
    monkeypatch.delenv("FAKE_CUDA")
    model = model_from_payload(payload)
    small, large = (graphs.values(graph, nodes, 40) for nodes in (13, 5000))
    wanted = model(**small)
    for failure, words in (
        ("memory", "CUDA_ERROR_OUT_OF_MEMORY.*use smaller graphs"),
        ("kernel", "Synchronize"),
    ):
        monkeypatch.setenv("FAKE_CUDA", failure)
        with pytest.raises(BackendError, match=words):
            model(**large)
        monkeypatch.delenv("FAKE_CUDA")
        np.testing.assert_array_equal(model(**small), wanted)


def test_memory_of_the_gpu_is_given_back(emulated: Path) -> None:
    held = ctypes.CDLL(str(emulated)).fake_cuda_held
    held.restype = ctypes.c_size_t
    gc.collect()
    before = held()
    graph = graph_of("gcn-4")
    model = model_from_payload(emulation.payload(graph))
    for nodes in range(10, 20):  # more graphs than are kept
        model(**graphs.values(graph, nodes, 40))
    kept = held()
    for nodes in range(10, 20):
        model(**graphs.values(graph, nodes, 40))
    assert before < held() == kept
    del model
    gc.collect()
    assert held() == before


def test_several_threads_call_one_model(emulated: Path) -> None:
    graph = graph_of("gcn-4")
    model = model_from_payload(emulation.payload(graph))
    calls = [graphs.values(graph, nodes, 60, seed=nodes) for nodes in range(20, 28)]
    wanted = [model(**call) for call in calls]
    wrong: list[int] = []

    def work(first: int) -> None:
        for step in range(12):
            at = (first + step) % len(calls)
            if not np.array_equal(model(**calls[at]), wanted[at]):
                wrong.append(at)

    threads = [threading.Thread(target=work, args=(first,)) for first in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize(
    "launches",
    [
        None,
        [],
        {"work": ["nowhere", 1], "scalars": []},
        {"work": ["one", 0], "scalars": []},
        {"work": ["one", 1], "scalars": [["rows", "nowhere"]]},
        {"work": ["one", 1], "scalars": [["float", -1]]},
        {"work": ["one", 1], "scalars": [["double", 1]]},
        {"work": ["one", 1]},
        {"work": ["one"], "scalars": []},
        {"work": [[], 1], "scalars": []},
    ],
)
def test_malformed_plans_are_refused(launches: Any, emulated: Path) -> None:
    payload = emulation.payload(graph_of("gcn-4"))
    given = payload.plan.notes["launches"]
    notes = {**payload.plan.notes, "launches": [*given[:-1], launches] if launches else launches}
    with pytest.raises(ArtifactError, match="malformed"):
        load_bytes(to_bytes(replace(payload, plan=replace(payload.plan, notes=notes))))


# ---------------------------------------------------------------- targets and nvcc


def test_names_of_the_target() -> None:
    from tvm.target import Target

    for target in ("cuda", {"kind": "cuda"}, Target({"kind": "cuda", "arch": "sm_86"})):
        assert is_cuda(target)
    for target in ("native", "reference", {"kind": "llvm"}, Target("llvm"), 7):
        assert not is_cuda(target)
    with pytest.raises(BackendError, match="takes neither threads"):
        gnnquant.compile(converted("gcn", 4), target="cuda", threads=2)


@pytest.mark.skipif(bool(PRESENT), reason=PRESENT)
def test_nvcc_makes_a_fatbin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without contraction and approximation; the second time it comes from the cache."""
    monkeypatch.setenv("GNNQUANT_CACHE", str(tmp_path))
    monkeypatch.setenv("GNNQUANT_DUMP", str(tmp_path / "dump"))
    model = gnnquant.compile(converted("gat", 4), target="cuda")
    payload = model._payload
    assert payload is not None
    assert payload.library[:4] == b"\x50\xed\x55\xba"  # the magic number of a fatbin
    source = (tmp_path / "dump" / "cuda-kernels.cu").read_text(encoding="utf-8")
    monkeypatch.setattr(nvcc, "_compiled", None)
    assert nvcc.build_fatbin(source) == payload.library
    (tmp_path / "kernels.cu").write_text(source, encoding="utf-8")
    options = [option for option in nvcc.OPTIONS if not option.startswith("-gencode")]
    command = ["nvcc", *options, "-arch=compute_90", "-ptx", "kernels.cu", "-o", "kernels.ptx"]
    subprocess.run(command, cwd=tmp_path, check=True)
    text = (tmp_path / "kernels.ptx").read_text(encoding="utf-8")
    assert "mul.rn.f32" in text
    assert "div.rn.f32" in text
    assert not re.search(r"fma\.|\.ftz|\.approx", text)


def test_a_missing_nvcc_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    monkeypatch.setattr(nvcc, "USUAL", str(tmp_path))
    with pytest.raises(BackendError, match=r"no nvcc found.*install NVIDIA's CUDA toolkit.*set CUDA_HOME"):
        gnnquant.compile(converted("gcn", 4), target={"kind": "cuda"})


def test_nvcc_is_found_under_cuda_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And what it says when it fails is passed on."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    monkeypatch.setenv("GNNQUANT_CACHE", "off")
    (tmp_path / "bin").mkdir()
    script = tmp_path / "bin" / "nvcc"
    script.write_text('#!/bin/sh\ntest "$1" = --version || { echo "no such architecture" >&2; exit 3; }\n')
    script.chmod(0o755)
    assert nvcc.find_nvcc() == str(script)
    with pytest.raises(BackendError, match="failed with exit code 3: no such architecture"):
        nvcc.build_fatbin(generate(graph_of("gcn-4")).source)
    script.write_text("#!/is/not/here\n")
    with pytest.raises(BackendError, match="could not be run"):
        nvcc.build_fatbin("")


# ---------------------------------------------------------------- tensors on the GPU


@pytest.fixture
def everything_is_there(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Every torch tensor passes for one on the GPU, this processor; the last of these is its stream."""
    streams = [7]
    monkeypatch.setattr(inputs, "_from_torch", lambda _, value, *__: DeviceArray.of(value))
    monkeypatch.setattr(cuda, "empty", lambda shape, _: DeviceArray(torch.full(shape, torch.nan)))
    monkeypatch.setattr(cuda, "current_stream", lambda _: streams[-1])
    return streams


def test_tensors_on_the_gpu(emulated: Path, everything_is_there: list[int]) -> None:
    """Read and written where they lie, with edges that were seen before, prepared, or new."""
    graph = graph_of("gcn-4")
    model = model_from_payload(emulation.payload(graph))
    first, second = (graphs.values(graph, nodes, 40) for nodes in (13, 20))
    for call in (first, second, first):
        there = {name: torch.from_numpy(value) for name, value in call.items()}
        wanted = model(**call)
        for edges in (there["edge_index"], there["edge_index"].clone()):
            scores = model(**{**there, "edge_index": edges})
            np.testing.assert_array_equal(scores.numpy(), wanted, strict=True)
        everything_is_there.append(everything_is_there[-1] + 1)
        handle = model.prepare(there["edge_index"], len(call["x"]))
        np.testing.assert_array_equal(model(there["x"], handle).numpy(), wanted)
        wide = torch.cat([there["x"]] * 2, dim=1)[:, there["x"].size(1) :]
        np.testing.assert_array_equal(model(wide, call["edge_index"]).numpy(), wanted)


def test_what_is_no_number_on_the_gpu(emulated: Path, everything_is_there: list[int]) -> None:
    """Kernels see it; the model works again afterwards."""
    graph = graph_of("gcn-4")
    model = model_from_payload(emulation.payload(graph))
    there = {name: torch.from_numpy(value) for name, value in graphs.values(graph, 13, 40).items()}
    wanted = model(**there)
    for bad in (torch.nan, torch.inf, -torch.inf):
        broken = there["x"].clone()
        broken[7, 2] = bad
        for given in (broken, broken.numpy()):
            with pytest.raises(InputError, match=r"x\[7, 2\] is .*NaN and infinity cannot be quantized"):
                model(given, there["edge_index"])
    assert torch.equal(model(**there), wanted)


def test_the_other_gpu_is_named(emulated: Path) -> None:
    model = model_from_payload(emulation.payload(graph_of("gcn-4")))
    x = torch.empty(13, 7, device="meta")
    with pytest.raises(
        InputError, match=r"x is on meta, but this model runs on cuda:0: pass x\.to\('cuda:0'\)"
    ):
        model(x, torch.zeros(2, 4, dtype=torch.int64))
