"""``benchmarks.accuracy`` and the runner of jobs: a run from end to end, resuming, and the table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
import torch

from benchmarks.accuracy import runs, table
from benchmarks.accuracy.models import MODELS, Training
from benchmarks.accuracy.runs import Run, float_model, perform
from benchmarks.jobs import load_once, result_of, run_jobs

if TYPE_CHECKING:
    from pathlib import Path

QUICK = Training(epochs=3)


@dataclass(frozen=True)
class Square:
    """A job."""

    number: int
    label: str = "a"

    @property
    def key(self) -> str:
        return f"square-{self.number}"


def square(job: Square) -> dict[str, Any]:
    if job.number < 0:
        raise ValueError("negative")
    return {"square": job.number**2, "threads": torch.get_num_threads()}


def test_jobs_are_done_once_and_failures_are_named(tmp_path: Path) -> None:
    jobs = [Square(2), Square(-1), Square(3)]
    failures = run_jobs(square, jobs, tmp_path, workers=2)
    assert len(failures) == 1
    assert failures[0].startswith("square--1: ")
    assert "ValueError: negative" in failures[0]
    found = result_of(Square(3), tmp_path)
    assert found is not None
    assert found["result"] == {"square": 9, "threads": 1}
    before = (tmp_path / "square-3.json").read_bytes()
    assert run_jobs(square, jobs, tmp_path, workers=1) == failures  # the others are not done again
    assert (tmp_path / "square-3.json").read_bytes() == before
    assert result_of(Square(3, "b"), tmp_path) is None  # another job of the same name
    assert not [path for path in tmp_path.iterdir() if path.suffix != ".json"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GNNQUANT_RESULTS", str(tmp_path))
    return tmp_path


def test_a_run_trains_quantizes_and_measures_machine_code(folder: Path) -> None:
    run = Run("digits", "gcn", "fine-tuned", 4, 0, epochs=2, training=QUICK)
    with pytest.raises(FileNotFoundError):
        perform(run)
    teacher = perform(run.teacher)
    assert not teacher["compiled"]
    data = load_once("digits")
    model = float_model(run, data)
    right = (model(data.x, data.edge_index).argmax(dim=1) == data.y)[data.test_mask]
    assert teacher["test"] == pytest.approx(float(right.float().mean()))
    tuned = perform(run)
    assert tuned["compiled"]
    assert tuned["test"] > 0.3  # ten classes
    other = Run("digits", "gcn", "fine-tuned", 4, 0, training=Training(epochs=4))
    with pytest.raises(FileNotFoundError, match="other settings"):
        float_model(other, data)
    assert [path.name for path in folder.rglob("*") if path.is_file()] == [f"{run.teacher.key}.pt"]


def test_code_that_differs_from_the_reference_is_no_result(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run("digits", "gcn", "calibrated", 8, 0, training=QUICK)
    perform(run.teacher)
    real = runs.gnnquant.compile

    def wrong(q: Any, **options: Any) -> Any:
        compiled = real(q, target="reference")
        return compiled if "target" in options else lambda *inputs: compiled(*inputs) + 1

    monkeypatch.setattr(runs.gnnquant, "compile", wrong)
    with pytest.raises(ArithmeticError, match="differ"):
        perform(run)


def _result(method: str, bits: int, seed: int, test: float, model: str = "gcn") -> dict[str, Any]:
    job = {"dataset": "Cora", "model": model, "method": method, "bits": bits, "seed": seed}
    return {
        "job": job,
        "result": {"test": test, "code": "0"},
        "versions": {"torch": "2"},
        "machine": "m",
    }


def test_table_has_means_targets_and_rivals(tmp_path: Path) -> None:
    results = [
        *[_result("fp32", 32, seed, 0.82 + seed / 100) for seed in range(2)],
        *[_result("fine-tuned", 2, seed, 0.80 + seed / 100) for seed in range(2)],
        _result("fine-tuned", 8, 0, 0.83),
        _result("lsq", 2, 0, 0.75),
    ]
    text = table.document(results)
    assert "| GCN | 1 | 82.50 ± 0.71 | 83.00 ± 0.00 | 80.50 ± 0.71 |" in text
    assert "| GCN | **ours** | 1 | 83.00 ± 0.00 | 80.50 ± 0.71 |" in text
    assert "| GCN | lsq | 1 | – | 75.00 ± 0.00 |" in text
    assert table.missed_targets(results) == []
    worse = [*results, _result("fine-tuned", 2, 2, 0.79)]
    assert table.missed_targets(worse) == ["Cora GCN: INT2 80.00, wanted 80.50"]
    assert table.missed_targets([*results, _result("calibrated", 4, 0, 0.79)]) == [
        "Cora GCN calibrated: INT4 79.00, wanted 80.00"
    ]
    written = table.plot(results, tmp_path)
    assert [path.name for path in written] == ["accuracy-Cora.svg"]
    assert written[0].read_text(encoding="utf-8").startswith("<?xml")


def test_rivals_that_are_ahead_are_named() -> None:
    """By more than a standard error of the difference by seed; within it they are matched."""
    ours = [_result("fine-tuned", 4, seed, 0.80 + seed / 100) for seed in range(3)]
    behind = [_result("lsq", 4, seed, value) for seed, value in enumerate([0.79, 0.83, 0.81])]
    ahead = [_result("paper", 4, seed, value) for seed, value in enumerate([0.81, 0.82, 0.84])]
    alone = [_result("minmax", 4, 0, 0.9)]
    assert table.better_rivals([*ours, *behind, *ahead, *alone]) == [
        "Cora GCN, INT4: paper by 1.33 ± 0.33 points (3 seeds)"
    ]
    assert "## Rivals that are ahead" in table.document([*ours, *ahead])


def test_every_row_can_be_built() -> None:
    for model in MODELS.values():
        scores = model.build(7, 3).eval()(torch.randn(9, 7), torch.randint(9, (2, 20)))
        assert scores.shape == (9, 3)
