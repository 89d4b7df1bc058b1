"""One graph for both modes.

A model is traced in train and in eval mode. Where the two graphs are equal, either will do. Some models
apply dropout behind an ``if self.training`` (APPNP, RGAT): turning those calls into ``nn.Dropout`` modules
gives one graph that toggles. Whatever else differs (PMLP propagates in eval mode only) is kept side by
side: nodes of one mode carry ``meta["mode"]``, and ``select_mode(train_value, eval_value)`` stands
where the two join again. ``path_graph`` takes the one or the other out of it.
"""

from __future__ import annotations

import copy
import difflib
import hashlib
import inspect
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx
from torch.fx.node import map_arg

from gnnquant.tracing.graph_ops import select_mode
from gnnquant.tracing.numbers import plain_number
from gnnquant.tracing.tracer import DROPOUT_MODULES, Recorder

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator


def merge_modes(train: Recorder, evaluation: Recorder) -> Recorder:
    """Make ``train`` hold for eval mode too; it takes over what it needs of ``evaluation``."""
    for recorder in (train, evaluation):
        for node in recorder.kept:
            node.meta["effect"] = True
    _Merge(train, evaluation).run()
    train.notes.update(evaluation.notes)
    return train


def has_two_paths(graph: fx.Graph) -> bool:
    """Whether train and eval mode compute different things, beyond toggling modules."""
    return any(node.target is select_mode or "mode" in node.meta for node in graph.nodes)


def path_graph(graph: fx.Graph, training: bool) -> fx.Graph:
    """A copy of ``graph`` that holds what one mode runs; nodes keep their names."""
    result: fx.Graph = copy.deepcopy(graph)
    for node in list(result.nodes):
        if node.target is select_mode:
            _replace(node, node.args[0 if training else 1])
            result.erase_node(node)
    other = "eval" if training else "train"
    for node in reversed(list(result.nodes)):
        needed = node.meta.get("effect") and node.meta.get("mode") != other
        if not (node.users or needed or node.op in ("placeholder", "output")):
            result.erase_node(node)
    return result


def _replace(old: fx.Node, new: Any) -> None:
    """Let the users of ``old`` read ``new``, a node or a structure of nodes and constants."""
    for user in list(old.users):
        user.args, user.kwargs = map_arg((user.args, user.kwargs), lambda item: new if item is old else item)


class _Merge:
    """One merge: aligns the nodes of two graphs and copies what only eval mode has into that of train mode.

    Whatever the alignment, the result is right in both modes: an aligned pair becomes one node whose
    operands are selected by mode where they are not aligned themselves.
    """

    def __init__(self, train: Recorder, evaluation: Recorder) -> None:
        self.train = train
        self.evaluation = evaluation
        self.merged: dict[fx.Node, fx.Node] = {}
        """Node of the eval graph -> the node that stands for it."""
        self.in_eval: dict[fx.Node, fx.Node] = {}
        """Node of the train graph that changes nothing in eval mode -> what it hands on."""
        self.selected: dict[tuple[fx.Node, fx.Node], fx.Node] = {}

    def run(self) -> None:
        """Align and merge."""
        mine, theirs = list(self.train.graph.nodes), list(self.evaluation.graph.nodes)
        following = iter([*mine[1:], mine[-1]])
        upcoming = mine[0]
        for node, other in _aligned(self.train, mine, self.evaluation, theirs):
            if node is not None:
                upcoming = next(following)
            if node is not None and other is not None:
                self._pair(node, other)
            elif node is not None:
                self._only_in_training(node)
            elif other is not None:
                self._only_in_evaluation(other, upcoming)

    def _pair(self, node: fx.Node, other: fx.Node) -> None:
        self.merged[other] = node
        if _skeleton(node) == _skeleton(other):
            operands = iter(_operands(other))
            node.args, node.kwargs = map_arg(
                (node.args, node.kwargs), lambda item: self._select(item, self.merged[next(operands)], node)
            )
        else:  # the output, of another structure
            theirs = map_arg(other.args[0], self.merged.__getitem__)
            with self.train.graph.inserting_before(node):
                node.args = (self.train.graph.call_function(select_mode, (node.args[0], theirs)),)

    def _select(self, mine: fx.Node, theirs: fx.Node, user: fx.Node) -> fx.Node:
        """``mine`` in train mode and ``theirs`` in eval mode, as an operand of ``user``."""
        in_eval = mine
        while in_eval is not theirs and in_eval in self.in_eval:
            in_eval = self.in_eval[in_eval]
        if in_eval is theirs:
            return mine
        if (mine, theirs) not in self.selected:
            with self.train.graph.inserting_before(user):
                node = self.train.graph.call_function(select_mode, (mine, theirs))
            node.meta = {k: v for k, v in theirs.meta.items() if k not in ("mode", "effect", "gnn_role")}
            self.selected[mine, theirs] = node
        return self.selected[mine, theirs]

    def _only_in_training(self, node: fx.Node) -> None:
        dropped = _dropout_input(node)
        if dropped is None:
            node.meta["mode"] = "train"
        else:
            self.in_eval[_toggle_dropout(self.train, node)] = dropped

    def _only_in_evaluation(self, other: fx.Node, upcoming: fx.Node) -> None:
        graph = self.train.graph
        with graph.inserting_before(upcoming):
            node = graph.node_copy(other, self.merged.__getitem__)
        node.meta["mode"] = "eval"
        target = str(other.target)
        if other.op == "call_module" and target in self.evaluation.inserted:
            owner, _, key = target.rpartition(".")
            module = self.evaluation.inserted[target]
            node.target = self.train.new_submodule(owner, key.rstrip("0123456789"), module)
        elif other.op == "get_attr" and target in self.evaluation.constants:
            node.target = self.train.new_constant(self.evaluation.constants[target])
        self.merged[other] = node


