"""``python -m benchmarks.speed``: rivals that compute the same, graphs of the size they claim, the table."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import gnnquant
from benchmarks.speed import elsewhere, gpu, gpu_table, overhead
from benchmarks.speed.floor import products
from benchmarks.speed.graphs import PowerLaw
from benchmarks.speed.guard import compare
from benchmarks.speed.memory import peak_bytes, read_bandwidth
from benchmarks.speed.models import MODELS
from benchmarks.speed.peak import products_per_second
from benchmarks.speed.rivals import SortedModel
from benchmarks.speed.roofline import kernel_costs
from benchmarks.speed.runs import (
    CONTESTANTS,
    EAGER,
    OWN,
    SORTED,
    Run,
    _exported,
    _widest,
    quantized_model,
)
from benchmarks.speed.table import document, missed_targets, plot, strongest
from gnnquant.backends.tvm import targets
from gnnquant.passes.lowering import lower
from tests import zoo


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("edges", [0, 300])
def test_the_sorted_rival_computes_what_the_model_does(name: str, edges: int) -> None:
    data = zoo.random_graph(60, edges, seed=1)
    model = MODELS[name].build(zoo.FEATURES, 5)
    with torch.no_grad():
        wanted = model(data.x, data.edge_index)
    rival = SortedModel(model, data.edge_index, 60)
    torch.testing.assert_close(rival(data.x), wanted, rtol=1e-4, atol=1e-5)
    halved = SortedModel(model, data.edge_index, 60, torch.bfloat16)(data.x)
    assert 0 < float((halved - wanted).abs().max()) < 0.05 * float(wanted.abs().max())


def test_the_exported_rival_computes_what_the_model_does() -> None:
    data = zoo.random_graph(60, 300, seed=1)
    q = quantized_model(MODELS["gcn64"].build(zoo.FEATURES, 5), (data.x, data.edge_index), 32)
    facts: dict[str, Any] = {}
    call = _exported(q, 1, data.x, data.edge_index, facts)
    assert call is not None
    assert facts["compile_s"] >= 0
    wanted = gnnquant.compile(q, target="reference")(data.x, data.edge_index)
    torch.testing.assert_close(call(), wanted, rtol=1e-4, atol=1e-5)


def test_a_random_graph_has_the_size_it_claims_and_hubs() -> None:
    law = PowerLaw(nodes=2000, edges=20_000, features=3, classes=4)
    x, edges = law.draw()
    assert x.shape == (2000, 3)
    assert edges.shape == (2, 20_000)
    assert torch.equal(edges[:, :10_000], edges.flip(0)[:, 10_000:])
    degree = torch.bincount(edges[1], minlength=2000)
    assert degree.max() > 10 * degree.float().mean()
    assert torch.equal(law.draw()[1], edges)


def test_the_widest_message_is_that_of_the_layer_that_sends_most() -> None:
    x = torch.rand(5, 300)
    assert _widest(MODELS["gcn64"].build(300, 5), x) == 64
    assert _widest(MODELS["sage64"].build(300, 5), x) == 300
    assert _widest(MODELS["gat"].build(300, 5), x) == 64


def test_the_peak_of_a_call_is_what_it_allocates() -> None:
    peak = peak_bytes(lambda: torch.ones(32, 2**20).sum())
    if peak is None:
        pytest.skip("this kernel does not tell the peak of memory")
    assert 0.9 * 2**27 < peak < 1.3 * 2**27  # the kernel counts by threads, and late


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("bits", [4, 32])
def test_kernels_are_timed_and_their_bytes_counted(name: str, bits: int) -> None:
    data = zoo.random_graph(60, 300, seed=1)
    q = gnnquant.convert(MODELS[name].build(zoo.FEATURES, 5), bits=bits)
    if bits != 32:
        gnnquant.calibrate(q, [(data.x, data.edge_index)])
    compiled = gnnquant.compile(q, threads=1)
    graph = compiled.prepare(data.edge_index, 60)
    costs = kernel_costs(compiled, lower(q), lambda: compiled(data.x, graph), threads=1, repeats=1)
    read = 4 * data.x.numel()
    assert max(cost.streamed for cost in costs) >= read
    assert all(cost.ms > 0 and cost.best_ms > 0 for cost in costs)
    # two layers or ten steps, each with edges, loops included where the model adds them
    steps = 10 if name in ("appnp", "smp") else 2
    summing = [cost for cost in costs if cost.gathered]
    assert len(summing) >= steps
    assert min(cost.gathered for cost in summing) >= 300 * 4  # a float, or a word of codes
    # of 64 numbers; GCN sums before it widens, and its scores are narrow
    widest = zoo.FEATURES if name in ("gcn64", "gcn256") else 64
    assert max(cost.gathered for cost in summing) >= 300 * widest * bits // 8


def test_kernels_alone_compute_what_a_call_does() -> None:
    data = zoo.random_graph(60, 300, seed=1)
    q = gnnquant.convert(MODELS["gcn64"].build(zoo.FEATURES, 5), bits=4)
    gnnquant.calibrate(q, [(data.x, data.edge_index)])
    compiled = gnnquant.compile(q, threads=1)
    scores = compiled(data.x, data.edge_index)
    wanted = scores.clone()
    scores.zero_()
    overhead._kernels(compiled)()
    assert torch.equal(scores, wanted)


def test_the_guard_tells_what_has_become_worse() -> None:
    def kept(own: float, streamed: int) -> dict[str, Any]:
        found = result("gcn64", "Cora", 1, sorted=10.0, own=5.0, int8=own, int4=2.0, int2=2.0)
        for name in OWN.values():
            kernels = [{"streamed": streamed, "gathered": 2**20}]
            found["result"]["rows"][name]["kernels"] = kernels
        return found

    table, worse = compare([kept(3.0, 0)], [kept(3.0, 0)])
    assert "GCN, 64, Cora, INT8 | 0.300 | 1.00 | 0.300 | 1.00 |" in table
    assert worse == []
    assert compare([kept(3.3, 0)], [kept(3.0, 0)])[1] == []
    assert compare([kept(3.0, 0)], [])[1] == []
    (slower,) = compare([kept(4.0, 0)], [kept(3.0, 0)])[1]
    assert slower == "GCN, 64, Cora, INT8: takes 1.33 of the time it took"
    moved = compare([kept(3.0, 2**20)], [kept(3.0, 0)])[1]
    assert moved[0] == "GCN, 64, Cora, own FP32: moves 2.00 of the bytes it moved"
    assert len(moved) == 4


def test_bandwidth_is_positive() -> None:
    assert read_bandwidth(2**16, seconds=0.01) > 0


@pytest.mark.parametrize("bits", [32, 8, 4, 2])
def test_the_peak_of_products_is_positive(bits: int) -> None:
    peak = products_per_second(bits)
    machine, _ = targets.describe(targets.resolve_target("native"))
    assert (
        peak is None if bits < 32 and not (machine.quads or machine.words) else peak is not None and peak > 0
    )


@pytest.mark.parametrize("bits", [32, 8])
def test_products_of_a_model_are_counted(bits: int) -> None:
    x, edges = torch.rand(7, 30), torch.tensor([[0, 1, 2], [1, 2, 0]])
    model = quantized_model(MODELS["gcn64"].build(30, 5), (x, edges), bits)
    assert products(lower(model), 7) == 7 * (30 * 64 + 64 * 5)


def row(median: float, **more: Any) -> dict[str, Any]:
    return {"median": median, "times": [median * f for f in (0.9, 1, 1, 1.1)], "peak": 2**20, **more}


def result(model: str, graph: str, threads: int, **times: float) -> dict[str, Any]:
    names = {"eager": EAGER, "sorted": SORTED, "own": OWN[32], "int8": OWN[8], "int4": OWN[4], "int2": OWN[2]}
    rows = {name: {"skipped": "too large"} for name in CONTESTANTS}
    rows |= {names[short]: row(median) for short, median in times.items()}
    return {
        "job": {"model": model, "graph": graph, "threads": threads, "granularity": "tensor"},
        "result": {"rows": rows, "nodes": 10, "edges": 20, "features": 3, "code": "c"},
        "machine": "M x2",
        "versions": {"torch": "2"},
    }


def test_speed_ups_refer_to_the_strongest_float(tmp_path: Path) -> None:
    results = [
        result("gcn256", "PubMed", 1, eager=300, sorted=100, own=120, int8=20, int4=18, int2=19),
        result("gcn64", "arxiv-size", 1, eager=300, sorted=100, own=90, int8=20, int4=20, int2=20),
        result("gcn64", "arxiv-size", 2, sorted=100, own=90, int8=10, int4=16, int2=11),
    ]
    assert strongest(results[0]["result"]["rows"]) == (SORTED, 100)
    text = document(results)
    assert "100.00 (torch CSR)" in text
    assert "20.00 (5.00x)" in text
    missed = "\n".join(missed_targets(results))
    assert "INT8 5.00x" not in missed
    assert "PubMed, 1 thread(s): INT4 5.56x of torch CSR, wanted 6.5x" in missed
    assert "INT4 takes 1.60 of INT8" in missed
    assert "INT4 1.25x with 2 threads, wanted 1.6x" in missed
    assert "INT8 2.00x with 2 threads" not in missed
    assert [path.name for path in plot(results, tmp_path)] == ["speed-PubMed.svg", "speed-arxiv-size.svg"]


@pytest.mark.parametrize(("peak", "milliseconds"), [(4, 10.0), (5, 20.0)])
def test_the_dense_graph_has_targets_of_memory(peak: int, milliseconds: float) -> None:
    found = result("sage64", "dense", 1, own=90, int8=30, int4=30, int2=30)
    rows = found["result"]["rows"]
    rows[OWN[32]]["peak"], rows[OWN[4]]["peak"] = 16, peak
    kernel = {"name": "k", "streamed": 8, "gathered": 8, "ms": milliseconds, "best_ms": 8.0}
    rows[OWN[2]]["kernels"] = [kernel, kernel | {"gathered": 0, "ms": 100.0}]
    missed = missed_targets([found])
    assert any("INT4 needs 0.312 of the memory" in line for line in missed) == (peak == 5)
    assert any("sums of INT2 at 40% of the memory's speed" in line for line in missed) == (milliseconds == 20)


def test_rows_of_another_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Models are compiled, saved, loaded and compared with what was noted of them."""
    data = zoo.random_graph(60, 300, seed=1)
    monkeypatch.setattr(elsewhere, "load", lambda name: (data.x, data.edge_index, 5))
    run = elsewhere.ShippedRun("gcn64", "Cora", 1, seconds=0.01, messages=False, folder=str(tmp_path))
    elsewhere.build(tmp_path, [run], {"kind": "llvm", "mcpu": "x86-64-v3"})
    rows = elsewhere.perform(run)["rows"]
    assert all(rows[name]["median"] > 0 for name in (SORTED, *OWN.values()))
    notes = json.loads((tmp_path / elsewhere.MANIFEST).read_text())
    notes["rows"][run.key]["INT4"] = "0"
    (tmp_path / elsewhere.MANIFEST).write_text(json.dumps(notes))
    with pytest.raises(AssertionError, match="INT4 computes something else here"):
        elsewhere.perform(run)


