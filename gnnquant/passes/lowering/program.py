"""The program that rules write: the integer graph before its rows have an order.

Its row program knows spaces, but neither graphs nor the order of edges: ``gather``, ``scatter``,
``segment_softmax``, ``gcn_norm`` and ``propagate`` name index arrays, and all arrays are in the order in
which the user's lists are. ``assemble`` chooses graphs and orders when the whole model is known.
"""

from __future__ import annotations

import json
import operator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from gnnquant.errors import BackendError
from gnnquant.integer_graph import ONE, IndexNode, Node, PackedWeight, pack_codes, take_name
from gnnquant.passes.lowering.values import Codes, Index, Rows, Size, WeightCodes

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray
    from torch import Tensor, fx

    from gnnquant.integer_graph import GraphInput

ELSEWHERE = ("gather", "scatter", "propagate", "row_reduce")
"""Operations whose operands have other rows than their result."""
SIZES = frozenset({"rows", "size_input", "size", "length", "extent"})


_ARITHMETIC: dict[str, Callable[[int, int], int]] = {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "floordiv": operator.floordiv,
    "mod": operator.mod,
    "max": max,
    "min": min,
}


class Program:
    """Index and row programs under construction; equal nodes are written once.

    Attributes:
        index: Nodes of the index program by name. Besides ``INDEX_OPS``: ``loops`` (src, dst[, size]), an
            edge list with changed self-loops as ``integer_graph.LOOPS`` says, and ``loop_part`` of it.
        nodes: Nodes of the row program by name. Besides ``OPS``: ``scatter`` (x; index), ``expand`` (a single
            row, repeated), ``propagate`` (q[, a]; src, dst).
        spaces: Space of every index array.
        partners: The other end of an edge list, by either end.
        checks: Nodes of the index program that are checks.
        exact: Whether products with constants keep to the written order (at 32 bits they need not).
        require_ranges: Whether a quantizer without a range is an error.
        node: The fx node that is being lowered, for messages and for ``Node.source``.
        layer: The path of the user's layer that it is; nothing where it is a function.
    """

    def __init__(self, *, exact: bool = True, require_ranges: bool = True) -> None:
        self.inputs: list[GraphInput] = []
        self.index: dict[str, IndexNode] = {}
        self.nodes: dict[str, Node] = {}
        self.spaces: dict[str, str] = {}
        self.partners: dict[str, str] = {}
        self.checks: list[str] = []
        self.weights: dict[str, PackedWeight] = {}
        self.constants: dict[str, NDArray[np.float32]] = {}
        self.exact = exact
        self.require_ranges = require_ranges
        self.node: fx.Node | None = None
        self.layer = ""
        self._parents: dict[str, str] = {}
        self._names: set[str] = {ONE}
        self._written: dict[str, str] = {}
        self._weights: dict[int, tuple[WeightCodes, str]] = {}
        self._order: dict[str, int] = {}

    def refuse(self, why: str) -> BackendError:
        """The error for the fx node that is being lowered, to be raised."""
        where = "the model" if self.node is None else describe(self.node)
        return BackendError(f"cannot lower {where}: {why}")

    # ---------------------------------------------------------------- sizes and arrays

    def size(self, op: str, inputs: Sequence[str] = (), name: str = "", **attrs: Any) -> Size:
        """Write a size."""
        return Size(self._index(op, inputs, name or op, attrs))

    def array(self, op: str, inputs: Sequence[str], rows: str, name: str = "", **attrs: Any) -> str:
        """Write an index array over the space ``rows``."""
        written = self._index(op, inputs, name or op, attrs)
        self.spaces.setdefault(written, rows)
        return written

    def _index(self, op: str, inputs: Sequence[str], name: str, attrs: dict[str, Any]) -> str:
        key = json.dumps(["index", op, list(inputs), attrs], sort_keys=True)
        if key not in self._written:
            written = self.unique(name)
            self.index[written] = IndexNode(written, op, tuple(inputs), attrs)
            self._written[key] = written
            self._order[written] = len(self._order)
        return self._written[key]

    def size_of(self, value: Size | int) -> str:
        """Name of a size node: the rows of a space."""
        if isinstance(value, int):
            return self.size("size", function="add", left=value, right=0, name="number").name
        if not value.offset:
            return value.name
        function, number = ("add", value.offset) if value.offset > 0 else ("sub", -value.offset)
        return self.size("size", (value.name,), function=function, right=number).name

    def arithmetic(self, function: str, x: Size | int, y: Size | int) -> Size | int:
        """``function`` (of the index op ``size``) of two sizes."""
        x, y = self._number(x), self._number(y)
        if isinstance(x, int) and isinstance(y, int):
            return _ARITHMETIC[function](x, y)
        known = _simplified(function, x, y)
        if known is not None:
            return known
        operands = tuple(self.size_of(item) for item in (x, y) if isinstance(item, Size))
        attrs = {key: item for key, item in (("left", x), ("right", y)) if isinstance(item, int)}
        return Size(self._index("size", operands, "size", {"function": function, **attrs}))

    def _number(self, value: Size | int) -> Size | int:
        """A size that is known now as a number."""
        if isinstance(value, int):
            return value
        attrs = self.index[value.name].attrs
        if "left" in attrs and "right" in attrs:
            return int(_ARITHMETIC[attrs["function"]](attrs["left"], attrs["right"])) + value.offset
        return value

    def combine(self, function: str, x: str | Size | int, y: str | Size | int, rows: str) -> str:
        """Elementwise ``function`` of index arrays, sizes and numbers."""
        attrs: dict[str, Any] = {}
        operands = []
        for key, item in (("left", x), ("right", y)):
            if isinstance(item, int):
                attrs[key] = item
            else:
                operands.append(self.size_of(item) if isinstance(item, Size) else item)
        return self.array("combine", operands, rows, function=function, **attrs)

    def arange(self, rows: str) -> str:
        """0, 1, ... over a space."""
        return self.array("arange", (rows,), rows)

    def full(self, rows: str, value: int) -> str:
        """``value`` over a space."""
        return self.array("full", (rows,), rows, value=value)

    def take(self, array: str, index: str) -> str:
        """``array[index]``."""
        if self.index[array].op == "arange":
            return index
        return self.array("take", (array, index), self.spaces[index])

    def where_true(self, mask: str) -> str:
        """Positions of the ones of a mask; the array is over a space of its own."""
        array = self.array("nonzero", (mask,), "")
        self.spaces[array] = self.size("length", (array,)).name
        return array

    def join(self, arrays: Sequence[str]) -> str:
        """One array after the other."""
        if len(arrays) == 1:
            return arrays[0]
        spaces = [self.spaces[array] for array in arrays]
        total: Size | int = 0
        if len(set(spaces)) == 1:
            total = self.arithmetic("mul", Size(spaces[0]), len(spaces))
        else:
            for space in spaces:
                total = self.arithmetic("add", total, Size(space))
        return self.array("join", arrays, self.size_of(total))

    def values(self, numbers: Sequence[int]) -> str:
        """A constant array."""
        return self.array("values", (), self.size_of(len(numbers)), values=[int(item) for item in numbers])

    def pair(self, edges: Index) -> Index:
        """Remember which arrays are the two ends of one edge list."""
        if edges.is_edges:
            source, target = edges.ends
            if source != target:
                self.partners.setdefault(source, target)
                self.partners.setdefault(target, source)
        return edges

    # ---------------------------------------------------------------- spaces

    def find(self, rows: str) -> str:
        """The size that stands for all that must equal ``rows``."""
        while rows in self._parents:
            rows = self._parents[rows]
        return rows

    def unify(self, *spaces: str, where: str = "") -> str:
        """Demand that spaces have equally many rows, as their meeting in one operation says.

        ``ONE`` fits everything. The space that came first (inputs come first) stands for all.
        """
        known = sorted({self.find(item) for item in spaces if item != ONE}, key=self._order.__getitem__)
        for other in known[1:]:
            self._parents[other] = known[0]
            names = " and ".join(self.describe_space(item) for item in (known[0], other))
            message = f"{names} must be equally many"
            if self.node is not None:
                where = where or f"they meet in {describe(self.node)}"
            message += f": {where}" if where else ""
            self.checks.append(self._index("same_size", (known[0], other), "check", {"message": message}))
        return known[0] if known else ONE

    def describe_space(self, rows: str) -> str:
        """How a space is called in messages."""
        node = self.index[rows]
        if node.op == "rows":
            return f"the rows of {node.attrs['input']!r}"
        if node.op == "size_input":
            return f"the number {node.attrs['input']!r}"
        if node.op == "extent":
            return f"the largest entry of {node.inputs[0]!r} plus one"
        return f"{rows!r}"

    # ---------------------------------------------------------------- rows

    def write(
        self,
        op: str,
        inputs: Sequence[Rows] = (),
        shape: Sequence[int] = (),
        rows: str = ONE,
        name: str = "",
        **attrs: Any,
    ) -> str:
        """Write a node of the row program; returns its name."""
        operands = tuple(item.name for item in inputs)
        row_shape = tuple(int(size) for size in shape)
        if rows != ONE and op not in ELSEWHERE:
            self.unify(rows, *(item.rows for item in inputs))
        key = json.dumps([op, operands, row_shape, rows, attrs], sort_keys=True)
        if key not in self._written:
            written = self.unique(name or op)
            source = "" if self.node is None else describe(self.node)
            if self.node is not None and self.layer:
                source = f"{self.layer}:{self.node.name}"
            self.nodes[written] = Node(written, op, operands, attrs, row_shape, rows, source)
            self._written[key] = written
        return self._written[key]

    def local(
        self,
        op: str,
        x: Rows,
        *others: Rows,
        shape: Sequence[int] | None = None,
        name: str = "",
        **attrs: Any,
    ) -> Rows:
        """Write an operation within rows; its result has the row axis of ``x``."""
        row_shape = x.shape if shape is None else tuple(shape)
        written = self.write(op, (x, *others), row_shape, x.rows, name, **attrs)
        return Rows(written, row_shape, x.rows, x.axis)

    def constant(self, value: Tensor, name: str = "constant") -> Rows:
        """A constant tensor as a single row."""
        array = self.constant_array(value, f"{name}.array")
        return Rows(self.write("constant", (), value.shape, name=name, array=array), tuple(value.shape))

    def constant_array(self, value: Tensor, name: str) -> str:
        """Store a float32 constant; equal arrays are stored once."""
        data = np.ascontiguousarray(value.detach().cpu().numpy().astype(np.float32))
        for existing, stored in self.constants.items():
            if stored.shape == data.shape and np.array_equal(stored, data, equal_nan=True):
                return existing
        name = self.unique(name)
        self.constants[name] = data
        return name

    def weight(self, codes: WeightCodes, name: str) -> str:
        """Store a quantized weight [M, K] as packed codes [K, M]."""
        known = self._weights.get(id(codes))
        if known is not None:
            return known[1]
        zero2, bits = int(codes.quantizer.zero2), codes.quantizer.bits
        unsigned = (codes.codes.t() + zero2 / 2).round().to(torch.uint8).cpu().numpy()
        outputs = unsigned.shape[1]
        scale = codes.scale.detach().reshape(-1).expand(outputs).cpu().numpy().astype(np.float32)
        name = self.unique(name)
        self.weights[name] = PackedWeight(
            bits, zero2, unsigned.shape, pack_codes(unsigned, bits), np.ascontiguousarray(scale)
        )
        self._weights[id(codes)] = codes, name
        return name

    def unique(self, name: str) -> str:
        """``name``, or ``name`` with a number that makes it new."""
        return take_name(name, self._names)

    # ---------------------------------------------------------------- between spaces

    def gather(
        self, x: Rows, index: str, axis: int | None = 0, *, fill: float | None = None, safe: bool = False
    ) -> Rows:
        """Row ``index[r]`` of ``x`` for row r; ``fill`` where it is -1.

        Args:
            x: Over any space, or a single row, which is repeated.
            index: An index array.
            axis: Where the rows of the result stand.
            fill: ``None`` where no entry is -1.
            safe: No entry can lie outside by construction, so none need be checked.
        """
        rows = self.spaces[index]
        if x.rows == ONE and fill is None:
            return self.expand(x, rows, axis)
        attrs: dict[str, Any] = {"index": index}
        if fill is not None:
            attrs["fill"] = float(fill)
        elif not safe:
            attrs["checked"] = True
        return replace(x, name=self.write("gather", (x,), x.shape, rows, **attrs), rows=rows, axis=axis)

    def expand(self, x: Rows, rows: str, axis: int | None = 0) -> Rows:
        """A single row, repeated over a space."""
        return Rows(self.write("expand", (x,), x.shape, rows), x.shape, rows, axis, x.boolean)

    def scatter(self, x: Rows, index: str, into: str, reduce: str) -> Rows:
        """Reduce the rows of ``x`` with equal ``index`` to rows of the space ``into``."""
        self.unify(x.rows, self.spaces[index])
        if x.rows == ONE:
            x = self.expand(x, self.spaces[index])
        return Rows(
            self.write("scatter", (x,), x.shape, into, index=index, reduce=reduce), x.shape, into, x.axis
        )

    # ---------------------------------------------------------------- shapes

    def reshape(self, x: Rows, shape: Sequence[int]) -> Rows:
        """The same columns under another row shape."""
        row_shape = tuple(int(size) for size in shape)
        if row_shape == x.shape:
            return x
        node = self.nodes[x.name]
        if node.op == "constant":
            value = torch.from_numpy(self.constants[node.attrs["array"]]).reshape(row_shape)
            return replace(x, name=self.constant(value, node.name).name, shape=row_shape)
        if node.op == "reshape":
            source = self.nodes[node.inputs[0]]
            if source.shape == row_shape:
                return replace(x, name=source.name, shape=row_shape)
            name = self.write("reshape", (replace(x, name=source.name),), row_shape, x.rows)
        else:
            name = self.write("reshape", (x,), row_shape, x.rows)
        return replace(x, name=name, shape=row_shape)

    def columns(self, x: Rows, positions: NDArray[np.int64]) -> Rows:
        """The columns ``positions`` (of the flattened row) in their shape."""
        flat = positions.reshape(-1)
        if flat.size == int(np.prod(x.shape)) and np.array_equal(flat, np.arange(flat.size)):
            return self.reshape(x, positions.shape)
        name = self.write("columns", (x,), positions.shape, x.rows, index=[int(item) for item in flat])
        return replace(x, name=name, shape=tuple(positions.shape))

    def dequantized(self, x: Rows) -> Rows:
        """The float values of codes; other rows as they are."""
        if not isinstance(x, Codes):
            return x
        name = self.write("dequantize", (x,), x.shape, x.rows)
        return Rows(name, x.shape, x.rows, x.axis)


def _simplified(function: str, x: Size | int, y: Size | int) -> Size | int | None:
    """``function`` of sizes where it takes no node."""
    if function == "add" and isinstance(x, int):
        x, y = y, x
    if function in {"add", "sub"} and isinstance(x, Size) and isinstance(y, int):
        return replace(x, offset=x.offset + (y if function == "add" else -y))
    if x == y and function in {"sub", "max", "min"}:
        return 0 if function == "sub" else x
    if y == 1 and function in {"mul", "floordiv"}:
        return x
    return y if function == "mul" and x == 1 else None


def positions(shape: Sequence[int]) -> NDArray[np.int64]:
    """The columns of a row by their place in the row shape."""
    return np.arange(int(np.prod(shape, dtype=np.int64)), dtype=np.int64).reshape(tuple(shape))


def describe(node: fx.Node) -> str:
    """How an fx node is called in messages: its module and itself."""
    path = str(node.meta.get("module_path") or "")
    return f"{path}:{node.name}" if path else node.name
