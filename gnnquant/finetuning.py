"""Fine-tuning of a quantized model: weights and quantizer ranges together."""

from __future__ import annotations

import math
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from gnnquant.data import is_graph, iterate, labelled_part
from gnnquant.errors import FineTuneError
from gnnquant.objective import Objective, check_masks
from gnnquant.quantizers.calibration import calibrate, is_calibrated, quantizers_of
from gnnquant.quantizers.sparse import sparse_inputs
from gnnquant.smoothness import ConstraintReport, LagrangianDriver, Smoothness

if TYPE_CHECKING:
    from collections.abc import Iterable

    from gnnquant.data import Graph, Inputs
    from gnnquant.objective import Loss

WEIGHT_DECAY = 5e-4
WEIGHT_DECAY_WITH_TEACHER = 2e-4
"""Less: the teacher regularises too."""
LABEL_WEIGHT_WITH_TEACHER = 0.1
"""Weight of the labels' loss beside distillation: the teacher has already learned the labels."""


@dataclass(frozen=True)
class EpochRecord:
    """One epoch of fine-tuning.

    Attributes:
        epoch: 1, 2, ...
        loss: Mean training loss over the epoch's steps, distillation and penalty included.
        val_metric: Validation accuracy, or minus the validation loss where ``loss=`` was given;
            ``None`` without validation examples.
        lr: Learning rate of the weights in this epoch.
        range_lr: Learning rate of the quantizers' ranges in this epoch.
        smoothness: One report per layer, of the last training step; empty without ``smoothness=``.
    """

    epoch: int
    loss: float
    val_metric: float | None
    lr: float
    range_lr: float
    smoothness: tuple[ConstraintReport, ...] = ()


@dataclass(frozen=True)
class FineTuneResult:
    """What ``finetune`` did; the model itself was changed in place.

    Attributes:
        history: One record per finished epoch.
        best_epoch: The epoch whose state the model now has; 0: the state before training.
        best_metric: Its validation metric; ``None`` without validation examples.
        interrupted: Whether Ctrl-C ended the training early.
    """

    history: tuple[EpochRecord, ...]
    best_epoch: int
    best_metric: float | None
    interrupted: bool