def test_runs_of_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[elsewhere.ShippedRun] = []
    monkeypatch.setattr(elsewhere, "build", lambda folder, runs, target: built.extend(runs))
    monkeypatch.setattr(
        "sys.argv", ["elsewhere", "build", str(tmp_path), "--models", "gat", "--graphs", "Cora"]
    )
    assert elsewhere.main() == 0
    (run,) = built
    assert (run.model, run.graph, run.granularity, run.folder) == ("gat", "Cora", "tensor", str(tmp_path))


def test_levels_stand_beside_each_other() -> None:
    found = {
        "x86-64-v3": [result("gat", "PubMed", 1, own=30, int8=20, int4=20, int2=20)],
        "znver4": [result("gat", "PubMed", 1, own=15, int8=10, int4=16, int2=25)],
    }
    table = elsewhere.by_level(found).splitlines()
    assert table[2] == "| GAT, 8 x 8, PubMed | AVX2 (x86-64-v3) | 30.00 | 20.00 | 20.00 | 20.00 |"
    assert table[3].endswith("| 15.00 (2.00x) | 10.00 (2.00x) | 16.00 (1.25x) | 25.00 (0.80x) |")


def test_runs_have_files_of_their_own() -> None:
    keys = {Run(model, "Cora", threads).key for model in MODELS for threads in (1, 2)}
    assert len(keys) == 2 * len(MODELS)


