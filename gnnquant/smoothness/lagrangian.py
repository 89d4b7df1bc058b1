"""The smoothness constraint in training: bounds, multipliers and their ascent."""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx

from gnnquant import ir
from gnnquant.data import model_inputs
from gnnquant.errors import FineTuneError, InputError
from gnnquant.quantizers.ops import adjacency
from gnnquant.smoothness.functional import dirichlet_energy, mean_neighbour_distance
from gnnquant.smoothness.propagation import SmoothnessConstraint
from gnnquant.tracing import TracedModule

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import nn

    from gnnquant.data import Graph, Inputs


@dataclass(frozen=True)
class Smoothness:
    """How strongly the layer-wise change of neighbour similarity is bounded.

    For a model with ``SmoothPropagation`` layers these are the constants of its steps (``bound``
    is their budget per edge). For any other traced model, ``bound`` is the largest allowed change
    of ``dirichlet_energy`` (0 to 2) from one message-passing layer to the next.

    Attributes:
        bound: Bound per layer; ``None``: what the layers have (``SmoothPropagation``), or 0.2 divided by
            the number of layers, so that a stack may change as much as a whole however deep it is.
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
    """One layer's smoothness and its constraint.

    Attributes:
        layer: Name of the step's constraint, or of the message-passing layer.
        value: The constrained quantity: ``tr(D^T L D)`` of a step of ``SmoothPropagation``, else the
            change of Dirichlet energy from the layer before; NaN for the first layer.
        bound: Its bound; infinite for the first layer.
        multiplier: The Lagrange multiplier.
        energy: ``dirichlet_energy`` of the layer's result, over the edges that it sees.
        distance: ``mean_neighbour_distance`` of the layer's result.
    """

    layer: str
    value: float
    bound: float
    multiplier: float
    energy: float
    distance: float

    @property
    def held(self) -> bool:
        """Whether the value was within the bound."""
        return not self.value > self.bound


class LagrangianDriver(ABC):
    """Runs a model under smoothness constraints; ``create`` chooses how."""

    @staticmethod
    def create(model: nn.Module, smoothness: Smoothness, *, training: bool = True) -> LagrangianDriver:
        """The driver for ``model``.

        Args:
            model: A model with ``SmoothPropagation`` layers (traced or not), or a traced model.
            smoothness: The constraint.
            training: Whether the layers are those of train mode; a few models have others in eval mode.

        Raises:
            FineTuneError: When the model has nothing to constrain.
        """
        steps = _steps(model)
        if steps:
            return PropagationDriver(model, steps, smoothness)
        if isinstance(model, fx.GraphModule):
            return LayerDriver(model, smoothness, training=training)
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
        """Each layer's constraint as of the last call of ``forward``."""


def measure(
    model: nn.Module, data: Graph, *, smoothness: Smoothness | None = None, inputs: Inputs | None = None
) -> tuple[ConstraintReport, ...]:
    """The smoothness of every layer of a finished model on a graph, in eval mode and without gradients.

    The multipliers are those that training left, and stay as they are::

        for layer in gnnquant.smoothness.measure(q, data):
            print(layer.layer, layer.energy, layer.value, layer.bound, layer.multiplier)

    Args:
        model: A model with ``SmoothPropagation`` layers, or what ``gnnquant.convert`` returns.
        data: One graph, or a batch of graphs.
        smoothness: Whose bound to report; ``None``: that of the training.
        inputs: Where the model's inputs are in the data: see ``gnnquant.data.Inputs``.

    Returns:
        One report per layer, as in ``EpochRecord.smoothness``.

    Raises:
        FineTuneError: When the model has no layers to compare, or they are not over the same nodes.
        InputError: When a model input is not in the data.
    """
    modes = {module: module.training for module in model.modules()}
    arguments = model_inputs(model, data, inputs)
    steps = _steps(model)
    budgets = {step: step.budget for step in steps.values()}
    model.eval()
    try:
        if steps:
            for step in steps.values():
                step.reporting = True
                if smoothness is not None and smoothness.bound is not None:
                    step.budget = smoothness.bound
            with torch.no_grad():
                model(**arguments)
            return _report_steps(steps)
        kept = _kept(model)
        smoothness = smoothness or (Smoothness() if kept is None else kept.smoothness)
        driver = LagrangianDriver.create(model, smoothness, training=False)
        with torch.no_grad():
            driver.forward(arguments)
        return driver.report()
    finally:
        for step, budget in budgets.items():
            step.reporting, step.budget = False, budget
        for module, training in modes.items():
            module.training = training


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
        for step in self._steps.values():
            step.reporting = True
        try:
            return self._model(**inputs), None
        finally:
            for step in self._steps.values():
                step.reporting = False

    def ascend(self) -> None:
        """Nothing: the forward pass has done it."""

    def report(self) -> tuple[ConstraintReport, ...]:
        """One line per step of propagation."""
        return _report_steps(self._steps)


