"""Putting quantizers into a graph: each value once per specification, dropout moved behind."""

from __future__ import annotations

import math
import operator
from typing import TYPE_CHECKING

from torch import fx, nn

from gnnquant import ir
from gnnquant.config import QuantSpec
from gnnquant.passes.base import remove_dead_nodes
from gnnquant.passes.constants import Constants
from gnnquant.passes.rewriting import MOVEMENTS, call_name, is_float, row_gather, shape_of
from gnnquant.passes.sites import Site, SiteNamer, is_dropout
from gnnquant.quantizers import ops
from gnnquant.quantizers.modules import Quantizer
from gnnquant.tracing.graph_ops import dtype_of, select_mode

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from gnnquant.config import QuantConfig


class QuantizerInserter:
    """Creates quantizers in a graph module, each value once per specification.

    Attributes:
        module: The graph that is rewritten.
        sites: What was quantized, by name.
        namer: Names of sites.
        constants: Expressions of parameters.
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
        self.constants = Constants(module)
        self.notes: list[str] = []
        self._made: dict[tuple[object, str], tuple[fx.Node, fx.Node]] = {}
        self._moved: dict[tuple[fx.Node, fx.Node], fx.Node] = {}
        vars(module)["sites"] = self.sites

    def spec(self, name: str, kind: str, value: fx.Node, force: QuantSpec | None = None) -> QuantSpec:
        """Specification of a site.

        A row of one number has one scale with all others: a scale of its own would be the number.
        """
        spec = self.config.resolve(name, kind, self.bits)
        if kind != "weight" and math.prod(_row_shape(value)) <= 1:
            spec = spec.updated(QuantSpec(granularity="tensor"))
        return spec if force is None else spec.updated(force)

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
        value, chain = self._above(operand)
        name, kind = site(value)
        spec = self._enabled_spec(value, name, kind, force)
        if spec is None:
            return
        codes, scale = self.quantize(value, name, kind, spec)
        for link in chain:
            gathered = row_gather(link)
            if spec.granularity == "row" and gathered is not None:
                scale = self._gather_scale(link, scale, gathered[1])
            codes = self._reapply(link, codes)
        consumer.update_arg(position, codes)
        consumer.update_arg(position + 1, scale)

    def quantize_factor(
        self, consumer: fx.Node, operand: fx.Node, site: Callable[[fx.Node], tuple[str, str]]
    ) -> None:
        """Let ``consumer``, a product of computed values, read ``operand`` from its quantized values.

        What is quantized is the value above transposes and reshapes, whose first axis is that of rows.
        """
        value, chain = self._above_movements(operand)
        name, kind = site(value)
        spec = self._enabled_spec(value, name, kind)
        if spec is None:
            return
        codes, scale = self.quantize(value, name, kind, spec)
        restored = self.dequantize(value, codes, scale)
        for link in chain:
            restored = self._reapply(link, restored)
        consumer.replace_input_with(operand, restored)

    def quantize_values(self, value: fx.Node, name: str, kind: str, users: list[fx.Node]) -> None:
        """Let ``users`` of ``value`` read its quantized values."""
        spec = self._enabled_spec(value, name, kind)
        if spec is None:
            return
        codes, scale = self.quantize(value, name, kind, spec)
        restored = self.dequantize(value, codes, scale)
        for user in users:
            user.replace_input_with(value, restored)

    def dequantize(self, value: fx.Node, codes: fx.Node, scale: fx.Node) -> fx.Node:
        """``codes * scale`` as a node that stands for ``value``."""
        key = (codes, scale)
        if key not in self._moved:
            with self.graph.inserting_after(scale):
                restored = self.graph.call_function(ops.dequantize, (codes, scale))
            restored.meta = dict(value.meta)
            self._moved[key] = restored
        return self._moved[key]

    def quantize(self, value: fx.Node, name: str, kind: str, spec: QuantSpec) -> tuple[fx.Node, fx.Node]:
        """(codes, scale) of ``value``; an earlier quantizer of the same specification is shared."""
        is_constant = self.constants.is_constant(value)
        owner = self.constants.key(value) if is_constant else value
        key = (owner, f"{spec.bits}{spec.granularity}")
        if key in self._made:
            return self._made[key]
        name = self._unique(name)
        target = self._target(name)
        shape = tuple(value.meta["shape"])
        channels = shape[0] if spec.granularity == "column" else None
        quantizer = Quantizer(spec, channels, value.meta.get("row_axis", 0))
        quantizer.train(self.module.training)
        self.module.add_submodule(target, quantizer)
        if is_constant:
            _initialise(quantizer, self.constants.evaluate(value))
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

    def finish(self) -> None:
        """Remove what is not read any more, quantizers included."""
        remove_dead_nodes(self.module)
        called = {str(node.target) for node in self.graph.nodes if node.op == "call_module"}
        for name, site in list(self.sites.items()):
            if site.quantizer not in called:
                self.module.delete_submodule(site.quantizer)
                del self.sites[name]
        trained = _reached_by_gradients(self.graph)
        for node in self.graph.nodes:
            if node.op != "call_module" or node in trained:
                continue
            quantizer = self.module.get_submodule(str(node.target))
            if isinstance(quantizer, Quantizer):
                quantizer.log_scale.requires_grad_(False)
                self.notes.append(f"{node.target}: no gradient reaches it: its range is that of calibration")

    def _enabled_spec(
        self, value: fx.Node, name: str, kind: str, force: QuantSpec | None = None
    ) -> QuantSpec | None:
        """The specification of a site; ``None``, with a note, where it stays in float."""
        if not is_float(value) or not value.meta["shape"]:
            self.notes.append(f"{name}: {value.name} is no dense tensor of floating point numbers")
            return None
        spec = self.spec(name, kind, value, force)
        if not spec.enabled:
            self.notes.append(f"{name}: switched off")
            return None
        return spec

    def _above(self, operand: fx.Node) -> tuple[fx.Node, list[fx.Node]]:
        """The value above dropout, message markers and gathers of rows; these in order of execution.

        Rows are quantized one by one, so that gathering them and quantizing them commute.
        """
        chain: list[fx.Node] = []
        value = operand
        while True:
            if value.target is ir.message:
                passes = True
            elif is_dropout(self.module, value):
                passes = all(_reads_codes(user) for user in value.users)
            else:
                found = row_gather(value)
                passes = (
                    found is not None
                    and is_float(found[0])
                    and found[2] == found[0].meta.get("row_axis", 0) == 0
                )
            if not passes:
                return value, chain[::-1]
            chain.append(value)
            parent = value.args[0]
            assert isinstance(parent, fx.Node)
            value = parent

    def _above_movements(self, operand: fx.Node) -> tuple[fx.Node, list[fx.Node]]:
        """The value above what only arranges elements, as long as it has rows."""
        chain: list[fx.Node] = []
        value = operand
        while True:
            passes = call_name(value) in MOVEMENTS
            passes = passes or (is_dropout(self.module, value) and len(value.users) == 1)
            found = row_gather(value)
            passes = passes or (found is not None and found[2] == 0)
            parent = value.args[0] if value.args else None
            if not passes or not is_float(parent) or len(shape_of(parent) or ()) < 2:
                return value, chain[::-1]
            assert isinstance(parent, fx.Node)
            chain.append(value)
            value = parent

    def _reapply(self, link: fx.Node, codes: fx.Node) -> fx.Node:
        """The same operation on codes, or on their scale."""
        key = (link, codes)
        if key not in self._moved:
            with self.graph.inserting_after(link):
                node = self.graph.create_node(
                    link.op, link.target, (codes, *link.args[1:]), dict(link.kwargs)
                )
            node.meta = dict(link.meta)
            self._moved[key] = node
            same = link.meta["shape"] == link.all_input_nodes[0].meta["shape"] and row_gather(link) is None
            for user in list(link.users):
                if same and user is not node and _reads_shape(user):
                    user.replace_input_with(link, link.all_input_nodes[0])
        return self._moved[key]

    def _gather_scale(self, link: fx.Node, scale: fx.Node, index: fx.Node) -> fx.Node:
        """The scales of gathered rows."""
        key = (link, scale)
        if key not in self._moved:
            with self.graph.inserting_after(link):
                node = self.graph.call_function(ops.scale_of_rows, (scale, index))
            node.meta = dict(link.meta)
            self._moved[key] = node
        return self._moved[key]

    def _target(self, name: str) -> str:
        """Qualified name of the quantizer of the site ``name``: a parameter cannot hold it, a module can."""
        owner: object = self.module
        parts = name.split(".")
        for position, part in enumerate(parts[:-1]):
            owner = getattr(owner, part, None)
            if owner is not None and not isinstance(owner, nn.Module):
                parts[position:] = ["_".join(parts[position:])]
                break
        return ".".join(parts) + "_quantizer"

    def _unique(self, name: str) -> str:
        candidate, count = name, 1
        while candidate in self.sites:
            candidate, count = f"{name}_{count}", count + 1
        return candidate


def _row_shape(value: fx.Node) -> tuple[int, ...]:
    """Shape of one row of a tensor."""
    shape = list(value.meta["shape"])
    del shape[value.meta.get("row_axis", 0)]
    return tuple(shape)


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


def _reached_by_gradients(graph: fx.Graph) -> set[fx.Node]:
    """Nodes whose values move the outputs in train mode: not those that are detached or become indices."""
    waiting = [node for node in graph.nodes if node.op == "output"]
    reached: set[fx.Node] = set(waiting)
    while waiting:
        node = waiting.pop()
        operands = node.all_input_nodes
        if node.target is select_mode:
            operands = [operand for operand in node.args[:1] if isinstance(operand, fx.Node)]
        for operand in operands:
            dtype = operand.meta.get("dtype")
            is_float_value = dtype is None or dtype.is_floating_point
            passes = is_float_value and call_name(operand) != "detach" and operand.meta.get("mode") != "eval"
            if passes and operand not in reached:
                reached.add(operand)
                waiting.append(operand)
    return reached


def _initialise(quantizer: Quantizer, value: Tensor) -> None:
    """Choose the range of a constant: its values are known already."""
    quantizer.start_observing()
    quantizer(value)
    quantizer.stop_observing()
