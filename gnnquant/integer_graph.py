"""The integer graph: what every backend runs, and the arithmetic that it must reproduce.

Two programs. The *index program* (``IntegerGraph.index``) computes all that follows from integer inputs
and from sizes: which rows an edge joins, edges by type, self-loops, numbers of rows. It runs in numpy
before anything else, and its results are kept while the same graphs come again. The *row program*
(``IntegerGraph.nodes``) computes float rows; how many there are, and which rows it reads, is known by
then. Both are lists in execution order (SSA: a node's name is the name of its value).
``backends.reference`` interprets them and is the oracle; every other backend must give the same bits.
All float arithmetic is IEEE float32, one rounding per written operation, in the written order, never
contracted into a fused multiply-add.

Spaces
    Every value of the row program has one row per element of a *space*, named by ``Node.rows``: a size
    of the index program (the rows of an input, the largest index plus one, ...), a graph of the index
    program (one row per edge), or ``ONE`` (a single row: constants and sums over all rows). ``shape``
    is the shape of a row; columns are its row-major flattening. Operands of an operation have the rows
    of its result, or are ``ONE`` rows, which repeat; exceptions are written in ``OPS``.

Graphs
    A graph joins sources to destinations. Its edges are in CSR order: sorted by destination, stable, so
    that edges of one destination keep the order in which they were given; appended self-loops come
    last. ``<graph>.src``, ``<graph>.dst`` and ``<graph>.edge_id`` (position in the given list, -1 for
    an appended loop that had no predecessor) are index arrays with one entry per edge of the graph.

Quantized values (op ``quantize``)
    Unsigned codes ``u`` in ``0 .. 2^bits - 1`` with a doubled zero point ``zero2`` (0: unsigned,
    ``2^bits``: signed, 3 at 2 bits: four symmetric levels) and one scale ``s`` per row or per
    tensor. A code stands for ``(2u - zero2) * (s / 2)``. From a float ``v``::

        stat  = max_j |v_j|   (zero2 > 0)    or    max(0, max_j v_j)   (zero2 == 0)
        s     = stat * factor              (granularity "row")   or   s = scale   ("tensor")
        inv   = 1 / s  where s >= SMALLEST, else 0
        t_j   = v_j * inv
        u_j   = clamp(r(t_j) + (zero2 + 1) // 2, 0, 2^bits - 1)

    ``r`` rounds half to even where ``zero2`` is even, and down where it is odd.

Weights (``PackedWeight``)
    Constant codes on the same grids, one scale per output column. ``integers`` w are
    ``v - zero2 / 2`` (even) or ``2v - zero2`` (odd); ``column_scale`` c is the scale or half of it.

gemm (x quantized [.., K], weight [K, M]) -> float [.., M]
    ``acc = sum_k (2 u_k - zero2) w_km`` (exact integer), ``y_m = (f32(acc) * (s / 2)) * c_m``.

spmm (x quantized, optional weight a [E, heads]) -> float, reduce "sum" or "mean"
    Weights are those of edges or, with ``per="source"``, of sources: then ``a_e`` is ``a_j(e)``.
    Column j belongs to head ``j // (columns / heads)``. For destination i and head h, over its
    edges e from source j(e)::

        v_e = a_e * s_j(e)                (s alone without weights; a alone with attrs["unscaled"])
        m   = max_e |v_e|
        r   = 127 / m  where m >= SMALLEST, else 0
        e8  = round_half_even(v_e * r)    an 8-bit edge weight
        acc = sum_e e8 * (2 u_j(e) - zero2)      (exact integer, however large the degree)
        y   = f32(acc) * (m * f32(0.5 / 127))    then, for "mean",  y / f32(max(degree, 1))

    ``unscaled`` sums have weights, and codes of one scale, which whoever reads them multiplies by.
    reduce "max" and "min" (tensor granularity, no edge weight): ``y = f32(max_e (2u - zero2)) * (s / 2)``,
    0 where there is no edge.

Everything else is float32 (see ``OPS``).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from gnnquant.errors import BackendError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

EDGE_LEVELS = 127
"""Largest magnitude of an 8-bit edge weight."""
SMALLEST = 2.0**-120
"""Scales and weights below are taken for 0: ``EDGE_LEVELS`` over them might be infinite."""
SQUARINGS = 3
"""How often a softmax of roots squares them."""
DEPTH = 2**SQUARINGS
"""The power to which it so raises: they are exponentials of an eighth of logits."""
ONE = "one"
"""The space of one row."""

INDEX_OPS: dict[str, str] = {
    # sizes: non-negative Python integers
    "rows": "number of rows of the input attrs['input'] (edges of an 'edges' input, entries of an "
    "'adjacency')",
    "size_input": "the integer input attrs['input']; of an 'adjacency' input its extent along attrs['axis']",
    "size": "attrs['function'] of two sizes: add, sub, mul, floordiv, mod, max, min; a size is an input "
    "or attrs['left'] / attrs['right'], a number in its place",
    "length": "(array) its number of entries",
    "extent": "(array) its largest entry + 1, 0 where it is empty",
    # checks: no value; they raise InputError, in the words of attrs['message']
    "same_size": "(size, size) they are equal",
    # arrays: int64 [length]; masks are arrays of 0 and 1
    "index_input": "the int64 or bool input attrs['input'] [R], or its row attrs['part'] (kind 'edges'), or "
    "its column attrs['part'] ([R, C]); 'row' or 'col' of an 'adjacency' (entries by row, then column)",
    "values": "the array attrs['values']",
    "arange": "(size) 0 .. size - 1",
    "full": "(size) attrs['value'] repeated",
    "combine": "attrs['function'] of two arrays of one length, elementwise; attrs['left'] / attrs['right'] "
    "is a number in the place of one, and a size may stand for either: add, sub, mul, floordiv, mod, max, "
    "min, eq, ne, lt, le, gt, ge, and, or",
    "not": "(mask) 1 - mask",
    "join": "(array, ...) one after the other",
    "select": "(array, mask) the entries where the mask is 1",
    "nonzero": "(mask) the positions of its ones",
    "take": "(array, index) array[index]; checked",
    "put": "(array, index, value) a copy with array[index] = value, the last of equal indices; checked",
    "count": "(index, size) how often each of 0 .. size - 1 occurs; checked",
    "cumsum": "(array) inclusive running sums",
    "argsort": "(array) the positions that sort it, stable",
    "bounded": "(index, size) the index itself; checked to lie in 0 .. size - 1",
    "part": "(graph) its array attrs['part']: 'src', 'dst' or 'edge_id', as '<graph>.src' names it too",
    # graphs
    "graph": "(src, dst, sources, destinations) two arrays of one length and two sizes; attrs['loops'] in "
    "LOOPS; checked",
}
"""Operations of the index program; names in parentheses are its inputs. What is checked raises
``InputError`` with the first offending entry, named after attrs['label'] (default: the node's name)."""

OPS: dict[str, str] = {
    # sources
    "input": "float rows of the input attrs['input'] ('values' of an 'adjacency')",
    "constant": "constants[attrs['array']]; rows ONE",
    "from_index": "float32 of the index array attrs['index']",
    "lookup": "row attrs['index'][r] of constants[attrs['array']] [V, *shape]",
    # between spaces
    "gather": "(x) row attrs['index'][r] of x for row r; where the entry is -1, attrs['fill'] (a float; "
    "absent: there is no -1)",
    "segment_reduce": "(x) over the edges of each destination of attrs['graph'] in edge order; x has that "
    "graph's edges for rows. attrs['reduce']: sum (from 0), mean (sum / f32(max(degree, 1))), mul (from 1), "
    "max and min (0 where there is no edge)",
    "row_reduce": "(x) over all rows in order, to ONE row; attrs['reduce']: sum (from 0), mean (sum / "
    "f32(max(rows, 1))), max and min (0 where there is no row)",
    "spmm": "(q[, a]) see above; attrs graph, reduce, heads, unscaled; q has the sources for rows, a the "
    "edges, or the sources where attrs['per'] is 'source'",
    "float_spmm": "(x[, a]) the same on floats: sum, mean, max, min over a_e x_j(e) as in segment_reduce",
    # edge rows
    "gcn_norm": "([w]) d_src^-1/2 * w * d_dst^-1/2 with d the weighted in-degree; without w: 1, and "
    "attrs['fill'] for self-loops that were added",
    "segment_softmax": "(x) p * (1 / (sum p + 1e-16)) over the edges of one destination, columnwise; "
    "p = exp(x - max), or of attrs['roots'], x > 0, the DEPTH-th power of x * (1 / max), squared again and "
    "again; the sum runs in edge order from 0",
    # quantized
    "quantize": "(x) see above; attrs bits, zero2, granularity, factor or scale",
    "dequantize": "(q) (f32)(2u - zero2) * (s / 2)",
    "gemm": "(q) times weights[attrs['weight']], along the last axis of the row shape",
    # float products
    "float_gemm": "(x) times constants[attrs['array']] [K, M]; any order of summation: inexact, used only "
    "where a site is switched off or bits is 32",
    "matmul": "(x [.., I, K], y [.., K, J]) matrix product within a row; batch axes are equal or 1; each "
    "sum left to right from its first product",
    # elementwise; operands broadcast as row shapes of equal rank, attrs['scalar'] is a float32 last operand
    "add": "x + y",
    "sub": "x - y",
    "mul": "x * y",
    "div": "x / y",
    "rsub": "scalar - x",
    "rdiv": "scalar / x",
    "maximum": "x > y ? x : y",
    "minimum": "x < y ? x : y",
    "eq": "x == y ? 1 : 0",
    "lt": "x < y ? 1 : 0",
    "le": "x <= y ? 1 : 0",
    "where": "(c, x, y) c != 0 ? x : y",
    "neg": "-x",
    "abs": "|x|",
    "sqrt": "the correctly rounded square root",
    "floor": "the largest integer that is not above x",
    "relu": "x > 0 ? x : 0",
    "leaky_relu": "x > 0 ? x : x * scalar",
    "elu": "x > 0 ? x : scalar * (exp(x) - 1)",
    "exp": "exp(x) by the polynomial of gnnquant.exact_math",
    "log": "log(x) by the polynomial of gnnquant.exact_math, for x a positive normal number",
    "sigmoid": "1 / (1 + exp(-x))",
    "tanh": "x >= 0: (1 - t) / (1 + t) with t = exp(-2|x|), negated for x < 0",
    # rowwise
    "reshape": "the same columns under another row shape",
    "columns": "(x) column attrs['index'][j] of x at column j: slices, permutations, repetitions",
    "concat": "(x, y, ...) along the last axis of the row shape",
    "reduce": "(x) over axis attrs['axis'] of the row shape, from its first element on in order; "
    "attrs['reduce']: sum, mean (sum / f32(length)), mul, max, min",
    "log_softmax": "x - max - log(sum exp(x - max)) over the last axis, the sum left to right",
    "softmax": "exp(x - max) / sum over the last axis, the sum left to right",
}
"""Operations of the row program and what each means; names in parentheses are its inputs."""

ELEMENTWISE = frozenset(
    {
        *("add", "sub", "mul", "div", "rsub", "rdiv", "maximum", "minimum", "eq", "lt", "le", "where"),
        *("neg", "abs", "sqrt", "floor", "relu", "leaky_relu", "elu", "exp", "log", "sigmoid", "tanh"),
    }
)
LOOPS = ("keep", "remove", "add", "replace", "remaining")
"""What a graph does to self-loops: nothing; remove them; append one per node; remove and append; remove
and append, an appended loop taking the place (``edge_id``) of the last one that was removed there."""


@dataclass(frozen=True)
class IndexNode:
    """One value of the index program: a size, an array or a graph.

    Attributes:
        name: Unique name, also among ``Node`` names.
        op: A key of ``INDEX_OPS``.
        inputs: Names of operands.
        attrs: Constants of the operation (JSON-able).
    """

    name: str
    op: str
    inputs: tuple[str, ...] = ()
    attrs: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Node:
    """One value of the graph.

    Attributes:
        name: Unique name.
        op: A key of ``OPS``.
        inputs: Names of operands.
        attrs: Constants of the operation (JSON-able).
        shape: Shape of one row.
        rows: Its space: the name of a size or of a graph of the index program, or ``ONE``.
        source: Where it comes from in the user's model, for messages and dumps.
    """

    name: str
    op: str
    inputs: tuple[str, ...] = ()
    attrs: dict[str, Any] = field(default_factory=dict)
    shape: tuple[int, ...] = ()
    rows: str = ONE
    source: str = ""

    @property
    def columns(self) -> int:
        """Number of elements of one row."""
        return int(np.prod(self.shape, dtype=np.int64))


def integer_steps(zero2: int) -> tuple[int, int]:
    """``(step, zero)``: the integers of a weight with that doubled zero point are ``step * code - zero``."""
    return (2, zero2) if zero2 % 2 else (1, zero2 // 2)


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
        step, zero = integer_steps(self.zero2)
        return (step * self.codes.astype(np.int16) - zero).astype(np.int8)

    @property
    def column_scale(self) -> NDArray[np.float32]:
        """float32 [M]: real value of one unit of ``integers``."""
        return self.scale * np.float32(0.5) if self.zero2 % 2 else self.scale


@dataclass(frozen=True)
class GraphInput:
    """One tensor or number among the inputs of the model.

    Attributes:
        name: Path within the call: ``"x"``, ``"x_dict[paper]"``, ``"edge_index_dict[a,to,b]"``, ``"x[0]"``.
        kind: ``"rows"`` (float32 [R, *shape]), ``"edges"`` (int64 [2, E]), ``"index"`` (int64 [R] or
            [R, *shape]), ``"mask"`` (bool [R] or [R, *shape], read as 0 and 1), ``"size"`` (an integer that
            is not negative) or ``"adjacency"`` (a sparse matrix; rows are destinations).
        shape: Shape of one row.
    """

    name: str
    kind: str
    shape: tuple[int, ...] = ()


@dataclass(frozen=True)
class Parameter:
    """One parameter of the model's ``forward``.

    Attributes:
        name: Its name.
        kind: ``"positional"`` (may be given by position or by name), ``"keyword"`` (by name only),
            ``"*"`` or ``"**"``.
        tree: What a call passes for it (see ``TREES``).
        optional: Whether a call may leave it out: it has a default, and was not given when the model
            was traced.
    """

    name: str
    kind: str
    tree: Any
    optional: bool = False


TREES = """How nested arguments and results are written, JSON-able. A leaf is ``{"input": name}``,
``{"output": position}`` (with ``"squeeze": True`` where rows are ``ONE``: without their axis),
``{"constant": None, a flag, a number or a string}`` or ``{"unused": True}``
(whatever a call passes there is ignored); a container
``{"tuple": [tree, ...]}``, ``{"list": [tree, ...]}``, ``{"dict": [[key, tree], ...]}`` (a key that is a
tuple is written as a list) or ``{"data": [[key, tree], ...]}`` (an object with attributes, such as PyG's
``Data``)."""


@dataclass
class IntegerGraph:
    """A lowered model.

    Attributes:
        inputs: All tensors and numbers of a call.
        parameters: The parameters of ``forward``, in order; together their leaves are ``inputs``.
        index: The index program, in execution order.
        nodes: The row program, in execution order.
        outputs: Names of returned values (float).
        result: Tree of what ``forward`` returns, over positions in ``outputs``.
        weights: Packed integer weights by name.
        constants: float32 arrays by name.
    """

    inputs: list[GraphInput]
    parameters: list[Parameter]
    index: list[IndexNode]
    nodes: list[Node]
    outputs: list[str]
    result: Any = None
    weights: dict[str, PackedWeight] = field(default_factory=dict)
    constants: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    _places: dict[str, int] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __getitem__(self, name: str) -> Node:
        """The node called ``name``."""
        place = self._places.get(name, len(self.nodes))
        if place >= len(self.nodes) or self.nodes[place].name != name:
            # never asked for, or the list has changed since
            self._places = {node.name: place for place, node in enumerate(self.nodes)}
            place = self._places[name]
        return self.nodes[place]

    def names(self) -> set[str]:
        """What values of both programs and constants are called, for :func:`take_name`."""
        index, rows = {node.name for node in self.index}, {node.name for node in self.nodes}
        return {*index, *rows, *self.constants}

    def index_node(self, name: str) -> IndexNode:
        """The node of the index program called ``name``."""
        for node in self.index:
            if node.name == name:
                return node
        raise KeyError(name)

    def __str__(self) -> str:
        """One line per node."""
        index = [_format_index(node) for node in self.index]
        return "\n".join([*index, *map(_format, self.nodes), f"return {self.outputs}"])

    def users(self, name: str) -> Iterator[Node]:
        """Nodes that read ``name``, once for each time that they read it."""
        for node in self.nodes:
            for operand in node.inputs:
                if operand == name:
                    yield node

    def live(self) -> IntegerGraph:
        """This graph without nodes of the row program that no output needs."""
        wanted = set(self.outputs)
        nodes = []
        for node in reversed(self.nodes):
            if node.name in wanted:
                nodes.append(node)
                wanted.update(node.inputs)
        return replace(self, nodes=nodes[::-1])

    def reads(self) -> Iterator[tuple[str, str | int, int]]:
        """Index arrays by which rows are read, those rows (a space or a number), and the lowest entry."""
        rows = {node.name: node.rows for node in self.nodes}
        for node in self.nodes:
            if node.op == "gather":
                yield node.attrs["index"], rows[node.inputs[0]], -1 if "fill" in node.attrs else 0
            elif node.op == "lookup":
                yield node.attrs["index"], len(self.constants[node.attrs["array"]]), 0

    def verify(self) -> None:
        """Check that names resolve, ops exist, operands come first and rows fit together.

        Raises:
            BackendError: Naming the first node that breaks a rule.
        """
        known: dict[str, str] = {}
        inputs = {item.name for item in self.inputs}
        for item in self.index:
            _check(item.op in INDEX_OPS, item.name, f"has the unknown op {item.op!r}")
            _check(item.name not in known, item.name, "is defined twice")
            missing = [operand for operand in item.inputs if operand not in known]
            _check(not missing, item.name, f"reads {missing} before they exist")
            given = item.attrs.get("input")
            _check(given is None or given in inputs, item.name, f"reads the unknown input {given!r}")
            known[item.name] = item.op
        seen: dict[str, Node] = {}
        for node in self.nodes:
            _check(node.op in OPS, node.name, f"has the unknown op {node.op!r}")
            _check(node.name not in seen and node.name not in known, node.name, "is defined twice")
            missing = [operand for operand in node.inputs if operand not in seen]
            _check(not missing, node.name, f"reads {missing} before they exist")
            self._verify_rows(node, known, seen)
            seen[node.name] = node
        for name in self.outputs:
            _check(name in seen, name, "is an output that does not exist")

    def _verify_rows(self, node: Node, known: dict[str, str], seen: dict[str, Node]) -> None:
        attrs = node.attrs
        _check(node.rows == ONE or node.rows in known, node.name, f"has the unknown rows {node.rows!r}")
        for key, table in (("weight", self.weights), ("array", self.constants)):
            _check(key not in attrs or attrs[key] in table, node.name, f"has no {key}")
        if "index" in attrs and node.op != "columns":
            base = attrs["index"].rpartition(".")[0] or attrs["index"]
            _check(attrs["index"] in known or base in known, node.name, f"has no index {attrs['index']!r}")
        operands = [seen[name] for name in node.inputs]
        wanted = [node.rows] * len(operands)
        if "graph" in attrs:
            graph = attrs["graph"]
            _check(known.get(graph) == "graph", node.name, f"has no graph {graph!r}")
            _, _, sources, destinations = self.index_node(graph).inputs
            _check(node.rows == destinations, node.name, f"has rows {node.rows!r}, not {destinations!r}")
            per = sources if attrs.get("per") == "source" else graph
            wanted = [graph] if node.op == "segment_reduce" else [sources, per]
        if node.op == "gcn_norm":
            _check(
                known.get(node.rows) == "graph", node.name, f"has the rows {node.rows!r}, which are no graph"
            )
            _, _, sources, destinations = self.index_node(node.rows).inputs
            _check(sources == destinations, node.name, f"has a graph from {sources!r} to {destinations!r}")
        if node.op in ("gather", "row_reduce"):
            return
        for operand, rows in zip(operands, wanted, strict=False):
            fits = operand.rows in (rows, ONE)
            _check(fits, node.name, f"reads {operand.name!r} with rows {operand.rows!r}, not {rows!r}")


class NodesByName(Protocol):
    """An ``IntegerGraph``, or a dictionary of its nodes."""

    def __getitem__(self, name: str, /) -> Node:
        """The node called ``name``."""
        ...


def origin(nodes: NodesByName, name: str, *through: str) -> Node:
    """The node that ``name`` shows, ``through`` operations like ``"reshape"`` and ``"gather"``."""
    node = nodes[name]
    while node.op in through:
        node = nodes[node.inputs[0]]
    return node


def _check(condition: bool, name: str, wrong: str) -> None:
    if not condition:
        raise BackendError(f"integer graph: {name!r} {wrong}")


def _format_index(node: IndexNode) -> str:
    attrs = "".join(f", {key}={value}" for key, value in node.attrs.items())
    return f"{node.name} = {node.op}({', '.join(node.inputs)}{attrs})"


def _format(node: Node) -> str:
    rows = f"{node.rows}{list(node.shape)}"
    attrs = "".join(f", {key}={value}" for key, value in node.attrs.items())
    note = f"    # {node.source}" if node.source else ""
    return f"{node.name}: {rows} = {node.op}({', '.join(node.inputs)}{attrs}){note}"


def take_name(name: str, taken: set[str]) -> str:
    """``name``, or with a number behind it where it is taken; it is taken then."""
    candidate, count = name, 1
    while candidate in taken:
        candidate, count = f"{name}_{count}", count + 1
    taken.add(candidate)
    return candidate


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
