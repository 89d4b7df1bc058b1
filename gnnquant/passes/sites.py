"""Sites: where a graph can be quantized, what each place is called and of which kind it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import fx, nn

from gnnquant import ir
from gnnquant.quantizers import ops

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@dataclass(frozen=True)
class Site:
    """One quantized place of a converted model.

    Attributes:
        name: For example ``"convs.0.message"``.
        kind: One of ``gnnquant.config.SITE_KINDS``.
        bits: Bit width.
        granularity: ``"row"``, ``"tensor"`` or ``"column"``.
        quantizer: Qualified name of its quantizer module.
        shape: Shape of the tensor on the example inputs.
    """

    name: str
    kind: str
    bits: int
    granularity: str
    quantizer: str
    shape: tuple[int, ...]


def join(module: str, name: str) -> str:
    """``"convs.0", "message"`` -> ``"convs.0.message"``; the root adds nothing."""
    return f"{module}.{name}" if module else name


def message_site(marker: fx.Node) -> str:
    """Name of the message at ``marker``; later calls of the same layer are numbered."""
    conv, call = str(marker.args[1]), marker.args[2]
    return join(conv, f"message_{call}" if call else "message")


class SiteNamer:
    """Names values after the part of the model that computes them.

    Attributes:
        convs: Qualified names of the message-passing layers, from the graph's markers.
    """

    def __init__(self, graph: fx.Graph) -> None:
        """Collect the layers of ``graph``."""
        markers = set(ir.ROLE_MARKERS.values())
        self.convs = sorted(
            {str(node.args[1]) for node in graph.nodes if node.target in markers},
            key=len,
            reverse=True,
        )
        self._order = {node: index for index, node in enumerate(graph.nodes)}

    def operand(self, value: fx.Node, consumer: str) -> tuple[str, str]:
        """(name, kind) of ``value``, which feeds the linear layer called ``consumer``.

        An aggregate feeds a layer of its own convolution, or one that was moved behind its sum, an update
        one outside of it; what comes from the model's inputs or from a linear layer is an input.
        """
        source = self._origin(value)
        if source.target is ops.propagate:
            # The layer comes after the sum, wherever it was written.
            return join(str(source.meta["conv"]), "aggregate"), "aggregate"
        conv = None if source.op == "placeholder" else self._conv_of(source)
        if conv is None:
            return join(consumer, "input"), "input"
        if not _is_inside(consumer, conv):
            return join(conv, "update"), "update"
        if source.target is ops.linear:
            return join(consumer, "input"), "input"
        return join(conv, "aggregate"), "aggregate"

    def skip(self, value: fx.Node) -> str:
        """Name of ``value``, which is kept for later use."""
        source = self._origin(value)
        conv = self._conv_of(source)
        if conv is not None:
            return join(conv, "skip")
        return join(str(source.meta.get("linear") or source.name), "skip")

    def _conv_of(self, source: fx.Node) -> str | None:
        """The message-passing layer that computed ``source``."""
        if source.target in (ir.update, ir.aggregate, ir.message_and_aggregate):
            return str(source.args[1])
        path = str(source.meta.get("linear") or source.meta.get("conv") or "")
        return next((conv for conv in self.convs if conv and _is_inside(path, conv)), None)

    def _origin(self, node: fx.Node) -> fx.Node:
        """The latest update, aggregate, linear layer or input that ``node`` is computed from."""
        found = [
            ancestor
            for ancestor in _ancestors(node, stop=_is_origin)
            if _is_origin(ancestor) and ancestor in self._order
        ]
        return max(found, key=self._order.__getitem__, default=node)


def _is_origin(node: fx.Node) -> bool:
    return node.op == "placeholder" or node.target in (
        ir.update,
        ir.aggregate,
        ir.message_and_aggregate,
        ops.linear,
        ops.propagate,
    )


def _is_inside(path: str, conv: str) -> bool:
    return not conv or path == conv or path.startswith(f"{conv}.")


def is_dropout(module: fx.GraphModule, node: fx.Node) -> bool:
    """Whether ``node`` calls a dropout module."""
    return node.op == "call_module" and isinstance(module.get_submodule(str(node.target)), nn.Dropout)


def _ancestors(node: fx.Node, stop: Callable[[fx.Node], bool]) -> Iterator[fx.Node]:
    """``node`` and what it is computed from, not looking beyond where ``stop`` is true."""
    queue, seen = [node], {node}
    while queue:
        current = queue.pop(0)
        yield current
        if stop(current):
            continue
        for operand in current.all_input_nodes:
            if operand not in seen:
                seen.add(operand)
                queue.append(operand)