TOTAL_CHANGE = 0.2
"""Default bound of the change of Dirichlet energy, summed over the layers."""
ATTRIBUTE = "layer_multipliers"
"""Name under which a traced model has its ``LayerMultipliers``."""


@dataclass
class LayerMultipliers:
    """The multipliers of a traced model without ``SmoothPropagation`` layers.

    A plain attribute of the model: it is copied and pickled with it, a further
    training goes on with it, and state dicts of trained and fresh models stay alike.

    Attributes:
        names: The layers, in order.
        smoothness: The constraint that was trained with.
        values: [layers - 1], that of a layer and the one before.
    """

    names: tuple[str, ...]
    smoothness: Smoothness
    values: Tensor


class LayerDriver(LagrangianDriver):
    """For any traced model: bounds the change of Dirichlet energy between consecutive layers.

    With ``e_k`` the energy of layer k's update and ``g_k = |e_k+1 - e_k| - bound`` the constraint
    ``g_k <= 0`` is held with one multiplier ``lam_k`` per pair of layers: descent of the model's
    parameters and ascent of ``lam_k`` on ``f + lam_k (g_k + s_k^2) + c/2 (g_k + s_k^2)^2``, the
    modified differential multiplier method with damping c (Platt and Barr, "Constrained
    Differential Optimization", NIPS 1988, section 3.1 and, for the slack, 3.2). The slack is eliminated
    at its minimum, ``s_k^2 = max(0, -g_k - lam_k / c)``, which leaves the penalty (Rockafellar 1973)::

        (max(0, lam_k + c g_k)^2 - lam_k^2) / (2 c)

    A layer is what the tracer marks as an update: each call of a convolution, each step of APPNP. Its value
    is what ``propagate`` returns: of GCN before the bias, of SAGE and GIN before their weights.

    Attributes:
        multipliers: ``lam`` [layers - 1], float32.
    """

    def __init__(self, model: fx.GraphModule, smoothness: Smoothness, *, training: bool = True) -> None:
        self._model = model
        self._smoothness = smoothness
        self._sibling, updates = _returning_updates(model, training)
        if len(updates) < 2:
            raise FineTuneError(
                f"smoothness= compares consecutive message-passing layers, and the model has {len(updates)}"
            )
        self._names = updates
        self._bound = TOTAL_CHANGE / len(updates) if smoothness.bound is None else smoothness.bound
        self._damping = smoothness.damping
        self._lr = 0.1 if smoothness.multiplier_lr is None else smoothness.multiplier_lr
        kept = _kept(model)
        fits = kept is not None and kept.names == updates
        self.multipliers = kept.values.clone() if kept and fits else torch.zeros(len(updates) - 1)
        self._excess = torch.zeros(len(updates) - 1)
        self._energies = self._distances = torch.zeros(len(updates))

    def forward(self, inputs: Mapping[str, Any]) -> tuple[Any, Tensor | None]:
        """Run the model once and form the penalty from its updates."""
        edge_index = _edges(inputs)
        output, updates = self._sibling(**inputs)
        self._check(updates, edge_index)
        rows = [value.flatten(1) for value in updates]
        energies = torch.stack([dirichlet_energy(value, edge_index) for value in rows])
        with torch.no_grad():
            self._distances = torch.stack([mean_neighbour_distance(value, edge_index) for value in rows])
        self._energies = energies.detach()
        excess = self._change(energies) - self._bound
        self._excess = excess.detach()
        self.multipliers = self.multipliers.to(excess.device)
        pressed = (self.multipliers + self._damping * excess).clamp(min=0)
        return output, (pressed.square() - self.multipliers.square()).sum() / (2 * self._damping)

    def ascend(self) -> None:
        """``lam_k = max(0, lam_k + eta (g_k + s_k^2))``."""
        residual = torch.maximum(self._excess, -self.multipliers / self._damping)
        self.multipliers = (self.multipliers + self._lr * residual).clamp(min=0)
        vars(self._model)[ATTRIBUTE] = LayerMultipliers(self._names, self._smoothness, self.multipliers)

    def report(self) -> tuple[ConstraintReport, ...]:
        """One line per layer; the first has nothing before it to compare with."""
        values = [math.nan, *(self._excess + self._bound).tolist()]
        bounds = [math.inf, *[self._bound] * len(self._excess)]
        multipliers = [0.0, *self.multipliers.tolist()]
        measured = zip(self._energies.tolist(), self._distances.tolist(), strict=True)
        return tuple(
            ConstraintReport(name, value, bound, multiplier, energy, distance)
            for name, value, bound, multiplier, (energy, distance) in zip(
                self._names, values, bounds, multipliers, measured, strict=True
            )
        )

    @staticmethod
    def _change(energies: Tensor) -> Tensor:
        """The constrained quantity of every pair of layers, [layers - 1]."""
        return (energies[1:] - energies[:-1]).abs()

    def _check(self, updates: Sequence[Tensor], edge_index: Tensor) -> None:
        """That all layers have one row for each node of the edges."""
        rows = {name: value.size(0) for name, value in zip(self._names, updates, strict=True)}
        if len(set(rows.values())) > 1:
            listed = ", ".join(f"{name}: {count}" for name, count in rows.items())
            raise FineTuneError(
                f"smoothness= compares layers over the same nodes, and the layers have different numbers "
                f"of rows ({listed}), as pooling or sampled neighbourhoods leave them"
            )
        nodes = int(edge_index.max()) + 1 if edge_index.numel() else 0
        if nodes > updates[0].size(0):
            raise FineTuneError(
                f"smoothness= compares the two ends of every edge; the edges name {nodes} nodes, "
                f"and the layers have {updates[0].size(0)} rows"
            )


