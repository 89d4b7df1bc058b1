"""Linear layers on edges, of what was gathered from nodes, become linear layers on nodes."""

from __future__ import annotations

import operator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import fx

from gnnquant.passes.base import Pass, PassResult, remove_dead_nodes
from gnnquant.passes.rewriting import Builder, argument, call_name, row_gather, scalar_of, shape_of
from gnnquant.quantizers import ops

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True)
class HoistEdgeLinears(Pass):
    """Multiply before the gather: once per node instead of once per edge.

    The input of the layer may be a gather, or be put together from gathers and edge features by
    concatenation, addition, subtraction and multiplication by numbers.

    Given::

        m = ops.linear(cat([x_i, x_j - x_i, e], -1), None, W, None, b)      [E, 2F + D] -> [E, M]

    Result::

        p = ops.linear(x, None, W[:, :F] - W[:, F:2F], None, b)             [N, M]
        q = ops.linear(x, None, W[:, F:2F], None, None)                     [N, M]
        m = p.index_select(0, i) + q.index_select(0, j) + ops.linear(e, None, W[:, 2F:], None, None)

    It is done where the gather repeats rows: by a row of an edge list, or, on the example, to more rows
    than there were. Where nothing is gathered, the layer stays.
    """

    name: ClassVar[str] = "hoist-edge-linears"
    requires: ClassVar[frozenset[str]] = frozenset({"linears-explicit"})
    provides: ClassVar[frozenset[str]] = frozenset({"linears-explicit"})

    def run(self, module: fx.GraphModule) -> PassResult:
        """Rewrite every such layer."""
        changed, notes = 0, []
        for node in list(module.graph.nodes):
            if node.op == "call_function" and node.target is ops.linear:
                done = _hoist(module, node)
                changed += done is True
                if isinstance(done, str):
                    notes.append(f"{node.meta.get('linear', node.name)}: {done}")
        remove_dead_nodes(module)
        return PassResult(changed, tuple(notes))


@dataclass(frozen=True)
class _Term:
    """``factor * value``, or ``factor * value.index_select(0, index)``.

    Attributes:
        value: The node that is read.
        index: Rows that are gathered, or ``None``.
        steps: What is done to the value, without touching rows, before it is read: keys of ``_STEPS``.
        factor: A number.
    """

    value: fx.Node
    index: fx.Node | None = None
    steps: tuple[tuple[str, Any], ...] = ()
    factor: float = 1.0

    def build(self, build: Builder) -> fx.Node:
        """The value with its steps, before the gather."""
        node = self.value
        for name, given in self.steps:
            node = _STEPS[name](build, node, given)
        return node

    @property
    def key(self) -> tuple[Any, ...]:
        """Equal for terms that differ by their factor only."""
        return self.value, self.index, self.steps


@dataclass(frozen=True)
class _Block:
    """Columns ``start:stop`` of the layer's input: a sum of terms."""

    start: int
    stop: int
    terms: tuple[_Term, ...]


_STEPS: dict[str, Callable[[Builder, fx.Node, Any], fx.Node]] = {
    "reshape": lambda build, node, shape: build.call("reshape", node, (-1, *shape)),
    "take": lambda build, node, given: build.call("select", node, given[0], given[1]),
}


def _hoist(module: fx.GraphModule, node: fx.Node) -> bool | str:
    """Rewrite the layer ``node``; a text says why a layer that reads a gather stays."""
    x, x_scale, weight, _, bias = node.args
    shape = shape_of(x)
    if x_scale is not None or shape is None or len(shape) < 2 or not isinstance(weight, fx.Node):
        return False
    assert isinstance(x, fx.Node)
    blocks = _blocks(x)
    gathered = [term for block in blocks for term in block.terms if term.index is not None]
    if not gathered:
        return False
    if not any(_repeats_rows(term) for term in gathered):
        return "its gather selects rows and does not repeat them"
    build = Builder(module, node)
    pieces = _weights_by_term(build, blocks, weight)
    total: fx.Node | None = None
    name = str(node.meta.get("linear", ""))
    edges: list[tuple[_Term, fx.Node]] = []
    for term, part in pieces:
        if term.index is None or not _repeats_rows(term):
            edges.append((term, part))
            continue
        rows = build.linear(term.build(build), part, bias, name)  # type: ignore[arg-type]
        bias = None
        rows = build.call("index_select", rows, 0, term.index)
        total = rows if total is None else build.call("add", total, rows)
    assert total is not None
    if edges:
        total = build.call("add", total, _edge_linear(build, edges, name))
    node.replace_all_uses_with(total)
    module.graph.erase_node(node)
    return True


def _edge_linear(build: Builder, terms: list[tuple[_Term, fx.Node]], name: str) -> fx.Node:
    """What remains on the edges, as one layer."""
    values = []
    for term, _ in terms:
        value = term.build(build)
        values.append(value if term.index is None else build.call("index_select", value, 0, term.index))
    x = values[0] if len(values) == 1 else build.call(torch.cat, values, dim=-1)
    parts = [part for _, part in terms]
    weight = parts[0] if len(parts) == 1 else build.call(torch.cat, parts, dim=-1)
    return build.linear(x, weight, None, name)


def _weights_by_term(build: Builder, blocks: list[_Block], weight: fx.Node) -> list[tuple[_Term, fx.Node]]:
    """Every different term with the sum of the columns of ``weight`` that it meets."""
    width = weight.meta["shape"][1]
    parts: dict[tuple[Any, ...], tuple[_Term, fx.Node]] = {}
    for block in blocks:
        columns = weight
        if block.stop - block.start < width:
            which = (slice(None), slice(block.start, block.stop))
            columns = build.call(operator.getitem, weight, which)
        for term in block.terms:
            kept = parts.get(term.key)
            part = columns
            if abs(term.factor) != 1:
                part = build.call("mul", columns, abs(term.factor))
            if kept is not None:
                part = build.call("add" if term.factor > 0 else "sub", kept[1], part)
            elif term.factor < 0:
                part = build.call("neg", part)
            parts[term.key] = (replace(term, factor=1.0), part)
    return list(parts.values())


