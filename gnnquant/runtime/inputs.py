"""Checks of what a call is given: each function returns a numpy array or raises ``InputError``.

Nothing is converted that could change a value. torch is never imported: a torch tensor can only be
met in a process that has imported torch.
"""

from __future__ import annotations

import math
import sys
from typing import TYPE_CHECKING, Any

import numpy as np

from gnnquant.errors import InputError
from gnnquant.runtime.graph import INT32_MAX

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from gnnquant.runtime.plan import PlanInput


def bind(
    inputs: Sequence[PlanInput], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> list[tuple[PlanInput, Any]]:
    """Pair each input with its value, leaving out the optional ones that are not there.

    Raises:
        InputError: Too many, unknown, doubled or missing arguments, or a value for an input that
            was None when the model was compiled.
    """
    names = [item.name for item in inputs]
    signature = ", ".join(names)
    if len(args) > len(inputs):
        raise InputError(f"the model takes {len(inputs)} inputs ({signature}), but {len(args)} were given")
    values = dict(zip(names, args, strict=False))
    for name, value in kwargs.items():
        if name not in names:
            raise InputError(f"the model has no input {name!r}: its inputs are {signature}")
        if name in values:
            raise InputError(f"input {name!r} was given twice, by position and by name")
        values[name] = value
    pairs = []
    for item in inputs:
        value = values.get(item.name)
        if value is None:
            if not item.optional:
                state = "is None" if item.name in values else "is missing"
                raise InputError(f"input {item.name!r} {state}: the model takes {signature}")
        elif item.optional:
            raise InputError(
                f"input {item.name!r} was None when the model was compiled, so the compiled model "
                f"cannot use it: leave it out, or compile again with an example of {item.name!r}"
            )
        else:
            pairs.append((item, value))
    return pairs


def is_torch(value: object) -> bool:
    """Whether ``value`` is a torch tensor."""
    tensor = getattr(sys.modules.get("torch"), "Tensor", None)
    return tensor is not None and isinstance(value, tensor)


def as_array(name: str, value: Any, *, dtype: str) -> NDArray[Any]:
    """``value`` as a numpy array of type ``dtype`` that shares its memory.

    Raises:
        InputError: It is no array, is on another device or has another type.
    """
    if is_torch(value):
        return _from_torch(name, value, dtype)
    if not isinstance(value, np.ndarray):
        raise InputError(
            f"{name} is a {type(value).__module__}.{type(value).__qualname__}: "
            "pass a torch tensor or a numpy array"
        )
    if isinstance(value, np.ma.MaskedArray):
        raise InputError(f"{name} is a masked array: fill it first, e.g. {name}.filled(0)")
    if value.dtype != dtype:
        raise InputError(_wrong_type(name, str(value.dtype), dtype, f"{name}.astype(np.{dtype})"))
    return np.asarray(value)


def _from_torch(name: str, value: Any, dtype: str) -> NDArray[Any]:
    if value.device.type != "cpu":
        raise InputError(
            f"{name} is on {value.device}, but this model was compiled for the CPU: pass {name}.cpu()"
        )
    if str(value.layout) != "torch.strided":
        hint = "pass edge_index as int64 [2, E]" if dtype == "int64" else f"{name}.to_dense()"
        raise InputError(f"{name} is sparse ({value.layout}): {hint}")
    found = str(value.dtype).removeprefix("torch.")
    if found != dtype:
        method = {"int64": "long()", "float32": "float()"}[dtype]
        raise InputError(_wrong_type(name, found, dtype, f"{name}.{method}"))
    if value.requires_grad:
        value = value.detach()
    if value.is_neg():
        value = value.resolve_neg()
    try:
        array: NDArray[Any] = value.numpy()
    except (RuntimeError, TypeError) as error:
        raise InputError(f"{name} has no data that can be read as an array: {error}") from error
    return array


def _wrong_type(name: str, found: str, wanted: str, conversion: str) -> str:
    message = f"{name} is {found}, but {wanted} is needed: pass {conversion}"
    if wanted == "int64" and found.startswith(("float", "bfloat", "complex")):
        message += " if it really holds node indices"
    return message


def edge_array(name: str, value: Any) -> NDArray[np.int64]:
    """An ``edge_index``: int64 [2, E]. Its values are not looked at."""
    array = as_array(name, value, dtype="int64")
    if array.ndim != 2 or array.shape[0] != 2:
        hint = ""
        if array.ndim == 2 and array.shape[1] == 2:
            hint = f"; {name} looks transposed: pass {name}.T"
        raise InputError(f"{name} has shape {list(array.shape)}, but [2, E] is needed{hint}")
    if array.shape[1] > INT32_MAX:
        raise InputError(f"{name} has {array.shape[1]} edges: at most {INT32_MAX} are supported")
    return array


def rows_array(item: PlanInput, value: Any) -> NDArray[np.float32]:
    """Float rows of a ``"node"`` or ``"edge"`` input: float32 [rows] or [rows, columns]."""
    array = as_array(item.name, value, dtype="float32")
    rows = "N" if item.kind == "node" else "E"
    if item.columns == 0:
        if array.ndim != 1:
            hint = ""
            if array.ndim == 2 and array.shape[1] == 1:
                hint = f": pass {item.name}.reshape(-1)"
            raise InputError(f"{item.name} has shape {list(array.shape)}, but [{rows}] is needed{hint}")
    elif array.ndim != 2 or array.shape[1] != item.columns:
        why = ""
        if array.ndim == 2:
            why = f": the model was compiled for {item.columns} columns, not {array.shape[1]}"
        elif array.ndim == 1 and item.columns == 1:
            why = f": pass {item.name}.reshape(-1, 1)"
        raise InputError(
            f"{item.name} has shape {list(array.shape)}, but [{rows}, {item.columns}] is needed{why}"
        )
    if array.shape[0] > INT32_MAX:
        raise InputError(f"{item.name} has {array.shape[0]} rows: at most {INT32_MAX} are supported")
    return array


def check_finite(name: str, array: NDArray[np.float32]) -> None:
    """Check that ``array`` holds neither NaN nor infinity, in about the time of reading it once.

    Call it where numpy's floating-point warnings are off.

    Raises:
        InputError: With the first bad value and where it is.
    """
    if math.isfinite(np.add.reduce(array, axis=None)):
        return
    finite = np.isfinite(array)  # a sum of finite values may overflow
    if finite.all():
        return
    where = tuple(int(part[0]) for part in np.nonzero(~finite))
    raise InputError(
        f"{name}[{', '.join(map(str, where))}] is {float(array[where])}: NaN and infinity cannot "
        f"be quantized; clean {name} first, e.g. with nan_to_num"
    )
