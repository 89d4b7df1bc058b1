"""What passes over the row program share."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gnnquant.integer_graph import origin

if TYPE_CHECKING:
    from gnnquant.integer_graph import IntegerGraph, Node


class Rewriter:
    """A graph whose row program is written again.

    Attributes:
        graph: As it was.
        names: What is taken, for ``take_name``.
    """

    def __init__(self, graph: IntegerGraph) -> None:
        self.graph = graph
        self.names = graph.names()

    def without_reshapes(self, name: str) -> Node:
        """The node that has the columns of ``name``."""
        return origin(self.graph, name, "reshape")
