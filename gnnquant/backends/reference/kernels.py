"""The meaning of every operation of the integer graph, in torch.

Float values are float32 tensors [rows, *row shape], or [1, *row shape] where rows repeat; every
expression below rounds where ``gnnquant.integer_graph`` says that it rounds, and nowhere else.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from gnnquant import exact_math
from gnnquant.errors import BackendError
from gnnquant.integer_graph import EDGE_LEVELS, SMALLEST, SQUARINGS
from gnnquant.runtime.indexing import check_int32

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from gnnquant.backends.reference.csr import Csr
    from gnnquant.integer_graph import Node
    from gnnquant.runtime.indexing import IndexResults


@dataclass(frozen=True)
class QuantizedRows:
    """Unsigned codes [rows, columns] (int32) and their scale, [rows, 1] or a scalar tensor."""

    codes: Tensor
    scale: Tensor
    zero2: int

    @property
    def doubled(self) -> Tensor:
        """``2u - zero2``, float64."""
        return (2 * self.codes - self.zero2).to(torch.float64)


@dataclass(frozen=True)
class State:
    """What kernels read besides their operands; ``rows`` are those of every space."""

    weights: dict[str, tuple[Tensor, Tensor]]
    constants: dict[str, Tensor]
    csr: dict[str, Csr]
    index: IndexResults
    rows: dict[str, int]
    inputs: dict[str, Tensor]


def _scalar(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float32)


def _inverse(value: Tensor, numerator: float = 1.0) -> Tensor:
    """``numerator / value`` where ``value >= SMALLEST``, else 0; one rounding."""
    large = value >= SMALLEST
    safe = torch.where(large, value, torch.ones(()))
    return torch.where(large, torch.full_like(safe, numerator) / safe, torch.zeros(()))


def _sqrt(x: Tensor) -> Tensor:
    """The square root, rounded correctly, as numpy's is; torch's may be MKL's, which is not."""
    return torch.from_numpy(np.sqrt(x.numpy()))


def _fit(value: Tensor, rows: int) -> Tensor:
    """``value`` with ``rows`` rows: its own, or one that repeats."""
    return value.expand(rows, *value.shape[1:])


# ---------------------------------------------------------------- segments


def _accumulate(value: Tensor, csr: Csr, function: np.ufunc, start: float) -> Tensor:
    """``function`` over the edges of every destination, in edge order from ``start``."""
    out = np.full((csr.num_rows, *value.shape[1:]), start, dtype=np.float32)
    function.at(out, csr.target.numpy(), value.numpy())
    return torch.from_numpy(out)


def _segment_sum(value: Tensor, csr: Csr) -> Tensor:
    return _accumulate(value, csr, np.add, 0.0)


def _segment_extreme(value: Tensor, csr: Csr, reduce: str, empty: float = 0.0) -> Tensor:
    """Largest or smallest entry of each column over the edges of every destination."""
    out = torch.full((csr.num_rows, value.size(1)), empty, dtype=value.dtype)
    index = csr.target.view(-1, 1).expand_as(value)
    return out.scatter_reduce(0, index, value, f"a{reduce}", include_self=False)


def _reduce_segments(value: Tensor, csr: Csr, reduce: str) -> Tensor:
    """Flat edge rows by destination, as ``segment_reduce`` says."""
    if reduce in ("max", "min"):
        return _segment_extreme(value, csr, reduce)
    if reduce == "mul":
        return _accumulate(value, csr, np.multiply, 1.0)
    total = _segment_sum(value, csr)
    return total / _at_least_one(csr.degree).view(-1, 1) if reduce == "mean" else total


def _at_least_one(count: Tensor) -> Tensor:
    return count.clamp(min=1).to(torch.float32)


# ---------------------------------------------------------------- sources


def read_input(state: State, node: Node) -> Tensor:
    """Float rows of an input."""
    value = state.inputs[node.attrs["input"]]
    if value.size(0) != state.rows[node.rows]:
        raise BackendError(
            f"{node.name!r} reads {value.size(0)} rows of {node.attrs['input']!r} as the "
            f"{state.rows[node.rows]} rows of {node.rows!r}: the index program must check that they are equal"
        )
    return value


def constant(state: State, node: Node) -> Tensor:
    """A row constant; broadcasts over rows."""
    return state.constants[node.attrs["array"]].reshape(1, *node.shape)


def lookup(state: State, node: Node) -> Tensor:
    """Rows of a constant table."""
    table = state.constants[node.attrs["array"]]
    return table[_rows_to_read(state, node, table.size(0))]


