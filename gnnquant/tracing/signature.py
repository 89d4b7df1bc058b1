"""How a traced module is called: the model's own signature, minus what the trace has baked in."""

from __future__ import annotations

import copy
import dataclasses
import inspect
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch_geometric import EdgeIndex
from torch_geometric.data.data import BaseData

from gnnquant.errors import InputError, TraceError

if TYPE_CHECKING:
    from collections.abc import Mapping


class Fields(dict[Any, Any]):
    """The tensors and numbers of a ``Data``, ``HeteroData`` or ``Batch``, as a dict.

    Keys are names of attributes; for a ``HeteroData``, also node and edge types, each with ``Fields`` of
    its own. Placeholders hold such a dict where the model takes the object.
    """

    prototype: BaseData | None = None
    """The object without its content."""
    left_out: tuple[str, ...] = ()
    """Names of attributes that are neither tensors nor numbers."""

    @classmethod
    def of(cls, data: BaseData) -> Fields:
        """Take ``data`` apart."""
        fields = cls()
        left_out: list[str] = []
        for store in data.stores:
            target = fields if store._key is None else fields.setdefault(store._key, cls())
            for name, value in store.items():
                if _is_content(value):
                    target[name] = value
                else:
                    left_out.append(str(name))
        fields.prototype = copy.copy(data)
        for store in fields.prototype.stores:
            store._mapping = {}
            for name in ("_num_graphs", "_slice_dict", "_inc_dict"):  # true of this batch only
                vars(store).pop(name, None)
        fields.left_out = tuple(left_out)
        return fields

    def like(self, content: Mapping[Any, Any]) -> Fields:
        """The same kind of object with other content."""
        result = Fields(content)
        result.prototype, result.left_out = self.prototype, self.left_out
        return result

    def restored(self) -> BaseData:
        """An object as the model expects it."""
        assert self.prototype is not None
        data = copy.copy(self.prototype)
        by_key = {store._key: store for store in data.stores}
        for name, value in self.items():
            if isinstance(value, Fields):
                by_key[name]._mapping = dict(value)
            else:
                by_key[None]._mapping[name] = value
        return data

    def only(self, layout: Fields, name: str) -> dict[Any, Any]:
        """The content that ``layout`` names, as plain dicts; raises ``InputError`` where it is missing."""
        missing = [key for key in layout if key not in self]
        if missing:
            raise InputError(
                f"argument '{name}' has no {missing[0]!r}, which the model read when it was traced "
                f"(it has {', '.join(map(repr, self)) or 'nothing'})"
            )
        return {
            key: self[key].only(inner, f"{name}[{key!r}]") if isinstance(inner, Fields) else self[key]
            for key, inner in layout.items()
        }


pytree.register_pytree_node(
    Fields,
    lambda fields: (list(fields.values()), (list(fields), fields)),
    lambda values, context: context[1].like(zip(context[0], values, strict=True)),
)


def _is_content(value: Any) -> bool:
    leaves = pytree.tree_leaves(value)
    return all(
        isinstance(leaf, (Tensor, int, float)) and not isinstance(leaf, bool) for leaf in leaves
    ) and bool(leaves)


def taken_apart(value: Any) -> Any:
    """``value`` with ``Fields`` in place of every graph object."""
    return pytree.tree_map(lambda leaf: Fields.of(leaf) if isinstance(leaf, BaseData) else leaf, value)


def attributes_left_out(value: Any) -> tuple[str, ...]:
    """Names of attributes of graph objects in ``value`` that a traced graph takes no notice of."""
    leaves = pytree.tree_leaves(value, is_leaf=lambda leaf: isinstance(leaf, Fields))
    return tuple(name for leaf in leaves if isinstance(leaf, Fields) for name in leaf.left_out)


def put_together(value: Any) -> Any:
    """``value`` with graph objects in place of all ``Fields``."""
    return pytree.tree_map(
        lambda leaf: leaf.restored() if isinstance(leaf, Fields) else leaf,
        value,
        is_leaf=lambda leaf: isinstance(leaf, Fields),
    )


def forward_signature(model: nn.Module) -> inspect.Signature:
    """Signature of ``model.forward`` without annotations, so that it can be pickled."""
    if getattr(model.forward, "__func__", None) is nn.Module.forward:
        raise TraceError(f"'{type(model).__name__}' has no forward method, so there is nothing to trace")
    signature = inspect.signature(model.forward)
    return inspect.Signature(
        [p.replace(annotation=inspect.Parameter.empty) for p in signature.parameters.values()]
    )


