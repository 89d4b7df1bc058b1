"""Smoothness-aware message propagation (SMP) as a PyG layer.

Source: Wang, Eravci, Guliyev, Ferhatosmanoglu, "Low-bit Quantization for Deep Graph Neural
Networks with Smoothness-aware Message Propagation", CIKM 2023, arXiv 2308.14949.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal, get_args

import torch
from torch import Tensor, nn
from torch_geometric.nn import MessagePassing
from torch_geometric.nn.conv.gcn_conv import gcn_norm

from gnnquant.errors import InputError
from gnnquant.smoothness.functional import (
    adjacency_product,
    dirichlet_energy,
    laplacian_quadratic_form,
    mean_neighbour_distance,
)

Update = Literal["descent", "laplacian", "adjacency"]
"""How the multiplier acts on the features: see ``SmoothPropagation``."""

if TYPE_CHECKING:
    from torch_geometric.typing import OptTensor


class SmoothnessConstraint(nn.Module):
    """Slack and multiplier of one step's constraint ``v = tr(D^T L D) <= budget * |E|``.

    Like the running statistics of batch norm they are buffers that a forward pass updates in
    training mode and that evaluation only reads. The tracer keeps the module as a leaf, so that
    no data-dependent update enters the traced graph. A training pass moves them by the basic
    differential multiplier method (Platt and Barr, "Constrained Differential Optimization", NIPS
    1988, with a slack for the inequality, section 3.2), descent in ``s`` and ascent in ``lam`` on
    ``lam (v + s^2 - bound)``::

        s  <- s - 2 eta_s lam s
        lam <- lam + eta_lam (v + s^2 - bound),      kept within [0, limit]

    so that the multiplier rises while the bound is broken and falls while it holds. The method as
    published ascends on ``lam (bound - s^2 - v)``: for updates other than ``"descent"`` both signs
    are turned.

    Attributes:
        budget: Bound of the quadratic form, per edge.
        multiplier_lr: Step of the multiplier's ascent (eta_lam).
        slack_lr: Step of the slack's descent (eta_s).
        limit: Largest multiplier.
        update: What the step's correction is: see ``SmoothPropagation``.
        correction: Coefficient of ``L D`` or ``A~ D`` in it, per unit of the multiplier: ``2 eta``, with
            ``eta`` the step size in the features, and ``-2 eta`` for ``"descent"``.
        reporting: Whether energy and distance are measured too, and everything also in eval mode.
        multiplier: lambda >= 0, scalar buffer.
        slack: s, scalar buffer.
        value: ``tr(D^T L D)`` of the last pass that measured it, scalar buffer, not saved.
        bound: ``budget * |E|`` of that pass, scalar buffer, not saved.
        energy: ``dirichlet_energy`` of the step's result, scalar buffer, not saved.
        distance: ``mean_neighbour_distance`` of the step's result, scalar buffer, not saved.
    """

    traced_as_leaf = True
    multiplier: Tensor
    slack: Tensor
    value: Tensor
    bound: Tensor
    energy: Tensor
    distance: Tensor

    def __init__(
        self,
        *,
        budget: float = 0.2,
        multiplier_lr: float = 1e-5,
        slack_lr: float = 1e-5,
        initial: float = 1e-3,
        limit: float = math.inf,
        update: Update = "descent",
        eta: float = 0.0,
    ) -> None:
        super().__init__()
        self.budget = budget
        self.multiplier_lr = multiplier_lr
        self.slack_lr = slack_lr
        self.initial = initial
        self.limit = limit
        self.update = update
        self.correction = -2 * eta if update == "descent" else 2 * eta
        self.reporting = False
        for name in ("multiplier", "slack"):
            self.register_buffer(name, torch.zeros(()))
        for name in ("value", "bound", "energy", "distance"):
            self.register_buffer(name, torch.zeros(()), persistent=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start again from the initial slack and multiplier."""
        self.multiplier.fill_(min(self.initial, self.limit))
        self.slack.fill_(self.initial)

    def forward(self, d: Tensor, pulled: Tensor, edge_index: Tensor, edge_weight: Tensor) -> Tensor:
        """The multiplier for this step; in training mode, updated afterwards.

        Reports are of the step's result without the rounding of its correction's messages.

        Args:
            d: Change of the features in this step [N, F].
            pulled: Features after the step, before the correction [N, F].
            edge_index: Edges [2, E] with self-loops, int64.
            edge_weight: Entries of the normalised adjacency [E].

        Returns:
            The multiplier as it was before this call, a scalar without gradient.
        """
        # A copy: the buffer changes below, and the backward pass needs the value that was used.
        multiplier = self.multiplier.clone()
        if not (self.training or self.reporting):
            return multiplier
        with torch.no_grad():
            self.value.copy_(laplacian_quadratic_form(d, edge_index, edge_weight))
            self.bound.fill_(self.budget * edge_index.size(1))
            if self.reporting:
                direction = adjacency_product(d, edge_index, edge_weight)
                if self.update != "adjacency":
                    direction = d - direction
                h = pulled + self.correction * multiplier * direction
                self.energy.copy_(dirichlet_energy(h, edge_index))
                self.distance.copy_(mean_neighbour_distance(h, edge_index))
            if self.training:
                self._update()
        return multiplier

    def _update(self) -> None:
        """One step of the multiplier method from ``value`` and ``bound``."""
        sign = 1 if self.update == "descent" else -1
        violation = self.value + self.slack.square() - self.bound
        self.slack.add_(-2 * sign * self.slack_lr * self.multiplier * self.slack)
        self.multiplier.add_(sign * self.multiplier_lr * violation).clamp_(min=0, max=self.limit)

    def extra_repr(self) -> str:
        """What ``repr`` shows."""
        return f"budget={self.budget}"


