"""Quantizers at both operands of every matrix product, at every message and at every output."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from torch import fx

from gnnquant import ir
from gnnquant.config import QuantConfig, QuantSpec
from gnnquant.passes.base import Pass, PassResult
from gnnquant.passes.inserter import QuantizerInserter
from gnnquant.passes.rewriting import PRODUCTS, call_name, is_float
from gnnquant.passes.sites import join, message_site
from gnnquant.quantizers import ops
from gnnquant.tracing.graph_ops import device_of, dtype_of

FINAL_ACTIVATIONS = ("log_softmax", "softmax", "sigmoid")


@dataclass(frozen=True)
class InsertQuantizers(Pass):
    """Quantize the operands of linear layers, of message passing and of products of computed values.

    One value is quantized once, however many operations read it (with the same specification), and
    so is a weight that several layers share. Dropout between a value and its consumer moves behind the
    quantizer, so that ranges do not depend on the training mode; so do selections of rows.

    Given::

        y = ops.linear(dropout(v), None, w, None, b)
        a = matmul(s, u.transpose(1, 2))                             both computed

    Result::

        codes, scale = call_module[conv.update_quantizer](v)
        w_codes, w_scale = call_module[lin.weight_quantizer](w)
        y = ops.linear(dropout(codes), scale, w_codes, w_scale, b)
        a = matmul(ops.dequantize(s_codes, s_scale), ops.dequantize(u_codes, u_scale).transpose(1, 2))

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
        nodes = list(module.graph.nodes)
        # Messages come first: a value that is also the operand of a layer is called a message.
        for node in nodes:
            if node.target is ops.propagate:
                self._propagate(inserter, node)
            elif node.target is ir.message:
                others = [user for user in node.users if user.target is not ops.propagate]
                if others:
                    inserter.quantize_values(node, message_site(node), "message", others)
        for node in nodes:
            if node.target is ops.linear:
                self._linear(inserter, node)
            elif call_name(node) in PRODUCTS:
                self._product(inserter, node)
            elif node.op == "output":
                self._outputs(inserter, node)
        inserter.finish()
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
        force = QuantSpec(granularity="tensor") if reduce in ("max", "min") else None
        inserter.quantize_operand(node, 0, lambda _: (name, "message"), force)

    @staticmethod
    def _product(inserter: QuantizerInserter, node: fx.Node) -> None:
        """Both factors of a product of computed values, such as attention scores."""
        if not _depends_on_inputs(node):
            return  # an expression of parameters, such as the power iteration of a spectral norm
        factors = [operand for operand in node.all_input_nodes if is_float(operand)]
        if len(factors) < len(_tensors(node)):
            return  # a sparse factor
        if _has_vector(node):
            inserter.notes.append(
                f"{node.name}: a product with one vector, such as a normaliser, stays float"
            )
            return
        consumer = str(node.meta.get("module_path") or "")
        for factor in factors:
            inserter.quantize_factor(node, factor, lambda value: inserter.namer.operand(value, consumer))

    @staticmethod
    def _outputs(inserter: QuantizerInserter, node: fx.Node) -> None:
        results = [result for result in node.all_input_nodes if is_float(result)]
        for index, result in enumerate(results):
            scores = result
            while str(getattr(scores.target, "__name__", scores.target)) in FINAL_ACTIVATIONS:
                scores = scores.all_input_nodes[0]
            name = f"output_{index}" if len(results) > 1 else "output"
            inserter.quantize_values(scores, name, "output", list(scores.users))


def _has_vector(node: fx.Node) -> bool:
    """Whether the second factor of a product has one column only: no matrix product, and often a divisor."""
    name = call_name(node)
    if name == "einsum":
        left, _, right = str(node.args[0]).replace(" ", "").partition("->")[0].partition(",")
        return not set(right) - set(left) or not set(left) - set(right)
    if name not in ("matmul", "mm", "bmm", "mv"):
        return False
    shape = node.all_input_nodes[-1].meta["shape"]
    return len(shape) == 1 or shape[-1] == 1


def _depends_on_inputs(node: fx.Node) -> bool:
    waiting, seen = [node], {node}
    while waiting:
        item = waiting.pop()
        if item.op == "placeholder":
            return True
        if item.target not in (dtype_of, device_of):
            near = [operand for operand in item.all_input_nodes if operand not in seen]
            seen.update(near)
            waiting += near
    return False


def _tensors(node: fx.Node) -> list[fx.Node]:
    return [operand for operand in node.all_input_nodes if "shape" in operand.meta]
