"""What fine-tuning minimises and measures: masks, labels and the teacher's scores of a graph."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gnnquant.data import is_graph, labelled_part, model_inputs
from gnnquant.errors import FineTuneError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch_geometric.data import Data
    from torch_geometric.data.storage import BaseStorage

    from gnnquant.data import Graph, Inputs

Loss: TypeAlias = "Callable[[Any, Any, Tensor], Tensor]"
"""``(output, data, mask [rows of the output], bool) -> scalar``."""


class Objective:
    """The loss and the validation metric of one graph or batch.

    A row of the output (a node's, or a graph's) is an example of ``"train"`` or ``"val"`` when
    the graph's mask of that name says so, or when it has no such mask; of a ``NeighborLoader``
    batch only the first ``batch_size`` rows are anything at all.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        loss: Loss | None,
        inputs: Inputs | None,
        teacher: nn.Module | Tensor | None,
        distillation_weight: float,
        label_weight: float,
        keep_soft_labels: bool,
    ) -> None:
        """Describe the objective.

        Args:
            model: The model that is trained.
            loss: In place of cross entropy on ``data.y``.
            inputs: Where the model's inputs are in the data.
            teacher: A model, or class scores [rows, C]; ``None``: no distillation.
            distillation_weight: Weight of the distillation.
            label_weight: Weight of the labels' loss.
            keep_soft_labels: Whether every step sees the same graph, so that the teacher need
                run only once.
        """
        self._model = model
        self._loss = loss
        self._inputs = inputs
        self._teacher = teacher
        self._distillation_weight = distillation_weight
        self._label_weight = label_weight
        self._keep_soft_labels = keep_soft_labels
        self._soft_labels: Tensor | None = None
        parameter = next(iter(model.parameters()), None)
        self._device = torch.device("cpu") if parameter is None else parameter.device

    def arguments(self, data: Graph) -> dict[str, Any]:
        """The model's inputs.

        Raises:
            InputError: When one is missing.
            FineTuneError: When one is on another device than the model.
        """
        arguments = model_inputs(self._model, data, self._inputs)
        for name, value in arguments.items():
            for device in sorted({str(tensor.device) for tensor in _tensors(value)} - {str(self._device)}):
                raise FineTuneError(
                    f"{name!r} is on {device} and the model on {self._device}; move the "
                    f"data with data.to({str(self._device)!r})"
                )
        return arguments

    def loss(self, output: Any, data: Graph) -> Tensor | None:
        """The training loss, a scalar.

        Returns:
            ``label_weight`` times the labels' loss over the training rows plus
            ``distillation_weight * KL(teacher || model)``, averaged over all rows; ``None`` when
            no row trains.

        Raises:
            FineTuneError: When masks, labels or the teacher's scores do not fit the output.
        """
        part = labelled_part(data)
        rows = _rows(output, part)
        chosen = _examples("train", part, rows)
        value = None
        if bool(chosen.any()):
            value = self._label_weight * self._label_loss(output, data, chosen)
        if self._teacher is not None:
            distillation = self._distillation_weight * self._distillation(output, data, rows)
            value = distillation if value is None else value + distillation
        return value

    def quality(self, output: Any, data: Graph) -> tuple[float, int]:
        """The validation metric summed over the validation rows, and their number.

        The metric is 1 for a right class, or minus the loss where ``loss=`` was given.

        Raises:
            FineTuneError: When masks or labels do not fit the output.
        """
        part = labelled_part(data)
        chosen = _examples("val", part, _rows(output, part))
        count = int(chosen.sum())
        if count == 0:
            return 0.0, 0
        if self._loss is not None:
            return -float(self._loss(output, data, chosen)) * count, count
        classes = output[chosen].argmax(dim=-1)
        return float((classes == _labels(output, part, chosen)).sum()), count

    def _label_loss(self, output: Any, data: Graph, chosen: Tensor) -> Tensor:
        if self._loss is not None:
            return self._loss(output, data, chosen)
        return F.cross_entropy(output[chosen], _labels(output, labelled_part(data), chosen))

    def _distillation(self, output: Any, data: Graph, rows: Tensor) -> Tensor:
        """``KL(teacher || model)`` averaged over ``rows`` (Hinton et al. 2015, temperature 1)."""
        soft = self._soft_labels
        if soft is None:
            soft = F.softmax(self._teacher_scores(data), dim=-1)
            if self._keep_soft_labels:
                self._soft_labels = soft
        if soft.shape != output.shape:
            raise FineTuneError(
                f"the teacher's scores have shape {list(soft.shape)}, the model's {list(output.shape)}"
            )
        log_probabilities = F.log_softmax(output, dim=-1)
        return F.kl_div(log_probabilities[rows], soft[rows], reduction="batchmean")

    def _teacher_scores(self, data: Graph) -> Tensor:
        if not isinstance(self._teacher, nn.Module):
            assert self._teacher is not None
            return self._teacher.detach().to(self._device)
        with torch.no_grad():
            scores = self._teacher(**model_inputs(self._teacher, data, self._inputs))
        if not isinstance(scores, Tensor):
            raise FineTuneError(f"the teacher returns a {type(scores).__name__}, not class scores [N, C]")
        return scores


