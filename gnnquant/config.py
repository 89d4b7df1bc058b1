"""What to quantize, and how: one specification per kind of site, refined per site name."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

SITE_KINDS = ("input", "weight", "message", "aggregate", "update", "output", "skip")
"""Kinds of sites.

``input``: operand of a linear layer, or factor of a product of computed values (attention scores), that
comes from the model's inputs or from another linear layer;
``weight``: weight of a linear layer, also one that is computed from parameters; ``message``: what is
gathered along edges, quantized by node before the gather where it is a copy of the node, else by edge;
``aggregate``: an aggregate that feeds a linear layer of its own convolution, or one moved behind its sum;
``update``: the result of a convolution, with bias, norm and activation, that feeds a linear layer;
``output``: what the model returns (off unless asked for); ``skip``: a value kept for a later
addition or concatenation (residual, teleport), 8 bits unless asked otherwise.
"""
BIT_WIDTHS = (2, 4, 8)
FLOAT_BITS = 32
"""Width of a model that is traced but not quantized."""

GRANULARITIES = ("row", "tensor", "column")


@dataclass(frozen=True)
class QuantSpec:
    """How one site is quantized. ``None`` inherits from the kind, then from the defaults.

    Attributes:
        bits: 2, 4 or 8.
        granularity: ``"row"`` (one scale per node, a learned factor times the row's largest
            magnitude), ``"tensor"`` (one learned scale) or, for weights only, ``"column"`` (one
            learned scale per output channel). Rows of one number always have ``"tensor"``: a scale of
            its own would be the number itself.
        enabled: ``False`` leaves the site in float32.
    """

    bits: int | None = None
    granularity: str | None = None
    enabled: bool | None = None

    def __post_init__(self) -> None:
        """Validate the fields.

        Raises:
            ValueError: For a width or a granularity that does not exist.
        """
        if self.bits is not None and self.bits not in BIT_WIDTHS:
            raise ValueError(f"bits must be one of {BIT_WIDTHS}, not {self.bits!r}")
        if self.granularity is not None and self.granularity not in GRANULARITIES:
            raise ValueError(f"granularity must be one of {GRANULARITIES}, not {self.granularity!r}")

    def updated(self, other: QuantSpec) -> QuantSpec:
        """This specification with the fields that ``other`` sets."""
        changes = {
            item.name: getattr(other, item.name)
            for item in fields(other)
            if getattr(other, item.name) is not None
        }
        return replace(self, **changes)


@dataclass(frozen=True)
class QuantConfig:
    """Specifications per kind of site and per site name.

    Example::

        QuantConfig(
            activations=QuantSpec(granularity="tensor"),
            message=QuantSpec(bits=4),
            output=QuantSpec(enabled=True),
            sites={"convs.0.*": QuantSpec(bits=8)},
        )

    Attributes:
        activations: Specification for all kinds but ``weight``; a kind's own wins over it, and outputs are
            quantized only where their own says so.
        input: Specification for this kind, and likewise ``weight`` ... ``skip``: see
            ``SITE_KINDS``.
        sites: Glob over site names (``"convs.0.message"``) -> specification; later entries win.
    """

    activations: QuantSpec = field(default_factory=QuantSpec)
    input: QuantSpec = field(default_factory=QuantSpec)
    weight: QuantSpec = field(default_factory=QuantSpec)
    message: QuantSpec = field(default_factory=QuantSpec)
    aggregate: QuantSpec = field(default_factory=QuantSpec)
    update: QuantSpec = field(default_factory=QuantSpec)
    output: QuantSpec = field(default_factory=QuantSpec)
    skip: QuantSpec = field(default_factory=QuantSpec)
    sites: Mapping[str, QuantSpec] = field(default_factory=dict)

    def resolve(self, site: str, kind: str, bits: int) -> QuantSpec:
        """The complete specification of one site.

        Args:
            site: Name of the site.
            kind: One of ``SITE_KINDS``.
            bits: Default bit width, from ``convert(bits=...)``.

        Raises:
            ValueError: If a weight is asked to have row scales, or something else column scales.
        """
        spec = QuantSpec(
            bits=8 if kind == "skip" else bits,
            granularity="column" if kind == "weight" else "row",
            enabled=kind != "output",
        )
        if kind != "weight":
            spec = spec.updated(self.activations)
        if kind == "output":
            spec = replace(spec, enabled=False)
        spec = spec.updated(getattr(self, kind))
        for pattern, override in self.sites.items():
            if fnmatchcase(site, pattern):
                spec = spec.updated(override)
        wrong = "row" if kind == "weight" else "column"
        if spec.granularity == wrong:
            raise ValueError(f"site {site!r} is of kind {kind!r}: granularity {wrong!r} is not for it")
        return spec