def _steps(model: nn.Module) -> dict[str, SmoothnessConstraint]:
    """The steps of all ``SmoothPropagation`` layers, by name."""
    return {
        name: module for name, module in model.named_modules() if isinstance(module, SmoothnessConstraint)
    }


def _report_steps(steps: Mapping[str, SmoothnessConstraint]) -> tuple[ConstraintReport, ...]:
    numbers = ("value", "bound", "multiplier", "energy", "distance")
    return tuple(
        ConstraintReport(name, *(float(getattr(step, number)) for number in numbers))
        for name, step in steps.items()
    )


def _edges(inputs: Mapping[str, Any]) -> Tensor:
    """The edges [2, E] among the model's inputs.

    ``edge_index``, as a tensor, as the attribute of a graph, or as a sparse adjacency matrix.

    Raises:
        FineTuneError: When there is none.
    """
    for value in (inputs.get("edge_index"), *inputs.values()):
        edges = getattr(value, "edge_index", value)
        if not isinstance(edges, Tensor):
            continue
        if edges.layout != torch.strided:
            return adjacency(edges)[0]
        integer = not edges.is_floating_point() and edges.dtype != torch.bool
        if (edges is not value or value is inputs.get("edge_index")) and edges.dim() == 2 and integer:
            return edges.as_subclass(Tensor)
    raise FineTuneError(
        "smoothness= needs a model input 'edge_index' of shape [2, E], a graph that has one, or a sparse "
        "adjacency matrix"
    )


def _kept(model: nn.Module) -> LayerMultipliers | None:
    """What an earlier training has left."""
    kept = vars(model).get(ATTRIBUTE)
    return kept if isinstance(kept, LayerMultipliers) else None


def _returning_updates(model: fx.GraphModule, training: bool) -> tuple[fx.GraphModule, tuple[str, ...]]:
    """What ``model`` runs in train or eval mode, returning ``(output, updates)``; and the layers' names.

    The parameters and submodules are shared with ``model``, and so is the mode of dropout and norms.
    """
    graph = model.path_graph(training) if isinstance(model, TracedModule) else copy.deepcopy(model.graph)
    updates = [node for node in graph.nodes if node.target is ir.update]
    (output,) = graph.find_nodes(op="output")
    output.args = ((output.args[0], tuple(updates)),)
    names = tuple(f"{n.args[1]}[{n.args[2]}]" if n.args[2] else str(n.args[1]) for n in updates)
    if isinstance(model, TracedModule):
        return TracedModule.from_graph(model, graph), names
    return fx.GraphModule(model, graph), names
