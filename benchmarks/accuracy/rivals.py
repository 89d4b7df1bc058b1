"""Other methods' quantizers in our models: the same sites, widths, integer operations and fine-tuning.

``install(q, name)`` replaces every quantizer of a converted model. What a rival shares with ours is the
harness (Adam, teacher, selection by validation, edge weights in 8 bits, values kept for a skip in 8 bits);
what is its own is how a value is rounded and where the range comes from. All scales are per tensor, of
weights too, as these methods have them.

Every rival's codes are integers with ``codes * scale`` the quantized value: ``u - zero`` for unsigned codes
``u`` and an integer zero point, so that 0 has an exact code. The two that do not give it one are named
"...-code": they are as their authors' code is.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from gnnquant.config import BIT_WIDTHS, QuantSpec
from gnnquant.quantizers import Quantized, Quantizer
from gnnquant.quantizers.calibration import quantizers_of
from gnnquant.quantizers.functional import centred_codes, widened
from gnnquant.quantizers.sparse import SparseCodes

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gnnquant.converter import QuantizedModule

EPSILON = torch.finfo(torch.float32).eps
"""Smallest step of an affine grid, as in Degree-Quant's code and the paper's."""
MOMENTUM = 0.01
"""Of moving minima and maxima: the default of Degree-Quant's code and of PyTorch's observers."""
SAMPLED = 2**18
"""Percentiles of larger tensors are those of so many elements drawn at random."""
CODE_POINTS = 85
"""Distance of the four codes 0, 85, 170, 255 of bitwise truncation."""
SHIFT = 21
"""Quarter of that distance: how far one unit of skewness moves the thresholds of BT*."""
TOLERANCE = 1e-4
"""Of a comparison of levels with the range, in steps: the end of the range is a level but for rounding."""


def install(q: QuantizedModule, name: str, **options: Any) -> QuantizedModule:
    """Replace every quantizer of ``q`` in place by the rival's, of the same width.

    Ranges are unset afterwards, those of weights too: ``gnnquant.finetune`` and ``gnnquant.calibrate``
    choose them. Models with rivals train, copy and keep their state like others; they do not compile.

    Args:
        q: What ``gnnquant.convert`` returned, at 8, 4 or 2 bits.
        name: A key of ``RIVALS``.
        options: Keyword arguments of the rival's class, for example ``momentum=0.1``; of ``"degree-quant"``
            also ``lowest`` and ``highest``, the bounds of the probability of protection (0 and 0.1).

    Returns:
        ``q``.

    Raises:
        ValueError: For an unknown name, a model that has no quantizer or another rival's, a width that
            the rival is not for, or one without the inputs that the rival needs.
    """
    if name not in QUANTIZERS:
        raise ValueError(f"no rival is called {name!r}: there are {', '.join(QUANTIZERS)}")
    rival = QUANTIZERS[name]
    replaced = quantizers_of(q)
    if not replaced or any(isinstance(quantizer, RivalQuantizer) for quantizer in replaced.values()):
        raise ValueError("install takes a model as gnnquant.convert returns it, with its quantizers")
    if q.bits not in rival.widths:
        raise ValueError(f"{name} is for {rival.widths} bits, not {q.bits}")
    kinds = {site.quantizer: site.kind for site in q.sites.values()}
    options = rival.arguments(q, options)
    made = {path: rival(old, kinds[path], **options) for path, old in replaced.items()}
    for path, new in made.items():
        parent, _, child = path.rpartition(".")
        old = replaced[path]
        setattr(q.get_submodule(parent), child, new.to(old.log_scale.device).train(old.training))
    protection = options.get("protection")
    if protection is not None:
        q.register_forward_pre_hook(protection, with_kwargs=True)
    for site in list(q.sites.values()):
        q.sites[site.name] = dataclasses.replace(site, granularity="tensor")
    return q


class RivalQuantizer(Quantizer):
    """A quantizer with one scale per tensor and a rule of its own.

    Args:
        replaced: Whose place it takes.
        kind: Kind of its site.

    Attributes:
        kind: Kind of its site.
        step: What one code stands for, a scalar buffer.
    """

    widths: ClassVar[tuple[int, ...]] = BIT_WIDTHS
    """Widths of models that the rival is for."""
    exact_zero: ClassVar[bool] = True
    """Whether 0 is always one of the levels."""

    step: Tensor

    def __init__(self, replaced: Quantizer, kind: str) -> None:
        super().__init__(QuantSpec(replaced.bits, "tensor"), row_axis=replaced.row_axis)
        self.kind = kind
        self.register_buffer("step", torch.ones(()))
        self.log_scale.requires_grad_(False)
        self._scales_by_row = replaced.granularity == "row"
        self._observing = False
        self._restarted = False
        self._finite = True

    @classmethod
    def arguments(cls, q: QuantizedModule, options: Mapping[str, Any]) -> dict[str, Any]:
        """What every quantizer of ``q`` is made with, from the options of ``install``."""
        del q
        return dict(options)

    def forward(self, value: Tensor) -> Quantized:
        """Quantize ``value``, following its range first in calibration and in training."""
        if self.bypassed:
            return Quantized(value, None)
        wide = widened(value)
        watching = not self._paused if self._observing else self.training
        if watching and wide.numel():
            self._follow(wide.detach())
        codes, scale = self._quantize(wide)
        if self._scales_by_row:
            # The graph gathers scales along with rows: it wants one of every row.
            shape = [1] * value.dim()
            shape[self.row_axis] = value.size(self.row_axis)
            scale = scale.expand(shape)
        codes = codes.to(value.dtype)
        pattern = self.sparse_pattern(value) if self.exact_zero else None
        if pattern is not None:
            sparse: Any = SparseCodes(pattern, codes[pattern.row, pattern.column])
            return Quantized(sparse, scale)
        return Quantized(codes, scale)

    def learned_scale(self) -> Tensor:
        """The step, for ``print(q)``."""
        return self.step

    def cover_all(self) -> bool:
        """There is no range without data."""
        return False

    def start_observing(self) -> None:
        """Begin a calibration: forget what was seen before."""
        self._observing, self._restarted, self._finite = True, True, True

    def stop_observing(self) -> bool:
        """End a calibration; returns whether everything that was seen was finite."""
        self._observing = False
        return self._finite

    @torch.no_grad()
    def _follow(self, value: Tensor) -> None:
        if self._observing and not bool(torch.isfinite(value).all()):
            self._finite = False
            return
        first = self._restarted or not bool(self.calibrated)
        self._restarted = False
        self._see(value, first)
        self.calibrated.fill_(True)

    def _see(self, value: Tensor, first: bool) -> None:
        """Update the range: ``first`` after the start of a calibration, or of everything."""
        raise NotImplementedError

    def _quantize(self, value: Tensor) -> tuple[Tensor, Tensor]:
        """Centred codes in the shape of ``value`` and their scale, a scalar."""
        raise NotImplementedError


class MinMax(RivalQuantizer):
    """Plain quantization-aware training: ranges are moving averages of minima and maxima.

    Source: Jacob et al., CVPR 2018, as PyTorch's ``FakeQuantize`` with ``MovingAverageMinMaxObserver`` and
    Degree-Quant's baseline "momentum" have it: the range ``[min, max]`` widened to hold 0, step
    ``(max - min) / (2^b - 1)``, zero point ``round(-min / step)``; in every training step the range moves by
    ``momentum`` towards the tensor's. Gradients pass straight through inside of the grid and are 0 outside.

    Different from Degree-Quant's baseline ("STE-MOM"), whose gradient passes outside of the grid too.

    Args:
        replaced: Whose place it takes.
        kind: Kind of its site.
        momentum: Of the moving averages.

    Attributes:
        low: Lower end of the range, a scalar buffer; ``high`` likewise.
    """

    low: Tensor
    high: Tensor

    def __init__(self, replaced: Quantizer, kind: str, momentum: float = MOMENTUM) -> None:
        super().__init__(replaced, kind)
        self.momentum = momentum
        self.register_buffer("low", torch.zeros(()))
        self.register_buffer("high", torch.zeros(()))

    def _see(self, value: Tensor, first: bool) -> None:
        low, high = torch.aminmax(value)
        weight = 1.0 if first else self.momentum
        self._set_range(
            torch.lerp(self.low, low.float(), weight), torch.lerp(self.high, high.float(), weight)
        )

    def _set_range(self, low: Tensor, high: Tensor) -> None:
        self.low.copy_(low)
        self.high.copy_(high)
        step, zero = affine_grid(float(low), float(high), self.bits)
        self.step.fill_(step)
        self.zero2.fill_(2 * zero)

    def _quantize(self, value: Tensor) -> tuple[Tensor, Tensor]:
        scale = self.step.to(value.dtype)
        return centred_codes(value, scale, self.bits, int(self.zero2)), scale


class StepSize(RivalQuantizer):
    """LSQ: the step is learned.

    Source: Esser et al., "Learned Step Size Quantization", ICLR 2020. Grid ``-2^(b-1) .. 2^(b-1) - 1`` for
    weights and for data that is negative somewhere, ``0 .. 2^b - 1`` else; step at first
    ``2 mean|v| / sqrt(Qp)``, with Qp the highest code; gradient of the step ``round(v/s) - v/s`` inside of
    the grid and its end outside, times ``1 / sqrt(n Qp)``: n is the number of weights, or of features of
    a row.

    Different from the paper: the step is trained through its logarithm, since Adam, unlike the paper's SGD,
    would change every step by the same absolute amount, however small the step. Adam also undoes the
    factor of the gradient, all but the rounding. First and last layer have the width of the others.

    The first step is made for dense data: of bag-of-words features, nearly all 0, it covers a tenth of the
    range, and 200 small steps do not mend that. ``SearchedStepSize`` is LSQ without this weakness.
    """

    total: Tensor
    count: Tensor
    negative: Tensor

    def __init__(self, replaced: Quantizer, kind: str) -> None:
        super().__init__(replaced, kind)
        self.log_scale.requires_grad_(replaced.log_scale.requires_grad)
        for name, start in (("total", 0.0), ("count", 0.0), ("negative", False)):
            self.register_buffer(name, torch.tensor(start), persistent=False)

    def learned_scale(self) -> Tensor:
        """The step."""
        return self.log_scale.exp()

    def _see(self, value: Tensor, first: bool) -> None:
        if not (first or self._observing):
            return
        if first:
            self.total.zero_()
            self.count.zero_()
            self.negative.fill_(self.kind == "weight")
        self.negative |= (value < 0).any()
        self.zero2.fill_(2**self.bits if bool(self.negative) else 0)
        self.log_scale.copy_(self._first_step(value, first).clamp(min=1e-12).log())

    def _first_step(self, value: Tensor, first: bool) -> Tensor:
        """The step to begin with after ``value``, a scalar; ``first`` of a calibration."""
        del first
        self.total += value.abs().sum()
        self.count += value.numel()
        return 2 * self.total / self.count / self._highest() ** 0.5

    def _highest(self) -> int:
        return 2**self.bits - 1 - int(self.zero2) // 2

    def _quantize(self, value: Tensor) -> tuple[Tensor, Tensor]:
        rows = 1 if self.kind == "weight" else max(value.size(self.row_axis), 1)
        factor = (max(value.numel() // rows, 1) * self._highest()) ** -0.5
        step = self.learned_scale().to(value.dtype)
        step = step.detach() + factor * (step - step.detach())
        return centred_codes(value, step, self.bits, int(self.zero2)), step


class SearchedStepSize(StepSize):
    """LSQ whose first step is the one of least squared error.

    Source: as ``StepSize``; the initialisation is that of activations in LSQ+ (Bhalgat et al., CVPR workshops
    2020), searched among twentieths of the step that reaches to the largest magnitude. Without LSQ+'s learned
    offset, since 0 must keep an exact code.
    """

    _FRACTIONS = tuple(i / 20 for i in range(1, 21))

    def __init__(self, replaced: Quantizer, kind: str) -> None:
        super().__init__(replaced, kind)
        self._errors: dict[float, float] = {}
        self._grid_of_errors = -1

    def _first_step(self, value: Tensor, first: bool) -> Tensor:
        grid = int(self.zero2)
        if first or grid != self._grid_of_errors:
            # Errors of another grid tell nothing of this one.
            largest = float(value.abs().max()) / self._highest()
            self._errors = dict.fromkeys((fraction * largest for fraction in self._FRACTIONS), 0.0)
            self._grid_of_errors = grid
        for step in self._errors:
            scale = value.new_tensor(step)
            error = centred_codes(value, scale, self.bits, grid) * scale - value
            self._errors[step] += float(error.square().sum())
        return value.new_tensor(min(self._errors, key=self._errors.__getitem__))


class DegreeQuant(MinMax):
    """Degree-Quant: ranges without their tails, and nodes of high degree protected at random in training.

    Source: Tailor, Fernandez-Marques, Lane, ICLR 2021, and the authors' repository (the setting "GC-PER",
    which is the one they run with protection). Ranges reach from the percentile ``tail`` to ``1 - tail`` of
    the values and only grow in training. In training a node is protected with the probability
    ``lowest + (highest - lowest) * (nodes of no higher in-degree) / (all nodes)``, and its rows pass
    unquantized, nor do they move the ranges; at inference everything is quantized. The codes of protected
    rows are ``value / scale``, which the operations on codes multiply back.

    As the authors' scripts: ``tail`` 0.1 % at 8 bits, 1 % at the lowest width, ``highest - lowest`` 0.1. One
    mask holds for the whole forward pass, as in their GIN.

    Different from their code: at 4 bits ``tail`` is 0.1 % (there 1 %, on Reddit-Binary; on Cora with a GCN
    and seed 0 validation prefers 0.1 % at 4 bits and 1 % at 2), and ``lowest`` is 0 (there 0.1). Gradients
    vanish outside of the grid only (there also at its two ends, which at INT2 is half of all codes). Values
    with a row per edge are never protected (there, with their source). Degrees are ranked in the batch, not
    in each graph.

    Args:
        replaced: Whose place it takes.
        kind: Kind of its site.
        protection: Which nodes are protected, shared by all quantizers of a model.
        tail: Fraction of the values below the range, and above; ``None``: by width, see above.
    """

    def __init__(
        self, replaced: Quantizer, kind: str, protection: NodeProtection, tail: float | None = None
    ) -> None:
        super().__init__(replaced, kind)
        self.tail = (0.01 if self.bits == 2 else 0.001) if tail is None else tail
        self.protection = protection

    @classmethod
    def arguments(cls, q: QuantizedModule, options: Mapping[str, Any]) -> dict[str, Any]:
        """One protection for all quantizers, which ``install`` lets the model draw before it runs.

        Raises:
            ValueError: If the model has no inputs ``x`` and ``edge_index``.
        """
        kept = dict(options)
        inputs = [node.target for node in q.graph.nodes if node.op == "placeholder"]
        bounds = [kept.pop(name, default) for name, default in (("lowest", 0.0), ("highest", 0.1))]
        return {**kept, "protection": NodeProtection(inputs, *bounds)}

    def _see(self, value: Tensor, first: bool) -> None:
        mask = self._protected(value)
        if mask is not None:
            value = value.movedim(self.row_axis, 0)[~mask]
        if value.numel() == 0:
            return
        low, high = (end.float() for end in inner_range(value, self.tail))
        if not first:
            low, high = torch.minimum(low, self.low), torch.maximum(high, self.high)
        self._set_range(low, high)

    def _quantize(self, value: Tensor) -> tuple[Tensor, Tensor]:
        codes, scale = super()._quantize(value)
        mask = self._protected(value)
        if mask is not None:
            shape = [1] * value.dim()
            shape[self.row_axis] = -1
            codes = torch.where(mask.view(shape), value / scale, codes)
        return codes, scale

    def _protected(self, value: Tensor) -> Tensor | None:
        """Which rows of ``value`` are protected, bool [N]; ``None`` for none."""
        mask = self.protection.mask
        if mask is None or not self.training or self.kind == "weight":
            return None
        return mask if value.size(self.row_axis) == mask.numel() else None


class NodeProtection:
    """Draws protected nodes in train mode; a forward hook of the model.

    Args:
        inputs: Names of the model's inputs in order; ``x`` and ``edge_index`` must be among them.
        lowest: Probability of a node of the lowest rank (exclusive).
        highest: Probability of the nodes of the highest in-degree.

    Attributes:
        mask: bool [N] of the forward pass in progress; ``None`` in eval mode.

    Raises:
        ValueError: If ``x`` or ``edge_index`` is missing.
    """

    def __init__(self, inputs: list[str], lowest: float, highest: float) -> None:
        missing = {"x", "edge_index"}.difference(inputs)
        if missing:
            raise ValueError(f"nodes are ranked by in-degree, and the model has no {' or '.join(missing)}")
        self.inputs = inputs
        self.lowest = lowest
        self.highest = highest
        self.mask: Tensor | None = None

    def __call__(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Draw a mask; called by torch before ``model`` runs."""
        self.mask = None
        if model.training:
            given = {**dict(zip(self.inputs, args, strict=False)), **kwargs}
            probability = self.probability(given["edge_index"], given["x"].size(0))
            self.mask = torch.bernoulli(probability).bool()

    def probability(self, edge_index: Tensor, num_nodes: int) -> Tensor:
        """Probability of protection of every node, float32 [N]; equal in-degrees have equal ones."""
        degree = torch.bincount(edge_index[1], minlength=num_nodes)
        up_to = torch.bincount(degree).cumsum(0)
        return self.lowest + (self.highest - self.lowest) * up_to[degree].float() / num_nodes


