"""The smoothness constraint in training: bounds, multipliers and their ascent."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx

from gnnquant import ir
from gnnquant.errors import FineTuneError, InputError
from gnnquant.smoothness.functional import dirichlet_energy
from gnnquant.smoothness.propagation import SmoothnessConstraint

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import nn


@dataclass(frozen=True)
class Smoothness:
    """How strongly the layer-wise change of neighbour similarity is bounded.

    For a model with ``SmoothPropagation`` layers these are the constants of its steps (``bound``
    is their budget per edge). For any other traced model, ``bound`` is the largest allowed change
    of ``dirichlet_energy`` (0 to 2) from one message-passing layer to the next.

    Attributes:
        bound: Bound per layer; ``None``: what the layers have (``SmoothPropagation``), or 0.1.
        multiplier_lr: Step of the multipliers' ascent; ``None``: 1e-5 for
            ``SmoothPropagation``, whose constraint grows with the number of edges, else 0.1.
        slack_lr: Step of the slack's descent, ``SmoothPropagation`` only.
        damping: Weight c > 0 of the quadratic damping term, other models only.
    """

    bound: float | None = None
    multiplier_lr: float | None = None
    slack_lr: float = 1e-5
    damping: float = 1.0

    def __post_init__(self) -> None:
        """Validate the fields.

        Raises:
            InputError: For a constant that is not positive.
        """
        for name in ("bound", "multiplier_lr", "slack_lr", "damping"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise InputError(f"Smoothness: {name} must be positive, not {value!r}")


@dataclass(frozen=True)
class ConstraintReport:
    """One layer's constraint after an epoch.

    Attributes:
        layer: Name of the step's constraint, or of the two layers compared.
        value: The constrained quantity in the last training step.
        bound: Its bound.
        multiplier: The Lagrange multiplier.
    """

    layer: str
    value: float
    bound: float
    multiplier: float

    @property
    def held(self) -> bool:
        """Whether the value was within the bound."""
        return self.value <= self.bound


class LagrangianDriver(ABC):
    """Runs a model under smoothness constraints; ``create`` chooses how."""

    @staticmethod
    def create(model: nn.Module, smoothness: Smoothness) -> LagrangianDriver:
        """The driver for ``model``.

        Args:
            model: A model with ``SmoothPropagation`` layers (traced or not), or a traced model.
            smoothness: The constraint.

        Raises:
            FineTuneError: When the model has nothing to constrain.
        """
        steps = {
            name: module for name, module in model.named_modules() if isinstance(module, SmoothnessConstraint)
        }
        if steps:
            return PropagationDriver(model, steps, smoothness)
        if isinstance(model, fx.GraphModule):
            return LayerDriver(model, smoothness)
        raise FineTuneError(
            f"smoothness= needs a converted model or SmoothPropagation layers, and "
            f"{type(model).__name__} is neither; pass what gnnquant.convert returns"
        )

    @abstractmethod
    def forward(self, inputs: Mapping[str, Any]) -> tuple[Any, Tensor | None]:
        """Run the model: its output, and the penalty to add to the loss, if any."""

    @abstractmethod
    def ascend(self) -> None:
        """Update the multipliers after a training step."""

    @abstractmethod
    def report(self) -> tuple[ConstraintReport, ...]:
        """Each layer's constraint as of the last training step."""


class PropagationDriver(LagrangianDriver):
    """For ``SmoothPropagation``: its steps hold and ascend their own multipliers."""

    def __init__(
        self, model: nn.Module, steps: Mapping[str, SmoothnessConstraint], smoothness: Smoothness
    ) -> None:
        self._model = model
        self._steps = steps
        for step in steps.values():
            if smoothness.bound is not None:
                step.budget = smoothness.bound
            if smoothness.multiplier_lr is not None:
                step.multiplier_lr = smoothness.multiplier_lr
            step.slack_lr = smoothness.slack_lr

    def forward(self, inputs: Mapping[str, Any]) -> tuple[Any, Tensor | None]:
        """Run the model; the constraint acts inside the layer, there is no penalty."""
        return self._model(**inputs), None

    def ascend(self) -> None:
        """Nothing: the forward pass has done it."""

    def report(self) -> tuple[ConstraintReport, ...]:
        """One line per step of propagation."""
        return tuple(
            ConstraintReport(name, float(step.value), float(step.bound), float(step.multiplier))
            for name, step in self._steps.items()
        )


