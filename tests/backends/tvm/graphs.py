"""Small integer graphs, one for each way in which kernels are put together, and edge lists."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from gnnquant.integer_graph import (
    ONE,
    GraphInput,
    IndexNode,
    IntegerGraph,
    Node,
    PackedWeight,
    Parameter,
    pack_codes,
)
from gnnquant.passes.lowering.factor_attention import factor_attention
from gnnquant.passes.lowering.factor_norms import factor_norms
from gnnquant.passes.lowering.factor_scales import factor_scales
from gnnquant.passes.lowering.merge_factors import merge_factors

if TYPE_CHECKING:
    from numpy.typing import NDArray

SIGNED = {2: 3, 4: 16, 8: 256}


class Maker:
    """Collects nodes; methods return the name of the value that they add."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.program: list[IndexNode] = []
        self.nodes: list[Node] = []
        self.weights: dict[str, PackedWeight] = {}
        self.constants: dict[str, NDArray[np.float32]] = {}
        self.inputs: list[GraphInput] = []

    def add(
        self, op: str, inputs: tuple[str, ...], shape: tuple[int, ...], rows: str = "", **attrs: Any
    ) -> str:
        """A node, with the rows of its operands unless ``rows`` says which."""
        name = f"v{len(self.nodes)}_{op}"
        spaces = [rows] if rows else [space for space in map(self.rows, inputs) if space != ONE]
        self.nodes.append(Node(name, op, inputs, attrs, shape, spaces[0] if spaces else ONE))
        return name

    def index(self, op: str, *inputs: str, name: str = "", **attrs: Any) -> str:
        """A node of the index program."""
        name = name or f"i{len(self.program)}_{op}"
        self.program.append(IndexNode(name, op, inputs, attrs))
        return name

    def shape(self, name: str) -> tuple[int, ...]:
        return next(node.shape for node in self.nodes if node.name == name)

    def rows(self, name: str) -> str:
        return next(node.rows for node in self.nodes if node.name == name)

    def columns(self, name: str) -> int:
        return int(np.prod(self.shape(name)))

    def input(self, name: str, *shape: int) -> str:
        self.inputs.append(GraphInput(name, "rows", shape))
        return self.add("input", (), shape, self.index("rows", input=name), input=name)

    def index_input(self, name: str) -> str:
        self.inputs.append(GraphInput(name, "index"))
        return self.index("index_input", input=name)

    def edges(self, name: str = "edge_index") -> tuple[str, str]:
        """Sources and destinations of an input."""
        if not any(item.name == name for item in self.inputs):
            self.inputs.append(GraphInput(name, "edges"))
        src, dst = (self.index("index_input", input=name, part=part) for part in range(2))
        return src, dst

    def graph(self, sources: str, loops: str = "keep", into: str = "", edges: str = "edge_index") -> str:
        """The graph of an input, between the rows of ``sources`` and of ``into``."""
        spaces = self.rows(sources), self.rows(into or sources)
        return self.index("graph", *self.edges(edges), *spaces, loops=loops)

    def pool(self, batch: str, x: str) -> str:
        """A graph from the rows of ``x`` to the groups of the index ``batch``."""
        every = self.index("arange", self.rows(x))
        return self.index("graph", every, batch, self.rows(x), self.index("extent", batch), loops="keep")

    def destinations(self, graph: str) -> str:
        return next(node.inputs[3] for node in self.program if node.name == graph)

    def gather(self, x: str, index: str, rows: str, **attrs: Any) -> str:
        return self.add("gather", (x,), self.shape(x), rows, index=index, **attrs)

    def end(self, x: str, graph: str, side: str) -> str:
        return self.gather(x, f"{graph}.{side}", graph)

    def edge_input(self, name: str, graph: str, *shape: int) -> str:
        given = next((n.name for n in self.nodes if n.attrs.get("input") == name), None)
        given = given or self.input(name, *shape)
        return self.gather(given, f"{graph}.edge_id", graph, fill=0.5)

    def spmm(self, q: str, graph: str, weight: str = "", reduce: str = "sum", heads: int = 1) -> str:
        """Quantized or float, whichever ``q`` is."""
        quantized = next(node.op == "quantize" for node in self.nodes if node.name == q)
        return self.add(
            "spmm" if quantized else "float_spmm",
            (q, weight) if weight else (q,),
            self.shape(q),
            self.destinations(graph),
            graph=graph,
            reduce=reduce,
            heads=heads,
        )

    def segment(self, x: str, graph: str, reduce: str) -> str:
        rows = self.destinations(graph)
        return self.add("segment_reduce", (x,), self.shape(x), rows, graph=graph, reduce=reduce)

    def reduce(self, x: str, axis: int, reduce: str = "sum") -> str:
        shape = self.shape(x)
        return self.add("reduce", (x,), (*shape[:axis], *shape[axis + 1 :]), axis=axis, reduce=reduce)

    def pick(self, x: str, index: list[int], *shape: int) -> str:
        return self.add("columns", (x,), shape or (len(index),), index=index)

    def reshape(self, x: str, *shape: int) -> str:
        return self.add("reshape", (x,), shape)

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

    def gemm(self, q: str, outputs: int, bits: int, zero2: int | None = None) -> str:
        *outer, inputs = self.shape(q)
        codes = self.rng.integers(0, 2**bits, (inputs, outputs)).astype(np.uint8)
        name = f"w{len(self.weights)}"
        scale = self.rng.uniform(0.01, 0.1, outputs).astype(np.float32)
        packed = pack_codes(codes, bits)
        zero2 = SIGNED[bits] if zero2 is None else zero2
        self.weights[name] = PackedWeight(bits, zero2, (inputs, outputs), packed, scale)
        return self.add("gemm", (q,), (*outer, outputs), weight=name)

    def linear(self, x: str, outputs: int, bits: int = 4, zero2: int | None = None) -> str:
        """``x`` quantized, times a weight."""
        return self.gemm(self.quantize(x, bits, SIGNED[bits] if zero2 is None else zero2), outputs, bits)

    def float_gemm(self, x: str, outputs: int) -> str:
        name = f"c{len(self.constants)}"
        *outer, inputs = self.shape(x)
        # small integers: sums are exact in any order
        self.constants[name] = self.rng.integers(-3, 4, (inputs, outputs)).astype(np.float32)
        return self.add("float_gemm", (x,), (*outer, outputs), array=name)

    def unary(self, op: str, x: str, **attrs: Any) -> str:
        return self.add(op, (x,), self.shape(x), **attrs)

    def binary(self, op: str, *operands: str, **attrs: Any) -> str:
        shape = np.broadcast_shapes(*map(self.shape, operands))
        return self.add(op, operands, tuple(int(d) for d in shape), **attrs)

    def total(self, x: str, reduce: str) -> str:
        return self.add("row_reduce", (x,), self.shape(x), ONE, reduce=reduce)

    def finish(self, *outputs: str) -> IntegerGraph:
        parameters = [Parameter(item.name, "positional", {"input": item.name}) for item in self.inputs]
        return IntegerGraph(
            self.inputs,
            parameters,
            self.program,
            self.nodes,
            list(outputs),
            weights=self.weights,
            constants=self.constants,
        )


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
    """Two normalised layers, bias, ReLU, log-softmax; without weights and replaced loops in two factors."""
    m = Maker(bits)
    zero2 = SIGNED[bits] if signed else 0
    x = m.input("x", features)
    g = m.graph(x, loops)
    weights = (m.edge_input("edge_weight", g),) if weighted else ()
    norm = m.add("gcn_norm", weights, (), g, fill=1.0 if loops != "replace" else 2.0)
    for width, last in ((hidden, False), (5, True)):
        q = m.quantize(x, bits, zero2, granularity)
        message = m.quantize(m.gemm(q, width, bits), bits, SIGNED[bits], granularity)
        y = m.binary("add", m.spmm(message, g, norm), m.constant(width))
        x = m.unary("log_softmax", y) if last else m.unary("relu", y)
        zero2 = 0
    return merge_factors(factor_scales(factor_norms(m.finish(x))))


