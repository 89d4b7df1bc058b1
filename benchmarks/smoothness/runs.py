"""One run: a deep model in FP32 and at every width, with one seed."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

import gnnquant
from benchmarks.jobs import load_once
from benchmarks.report import code_state
from benchmarks.smoothness.errors import relative_errors
from benchmarks.smoothness.models import MODELS, PROPAGATIONS, Schedule
from gnnquant.config import FLOAT_BITS
from gnnquant.smoothness import SmoothPropagation, dirichlet_energy, mean_neighbour_distance, measure

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch_geometric.data import Data

WIDTHS = (8, 4, 2)
SOURCES = (
    "gnnquant/finetuning.py",
    "gnnquant/objective.py",
    *(f"gnnquant/{room}/*.py" for room in ("quantizers", "smoothness")),
    *(f"benchmarks/smoothness/{name}.py" for name in ("models", "errors", "runs")),
)
"""What decides about these figures."""


@dataclass(frozen=True)
class Run:
    """What one run is.

    Attributes:
        dataset: A name for ``load_dataset``.
        model: A name from ``MODELS``.
        depth: Layers or steps.
        seed: Of the initial weights, dropout and fine-tuning.
        schedule: Of the FP32 training, which knows no constraint, and of fine-tuning.
    """

    dataset: str
    model: str
    depth: int
    seed: int
    schedule: Schedule = field(default_factory=Schedule)

    @property
    def key(self) -> str:
        """Name of the result's file."""
        return f"{self.dataset}-{self.model}-depth{self.depth}-seed{self.seed}"


def perform(run: Run) -> dict[str, Any]:
    """Do one run.

    Returns:
        ``rows``: for FP32 and each width, of ``"gcn"`` without and with the constraint (the layers of SMP
        always have theirs), ``bits``, ``constrained``, accuracies ``test`` and ``val`` (0 to 1, of the state
        with the best validation accuracy), ``best_epoch``, ``energy`` and ``distance`` of the scores,
        ``layers`` (the reports of ``gnnquant.smoothness.measure``), and for propagations ``errors``:
        ``{"calibrated": ..., "fine-tuned": ...}`` of ``relative_errors``. ``code``: state of the code.
        ``stopped``: why there are fewer rows, where training diverged.
    """
    rows: list[dict[str, Any]] = []
    try:
        _perform(run, load_once(run.dataset), rows)
    except gnnquant.FineTuneError as error:
        return {"rows": rows, "code": code_state(*SOURCES), "stopped": str(error)}
    return {"rows": rows, "code": code_state(*SOURCES)}


def _perform(run: Run, data: Data, rows: list[dict[str, Any]]) -> None:
    """Add to ``rows`` as they are known: a training that diverges ends the run."""
    torch.manual_seed(run.seed)
    model = MODELS[run.model](data.num_features, int(data.y.max()) + 1, run.depth)
    schedule = run.schedule
    tuned = gnnquant.finetune(
        model, data, epochs=schedule.epochs, lr=schedule.lr, seed=run.seed, progress=False
    )
    propagates = run.model in PROPAGATIONS
    if propagates:
        rows.append({**_row(FLOAT_BITS, model, data, tuned), "constrained": False})
    for constrained in (False,) if propagates else (False, True):
        # The constraint comes with further training: what it does shows beside the same training without.
        for bits in WIDTHS if propagates else (FLOAT_BITS, *WIDTHS):
            q = gnnquant.convert(model, bits=bits)
            errors = {}
            if propagates:
                gnnquant.calibrate(q, data)
                errors["calibrated"] = relative_errors(q, _propagation(model, q), data)
            tuned = gnnquant.finetune(
                q,
                data,
                epochs=schedule.tuning_epochs,
                lr=schedule.tuning_lr,
                teacher=model,
                smoothness=gnnquant.Smoothness() if constrained else None,
                seed=run.seed,
                progress=False,
            )
            if propagates:
                errors["fine-tuned"] = relative_errors(q, _propagation(model, q), data)
            rows.append({**_row(bits, q, data, tuned), "constrained": constrained, "errors": errors})


def _row(bits: int, model: nn.Module, data: Data, tuned: gnnquant.FineTuneResult) -> dict[str, Any]:
    """What is known of a trained model; its test labels are read here and nowhere else."""
    with torch.no_grad():
        scores: Tensor = model.eval()(data.x, data.edge_index)
    right = scores.argmax(dim=1) == data.y
    traced = isinstance(model, torch.fx.GraphModule)
    measurable = traced or any(isinstance(module, SmoothPropagation) for module in model.modules())
    reports = measure(model if measurable else gnnquant.convert(model, bits=FLOAT_BITS), data)
    return {
        "bits": bits,
        "test": float(right[data.test_mask].float().mean()),
        "val": tuned.best_metric,
        "best_epoch": tuned.best_epoch,
        "energy": float(dirichlet_energy(scores, data.edge_index)),
        "distance": float(mean_neighbour_distance(scores, data.edge_index)),
        "layers": [
            {
                "layer": report.layer,
                "value": None if report.value != report.value else report.value,
                "held": report.held,
                "multiplier": report.multiplier,
                "energy": report.energy,
                "distance": report.distance,
            }
            for report in reports
        ],
    }


def _propagation(model: nn.Module, q: nn.Module) -> nn.Module:
    """The propagation layer of ``model`` with the multipliers that ``q`` has."""
    layer = copy.deepcopy(model.get_submodule("propagation"))
    layer.load_state_dict(
        {name: value for name, value in _state(q).items() if name in layer.state_dict()}, strict=True
    )
    return layer


def _state(q: nn.Module) -> dict[str, Tensor]:
    prefix = "propagation."
    return {
        name.removeprefix(prefix): value for name, value in q.state_dict().items() if name.startswith(prefix)
    }
