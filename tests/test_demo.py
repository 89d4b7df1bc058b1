"""The main job on the embedded graph, with a few epochs; and its pieces."""

import json
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch_geometric.data import Data

import gnnquant
from gnnquant import ArtifactError, cli
from gnnquant.datasets import digits
from gnnquant.demo import MODEL_NAMES, DemoOptions, trained_model, write_json
from gnnquant.demo_models import MODELS
from gnnquant.timing import interleaved_medians, one_torch_thread

ROW_KEYS = {"bits", "accuracy", "size_bytes", "latency_ms", "speedup_vs_eager", "speedup_vs_fp32", "exact"}


@pytest.fixture(scope="module")
def data() -> Data:
    return digits()


def test_the_command_line_offers_every_model() -> None:
    assert tuple(MODELS) == MODEL_NAMES


@pytest.mark.parametrize("name", MODEL_NAMES)
def test_models_score_classes_and_train(name: str, data: Data) -> None:
    torch.manual_seed(0)
    model = MODELS[name](64, 10)
    scores = model(data.x, data.edge_index)
    assert scores.shape == (1797, 10)
    scores.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("name", MODEL_NAMES)
def test_models_convert(name: str, data: Data) -> None:
    torch.manual_seed(0)
    model = MODELS[name](64, 10).eval()
    traced = gnnquant.convert(model, bits=32).eval()
    with torch.no_grad():
        torch.testing.assert_close(
            traced(data.x, data.edge_index), model(data.x, data.edge_index), rtol=1e-4, atol=1e-5
        )


def test_the_checkpoint_of_an_equal_run_is_loaded(tmp_path: Path, data: Data) -> None:
    options = DemoOptions(epochs=2, out=tmp_path)
    console = Console(quiet=True)
    first = trained_model(options, data, console)
    checkpoint = tmp_path / "digits-gcn-fp32.pt"
    written = checkpoint.stat().st_mtime_ns
    second = trained_model(options, data, console)
    assert checkpoint.stat().st_mtime_ns == written
    torch.testing.assert_close(first.state_dict(), second.state_dict(), rtol=0, atol=0)
    trained_model(DemoOptions(epochs=2, out=tmp_path, seed=1), data, console)
    assert checkpoint.stat().st_mtime_ns != written


def test_a_damaged_checkpoint_is_named(tmp_path: Path, data: Data) -> None:
    (tmp_path / "digits-gcn-fp32.pt").write_bytes(b"damaged")
    with pytest.raises(ArtifactError, match=r"digits-gcn-fp32\.pt cannot be read.*delete it"):
        trained_model(DemoOptions(epochs=2, out=tmp_path), data, Console(quiet=True))


def test_json_is_replaced_in_one_step(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    write_json(path, {"rows": [1]})
    with pytest.raises(TypeError):
        write_json(path, {"rows": [object()]})
    assert json.loads(path.read_text(encoding="utf-8")) == {"rows": [1]}
    assert list(tmp_path.iterdir()) == [path]


def test_calls_are_measured_in_turns() -> None:
    order: list[str] = []
    calls = {name: lambda name=name: order.append(name) for name in ("a", "b")}
    medians = interleaved_medians(calls, rounds=4)
    assert order == ["a", "b"] * 7
    assert set(medians) == {"a", "b"}


def test_torch_gets_its_threads_back() -> None:
    before = torch.get_num_threads()
    with one_torch_thread():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("model", MODEL_NAMES)
def test_the_main_job(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    widths = [8, 2] if model == "gcn" else [2]
    command = ["demo", "--model", model, "--bits", *map(str, widths), "--epochs", "3", "--out", str(out)]
    assert cli.main(command) == 0
    results = json.loads((out / "results.json").read_text(encoding="utf-8"))
    assert (results["dataset"], results["model"]) == ("digits", model)
    assert [row["bits"] for row in results["rows"]] == [32, *widths]
    for row in results["rows"]:
        assert set(row) >= ROW_KEYS
        name = "fp32" if row["bits"] == 32 else f"int{row['bits']}"
        assert row["size_bytes"] == (out / f"{model}-{name}.gnnq").stat().st_size
        assert row["max_relative_difference"] <= 1e-5
    printed = capsys.readouterr().out
    assert max(len(line) for line in printed.splitlines() if str(out) not in line) <= 80
    assert cli.main(["info", str(out / f"{model}-int2.gnnq")]) == 0
    assert "bits: 2" in capsys.readouterr().out
    compiled = gnnquant.load(out / f"{model}-int2.gnnq")
    graph = digits()
    assert compiled(graph.x, graph.edge_index).shape == (1797, 10)


def test_ctrl_c_keeps_the_rows_so_far(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    finetune, calls = gnnquant.finetune, []

    def interrupted(*arguments: object, **options: object) -> object:
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return finetune(*arguments, **options)

    monkeypatch.setattr(gnnquant, "finetune", interrupted)
    command = ["demo", "--bits", "8", "4", "--epochs", "2", "--out", str(tmp_path)]
    assert cli.main(command) == 130
    results = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert [row["bits"] for row in results["rows"]] == [32, 8]