def sage(bits: int, reduce: str = "mean", features: int = 33, hidden: int = 70) -> IntegerGraph:
    """Mean or extreme neighbour, two products added, ELU, skip connection; several outputs."""
    m = Maker(bits + 10)
    x = m.input("x", features)
    g = m.graph(x)
    first = x
    for width in (hidden, 9):
        granularity = "row" if reduce == "mean" else "tensor"
        q = m.quantize(x, bits, SIGNED[bits], granularity)
        a = m.spmm(q, g, reduce=reduce)
        left = m.gemm(m.quantize(a, bits, SIGNED[bits], granularity), width, bits)
        right = m.gemm(q, width, bits)
        y = m.binary("add", m.binary("add", left, m.constant(width)), right)
        x = m.unary("elu", y, scalar=0.9)
    skip = m.gemm(m.quantize(first, bits, SIGNED[bits], "tensor"), 9, bits)
    both = m.add("concat", (x, skip), (18,))
    return m.finish(m.unary("softmax", both), m.unary("sigmoid", skip), x, first)


def gat(
    bits: int,
    heads: int = 4,
    width: int = 8,
    features: int = 30,
    *,
    weighted: bool = False,
    factored: bool = False,
    granularity: str = "row",
) -> IntegerGraph:
    """Attention per head, heads joined in the first layer and averaged in the second.

    With ``weighted`` all scores of an edge are multiplied by a number of the edge, and by one for each head.
    With ``factored`` there are exponentials of nodes alone.
    """
    m = Maker(bits + 20)
    x = m.input("x", features)
    g = m.graph(x, "replace")
    for layer in range(2):
        h3 = m.reshape(m.linear(x, heads * width, bits), heads, width)
        scores = []
        for side in ("src", "dst"):
            score = m.reduce(m.binary("mul", h3, m.constant(heads, width)), 1)
            scores.append(m.end(score, g, side))
        e = m.unary("leaky_relu", m.binary("add", *scores), scalar=0.2)
        if weighted:
            e = m.binary("mul", e, m.edge_input("edge_attr", g, 1))
            e = m.binary("mul", m.constant(heads), e)
        alpha = m.add("segment_softmax", (e,), (heads,))
        y = m.spmm(m.quantize(h3, bits, SIGNED[bits], granularity), g, alpha, heads=heads)
        if layer == 0:
            y = m.reshape(y, heads * width)
            x = m.unary("relu", m.binary("add", y, m.constant(heads * width)))
        else:
            x = m.binary("add", m.reduce(y, 0, "mean"), m.constant(width))
    if factored:
        return factor_scales(factor_attention(m.finish(x, alpha)))
    return factor_scales(m.finish(x, e, alpha))