def finetune(
    q: nn.Module,
    data: Graph | Iterable[Graph],
    *,
    epochs: int = 100,
    lr: float = 0.005,
    teacher: nn.Module | Tensor | None = None,
    smoothness: Smoothness | None = None,
    seed: int | None = None,
    progress: bool = True,
    loss: Loss | None = None,
    inputs: Inputs | None = None,
    val_data: Graph | Iterable[Graph] | None = None,
    weight_decay: float | None = None,
    range_lr: float = 0.01,
    distillation_weight: float = 1.0,
    label_weight: float | None = None,
) -> FineTuneResult:
    """Train the weights and the quantizers' ranges, and keep the best validation state.

    Adam in two groups (weights with weight decay, ranges without), learning rates falling by a
    cosine. A quantizer that has not seen data is calibrated first. The labels of ``test_mask``
    are never read.

    Trained on: of a single ``Data`` its ``train_mask``, which it must have; of the graphs of a
    loader their ``train_mask`` or, where there is none, every node (every graph, where the model
    scores graphs); of a ``NeighborLoader`` batch its seed nodes. Validated on: ``val_data``
    (its ``val_mask`` or all of it) if given, else the ``val_mask`` of ``data``. Without either,
    the last epoch is kept.

    Args:
        q: The model, changed in place and left in eval mode.
        data: One graph, or a list or loader of graphs or batches; of a ``HeteroData`` the one type that has
            masks, or else labels, is learned.
        epochs: Passes over ``data``.
        lr: Learning rate of the weights.
        teacher: Adds distillation on all nodes, unlabelled ones included: a model with the
            same inputs, or its class scores [N, C] (logits or log-probabilities) for one graph.
        smoothness: Adds the smoothness constraint.
        seed: Makes the run repeatable; torch's generators are left as they were.
        progress: Whether to show a progress bar on stderr.
        loss: In place of cross entropy on ``data.y``: ``(output, data, mask) -> scalar``, where
            ``mask`` (bool) chooses the rows of the output to learn from.
        inputs: Where the model's inputs are in the data: see ``gnnquant.data.Inputs``.
        val_data: Further graphs, for validation only.
        weight_decay: Of the weights; ``None``: 2e-4 with a teacher, who regularises too, else 5e-4.
        range_lr: Learning rate of the quantizers' ranges.
        distillation_weight: Weight of ``KL(teacher || model)``, averaged over nodes.
        label_weight: Weight of the labels' loss; ``None``: 0.1 with a teacher, else 1.

    Returns:
        The history, and which epoch was kept.

    Raises:
        FineTuneError: For missing or empty masks, labels that do not fit, data on another
            device, or a loss that is not finite (the best state is restored first).
        InputError: When a model input is not in the data.
    """
    if epochs < 1:
        raise FineTuneError(f"epochs must be at least 1, not {epochs}")
    single = is_graph(data)
    if is_graph(data):
        check_masks(data)
    elif isinstance(teacher, Tensor):
        raise FineTuneError("a teacher's scores fit one graph only; with a loader pass the model")
    if weight_decay is None:
        weight_decay = WEIGHT_DECAY if teacher is None else WEIGHT_DECAY_WITH_TEACHER
    if label_weight is None:
        label_weight = 1.0 if teacher is None else LABEL_WEIGHT_WITH_TEACHER
    objective = Objective(
        q,
        loss=loss,
        inputs=inputs,
        teacher=teacher,
        distillation_weight=distillation_weight,
        label_weight=label_weight,
        keep_soft_labels=single,
    )
    with ExitStack() as stack:
        stack.callback(q.eval)
        if seed is not None:
            stack.enter_context(torch.random.fork_rng())
            torch.manual_seed(seed)
        if isinstance(teacher, nn.Module):
            stack.callback(teacher.train, teacher.training)
            teacher.eval()
        stack.enter_context(sparse_inputs(q))
        if not is_calibrated(q):
            calibrate(q, (objective.arguments(graph) for graph in iterate(data)))
        run = _Run(
            q,
            data,
            val_data,
            objective,
            None if smoothness is None else LagrangianDriver.create(q, smoothness),
            _optimizer(q, lr, weight_decay, range_lr),
        )
        return run.train(epochs, progress)


