"""Small integer graphs, one for each way in which kernels are put together, and edge lists."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from gnnquant.integer_graph import GraphInput, IntegerGraph, Node, PackedWeight, pack_codes

if TYPE_CHECKING:
    from numpy.typing import NDArray

SIGNED = {2: 3, 4: 16, 8: 256}


class Maker:
    """Collects nodes; methods return the name of the value that they add."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[Node] = []
        self.weights: dict[str, PackedWeight] = {}
        self.constants: dict[str, NDArray[np.float32]] = {}
        self.inputs: list[GraphInput] = []

    def add(
        self, op: str, inputs: tuple[str, ...], shape: tuple[int, ...], rows: str = "node", **attrs: Any
    ) -> str:
        name = f"v{len(self.nodes)}_{op}"
        self.nodes.append(Node(name, op, inputs, attrs, shape, rows))
        return name

    def shape(self, name: str) -> tuple[int, ...]:
        return next(node.shape for node in self.nodes if node.name == name)

    def columns(self, name: str) -> int:
        return int(np.prod(self.shape(name)))

    def input(self, name: str, columns: int) -> str:
        self.inputs.append(GraphInput(name, "node", columns))
        return self.add("node_input", (), (columns,), input=name)

    def graph(self, loops: str = "keep") -> str:
        if not any(item.kind == "edge_index" for item in self.inputs):
            self.inputs.append(GraphInput("edge_index", "edge_index"))
        return self.add("graph", (), (), rows="", input="edge_index", loops=loops)

    def edge_input(self, name: str, graph: str, columns: int = 0) -> str:
        if not any(item.name == name for item in self.inputs):
            self.inputs.append(GraphInput(name, "edge", columns, "edge_index"))
        shape = (columns,) if columns else ()
        return self.add("edge_input", (graph,), shape, graph, input=name, fill=0.5)

    def constant(self, *shape: int) -> str:
        name = f"c{len(self.constants)}"
        self.constants[name] = self.rng.normal(0, 0.3, shape).astype(np.float32)
        return self.add("constant", (), shape, array=name)

    def quantize(self, x: str, bits: int, zero2: int, granularity: str = "row") -> str:
        step = {"factor": (2 if zero2 else 1) / (2**bits - 1)}
        if granularity == "tensor":
            step = {"scale": (1.0 if zero2 else 0.5) / 2 ** (bits - 2)}
        attrs = {"bits": bits, "zero2": zero2, "granularity": granularity, **step}
        return self.add("quantize", (x,), self.shape(x), **attrs)

    def gemm(self, q: str, outputs: int, bits: int) -> str:
        inputs = self.columns(q)
        codes = self.rng.integers(0, 2**bits, (inputs, outputs)).astype(np.uint8)
        name = f"w{len(self.weights)}"
        scale = self.rng.uniform(0.01, 0.1, outputs).astype(np.float32)
        packed = pack_codes(codes, bits)
        self.weights[name] = PackedWeight(bits, SIGNED[bits], (inputs, outputs), packed, scale)
        return self.add("gemm", (q,), (outputs,), weight=name)

    def float_gemm(self, x: str, outputs: int) -> str:
        name = f"c{len(self.constants)}"
        shape = (self.columns(x), outputs)
        self.constants[name] = self.rng.normal(0, 0.3, shape).astype(np.float32)
        return self.add("float_gemm", (x,), (outputs,), array=name)

    def unary(self, op: str, x: str, **attrs: Any) -> str:
        rows = next(node.rows for node in self.nodes if node.name == x)
        return self.add(op, (x,), self.shape(x), rows, **attrs)

    def binary(self, op: str, x: str, y: str) -> str:
        node = next(node for node in self.nodes if node.name == x)
        other = next(node for node in self.nodes if node.name == y)
        shape = np.broadcast_shapes(node.shape, other.shape)
        rows = node.rows if node.rows != "node" else other.rows
        return self.add(op, (x, y), tuple(int(d) for d in shape), rows)

    def finish(self, *outputs: str) -> IntegerGraph:
        return IntegerGraph(self.inputs, self.nodes, list(outputs), self.weights, self.constants)


def gcn(
    bits: int,
    *,
    signed: bool = True,
    granularity: str = "row",
    loops: str = "remaining",
    features: int = 75,
    hidden: int = 40,
    weighted: bool = False,
) -> IntegerGraph:
    """Two normalised layers, bias, ReLU, log-softmax."""
    m = Maker(bits)
    zero2 = SIGNED[bits] if signed else 0
    x, g = m.input("x", features), m.graph(loops)
    norm_inputs = (g, m.edge_input("edge_weight", g)) if weighted else (g,)
    norm = m.add("gcn_norm", norm_inputs, (), g, fill=1.0 if loops != "replace" else 2.0)
    for width, last in ((hidden, False), (5, True)):
        q = m.quantize(x, bits, zero2, granularity)
        h = m.gemm(q, width, bits)
        message = m.quantize(h, bits, SIGNED[bits], granularity)
        y = m.add("spmm", (message, g, norm), (width,), reduce="sum", heads=1)
        y = m.binary("add", y, m.constant(width))
        x = m.unary("log_softmax", y) if last else m.unary("relu", y)
        zero2 = 0
    return m.finish(x)


