"""Putting quantizers into a graph: each value once per specification, dropout moved behind."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING

from torch import fx

from gnnquant import ir
from gnnquant.passes.sites import Site, SiteNamer, is_dropout
from gnnquant.quantizers import ops
from gnnquant.quantizers.modules import Quantizer
from gnnquant.tracing.graph_ops import dtype_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from gnnquant.config import QuantConfig, QuantSpec


class QuantizerInserter:
    """Creates quantizers in a graph module, each value once per specification.

    Attributes:
        module: The graph that is rewritten.
        sites: What was quantized, by name.
        namer: Names of sites.
        notes: Why something was not quantized.
    """

    def __init__(self, module: fx.GraphModule, config: QuantConfig, bits: int) -> None:
        """Continue with the sites that ``module`` already has."""
        self.module = module
        self.graph = module.graph
        self.config = config
        self.bits = bits
        self.sites: dict[str, Site] = dict(getattr(module, "sites", {}))
        self.namer = SiteNamer(module.graph)
        self.notes: list[str] = []
        self._made: dict[tuple[object, str], tuple[fx.Node, fx.Node]] = {}
        self._moved: dict[tuple[fx.Node, fx.Node], fx.Node] = {}
        vars(module)["sites"] = self.sites

    def spec(self, name: str, kind: str, force: QuantSpec | None = None) -> QuantSpec:
        """Specification of a site."""
        spec = self.config.resolve(name, kind, self.bits)
        return spec.updated(force) if force is not None else spec

    def quantize_operand(
        self,
        consumer: fx.Node,
        position: int,
        site: Callable[[fx.Node], tuple[str, str]],
        force: QuantSpec | None = None,
    ) -> None:
        """Replace argument ``position`` of an operation by codes, and the next by their scale."""
        operand = consumer.args[position]
        assert isinstance(operand, fx.Node)
        value, chain = self._above_dropout(operand)
        name, kind = site(value)
        spec = self.spec(name, kind, force)
        if not spec.enabled:
            self.notes.append(f"{name}: switched off")
            return
        codes, scale = self.quantize(value, name, kind, spec)
        for link in chain:
            codes = self._reapply(link, codes)
        consumer.update_arg(position, codes)
        consumer.update_arg(position + 1, scale)

    def quantize_values(self, value: fx.Node, name: str, kind: str) -> None:
        """Let every user of ``value`` read its quantized values."""
        spec = self.spec(name, kind)
        if not spec.enabled:
            self.notes.append(f"{name}: switched off")
            return
        users = list(value.users)
        codes, scale = self.quantize(value, name, kind, spec)
        restored = self.dequantize(value, codes, scale)
        for user in users:
            user.replace_input_with(value, restored)

    def dequantize(self, value: fx.Node, codes: fx.Node, scale: fx.Node) -> fx.Node:
        """``codes * scale`` as a node that stands for ``value``."""
        with self.graph.inserting_after(scale):
            restored = self.graph.call_function(ops.dequantize, (codes, scale))
        restored.meta = dict(value.meta)
        return restored

    def quantize(self, value: fx.Node, name: str, kind: str, spec: QuantSpec) -> tuple[fx.Node, fx.Node]:
        """(codes, scale) of ``value``; an earlier quantizer of the same specification is shared."""
        owner = str(value.target) if value.op == "get_attr" else value
        key = (owner, f"{spec.bits}{spec.granularity}")
        if key in self._made:
            return self._made[key]
        name = self._unique(name)
        target = f"{name}_quantizer"
        shape = tuple(value.meta["shape"])
        quantizer = Quantizer(spec, shape[0] if spec.granularity == "column" else None)
        quantizer.train(self.module.training)
        self.module.add_submodule(target, quantizer)
        if kind == "weight":
            _initialise(quantizer, self.module, str(value.target))
        with self.graph.inserting_after(value):
            call = self.graph.call_module(target, (value,))
        with self.graph.inserting_after(call):
            codes = self.graph.call_function(operator.getitem, (call, 0))
        with self.graph.inserting_after(codes):
            scale = self.graph.call_function(operator.getitem, (call, 1))
        for node in (call, codes, scale):
            node.meta = dict(value.meta, site=name)
        assert spec.bits is not None
        assert spec.granularity is not None
        self.sites[name] = Site(name, kind, spec.bits, spec.granularity, target, shape)
        self._made[key] = codes, scale
        return codes, scale

    def existing(self, value: fx.Node, bits: int) -> tuple[fx.Node, fx.Node] | None:
        """(codes, scale) of a quantizer of ``value`` with at least ``bits`` bits, if there is one."""
        for user in value.users:
            if user.op != "call_module":
                continue
            quantizer = self.module.get_submodule(str(user.target))
            if isinstance(quantizer, Quantizer) and quantizer.bits >= bits:
                codes, scale = sorted(user.users, key=lambda item: str(item.args[1]))[:2]
                return codes, scale
        return None

    def _above_dropout(self, operand: fx.Node) -> tuple[fx.Node, list[fx.Node]]:
        """The value above dropout and message markers, and these in the order of execution."""
        chain: list[fx.Node] = []
        value = operand
        while True:
            if value.target is ir.message:
                passes = True
            else:
                passes = is_dropout(self.module, value) and all(_reads_codes(user) for user in value.users)
            if not passes:
                return value, chain[::-1]
            chain.append(value)
            parent = value.args[0]
            assert isinstance(parent, fx.Node)
            value = parent

    def _reapply(self, link: fx.Node, codes: fx.Node) -> fx.Node:
        """The same dropout or marker on codes."""
        key = (link, codes)
        if key not in self._moved:
            with self.graph.inserting_after(link):
                node = self.graph.create_node(
                    link.op, link.target, (codes, *link.args[1:]), dict(link.kwargs)
                )
            node.meta = dict(link.meta)
            self._moved[key] = node
            for user in list(link.users):
                if user is not node and _reads_shape(user):
                    user.replace_input_with(link, link.all_input_nodes[0])
        return self._moved[key]

    def _unique(self, name: str) -> str:
        candidate, count = name, 1
        while candidate in self.sites:
            candidate, count = f"{name}_{count}", count + 1
        return candidate


def _reads_codes(user: fx.Node) -> bool:
    """Whether ``user`` is, or leads straight to, an operation that takes codes."""
    if user.target in (ops.linear, ops.propagate):
        return True
    if _reads_shape(user):
        return True
    return user.target is ir.message and all(_reads_codes(item) for item in user.users)


def _reads_shape(user: fx.Node) -> bool:
    """Whether ``user`` asks for a size or an element type only."""
    return user.target in ("size", "dim", dtype_of)


def _initialise(quantizer: Quantizer, module: fx.GraphModule, path: str) -> None:
    """Choose a weight's range: its values are known already."""
    quantizer.start_observing()
    quantizer(module.get_parameter(path).detach())
    quantizer.stop_observing()
