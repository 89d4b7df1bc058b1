"""Checks of what a call is given: each function returns numpy arrays or numbers, or raises ``InputError``.

Nothing is converted that could change a value. torch and scipy are never imported: their objects can
only be met in a process that has imported them.
"""

from __future__ import annotations

import math
import sys
from typing import TYPE_CHECKING, Any

import numpy as np

from gnnquant.errors import InputError
from gnnquant.runtime.device import DeviceArray
from gnnquant.runtime.graph import INT32_MAX

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from gnnquant.integer_graph import GraphInput

INPUT_KINDS = ("rows", "edges", "index", "mask", "size", "adjacency")


def is_torch(value: object) -> bool:
    """Whether ``value`` is a torch tensor."""
    tensor = getattr(sys.modules.get("torch"), "Tensor", None)
    return tensor is not None and isinstance(value, tensor)


def as_array(
    name: str, value: Any, *, dtype: str, sparse_hint: str = "", gpu: str = ""
) -> NDArray[Any] | DeviceArray:
    """``value`` as an array of type ``dtype`` that shares its memory: numpy's, or torch's on a GPU.

    Args:
        name: Of the input.
        value: What was passed.
        dtype: The type that it must have.
        sparse_hint: What to pass instead of a sparse tensor.
        gpu: torch's name of the GPU whose tensors are taken too; "": of none.

    Raises:
        InputError: It is no array, is on another device or has another type.
    """
    if is_torch(value):
        return _from_torch(name, value, dtype, sparse_hint or f"{name}.to_dense()", gpu)
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


def _from_torch(name: str, value: Any, dtype: str, sparse_hint: str, gpu: str) -> NDArray[Any] | DeviceArray:
    _check_device(name, value, gpu)
    if str(value.layout) != "torch.strided":
        raise InputError(f"{name} is sparse ({value.layout}): {sparse_hint}")
    _check_torch_type(name, value, dtype)
    if hasattr(value, "as_tensor"):  # PyG's EdgeIndex and Index
        value = value.as_tensor()
    if value.requires_grad:
        value = value.detach()
    if value.is_neg():
        value = value.resolve_neg()
    if value.device.type != "cpu":
        return DeviceArray.of(value)
    try:
        array: NDArray[Any] = value.numpy()
    except (RuntimeError, TypeError) as error:
        raise InputError(f"{name} has no data that can be read as an array: {error}") from error
    return array


def _check_device(name: str, value: Any, gpu: str) -> None:
    found = str(value.device)
    if value.device.type == "cpu" or found == gpu:
        return
    if gpu:
        raise InputError(
            f"{name} is on {found}, but this model runs on {gpu}: pass {name}.to({gpu!r}) or {name}.cpu()"
        )
    raise InputError(f"{name} is on {found}, but this model was compiled for the CPU: pass {name}.cpu()")


def _check_torch_type(name: str, value: Any, dtype: str) -> None:
    found = str(value.dtype).removeprefix("torch.")
    if found != dtype:
        method = {"int64": "long()", "float32": "float()", "bool": "bool()"}[dtype]
        raise InputError(_wrong_type(name, found, dtype, f"{name}.{method}"))


def _wrong_type(name: str, found: str, wanted: str, conversion: str) -> str:
    message = f"{name} is {found}, but {wanted} is needed: pass {conversion}"
    if wanted == "int64" and found.startswith(("float", "bfloat", "complex")):
        message += " if it really holds node indices"
    return message


def edge_array(name: str, value: Any, gpu: str = "") -> NDArray[np.int64] | DeviceArray:
    """An ``edge_index``: int64 [2, E]. Its values are not looked at."""
    array = as_array(name, value, dtype="int64", sparse_hint="pass edge_index as int64 [2, E]", gpu=gpu)
    if array.ndim != 2 or array.shape[0] != 2:
        hint = ""
        if array.ndim == 2 and array.shape[1] == 2:
            hint = f"; {name} looks transposed: pass {name}.T"
        raise InputError(f"{name} has shape {list(array.shape)}, but [2, E] is needed{hint}")
    if array.shape[1] > INT32_MAX:
        raise InputError(f"{name} has {array.shape[1]} edges: at most {INT32_MAX} are supported")
    return array


def rows_array(item: GraphInput, value: Any, gpu: str = "") -> NDArray[np.float32] | DeviceArray:
    """A ``"rows"`` input: float32 [R, *shape]."""
    array = as_array(item.name, value, dtype="float32", gpu=gpu)
    _check_shape(item, array)
    return array


def index_array(item: GraphInput, value: Any, gpu: str = "") -> NDArray[np.int64] | DeviceArray:
    """An ``"index"`` input: int64 [R, *shape]. Its values are not looked at."""
    array = as_array(item.name, value, dtype="int64", gpu=gpu)
    _check_shape(item, array)
    return array


def mask_array(item: GraphInput, value: Any, gpu: str = "") -> NDArray[np.bool_] | DeviceArray:
    """A ``"mask"`` input: bool [R, *shape]."""
    array = as_array(item.name, value, dtype="bool", gpu=gpu)
    _check_shape(item, array)
    return array


