"""What an fx node stands for while a model is lowered."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from gnnquant.quantizers.modules import Quantizer


@dataclass(frozen=True)
class Rows:
    """A float value of the integer graph: one row per node, or per edge of graph ``rows``."""

    name: str
    shape: tuple[int, ...]
    rows: str = "node"


@dataclass(frozen=True)
class Codes:
    """Codes of a quantized value of the integer graph."""

    name: str
    shape: tuple[int, ...]
    rows: str = "node"


@dataclass(frozen=True)
class Scale:
    """Scale of the quantized value ``name``."""

    name: str


@dataclass(frozen=True)
class WeightCodes:
    """Codes of a quantized parameter, with what is needed to pack them."""

    codes: Tensor
    scale: Tensor
    quantizer: Quantizer


@dataclass(frozen=True)
class WeightScale:
    """Scale of a quantized parameter."""

    of: WeightCodes


@dataclass(frozen=True)
class EdgeIndex:
    """An ``edge_index`` input after changes to its self-loops."""

    input: str
    loops: str = "keep"


@dataclass(frozen=True)
class EdgeRow:
    """Sources (``row`` 0) or destinations (1) of an edge index."""

    edge_index: EdgeIndex
    row: int


@dataclass(frozen=True)
class Size:
    """A number that depends on the graph: ``"nodes"`` or ``"edges"``."""

    what: str