def test_document_of_a_gpu() -> None:
    """Speed-ups refer to the strongest float32; what was not measured is a dash."""
    rows: dict[str, dict[str, Any]] = {name: {} for name in gpu.CONTESTANTS}
    for name, value in ((EAGER, 4.0), (SORTED, 2.0), (OWN[32], 3.0), (OWN[8], 1.0), (OWN[4], 0.5)):
        rows[name] = {"times": [value] * 3, "median": value, "kernels": [["gemm_0", 0.25], ["spmm_1", 0.5]]}
    facts = {
        "nodes": 5,
        "edges": 7,
        "features": 3,
        "checked": True,
        "gpu": "a card",
        "cuda": "13",
        "code": "x",
    }
    result = {
        "job": {"model": "gcn64", "graph": "Cora"},
        "result": {"rows": rows, **facts},
        "machine": "here",
        "versions": {"torch": "2"},
    }
    text = gpu_table.document([result], ["Cora, GCN, 64, INT8: every bit"])
    assert (
        "| 2.000 (torch CSR) | 1.000 (2.00x) | 0.500 (4.00x) | – | 2.0x / 4.0x / – | 4.0x / 8.0x / – |"
        in text
    )
    assert "| GCN, 64 | 2, 750 | 2, 750 | 0, 0 |" in text
    assert "every bit" in text
