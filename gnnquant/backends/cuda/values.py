"""Values as expressions: what a kernel writes to read an element of a node's value.

A value is *stored* in a buffer, or it is an expression of the row and the column that is written again
wherever it is read. Expressions have no statements of their own, so that a branch that is not taken reads
nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from gnnquant.errors import BackendError
from gnnquant.integer_graph import ELEMENTWISE, ONE, origin
from gnnquant.runtime.indexing import EDGE_PARTS
from gnnquant.runtime.plan import Buffer

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from gnnquant.backends.cuda.source import Kernel
    from gnnquant.integer_graph import IntegerGraph, Node

VIEWS = frozenset({"input", "constant", "lookup", "from_index", "gather", "reshape", "columns"})
"""Read where they lie: an index away from what is in memory."""
LIGHT = ELEMENTWISE | {"dequantize", "concat"}
"""Computed where they are read, if that happens once."""
ONCE = LIGHT | {"reduce"}
"""Operations that read each element of an operand of their own shape once."""

_CHEAP = frozenset(
    {"dequantize", "add", "sub", "mul", "neg", "abs", "relu", "leaky_relu", "maximum", "minimum"}
)
_CHEAP_STEPS = 3

_ELEMENTWISE: dict[str, str] = {
    "add": "({0} + {1})",
    "sub": "({0} - {1})",
    "mul": "({0} * {1})",
    "div": "({0} / {1})",
    "rsub": "({1} - {0})",
    "rdiv": "({1} / {0})",
    "maximum": "gq_maximum({0}, {1})",
    "minimum": "gq_minimum({0}, {1})",
    "eq": "({0} == {1} ? 1.0f : 0.0f)",
    "lt": "({0} < {1} ? 1.0f : 0.0f)",
    "le": "({0} <= {1} ? 1.0f : 0.0f)",
    "where": "({0} != 0.0f ? {1} : {2})",
    "neg": "(-{0})",
    "abs": "fabsf({0})",
    "sqrt": "sqrtf({0})",
    "floor": "floorf({0})",
    "relu": "gq_relu({0})",
    "leaky_relu": "gq_leaky_relu({0}, {1})",
    "elu": "gq_elu({0}, {1})",
    "exp": "gq_exp({0})",
    "log": "gq_log({0})",
    "sigmoid": "gq_sigmoid({0})",
    "tanh": "gq_tanh({0})",
}


def refuse(node: Node, why: str) -> BackendError:
    """An error that names ``node``."""
    source = f" ({node.source})" if node.source else ""
    return BackendError(f"cuda backend: {node.op} {node.name!r}{source}: {why}")


def broadcast(column: str, shape: Sequence[int], given: Sequence[int]) -> str:
    """The column of an operand of row shape ``given`` at ``column`` of a result of row shape ``shape``."""
    given = [1] * (len(shape) - len(given)) + list(given)
    if list(shape) == given:
        return column
    terms = []
    for axis, (size, own) in enumerate(zip(shape, given, strict=True)):
        if own != 1:
            outer, stride = math.prod(shape[axis + 1 :]), math.prod(given[axis + 1 :])
            place = f"({column}) / {outer}" if outer != 1 else f"({column})"
            place = f"{place} % {size}" if math.prod(shape[:axis]) != 1 else place
            terms.append(f"{place} * {stride}" if stride != 1 else place)
    return f"({' + '.join(terms)})" if terms else "0"


@dataclass
class Values:
    """Where the values of a graph are, and what reads them.

    Attributes:
        graph: The graph.
        nodes: Its nodes by name.
        buffers: All buffers so far, but for the parts of graphs.
        constants: Arrays of the constant buffers.
        stored: Buffer of each float value that is stored.
        checked: Float inputs in which kernels look for NaN and infinity.
    """

    graph: IntegerGraph
    nodes: dict[str, Node] = field(default_factory=dict)
    buffers: dict[str, Buffer] = field(default_factory=dict)
    constants: dict[str, NDArray[Any]] = field(default_factory=dict)
    stored: dict[str, str] = field(default_factory=dict)
    checked: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.nodes = {node.name: node for node in self.graph.nodes}
        self._graphs = {node.name for node in self.graph.index if node.op == "graph"}

    # ------------------------------------------------------------ buffers

    def add(self, name: str, dtype: str, shape: tuple[int | str, ...], kind: str) -> str:
        """Declare a buffer, once."""
        self.buffers.setdefault(name, Buffer(name, dtype, shape, kind))
        return name

    def constant(self, name: str, array: NDArray[Any]) -> str:
        """Declare a constant buffer, once."""
        if name not in self.constants:
            self.constants[name] = np.ascontiguousarray(array)
            self.add(name, array.dtype.name, array.shape, "constant")
        return name

    def index(self, kernel: Kernel, node: Node, row: str) -> str:
        """The entry of the index array of ``node`` for ``row``."""
        name = node.attrs["index"]
        base, _, part = name.rpartition(".")
        if not (base in self._graphs and part in EDGE_PARTS):
            self.add(name, "int32", (node.rows,), "index")
        return f"{kernel.pointer(name, 'int32')}[{row}]"

    # ------------------------------------------------------------ floats

    def read(self, kernel: Kernel, name: str, row: str, column: str) -> str:
        """The element of a float value: an expression."""
        node = self.nodes[name]
        here = "r"
        if node.rows == ONE:
            row = here = "0"
        column = "0" if node.columns == 1 else column
        if name in kernel.locals and row == here:
            return f"{kernel.locals[name]}[{column}]"
        if name in self.stored:
            return self._element(kernel.pointer(self.stored[name], "float32"), node, row, column)
        return self.computed(kernel, node, row, column)

    def computed(self, kernel: Kernel, node: Node, row: str, column: str) -> str:
        """An element of a value from those of its operands, wherever the value is stored."""
        if node.op in _ELEMENTWISE:
            return self._elementwise(kernel, node, row, column)
        emitters: dict[str, Callable[..., str]] = {
            "input": self._input,
            "constant": self._constant,
            "lookup": self._lookup,
            "from_index": self._from_index,
            "gather": self._gather,
            "reshape": self._reshape,
            "columns": self._columns,
            "concat": self._concat,
            "dequantize": self._dequantize,
        }
        if node.op not in emitters:
            raise refuse(node, "codes are read where floats are expected")
        return emitters[node.op](kernel, node, row, column)

    @staticmethod
    def _element(pointer: str, node: Node, row: str, column: str) -> str:
        """An element of rows that lie one after the other."""
        if node.columns == 1:
            return f"{pointer}[{row}]"
        return f"{pointer}[{column}]" if row == "0" else f"{pointer}[{row} * {node.columns} + {column}]"

    def _elementwise(self, kernel: Kernel, node: Node, row: str, column: str) -> str:
        operands = []
        for name in node.inputs:
            operand = self.nodes[name]
            operands.append(self.read(kernel, name, row, broadcast(column, node.shape, operand.shape)))
        if "scalar" in node.attrs:
            operands.append(kernel.number(node.attrs["scalar"]))
        return _ELEMENTWISE[node.op].format(*operands)

    def _input(self, kernel: Kernel, node: Node, row: str, column: str) -> str:
        shape = (node.rows, node.columns) if node.shape else (node.rows,)
        name = self.add(node.attrs["input"], "float32", shape, "input")
        return self._element(kernel.pointer(name, "float32"), node, row, column)

    def _constant(self, kernel: Kernel, node: Node, row: str, column: str) -> str:
        array = self.graph.constants[node.attrs["array"]].reshape(-1)
        name = self.constant(f"constant.{node.attrs['array']}", array)
        return self._element(kernel.pointer(name, "float32"), node, row, column)

    def _lookup(self, kernel: Kernel, node: Node, row: str, column: str) -> str:
        array = self.graph.constants[node.attrs["array"]].reshape(-1)
        name = self.constant(f"constant.{node.attrs['array']}", array)
        at = f"(long long){self.index(kernel, node, row)}"
        return self._element(kernel.pointer(name, "float32"), node, at, column)

    def _from_index(self, kernel: Kernel, node: Node, row: str, column: str) -> str:  # noqa: ARG002
        return f"(float){self.index(kernel, node, row)}"

    def _gather(self, kernel: Kernel, node: Node, row: str, column: str) -> str:
        at = self.index(kernel, node, row)
        if "fill" not in node.attrs:
            return self.read(kernel, node.inputs[0], f"(long long){at}", column)
        fill = kernel.number(node.attrs["fill"])
        return f"({at} < 0 ? {fill} : {self.read(kernel, node.inputs[0], f'(long long){at}', column)})"

    def _reshape(self, kernel: Kernel, node: Node, row: str, column: str) -> str:
        return self.read(kernel, node.inputs[0], row, column)

    def _columns(self, kernel: Kernel, node: Node, row: str, column: str) -> str:
        index = np.array(node.attrs["index"], np.int32)
        if index.size and (np.diff(index) == 1).all():
            at = f"({column} + {index[0]})" if index[0] else column
        else:
            table = self.constant(f"columns.{node.name}", index)
            at = f"{kernel.pointer(table, 'int32')}[{column}]"
        return self.read(kernel, node.inputs[0], row, at)

    def _concat(self, kernel: Kernel, node: Node, row: str, column: str) -> str:
        width = node.shape[-1]
        # along the last axis of several: which of the outer rows, and where in it
        outer = f"({column}) / {width} * " if len(node.shape) > 1 else ""
        inner = f"({column}) % {width}" if outer else f"({column})"
        found, start = "", 0
        parts = [name for name in node.inputs if self.nodes[name].shape[-1]]
        for name in parts:
            own = self.nodes[name].shape[-1]
            at = f"({inner} - {start})" if start else f"({inner})"
            at = f"({outer}{own} + {at})" if outer else at
            value = self.read(kernel, name, row, at)
            start += own
            found += value if name is parts[-1] and start == width else f"{inner} < {start} ? {value} : "
        return f"({found})"

    def _dequantize(self, kernel: Kernel, node: Node, row: str, column: str) -> str:
        (name,) = node.inputs
        value = f"(float){self.doubled(kernel, name, row, column)}"
        return f"({value} * ({self.scale(kernel, name, row)} * 0.5f))"

    # ------------------------------------------------------------ codes

    def quantizer(self, name: str, reader: Node) -> Node:
        """The ``quantize`` whose codes ``name`` holds, its own rows or gathered ones."""
        node = origin(self.nodes, name, "gather")
        if node.op != "quantize":
            raise refuse(reader, f"{name!r} has floats where codes are expected")
        return node

    def source_row(self, kernel: Kernel, name: str, row: str) -> str:
        """The row of the quantizer that ``row`` of ``name`` shows."""
        node = self.nodes[name]
        row = "0" if node.rows == ONE else row
        if node.op == "quantize":
            return row
        return self.source_row(kernel, node.inputs[0], f"(long long){self.index(kernel, node, row)}")

    def code(self, kernel: Kernel, name: str, row: str, column: str) -> str:
        """An unsigned code: an ``int`` expression."""
        node = self.quantizer(name, self.nodes[name])
        codes = kernel.pointer(f"codes.{node.name}", "uint8")
        row = self.source_row(kernel, name, row)
        start = codes if row == "0" else f"{codes} + {row} * {stride(node)}"
        return f"gq_code<{node.attrs['bits']}>({start}, {column})"

    def doubled(self, kernel: Kernel, name: str, row: str, column: str) -> str:
        """``2u - zero2``: an ``int`` expression."""
        zero2 = self.quantizer(name, self.nodes[name]).attrs["zero2"]
        return f"(2 * {self.code(kernel, name, row, column)} - {zero2})"

    def scale(self, kernel: Kernel, name: str, row: str) -> str:
        """The scale of a row of codes."""
        node = self.quantizer(name, self.nodes[name])
        if node.attrs["granularity"] == "tensor":
            return kernel.number(node.attrs["scale"])
        return f"{kernel.pointer(f'scale.{node.name}', 'float32')}[{self.source_row(kernel, name, row)}]"


def stride(node: Node) -> int:
    """Bytes of one row of codes of the quantizer ``node``: of a multiple of 16 codes, padded with zeros.

    Rows then begin where 16 codes can be loaded at once.
    """
    bits: int = node.attrs["bits"]
    return -(-node.columns // 16) * 2 * bits


def stored_values(graph: IntegerGraph) -> set[str]:
    """Float values that are kept in memory: what is expensive, or is read more than once."""
    nodes = {node.name: node for node in graph.nodes}
    found: set[str] = set()
    for node in graph.nodes:
        if node.op in VIEWS or node.op == "quantize":
            continue
        if node.op not in LIGHT or not (_read_once(graph, nodes, node) or _is_cheap(graph, nodes, node)):
            found.add(node.name)
    return found


def _is_cheap(graph: IntegerGraph, nodes: dict[str, Node], node: Node) -> bool:
    """Whether ``node`` is better computed by every reader: from codes, or by one that looks at it twice."""
    if node.name in graph.outputs or node.op not in _CHEAP:
        return False
    users = list(graph.users(node.name))
    if [user.op for user in users] == ["segment_softmax"]:
        return users[0].columns == node.columns
    steps = 0
    waiting = [node]
    while waiting:
        steps += 1
        at = waiting.pop()
        if at.op not in _CHEAP or steps > _CHEAP_STEPS:
            return False
        operands = (nodes[name] for name in at.inputs)
        waiting += [item for item in operands if item.op not in ("constant", "quantize")]
    return True


def _read_once(graph: IntegerGraph, nodes: dict[str, Node], node: Node) -> bool:
    """Whether each element of ``node`` is read by one thread, once."""
    users = list(graph.users(node.name))
    if node.name in graph.outputs or len(users) != 1:
        return False
    (user,) = users
    if user.op == "reshape":
        return _read_once(graph, nodes, user)
    repeats = user.op not in ONCE or user.rows != node.rows
    return not repeats and (user.op in ("concat", "reduce") or user.columns == node.columns)
