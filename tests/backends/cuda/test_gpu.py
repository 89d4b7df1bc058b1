"""On a real GPU: every graph of integer operations, and torch tensors that stay there."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import gnnquant
from gnnquant.backends.cuda import build, nvcc
from gnnquant.errors import InputError
from gnnquant.runtime import CompiledModel, host
from gnnquant.runtime.artifact import model_from_payload
from tests import zoo
from tests.backends.cuda import emulation
from tests.backends.cuda.test_compile import GRAPHS, LACKING
from tests.backends.cuda.test_kernels import CROWDED, compare_on, crowded_call
from tests.backends.tvm import graphs
from tests.backends.tvm.models import MODELS, graph_of
from tests.parity import converted, reference

pytestmark = [
    pytest.mark.skipif(bool(LACKING), reason=f"needs {LACKING}"),
]
with_torch = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs torch with CUDA")


def built(name: str) -> CompiledModel:
    program, fatbin = build(graph_of(name))
    metadata = {"target": host.gpu_requirements(nvcc.ARCHITECTURES), "bits": 0, "sites": {}}
    return model_from_payload(emulation.ArtifactPayload(program.plan, program.constants, fatbin, metadata))


@pytest.mark.parametrize("name", MODELS)
def test_a_gpu_equals_the_reference(name: str) -> None:
    graph = graph_of(name)
    # of many rows, gatv2-8 has edge weights so small that 127 / m is infinite: the reference then has NaN
    sizes = GRAPHS if name == "gatv2-8" else [*GRAPHS, (1500, 20_000)]
    calls = [graphs.values(graph, *size) for size in sizes]
    if name in CROWDED:
        calls.append(crowded_call(graph))
    if name.startswith("floats"):  # the order of sums in float products is free
        calls = calls[: len(GRAPHS)]
    compare_on(built(name), graph, calls)


@with_torch
@pytest.mark.parametrize(
    ("name", "bits"),
    [("gcn", 8), ("gcn", 2), ("gat", 4), ("sage_max", 2), ("residual_gcn", 4), ("smp", 8), ("smp", 2)],
)
def test_tensors_stay_on_the_gpu(name: str, bits: int) -> None:
    """Prepared and not, on another stream, from views; the same bits as on the CPU."""
    model = gnnquant.compile(converted(name, bits), target="cuda")
    for nodes, edges in GRAPHS:
        graph = zoo.random_graph(nodes, edges, seed=nodes + edges)
        wanted = reference(name, bits)(graph.x, graph.edge_index)
        x, edge_index = graph.x.cuda(), graph.edge_index.cuda()
        handle = model.prepare(edge_index, nodes)
        for given in (edge_index, handle, edge_index.clone()):
            scores = model(x, given)
            assert scores.device == x.device
            assert torch.equal(scores.cpu(), wanted)
        assert torch.equal(model(graph.x, handle), wanted)
        assert torch.equal(model(graph.x, edge_index).cpu(), wanted)
        wide = torch.cat([x, x], dim=1)[:, x.size(1) :]
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            first = model(wide, handle)
        torch.cuda.current_stream().wait_stream(side)
        assert torch.equal(first.cpu(), wanted)
        assert torch.equal(model(x, handle).cpu(), wanted)


@with_torch
def test_what_is_wrong_with_tensors_on_the_gpu() -> None:
    model = gnnquant.compile(converted("gcn", 4), target="cuda")
    graph = zoo.random_graph(30, 120, seed=0)
    x, edge_index = graph.x.cuda(), graph.edge_index.cuda()
    wanted = model(x, edge_index).cpu()
    for bad in (float("nan"), float("inf"), -float("inf")):
        broken = x.clone()
        broken[7, 2] = bad
        with pytest.raises(InputError, match=r"x\[7, 2\] is .*NaN and infinity cannot be quantized"):
            model(broken, edge_index)
    with pytest.raises(InputError, match="x is float16, but float32 is needed"):
        model(x.half(), edge_index)
    with pytest.raises(InputError, match="edge_index is int32, but int64 is needed"):
        model(x, edge_index.int())
    with pytest.raises(InputError, match="30"):
        model(x, edge_index + 30)
    assert torch.equal(model(x, edge_index).cpu(), wanted)
    cpu_only = gnnquant.compile(converted("gcn", 4), target="reference")
    with pytest.raises(InputError, match="x is on cuda:0, but this model was compiled for the CPU"):
        cpu_only(x, graph.edge_index)


@with_torch
def test_calls_on_several_streams_do_not_mix() -> None:
    model = gnnquant.compile(converted("gcn", 8), target="cuda")
    graph = zoo.random_graph(2000, 30_000, seed=0)
    handle = model.prepare(graph.edge_index, 2000)
    inputs = [torch.roll(graph.x, shift, dims=0).cuda() for shift in range(6)]
    wanted = [model(x.cpu(), handle) for x in inputs]
    streams = [torch.cuda.Stream() for _ in range(3)]
    torch.cuda.synchronize()
    found = []
    for step in range(30):
        with torch.cuda.stream(streams[step % 3]):
            found.append(model(inputs[step % 6], handle))
    torch.cuda.synchronize()
    for step, scores in enumerate(found):
        np.testing.assert_array_equal(scores.cpu(), wanted[step % 6])