def _aligned(
    train: Recorder, mine: list[fx.Node], evaluation: Recorder, theirs: list[fx.Node]
) -> Iterator[tuple[fx.Node | None, fx.Node | None]]:
    """Pairs of nodes that do the same, in order, and between them nodes without a partner."""
    keys = [_key(train, node) for node in mine]
    other_keys = [_key(evaluation, node) for node in theirs]
    start = 0
    while start < min(len(keys), len(other_keys)) and keys[start] == other_keys[start]:
        yield mine[start], theirs[start]
        start += 1
    matcher = difflib.SequenceMatcher(None, keys[start:], other_keys[start:], autojunk=False)
    for tag, i1, i2, j1, j2 in matcher.get_opcodes():
        left, right = mine[start + i1 : start + i2], theirs[start + j1 : start + j2]
        if tag == "equal":
            yield from zip(left, right, strict=True)
        else:
            yield from ((node, None) for node in left)
            yield from ((None, node) for node in right)


def _key(recorder: Recorder, node: fx.Node) -> Hashable:
    """What two nodes that do the same have in common."""
    if node.op == "output":
        return "output"
    target: Hashable = node.target
    if str(target) in recorder.inserted:
        module = recorder.inserted[str(target)]
        target = (type(module), repr(module))
    elif node.op == "get_attr" and str(target) in recorder.constants:
        target = _digest(recorder.constants[str(target)])
    meta = tuple(str(node.meta.get(key)) for key in ("module_path", "shape", "dtype"))
    return node.op, target, meta, _skeleton(node)


def _skeleton(node: fx.Node) -> str:
    """The arguments apart from which nodes they are."""
    return repr(map_arg((node.args, node.kwargs), lambda _: "%node"))


def _operands(node: fx.Node) -> list[fx.Node]:
    """The nodes among the arguments, in the order of ``map_arg``, repeated where they are repeated."""
    found: list[fx.Node] = []
    map_arg((node.args, node.kwargs), found.append)
    return found


def _digest(value: Tensor) -> Hashable:
    if value.layout != torch.strided:
        return id(value)
    data = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return str(value.dtype), tuple(value.shape), hashlib.sha256(data.numpy().tobytes()).hexdigest()


def _dropout_input(node: fx.Node) -> fx.Node | None:
    """The input of an unconditional functional dropout, else None."""
    if node.op != "call_function" or node.target not in DROPOUT_MODULES:
        return None
    given = _dropout_arguments(node)
    return given["input"] if given["training"] is True and not given["inplace"] else None


def _dropout_arguments(node: fx.Node) -> dict[str, Any]:
    assert callable(node.target)
    bound = inspect.signature(node.target).bind(*node.args, **node.kwargs)
    bound.apply_defaults()
    return bound.arguments


def _toggle_dropout(recorder: Recorder, node: fx.Node) -> fx.Node:
    """Turn a functional dropout into a module that toggles; returns the new node."""
    assert callable(node.target)
    given = _dropout_arguments(node)
    module = DROPOUT_MODULES[node.target](plain_number(given["p"]))
    name = recorder.new_submodule(node.meta["module_path"], "_dropout", module)
    with recorder.graph.inserting_before(node):
        replacement = recorder.graph.call_module(name, (given["input"],))
    replacement.meta = dict(node.meta)
    node.replace_all_uses_with(replacement)
    recorder.graph.erase_node(node)
    return replacement