@dataclass
class _Run:
    """One fine-tuning in progress."""

    q: nn.Module
    data: Graph | Iterable[Graph]
    val_data: Graph | Iterable[Graph] | None
    objective: Objective
    driver: LagrangianDriver | None
    optimizer: torch.optim.Optimizer

    def train(self, epochs: int, progress: bool) -> FineTuneResult:
        """Loop over the epochs; whatever ends the loop, the best state is restored."""
        from tqdm import tqdm

        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, epochs)
        best = _Best(self.q, self.validate(), settled=epochs // 2)
        history: list[EpochRecord] = []
        interrupted = False
        try:
            with tqdm(total=epochs, desc="fine-tune", disable=None if progress else True, leave=False) as bar:
                for epoch in range(1, epochs + 1):
                    lr, range_lr = (group["lr"] for group in self.optimizer.param_groups)
                    loss = self.train_epoch(epoch, best.epoch)
                    schedule.step()
                    metric = self.validate()
                    best.offer(epoch, metric)
                    reports = () if self.driver is None else self.driver.report()
                    history.append(EpochRecord(epoch, loss, metric, lr, range_lr, reports))
                    bar.set_postfix(_postfix(loss, metric, best.metric), refresh=False)
                    bar.update()
        except KeyboardInterrupt:
            interrupted = True
        finally:
            best.restore()
        return FineTuneResult(tuple(history), best.epoch, best.metric, interrupted)

    def train_epoch(self, epoch: int, best_epoch: int) -> float:
        """Pass over the training data once; returns the mean loss."""
        self.q.train()
        total, steps = 0.0, 0
        for data in iterate(self.data):
            arguments = self.objective.arguments(data)
            if self.driver is None:
                output, penalty = self.q(**arguments), None
            else:
                output, penalty = self.driver.forward(arguments)
            loss = self.objective.loss(output, data)
            if loss is None:
                continue
            if penalty is not None:
                loss = loss + penalty
            value = float(loss.detach())
            if not math.isfinite(value):
                raise _diverged(epoch, best_epoch, f"the loss is {value}")
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
            if self.driver is not None:
                self.driver.ascend()
            total, steps = total + value, steps + 1
        if steps == 0:
            raise FineTuneError("the data has no training example: no graph, or empty train_mask")
        if not all(bool(parameter.isfinite().all()) for parameter in self.q.parameters()):
            raise _diverged(epoch, best_epoch, "a parameter is not finite")
        return total / steps

    def validate(self) -> float | None:
        """The validation metric; ``None`` without validation examples."""
        self.q.eval()
        total, count = 0.0, 0
        with torch.no_grad():
            for data in iterate(self.data if self.val_data is None else self.val_data):
                if self.val_data is None and "val_mask" not in labelled_part(data):
                    continue
                output = self.q(**self.objective.arguments(data))
                quality, examples = self.objective.quality(output, data)
                total, count = total + quality, count + examples
        return total / count if count else None


class _Best:
    """The best state so far; without validation, the latest."""

    def __init__(self, q: nn.Module, metric: float | None, settled: int) -> None:
        """Start with the state before training.

        Args:
            q: The model.
            metric: Its validation metric.
            settled: After this epoch a state as good as the best replaces it: with small
                validation sets ties are common, and later states have lower learning rates.
        """
        self._q = q
        self._settled = settled
        self._keep(0, metric)

    def _keep(self, epoch: int, metric: float | None) -> None:
        self.epoch, self.metric = epoch, metric
        self._state = {
            name: value.clone() if isinstance(value, Tensor) else value
            for name, value in self._q.state_dict().items()
        }

    def offer(self, epoch: int, metric: float | None) -> None:
        """Keep the model's present state if it is better."""
        if (
            metric is None
            or self.metric is None
            or metric > self.metric
            or (metric == self.metric and epoch > self._settled)
        ):
            self._keep(epoch, metric)

    def restore(self) -> None:
        """Put the kept state back."""
        self._q.load_state_dict(self._state)


def _optimizer(q: nn.Module, lr: float, weight_decay: float, range_lr: float) -> torch.optim.Optimizer:
    """Adam over two groups: weights, and the quantizers' ranges without decay."""
    ranges = {
        id(parameter) for quantizer in quantizers_of(q).values() for parameter in quantizer.parameters()
    }
    trained = [parameter for parameter in q.parameters() if parameter.requires_grad]
    if not trained:
        raise FineTuneError("the model has no parameter that requires a gradient")
    return torch.optim.Adam(
        [
            {
                "params": [parameter for parameter in trained if id(parameter) not in ranges],
                "lr": lr,
                "weight_decay": weight_decay,
            },
            {
                "params": [parameter for parameter in trained if id(parameter) in ranges],
                "lr": range_lr,
                "weight_decay": 0.0,
            },
        ]
    )


def _diverged(epoch: int, best_epoch: int, what: str) -> FineTuneError:
    """The error of a training whose numbers are no longer finite."""
    return FineTuneError(
        f"fine-tuning diverged in epoch {epoch}: {what}; look for NaN or infinity in the features, "
        f"or lower lr= and range_lr=. The state of epoch {best_epoch} is restored"
    )


def _postfix(loss: float, metric: float | None, best: float | None) -> dict[str, str]:
    """What the progress bar shows."""
    shown = {"loss": f"{loss:.3f}"}
    if metric is not None and best is not None:
        shown |= {"val": f"{metric:.4f}", "best": f"{best:.4f}"}
    return shown
