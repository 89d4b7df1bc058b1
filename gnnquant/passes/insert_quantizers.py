"""Quantizers at both operands of every linear layer, at every message and at every output."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from torch import fx

from gnnquant import ir
from gnnquant.config import QuantConfig, QuantSpec
from gnnquant.passes.base import Pass, PassResult, remove_dead_nodes
from gnnquant.passes.inserter import QuantizerInserter
from gnnquant.passes.sites import join, message_site
from gnnquant.quantizers import ops

FINAL_ACTIVATIONS = ("log_softmax", "softmax", "sigmoid")


@dataclass(frozen=True)
class InsertQuantizers(Pass):
    """Quantize the operands of linear layers and of message passing.

    One value is quantized once, however many operations read it (with the same specification).
    Dropout between a value and its consumer moves behind the quantizer, so that ranges do not
    depend on the training mode.

    Given::

        y = ops.linear(dropout(v), None, w, None, b)

    Result::

        codes, scale = call_module[conv.update_quantizer](v)
        w_codes, w_scale = call_module[lin.weight_quantizer](w)
        y = ops.linear(dropout(codes), scale, w_codes, w_scale, b)

    Attributes:
        bits: Default bit width.
        config: Specifications per kind and site.
    """

    name: ClassVar[str] = "insert-quantizers"
    requires: ClassVar[frozenset[str]] = frozenset({"linears-explicit"})
    provides: ClassVar[frozenset[str]] = frozenset({"sites-quantized-once"})
    bits: int = 8
    config: QuantConfig = field(default_factory=QuantConfig)

    def run(self, module: fx.GraphModule) -> PassResult:
        """Insert all quantizers; the sites are recorded in ``module.sites``."""
        inserter = QuantizerInserter(module, self.config, self.bits)
        for node in list(module.graph.nodes):
            if node.target is ops.linear:
                self._linear(inserter, node)
            elif node.target is ops.propagate:
                self._propagate(inserter, node)
            elif node.target is ir.message and ops.propagate not in {user.target for user in node.users}:
                inserter.quantize_values(node, message_site(node), "message")
            elif node.op == "output":
                self._outputs(inserter, node)
        remove_dead_nodes(module)
        return PassResult(len(inserter.sites), tuple(inserter.notes))

    @staticmethod
    def _linear(inserter: QuantizerInserter, node: fx.Node) -> None:
        consumer = str(node.meta["linear"])
        x, _, weight, _, _ = node.args
        assert isinstance(x, fx.Node)
        assert isinstance(weight, fx.Node)
        inserter.quantize_operand(node, 0, lambda value: inserter.namer.operand(value, consumer))
        inserter.quantize_operand(node, 2, lambda _: (join(consumer, "weight"), "weight"))

    @staticmethod
    def _propagate(inserter: QuantizerInserter, node: fx.Node) -> None:
        marker, reduce = node.args[0], node.args[5]
        assert isinstance(marker, fx.Node)
        name = message_site(marker)
        force = QuantSpec(granularity="tensor") if reduce == "max" else QuantSpec()
        inserter.quantize_operand(node, 0, lambda _: (name, "message"), force)

    @staticmethod
    def _outputs(inserter: QuantizerInserter, node: fx.Node) -> None:
        results = [result for result in node.all_input_nodes if "shape" in result.meta]
        for index, result in enumerate(results):
            scores = result
            while str(getattr(scores.target, "__name__", scores.target)) in FINAL_ACTIVATIONS:
                scores = scores.all_input_nodes[0]
            name = f"output_{index}" if len(results) > 1 else "output"
            inserter.quantize_values(scores, name, "output")
