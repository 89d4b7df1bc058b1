"""One graph for both modes.

A model is traced in train and in eval mode. Where the two graphs are equal, either will do. Some models
apply dropout behind an ``if self.training`` (APPNP, RGAT): their train graph is the eval graph with
dropouts in between, and turning those into ``nn.Dropout`` modules gives one graph that toggles.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import fx
from torch.fx.node import map_arg

from gnnquant.errors import TraceError
from gnnquant.tracing.numbers import plain_number
from gnnquant.tracing.tracer import DROPOUT_MODULES, Recorder


def merge_modes(train: Recorder, evaluation: Recorder) -> Recorder:
    """Make ``train`` hold for eval mode too, or raise ``TraceError`` naming the first difference."""
    partner: dict[fx.Node, fx.Node] = {}
    conditional: list[fx.Node] = []
    waiting = list(evaluation.graph.nodes)
    position = 0
    for node in train.graph.nodes:
        other = waiting[position] if position < len(waiting) else None
        if other is not None and _same(train, node, evaluation, other, partner):
            partner[node] = other
            position += 1
            continue
        dropped = _dropout_input(node)
        if dropped is None:
            raise _difference(train, node, other)
        partner[node] = partner[dropped]
        conditional.append(node)
    if position < len(waiting):
        raise _difference(train, None, waiting[position])
    for node in conditional:
        _toggle_dropout(train, node)
    train.notes.update(evaluation.notes)
    return train


def _same(
    train: Recorder,
    node: fx.Node,
    evaluation: Recorder,
    other: fx.Node,
    partner: dict[fx.Node, fx.Node],
) -> bool:
    if node.op != other.op or node.target != other.target:
        return False
    if node.op == "get_attr" and node.target in train.constants:
        mine, theirs = train.constants[node.target], evaluation.constants[str(other.target)]
        if mine.shape != theirs.shape or mine.dtype != theirs.dtype or not torch.equal(mine, theirs):
            return False

    def translate(argument: fx.Node) -> Any:
        return partner.get(argument, argument)

    mine_args = map_arg((node.args, node.kwargs), translate)
    return repr(mine_args) == repr((other.args, other.kwargs))


def _dropout_input(node: fx.Node) -> fx.Node | None:
    """The input of an unconditional functional dropout, else None."""
    if node.op != "call_function" or node.target not in DROPOUT_MODULES:
        return None
    given = _dropout_arguments(node)
    return given["input"] if given["training"] is True else None


def _dropout_arguments(node: fx.Node) -> dict[str, Any]:
    assert callable(node.target)
    bound = inspect.signature(node.target).bind(*node.args, **node.kwargs)
    bound.apply_defaults()
    return bound.arguments


def _toggle_dropout(recorder: Recorder, node: fx.Node) -> None:
    assert callable(node.target)
    given = _dropout_arguments(node)
    module = DROPOUT_MODULES[node.target](plain_number(given["p"]), given["inplace"])
    name = recorder.new_submodule(node.meta["module_path"], "_dropout", module)
    with recorder.graph.inserting_before(node):
        replacement = recorder.graph.call_module(name, (given["input"],))
    replacement.meta = dict(node.meta)
    node.replace_all_uses_with(replacement)
    recorder.graph.erase_node(node)


def _difference(train: Recorder, node: fx.Node | None, other: fx.Node | None) -> TraceError:
    branches = [str(note) for note in train.notes if note.kind == "training-branch"]
    because = f"; it took {'; '.join(branches[:3])}" if branches else ""
    return TraceError(
        "the model takes different paths in train and eval mode, and not only by dropout: "
        f"train mode has {_describe(node)} where eval mode has {_describe(other)}{because}. "
        "This is not supported yet: make both modes compute the same apart from dropout and batch norm"
    )


def _describe(node: fx.Node | None) -> str:
    if node is None:
        return "nothing more"
    owner = node.meta.get("module_path") or "the model"
    return f"'{node.name}' of {owner} ({node.meta.get('source', 'the output')})"