def _check_shape(item: GraphInput, array: NDArray[Any] | DeviceArray) -> None:
    found, wanted = array.shape, item.shape
    if array.ndim == 0 or found[1:] != wanted:
        why = ""
        if len(found) == len(wanted) + 1 == 2:
            why = f": the model was compiled for {wanted[0]} columns, not {found[1]}"
        elif len(found) == 2 and wanted == () and found[1] == 1:
            why = f": pass {item.name}.reshape(-1)"
        elif len(found) == 1 and wanted == (1,):
            why = f": pass {item.name}.reshape(-1, 1)"
        needed = ", ".join(map(str, ("N", *wanted)))
        raise InputError(f"{item.name} has shape {list(found)}, but [{needed}] is needed{why}")
    if found[0] > INT32_MAX:
        raise InputError(f"{item.name} has {found[0]} rows: at most {INT32_MAX} are supported")


def size_number(name: str, value: Any) -> int:
    """A ``"size"`` input: an integer that is not negative, maybe as a tensor without axes."""
    number = value
    if (is_torch(value) or isinstance(value, np.ndarray)) and value.ndim == 0:
        try:
            number = value.item()
        except RuntimeError as error:
            raise InputError(f"{name} has no number that can be read: {error}") from error
    if isinstance(number, (bool, np.bool_)) or not isinstance(number, (int, np.integer)):
        raise InputError(f"{name} is {_shown(value)}: pass an integer")
    if not 0 <= number <= INT32_MAX:
        raise InputError(f"{name} is {number}: it must be in 0 .. {INT32_MAX}")
    return int(number)


def _shown(value: Any) -> str:
    if isinstance(value, (bool, float, str)):
        return repr(value)
    return f"a {type(value).__module__}.{type(value).__qualname__}"


def adjacency_arrays(
    item: GraphInput, value: Any
) -> tuple[NDArray[np.int64], NDArray[np.float32], tuple[int, int]]:
    """An ``"adjacency"`` input: rows and columns [2, E], values and extents.

    Entries come by row, then by column; what a COO matrix holds twice is summed.
    """
    scipy = sys.modules.get("scipy.sparse")
    shape = tuple(getattr(value, "shape", ()))
    if is_torch(value):
        entries = _torch_entries
    elif scipy is not None and scipy.issparse(value):
        entries = _scipy_entries
    else:
        kind = type(value)
        raise InputError(
            f"{item.name} is a {kind.__module__}.{kind.__qualname__}: pass a sparse matrix of torch "
            "(COO, CSR or CSC) or scipy"
        )
    if len(shape) < 2 or shape[2:] != item.shape:
        raise InputError(f"{item.name} has shape {list(shape)}: a sparse matrix [N, M] is needed")
    rows, columns, values = entries(item.name, value)
    extents = int(shape[0]), int(shape[1])
    for what, number in (("rows", extents[0]), ("columns", extents[1]), ("entries", values.shape[0])):
        if number > INT32_MAX:
            raise InputError(f"{item.name} has {number} {what}: at most {INT32_MAX} are supported")
    if not rows.shape == columns.shape == values.shape[:1] or values.shape[1:] != item.shape:
        raise InputError(f"{item.name} is no valid sparse matrix: its parts do not fit together")
    places = np.stack([rows, columns]).astype(np.int64, copy=False)
    position = places[0] * extents[1] + places[1]
    if (position[1:] < position[:-1]).any():
        order = np.argsort(position, kind="stable")
        return places[:, order], values[order], extents
    return places, values, extents


def _torch_entries(name: str, value: Any) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    if value.device.type != "cpu":
        raise InputError(
            f"{name} is on {value.device}: sparse matrices are read on the CPU, pass {name}.cpu()"
        )
    layout = str(value.layout).removeprefix("torch.")
    if layout not in ("sparse_coo", "sparse_csr", "sparse_csc"):
        raise InputError(f"{name} has the layout {layout}: pass {name}.to_sparse_csr()")
    _check_torch_type(name, value, "float32")
    value = value.detach()
    if layout == "sparse_coo":
        value = value.coalesce()
        rows, columns = value.indices()[:2].numpy()
        return rows, columns, value.values().numpy()
    by_row = layout == "sparse_csr"
    starts = (value.crow_indices() if by_row else value.ccol_indices()).numpy()
    inner = (value.col_indices() if by_row else value.row_indices()).numpy()
    counts = np.diff(starts)
    if (counts < 0).any():
        raise InputError(f"{name} is no valid sparse matrix: its parts do not fit together")
    outer = np.repeat(np.arange(counts.size), counts)
    return (outer, inner, value.values().numpy()) if by_row else (inner, outer, value.values().numpy())


def _scipy_entries(name: str, value: Any) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    if value.dtype != np.float32:
        raise InputError(_wrong_type(name, str(value.dtype), "float32", f"{name}.astype(np.float32)"))
    entries = value.tocoo(copy=True)
    if value.format == "coo":
        entries.sum_duplicates()
    return entries.row, entries.col, entries.data


def check_finite(name: str, array: NDArray[np.float32] | DeviceArray) -> None:
    """Check that ``array`` holds neither NaN nor infinity, in about the time of reading it once.

    Call it where numpy's floating-point warnings are off.

    Raises:
        InputError: With the first bad value and where it is.
    """
    if isinstance(array, DeviceArray):
        if array.finite():
            return
        array = array.numpy()
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