def _repeats_rows(term: _Term) -> bool:
    """Whether the gather reads rows more than once: by an end of the edges, or on the example."""
    assert term.index is not None
    if _is_end_of_edges(term.index):
        return True
    rows, taken = shape_of(term.value), shape_of(term.index)
    return bool(rows and taken and taken[0] > rows[0])


def _is_end_of_edges(index: fx.Node) -> bool:
    """Whether ``index`` is a row of an int64 [2, E]."""
    return call_name(index) in ("getitem", "select") and _is_edge_list(index.args[0])


def _is_edge_list(node: Any) -> bool:
    if not isinstance(node, fx.Node):
        return False
    if call_name(node) == "unbind":
        return _is_edge_list(node.args[0])
    shape = shape_of(node)
    return shape is not None and len(shape) == 2 and shape[0] == 2 and node.meta["dtype"] is torch.int64


# ---------------------------------------------------------------- what an edge value consists of


def _blocks(node: fx.Node) -> list[_Block]:
    """``node`` [E, .., K] as blocks of columns, each a sum of terms."""
    width = node.meta["shape"][-1]
    for parts in (_joined(node), _sum(node), _scaled(node), _gather(node), _moved(node)):
        if parts is not None:
            return parts
    return [_Block(0, width, (_Term(node),))]


def _joined(node: fx.Node) -> list[_Block] | None:
    if call_name(node) not in ("cat", "concat", "concatenate"):
        return None
    operands, dim = argument(node, 0, "tensors"), argument(node, 1, "dim", 0)
    rank = len(node.meta["shape"])
    if dim not in (-1, rank - 1) or any(len(shape_of(item) or ()) != rank for item in operands):
        return None
    blocks: list[_Block] = []
    start = 0
    for operand in operands:
        moved = (replace(item, start=start + item.start, stop=start + item.stop) for item in _blocks(operand))
        blocks.extend(moved)
        start += operand.meta["shape"][-1]
    return blocks


def _sum(node: fx.Node) -> list[_Block] | None:
    name = call_name(node)
    if name not in ("add", "sub", "rsub") or node.kwargs or len(node.args) != 2:
        return None
    first, second = node.args if name != "rsub" else node.args[::-1]
    if shape_of(first) != shape_of(node) or shape_of(second) != shape_of(node):
        return None
    assert isinstance(first, fx.Node)
    assert isinstance(second, fx.Node)
    sides = _blocks(first), _blocks(second)
    if all(term.index is None for side in sides for block in side for term in block.terms):
        return None
    cuts = sorted({edge for side in sides for block in side for edge in (block.start, block.stop)})
    if any(len(side) + 1 != len(cuts) for side in sides):
        return None  # their columns are cut in different places
    sign = 1.0 if name == "add" else -1.0
    return [
        _Block(mine.start, mine.stop, (*mine.terms, *_times(theirs.terms, sign)))
        for mine, theirs in zip(*sides, strict=True)
    ]


def _scaled(node: fx.Node) -> list[_Block] | None:
    name = call_name(node)
    if name == "neg":
        factor, value = -1.0, node.args[0]
    elif name in ("mul", "truediv", "div") and len(node.args) == 2 and not node.kwargs:
        value, number = node.args
        if name == "mul" and scalar_of(value) is not None:
            value, number = number, value
        given = scalar_of(number)
        if given is None or (name != "mul" and not given):
            return None
        factor = given if name == "mul" else 1 / given
    else:
        return None
    if not isinstance(value, fx.Node) or shape_of(value) != shape_of(node):
        return None
    blocks = _blocks(value)
    return [replace(block, terms=tuple(_times(block.terms, factor))) for block in blocks]


def _times(terms: tuple[_Term, ...], factor: float) -> list[_Term]:
    return [replace(term, factor=term.factor * factor) for term in terms]


def _gather(node: fx.Node) -> list[_Block] | None:
    found = row_gather(node)
    if found is None or found[2] != 0:
        return None
    x, index, _ = found
    return [_Block(0, node.meta["shape"][-1], (_Term(x, index),))]


def _moved(node: fx.Node) -> list[_Block] | None:
    """Reshapes that keep rows and the last axis apart, and one entry of an axis between them."""
    operand = node.args[0] if node.args else None
    old = shape_of(operand)
    if old is None or len(old) < 2:
        return None
    assert isinstance(operand, fx.Node)
    step = _step(node, old)
    if step is None:
        return None
    blocks = _blocks(operand)
    if step[0] == "reshape" and len(blocks) > 1:
        return None  # columns of a row of several axes
    return [
        replace(block, terms=tuple(replace(term, steps=(*term.steps, step)) for term in block.terms))
        for block in blocks
    ]


def _step(node: fx.Node, old: tuple[int, ...]) -> tuple[str, Any] | None:
    """How ``node`` arranges its operand of shape ``old``: a key of ``_STEPS``."""
    name, shape = call_name(node), node.meta["shape"]
    if name in ("view", "reshape", "unsqueeze", "squeeze"):
        keeps = old[0] == shape[0] and old[-1] == shape[-1]
        return ("reshape", tuple(shape[1:])) if keeps else None
    if name == "getitem" and len(old) == 3:
        which = node.args[1]
        pair = isinstance(which, tuple) and len(which) == 2 and which[0] == slice(None)
        if pair and isinstance(which[1], int):  # type: ignore[index]
            return "take", (1, which[1])  # type: ignore[index]
    return None
