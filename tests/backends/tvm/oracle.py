"""The integer graph in plain numpy, written from the text of ``gnnquant.integer_graph`` alone.

Sums of integers are int64; floats are float32, one operation at a time.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from gnnquant import exact_math
from gnnquant.integer_graph import ONE

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from gnnquant.integer_graph import IndexNode, IntegerGraph, Node
    from gnnquant.runtime.plan import Plan

F = np.float32
LEAST = F(2.0**-120)


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


STEPS: dict[str, Any] = {
    "sum": lambda x, y: x + y,
    "mean": lambda x, y: x + y,
    "mul": lambda x, y: x * y,
    "max": np.maximum,
    "min": np.minimum,
}
STARTS = {"sum": 0.0, "mean": 0.0, "mul": 1.0, "max": -np.inf, "min": np.inf}


def fold(x: Any, reduce: str) -> Any:
    """Reduce over the first axis, in order."""
    total = np.full(x.shape[1:], STARTS[reduce], dtype=F)
    for part in x:
        total = STEPS[reduce](total, part)
    if reduce == "mean":
        total = total / F(max(len(x), 1))
    return total if len(x) or reduce not in ("max", "min") else np.zeros_like(total)


class Index:
    """Sizes, arrays and graphs of an index program (of the operations that the tests use)."""

    def __init__(self, graph: IntegerGraph | Plan, inputs: dict[str, Any]) -> None:
        self.sizes: dict[str, int] = {ONE: 1}
        self.arrays: dict[str, Any] = {}
        self.graphs: dict[str, tuple[Any, Any, Any, int]] = {}
        for node in graph.index:
            self._evaluate(node, inputs)

    def rows(self, space: str) -> int:
        """Number of rows of a space."""
        return len(self.graphs[space][0]) if space in self.graphs else self.sizes[space]

    def array(self, name: str) -> Any:
        """An index array or a part of a graph."""
        graph, _, part = name.rpartition(".")
        if graph in self.graphs:
            return self.graphs[graph][("src", "dst", "edge_id").index(part)]
        return self.arrays[name]

    def _evaluate(self, node: IndexNode, inputs: dict[str, Any]) -> None:
        if node.op in ("rows", "extent", "length", "size"):
            self.sizes[node.name] = self._size(node, inputs)
        elif node.op == "graph":
            src, dst = (self.arrays[part] for part in node.inputs[:2])
            count = self.sizes[node.inputs[3]]
            self.graphs[node.name] = (*csr(np.stack([src, dst]), count, node.attrs["loops"]), count)
        else:
            self.arrays[node.name] = self._array(node, inputs)

    def _size(self, node: IndexNode, inputs: dict[str, Any]) -> int:
        if node.op == "rows":
            given = inputs[node.attrs["input"]]
            return given.shape[1] if given.dtype == np.int64 and given.ndim == 2 else len(given)
        if node.op == "extent":
            return int(self.arrays[node.inputs[0]].max(initial=-1)) + 1
        if node.op == "length":
            return len(self.arrays[node.inputs[0]])
        numbers = [node.attrs["right"]] if "right" in node.attrs else []
        left, right = *(self.sizes[part] for part in node.inputs), *numbers
        return {"add": left + right, "mul": left * right}[node.attrs["function"]]

    def _array(self, node: IndexNode, inputs: dict[str, Any]) -> Any:
        op, a = node.op, node.attrs
        if op == "index_input":
            given = inputs[a["input"]]
            return given[a["part"]] if "part" in a else given
        if op == "arange":
            return np.arange(self.sizes[node.inputs[0]])
        if op == "full":
            return np.full(self.sizes[node.inputs[0]], a["value"])
        if op == "combine":
            x = self.arrays[node.inputs[0]]
            return {"mod": x % a["right"], "sub": x - a["right"]}[a["function"]]
        if op == "part":
            return self.array(f"{node.inputs[0]}.{a['part']}")
        if op == "count":
            array, count = self.arrays[node.inputs[0]], self.sizes[node.inputs[1]]
            return np.array([np.sum(array == row) for row in range(count)], dtype=np.int64)
        raise NotImplementedError(op)


class Oracle:
    """Evaluates a graph; ``values`` holds every value (``(codes, scale, zero2)`` if quantized)."""

    def __init__(self, graph: IntegerGraph, inputs: dict[str, Any]) -> None:
        self.graph, self.inputs = graph, inputs
        self.index = Index(graph, inputs)
        self.values: dict[str, Any] = {}
        with np.errstate(all="ignore"):
            for node in graph.nodes:
                operands = [self.values[name] for name in node.inputs]
                value = self.evaluate(node, operands)
                if isinstance(value, tuple):
                    assert value[0].shape == (self.rows(node), node.columns)
                else:
                    value = np.broadcast_to(value, (self.rows(node), *node.shape)).astype(F)
                self.values[node.name] = value

    def outputs(self) -> list[Any]:
        return [self.values[name] for name in self.graph.outputs]

    def rows(self, node: Node) -> int:
        return self.index.rows(node.rows)

    def evaluate(self, node: Node, operands: list[Any]) -> Any:
        op, a = node.op, node.attrs
        if hasattr(self, op):
            return getattr(self, op)(node, *operands)
        if "scalar" in a:
            operands = [*operands, F(a["scalar"])]
        x = operands[0]
        y = operands[1] if len(operands) > 1 else None
        zero, one = F(0), F(1)
        simple: dict[str, Any] = {
            "add": lambda: x + y,
            "sub": lambda: x - y,
            "mul": lambda: x * y,
            "div": lambda: x / y,
            "rsub": lambda: y - x,
            "rdiv": lambda: y / x,
            "maximum": lambda: np.where(x > y, x, y),
            "minimum": lambda: np.where(x < y, x, y),
            "eq": lambda: np.where(x == y, one, zero),
            "lt": lambda: np.where(x < y, one, zero),
            "le": lambda: np.where(x <= y, one, zero),
            "where": lambda: np.where(x != 0, y, operands[2]),
            "neg": lambda: -x,
            "abs": lambda: np.abs(x),
            "sqrt": lambda: np.sqrt(x),
            "floor": lambda: np.floor(x),
            "relu": lambda: np.where(x > 0, x, zero),
            "leaky_relu": lambda: np.where(x > 0, x, x * y),
            "elu": lambda: np.where(x > 0, x, y * (exp(x) - one)),
            "exp": lambda: exp(x),
            "log": lambda: log(x),
            "sigmoid": lambda: one / (one + exp(-x)),
            "reshape": lambda: x.reshape(len(x), *node.shape),
            "columns": lambda: x.reshape(len(x), math.prod(x.shape[1:]))[:, a["index"]].reshape(
                len(x), *node.shape
            ),
            "concat": lambda: np.concatenate(operands, axis=-1),
        }
        return simple[op]()

    def input(self, node: Node) -> Any:
        return self.inputs[node.attrs["input"]].reshape(-1, *node.shape)

    def constant(self, node: Node) -> Any:
        return self.graph.constants[node.attrs["array"]].reshape(1, *node.shape)

    def from_index(self, node: Node) -> Any:
        return self.index.array(node.attrs["index"]).astype(F).reshape(-1, *node.shape)

    def lookup(self, node: Node) -> Any:
        return self.graph.constants[node.attrs["array"]][self.index.array(node.attrs["index"])]

    def gather(self, node: Node, x: Any) -> Any:
        ids = self.index.array(node.attrs["index"])
        if isinstance(x, tuple):
            return x[0][ids], x[1][ids], x[2]
        fill = np.full(node.shape, node.attrs.get("fill", np.nan), dtype=F)
        return np.array([x[i] if i >= 0 else fill for i in ids], dtype=F).reshape(-1, *node.shape)

    def segment_reduce(self, node: Node, x: Any) -> Any:
        _, target, _, count = self.index.graphs[node.attrs["graph"]]
        x = np.broadcast_to(x, (len(target), *x.shape[1:]))
        return np.array(
            [fold(x[target == row], node.attrs["reduce"]) for row in range(count)], dtype=F
        ).reshape(count, *node.shape)

    def row_reduce(self, node: Node, x: Any) -> Any:
        return fold(x, node.attrs["reduce"])[None]

    def reduce(self, node: Node, x: Any) -> Any:
        parts = np.moveaxis(x, 1 + node.attrs["axis"], 0)
        kind, total = node.attrs["reduce"], parts[0].copy()
        for part in parts[1:]:
            total = STEPS[kind](total, part)
        return total / F(len(parts)) if kind == "mean" else total

    def matmul(self, node: Node, x: Any, y: Any) -> Any:
        total = x[..., :, 0, None] * y[..., 0, None, :]
        for k in range(1, x.shape[-1]):
            total = total + x[..., :, k, None] * y[..., k, None, :]
        return total

    def gcn_norm(self, node: Node, weight: Any = None) -> Any:
        source, target, ids, count = self.index.graphs[node.rows]
        if weight is None:
            weight = np.where(ids < 0, F(node.attrs["fill"]), F(1)).astype(F)
        degree = np.zeros(count, dtype=F)
        for edge, row in enumerate(target):
            degree[row] = degree[row] + weight[edge]
        root = np.sqrt(np.maximum(degree, F(0)))
        root = np.where(root > 0, F(1) / np.where(root > 0, root, F(1)), F(0)).astype(F)
        return (root[source] * weight) * root[target]

    def segment_softmax(self, node: Node, x: Any) -> Any:
        out = np.zeros_like(x)
        target = self.index.graphs[node.rows][1]
        for row in np.unique(target):
            part = np.flatnonzero(target == row)
            most = x[part].max(axis=0)
            if node.attrs.get("roots"):
                power = x[part] * (F(1) / most)
                for _ in range(3):  # the eighth power
                    power = power * power
            else:
                power = exp(x[part] - most)
            total = np.zeros(x.shape[1:], dtype=F)
            for value in power:
                total = total + value
            out[part] = power * (F(1) / (total + F(1e-16)))
        return out

    def quantize(self, node: Node, x: Any) -> Any:
        a = node.attrs
        zero2, levels = a["zero2"], 2 ** a["bits"] - 1
        flat = x.reshape(len(x), math.prod(x.shape[1:]))
        if a["granularity"] == "row":
            stat = np.abs(flat).max(1) if zero2 else np.maximum(flat.max(1, initial=-np.inf), F(0))
            s = (stat * F(a["factor"])).astype(F)
        else:
            s = np.full(len(x), a["scale"], dtype=F)
        inverse = np.where(s >= LEAST, F(1) / np.where(s >= LEAST, s, F(1)), F(0)).astype(F)
        t = flat * inverse[:, None]
        r = np.floor(t) if zero2 % 2 else np.rint(t)
        u = np.clip(r.astype(np.float64) + (zero2 + 1) // 2, 0, levels).astype(np.int64)
        return u, s, zero2

    def dequantize(self, node: Node, q: Any) -> Any:
        u, s, zero2 = q
        return ((2 * u - zero2).astype(F) * (s * F(0.5))[:, None]).reshape(len(u), *node.shape)

    def gemm(self, node: Node, q: Any) -> Any:
        u, s, zero2 = q
        weight = self.graph.weights[node.attrs["weight"]]
        rows = (2 * u - zero2).reshape(len(u), u.shape[1] // weight.shape[0], weight.shape[0])
        total = rows @ weight.integers.astype(np.int64)
        y = (total.astype(F) * (s * F(0.5))[:, None, None]) * weight.column_scale
        return y.reshape(len(u), *node.shape)

    def float_gemm(self, node: Node, x: Any) -> Any:
        return x @ self.graph.constants[node.attrs["array"]]

    def spmm(self, node: Node, q: Any, weight: Any = None) -> Any:
        u, s, zero2 = q
        source, target, _ids, count = self.index.graphs[node.attrs["graph"]]
        heads = node.attrs["heads"]
        out = np.zeros((count, heads, node.columns // heads), dtype=F)
        doubled = (2 * u - zero2).reshape(-1, heads, node.columns // heads)
        for row in range(count):
            part = np.flatnonzero(target == row)
            if not part.size:
                continue
            if node.attrs["reduce"] in ("max", "min"):
                extreme = getattr(doubled[source[part]], node.attrs["reduce"])(0)
                out[row] = extreme.astype(F) * (s[0] * F(0.5))
                continue
            v = s[source[part]][:, None]
            of = source[part] if node.attrs.get("per") == "source" else part
            if node.attrs.get("unscaled"):
                v = np.ones_like(v)
            v = np.repeat(v, heads, 1) if weight is None else weight[of].reshape(-1, heads) * v
            m = np.abs(v).max(0)
            r = np.where(m >= LEAST, F(127) / np.where(m >= LEAST, m, F(1)), F(0)).astype(F)
            e8 = np.rint(v * r).astype(np.int64)
            total = (e8[:, :, None] * doubled[source[part]]).sum(0)
            out[row] = total.astype(F) * (m * F(0.5 / 127))[:, None]
            if node.attrs["reduce"] == "mean":
                out[row] = out[row] / F(max(part.size, 1))
        return out.reshape(count, *node.shape)

    def float_spmm(self, node: Node, x: Any, weight: Any = None) -> Any:
        source, target, _ids, count = self.index.graphs[node.attrs["graph"]]
        heads, reduce = node.attrs["heads"], node.attrs["reduce"]
        out = np.zeros((count, heads, node.columns // heads), dtype=F)
        flat = x.reshape(-1, heads, node.columns // heads)
        for row in range(count):
            part = np.flatnonzero(target == row)
            terms = flat[source[part] if len(flat) != 1 else np.zeros_like(part)]
            if weight is not None:
                weight = np.broadcast_to(weight, (len(source), *weight.shape[1:]))
                terms = terms * weight[part].reshape(-1, heads, 1)
            out[row] = fold(terms, reduce)
        return out.reshape(count, *node.shape)

    def tanh(self, node: Node, x: Any) -> Any:
        t = exp(np.abs(x) * F(-2))
        y = (F(1) - t) / (F(1) + t)
        return np.where(x < 0, -y, y)

    def log_softmax(self, node: Node, x: Any) -> Any:
        centred = x - x.max(-1, keepdims=True)
        return centred - log(ordered(exp(centred), -1))[..., None]

    def softmax(self, node: Node, x: Any) -> Any:
        power = exp(x - x.max(-1, keepdims=True))
        return power / ordered(power, -1)[..., None]