def attention_parts(bits: int, heads: int = 5) -> IntegerGraph:
    """Of a softmax some heads are weights, and products with others."""
    m = Maker(bits + 45)
    x = m.input("x", 2 * heads)
    g = m.graph(x, "replace")
    ends = [
        m.end(m.pick(x, list(range(first, first + heads))), g, side)
        for first, side in ((0, "src"), (heads, "dst"))
    ]
    # the largest product of two weights stays far above what 127 cannot be divided by
    logits = m.unary("mul", m.binary("add", *ends), scalar=0.01)
    alpha = m.add("segment_softmax", (logits,), (heads,))
    some = m.pick(alpha, [2, 3])
    other = m.binary("mul", m.pick(alpha, [0, 1, 2]), m.pick(alpha, [heads - 3, heads - 2, heads - 1]))
    sums = []
    for weights, count in ((some, 2), (other, 3)):
        q = m.quantize(m.reshape(m.linear(x, count * 6, bits), count, 6), bits, SIGNED[bits], "tensor")
        sums.append(m.reshape(m.spmm(q, g, weights, heads=count), count * 6))
    return factor_scales(m.finish(*sums))


def gatv2(bits: int, heads: int = 3, width: int = 20, features: int = 13, edge: int = 4) -> IntegerGraph:
    """Scores from both ends and the edge, attention on messages that carry the edge too."""
    m = Maker(bits + 40)
    x = m.input("x", features)
    g = m.graph(x, "replace")
    attr = m.edge_input("edge_attr", g, edge)
    for _ in range(2):
        left, right = (m.reshape(m.linear(x, heads * width, bits), heads, width) for _ in range(2))
        both = m.binary("add", m.end(left, g, "src"), m.end(right, g, "dst"))
        along = m.reshape(m.linear(attr, heads * width, bits), heads, width)
        both = m.unary("leaky_relu", m.binary("add", both, along), scalar=0.2)
        score = m.reduce(m.binary("mul", both, m.constant(heads, width)), 1)
        alpha = m.add("segment_softmax", (score,), (heads,))
        y = m.spmm(m.quantize(left, bits, SIGNED[bits]), g, alpha, heads=heads)
        message = m.binary("add", m.end(left, g, "src"), along)
        message = m.binary("mul", message, m.reshape(alpha, heads, 1))
        z = m.segment(message, g, "sum")
        x = m.reshape(m.binary("add", y, z), heads * width)
    return m.finish(x, score)


