"""Smoothness-aware message propagation (SMP) as a PyG layer.

Source: Wang, Eravci, Guliyev, Ferhatosmanoglu, "Low-bit Quantization for Deep Graph Neural
Networks with Smoothness-aware Message Propagation", CIKM 2023, arXiv 2308.14949.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch_geometric.nn import MessagePassing
from torch_geometric.nn.conv.gcn_conv import gcn_norm

from gnnquant.errors import InputError
from gnnquant.smoothness.functional import laplacian_quadratic_form

if TYPE_CHECKING:
    from torch_geometric.typing import OptTensor


class SmoothnessConstraint(nn.Module):
    """Slack and multiplier of one step's constraint ``tr(D^T L D) + s^2 = budget * |E|``.

    Like the running statistics of batch norm they are buffers that a forward pass updates in
    training mode and that evaluation only reads. The tracer keeps the module as a leaf, so that
    no data-dependent update enters the traced graph.

    Attributes:
        budget: Bound of the quadratic form, per edge.
        multiplier_lr: Step of the multiplier's ascent (eta_lam).
        slack_lr: Step of the slack's descent (eta_s).
        multiplier: lambda >= 0, scalar buffer.
        slack: s, scalar buffer.
        value: ``tr(D^T L D)`` of the last training pass, scalar buffer, not saved.
        bound: ``budget * |E|`` of the last training pass, scalar buffer, not saved.
    """

    traced_as_leaf = True
    multiplier: Tensor
    slack: Tensor
    value: Tensor
    bound: Tensor

    def __init__(
        self,
        *,
        budget: float = 0.2,
        multiplier_lr: float = 1e-5,
        slack_lr: float = 1e-5,
        initial: float = 1e-3,
    ) -> None:
        super().__init__()
        self.budget = budget
        self.multiplier_lr = multiplier_lr
        self.slack_lr = slack_lr
        self.initial = initial
        for name, persistent in (
            ("multiplier", True),
            ("slack", True),
            ("value", False),
            ("bound", False),
        ):
            self.register_buffer(name, torch.zeros(()), persistent=persistent)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start again from the initial slack and multiplier."""
        self.multiplier.fill_(self.initial)
        self.slack.fill_(self.initial)

    def forward(self, d: Tensor, edge_index: Tensor, edge_weight: Tensor) -> Tensor:
        """The multiplier for this step; in training mode, updated afterwards.

        Args:
            d: Change of the features in this step [N, F].
            edge_index: Edges [2, E] with self-loops, int64.
            edge_weight: Entries of the normalised adjacency [E].

        Returns:
            The multiplier as it was before this call, a scalar without gradient.
        """
        # A copy: the buffer changes below, and the backward pass needs the value that was used.
        multiplier = self.multiplier.clone()
        if not self.training:
            return multiplier
        with torch.no_grad():
            value = laplacian_quadratic_form(d, edge_index, edge_weight)
            bound = self.budget * edge_index.size(1)
            violation = bound - self.slack.square() - value
            self.value.copy_(value)
            self.bound.fill_(bound)
            self.slack.add_(2 * self.slack_lr * multiplier * self.slack)
            self.multiplier.add_(self.multiplier_lr * violation).clamp_(min=0)
        return multiplier

    def extra_repr(self) -> str:
        """What ``repr`` shows."""
        return f"budget={self.budget}"


class SmoothPropagation(MessagePassing):
    """K steps of propagation that bound the layer-wise change of neighbour similarity.

    With ``A~ = D^-1/2 (A + I) D^-1/2``, ``L = I - A~`` and ``H_0`` the input, one step is::

        H'    = (1 - (1 + mu) eta) H_k + mu eta A~ H_k + eta H_0
        D     = H' - H_k
        H_k+1 = H' + 2 eta lam L D,        L D = D - A~ D

    where ``lam`` is the step's multiplier, see ``SmoothnessConstraint``: with
    ``g = budget |E| - s^2 - tr(D^T L D)`` a training pass updates ``s += 2 eta_s lam s`` and
    ``lam = max(0, lam + eta_lam g)`` (differential multiplier method, Platt and Barr 1988). The
    correction is the descent step on ``lam g`` in ``H``; the authors' code applies ``A~`` where
    the derivation gives ``L``. With ``lam = 0`` and ``(1 + mu) eta = 1`` the layer is APPNP with
    teleport probability ``eta``.

    It has no weights. Put it behind a feature network::

        self.propagation = SmoothPropagation()
        ...
        return self.propagation(self.mlp(x), edge_index)

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

        Raises:
            InputError: For fewer than one step, or a step size or budget that is not positive.
        """
        if K < 1:
            raise InputError(f"K must be at least 1, not {K}")
        if not (eta > 0 and mu >= 0 and budget > 0):
            raise InputError(
                f"eta and budget must be positive and mu not negative: eta={eta}, mu={mu}, budget={budget}"
            )
        super().__init__(aggr="add")
        self.K = K
        self.mu = mu
        self.eta = eta
        self.add_self_loops = add_self_loops
        self.constraints = nn.ModuleList(
            SmoothnessConstraint(
                budget=budget, multiplier_lr=multiplier_lr, slack_lr=slack_lr, initial=initial
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
            rough = d - self.propagate(edge_index, x=d, edge_weight=weight)
            h = pulled + 2 * self.eta * constraint(d, edge_index, weight) * rough
        return h

    def message(self, x_j: Tensor, edge_weight: Tensor) -> Tensor:
        """``A~_ij x_j`` [E, F]."""
        return edge_weight.view(-1, 1) * x_j

    def __repr__(self) -> str:
        return f"{type(self).__name__}(K={self.K}, mu={self.mu}, eta={self.eta})"
