"""What an fx node stands for while a model is lowered.

A tensor that depends on the inputs is one of these values; everything else (numbers, parameters, what is
computed from parameters alone, tuples, dictionaries) is itself.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from gnnquant.integer_graph import ONE

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor
    from typing_extensions import Self

    from gnnquant.quantizers.modules import Quantizer


@dataclass(frozen=True)
class Size:
    """An integer of the index program: the size ``name`` plus ``offset``."""

    name: str
    offset: int = 0


@dataclass(frozen=True)
class Rows:
    """A float tensor: one row per element of a space, or a single row.

    Attributes:
        name: Its node in the row program.
        shape: Shape of a row.
        rows: Its space: the name of a size, or ``ONE``.
        axis: Where the rows stand among the tensor's axes; ``None`` exactly where ``rows`` is ``ONE``, and
            the tensor has the shape of the row.
        boolean: Whether it is a mask in the model: 0 and 1 here.
    """

    name: str
    shape: tuple[int, ...]
    rows: str = ONE
    axis: int | None = None
    boolean: bool = False

    @property
    def rank(self) -> int:
        """Number of the tensor's axes."""
        return len(self.shape) + (self.axis is not None)

    @property
    def sizes(self) -> tuple[int | Size, ...]:
        """Shape of the tensor."""
        if self.axis is None:
            return self.shape
        return (*self.shape[: self.axis], Size(self.rows), *self.shape[self.axis :])

    def at(self, axis: int | None) -> Self:
        """The same rows with their axis elsewhere among the tensor's axes."""
        return replace(self, axis=axis)


@dataclass(frozen=True)
class Codes(Rows):
    """Codes of a quantized tensor."""


@dataclass(frozen=True)
class Scale:
    """Scale of the quantized tensor ``name``."""

    name: str


@dataclass(frozen=True, eq=False)
class WeightCodes:
    """Codes of a quantized parameter, with what is needed to pack them, or to quantize it as rows.

    Attributes:
        codes: Centred codes.
        scale: Their scale.
        quantizer: Who made them.
        value: The parameter.
        site: Name of the site.
    """

    codes: Tensor
    scale: Tensor
    quantizer: Quantizer
    value: Tensor
    site: str


@dataclass(frozen=True, eq=False)
class WeightScale:
    """Scale of a quantized parameter."""

    of: WeightCodes


@dataclass(frozen=True, eq=False)
class Index:
    """An integer or bool tensor with one row per element of a space.

    ``edge_index`` is the one of row shape ``(2,)`` whose rows are its second axis.

    Attributes:
        parts: Names of index arrays, in the shape of a row.
        rows: Its space.
        axis: Where the rows stand among the tensor's axes.
        boolean: Whether it is a mask: arrays of 0 and 1.
    """

    parts: NDArray[np.object_]
    rows: str
    axis: int = 0
    boolean: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of a row."""
        return self.parts.shape

    @property
    def rank(self) -> int:
        """Number of the tensor's axes."""
        return self.parts.ndim + 1

    @property
    def sizes(self) -> tuple[int | Size, ...]:
        """Shape of the tensor."""
        return (*self.shape[: self.axis], Size(self.rows), *self.shape[self.axis :])

    @property
    def is_vector(self) -> bool:
        """Whether it has one entry per element of the space."""
        return self.parts.ndim == 0

    @property
    def name(self) -> str:
        """The array of a vector."""
        return str(self.parts.item())

    @property
    def is_edges(self) -> bool:
        """Whether it has the form [2, E] of an edge list."""
        return self.parts.shape == (2,) and self.axis == 1

    @property
    def ends(self) -> tuple[str, str]:
        """Arrays of the sources and of the destinations of an edge list."""
        return str(self.parts[0]), str(self.parts[1])


@dataclass(frozen=True, eq=False)
class Adjacency:
    """A sparse matrix [destinations, sources]: its entries as edges, and their values.

    Attributes:
        edges: Sources (columns) and destinations (rows).
        weight: Value of every entry.
        extents: Number of destinations and of sources.
    """

    edges: Index
    weight: Rows
    extents: tuple[Size, Size]


def depends_on_inputs(value: Any) -> bool:
    """Whether a leaf of nested arguments is known only when the model runs."""
    return isinstance(value, (Rows, Index, Size, Adjacency, Scale, WeightCodes, WeightScale))