def edge_mlp(bits: int, *reduces: str, features: int = 19, hidden: int = 37) -> IntegerGraph:
    """Products on rows of edges between both ends, one layer a reduction; edge rows are an output too."""
    m = Maker(bits + 50)
    x = m.input("x", features)
    g = m.graph(x, "remove")
    attr = m.edge_input("edge_attr", g, 3)
    for reduce in reduces:
        parts = (m.end(x, g, "dst"), m.end(x, g, "src"), attr)
        joined = m.add("concat", parts, (2 * m.columns(x) + 3,))
        h = m.unary("relu", m.binary("add", m.linear(joined, hidden, bits), m.constant(hidden)))
        h = m.linear(h, features, bits, 0)
        y = m.segment(h, g, reduce)
        z = m.segment(m.pick(h, list(range(3, 8))), g, "mean")
        attr = m.pick(h, [1, 2, 3])
        x = m.binary("add", y, m.linear(m.add("concat", (x, z), (features + 5,)), features, bits))
    return m.finish(x, h, m.segment(attr, g, reduces[-1]))


def bipartite(bits: int) -> IntegerGraph:
    """Two kinds of nodes, messages both ways, sums of floats and of codes."""
    m = Maker(bits + 60)
    x, z = m.input("x", 22), m.input("z", 7)
    to = m.graph(x, into=z, edges="links")
    src, dst = m.edges("links")
    back = m.index("graph", dst, src, m.rows(z), m.rows(x), loops="keep")
    for _ in range(2):
        q, r = m.quantize(x, bits, SIGNED[bits]), m.quantize(z, bits, SIGNED[bits])
        weight = m.unary("sigmoid", m.edge_input("links_weight", to))
        into = m.spmm(q, to, weight)
        out = m.spmm(r, back, reduce="mean")
        low, plain = m.spmm(x, to, reduce="min"), m.spmm(q, to)
        joined = m.add("concat", (into, low, plain), (m.columns(x) * 3,))
        z2 = m.binary("add", m.linear(joined, 16, bits), m.gemm(r, 16, bits))
        x2 = m.binary("sub", m.gemm(q, 16, bits), m.linear(out, 16, bits))
        x, z = m.unary("relu", x2), m.unary("tanh", z2)
    return m.finish(x, z, low)