def sage(bits: int, reduce: str = "mean", features: int = 33, hidden: int = 70) -> IntegerGraph:
    """Mean or largest neighbour, two products added, ELU, skip connection; two outputs."""
    m = Maker(bits + 10)
    x, g = m.input("x", features), m.graph("keep")
    first = x
    for width in (hidden, 9):
        granularity = "tensor" if reduce == "max" else "row"
        q = m.quantize(x, bits, SIGNED[bits], granularity)
        shape = m.shape(x)
        a = m.add("spmm", (q, g), shape, reduce=reduce, heads=1)
        left = m.gemm(m.quantize(a, bits, SIGNED[bits], granularity), width, bits)
        right = m.gemm(q, width, bits)
        y = m.binary("add", m.binary("add", left, m.constant(width)), right)
        x = m.unary("elu", y, scalar=0.9)
    skip = m.gemm(m.quantize(first, bits, SIGNED[bits], "tensor"), 9, bits)
    both = m.add("concat", (x, skip), (18,))
    return m.finish(m.unary("softmax", both), m.unary("sigmoid", skip), x)


def gat(bits: int, heads: int = 4, width: int = 8, features: int = 30) -> IntegerGraph:
    """Attention per head, heads joined in the first layer and averaged in the second."""
    m = Maker(bits + 20)
    x, g = m.input("x", features), m.graph("replace")
    for layer in range(2):
        h = m.gemm(m.quantize(x, bits, SIGNED[bits]), heads * width, bits)
        h3 = m.add("reshape", (h,), (heads, width))
        scores = []
        for side in ("src", "dst"):
            product = m.binary("mul", h3, m.constant(heads, width))
            score = m.add("sum_last", (product,), (heads,))
            scores.append(m.add("gather", (score, g), (heads,), g, side=side))
        e = m.unary("leaky_relu", m.binary("add", *scores), scalar=0.2)
        alpha = m.add("segment_softmax", (e,), (heads,), g)
        message = m.quantize(h3, bits, SIGNED[bits])
        y = m.add("spmm", (message, g, alpha), (heads, width), reduce="sum", heads=heads)
        if layer == 0:
            y = m.add("reshape", (y,), (heads * width,))
            x = m.unary("relu", m.binary("add", y, m.constant(heads * width)))
        else:
            y = m.add("mean_first", (y,), (width,))
            x = m.binary("add", y, m.constant(width))
    return m.finish(x)


def floats(reduce: str = "sum", heads: int = 2, features: int = 22) -> IntegerGraph:
    """What is not quantized: weighted sums of float rows, elementwise functions, broadcasting."""
    m = Maker(30)
    x, g = m.input("x", features), m.graph("add")
    w = m.edge_input("edge_attr", g, heads)
    w = m.unary("exp", m.unary("neg", w))
    y = m.add("float_spmm", (x, g, w), (features,), reduce=reduce, heads=heads)
    z = m.add("float_spmm", (y, g), (features,), reduce="mean", heads=1)
    z = m.unary("tanh", m.unary("div", m.unary("rsub", z, scalar=0.7), scalar=3.0))
    z = m.binary("sub", m.binary("mul", z, m.constant(1)), m.unary("mul", x, scalar=0.1))
    t = m.add("reshape", (z,), (2, features // 2))
    s = m.add("sum_last", (t,), (2,))
    s = m.add("reshape", (s,), (2, 1))
    t = m.binary("div", m.binary("add", t, s), m.constant(features // 2))
    q = m.quantize(t, 4, 16, "tensor")
    back = m.add("dequantize", (q,), (2, features // 2))
    joined = m.add("concat", (t, back), (2, 2 * (features // 2)))
    return m.finish(m.add("reshape", (joined,), (4 * (features // 2),)), s)


def edge_index(nodes: int, edges: int, seed: int = 0) -> NDArray[np.int64]:
    """Random edges with a hub, self-loops, duplicates and isolated nodes."""
    rng = np.random.default_rng(seed)
    index = rng.integers(0, max(nodes * 3 // 4, 1), (2, edges))
    index[1, : edges // 4] = 0
    index[:, edges // 4 : edges // 3] = rng.integers(0, nodes, edges // 3 - edges // 4)
    index[:, edges // 2 : edges // 2 + edges // 8] = index[:, : edges // 8]
    return index[:, rng.permutation(edges)].astype(np.int64)


def values(graph: IntegerGraph, nodes: int, edges: int, seed: int = 1) -> dict[str, NDArray[np.float32]]:
    """Inputs of ``graph``: mostly zero rows, a row of zeros, large values."""
    rng = np.random.default_rng(seed)
    found: dict[str, NDArray[np.float32]] = {}
    for item in graph.inputs:
        if item.kind == "edge_index":
            continue
        rows = nodes if item.kind == "node" else edges
        shape = (rows, item.columns) if item.columns else (rows,)
        value = rng.normal(0, 1, shape)
        if item.kind == "node":
            value[: rows // 2] *= rng.random((rows // 2, item.columns)) < 0.1
            value[:1] = 0
            value[rows // 3 :: 7] *= 100
        else:
            value = np.abs(value)
        found[item.name] = value.astype(np.float32)
    return found
