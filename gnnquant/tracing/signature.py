"""How a traced module is called: the model's own signature, minus what the trace has baked in."""

from __future__ import annotations

import dataclasses
import inspect
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch_geometric import EdgeIndex

from gnnquant.errors import InputError, TraceError

if TYPE_CHECKING:
    from collections.abc import Mapping


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
    bound = inspect.BoundArguments(signature, dict(arguments))
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
        return {key: layout_of(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [layout_of(item) for item in value]
    return value


@dataclasses.dataclass(frozen=True)
class CallSignature:
    """The calling convention of a ``TracedModule``.

    ``parameters``: the model's own signature. ``inputs``: parameters that became placeholders, with the
    layout seen while tracing. ``baked``: all other parameters, with the value the graph is true for.
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
            value = plain_edge_index(value)
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
