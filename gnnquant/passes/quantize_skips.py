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
        needs: dict[fx.Node, set[int]] = {}
        for node in reversed(list(module.graph.nodes)):
            if not _is_computed_float(module, node) or inserter.constants.is_constant(node):
                continue
            by_user = {user: _need(module, node, user, stages, needs) for user in node.users}
            needed = set[int]().union(*by_user.values())
            if len(needed) > 1 and row_gather(node) is None:  # rows are gathered again
                first = min(needed)
                later = [user for user, when in by_user.items() if when and first not in when]
                if _store(inserter, node, later):
                    needed = {first}
            needs[node] = needed
        inserter.finish()
        return PassResult(len(inserter.sites) - before, tuple(inserter.notes))


def _store(inserter: QuantizerInserter, value: fx.Node, users: list[fx.Node]) -> bool:
    """Let ``users`` read ``value`` from 8-bit codes; returns whether the site is enabled."""
    name = inserter.namer.skip(value)
    spec = inserter.spec(name, "skip", value)
    if not spec.enabled:
        inserter.notes.append(f"{name}: switched off")
        return False
    assert spec.bits is not None
    codes, scale = inserter.existing(value, spec.bits) or inserter.quantize(value, name, "skip", spec)
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


def _need(
    module: fx.GraphModule,
    value: fx.Node,
    user: fx.Node,
    stages: Mapping[fx.Node, int],
    needs: Mapping[fx.Node, set[int]],
) -> set[int]:
    """Stages at which ``user`` needs ``value``."""
    if user.target is select_mode and value is not user.args[1]:
        return {stages[value]}  # train mode alone reads it, and nothing is compiled for that
    if user in needs:
        return {stages[value]} if _is_heavy(user) else needs[user]
    if user.op == "output" or _is_quantizer(module, user) or _is_heavy(user):
        return {stages[value]}
    return set()
