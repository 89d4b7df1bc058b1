"""What a model is fed from: its inputs out of a ``Data``, one graph or a loader of graphs."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from gnnquant.errors import InputError

if TYPE_CHECKING:
    from torch import nn
    from torch_geometric.data import Data

Inputs: TypeAlias = "Callable[[Data], Mapping[str, Any] | Sequence[Any]] | Mapping[str, str]"
"""How to find a model's inputs: ``data -> {parameter: value}`` (or the values in the parameters'
order), or a mapping from the parameters' names to the names of ``Data``'s attributes."""


def model_inputs(model: nn.Module, data: Data, inputs: Inputs | None = None) -> dict[str, Any]:
    """The keyword arguments with which ``model`` runs on ``data``.

    Without ``inputs`` every parameter of ``model.forward`` is taken from the attribute of that
    name (``x``, ``edge_index``, ``edge_weight``, ``edge_attr``, ``batch``, ...). A parameter that
    ``data`` lacks is left out when it has a default.

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
    found: dict[str, Any] = {}
    for name, parameter in parameters.items():
        attribute = attributes.get(name, name)
        if attribute in data:
            found[name] = data[attribute]
            continue
        required = parameter.default is inspect.Parameter.empty
        # Derived attributes (num_nodes, num_graphs) are not stored, and are given only on demand.
        value = getattr(data, attribute, None) if required or name in attributes else None
        if value is not None:
            found[name] = value
        elif required or name in attributes:
            raise InputError(
                f"{type(model).__name__}.forward needs {name!r}, and the data has no "
                f"{attribute!r} (it has {', '.join(sorted(data.keys()))}); store it there, or say "
                f"where it is: inputs={{{name!r}: 'attribute'}} or inputs=lambda data: {{...}}"
            )
    return found


def iterate(data: Data | Iterable[Data]) -> Iterator[Data]:
    """The graphs of one epoch: ``data`` itself, or what a loader yields.

    Args:
        data: A ``Data`` (or ``Batch``), or a list or loader that can be iterated over again.

    Yields:
        Each graph or batch.

    Raises:
        InputError: For an iterator that would be exhausted after one epoch, for heterogeneous
            graphs and for anything that is not graphs.
    """
    from torch_geometric.data import Data as HomogeneousData
    from torch_geometric.data.data import BaseData

    if isinstance(data, HomogeneousData):
        yield data
        return
    if isinstance(data, Iterator):
        raise InputError(f"a {type(data).__name__} can be read only once; pass a list or a loader of graphs")
    if isinstance(data, BaseData) or not isinstance(data, Iterable):
        raise InputError(f"expected a Data or a loader of Data, not a {type(data).__name__}")
    for graph in data:
        if not isinstance(graph, HomogeneousData):
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