def pooled() -> IntegerGraph:
    """Groups of rows: sums, extrema and softmaxes over groups, totals over all rows, normalisation."""
    m = Maker(70)
    x = m.input("x", 21)
    batch = m.index_input("batch")
    g = m.pool(batch, x)
    groups = m.destinations(g)
    ones = m.add("constant", (), (1,), ONE, array="ones")
    m.constants["ones"] = np.ones(1, np.float32)
    y = m.linear(x, 24, 8)
    mean = m.spmm(y, g, reduce="mean")
    centred = m.binary("sub", y, m.gather(mean, batch, m.rows(x)))
    spread = m.spmm(m.binary("mul", centred, centred), g, reduce="mean")
    spread = m.unary("sqrt", m.unary("add", spread, scalar=1e-5))
    y = m.binary("div", centred, m.gather(spread, batch, m.rows(x)))
    parts = [m.spmm(y, g, reduce=reduce) for reduce in ("sum", "max", "min")]
    parts += [m.segment(m.end(y, g, "src"), g, reduce) for reduce in ("mean", "mul", "min")]
    soft = m.add("segment_softmax", (m.end(y, g, "src"),), (24,))
    parts.append(m.segment(m.binary("mul", soft, m.end(y, g, "src")), g, "sum"))
    number = m.add("from_index", (), (1,), g, index=f"{g}.dst")
    size = m.segment(m.binary("add", ones, number), g, "sum")
    joined = m.add("concat", (*parts, size), (24 * 7 + 1,), groups)
    totals = [m.total(y, reduce) for reduce in ("sum", "mean", "max", "min")]
    every = m.add("concat", tuple(totals), (96,))
    scale = m.unary("rdiv", m.unary("add", m.unary("abs", every), scalar=1.0), scalar=2.0)
    both = m.binary("mul", m.linear(joined, 96, 4), scale)
    kinds = m.index("combine", batch, function="mod", right=3)
    m.constants["table"] = m.rng.normal(0, 1, (3, 24)).astype(np.float32)
    kind = m.add("lookup", (), (24,), m.rows(x), index=kinds, array="table")
    again = m.binary("add", m.binary("add", y, kind), m.pick(every, list(range(24, 48))))
    previous = m.index("combine", m.index("arange", m.rows(x)), function="sub", right=1)
    shifted = m.gather(again, previous, m.rows(x), fill=-2.0)
    wide = m.gather(both, batch, m.rows(x))
    wide = m.add("concat", (wide, shifted, m.gather(shifted, previous, m.rows(x), fill=3.0)), (144,))
    return m.finish(both, scale, m.unary("neg", wide), m.total(wide, "sum"), kind, size)


def shapes() -> IntegerGraph:
    """Row shapes: static gathers, reductions over any axis, products within rows, choices."""
    m = Maker(80)
    x = m.input("x", 4, 6, 10)
    kinds = ("sum", "mean", "mul", "max", "min")
    outs = [m.reduce(x, axis, reduce) for axis in range(3) for reduce in kinds]
    y = m.pick(x, [a * 60 + c * 10 + b for a in range(4) for b in range(10) for c in range(6)], 4, 10, 6)
    product = m.add("matmul", (x, y), (4, 6, 6))
    constant = m.add("matmul", (product, m.constant(1, 6, 17)), (4, 6, 17))
    narrow = m.add("matmul", (m.constant(4, 2, 6), constant), (4, 2, 17))
    soft = m.unary("softmax", constant)
    logs = m.unary("log_softmax", product)
    mixed = m.binary("mul", m.binary("add", x, m.reshape(outs[10], 4, 6, 1)), m.reshape(outs[0], 1, 6, 10))
    less = m.binary("where", m.binary("lt", x, mixed), x, m.reshape(outs[5], 4, 1, 10))
    same = m.binary("eq", m.binary("maximum", x, mixed), m.binary("minimum", x, mixed))
    floor = m.unary("floor", m.unary("mul", less, scalar=3.0))
    clipped = m.binary("le", floor, m.constant(1, 1, 10))
    positive = m.unary("log", m.unary("add", m.unary("abs", x), scalar=0.5))
    chosen = m.binary("where", clipped, positive, scalar=-1.0)
    every = m.pick(m.binary("add", chosen, same), [(7 * i * i) % 240 for i in range(300)])
    twice = m.pick(every, [5] * 20 + list(range(100, 60, -1)) + list(range(16, 116)))
    slices = m.pick(m.reshape(mixed, 240), list(range(8, 40)))
    return m.finish(*outs, product, narrow, soft, logs, less, twice, slices)