class ScaledRange(RivalQuantizer):
    """QLR: the range is a fraction alpha of the tensor's own, ``[alpha min, alpha max]`` widened to hold 0.

    Source: Wang et al., CIKM 2023 (method.md, "QLR"), and its reference code for what the paper does not
    say: alpha is, among 0.1, 0.2 ... 1 at 2 bits and 0.02, 0.04 ... 1 else, the one of least mean absolute
    error, plus 0.1 where it is below ``smallest``; minimum and maximum are those of the tensor itself in the
    latest training step.

    Args:
        replaced: Whose place it takes.
        kind: Kind of its site.

    Attributes:
        low: Minimum, a scalar buffer; ``high`` the maximum.
        skewness: Of what was seen in calibration, a scalar buffer.
        log_scale: Logarithm of alpha.
    """

    learns: ClassVar[bool] = False
    """Whether alpha is trained."""
    smallest: ClassVar[float] = 0.1
    """Alpha is raised by 0.1 where the search ends below."""
    truncates: ClassVar[bool] = False
    """Whether 2-bit codes are 8-bit codes truncated."""

    low: Tensor
    high: Tensor
    skewness: Tensor

    def __init__(self, replaced: Quantizer, kind: str) -> None:
        super().__init__(replaced, kind)
        self.log_scale.requires_grad_(self.learns and replaced.log_scale.requires_grad)
        for name in ("low", "high", "skewness"):
            self.register_buffer(name, torch.zeros(()))
        self._errors = torch.zeros(0)
        self._batches = 0

    def _see(self, value: Tensor, first: bool) -> None:
        low, high = torch.aminmax(value)
        self.low.copy_(low)
        self.high.copy_(high)
        if first:
            self._errors, self._batches = torch.zeros(10 if self.bits == 2 else 50), 0
            self.skewness.zero_()
        if first or self._observing:
            self._batches += 1
            self.skewness += (skewness(value) - self.skewness) / self._batches
            candidates = torch.linspace(0, 1, len(self._errors) + 1)[1:].tolist()
            self._errors += torch.tensor([self._error(value, alpha) for alpha in candidates])
            alpha = candidates[int(self._errors.argmin())]
            # Alpha is a multiple of 0.1 or of 0.02; float32 has it a little off.
            alpha = alpha + 0.1 if alpha < self.smallest - 1e-6 else alpha
            self.log_scale.fill_(alpha).log_()
        self._grid(float(self.log_scale.exp()))

    def _error(self, value: Tensor, alpha: float) -> float:
        step, zero = self._grid(alpha)
        return float((self._codes(value, step, zero) * step - value).abs().mean())

    def _grid(self, alpha: float) -> tuple[float, int]:
        """Step and zero point of codes, which are also noted for ``print(q)``."""
        step, zero = affine_grid(alpha * float(self.low), alpha * float(self.high), self._code_bits())
        zero = self._placed(zero)
        spacing = CODE_POINTS if self._truncated() else 1
        self.step.fill_(step * spacing)
        self.zero2.fill_(round(2 * zero / spacing))
        return step, zero

    def _truncated(self) -> bool:
        return self.truncates and self.bits == 2

    def _code_bits(self) -> int:
        return 8 if self._truncated() else self.bits

    def _placed(self, zero: int) -> int:
        """The zero point that is used for the one that ``affine_grid`` found."""
        return zero

    def _shift(self) -> int:
        """What is added to 8-bit codes before truncation."""
        return 0

    def _codes(self, value: Tensor, step: float, zero: int) -> Tensor:
        """Centred codes, without a gradient."""
        codes = value * (1 / step)
        codes = codes.add_(zero).round_().clamp_(0, 2 ** self._code_bits() - 1)
        if self._truncated():
            codes = codes.add_(self._shift()).div_(CODE_POINTS).round_()
            codes = self._bounded(codes).mul_(CODE_POINTS)
        return codes.sub_(zero)

    def _bounded(self, codes: Tensor) -> Tensor:
        """Truncated codes in units of ``CODE_POINTS``, 0 to 3."""
        return codes.clamp_(0, 3)

    def _inside(self, value: Tensor, codes: Tensor, step: float, zero: int) -> Tensor:
        """Where gradients pass."""
        del codes
        t = value * (1 / step)
        return (t >= -zero) & (t <= 2 ** self._code_bits() - 1 - zero)

    def _quantize(self, value: Tensor) -> tuple[Tensor, Tensor]:
        fixed = self.log_scale.detach()
        step, zero = self._grid(float(fixed.exp()))
        # The factor is 1: it makes the derivative of the step by the logarithm of alpha the step.
        scale = step * (self.log_scale - fixed).exp().to(value.dtype)
        with torch.no_grad():
            codes = self._codes(value, step, zero)
        if not (value.requires_grad or scale.requires_grad):
            return codes, scale
        with torch.no_grad():
            inside = self._inside(value, codes, step, zero)
        through: Tensor = _StraightThrough.apply(value, scale, codes, inside)  # type: ignore[no-untyped-call]
        return through, scale