def check_masks(data: Graph) -> None:
    """Check the masks of a single graph, which must say what to train on.

    Raises:
        FineTuneError: For a missing ``train_mask`` or a mask that chooses nothing.
    """
    part = labelled_part(data)
    if "train_mask" not in part:
        raise FineTuneError(
            "the data has no train_mask; set it, or pass a list or loader of graphs ([data]) to "
            "train on every row"
        )
    for name in ("train_mask", "val_mask"):
        if name in part and not bool(part[name].any()):
            raise FineTuneError(f"{name} chooses nothing; leave it out or mark its examples")


def _tensors(value: Any) -> Iterator[Tensor]:
    """Tensors of an argument: of a graph or a container too."""
    if isinstance(value, Tensor):
        yield value
    elif is_graph(value):
        for store in value.stores:
            yield from _tensors(store.to_dict())
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)


def _rows(output: Any, data: Data | BaseStorage) -> Tensor:
    """Which rows of the output count at all, bool [rows]."""
    if not isinstance(output, Tensor) or output.dim() == 0:
        # Only a loss of the user's own can read such an output: there is one example, the graph.
        return torch.ones(1, dtype=torch.bool)
    rows = torch.ones(output.size(0), dtype=torch.bool, device=output.device)
    if "batch_size" in data and "n_id" in data:
        rows[int(data["batch_size"]) :] = False
    return rows


def _examples(role: Literal["train", "val"], data: Data | BaseStorage, rows: Tensor) -> Tensor:
    """The rows that are examples of ``role``, bool [rows]."""
    name = f"{role}_mask"
    if name not in data:
        return rows
    mask = data[name]
    if mask.dim() != 1:
        raise FineTuneError(
            f"{name} has shape {list(mask.shape)}; choose one split: data.{name} = data.{name}[:, 0]"
        )
    if mask.dtype != torch.bool or mask.size(0) != rows.size(0):
        raise FineTuneError(
            f"{name} must be bool of shape [{rows.size(0)}], one value a row of the model's "
            f"output; it is {mask.dtype} of shape {list(mask.shape)}"
        )
    if mask.device != rows.device:
        raise FineTuneError(f"{name} is on {mask.device} and the model's output on {rows.device}")
    return rows & mask


def _labels(output: Any, data: Data | BaseStorage, chosen: Tensor) -> Tensor:
    """The classes of the chosen rows, int64; no other label is read."""
    if not isinstance(output, Tensor) or output.dim() != 2:
        found = list(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise FineTuneError(
            f"cross entropy needs class scores of shape [rows, classes], and the model returns "
            f"{found}; pass loss="
        )
    if "y" not in data:
        raise FineTuneError("the data has no labels y; set data.y or pass loss=")
    y = data["y"]
    if y.dim() == 2 and y.size(1) == 1:
        y = y.squeeze(1)
    if y.dim() != 1 or y.is_floating_point() or y.size(0) != output.size(0):
        raise FineTuneError(
            f"cross entropy needs integer labels y of shape [{output.size(0)}], one for each row "
            f"of the model's output; y is {y.dtype} of shape {list(data['y'].shape)}; pass loss="
        )
    labels = y[chosen].long()
    if bool((labels < 0).any()) or bool((labels >= output.size(1)).any()):
        raise FineTuneError(
            f"labels are {int(labels.min())} to {int(labels.max())}, and the model scores "
            f"{output.size(1)} classes"
        )
    return labels