def products(bits: int) -> IntegerGraph:
    """Products with weights along the last of several axes."""
    m = Maker(90 + bits)
    x = m.input("x", 4, 6, 10)
    mixed = m.binary("mul", x, m.constant(4, 1, 10))
    rows = m.gemm(m.quantize(mixed, bits, SIGNED[bits]), 11, bits)
    long = m.pick(m.unary("relu", m.binary("add", x, mixed)), list(range(160)), 2, 80)
    sparse = m.gemm(m.quantize(long, bits, 0), 70, bits)
    exact = m.float_gemm(m.unary("floor", m.unary("mul", x, scalar=3.0)), 5)
    return m.finish(rows, sparse, exact)


LOOKUPS = ((1, 33), (3, 48), (11, 49), (12, 64), (48, 130), (63, 192), (64, 40), (130, 256), (301, 36))


def lookups(shapes: tuple[tuple[int, int], ...] = LOOKUPS) -> IntegerGraph:
    """Products of 2-bit codes, of many shapes; weights with each kind of zero point."""
    m = Maker(100)
    x = m.input("x", 301)
    out = []
    for position, (inputs, outputs) in enumerate(shapes):
        zero2 = (3, 0, 4)[position % 3]
        codes = m.quantize(m.pick(x, list(range(inputs))), 2, (3, 0)[position % 2])
        out.append(m.gemm(codes, outputs, 2, zero2))
    # weights for codes of two widths, in both orders
    some = m.pick(x, list(range(64)))
    narrow, wide = m.quantize(some, 2, 3), m.quantize(some, 4, SIGNED[4])
    out.append(m.add("gemm", (wide,), (40,), weight=f"w{shapes.index((64, 40))}"))
    out.append(m.gemm(wide, 40, 2))
    out.append(m.add("gemm", (narrow,), (40,), weight=f"w{len(shapes)}"))
    return m.finish(*out)


def rare(bits: int) -> IntegerGraph:
    """Products of codes most of which may be 0, of many shapes; weights with each kind of zero point."""
    m = Maker(110 + bits)
    x = m.input("x", 300)
    out = []
    for inputs, outputs, zero2 in ((150, 64, 3), (300, 96, 3), (64, 65, 0), (129, 130, 4), (300, 300, 3)):
        codes = m.quantize(m.pick(x, list(range(inputs))), bits, 0)
        out.append(m.gemm(codes, outputs, bits, zero2 if bits == 2 else SIGNED[bits]))
    return m.finish(*out)


def columns(bits: int) -> IntegerGraph:
    """Products of many numbers of columns, and values of codes, whose scales are of all kinds."""
    m = Maker(120 + bits)
    x = m.input("x", 30)
    out = []
    for position, outputs in enumerate((3, 8, 9, 24, 40, 41, 47, 130)):
        signed, granularity = position % 2 == 0, ("row", "tensor", "tensor")[position % 3]
        codes = m.quantize(x, bits, SIGNED[bits] if signed else 0, granularity)
        out.append(m.gemm(codes, outputs, bits))
        out.append(m.float_gemm(m.unary("floor", m.unary("mul", x, scalar=3.0)), outputs))
    # half of the last of these is no float32
    for scale in (0.0, 2.0**-125, (1 + 2.0**-23) * 2.0**-126):
        tiny = m.unary("mul", x, scalar=scale)
        attrs = {"bits": bits, "zero2": SIGNED[bits], "granularity": "tensor", "scale": scale}
        codes = m.add("quantize", (tiny,), (30,), **attrs)
        out += [m.add("dequantize", (codes,), (30,)), m.gemm(codes, 5, bits)]
    return m.finish(*out)


