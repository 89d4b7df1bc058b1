"""Nested arguments and results: from a call to the leaves of its parameters, and from outputs to a result.

See ``gnnquant.integer_graph.TREES``.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np

from gnnquant.errors import BackendError, InputError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from gnnquant.integer_graph import Parameter

PARAMETER_KINDS = ("positional", "keyword", "*", "**")
_MISSING = object()


class Signature:
    """The parameters of a model, ready to take arguments."""

    def __init__(self, parameters: Sequence[Parameter]) -> None:
        self._parameters = tuple(parameters)
        self._positional = [item.name for item in parameters if item.kind == "positional"]
        self._named = {item.name for item in parameters if item.kind in ("positional", "keyword")}
        self._star = next((item.name for item in parameters if item.kind == "*"), None)
        self._rest = next((item.name for item in parameters if item.kind == "**"), None)

    def __str__(self) -> str:
        """As in a definition: ``x, edge_index, edge_weight=None``."""
        shown = []
        for item in self._parameters:
            prefix = item.kind if item.kind in ("*", "**") else ""
            default = f"={item.tree.get('constant')!r}" if item.optional and "constant" in item.tree else ""
            shown.append(f"{prefix}{item.name}{default}")
        return ", ".join(shown)

    def bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[tuple[str, Any]]:
        """Pair the name of each input with its value.

        Raises:
            InputError: Too many, unknown, doubled or missing arguments, other containers than the model
                was compiled for, or a constant of its trace that has another value.
        """
        given = self._by_parameter(args, kwargs)
        pairs: list[tuple[str, Any]] = []
        for parameter in self._parameters:
            if parameter.name in given:
                value, tree = given[parameter.name], parameter.tree
                if "input" in tree and value is not None:
                    pairs.append((tree["input"], value))
                else:
                    pairs += _walk(tree, value, parameter.name)
            elif not parameter.optional:
                raise InputError(f"input {parameter.name!r} is missing: the model takes {self}")
        return pairs

    def _by_parameter(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        given: dict[str, Any] = dict(zip(self._positional, args, strict=False))
        extra = args[len(self._positional) :]
        if self._star is not None:
            given[self._star] = extra
        elif extra:
            raise InputError(
                f"the model takes {len(self._positional)} inputs by position ({self}), but {len(args)} were "
                "given"
            )
        rest: dict[str, Any] = {}
        for name, value in kwargs.items():
            if name not in self._named:
                rest[name] = value
            elif name in given:
                raise InputError(f"input {name!r} was given twice, by position and by name")
            else:
                given[name] = value
        if self._rest is not None:
            given[self._rest] = rest
        elif rest:
            raise InputError(f"the model has no input {next(iter(rest))!r}: its inputs are {self}")
        return given


def _walk(tree: dict[str, Any], value: Any, path: str) -> Iterator[tuple[str, Any]]:
    ((kind, content),) = tree.items()
    if kind == "input":
        if value is None:
            raise InputError(f"input {path!r} is None: the model was compiled for a value there")
        yield content, value
    elif kind == "constant":
        _check_constant(content, value, path)
    elif kind in ("tuple", "list"):
        yield from _walk_list(kind, content, value, path)
    elif kind == "dict":
        yield from _walk_dict(content, value, path)
    elif kind == "data":
        for key, item in content:
            yield from _walk(item, _field(value, tree_key(key), path), f"{path}.{_key_name(tree_key(key))}")


def _walk_list(kind: str, content: list[Any], value: Any, path: str) -> Iterator[tuple[str, Any]]:
    if not isinstance(value, (tuple, list)):
        raise InputError(f"{path} is a {_type(value)}: pass a {kind} of {len(content)}")
    if len(value) != len(content):
        raise InputError(
            f"{path} has {len(value)} entries, but the model was compiled for {len(content)}: pass as "
            "many, or compile it again with such an example"
        )
    for position, (item, part) in enumerate(zip(content, value, strict=True)):
        yield from _walk(item, part, f"{path}[{position}]")


def _walk_dict(content: list[Any], value: Any, path: str) -> Iterator[tuple[str, Any]]:
    if not isinstance(value, Mapping):
        raise InputError(f"{path} is a {_type(value)}: pass a dictionary")
    entries = {tree_key(key): item for key, item in content}
    for key in value:
        if key not in entries:
            raise InputError(
                f"{path} has the entry {key!r}, which was not there when the model was compiled: leave it "
                "out, or compile again with an example that has it"
            )
    for key, item in entries.items():
        if key not in value:
            raise InputError(f"{path} has no entry {key!r}: the model was compiled with it")
        yield from _walk(item, value[key], f"{path}[{_key_name(key)}]")


def _field(value: Any, key: Any, path: str) -> Any:
    """``value[key]``, as PyG's data objects and dictionaries have it, or the attribute ``key``."""
    if hasattr(value, "__getitem__"):
        try:
            return value[key]
        except (KeyError, IndexError, TypeError, AttributeError):
            pass
    if isinstance(key, str):
        found = getattr(value, key, _MISSING)
        if found is not _MISSING:
            return found
    raise InputError(f"{path} is a {_type(value)} without {key!r}: the model was compiled with it")


