"""What a model is fed from: its inputs out of a ``Data``, one graph or a loader of graphs."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from types import UnionType
from typing import TYPE_CHECKING, Any, TypeAlias, TypeGuard, get_args

from gnnquant.errors import InputError

if TYPE_CHECKING:
    from torch import nn
    from torch_geometric.data import Data, HeteroData
    from torch_geometric.data.storage import BaseStorage

    Graph: TypeAlias = Data | HeteroData

Inputs: TypeAlias = "Callable[[Any], Mapping[str, Any] | Sequence[Any]] | Mapping[str, str]"
"""How to find a model's inputs: ``data -> {parameter: value}`` (or the values in the parameters'
order), or a mapping from the parameters' names to the names of ``Data``'s attributes."""
GRAPH_TYPES = frozenset({"Data", "HeteroData", "Batch"})
"""Annotations of parameters that take a whole graph."""
GRAPH_NAMES = frozenset({"data", "batch", "graph"})
"""What users call the one parameter of a ``forward`` that takes a whole graph."""


def model_inputs(model: nn.Module, data: Graph, inputs: Inputs | None = None) -> dict[str, Any]:
    """The keyword arguments with which ``model`` runs on ``data``.

    Without ``inputs`` every parameter of ``model.forward`` is taken from the attribute of that
    name (``x``, ``edge_index``, ``edge_weight``, ``edge_attr``, ``batch``, ...; of a ``HeteroData``
    ``x_dict``, ``edge_index_dict``, ...). A parameter that ``data`` lacks is left out when it has a
    default. A parameter that takes a whole graph is given ``data`` itself: the model was traced with one,
    its annotation says so, or it is the only one that is required and called ``data``, ``batch`` or
    ``graph``.

    Args:
        model: The model, or anything with the same signature of ``forward``.
        data: One graph or one batch of graphs.
        inputs: See ``Inputs``. A mapping need only name the parameters that differ.

    Returns:
        Parameter name -> value.

    Raises:
        InputError: When a required input is missing, or ``inputs`` names an unknown one.
    """
    parameters = forward_parameters(model)
    if callable(inputs):
        return _checked(parameters, inputs(data))
    attributes = dict(inputs or {})
    _refuse_unknown(parameters, attributes)
    whole = _take_graphs(model, parameters)
    found: dict[str, Any] = {}
    for name, parameter in parameters.items():
        if name in whole and name not in attributes:
            found[name] = data
            continue
        attribute = attributes.get(name, name)
        wanted = parameter.default is inspect.Parameter.empty or name in attributes
        value = _attribute(data, attribute, derived=wanted)
        if value is not None:
            found[name] = value
        elif wanted:
            raise InputError(
                f"{type(model).__name__}.forward needs {name!r}, and the data has no "
                f"{attribute!r} (it has {', '.join(sorted(data.keys()))}); store it there, or say "
                f"where it is: inputs={{{name!r}: 'attribute'}} or inputs=lambda data: {{...}}"
            )
    return found


def _take_graphs(model: nn.Module, parameters: Mapping[str, inspect.Parameter]) -> set[str]:
    """Parameters that take a whole graph."""
    from gnnquant.tracing import TracedModule
    from gnnquant.tracing.signature import Fields

    if isinstance(model, TracedModule):
        return {name for name, layout in model.signature.inputs.items() if isinstance(layout, Fields)}
    annotated = {name for name, item in parameters.items() if _names_graph(item.annotation)}
    required = [name for name, item in parameters.items() if item.default is inspect.Parameter.empty]
    return annotated | (set(required) & GRAPH_NAMES if len(required) == 1 else set())


def _names_graph(annotation: Any) -> bool:
    """Whether an annotation, which may be a string, is a type of graphs or a union with one."""
    if isinstance(annotation, type):
        return any(base.__name__ in GRAPH_TYPES for base in annotation.__mro__)
    parts = annotation.split("|") if isinstance(annotation, str) else []
    named = any(part.strip().rpartition(".")[2] in GRAPH_TYPES for part in parts)
    return named or (isinstance(annotation, UnionType) and any(map(_names_graph, get_args(annotation))))


def _attribute(data: Graph, name: str, *, derived: bool) -> Any:
    """An attribute of ``data``, None where there is none."""
    from torch_geometric.data import HeteroData

    # keys of a HeteroData are those of its types; asking it for another one would add a type
    stored = data.stores[0] if isinstance(data, HeteroData) else data
    if name in stored:
        return stored[name]
    by_type = isinstance(data, HeteroData) and name.endswith("_dict") and name[:-5] in data
    # Derived attributes (num_nodes, num_graphs) are not stored, and are given only on demand.
    if derived or by_type:
        with suppress(KeyError):
            return getattr(data, name, None)
    return None


def is_graph(data: object) -> TypeGuard[Graph]:
    """Whether ``data`` is one graph or one batch of graphs."""
    from torch_geometric.data import Data, HeteroData

    return isinstance(data, (Data, HeteroData))


def labelled_part(data: Graph) -> Data | BaseStorage:
    """What has the labels and masks: the graph itself, or of a ``HeteroData`` the part that has them.

    Raises:
        InputError: When several types have masks or, without masks, labels.
    """
    from torch_geometric.data import HeteroData

    if not isinstance(data, HeteroData):
        return data
    for name in ("train_mask", "y"):
        parts = [store for store in data.stores if name in store]
        if len(parts) > 1:
            types = ", ".join(repr(store._key) for store in parts)
            raise InputError(f"{types} have {name}: leave it to the one type that the model scores")
        if parts:
            return parts[0]
    return data.stores[0]


def iterate(data: Graph | Iterable[Graph]) -> Iterator[Graph]:
    """The graphs of one epoch: ``data`` itself, or what a loader yields.

    Args:
        data: A ``Data``, ``HeteroData`` or ``Batch``, or a list or loader that can be iterated over again.

    Yields:
        Each graph or batch.

    Raises:
        InputError: For an iterator that would be exhausted after one epoch, and for anything that is
            not graphs.
    """
    from torch_geometric.data.data import BaseData

    if is_graph(data):
        yield data
        return
    if isinstance(data, Iterator):
        raise InputError(f"a {type(data).__name__} can be read only once; pass a list or a loader of graphs")
    if isinstance(data, BaseData) or not isinstance(data, Iterable):
        raise InputError(f"expected a Data or a loader of Data, not a {type(data).__name__}")
    for graph in data:
        if not is_graph(graph):
            raise InputError(
                f"expected a Data or a loader of Data, not a {type(data).__name__} of {type(graph).__name__}"
            )
        yield graph


def forward_parameters(model: nn.Module) -> dict[str, inspect.Parameter]:
    """The named parameters of ``model.forward``, without ``*args`` and ``**kwargs``.

    Raises:
        InputError: When ``forward`` names none.
    """
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    every = inspect.signature(model.forward).parameters
    named = {name: item for name, item in every.items() if item.kind not in variadic}
    if not named:
        raise InputError(
            f"{type(model).__name__}.forward names no parameters, so its inputs cannot be taken "
            "from the data by name; wrap it in a module whose forward names them"
        )
    return named


def _checked(
    parameters: Mapping[str, inspect.Parameter], given: Mapping[str, Any] | Sequence[Any]
) -> dict[str, Any]:
    """What an ``inputs`` function returned, by parameter name."""
    if isinstance(given, Mapping):
        _refuse_unknown(parameters, given)
        return dict(given)
    if not isinstance(given, tuple | list):
        raise InputError(
            f"inputs= must return a dict or a tuple of model inputs, not a {type(given).__name__}"
        )
    if len(given) > len(parameters):
        raise InputError(
            f"inputs= returned {len(given)} values for the {len(parameters)} parameters "
            f"({', '.join(parameters)})"
        )
    return dict(zip(parameters, given, strict=False))


def _refuse_unknown(parameters: Mapping[str, inspect.Parameter], names: Iterable[str]) -> None:
    """Raise ``InputError`` for a name that ``forward`` does not have."""
    unknown = sorted(set(names) - set(parameters))
    if unknown:
        raise InputError(
            f"inputs= names {', '.join(map(repr, unknown))}, and the model's parameters are "
            f"{', '.join(parameters)}"
        )