def from_index(state: State, node: Node) -> Tensor:
    """An index array as floats."""
    array = _index(state, node)
    check_int32(node.attrs["index"], array)
    return torch.from_numpy(array.astype(np.float32)).reshape(array.size, *node.shape)


def _index(state: State, node: Node) -> NDArray[np.int64]:
    """The index array of ``node``, one entry per row."""
    array = state.index.array(node.attrs["index"])
    if array.size != state.rows[node.rows]:
        raise BackendError(
            f"{node.name!r} has {array.size} indices for the {state.rows[node.rows]} rows of {node.rows!r}"
        )
    return array


# ---------------------------------------------------------------- between spaces


def gather(state: State, node: Node, x: Tensor | QuantizedRows) -> Tensor | QuantizedRows:
    """Rows of ``x`` by an index array; -1 stands for a row of ``fill``."""
    if isinstance(x, QuantizedRows):
        index = _rows_to_read(state, node, x.codes.size(0))
        return QuantizedRows(x.codes[index], x.scale[index] if x.scale.dim() else x.scale, x.zero2)
    fill = node.attrs.get("fill")
    if fill is not None:
        x = torch.cat([x, torch.full((1, *x.shape[1:]), fill, dtype=torch.float32)])
    return x[_rows_to_read(state, node, x.size(0) - (fill is not None), -1 if fill is not None else 0)]


def _rows_to_read(state: State, node: Node, rows: int, lowest: int = 0) -> Tensor:
    """Indices must come checked from the index program: torch would count back from the end."""
    index = _index(state, node)
    if index.size and (index.min() < lowest or index.max() >= rows):
        raise BackendError(
            f"{node.name!r} reads the rows {int(index.min())} .. {int(index.max())} of {rows}: the index "
            "program must check them"
        )
    return torch.from_numpy(index)


def segment_reduce(state: State, node: Node, x: Tensor) -> Tensor:
    """Edge rows by destination."""
    csr = state.csr[node.attrs["graph"]]
    flat = _fit(x, csr.target.numel()).reshape(csr.target.numel(), node.columns)
    return _reduce_segments(flat, csr, node.attrs["reduce"])


def row_reduce(state: State, node: Node, x: Tensor) -> Tensor:
    """All rows to one."""
    reduce, rows = node.attrs["reduce"], x.size(0)
    if reduce in ("max", "min"):
        if rows == 0:
            return torch.zeros((1, *x.shape[1:]))
        return getattr(x, f"a{reduce}")(dim=0, keepdim=True)
    # Running sums are taken one after the other; numpy's and torch's plain sums are not.
    start = np.zeros((1, *x.shape[1:]), np.float32)
    total = torch.from_numpy(np.add.accumulate(np.concatenate([start, x.numpy()]), axis=0)[-1:])
    return total / _scalar(max(rows, 1)) if reduce == "mean" else total


