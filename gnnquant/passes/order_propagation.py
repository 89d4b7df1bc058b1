"""Rows are summed over edges where they are narrower: before a linear layer that widens them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import fx

from gnnquant import ir
from gnnquant.config import FLOAT_BITS, QuantConfig
from gnnquant.passes.base import Pass, PassResult, remove_dead_nodes
from gnnquant.passes.rewriting import Builder, argument, call_name, is_float
from gnnquant.passes.sites import SiteNamer, message_site
from gnnquant.quantizers import ops

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(frozen=True)
class OrderPropagation(Pass):
    """``A (X W)`` -> ``(A X) W`` where W has fewer inputs than outputs.

    What a sum over edges costs is what it gathers: the columns of a row, once for each edge. Sums and means
    with one weight for all columns commute with a linear layer without bias.

    Given::

        z = ops.linear(x, None, w, None, None)                         x [N, K], w [M, K], K < M
        m = ir.message(z, conv, call)                                  [N, M]
        a = ops.propagate(m, None, edges, weight, n, "sum")            weight [E] or None

    Result::

        m = ir.message(x, conv, call)                                  [N, K]
        s = ops.propagate(m, None, edges, weight, n, "sum")
        a = ops.linear(s, None, w, None, None)

    Layers that narrow their rows after a sum (GIN, SAGE on wide features) stay as they are written: their
    aggregates would be quantized elsewhere. So do layers whose inputs the user has quantized otherwise than
    their messages: here the inputs become the messages.

    Attributes:
        bits: Default bit width; 32 where nothing will be quantized.
        config: Specifications per kind and site.
    """

    name: ClassVar[str] = "order-propagation"
    requires: ClassVar[frozenset[str]] = frozenset({"linears-explicit"})
    bits: int = FLOAT_BITS
    config: QuantConfig = field(default_factory=QuantConfig)

    def run(self, module: fx.GraphModule) -> PassResult:
        """Rewrite every such layer."""
        changed, notes = 0, []
        for node in list(module.graph.nodes):
            layer = _widening_layer(node)
            if layer is None:
                continue
            reason = next(_obstacles(node, layer), "") or self._wish(node, layer)
            if reason:
                notes.append(f"{layer.meta['linear']}: {reason}")
            else:
                _swap(module, node, layer)
                changed += 1
        remove_dead_nodes(module)
        return PassResult(changed, tuple(notes))

    def _wish(self, node: fx.Node, layer: fx.Node) -> str:
        """Why the user would not have it, or an empty string."""
        marker, x = node.args[0], layer.args[0]
        assert isinstance(marker, fx.Node)
        assert isinstance(x, fx.Node)
        if self.bits == FLOAT_BITS:
            return ""
        name, kind = SiteNamer(layer.graph).operand(x, layer.meta["linear"])
        message = message_site(marker)
        if self.config.resolve(name, kind, self.bits) == self.config.resolve(message, "message", self.bits):
            return ""
        return f"{name} is quantized otherwise than {message}"


def _obstacles(node: fx.Node, layer: fx.Node) -> Iterator[str]:
    """Why the sum cannot come before the layer, or is not cheaper there."""
    marker, _, _, weight, _, reduce = node.args
    x = layer.args[0]
    assert isinstance(marker, fx.Node)
    assert isinstance(x, fx.Node)
    if reduce not in ("sum", "mean"):
        yield f"its {reduce}imum does not commute with the linear layer before it"
    if isinstance(weight, fx.Node) and len(weight.meta["shape"]) > 1:
        yield "its edge weights differ between columns"
    if layer.args[4] is not None:
        yield "the linear layer before it has a bias"
    if len(layer.meta["shape"]) != 2:
        yield "the linear layer before it has rows of more than one axis"
    if not is_float(x):
        yield "the linear layer before it reads a sparse matrix, whose rows cannot be gathered"
    if x.meta["dtype"] not in (torch.float32, torch.float64):
        yield f"in {x.meta['dtype']} the other order would round too differently"
    if node.meta["shape"][0] > x.meta["shape"][0]:
        yield "there are more rows after the sum than before it"
    others = [user for user in layer.users if user is not marker and not _counts_rows(user)]
    if others or len(marker.users) > 1:
        yield "what the linear layer before it computes is read elsewhere too"


def _widening_layer(node: fx.Node) -> fx.Node | None:
    """The linear layer with fewer inputs than outputs whose rows ``node`` propagates."""
    if node.target is not ops.propagate:
        return None
    marker = node.args[0]
    assert isinstance(marker, fx.Node)
    layer = marker.args[0]
    if not isinstance(layer, fx.Node) or layer.target is not ops.linear:
        return None
    weight = layer.args[2]
    assert isinstance(weight, fx.Node)
    outputs, inputs = weight.meta["shape"]
    return layer if inputs < outputs else None


def _counts_rows(node: fx.Node) -> bool:
    """Whether ``node`` asks a matrix for the number of its rows."""
    return call_name(node) == "size" and argument(node, 1, "dim") in (0, -2)


def _swap(module: fx.GraphModule, node: fx.Node, layer: fx.Node) -> None:
    marker, _, edges, weight, rows, reduce = node.args
    assert isinstance(marker, fx.Node)
    x, parameter = layer.args[0], layer.args[2]
    assert isinstance(x, fx.Node)
    for user in [user for user in layer.users if _counts_rows(user)]:
        user.replace_input_with(layer, x)
    build = Builder(module, node)
    message = build.call(ir.message, x, *marker.args[1:])
    message.meta.update(marker.meta, shape=x.meta["shape"], dtype=x.meta["dtype"])
    summed = build.call(ops.propagate, message, None, edges, weight, rows, reduce)
    summed.meta.update(node.meta, shape=(node.meta["shape"][0], *x.meta["shape"][1:]))
    out = build.call(ops.linear, summed, None, parameter, None, None)
    out.meta.update(layer.meta, shape=node.meta["shape"], dtype=node.meta["dtype"])
    node.replace_all_uses_with(out)
    module.graph.erase_node(node)
