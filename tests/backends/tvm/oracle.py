"""The integer graph in plain numpy, written from the text of ``gnnquant.integer_graph`` alone.

Sums of integers are int64; floats are float32, one operation at a time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from gnnquant import exact_math
from gnnquant.integer_graph import ELEMENTWISE

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from gnnquant.integer_graph import IntegerGraph, Node

F = np.float32


def csr(edge_index: NDArray[np.int64], nodes: int, loops: str) -> tuple[Any, Any, Any]:
    """Sources, destinations and positions of the edges, by destination."""
    rows: list[list[tuple[int, int]]] = [[] for _ in range(nodes)]
    last = [-1] * nodes
    for position, (source, target) in enumerate(edge_index.T.tolist()):
        if source == target and loops in ("remove", "replace", "remaining"):
            last[target] = position
        else:
            rows[target].append((source, position))
    if loops in ("add", "replace", "remaining"):
        for node in range(nodes):
            rows[node].append((node, last[node] if loops == "remaining" else -1))
    flat = [(s, t, p) for t, row in enumerate(rows) for s, p in row]
    array = np.array(flat, dtype=np.int64).reshape(-1, 3)
    return array[:, 0], array[:, 1], array[:, 2]


def exp(x: Any) -> Any:
    """``exact_math.exp``."""
    x = np.clip(x, F(exact_math.EXP_LOW), F(exact_math.EXP_HIGH)).astype(F)
    k = np.rint(x * F(exact_math.LOG2_E))
    r = (x - k * F(exact_math.LN2_HIGH)) - k * F(exact_math.LN2_LOW)
    p = np.full_like(r, exact_math.EXP_COEFFICIENTS[0])
    for coefficient in exact_math.EXP_COEFFICIENTS[1:]:
        p = p * r + F(coefficient)
    y = (p * (r * r) + r) + F(1)
    return (y * ((k.astype(np.int32) + 127) << 23).view(F)).astype(F)


def log(x: Any) -> Any:
    """``exact_math.log``."""
    bits = x.astype(F).view(np.int32)
    exponent = ((bits >> 23) & 255) - 126
    mantissa = ((bits & 0x7FFFFF) | 0x3F000000).view(F)
    small = mantissa < F(exact_math.SQRT_HALF)
    f = np.where(small, mantissa + mantissa, mantissa) - F(1)
    e = (exponent - small).astype(F)
    z = f * f
    p = np.full_like(f, exact_math.LOG_COEFFICIENTS[0])
    for coefficient in exact_math.LOG_COEFFICIENTS[1:]:
        p = p * f + F(coefficient)
    y = ((p * f) * z + e * F(exact_math.LN2_LOW)) - F(0.5) * z
    return (f + y) + e * F(exact_math.LN2_HIGH)


def ordered(x: Any, axis: int) -> Any:
    """Sum from the first element on."""
    parts = np.moveaxis(x, axis, 0)
    total = parts[0].copy()
    for part in parts[1:]:
        total = total + part
    return total


class Oracle:
    """Evaluates a graph; ``values`` holds every value (``(codes, scale, zero2)`` if quantized)."""

    def __init__(self, graph: IntegerGraph, edge_index: Any, inputs: dict[str, Any], nodes: int):
        self.graph, self.inputs, self.nodes = graph, inputs, nodes
        self.values: dict[str, Any] = {}
        self.edges: dict[str, Any] = {}
        with np.errstate(all="ignore"):
            for node in graph.nodes:
                if node.op == "graph":
                    self.edges[node.name] = csr(edge_index, nodes, node.attrs["loops"])
                    continue
                operands = [self.values.get(name) for name in node.inputs]
                self.values[node.name] = self.evaluate(node, operands)

    def outputs(self) -> list[Any]:
        return [self.values[name] for name in self.graph.outputs]

    def rows(self, node: Node) -> int:
        return self.nodes if node.rows == "node" else len(self.edges[node.rows][0])

    def evaluate(self, node: Node, operands: list[Any]) -> Any:
        op, a = node.op, node.attrs
        if hasattr(self, op):
            return getattr(self, op)(node, *operands)
        x = operands[0]
        y = operands[1] if len(operands) > 1 else F(a["scalar"]) if "scalar" in a else None
        if len(operands) > 1 and op in ELEMENTWISE:  # row shapes broadcast, not rows
            x, y = (v.reshape(len(v), *(1,) * (len(node.shape) + 1 - v.ndim), *v.shape[1:]) for v in (x, y))
        zero, one = F(0), F(1)
        simple: dict[str, Any] = {
            "add": lambda: x + y,
            "sub": lambda: x - y,
            "mul": lambda: x * y,
            "div": lambda: x / y,
            "rsub": lambda: y - x,
            "neg": lambda: -x,
            "relu": lambda: np.where(x > 0, x, zero),
            "leaky_relu": lambda: np.where(x > 0, x, x * y),
            "elu": lambda: np.where(x > 0, x, y * (exp(x) - one)),
            "exp": lambda: exp(x),
            "sigmoid": lambda: one / (one + exp(-x)),
            "reshape": lambda: x.reshape(-1, *node.shape),
            "concat": lambda: np.concatenate(operands, axis=-1),
            "sum_last": lambda: ordered(x, -1),
            "mean_first": lambda: ordered(x, 1) / F(x.shape[1]),
        }
        return simple[op]()

    def node_input(self, node: Node) -> Any:
        return self.inputs[node.attrs["input"]].reshape(-1, *node.shape)

    def constant(self, node: Node) -> Any:
        value = self.graph.constants[node.attrs["array"]].reshape(1, *node.shape)
        return np.repeat(value, self.nodes, axis=0) if node.shape != (1,) else value

    def edge_input(self, node: Node, _: Any) -> Any:
        given = self.inputs[node.attrs["input"]].reshape(-1, *node.shape)
        fill = np.full(node.shape, node.attrs["fill"], dtype=F)
        ids = self.edges[node.rows][2]
        return np.array([given[i] if i >= 0 else fill for i in ids], dtype=F).reshape(-1, *node.shape)

    def gcn_norm(self, node: Node, _: Any, weight: Any = None) -> Any:
        source, target, ids = self.edges[node.rows]
        if weight is None:
            weight = np.where(ids < 0, F(node.attrs["fill"]), F(1)).astype(F)
        degree = np.zeros(self.nodes, dtype=F)
        for edge, row in enumerate(target):
            degree[row] = degree[row] + weight[edge]
        root = np.sqrt(np.maximum(degree, F(0)))
        root = np.where(root > 0, F(1) / np.where(root > 0, root, F(1)), F(0)).astype(F)
        return (root[source] * weight) * root[target]

    def gather(self, node: Node, x: Any, _: Any) -> Any:
        return x[self.edges[node.rows][0 if node.attrs["side"] == "src" else 1]]

    def segment_softmax(self, node: Node, x: Any) -> Any:
        out = np.zeros_like(x)
        target = self.edges[node.rows][1]
        for row in np.unique(target):
            part = np.flatnonzero(target == row)
            power = exp(x[part] - x[part].max(axis=0))
            total = np.zeros(x.shape[1:], dtype=F)
            for value in power:
                total = total + value
            out[part] = power / (total + F(1e-16))
        return out

    def quantize(self, node: Node, x: Any) -> Any:
        a = node.attrs
        zero2, levels = a["zero2"], 2 ** a["bits"] - 1
        flat = x.reshape(self.nodes, -1)
        if a["granularity"] == "row":
            stat = np.abs(flat).max(1) if zero2 else np.maximum(flat.max(1), F(0))
            s = (stat * F(a["factor"])).astype(F)
        else:
            s = np.full(self.nodes, a["scale"], dtype=F)
        inverse = np.where(s > 0, F(1) / np.where(s > 0, s, F(1)), F(0)).astype(F)
        t = flat * inverse[:, None]
        r = np.floor(t) if zero2 % 2 else np.rint(t)
        u = np.clip(r.astype(np.float64) + (zero2 + 1) // 2, 0, levels).astype(np.int64)
        return u, s, zero2

    def dequantize(self, node: Node, q: Any) -> Any:
        u, s, zero2 = q
        return ((2 * u - zero2).astype(F) * (s * F(0.5))[:, None]).reshape(-1, *node.shape)

    def gemm(self, node: Node, q: Any) -> Any:
        u, s, zero2 = q
        weight = self.graph.weights[node.attrs["weight"]]
        total = (2 * u - zero2) @ weight.integers.astype(np.int64)
        return (total.astype(F) * (s * F(0.5))[:, None]) * weight.column_scale

    def spmm(self, node: Node, q: Any, _: Any, weight: Any = None) -> Any:
        u, s, zero2 = q
        source, target, _ids = self.edges[node.inputs[1]]
        heads = node.attrs["heads"]
        out = np.zeros((self.nodes, heads, node.columns // heads), dtype=F)
        doubled = (2 * u - zero2).reshape(self.nodes, heads, -1)
        for row in range(self.nodes):
            part = np.flatnonzero(target == row)
            if not part.size:
                continue
            if node.attrs["reduce"] == "max":
                out[row] = doubled[source[part]].max(0).astype(F) * (s[0] * F(0.5))
                continue
            v = s[source[part]][:, None]
            v = np.repeat(v, heads, 1) if weight is None else weight[part].reshape(-1, heads) * v
            m = np.abs(v).max(0)
            r = np.where(m > 0, F(127) / np.where(m > 0, m, F(1)), F(0)).astype(F)
            e8 = np.rint(v * r).astype(np.int64)
            total = (e8[:, :, None] * doubled[source[part]]).sum(0)
            out[row] = total.astype(F) * (m * F(0.5 / 127))[:, None]
            if node.attrs["reduce"] == "mean":
                out[row] = out[row] / F(max(part.size, 1))
        return out.reshape(self.nodes, *node.shape)

    def float_spmm(self, node: Node, x: Any, _: Any, weight: Any = None) -> Any:
        source, target, _ids = self.edges[node.inputs[1]]
        heads, reduce = node.attrs["heads"], node.attrs["reduce"]
        out = np.zeros((self.nodes, heads, node.columns // heads), dtype=F)
        flat = x.reshape(self.nodes, heads, -1)
        for row in range(self.nodes):
            part = np.flatnonzero(target == row)
            terms = flat[source[part]]
            if weight is not None:
                terms = terms * weight[part].reshape(-1, heads, 1)
            if part.size and reduce == "max":
                out[row] = terms.max(0)
            if reduce != "max":
                for term in terms:
                    out[row] = out[row] + term
            if reduce == "mean":
                out[row] = out[row] / F(max(part.size, 1))
        return out.reshape(self.nodes, *node.shape)

    def tanh(self, node: Node, x: Any) -> Any:
        t = exp(np.abs(x) * F(-2))
        y = (F(1) - t) / (F(1) + t)
        return np.where(x < 0, -y, y)

    def log_softmax(self, node: Node, x: Any) -> Any:
        centred = x - x.max(1, keepdims=True)
        return centred - log(ordered(exp(centred), 1))[:, None]

    def softmax(self, node: Node, x: Any) -> Any:
        power = exp(x - x.max(1, keepdims=True))
        return power / ordered(power, 1)[:, None]
