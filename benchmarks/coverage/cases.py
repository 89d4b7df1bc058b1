"""What a row of the table is."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from torch import nn

    from benchmarks.coverage.graphs import Graphs

Inputs: TypeAlias = "tuple[Any, ...] | dict[str, Any]"
"""Positional arguments, or arguments by name."""


@dataclass(frozen=True)
class Case:
    """A model and its inputs.

    Attributes:
        name: For a part that PyG exports, the first word is the exported name that the case covers.
        build: Makes the model; weights come from torch's generator.
        inputs: What the model is called with, for a graph.
        check_given: ``trace`` and ``convert`` are given the second graph as ``check_inputs``: for models that
            one drawn from the example does not suit.
        part: Which part of the table it belongs to.
        counted: Whether the targets of the table count it; the others are there for information.
    """

    name: str
    build: Callable[[], nn.Module]
    inputs: Callable[[Graphs], Inputs]
    check_given: bool = False
    part: str = ""
    counted: bool = False

    @property
    def key(self) -> str:
        """Its name in the whole table."""
        return f"{self.part}:{self.name}"


def takes(*fields: str) -> Callable[[Graphs], Inputs]:
    """Inputs that are fields of the graph, in this order."""
    return lambda graph: tuple(getattr(graph, field) for field in fields)


def takes_named(**fields: str) -> Callable[[Graphs], Inputs]:
    """Inputs that are fields of the graph, by parameter name."""
    return lambda graph: {name: getattr(graph, field) for name, field in fields.items()}


def part(name: str, cases: Iterable[Case], counted: bool = False) -> list[Case]:
    """The cases of one part of the table."""
    return [replace(case, part=name, counted=counted) for case in cases]


NODES = takes("x", "edge_index")
WEIGHTED = takes("x", "edge_index", "edge_weight")
ATTRIBUTED = takes("x", "edge_index", "edge_attr")
TYPED = takes("x", "edge_index", "edge_type")
WIDE = takes("wide", "edge_index")
BATCHED = takes("x", "edge_index", "batch")
HETERO = takes("x_dict", "edge_index_dict")