def _check_constant(wanted: Any, value: Any, path: str) -> None:
    if wanted is None:
        if value is None:
            return
        raise InputError(
            f"input {path!r} was None when the model was compiled, so the compiled model "
            f"cannot use it: leave it out, or compile again with an example of {path!r}"
        )
    if not _equal(wanted, value):
        plain = value is None or isinstance(value, (bool, numbers.Number, str))
        shown = repr(value) if plain else f"a {_type(value)}"
        raise InputError(
            f"input {path!r} was {wanted!r} when the model was compiled, which the code relies on, and is "
            f"now {shown}: pass {wanted!r}, or compile again"
        )


def _equal(wanted: Any, value: Any) -> bool:
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(wanted, (bool, str)) or isinstance(value, bool):
        return type(value) is type(wanted) and bool(value == wanted)
    if not isinstance(value, numbers.Real):
        return False
    return bool(value == wanted) or (math.isnan(wanted) and math.isnan(value))


def assemble(tree: Any, outputs: Sequence[Any]) -> Any:
    """The result of a call: ``outputs`` in the containers of ``tree``.

    Without a tree: the only output, or a tuple of them.
    """
    if tree is None:
        return outputs[0] if len(outputs) == 1 else tuple(outputs)
    if "output" in tree:
        output = outputs[tree["output"]]
        return output.reshape(output.shape[1:]) if tree.get("squeeze") else output
    ((kind, content),) = tree.items()
    if kind == "constant":
        return content
    if kind in ("tuple", "list"):
        parts = [assemble(item, outputs) for item in content]
        return tuple(parts) if kind == "tuple" else parts
    entries = {tree_key(key): assemble(item, outputs) for key, item in content}
    return entries if kind == "dict" else SimpleNamespace(**entries)


def check_trees(parameters: Sequence[Parameter], inputs: Sequence[str], result: Any, outputs: int) -> None:
    """Check that trees are well formed and that every input is a leaf of them once.

    Raises:
        BackendError: Saying what is wrong.
    """
    leaves: list[Any] = []
    for parameter in parameters:
        if parameter.kind not in PARAMETER_KINDS:
            raise BackendError(f"parameter {parameter.name!r} has the kind {parameter.kind!r}")
        leaves += _leaves(parameter.tree, "input")
    if sorted(leaves) != sorted(inputs):
        raise BackendError(f"the parameters have the leaves {leaves} for the inputs {list(inputs)}")
    for position in _leaves(result, "output") if result is not None else []:
        if not isinstance(position, int) or not 0 <= position < outputs:
            raise BackendError(f"the result has the output {position!r}, but there are {outputs}")


def _leaves(tree: Any, leaf: str) -> list[Any]:
    kinds = {leaf, "constant", "unused", "tuple", "list", "dict", "data"}
    found = [key for key in tree if key in kinds] if isinstance(tree, dict) else []
    extra = len(tree) - len(found) if isinstance(tree, dict) else 0
    if len(found) != 1 or extra > (leaf == "output" and "squeeze" in tree):
        raise BackendError(f"{tree!r} is no tree of arguments or results")
    content = tree[found[0]]
    if found[0] == leaf:
        return [content]
    if found[0] in ("constant", "unused"):
        return []
    items = content if found[0] in ("tuple", "list") else [item for _, item in content]
    return [name for item in items for name in _leaves(item, leaf)]


def tree_key(key: Any) -> Any:
    """A key of a dictionary; tuples are stored as lists."""
    return tuple(map(tree_key, key)) if isinstance(key, list) else key


def _key_name(key: Any) -> str:
    return ",".join(map(str, key)) if isinstance(key, tuple) else str(key)


def _type(value: object) -> str:
    kind = type(value)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
