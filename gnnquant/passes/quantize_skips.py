"""Values that outlive their kernel are stored in 8 bits: residuals, teleports, concatenations."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from gnnquant.config import QuantConfig
from gnnquant.passes.base import Pass, PassResult
from gnnquant.passes.inserter import QuantizerInserter
from gnnquant.passes.rewriting import PRODUCTS, call_name, is_float, is_index, row_gather
from gnnquant.quantizers import ops
from gnnquant.quantizers.modules import Quantizer
from gnnquant.tracing.graph_ops import select_mode

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import fx

    from gnnquant.config import QuantSpec


@dataclass(frozen=True)
class QuantizeSkips(Pass):
    """Quantize a float value that is read both where it is computed and again later.

    Compiled code fuses elementwise operations into the operation that produces their operand. A
    value needed after a further linear layer or message passing has to be stored in between; it is
    stored in 8 bits per row.

    Given::

        h = relu(...)                                    also quantized for conv2
        y = add(h, conv2(h))

    Result::

        codes, scale = call_module[conv1.skip_quantizer](h)
        y = add(ops.dequantize(codes, scale), conv2(h))

    What is only needed later is computed later, from what is stored. If several values would be stored
    for it alone, it is computed at once and stored in their stead: a sum, rather than its terms.

    The model's own inputs are in memory anyway and stay as they are.

    Attributes:
        bits: Default bit width of ``convert``.
        config: Specifications per kind and site.
    """

    name: ClassVar[str] = "quantize-skips"
    requires: ClassVar[frozenset[str]] = frozenset({"sites-quantized-once"})
    provides: ClassVar[frozenset[str]] = frozenset({"sites-quantized-once"})
    bits: int = 8
    config: QuantConfig = field(default_factory=QuantConfig)

    def run(self, module: fx.GraphModule) -> PassResult:
        """Insert a quantizer for every such value."""
        inserter = QuantizerInserter(module, self.config, self.bits)
        before = len(inserter.sites)
        stages = _stages(module)
        nodes = [
            node
            for node in reversed(list(module.graph.nodes))
            if _is_computed_float(module, node) and not inserter.constants.is_constant(node)
        ]
        unless_stored = _Needs(module, stages)
        for node in nodes:
            unless_stored[node] = set().union(*unless_stored.of_users(node).values())
        needs = _Needs(module, stages)
        for node in nodes:
            of_users = needs.of_users(node)
            needed = set[int]().union(*of_users.values())
            first = min(needed, default=stages[node])
            if first > stages[node] and _stands_for_several(inserter, node, unless_stored):
                first = stages[node]
            if needed - {first} and row_gather(node) is None:  # rows are gathered again
                later = [user for user, when in of_users.items() if when and first not in when]
                if _store(inserter, node, later):
                    needed = {first}
            needs[node] = needed
        inserter.finish()
        return PassResult(len(inserter.sites) - before, tuple(inserter.notes))


class _Needs(dict["fx.Node", set[int]]):
    """The stages at which each float value is needed, filled in from the last value to the first."""

    def __init__(self, module: fx.GraphModule, stages: Mapping[fx.Node, int]) -> None:
        super().__init__()
        self._module = module
        self.stages = stages

    def of_users(self, value: fx.Node) -> dict[fx.Node, set[int]]:
        """The stages at which each user of ``value`` needs it."""
        return {user: self._of_user(value, user) for user in value.users}

    def _of_user(self, value: fx.Node, user: fx.Node) -> set[int]:
        known = self.stages[value]
        if user.target is select_mode and value is not user.args[1]:
            return {known}  # train mode alone reads it, and nothing is compiled for that
        if user in self:
            return {known} if _is_heavy(user) else self[user]
        if user.op == "output" or _is_quantizer(self._module, user) or _is_heavy(user):
            return {known}
        return set()


def _stands_for_several(inserter: QuantizerInserter, node: fx.Node, needs: _Needs) -> bool:
    """Whether several values of its stage would be stored for ``node`` alone.

    Not if all of them have codes that are as wide anyway, as messages of 8 bits have.

    Args:
        inserter: What knows which values have codes.
        node: A value that is only needed later.
        needs: Where each value is needed, unless any is stored.
    """
    stage = needs.stages[node]
    stored: set[fx.Node] = set()
    between, waiting = {node}, [node]
    while waiting:
        for operand in waiting.pop().all_input_nodes:
            if operand not in needs or needs.stages[operand] != stage:
                continue
            if stage in needs[operand]:
                stored.add(operand)
            elif operand not in between:
                between.add(operand)
                waiting.append(operand)
    own = stored | between
    others = (
        when - {stage}
        for value in own - {node}
        for user, when in needs.of_users(value).items()
        if user not in own
    )
    if len(stored) < 2 or any(others):
        return False
    return any(_existing(inserter, value, _site(inserter, value)[1]) is None for value in stored)


def _site(inserter: QuantizerInserter, value: fx.Node) -> tuple[str, QuantSpec]:
    """What ``value`` is called where it is stored, and how it is."""
    name = inserter.namer.skip(value)
    return name, inserter.spec(name, "skip", value)


def _existing(inserter: QuantizerInserter, value: fx.Node, spec: QuantSpec) -> tuple[fx.Node, fx.Node] | None:
    """Codes of ``value`` that are as wide as ``spec`` says, if it has them anyway."""
    assert spec.bits is not None
    return inserter.existing(value, spec.bits)


def _store(inserter: QuantizerInserter, value: fx.Node, users: list[fx.Node]) -> bool:
    """Let ``users`` read ``value`` from 8-bit codes; returns whether the site is enabled."""
    name, spec = _site(inserter, value)
    if not spec.enabled:
        inserter.notes.append(f"{name}: switched off")
        return False
    codes, scale = _existing(inserter, value, spec) or inserter.quantize(value, name, "skip", spec)
    restored = inserter.dequantize(value, codes, scale)
    for user in users:
        user.replace_input_with(value, restored)
    return True


def _is_heavy(node: fx.Node) -> bool:
    """Whether ``node`` ends a kernel: it needs other rows, or the whole row, of its operand."""
    if node.target in (ops.linear, ops.propagate) or call_name(node) in PRODUCTS:
        return True
    shape = node.meta.get("shape")
    if not shape:
        return False
    operands = [operand for operand in node.all_input_nodes if operand.op != "get_attr"]
    # An index among the operands tells of other rows even where there are as many of them.
    if any(is_float(operand) for operand in operands) and any(map(is_index, operands)):
        return True
    rows: list[tuple[int, ...]] = [operand.meta.get("shape") or () for operand in operands]
    return any(len(operand) > 1 and operand[0] != shape[0] for operand in rows)


def _stages(module: fx.GraphModule) -> dict[fx.Node, int]:
    """Number of heavy operations on the longest way to every node."""
    stages: dict[fx.Node, int] = {}
    for node in module.graph.nodes:
        below = max((stages[operand] for operand in node.all_input_nodes), default=0)
        stages[node] = below + _is_heavy(node)
    return stages


def _is_computed_float(module: fx.GraphModule, node: fx.Node) -> bool:
    """Whether ``node`` is a float tensor computed from the model's inputs."""
    if node.op in ("placeholder", "get_attr", "output") or node.target is ops.dequantize:
        return False
    if not is_float(node) or len(node.meta.get("shape", ())) < 2:
        return False
    if _is_quantizer(module, node) or "site" in node.meta:
        return False
    return bool(node.all_input_nodes)


def _is_quantizer(module: fx.GraphModule, node: fx.Node) -> bool:
    return node.op == "call_module" and isinstance(module.get_submodule(str(node.target)), Quantizer)
