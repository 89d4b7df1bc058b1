"""The integer graph: what every backend runs, and the arithmetic that it must reproduce.

The graph is a list of nodes in execution order (SSA: a node's name is the name of its value).
``backends.reference`` interprets it in torch and is the oracle; every other backend must give the
same bits. All float arithmetic is IEEE float32, one rounding per written operation, in the written
order, never contracted into a fused multiply-add.

Rows
    A value has one row per node (``rows == "node"``) or one row per edge of a graph value
    (``rows == <name of the graph node>``, rows in CSR order: sorted by destination, stable, so
    that edges of one destination keep the order in which they were given; appended self-loops come
    last). ``shape`` is the shape of a row; columns are its row-major flattening. Graph values
    themselves have ``rows == ""``.

Quantized values (op ``quantize``)
    Unsigned codes ``u`` in ``0 .. 2^bits - 1`` with a doubled zero point ``zero2`` (0: unsigned,
    ``2^bits``: signed, 3 at 2 bits: four symmetric levels) and one scale ``s`` per row or per
    tensor. A code stands for ``(2u - zero2) * (s / 2)``. From a float ``v``::

        stat  = max_j |v_j|   (zero2 > 0)    or    max(0, max_j v_j)   (zero2 == 0)
        s     = stat * factor              (granularity "row")   or   s = scale   ("tensor")
        inv   = 1 / s  where s > 0, else 0
        t_j   = v_j * inv
        u_j   = clamp(r(t_j) + (zero2 + 1) // 2, 0, 2^bits - 1)

    ``r`` rounds half to even where ``zero2`` is even, and down where it is odd.

Weights (``PackedWeight``)
    Constant codes on the same grids, one scale per output column. ``integers`` w are
    ``v - zero2 / 2`` (even) or ``2v - zero2`` (odd); ``column_scale`` c is the scale or half of it.

gemm (x quantized [.., K], weight [K, M]) -> float [.., M]
    ``acc = sum_k (2 u_k - zero2) w_km`` (exact integer), ``y_m = (f32(acc) * (s / 2)) * c_m``.

spmm (x quantized, graph, optional edge weight a [E, heads]) -> float, reduce "sum" or "mean"
    Column j belongs to head ``j // (columns / heads)``. For destination i and head h, over its
    edges e from source j(e)::

        v_e = a_e * s_j(e)                (s alone without edge weight)
        m   = max_e |v_e|
        r   = 127 / m  where m > 0, else 0
        e8  = round_half_even(v_e * r)    an 8-bit edge weight
        acc = sum_e e8 * (2 u_j(e) - zero2)      (exact integer, however large the degree)
        y   = f32(acc) * (m * f32(0.5 / 127))    then, for "mean",  y / f32(max(degree, 1))

    reduce "max" (tensor granularity, no edge weight): ``y = f32(max_e (2u - zero2)) * (s / 2)``,
    0 where there is no edge.

Everything else is float32 (see ``OPS``).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from gnnquant.errors import BackendError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

EDGE_LEVELS = 127
"""Largest magnitude of an 8-bit edge weight."""

OPS: dict[str, str] = {
    # sources
    "node_input": "float rows of the input attrs['input'] [N, F]",
    "constant": "constants[attrs['array']] broadcast over rows; its shape is the row shape",
    # graphs
    "graph": "CSR form of the input attrs['input'] (edge_index); attrs['loops'] in LOOPS",
    # edge rows
    "edge_input": "(graph) input attrs['input'] [E, ...] by edge; attrs['fill'] for added loops",
    "gcn_norm": "(graph[, w]) d_src^-1/2 * w * d_dst^-1/2 with d the weighted in-degree; without "
    "w: 1, and attrs['fill'] for self-loops that were added",
    "gather": "(x, graph) rows of x at the edge's attrs['side'], 'src' or 'dst'",
    "segment_softmax": "(x) exp(x - max) / (sum + 1e-16) over the edges of one destination, "
    "columnwise; the sum runs in edge order from 0",
    # quantized
    "quantize": "(x) see above; attrs bits, zero2, granularity, factor or scale",
    "dequantize": "(q) (f32)(2u - zero2) * (s / 2)",
    "gemm": "(q) times weights[attrs['weight']]",
    "spmm": "(q, graph[, a]) see above; attrs reduce, heads",
    # float forms of the two, where a site is switched off or bits is 32
    "float_gemm": "(x) times constants[attrs['array']] [K, M]; any order of summation",
    "float_spmm": "(x, graph[, a]) sum_e a_e x_j(e) in edge order; attrs reduce, heads",
    # elementwise; operands broadcast as row shapes, attrs['scalar'] is a float32 second operand
    "add": "x + y, or x + scalar",
    "sub": "x - y, or x - scalar",
    "mul": "x * y, or x * scalar",
    "div": "x / y, or x / scalar",
    "rsub": "scalar - x",
    "neg": "-x",
    "relu": "x > 0 ? x : 0",
    "leaky_relu": "x > 0 ? x : x * scalar",
    "elu": "x > 0 ? x : scalar * (exp(x) - 1)",
    "exp": "exp(x) by the polynomial of gnnquant.exact_math",
    "sigmoid": "1 / (1 + exp(-x))",
    "tanh": "x >= 0: (1 - t) / (1 + t) with t = exp(-2|x|), negated for x < 0",
    # rowwise
    "reshape": "the same columns under another row shape",
    "concat": "(x, y, ...) along the last axis of the row shape",
    "sum_last": "sum over the last axis of the row shape, left to right from its first element",
    "mean_first": "sum over the first axis of the row shape, in order, / f32(length)",
    "log_softmax": "x - max - log(sum exp(x - max)) over the row (1-D), the sum left to right",
    "softmax": "exp(x - max) / sum over the row (1-D), the sum left to right",
}
"""Operations of the integer graph and what each means; names in parentheses are its inputs."""

ELEMENTWISE = frozenset(
    ["add", "sub", "mul", "div", "rsub", "neg", "relu", "leaky_relu", "elu", "exp", "sigmoid", "tanh"]
)
LOOPS = ("keep", "remove", "add", "replace", "remaining")
"""What a graph node does to self-loops: nothing; remove them; append one per node; remove and
append; remove and append, an appended loop taking the place (edge inputs) of the last one that was
removed there."""


@dataclass(frozen=True)
class Node:
    """One value of the graph.

    Attributes:
        name: Unique name.
        op: A key of ``OPS``.
        inputs: Names of operands.
        attrs: Constants of the operation (JSON-able).
        shape: Shape of one row.
        rows: ``"node"``, the name of a graph node, or ``""`` for a graph.
        source: Where it comes from in the user's model, for messages and dumps.
    """

    name: str
    op: str
    inputs: tuple[str, ...] = ()
    attrs: dict[str, Any] = field(default_factory=dict)
    shape: tuple[int, ...] = ()
    rows: str = "node"
    source: str = ""

    @property
    def columns(self) -> int:
        """Number of elements of one row."""
        return int(np.prod(self.shape, dtype=np.int64))


@dataclass(frozen=True)
class PackedWeight:
    """A weight matrix [K, M] stored at its bit width.

    Attributes:
        bits: 2, 4 or 8.
        zero2: Doubled zero point of its codes.
        shape: ``(K, M)``: inputs, outputs.
        data: uint8, codes packed little-endian (code i of a byte at bit ``i * bits``), in row-major
            order of [K, M]; the last byte is padded with zeros.
        scale: float32 [M], real value of one step of ``2 (v - zero2 / 2)`` halves, i.e. the real
            weight is ``(2v - zero2) * scale / 2``.
    """

    bits: int
    zero2: int
    shape: tuple[int, int]
    data: NDArray[np.uint8]
    scale: NDArray[np.float32]

    @property
    def codes(self) -> NDArray[np.uint8]:
        """Unpacked codes, uint8 [K, M]."""
        rows, columns = self.shape
        return unpack_codes(self.data, self.bits, rows * columns).reshape(rows, columns)

    @property
    def integers(self) -> NDArray[np.int8]:
        """The integers that enter the accumulation, int8 [K, M]."""
        codes = self.codes.astype(np.int16)
        value = 2 * codes - self.zero2 if self.zero2 % 2 else codes - self.zero2 // 2
        return value.astype(np.int8)

    @property
    def column_scale(self) -> NDArray[np.float32]:
        """float32 [M]: real value of one unit of ``integers``."""
        return self.scale * np.float32(0.5) if self.zero2 % 2 else self.scale


@dataclass(frozen=True)
class GraphInput:
    """One input of the model.

    Attributes:
        name: Parameter name of the user's ``forward``.
        kind: ``"node"`` (float32 [N, columns]), ``"edge_index"`` (int64 [2, E]) or ``"edge"``
            (float32 [E] or [E, columns]).
        columns: Width of a row; 0 for one-dimensional and for ``edge_index``.
        edge_index: For ``"edge"`` inputs, the ``edge_index`` input that they belong to.
        optional: The call may leave it out or pass ``None`` (then it was ``None`` in tracing).
    """

    name: str
    kind: str
    columns: int = 0
    edge_index: str = ""
    optional: bool = False


@dataclass
class IntegerGraph:
    """A lowered model.

    Attributes:
        inputs: In the order of the model's ``forward``.
        nodes: In execution order.
        outputs: Names of the returned values (float, rows "node").
        weights: Packed integer weights by name.
        constants: float32 arrays by name.
    """

    inputs: list[GraphInput]
    nodes: list[Node]
    outputs: list[str]
    weights: dict[str, PackedWeight] = field(default_factory=dict)
    constants: dict[str, NDArray[np.float32]] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Node:
        """The node called ``name``."""
        for node in self.nodes:
            if node.name == name:
                return node
        raise KeyError(name)

    def __str__(self) -> str:
        """One line per node."""
        return "\n".join(_format(node) for node in self.nodes) + f"\nreturn {self.outputs}"

    def users(self, name: str) -> Iterator[Node]:
        """Nodes that read ``name``, once for each time that they read it."""
        for node in self.nodes:
            for operand in node.inputs:
                if operand == name:
                    yield node

    def verify(self) -> None:
        """Check that names resolve, ops exist and operands come first.

        Raises:
            BackendError: Naming the first node that breaks a rule.
        """
        seen: set[str] = set()
        for node in self.nodes:
            if node.op not in OPS:
                raise BackendError(f"integer graph: {node.name!r} has the unknown op {node.op!r}")
            if node.name in seen:
                raise BackendError(f"integer graph: {node.name!r} is defined twice")
            missing = [operand for operand in node.inputs if operand not in seen]
            if missing:
                raise BackendError(f"integer graph: {node.name!r} reads {missing} before they exist")
            if node.op == "gemm" and node.attrs["weight"] not in self.weights:
                raise BackendError(f"integer graph: {node.name!r} has no weight")
            seen.add(node.name)
        for name in self.outputs:
            if name not in seen:
                raise BackendError(f"integer graph: the output {name!r} does not exist")


def _format(node: Node) -> str:
    rows = f"{node.rows or 'graph'}{list(node.shape)}"
    attrs = "".join(f", {key}={value}" for key, value in node.attrs.items())
    note = f"    # {node.source}" if node.source else ""
    return f"{node.name}: {rows} = {node.op}({', '.join(node.inputs)}{attrs}){note}"


def pack_codes(codes: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Pack ``codes`` (any shape, values below ``2^bits``) into bytes, little-endian, flattened."""
    flat = np.ascontiguousarray(codes, dtype=np.uint8).reshape(-1)
    per_byte = 8 // bits
    padded = np.zeros(-(-flat.size // per_byte) * per_byte, dtype=np.uint8)
    padded[: flat.size] = flat
    groups = padded.reshape(-1, per_byte)
    packed = np.zeros(groups.shape[0], dtype=np.uint8)
    for position in range(per_byte):
        packed |= groups[:, position] << np.uint8(position * bits)
    return packed


def unpack_codes(data: NDArray[np.uint8], bits: int, count: int) -> NDArray[np.uint8]:
    """Inverse of :func:`pack_codes`: the first ``count`` codes of ``data``."""
    per_byte = 8 // bits
    mask = np.uint8(2**bits - 1)
    columns = [(data >> np.uint8(position * bits)) & mask for position in range(per_byte)]
    return np.stack(columns, axis=1).reshape(-1)[:count]
