"""The meaning of every operation of the integer graph, in torch.

Float values are float32 tensors [rows, *row shape]; every expression below rounds where
``gnnquant.integer_graph`` says that it rounds, and nowhere else.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from gnnquant import exact_math
from gnnquant.integer_graph import EDGE_LEVELS

if TYPE_CHECKING:
    from collections.abc import Callable

    from gnnquant.backends.reference.csr import Csr
    from gnnquant.integer_graph import IntegerGraph, Node


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
    """What kernels read besides their operands."""

    graph: IntegerGraph
    weights: dict[str, tuple[Tensor, Tensor]]
    constants: dict[str, Tensor]
    csr: dict[str, Csr]
    inputs: dict[str, Tensor]
    num_nodes: int


def _scalar(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float32)


def _inverse(value: Tensor, numerator: float = 1.0) -> Tensor:
    """``numerator / value`` where ``value > 0``, else 0; one rounding."""
    positive = value > 0
    safe = torch.where(positive, value, torch.ones(()))
    return torch.where(positive, torch.full_like(safe, numerator) / safe, torch.zeros(()))


def _segment_sum(value: Tensor, csr: Csr) -> Tensor:
    """float32 sum over the edges of every destination, in edge order."""
    out = np.zeros((csr.num_nodes, *value.shape[1:]), dtype=np.float32)
    np.add.at(out, csr.target.numpy(), value.numpy())
    return torch.from_numpy(out)


def _segment_max(value: Tensor, csr: Csr, start: float) -> Tensor:
    out = torch.full((csr.num_nodes, value.size(1)), start, dtype=value.dtype)
    return out.scatter_reduce(0, csr.target.view(-1, 1).expand_as(value), value, "amax")


# ---------------------------------------------------------------- sources and edges


def node_input(state: State, node: Node) -> Tensor:
    """An input."""
    return state.inputs[node.attrs["input"]].reshape(-1, *node.shape)


def constant(state: State, node: Node) -> Tensor:
    """A row constant; broadcasts over rows."""
    return state.constants[node.attrs["array"]].reshape(1, *node.shape)


def edge_input(state: State, node: Node, _: Any) -> Tensor:
    """An edge input in CSR order."""
    csr = state.csr[node.rows]
    value = state.inputs[node.attrs["input"]].reshape(-1, *node.shape)
    filled = torch.cat([value, torch.full_like(value[:1], node.attrs["fill"])])
    if value.size(0) == 0:
        filled = torch.full((1, *node.shape), node.attrs["fill"], dtype=torch.float32)
    return filled[csr.edge_id]


def gcn_norm(state: State, node: Node, _: Any, weight: Tensor | None = None) -> Tensor:
    """``d_src^-1/2 * w * d_dst^-1/2``."""
    csr = state.csr[node.rows]
    if weight is None:
        added = csr.edge_id < 0
        weight = torch.where(added, _scalar(node.attrs["fill"]), torch.ones(()))
    degree = _segment_sum(weight, csr)
    # numpy's square root is rounded correctly; torch's may be MKL's, which is not.
    root = _inverse(torch.from_numpy(np.sqrt(degree.clamp(min=0).numpy())))
    return (root[csr.source] * weight) * root[csr.target]


def gather(state: State, node: Node, x: Tensor, _: Any) -> Tensor:
    """Rows of ``x`` at one end of the edges."""
    csr = state.csr[node.rows]
    return x[csr.source if node.attrs["side"] == "src" else csr.target]


def segment_softmax(state: State, node: Node, x: Tensor) -> Tensor:
    """Softmax over the edges of one destination."""
    csr = state.csr[node.rows]
    flat = x.reshape(x.size(0), -1)
    largest = _segment_max(flat, csr, -torch.inf)
    power = exact_math.exp(flat - largest[csr.target])
    total = _segment_sum(power, csr) + 1e-16
    return (power / total[csr.target]).reshape(x.shape)


# ---------------------------------------------------------------- quantized


def quantize(state: State, node: Node, x: Tensor) -> QuantizedRows:
    """Codes and scale of ``x``."""
    bits, zero2 = node.attrs["bits"], node.attrs["zero2"]
    flat = x.expand(_rows(state, node), *node.shape).reshape(-1, node.columns)
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
    value = q.doubled.to(torch.float32) * (q.scale * 0.5)
    return value.reshape(-1, *node.shape)


def gemm(state: State, node: Node, q: QuantizedRows) -> Tensor:
    """Integer matrix product, scaled by row and column."""
    weight, column_scale = state.weights[node.attrs["weight"]]
    accumulator = q.doubled @ weight.to(torch.float64)
    return (accumulator.to(torch.float32) * (q.scale * 0.5)) * column_scale


def spmm(state: State, node: Node, q: QuantizedRows, _: Any, weight: Tensor | None = None) -> Tensor:
    """Integer sum over edges with 8-bit edge weights; or the largest code."""
    csr = state.csr[node.inputs[1]]
    reduce, heads = node.attrs["reduce"], node.attrs["heads"]
    columns = node.columns
    message = q.doubled[csr.source]
    if reduce == "max":
        largest = _segment_max(message, csr, -torch.inf)
        largest = torch.where(largest == -torch.inf, torch.zeros((), dtype=torch.float64), largest)
        return (largest.to(torch.float32) * (q.scale * 0.5)).reshape(-1, *node.shape)
    scale = q.scale.expand(q.codes.size(0), 1)[csr.source]
    value = scale if weight is None else weight.reshape(-1, heads) * scale
    largest = _segment_max(value.abs(), csr, 0.0)
    ratio = _inverse(largest, EDGE_LEVELS)
    codes = (value * ratio[csr.target]).round().to(torch.float64)
    message = message.view(-1, heads, columns // heads) * codes.unsqueeze(-1)
    total = torch.zeros((csr.num_nodes, heads, columns // heads), dtype=torch.float64)
    total = total.index_add(0, csr.target, message).to(torch.float32)
    out = total * (largest * _scalar(0.5 / EDGE_LEVELS)).unsqueeze(-1)
    if reduce == "mean":
        out = out / csr.degree.clamp(min=1).to(torch.float32).view(-1, 1, 1)
    return out.reshape(-1, *node.shape)


def float_gemm(state: State, node: Node, x: Tensor) -> Tensor:
    """Float matrix product."""
    return x @ state.constants[node.attrs["array"]]


def float_spmm(state: State, node: Node, x: Tensor, _: Any, weight: Tensor | None = None) -> Tensor:
    """Float sum, mean or maximum over edges."""
    csr = state.csr[node.inputs[1]]
    heads, columns = node.attrs["heads"], node.columns
    message = x.reshape(-1, columns)[csr.source]
    if weight is not None:
        message = message.view(-1, heads, columns // heads) * weight.reshape(-1, heads, 1)
        message = message.reshape(-1, columns)
    if node.attrs["reduce"] == "max":
        out = _segment_max(message, csr, -torch.inf)
        out = torch.where(out == -torch.inf, torch.zeros(()), out)
    else:
        out = _segment_sum(message, csr)
        if node.attrs["reduce"] == "mean":
            out = out / csr.degree.clamp(min=1).to(torch.float32).view(-1, 1)
    return out.reshape(-1, *node.shape)


# ---------------------------------------------------------------- float rows


def _rows(state: State, node: Node) -> int:
    return state.num_nodes if node.rows == "node" else state.csr[node.rows].source.numel()


def _binary(operation: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    def kernel(state: State, node: Node, x: Tensor, y: Tensor | None = None) -> Tensor:
        return operation(x, _scalar(node.attrs["scalar"]) if y is None else y)

    return kernel


def _elu(x: Tensor, alpha: Tensor) -> Tensor:
    return torch.where(x > 0, x, alpha * (exact_math.exp(x) - 1.0))


def _sigmoid(x: Tensor) -> Tensor:
    return 1.0 / (1.0 + exact_math.exp(-x))


def _tanh(x: Tensor) -> Tensor:
    t = exact_math.exp(x.abs() * -2.0)
    y = (1.0 - t) / (1.0 + t)
    return torch.where(x < 0, -y, y)


def _unary(operation: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    def kernel(state: State, node: Node, x: Tensor) -> Tensor:
        return operation(x)

    return kernel


def reshape(state: State, node: Node, x: Tensor) -> Tensor:
    """Another row shape."""
    return x.reshape(x.size(0), *node.shape)


def concat(state: State, node: Node, *values: Tensor) -> Tensor:
    """Concatenation along the last axis."""
    rows = max(value.size(0) for value in values)
    return torch.cat([value.expand(rows, *value.shape[1:]) for value in values], dim=-1)


def _ordered_sum(x: Tensor, dim: int) -> Tensor:
    """Sum along ``dim``, left to right from its first element."""
    parts = x.unbind(dim)
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


def sum_last(state: State, node: Node, x: Tensor) -> Tensor:
    """Sum over the last axis of the row shape."""
    return _ordered_sum(x, -1).reshape(x.size(0), *node.shape)


def mean_first(state: State, node: Node, x: Tensor) -> Tensor:
    """Mean over the first axis of the row shape."""
    return _ordered_sum(x, 1) / float(x.size(1))


def log_softmax(state: State, node: Node, x: Tensor) -> Tensor:
    """``x - max - log(sum exp(x - max))``."""
    centred = x - x.amax(dim=1, keepdim=True)
    total = _ordered_sum(exact_math.exp(centred), 1)
    return centred - exact_math.log(total).unsqueeze(1)


def softmax(state: State, node: Node, x: Tensor) -> Tensor:
    """``exp(x - max) / sum``."""
    power = exact_math.exp(x - x.amax(dim=1, keepdim=True))
    return power / _ordered_sum(power, 1).unsqueeze(1)


KERNELS: dict[str, Callable[..., Any]] = {
    "node_input": node_input,
    "constant": constant,
    "edge_input": edge_input,
    "gcn_norm": gcn_norm,
    "gather": gather,
    "segment_softmax": segment_softmax,
    "quantize": quantize,
    "dequantize": dequantize,
    "gemm": gemm,
    "spmm": spmm,
    "float_gemm": float_gemm,
    "float_spmm": float_spmm,
    "add": _binary(torch.add),
    "sub": _binary(torch.sub),
    "mul": _binary(torch.mul),
    "div": _binary(torch.div),
    "rsub": _binary(lambda x, scalar: scalar - x),
    "leaky_relu": _binary(lambda x, slope: torch.where(x > 0, x, x * slope)),
    "elu": _binary(_elu),
    "neg": _unary(torch.neg),
    "relu": _unary(lambda x: torch.where(x > 0, x, torch.zeros(()))),
    "exp": _unary(exact_math.exp),
    "sigmoid": _unary(_sigmoid),
    "tanh": _unary(_tanh),
    "reshape": reshape,
    "concat": concat,
    "sum_last": sum_last,
    "mean_first": mean_first,
    "log_softmax": log_softmax,
    "softmax": softmax,
}
"""Operation -> kernel(state, node, *operands)."""