def floats(reduce: str = "sum", heads: int = 2, features: int = 22) -> IntegerGraph:
    """What is not quantized: weighted sums of float rows, elementwise functions, broadcasting."""
    m = Maker(30)
    x = m.input("x", features)
    g = m.graph(x, "add")
    w = m.unary("exp", m.unary("neg", m.edge_input("edge_attr", g, heads)))
    y = m.spmm(x, g, w, reduce, heads)
    z = m.spmm(y, g, reduce="mean")
    z = m.unary("tanh", m.unary("div", m.unary("rsub", z, scalar=0.7), scalar=3.0))
    z = m.binary("sub", m.binary("mul", z, m.constant(1)), m.unary("mul", x, scalar=0.1))
    t = m.reshape(z, 2, features // 2)
    s = m.reduce(t, 1)
    t = m.binary("div", m.binary("add", t, m.reshape(s, 2, 1)), m.constant(1, features // 2))
    q = m.quantize(t, 4, 16, "tensor")
    back = m.add("dequantize", (q,), (2, features // 2))
    joined = m.add("concat", (t, back), (2, 2 * (features // 2)))
    return m.finish(m.reshape(joined, 4 * (features // 2)), s)


def edge_index(sources: int, destinations: int, edges: int, seed: int = 0) -> NDArray[np.int64]:
    """Random edges with a hub, self-loops, duplicates and isolated nodes."""
    rng = np.random.default_rng(seed)
    index = np.stack([rng.integers(0, max(count * 3 // 4, 1), edges) for count in (sources, destinations)])
    index[1, : edges // 4] = 0
    some = edges // 3 - edges // 4
    for side, count in enumerate((sources, destinations)):
        index[side, edges // 4 : edges // 3] = rng.integers(0, max(count, 1), some)
    index[:, edges // 2 : edges // 2 + edges // 8] = index[:, : edges // 8]
    return index[:, rng.permutation(edges)].astype(np.int64)


def values(graph: IntegerGraph, nodes: int, edges: int, seed: int = 1) -> dict[str, NDArray[Any]]:
    """Inputs of ``graph``: mostly zero rows, a row of zeros, large values.

    ``z`` is a second kind of nodes, which ``links`` leads to; ``batch`` groups nodes; what else
    is called after edges has a row for each.
    """
    rng = np.random.default_rng(seed)
    found: dict[str, NDArray[Any]] = {}
    others = (nodes + 1) // 2
    for item in graph.inputs:
        if item.kind == "edges":
            ends = (nodes, others) if item.name == "links" else (nodes, nodes)
            found[item.name] = edge_index(*ends, edges, seed=nodes)
            continue
        if item.kind == "index":
            found[item.name] = np.sort(rng.integers(0, nodes // 5 + 1, nodes) * 2)
            continue
        of_edges = item.name.startswith(("edge", "links"))
        rows = edges if of_edges else others if item.name == "z" else nodes
        value = rng.normal(0, 1, (rows, *item.shape))
        if of_edges:
            value = np.abs(value)
        else:
            value[: rows // 2] *= rng.random((rows // 2, *item.shape)) < 0.1
            value[:1] = 0
            value[rows // 3 :: 7] *= 100
        found[item.name] = value.astype(np.float32)
    return found


def faint(graph: IntegerGraph) -> dict[str, NDArray[Any]]:
    """Inputs of which one row after the other is smaller, through subnormal numbers down to zero."""
    found = values(graph, 60, 300)
    for name, value in found.items():
        if value.dtype == np.float32:
            down = np.float32(2) ** -(4 * (np.arange(len(value)) % 40))
            found[name] = value * down.astype(np.float32).reshape(-1, *[1] * (value.ndim - 1))
    return found
