"""ONNX nodes, constants and names: what all emitters write with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from gnnquant.integer_graph import take_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray
    from onnx import NodeProto


class Builder:
    """Collects the nodes and initializers of one ONNX graph.

    A value has the name of the node that makes it; both start with ``scope``, the path of the user's
    module, parts separated by ``/``.

    Attributes:
        opset: Version of the operator set that the nodes are of.
        nodes: In execution order.
        scope: What names of new nodes start with.
    """

    def __init__(self, opset: int) -> None:
        self.opset = opset
        self.nodes: list[NodeProto] = []
        self.scope = ""
        self._initializers: dict[str, TensorProto] = {}
        self._constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self._packed: dict[str, str] = {}
        self._names: set[str] = set()

    def unique(self, name: str) -> str:
        """``name``, or with a number behind it where it is taken."""
        return take_name(name, self._names)

    def reserve(self, names: Iterable[str]) -> None:
        """Take names of inputs and outputs."""
        self._names.update(names)

    def op(self, op_type: str, *inputs: str, name: str = "", **attrs: Any) -> str:
        """Append a node with one output; returns the output's name.

        Args:
            op_type: An operator of ONNX's default domain.
            inputs: Names of values.
            name: Name of the node; default: its scope and its operator.
            attrs: Attributes of the operator.
        """
        return self.ops(op_type, *inputs, name=name, **attrs)[0]

    def ops(self, op_type: str, *inputs: str, outputs: int = 1, name: str = "", **attrs: Any) -> list[str]:
        """As :meth:`op`, for an operator with several outputs."""
        node = self.unique(name or f"{self.scope}/{op_type}".lstrip("/"))
        made = [node, *(self.unique(f"{node}/{position}") for position in range(1, outputs))]
        self.nodes.append(helper.make_node(op_type, list(inputs), made, name=node, **attrs))
        return made

    def output(self, value: str, name: str) -> None:
        """Give ``value`` the name of an output of the graph."""
        self.nodes.append(helper.make_node("Identity", [value], [name], name=f"{name}/Identity"))

    def constant(self, array: NDArray[Any], name: str = "") -> str:
        """An initializer with the content of ``array``; equal ones are one."""
        array = np.asarray(array)
        key = (str(array.dtype), array.shape, array.tobytes())
        if key not in self._constants:
            made = self.unique(name or _constant_name(array))
            self._initializers[made] = numpy_helper.from_array(array, made)
            self._constants[key] = made
        return self._constants[key]

    def packed(self, name: str, kind: int, shape: Sequence[int], data: bytes) -> str:
        """The initializer ``name`` of packed codes, low bits first; made once."""
        if name not in self._packed:
            made = self._packed[name] = self.unique(name)
            self._initializers[made] = helper.make_tensor(made, kind, list(shape), data, raw=True)
        return self._packed[name]

    def scalar(self, value: float) -> str:
        """A float32 constant []."""
        return self.constant(np.asarray(value, np.float32))

    def integer(self, value: int) -> str:
        """An int64 constant []."""
        return self.constant(np.asarray(value, np.int64))

    def integers(self, values: Iterable[int]) -> str:
        """An int64 constant [n]."""
        return self.constant(np.asarray(list(values), np.int64).reshape(-1))

    def cast(self, value: str, kind: int) -> str:
        """``value`` as another type."""
        return self.op("Cast", value, to=kind)

    def pruned(self, outputs: Iterable[str]) -> tuple[list[NodeProto], list[TensorProto]]:
        """The nodes and initializers that ``outputs`` need."""
        needed = set(outputs)
        kept = []
        for node in reversed(self.nodes):
            if needed & set(node.output):
                kept.append(node)
                needed |= set(node.input)
        initializers = [tensor for name, tensor in self._initializers.items() if name in needed]
        return kept[::-1], initializers


def _constant_name(array: NDArray[Any]) -> str:
    """A name that says what a small constant holds."""
    if array.size > 4:
        return f"constant/{array.dtype}"
    shown = ",".join(f"{value:.6g}" for value in array.reshape(-1).tolist())
    return f"constant/{shown}" if array.ndim == 0 else f"constant/[{shown}]"