def call(module: nn.Module, signature: inspect.Signature, arguments: Mapping[str, Any]) -> Any:
    """Call ``module`` with ``arguments`` by parameter name (``*args`` and ``**kwargs`` under theirs)."""
    bound = inspect.BoundArguments(
        signature, {name: put_together(value) for name, value in arguments.items()}
    )
    return module(*bound.args, **bound.kwargs)


def plain_edge_index(value: Any) -> Any:
    """``value`` with ordinary tensors in place of ``EdgeIndex`` objects."""
    return pytree.tree_map(lambda leaf: leaf.as_tensor() if isinstance(leaf, EdgeIndex) else leaf, value)


def layout_of(value: Any) -> Any:
    """What must stay the same from call to call: containers and keys, not tensors and numbers."""
    if isinstance(value, Tensor):
        return "a tensor"
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return "a number"
    if isinstance(value, dict):
        items = {key: layout_of(item) for key, item in value.items()}
        return Fields(items) if isinstance(value, Fields) else items
    if isinstance(value, (tuple, list)):
        return [layout_of(item) for item in value]
    return value


def _content(value: Any, layout: Any, name: str) -> Any:
    """``value`` with plain dicts, as far as ``layout`` reads them, in place of all ``Fields``."""
    if isinstance(value, Fields) and isinstance(layout, Fields):
        return value.only(layout, name)
    if isinstance(value, dict) and isinstance(layout, dict) and value.keys() == layout.keys():
        return {key: _content(item, layout[key], f"{name}[{key!r}]") for key, item in value.items()}
    if isinstance(value, (tuple, list)) and isinstance(layout, list) and len(value) == len(layout):
        items = [_content(v, layout[i], f"{name}[{i}]") for i, v in enumerate(value)]
        if hasattr(value, "_fields"):
            return type(value)(*items)
        return type(value)(items)
    return value


def spec_of(value: Any) -> Any:
    """``value`` with ``{"shape", "dtype", "sparse"}`` in place of every tensor."""

    def describe(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        return {"shape": tuple(leaf.shape), "dtype": leaf.dtype, "sparse": leaf.layout != torch.strided}

    return pytree.tree_map(describe, value)


@dataclasses.dataclass(frozen=True)
class CallSignature:
    """The calling convention of a ``TracedModule``.

    ``parameters``: the model's own signature. ``inputs``: parameters that became placeholders, with the
    layout seen while tracing (of graph objects: ``Fields``, with what the graph reads). ``baked``: all
    other parameters, with the value the graph is true for.
    """

    parameters: inspect.Signature
    inputs: dict[str, Any]
    baked: dict[str, Any]

    def bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
        """Turn a call of the model into arguments for the placeholders.

        Raises ``TypeError`` like the model would, and ``InputError`` for what the graph has no place for.
        """
        bound = self.parameters.bind(*args, **kwargs)
        bound.apply_defaults()
        positional: list[Any] = []
        named: dict[str, Any] = {}
        keywords_only = False
        for name, parameter in self.parameters.parameters.items():
            value = bound.arguments[name]
            if name not in self.inputs:
                self._check_baked(name, value)
                continue
            value = _content(plain_edge_index(taken_apart(value)), self.inputs[name], name)
            if layout_of(value) != self.inputs[name]:
                raise InputError(
                    f"argument '{name}' was {self.inputs[name]} when the model was traced and is now "
                    f"{layout_of(value)}; call it the same way, or trace it again with such an example"
                )
            if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
                positional.extend(value)
                keywords_only = True
            elif parameter.kind is inspect.Parameter.VAR_KEYWORD:
                named.update(value)
            elif keywords_only:
                named[name] = value
            else:
                positional.append(value)
        return positional, named

    def _check_baked(self, name: str, value: Any) -> None:
        traced = self.baked.get(name)
        if value is traced:
            return
        if type(value) is type(traced) and not isinstance(value, Tensor) and value == traced:
            return
        shown = "a tensor" if isinstance(value, Tensor) else repr(value)
        raise InputError(
            f"argument '{name}' was {traced!r} when the model was traced and is now {shown}; "
            f"trace it again with example_inputs that include '{name}'"
        )