class _StraightThrough(torch.autograd.Function):
    """``codes``, with the gradient of ``value / scale`` where ``inside``."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, scale: Tensor, codes: Tensor, inside: Tensor) -> Tensor:
        ctx.save_for_backward(value, scale, inside)
        return codes.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        value, scale, inside = ctx.saved_tensors
        passed = gradients[0] * inside / scale
        of_scale = -(passed * value).sum() / scale if ctx.needs_input_grad[1] else None
        return passed, of_scale, None, None


class ReferenceRange(ScaledRange):
    """QLR as the reference code has it: alpha stays where it was initialised.

    Source: Wang et al., CIKM 2023, reference code. Its gradient of alpha is computed from the quantized
    output, where neither clipping nor the rounding residual can be seen, and is 0 but for rounding errors of
    float32; here it is exactly 0. For the same reason the gradient of the value is not stopped where the
    value is clipped, but where its level lies outside of ``[alpha min, alpha max]``: at the end of
    the grid that rounding the zero point pushed out of the range, and nowhere else.

    Different from the code: alpha is initialised by calibration in eval mode, not in the first training
    step; it is never initialised again (there, on CiteSeer, every 100 steps); a level at the very end of the
    range counts as inside (there, float32 decides).
    """

    def _inside(self, value: Tensor, codes: Tensor, step: float, zero: int) -> Tensor:
        del value, zero
        alpha = float(self.log_scale.exp())
        low, high = alpha * float(self.low) / step, alpha * float(self.high) / step
        return (codes >= low - TOLERANCE) & (codes <= high + TOLERANCE)


class Truncation(ScaledRange):
    """BT: 2-bit codes are 8-bit codes truncated to 0, 85, 170 and 255, as the paper words it.

    Source: Wang et al., CIKM 2023 (method.md, "BT and BT*"): 8-bit codes ``u`` of a learned range become
    ``round(u / 85) * 85``. Alpha is learned, with the gradient that follows from the rule: rounding residual
    inside of the grid, its end outside. To give 0 an exact code, the 8-bit zero point is moved to the nearest
    of 0, 85, 170 and 255. This makes the rule the affine 2-bit grid, for 85 is odd and no 8-bit code lies in
    the middle between two code points: what BT adds in the reference code is a zero point off the grid.

    Sites of a 2-bit model that have 8 bits (skips) are not truncated.
    """

    widths = (2,)
    learns = True
    truncates = True

    def _placed(self, zero: int) -> int:
        return CODE_POINTS * round(zero / CODE_POINTS) if self._truncated() else zero


class SkewedTruncation(Truncation):
    """BT*: bitwise truncation whose thresholds move with the skewness, as the paper words it.

    Source: Wang et al., CIKM 2023 (method.md, "BT and BT*"): ``round((u + shift) / 85) * 85``. The paper's
    shift is the rounded skewness itself, about a hundredth of the distance of code points, which no value
    notices; here one unit of the rounded skewness is a quarter of that distance, and the shift stays below
    half of it (at most 42), so that 0 keeps its exact code. A tail to the right lowers the thresholds: small
    values of a sparse tensor are told from 0. The skewness is estimated in calibration.
    """

    def _shift(self) -> int:
        half = CODE_POINTS // 2
        return max(-half, min(half, SHIFT * round(float(self.skewness))))


class ReferenceTruncation(ReferenceRange):
    """BT as the reference code has it.

    Source: Wang et al., CIKM 2023, reference code: as ``ReferenceRange`` with 8-bit codes, then
    ``round(u / 85) * 85``. The zero point is that of 8 bits and lies between code points: 0 has no exact
    code unless the data has one sign; a symmetric range gets four symmetric levels.
    """

    widths = (2,)
    truncates = True
    exact_zero = False


class ReferenceSkewedTruncation(ReferenceTruncation):
    """BT* as the reference code has it.

    Source: Wang et al., CIKM 2023, reference code: ``round((u + skewness) / 85) * 85`` with the rounded
    skewness, not clipped afterwards; alpha is raised by 0.1 where it is below 0.5.
    """

    smallest = 0.5

    def _shift(self) -> int:
        return round(float(self.skewness))

    def _bounded(self, codes: Tensor) -> Tensor:
        return codes


QUANTIZERS: dict[str, type[RivalQuantizer]] = {
    "minmax": MinMax,
    "lsq": StepSize,
    "lsq-search": SearchedStepSize,
    "degree-quant": DegreeQuant,
    "paper": ReferenceRange,
    "bt": Truncation,
    "bt-star": SkewedTruncation,
    "bt-code": ReferenceTruncation,
    "bt-star-code": ReferenceSkewedTruncation,
}
"""Name -> class; its docstring states the rule, its source and what differs from it."""
RIVALS: dict[str, tuple[int, ...]] = {name: rival.widths for name, rival in QUANTIZERS.items()}
"""Name -> widths of models that the rival is for."""


def affine_grid(low: float, high: float, bits: int) -> tuple[float, int]:
    """Step and zero point of the ``2^bits`` levels of ``[low, high]``, widened to hold 0.

    0 lies on the grid: ``zero`` is an integer from 0 to ``2^bits - 1``, and the unsigned code ``u`` stands
    for ``(u - zero) * step``. Rounding it may push one end of the grid out of the range, by half a step.
    """
    low, high = min(low, 0.0), max(high, 0.0)
    if low == high:
        return 1.0, 0
    top = 2**bits - 1
    step = max((high - low) / top, EPSILON)
    return step, min(max(round(-low / step), 0), top)


def inner_range(value: Tensor, tail: float) -> tuple[Tensor, Tensor]:
    """Smallest and largest value without the fraction ``tail`` at either end.

    Of tensors of more than ``SAMPLED`` elements a sample is taken, the same positions every time.
    """
    flat = value.flatten()
    if flat.numel() > SAMPLED:
        generator = torch.Generator().manual_seed(0)
        chosen = torch.randint(flat.numel(), (SAMPLED,), generator=generator)
        flat = flat[chosen.to(flat.device)]
    count = flat.numel()
    low = max(1, int(count * tail))
    high = max(1, int(count * (1 - tail)))
    return flat.kthvalue(low).values, flat.kthvalue(high).values


def skewness(value: Tensor) -> Tensor:
    """Third standardised moment of all elements (not corrected for bias), a scalar; 0 for a constant."""
    centred = value.double() - value.double().mean()
    variance = centred.square().mean()
    if float(variance) == 0:
        return torch.zeros((), device=value.device)
    return (centred.pow(3).mean() / variance**1.5).float()
