"""``TracedModule``: the ``fx.GraphModule`` that all later passes rewrite."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import importlib
import pickle
from typing import TYPE_CHECKING, Any

import torch
from torch import fx, nn

from gnnquant.tracing.copies import copy_linears
from gnnquant.tracing.merge import has_two_paths, path_graph

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from typing_extensions import Self

    from gnnquant.tracing.signature import CallSignature

_GENERATED = frozenset({"_graph", "_code", "_lineno_map", "_prologue_start", "_in_spec", "_out_spec"})
"""Attributes that ``fx`` makes from the graph."""

_FOREIGN_META = frozenset(
    {
        *("val", "tensor_meta", "example_value", "nn_module_stack", "source_fn_stack", "from_node"),
        *("stack_trace", "original_aten", "unbacked_bindings"),
    }
)
"""``node.meta`` keys of torch's own passes, which need not pickle."""


class TracedModule(fx.GraphModule):
    """A model as one graph with explicit messages and aggregates, called like the model itself.

    It is an ordinary ``fx.GraphModule``: one plain graph whose placeholders carry the names of the
    ``forward`` parameters, over submodules and parameters with the user's qualified names.
    ``train()`` and ``eval()`` toggle dropout and batch norm. Arguments that were ``None`` or not tensors
    or numbers in the example are constants of the graph; another value for them raises ``InputError``.

    Where the modes differ by more than toggling modules, the graph holds both: ``select_mode`` nodes
    stand where the two join, and nodes of one of them carry ``meta["mode"]``. A call runs the path of
    its mode and nothing else.

    To change the graph in place: edit ``module.graph``, then ``module.recompile()``. To build another
    module (also of a subclass): ``Subclass.from_graph(root, graph)``.

    Copies and pickles are exact: ``copy.deepcopy``, ``pickle`` and ``torch.save`` keep the class, the
    graph with its node names and ``node.meta``, and every attribute set on the module. In a pickle,
    functions are stored by reference, so they must be importable. Attributes should refer to nodes by
    name; a ``Node`` in an attribute would drag the old graph along.

    ``node.meta`` holds ``shape`` and ``dtype`` (of the example, for tensors), ``module_path`` (the
    user's module that issued the node), ``source`` (``file:line``) and, on markers, ``gnn_role``.
    """

    signature: CallSignature
    whole_layers: tuple[str, ...] = ()
    """Layers that could not be looked into and are one node each."""
    _path: bool | None = None

    def __init__(
        self,
        root: nn.Module,
        graph: fx.Graph,
        signature: CallSignature,
        class_name: str | None = None,
    ) -> None:
        """Take ``graph`` as it is and share what it refers to with ``root``; see ``from_graph``."""
        super().__init__(root, graph, class_name or _real_class(type(self)).__name__)
        self.signature = signature
        self.whole_layers = getattr(root, "whole_layers", ())
        self._adopt_flags(root)

    @classmethod
    def from_graph(
        cls,
        root: nn.Module,
        graph: fx.Graph,
        signature: CallSignature | None = None,
    ) -> Self:
        """Build a module of this class from a changed graph.

        Args:
            root: where the graph's targets are found, usually a ``TracedModule``. Parameters and
                submodules are shared with it, not copied; what the graph does not use is left out.
            graph: taken over, not copied. It must not go on to serve another module: pass
                ``copy.deepcopy(root.graph)``, changed, rather than ``root.graph``.
            signature: how the module is called; by default that of ``root``.
        """
        if signature is None:
            if not isinstance(root, TracedModule):
                raise TypeError("from_graph needs a signature when root is not a TracedModule")
            signature = root.signature
        module: Self = cls.__new__(cls)
        TracedModule.__init__(module, root, graph, signature)
        return module

    def _adopt_flags(self, root: nn.Module) -> None:
        """Take over what ``fx`` forgets: training flags, and which buffers stay out of state dicts."""
        theirs = dict(root.named_modules(remove_duplicate=False))
        for name, module in self.named_modules():
            if name in theirs and module is not theirs[name]:
                module.training = theirs[name].training
        for node in self.graph.nodes:
            if node.op != "get_attr":
                continue
            path, _, key = node.target.rpartition(".")
            mine, owner = self.get_submodule(path), theirs.get(path)
            if mine is owner or key not in mine._buffers or owner is None:
                continue
            if key not in owner._buffers or key in owner._non_persistent_buffers_set:
                mine._non_persistent_buffers_set.add(key)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call like the model: positional or keyword arguments, defaults respected."""
        positional, named = self.signature.bind(args, kwargs)
        return super().__call__(*positional, **named)

    # --- two paths -----------------------------------------------------------------------------------

    @property
    def has_two_paths(self) -> bool:
        """Whether train and eval mode compute different things, beyond dropout and batch norm."""
        return has_two_paths(self.graph)

    def path_graph(self, training: bool) -> fx.Graph:
        """A copy of the graph with only what runs in train or in eval mode; nodes keep their names."""
        return path_graph(self.graph, training)

    @contextlib.contextmanager
    def on_path(self, training: bool) -> Iterator[None]:
        """Run the train (or eval) path, whatever the mode of the submodules, inside of the block."""
        self._path = training
        try:
            yield
        finally:
            del self._path

    def recompile(self) -> Any:
        """Make the code that runs from the graph: one function for each mode where they differ."""
        generated = super().recompile()
        if has_two_paths(self.graph):
            cls = type(self)
            paths = {mode: _compiled(path_graph(self.graph, mode)) for mode in (False, True)}

            @functools.wraps(cls.forward)
            def forward(module: TracedModule, *args: Any, **kwargs: Any) -> Any:
                mode = module.training if module._path is None else module._path
                return paths[mode](module, *args, **kwargs)

            cls.forward = forward
        return generated

    # --- copying and pickling ------------------------------------------------------------------------

    def _state(self, write: Callable[[fx.Node], dict[str, Any]]) -> dict[str, Any]:
        attributes = {k: v for k, v in self.__dict__.items() if k not in _GENERATED}
        return {
            "class_name": type(self).__name__,
            "attributes": attributes,
            "nodes": [write(node) for node in self.graph.nodes],
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Rebuild from attributes and a table of nodes, without tracing anything."""
        self.__dict__.update(state["attributes"])
        type(self).__name__ = state["class_name"]
        self.graph = _read_graph(state["nodes"])

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the class, the attributes and the table of nodes."""
        return _new_instance, (_real_class(type(self)),), self._state(_write_pickled_node)

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        """Copy parameters, attributes and graph."""
        memo = {} if memo is None else memo
        result = _new_instance(_real_class(type(self)))
        memo[id(self)] = result
        copy_linears(self, memo)
        result.__setstate__(copy.deepcopy(self._state(_write_node), memo))
        return result  # type: ignore[return-value]

    def __copy__(self) -> Self:
        """A module with its own graph over the same parameters and submodules."""
        result = _new_instance(_real_class(type(self)))
        state = self._state(_write_node)
        for key in ("_modules", "_parameters", "_buffers", "_non_persistent_buffers_set"):
            state["attributes"][key] = state["attributes"][key].copy()
        result.__setstate__(state)
        return result  # type: ignore[return-value]


def _real_class(cls: type) -> type:
    """The class as written; ``fx`` gives every instance a subclass of its own."""
    return next(c for c in cls.__mro__ if c.__qualname__.split(".")[-1] != "GraphModuleImpl")


def _new_instance(cls: type[TracedModule]) -> TracedModule:
    module: TracedModule = cls.__new__(cls)
    return module


def _compiled(graph: fx.Graph) -> Callable[..., Any]:
    """The function that ``graph`` describes; its first argument is the module."""
    code = graph.python_code(root_module="self")
    names = dict(code.globals)
    exec(compile(code.src, "<traced path>", "exec"), names)
    return names["forward"]


@dataclasses.dataclass(frozen=True)
class _NodeRef:
    """Stands for a node in the arguments of another, by name."""

    name: str


@dataclasses.dataclass(frozen=True)
class _FunctionRef:
    """Stands for a function that can be imported."""

    module: str
    qualified_name: str

    def resolve(self) -> Any:
        return _look_up(importlib.import_module(self.module), self.qualified_name)


def _write_node(node: fx.Node) -> dict[str, Any]:
    return {
        "op": node.op,
        "name": node.name,
        "target": node.target,
        "args": _map(node.args, _node_to_ref),
        "kwargs": _map(node.kwargs, _node_to_ref),
        "type": node.type,
        "meta": {k: v for k, v in node.meta.items() if k not in _FOREIGN_META},
    }


def _write_pickled_node(node: fx.Node) -> dict[str, Any]:
    row = _write_node(node)
    if node.op == "call_function":
        row["target"] = _function_ref(node)
    return row


def _read_graph(rows: list[dict[str, Any]]) -> fx.Graph:
    graph = fx.Graph()
    nodes: dict[str, fx.Node] = {}

    def ref_to_node(value: Any) -> Any:
        return nodes[value.name] if isinstance(value, _NodeRef) else value

    for row in rows:
        target = row["target"]
        if isinstance(target, _FunctionRef):
            target = target.resolve()
        args, kwargs = _map(row["args"], ref_to_node), _map(row["kwargs"], ref_to_node)
        node = graph.create_node(row["op"], target, args, kwargs, row["name"], row["type"])
        node.meta.update(row["meta"])
        nodes[row["name"]] = node
    return graph


def _node_to_ref(value: Any) -> Any:
    return _NodeRef(value.name) if isinstance(value, fx.Node) else value


def _map(value: Any, function: Callable[[Any], Any]) -> Any:
    """Apply ``function`` to the leaves of nested arguments, keeping the containers plain and exact."""
    if isinstance(value, tuple):
        items = [_map(v, function) for v in value]
        return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
    if isinstance(value, list):
        return [_map(v, function) for v in value]
    if isinstance(value, dict):
        return {k: _map(v, function) for k, v in value.items()}
    if isinstance(value, slice):
        return slice(_map(value.start, function), _map(value.stop, function), _map(value.step, function))
    return function(value)


_HOMES = ("torch", "torch.nn.functional", "operator", "math", "builtins", "torch.Tensor")


def _function_ref(node: fx.Node) -> Any:
    """A reference to the function that ``node`` calls, or the function where it pickles by itself."""
    function: Any = node.target
    short = str(getattr(function, "__name__", ""))
    name = str(getattr(function, "__qualname__", short))
    for home in (getattr(function, "__module__", None), *_HOMES):
        if not isinstance(home, str):
            continue
        module, prefix = ("torch", "Tensor.") if home == "torch.Tensor" else (home, "")
        for candidate in dict.fromkeys((name, short)):
            ref = _FunctionRef(module, prefix + candidate)
            try:
                if ref.resolve() is function:
                    return ref
            except (ImportError, AttributeError):
                continue
    if isinstance(function, (torch._ops.OpOverload, torch._ops.OpOverloadPacket)):
        return _FunctionRef("torch", f"ops.{function}")
    try:
        pickle.dumps(function)
    except Exception as error:
        raise pickle.PicklingError(
            f"node '{node.name}' calls {function!r}, which cannot be imported by name; "
            "define it at the top level of a module"
        ) from error
    return function


def _look_up(module: Any, qualified_name: str) -> Any:
    value = module
    for part in qualified_name.split("."):
        value = getattr(value, part)
    return value
