"""How far quantized propagation is from exact propagation after k steps, and a bound on it.

Let ``e_k`` be the difference between the features after k quantized steps and those after k exact steps
of the same weights, and ``delta_k`` all that rounding in step k can add to it. A step is linear, with a
matrix ``M`` that is a polynomial of ``A~``, so that::

    |e_k+1| <= |M| |e_k| + delta_k          (Frobenius norm; |M| the spectral norm)

``A~`` is symmetric with eigenvalues a in [-1, 1], hence ``|M|`` is the largest magnitude of a polynomial
of degree two on [-1, 1], and is found at its ends or its vertex:

- plain propagation, ``M = A~``: ``|M| = 1``, so ``|e_k| <= |e_0| + delta_0 + ... + delta_k-1``, which
  may grow with every step;
- APPNP with teleport eta, ``M = (1 - eta) A~``: ``|M| = 1 - eta``, so ``|e_k| <= (1 - eta)^k |e_0| +
  max(delta) / eta`` for every k: the sum of a geometric series;
- SMP with ``update="descent"``: the same, see ``SmoothPropagation``; with the other updates ``|M|``
  may exceed 1.

``delta_k`` follows from the scales: a value x on a grid with scale s and codes lo .. hi moves by at most
``max(s / 2, x - hi s, lo s - x)``, half a step or what is clipped. Of each row the largest of these
counts for its F values; the root of the sum of squares is the norm, times that of the operator through
which the step passes the value on. An edge weight times a scale is rounded to 8 bits: row i of the sum
moves by at most ``max_j |w_ij s_j| / (2 * 127) * sum_j |c_j|``, with c_j the codes of node j.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch_geometric.nn import APPNP
from torch_geometric.nn.conv.gcn_conv import gcn_norm

from gnnquant import SmoothPropagation
from gnnquant.integer_graph import EDGE_LEVELS
from gnnquant.quantizers.calibration import quantizers_of
from gnnquant.quantizers.functional import code_range
from gnnquant.smoothness import SmoothnessConstraint

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch_geometric.data import Data

    from gnnquant.converter import QuantizedModule
    from gnnquant.quantizers.modules import Quantized, Quantizer

SLACK = 1e-5
"""Of the bound, for float32 arithmetic, which is not exact either."""


@dataclass(frozen=True)
class Step:
    """One step of propagation, on an eigenvector of ``A~`` with eigenvalue a.

    ``pulled = (keep + pull a) h + teleport h_0``, then ``h + (u + v a) (pulled - h)``.

    Attributes:
        keep: Coefficient of the features.
        pull: Coefficient of ``A~`` times the features.
        teleport: Coefficient of the input.
        u: Constant part of the correction's factor, 1 without a correction.
        v: Linear part of it.
    """

    keep: float
    pull: float
    teleport: float
    u: float = 1.0
    v: float = 0.0

    @property
    def norm(self) -> float:
        """``max |1 + (u + v a) (keep + pull a - 1)|`` over a in [-1, 1]."""
        still = self.keep - 1
        square, linear, constant = self.v * self.pull, self.u * self.pull + self.v * still, 1 + self.u * still
        at = [-1.0, 1.0]
        if square:
            at.append(min(max(-linear / (2 * square), -1.0), 1.0))
        return max(abs(square * a * a + linear * a + constant) for a in at)

    @property
    def correction(self) -> float:
        """``max |u + v a|``: the norm of what the step makes of an error in ``pulled``."""
        return max(abs(self.u + self.v), abs(self.u - self.v))


def steps_of(propagation: nn.Module) -> list[Step]:
    """The steps of a propagation layer, with the multipliers as they are.

    Raises:
        TypeError: For another layer.
    """
    if isinstance(propagation, APPNP):
        return [Step(0.0, 1 - propagation.alpha, propagation.alpha)] * propagation.K
    if not isinstance(propagation, SmoothPropagation):
        raise TypeError(f"{type(propagation).__name__} is not a propagation layer known here")
    eta, mu = propagation.eta, propagation.mu
    steps = []
    for constraint in propagation.constraints:
        assert isinstance(constraint, SmoothnessConstraint)
        c = float(constraint.correction * constraint.multiplier)
        u, v = (1.0, c) if propagation.update_form == "adjacency" else (1 + c, -c)
        steps.append(Step(1 - (1 + mu) * eta, mu * eta, eta, u, v))
    return steps


@dataclass
class _Seen:
    """What the quantizers of one forward pass saw.

    Attributes:
        kinds: ``"message"`` or ``"skip"``, in the order of the calls.
        values: What was quantized [N, F].
        deltas: Bounds on the norm of the rounding errors.
    """

    kinds: list[str] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)
    deltas: list[float] = field(default_factory=list)


def relative_errors(q: QuantizedModule, propagation: nn.Module, data: Data) -> dict[str, list[float]]:
    """The error of a converted model after each step of its propagation, in eval mode.

    Args:
        q: A converted and calibrated model that ends with a propagation layer.
        propagation: That layer, as it was before the conversion, with the multipliers of ``q``.
        data: A graph with ``x`` and ``edge_index``; undirected.

    Returns:
        ``measured`` and ``bound``: |e_k| / |H_k| for k = 0 .. K, where ``e_0`` is measured, and is
        what the quantized feature network adds.
    """
    steps = steps_of(propagation)
    weighted = gcn_norm(data.edge_index, None, data.num_nodes, dtype=data.x.dtype)
    exact, exact_scores = _observe(q, data, weighted, bypassed=True)
    seen, scores = _observe(q, data, weighted, bypassed=False)
    per_step = seen.kinds.count("message") // len(steps)
    expected = [*_features(exact, per_step), exact_scores]
    found = [*_features(seen, per_step), scores]
    error = float((found[0] - expected[0]).norm())
    bounds = [error]
    for step, (own, teleport) in zip(steps, _added(seen, steps, per_step), strict=True):
        error = step.norm * error + own + step.correction * step.teleport * teleport
        bounds.append(error * (1 + SLACK))
    norms = [float(value.norm()) for value in expected]
    return {
        "measured": [float((a - b).norm()) / n for a, b, n in zip(found, expected, norms, strict=True)],
        "bound": [bound / n for bound, n in zip(bounds, norms, strict=True)],
    }


def _observe(
    q: QuantizedModule, data: Data, weighted: tuple[Tensor, Tensor], *, bypassed: bool
) -> tuple[_Seen, Tensor]:
    """Run ``q`` once, exact or quantized."""
    seen = _Seen()

    def look(kind: str) -> Any:
        def hook(quantizer: Quantizer, inputs: tuple[Tensor], output: Quantized) -> None:
            seen.kinds.append(kind)
            seen.values.append(inputs[0])
            delta = 0.0 if bypassed else _rounding(quantizer, inputs[0], output)
            if kind == "message" and not bypassed:
                delta += _edge_rounding(output, *weighted)
            seen.deltas.append(delta)

        return hook

    hooks = [
        q.get_submodule(site.quantizer).register_forward_hook(look(site.kind))
        for site in q.sites.values()
        if site.kind in ("message", "skip")
    ]
    quantizers = quantizers_of(q).values()
    for quantizer in quantizers:
        quantizer.bypassed = bypassed
    try:
        with torch.no_grad():
            scores: Tensor = q.eval()(data.x, data.edge_index)
    finally:
        for quantizer in quantizers:
            quantizer.bypassed = False
        for handle in hooks:
            handle.remove()
    return seen, scores


def _features(seen: _Seen, per_step: int) -> list[Tensor]:
    """``H_0 .. H_K-1``: of each step, what the first message is made of."""
    messages = [value for kind, value in zip(seen.kinds, seen.values, strict=True) if kind == "message"]
    return messages[::per_step]


def _added(seen: _Seen, steps: list[Step], per_step: int) -> list[tuple[float, float]]:
    """For every step, what its own roundings add at most, and the rounding of ``H_0`` for the teleport."""
    own = [0.0] * len(steps)
    of_features = {id(value): k for k, value in enumerate(_features(seen, per_step))}
    teleport, messages = 0.0, 0
    for kind, value, delta in zip(seen.kinds, seen.values, seen.deltas, strict=True):
        if kind == "message":
            k, position = divmod(messages, per_step)
            messages += 1
            # The first message is pulled, and corrected; the second is that of the correction.
            through = steps[k].pull * steps[k].correction if position == 0 else abs(steps[k].v)
            own[k] += through * delta
            continue
        k = of_features.get(id(value), (messages - 1) // per_step)
        if k < 0:
            continue  # of the feature network: part of e_0
        if k == 0 and id(value) in of_features:
            teleport = delta
        # A skip is added to the result, or (that of H_k) goes through the correction alone.
        own[k] += max(1.0, 2 * abs(steps[k].v)) * delta
    if per_step == 1:
        own[0] -= teleport  # without a correction, H_0 is kept for the teleport alone
    return [(value, teleport) for value in own]


def _rounding(quantizer: Quantizer, value: Tensor, output: Quantized) -> float:
    """The norm that the rounding errors of a value [N, F] have at most."""
    low, high = code_range(quantizer.bits, int(quantizer.zero2))
    assert output.scale is not None
    scale = output.scale.reshape(-1, 1).double().expand(value.size(0), 1)
    value = value.double()
    above = value.amax(dim=1, keepdim=True) - high * scale
    below = low * scale - value.amin(dim=1, keepdim=True)
    largest = torch.maximum(torch.maximum(above, below), scale / 2)
    return float(largest.norm()) * math.sqrt(value.size(1))


def _edge_rounding(message: Quantized, edge_index: Tensor, weight: Tensor) -> float:
    """The norm that 8-bit edge weights add to the sums at most."""
    assert message.scale is not None
    source, target = edge_index
    nodes = message.codes.size(0)
    scaled = weight.double().abs() * message.scale.reshape(-1).double().expand(nodes)[source]
    largest = scaled.new_zeros(nodes).scatter_reduce(0, target, scaled, "amax")
    sums = scaled.new_zeros(nodes).index_add(0, target, message.codes.double().norm(dim=1)[source])
    return float((largest * sums).norm()) / (2 * EDGE_LEVELS)