class LayerDriver(LagrangianDriver):
    """For any traced model: bounds the change of Dirichlet energy between consecutive layers.

    With ``e_k`` the energy of layer k's update and ``g_k = |e_k+1 - e_k| - bound`` the constraint
    ``g_k <= 0`` is held with one multiplier ``lam_k`` per pair of layers: descent of the model's
    parameters and ascent of ``lam_k`` on ``f + lam_k (g_k + s_k^2) + c/2 (g_k + s_k^2)^2``, the
    modified differential multiplier method with damping c (Platt and Barr, "Constrained
    Differential Optimization", NIPS 1988). The slack is eliminated at its minimum, ``s_k^2 =
    max(0, -g_k - lam_k / c)``, which leaves the penalty (Rockafellar 1973)::

        (max(0, lam_k + c g_k)^2 - lam_k^2) / (2 c)

    Attributes:
        multipliers: ``lam`` [number of pairs], float32.
    """

    def __init__(self, model: fx.GraphModule, smoothness: Smoothness) -> None:
        updates = [node for node in model.graph.nodes if node.target is ir.update]
        if len(updates) < 2:
            raise FineTuneError(
                f"smoothness= compares consecutive message-passing layers, and the model has {len(updates)}"
            )
        self._names = [f"{a.args[1]} -> {b.args[1]}" for a, b in pairwise(updates)]
        self._bound = 0.1 if smoothness.bound is None else smoothness.bound
        self._damping = smoothness.damping
        self._lr = 0.1 if smoothness.multiplier_lr is None else smoothness.multiplier_lr
        self._sibling = _returning(model, updates)
        self.multipliers = torch.zeros(len(self._names))
        self._excess = torch.zeros(len(self._names))

    def forward(self, inputs: Mapping[str, Any]) -> tuple[Any, Tensor | None]:
        """Run the model once and form the penalty from its updates."""
        edge_index = inputs.get("edge_index")
        if not isinstance(edge_index, Tensor) or edge_index.layout != torch.strided:
            raise FineTuneError("smoothness= needs a model input 'edge_index' of shape [2, E]")
        output, updates = self._sibling(**inputs)
        rows = {value.size(0) for value in updates}
        if len(rows) > 1:
            raise FineTuneError(
                f"smoothness= compares layers over the same nodes, and the layers have {sorted(rows)} rows"
            )
        energies = torch.stack([dirichlet_energy(value.flatten(1), edge_index) for value in updates])
        excess = (energies[1:] - energies[:-1]).abs() - self._bound
        self._excess = excess.detach()
        self.multipliers = self.multipliers.to(excess.device)
        pressed = (self.multipliers + self._damping * excess).clamp(min=0)
        return output, (pressed.square() - self.multipliers.square()).sum() / (2 * self._damping)

    def ascend(self) -> None:
        """``lam_k = max(0, lam_k + eta (g_k + s_k^2))``."""
        residual = torch.maximum(self._excess, -self.multipliers / self._damping)
        self.multipliers = (self.multipliers + self._lr * residual).clamp(min=0)

    def report(self) -> tuple[ConstraintReport, ...]:
        """One line per pair of consecutive layers."""
        return tuple(
            ConstraintReport(name, excess + self._bound, self._bound, multiplier)
            for name, excess, multiplier in zip(
                self._names, self._excess.tolist(), self.multipliers.tolist(), strict=True
            )
        )


def _returning(model: fx.GraphModule, nodes: Sequence[fx.Node]) -> fx.GraphModule:
    """A graph module over the same parameters that returns ``(output, values of nodes)``."""
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    output = graph.graph_copy(model.graph, copies)
    graph.output((output, tuple(copies[node] for node in nodes)))
    return fx.GraphModule(model, graph)