class SmoothPropagation(MessagePassing):
    """K steps of propagation that bound the layer-wise change of neighbour similarity.

    With ``A~ = D^-1/2 (A + I) D^-1/2``, ``L = I - A~`` and ``H_0`` the input, one step is::

        H'    = (1 - (1 + mu) eta) H_k + mu eta A~ H_k + eta H_0
        D     = H' - H_k
        H_k+1 = H' - 2 eta lam L D        update="descent"
        H_k+1 = H' + 2 eta lam L D        update="laplacian"
        H_k+1 = H' + 2 eta lam A~ D       update="adjacency"

    where ``lam`` is the multiplier of the step's constraint ``tr(D^T L D) <= budget |E|``, see
    ``SmoothnessConstraint``. ``"descent"`` is the descent step in ``H`` on ``lam (tr(D^T L D) -
    budget |E|)``; its multiplier rises while the bound is broken. The other two take the sign of the
    published equations, ``lam (budget |E| - s^2 - tr(D^T L D))``, whose multiplier rises while the
    bound *holds*: ``"laplacian"`` is that function's derivative, ``"adjacency"`` what the authors'
    code does. With ``lam = 0`` and ``(1 + mu) eta = 1`` the layer is APPNP with teleport probability
    ``eta``; all three have APPNP's limit for many steps, since ``D`` vanishes there.

    With ``"descent"`` the multiplier is at most ``mu / (2 eta (1 + 2 mu))``. Then, if also
    ``(1 + mu) eta <= 1``, a step is a contraction with factor ``1 - eta`` in the spectral norm: on an
    eigenvector of ``L`` with eigenvalue t in [0, 2] it multiplies the distance to the limit by
    ``1 - eta (1 - 2 eta lam t) (1 + mu t)``, whose concave last product is least at t = 0 or 2, where it is
    at least 1, and at most ``1 + 2 mu``. An error of a step therefore fades, however many steps follow.
    The other updates have no such limit: ``"laplacian"`` diverges for large multipliers.

    It has no weights. Put it behind a feature network::

        self.propagation = SmoothPropagation()
        ...
        return self.propagation(self.mlp(x), edge_index)

    In training, memory beyond the features of each step is O(E); a message [E, F] lives only while
    it is summed.

    Attributes:
        constraints: One ``SmoothnessConstraint`` per step.
    """

    def __init__(
        self,
        K: int = 10,  # noqa: N803 - the name that PyG's propagation layers use
        *,
        mu: float = 9.0,
        eta: float = 0.1,
        budget: float = 0.2,
        multiplier_lr: float = 1e-5,
        slack_lr: float = 1e-5,
        initial: float = 1e-3,
        add_self_loops: bool = True,
        update: Update = "descent",
    ) -> None:
        """Create the layer.

        Args:
            K: Number of steps.
            mu: Weight of the smoothness term.
            eta: Step size in the features.
            budget: Bound of ``tr(D^T L D)`` per edge (the authors use 1e-5 to 0.2).
            multiplier_lr: eta_lam.
            slack_lr: eta_s.
            initial: First value of every slack and multiplier.
            add_self_loops: Whether the adjacency is given self-loops.
            update: How the multiplier acts on the features.

        Raises:
            InputError: For fewer than one step, a step size or budget that is not positive, or an update
                that does not exist.
        """
        if K < 1:
            raise InputError(f"K must be at least 1, not {K}")
        if not (eta > 0 and mu >= 0 and budget > 0):
            raise InputError(
                f"eta and budget must be positive and mu not negative: eta={eta}, mu={mu}, budget={budget}"
            )
        if update not in get_args(Update):
            raise InputError(f"update must be one of {', '.join(get_args(Update))}, not {update!r}")
        super().__init__(aggr="add")
        self.K = K
        self.mu = mu
        self.eta = eta
        self.add_self_loops = add_self_loops
        self.update_form: Update = update
        self.constraints = nn.ModuleList(
            SmoothnessConstraint(
                budget=budget,
                multiplier_lr=multiplier_lr,
                slack_lr=slack_lr,
                initial=initial,
                limit=mu / (2 * eta * (1 + 2 * mu)) if update == "descent" else math.inf,
                update=update,
                eta=eta,
            )
            for _ in range(K)
        )

    def reset_parameters(self) -> None:
        """Start again from the initial slacks and multipliers."""
        super().reset_parameters()
        for constraint in self.constraints:
            assert isinstance(constraint, SmoothnessConstraint)
            constraint.reset_parameters()

    def forward(self, x: Tensor, edge_index: Tensor, edge_weight: OptTensor = None) -> Tensor:
        """Propagate.

        Args:
            x: Node features [N, F], floating point.
            edge_index: Edges [2, E], int64.
            edge_weight: Edge weights [E] in the dtype of ``x``; all 1 when left out.

        Returns:
            Smoothed features [N, F].
        """
        edge_index, weight = gcn_norm(
            edge_index,
            edge_weight,
            x.size(self.node_dim),
            add_self_loops=self.add_self_loops,
            flow=self.flow,
            dtype=x.dtype,
        )
        keep = 1 - (1 + self.mu) * self.eta
        h = x
        for constraint in self.constraints:
            pulled = self.mu * self.eta * self.propagate(edge_index, x=h, edge_weight=weight)
            pulled = pulled + self.eta * x
            if keep != 0:
                pulled = pulled + keep * h
            d = pulled - h
            factor = constraint.correction * constraint(d, pulled, edge_index, weight)
            if self.update_form != "adjacency":
                # D's own part, before its sum over edges: one value to keep meanwhile, not two.
                pulled, factor = pulled + factor * d, -factor
            h = pulled + factor * self.propagate(edge_index, x=d, edge_weight=weight)
        return h

    def message(self, x_j: Tensor, edge_weight: Tensor) -> Tensor:
        """``A~_ij x_j`` [E, F]."""
        return edge_weight.view(-1, 1) * x_j

    def __repr__(self) -> str:
        return f"{type(self).__name__}(K={self.K}, mu={self.mu}, eta={self.eta})"