def spmm(state: State, node: Node, q: QuantizedRows, weight: Tensor | None = None) -> Tensor:
    """Integer sum over edges with 8-bit weights; or the largest or smallest code."""
    csr = state.csr[node.attrs["graph"]]
    reduce, heads, columns = node.attrs["reduce"], node.attrs["heads"], node.columns
    sources = state.index.graphs[node.attrs["graph"]].sources
    rows = _fit(q.doubled, sources)
    if reduce in ("max", "min"):
        return _segment_extreme(rows[csr.source], csr, reduce).to(torch.float32) * (q.scale * 0.5)
    scale = q.scale.expand(sources, 1)[csr.source]
    edges = csr.source.numel()
    if weight is None:
        value = scale
    elif node.attrs.get("per") == "source":
        value = _fit(weight, sources).reshape(sources, heads)[csr.source]
    else:
        value = _fit(weight, edges).reshape(edges, heads)
    if weight is not None and not node.attrs.get("unscaled"):
        value = value * scale
    largest = _segment_extreme(value.abs(), csr, "max")
    ratio = _inverse(largest, EDGE_LEVELS)
    codes = (value * ratio[csr.target]).round().to(torch.float64)
    # exact in any order: integers below 2^53
    total = csr.order.sums(codes, rows).to(torch.float32).view(csr.num_rows, heads, columns // heads)
    out = total * (largest * _scalar(0.5 / EDGE_LEVELS)).unsqueeze(-1)
    return out / _at_least_one(csr.degree).view(-1, 1, 1) if reduce == "mean" else out


def float_spmm(state: State, node: Node, x: Tensor, weight: Tensor | None = None) -> Tensor:
    """Float sum, mean, maximum or minimum over edges."""
    csr = state.csr[node.attrs["graph"]]
    heads, columns, edges = node.attrs["heads"], node.columns, csr.source.numel()
    sources = state.index.graphs[node.attrs["graph"]].sources
    message = _fit(x, sources).reshape(sources, columns)[csr.source]
    if weight is not None:
        split = message.view(edges, heads, columns // heads)
        message = (split * _fit(weight, edges).reshape(edges, heads, 1)).reshape(edges, columns)
    return _reduce_segments(message, csr, node.attrs["reduce"])


# ---------------------------------------------------------------- edge rows


def gcn_norm(state: State, node: Node, weight: Tensor | None = None) -> Tensor:
    """``d_src^-1/2 * w * d_dst^-1/2``."""
    csr = state.csr[node.rows]
    if weight is None:
        added = (csr.edge_id < 0).view(-1, *[1] * len(node.shape))
        weight = torch.where(added, _scalar(node.attrs["fill"]), torch.ones(()))
    weight = _fit(weight, csr.source.numel())
    degree = _segment_sum(weight, csr)
    root = _inverse(_sqrt(degree.clamp(min=0)))
    return (root[csr.source] * weight) * root[csr.target]


def segment_softmax(state: State, node: Node, x: Tensor) -> Tensor:
    """Softmax over the edges of one destination."""
    csr = state.csr[node.rows]
    flat = _fit(x, csr.target.numel()).reshape(csr.target.numel(), node.columns)
    largest = _segment_extreme(flat, csr, "max")
    if node.attrs.get("roots"):
        power = flat * (1.0 / largest)[csr.target]
        for _ in range(SQUARINGS):
            power = power * power
    else:
        power = exact_math.exp(flat - largest[csr.target])
    share = 1.0 / (_segment_sum(power, csr) + 1e-16)
    return power * share[csr.target]


# ---------------------------------------------------------------- quantized


def quantize(state: State, node: Node, x: Tensor) -> QuantizedRows:
    """Codes and scale of ``x``."""
    bits, zero2 = node.attrs["bits"], node.attrs["zero2"]
    rows = state.rows[node.rows]
    flat = _fit(x, rows).reshape(rows, node.columns)
    if node.attrs["granularity"] == "row":
        magnitude = flat.clamp(min=0) if zero2 == 0 else flat.abs()
        statistic = magnitude.amax(dim=1, keepdim=True) if node.columns else magnitude.sum(1, True)
        scale = statistic * _scalar(node.attrs["factor"])
    else:
        scale = _scalar(node.attrs["scale"])
    t = flat * _inverse(scale)
    rounded = t.floor() if zero2 % 2 else t.round()
    codes = (rounded + (zero2 + 1) // 2).clamp(0, 2**bits - 1)
    return QuantizedRows(codes.to(torch.int32), scale, zero2)


def dequantize(state: State, node: Node, q: QuantizedRows) -> Tensor:
    """``(2u - zero2) * (s / 2)``."""
    return q.doubled.to(torch.float32) * (q.scale * 0.5)


def gemm(state: State, node: Node, q: QuantizedRows) -> Tensor:
    """Integer matrix product along the last axis, scaled by row and column."""
    weight, column_scale = state.weights[node.attrs["weight"]]
    inputs, outputs = weight.shape
    accumulator = q.doubled.view(-1, inputs) @ weight.to(torch.float64)
    scaled = accumulator.to(torch.float32).reshape(q.codes.size(0), node.columns // outputs, outputs)
    return (scaled * (q.scale * 0.5).reshape(-1, 1, 1)) * column_scale


# ---------------------------------------------------------------- float rows


def float_gemm(state: State, node: Node, x: Tensor) -> Tensor:
    """Float matrix product."""
    return x @ state.constants[node.attrs["array"]]


def matmul(state: State, node: Node, x: Tensor, y: Tensor) -> Tensor:
    """Matrix product within a row, each sum left to right."""
    terms = [x[..., :, k, None] * y[..., None, k, :] for k in range(x.size(-1))]
    return _ordered(torch.add, terms, (state.rows[node.rows], *node.shape))


def _ordered(
    operation: Callable[[Tensor, Tensor], Tensor], parts: Sequence[Tensor], shape: tuple[int, ...]
) -> Tensor:
    """``parts`` one after the other, from the first; zeros of ``shape`` where there is none."""
    if not parts:
        return torch.zeros(shape)
    total = parts[0]
    for part in parts[1:]:
        total = operation(total, part)
    return total


def _maximum(x: Tensor, y: Tensor) -> Tensor:
    return torch.where(x > y, x, y)


def _minimum(x: Tensor, y: Tensor) -> Tensor:
    return torch.where(x < y, x, y)


def _elementwise(operation: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def kernel(state: State, node: Node, *operands: Tensor) -> Tensor:
        if "scalar" in node.attrs:
            operands = (*operands, _scalar(node.attrs["scalar"]))
        return operation(*operands).to(torch.float32)

    return kernel


def _elu(x: Tensor, alpha: Tensor) -> Tensor:
    return torch.where(x > 0, x, alpha * (exact_math.exp(x) - 1.0))


def _sigmoid(x: Tensor) -> Tensor:
    return 1.0 / (1.0 + exact_math.exp(-x))


def _tanh(x: Tensor) -> Tensor:
    t = exact_math.exp(x.abs() * -2.0)
    y = (1.0 - t) / (1.0 + t)
    return torch.where(x < 0, -y, y)


# ---------------------------------------------------------------- rowwise


def reshape(state: State, node: Node, x: Tensor) -> Tensor:
    """Another row shape."""
    return x.reshape(x.size(0), *node.shape)


def columns(state: State, node: Node, x: Tensor) -> Tensor:
    """Columns by a constant index."""
    flat = x.reshape(x.size(0), math.prod(x.shape[1:]))
    return flat[:, torch.tensor(node.attrs["index"], dtype=torch.int64)]


def concat(state: State, node: Node, *values: Tensor) -> Tensor:
    """Concatenation along the last axis."""
    return torch.cat([_fit(value, state.rows[node.rows]) for value in values], dim=-1)


REDUCTIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "sum": torch.add,
    "mean": torch.add,
    "mul": torch.mul,
    "max": _maximum,
    "min": _minimum,
}


def reduce(state: State, node: Node, x: Tensor) -> Tensor:
    """One axis of the row shape, from its first element on."""
    axis = node.attrs["axis"] % (x.dim() - 1) + 1
    kind = node.attrs["reduce"]
    total = _ordered(REDUCTIONS[kind], x.unbind(axis), (x.size(0), *node.shape))
    return total / _scalar(x.size(axis)) if kind == "mean" else total


def _sum_of_last(x: Tensor) -> Tensor:
    return _ordered(torch.add, x.unbind(-1), tuple(x.shape[:-1])).unsqueeze(-1)


def log_softmax(state: State, node: Node, x: Tensor) -> Tensor:
    """``x - max - log(sum exp(x - max))``."""
    centred = x - x.amax(dim=-1, keepdim=True)
    return centred - exact_math.log(_sum_of_last(exact_math.exp(centred)))


def softmax(state: State, node: Node, x: Tensor) -> Tensor:
    """``exp(x - max) / sum``."""
    power = exact_math.exp(x - x.amax(dim=-1, keepdim=True))
    return power / _sum_of_last(power)


KERNELS: dict[str, Callable[..., Any]] = {
    "input": read_input,
    "constant": constant,
    "lookup": lookup,
    "from_index": from_index,
    "gather": gather,
    "segment_reduce": segment_reduce,
    "row_reduce": row_reduce,
    "spmm": spmm,
    "float_spmm": float_spmm,
    "gcn_norm": gcn_norm,
    "segment_softmax": segment_softmax,
    "quantize": quantize,
    "dequantize": dequantize,
    "gemm": gemm,
    "float_gemm": float_gemm,
    "matmul": matmul,
    "add": _elementwise(torch.add),
    "sub": _elementwise(torch.sub),
    "mul": _elementwise(torch.mul),
    "div": _elementwise(torch.div),
    "rsub": _elementwise(lambda x, scalar: scalar - x),
    "rdiv": _elementwise(lambda x, scalar: scalar / x),
    "maximum": _elementwise(_maximum),
    "minimum": _elementwise(_minimum),
    "eq": _elementwise(torch.eq),
    "lt": _elementwise(torch.lt),
    "le": _elementwise(torch.le),
    "where": _elementwise(lambda c, x, y: torch.where(c != 0, x, y)),
    "neg": _elementwise(torch.neg),
    "abs": _elementwise(torch.abs),
    "sqrt": _elementwise(_sqrt),
    "floor": _elementwise(torch.floor),
    "relu": _elementwise(lambda x: torch.where(x > 0, x, torch.zeros(()))),
    "leaky_relu": _elementwise(lambda x, slope: torch.where(x > 0, x, x * slope)),
    "elu": _elementwise(_elu),
    "exp": _elementwise(exact_math.exp),
    "log": _elementwise(exact_math.log),
    "sigmoid": _elementwise(_sigmoid),
    "tanh": _elementwise(_tanh),
    "reshape": reshape,
    "columns": columns,
    "concat": concat,
    "reduce": reduce,
    "log_softmax": log_softmax,
    "softmax": softmax,
}
"""Operation -> kernel(state, node, *operands)."""
