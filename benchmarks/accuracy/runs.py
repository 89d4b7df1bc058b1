"""One run: a model at one width, by one method, with one seed."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

import gnnquant
from benchmarks.accuracy.models import MODELS, Training
from benchmarks.jobs import load_once
from benchmarks.report import code_state
from gnnquant import QuantConfig, QuantSpec
from gnnquant.config import FLOAT_BITS

if TYPE_CHECKING:
    from torch import Tensor
    from torch_geometric.data import Data

SOURCES = (
    *(f"gnnquant/{name}.py" for name in ("finetuning", "objective", "config")),
    *(f"gnnquant/{room}/*.py" for room in ("quantizers", "smoothness")),
    "benchmarks/accuracy/r*.py",
)
"""What decides about accuracy."""
SCORES, TENSORS = "quantized scores", "tensor scales"
OWN_METHODS = ("fine-tuned", "calibrated", SCORES, TENSORS)
"""Ours: fine-tuned with a teacher; ranges from data only; fine-tuned with the class scores quantized too, or
with one scale for each activation instead of one for each of its rows."""


@dataclass(frozen=True)
class Run:
    """What one run is.

    Attributes:
        dataset: A name for ``load_dataset``.
        model: A name from ``MODELS``.
        method: ``"fp32"``, one of ``OWN_METHODS`` or one of ``RIVALS``.
        bits: Width; 32 for ``"fp32"``.
        seed: Of the initial weights, dropout and fine-tuning.
        epochs: Of fine-tuning.
        training: How the FP32 model is trained.
    """

    dataset: str
    model: str
    method: str
    bits: int
    seed: int
    epochs: int = 100
    training: Training = field(default_factory=Training)

    @property
    def key(self) -> str:
        """Name of the result's file."""
        method = self.method.replace(" ", "-")
        return f"{self.dataset}-{self.model}-{method}-int{self.bits}-seed{self.seed}"

    @property
    def teacher(self) -> Run:
        """The FP32 run that this one starts from."""
        return Run(self.dataset, self.model, "fp32", FLOAT_BITS, self.seed, 0, self.training)


def states_folder() -> Path:
    """Where FP32 models are kept between runs."""
    return Path(os.environ.get("GNNQUANT_RESULTS", "results")) / "accuracy" / "states"


def perform(run: Run) -> dict[str, Any]:
    """Do one run.

    Returns:
        ``test`` and ``val``: accuracies 0 to 1, of the state with the best validation accuracy;
        ``compiled``: whether ``test`` is that of machine code, which then equals the integer reference in
        every bit on the whole graph; ``best_epoch``; ``seconds`` of training; ``code``: state of the code.
    """
    data = load_once(run.dataset)
    result = _float_run(run, data) if run.method == "fp32" else _quantized_run(run, data)
    return {**result, "code": code_state(*SOURCES)}


def _float_run(run: Run, data: Data) -> dict[str, Any]:
    start = time.perf_counter()
    torch.manual_seed(run.seed)
    model = MODELS[run.model].build(data.num_features, int(data.y.max()) + 1)
    settings = run.training
    tuned = gnnquant.finetune(
        model,
        data,
        epochs=settings.epochs,
        lr=settings.lr,
        weight_decay=settings.weight_decay,
        seed=run.seed,
        progress=False,
    )
    seconds = time.perf_counter() - start
    states_folder().mkdir(parents=True, exist_ok=True)
    path = states_folder() / f"{run.key}.pt"
    temporary = path.with_suffix(f".{os.getpid()}")
    torch.save({"training": str(run), "state": model.state_dict()}, temporary)
    temporary.replace(path)
    with torch.no_grad():
        scores = model(data.x, data.edge_index)
    return {
        "test": _accuracy(scores, data, "test_mask"),
        "val": tuned.best_metric,
        "best_epoch": tuned.best_epoch,
        "train_seconds": round(seconds, 2),
        "compiled": False,
    }


def float_model(run: Run, data: Data) -> nn.Module:
    """The FP32 model that ``run`` starts from, in eval mode.

    Raises:
        FileNotFoundError: If its run has not been done.
    """
    teacher = run.teacher
    stored = torch.load(states_folder() / f"{teacher.key}.pt", weights_only=True)
    if stored["training"] != str(teacher):
        raise FileNotFoundError(f"the FP32 model {teacher.key} was trained with other settings")
    model = MODELS[run.model].build(data.num_features, int(data.y.max()) + 1)
    model.load_state_dict(stored["state"])
    return model.eval()


def _quantized_run(run: Run, data: Data) -> dict[str, Any]:
    model = float_model(run, data)
    config = QuantConfig(
        activations=QuantSpec(granularity="tensor" if run.method == TENSORS else None),
        output=QuantSpec(enabled=run.method == SCORES),
    )
    q = gnnquant.convert(model, bits=run.bits, config=config)
    start = time.perf_counter()
    if run.method not in OWN_METHODS:
        from benchmarks.accuracy.rivals import install

        install(q, run.method)
    tuned = None
    if run.method == "calibrated":
        gnnquant.calibrate(q, data)
    else:
        tuned = gnnquant.finetune(
            q,
            data,
            epochs=run.epochs,
            teacher=model,
            seed=run.seed,
            progress=False,
        )
    seconds = time.perf_counter() - start
    q.eval()
    own = run.method in OWN_METHODS
    with torch.no_grad():
        scores = _compiled_scores(q, data) if own else q(data.x, data.edge_index)
    return {
        "test": _accuracy(scores, data, "test_mask"),
        "val": _accuracy(scores, data, "val_mask"),
        "best_epoch": tuned.best_epoch if tuned else 0,
        "train_seconds": round(seconds, 2),
        "compiled": own,
    }


def _compiled_scores(q: nn.Module, data: Data) -> Tensor:
    """Class scores of machine code, which must be those of the integer reference."""
    compiled = gnnquant.compile(q, threads=1)
    scores: Tensor = compiled(data.x, data.edge_index)
    expected = gnnquant.compile(q, target="reference")(data.x, data.edge_index)
    if not torch.equal(scores, expected):
        raise ArithmeticError("machine code and integer reference differ")
    return scores


def _accuracy(scores: Tensor, data: Data, mask: str) -> float:
    chosen = data[mask]
    return float((scores[chosen].argmax(dim=1) == data.y[chosen]).float().mean())
