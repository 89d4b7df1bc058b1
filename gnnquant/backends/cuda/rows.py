"""What follows in the rows of a product or a sum: a warp computes value after value of one row."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from gnnquant.backends.cuda import products, sums
from gnnquant.backends.cuda.source import literal
from gnnquant.backends.cuda.together import LANES, WarpKernel
from gnnquant.backends.cuda.values import stride
from gnnquant.integer_graph import ONE, origin

if TYPE_CHECKING:
    from gnnquant.backends.cuda.groups import Group
    from gnnquant.backends.cuda.source import Kernel
    from gnnquant.backends.cuda.values import Values
    from gnnquant.integer_graph import Node

WITHIN_ROWS = {
    "sum": "{0} + {1}",
    "mean": "{0} + {1}",
    "mul": "{0} * {1}",
    "max": "gq_maximum({0}, {1})",
    "min": "gq_minimum({0}, {1})",
}
"""A step of ``reduce``."""
FLAG = "not_finite"
"""The buffer that says whether a float input holds NaN or infinity: see ``gnnquant.runtime.cuda``."""


def kernel_of(values: Values, group: Group, read_outside: set[str]) -> WarpKernel:
    """The kernel that computes a group by rows."""
    first, *rest = group.nodes
    if first.op == "gemm":
        tile = products.begin(values, first)
        with tile.each_row():
            _finish(values, tile, first, read_outside)
            for node in rest:
                _compute(values, tile, node, read_outside)
        return tile
    if first.op == "spmm":
        kernel = sums.begin(values, first)
        _finish(values, kernel, first, read_outside)
    else:
        kernel, rest = WarpKernel(first.op, (first.rows, LANES)), group.nodes
    for node in rest:
        _compute(values, kernel, node, read_outside)
    return kernel


def reduced(values: Values, kernel: Kernel, node: Node, row: str) -> str:
    """Write the loop that makes element ``c`` of a ``reduce``; the expression of the result."""
    x, kind = values.nodes[node.inputs[0]], node.attrs["reduce"]
    axis = node.attrs["axis"] % len(x.shape)
    length, inner = x.shape[axis], math.prod(x.shape[axis + 1 :])
    kernel.add("float y = 0.0f;")
    with kernel.block(f"for (int k = 0; k < {length}; ++k)"):
        at = f"((c / {inner} * {length} + k) * {inner} + c % {inner})" if inner > 1 else f"(c * {length} + k)"
        kernel.add(f"const float x = {values.read(kernel, x.name, row, at)};")
        kernel.add(f"y = k == 0 ? x : {WITHIN_ROWS[kind].format('y', 'x')};")
    return f"y{f' / {literal(length)}' if kind == 'mean' else ''}"


def _finish(values: Values, kernel: WarpKernel, node: Node, read_outside: set[str]) -> None:
    """Store the row that a kernel began with, if others read it."""
    if node.name in read_outside:
        to = kernel.pointer(values.stored[node.name], "float32", written=True)
        with kernel.columns(node.columns):
            kernel.add(f"{to}[r * {node.columns} + c] = {kernel.locals[node.name]}[c];")


def _compute(values: Values, kernel: WarpKernel, node: Node, read_outside: set[str]) -> None:
    if node.op == "quantize":
        _quantize(values, kernel, node)
        return
    fits = kernel.room(node.columns)
    targets = []
    if node.name in read_outside or not fits:
        to = kernel.pointer(values.stored[node.name], "float32", written=True)
        targets.append(f"{to}[r * {node.columns} + c]")
    with kernel.columns(node.columns):
        if node.op == "reduce":
            element = reduced(values, kernel, node, "r")
        else:
            element = values.computed(kernel, node, "r", "0" if node.columns == 1 else "c")
        if fits:
            targets.append(f"{kernel.keep(node.name, node.columns)}[c]")
        kernel.add(f"{' = '.join(targets)} = {element};")


def _quantize(values: Values, kernel: WarpKernel, node: Node) -> None:
    """The scale of the row where rows have their own, then its codes, packed: a byte at a time a lane."""
    (x,), bits, zero2 = node.inputs, node.attrs["bits"], node.attrs["zero2"]
    columns, length, per_byte = node.columns, stride(node), 8 // node.attrs["bits"]
    codes = kernel.pointer(
        values.add(f"codes.{node.name}", "uint8", (node.rows, length), "workspace"), "uint8", written=True
    )
    if x not in kernel.locals and kernel.room(columns):
        _stage(values, kernel, x, columns)
    with kernel.block(""):
        if node.attrs["granularity"] == "row":
            buffer = values.add(f"scale.{node.name}", "float32", (node.rows,), "workspace")
            to = kernel.pointer(buffer, "float32", written=True)
            kernel.add("float m = 0.0f;")
            with kernel.columns(columns):
                value = values.read(kernel, x, "r", "c")
                kernel.add(f"m = gq_larger(m, {f'fabsf({value})' if zero2 else value});")
            kernel.add(f"const float scale = gq_warp_largest(m, 1) * {kernel.number(node.attrs['factor'])};")
            kernel.add(f"if (lane == 0) {to}[r] = scale;")
            kernel.add("const float inverse = gq_inverse(scale, 1.0f);")
        else:
            kernel.add(f"const float inverse = gq_inverse({values.scale(kernel, node.name, 'r')}, 1.0f);")
        with kernel.columns(length, "b"):
            kernel.add("int byte = 0;")
            kernel.add("#pragma unroll")
            with kernel.block(f"for (int k = 0; k < {per_byte}; ++k)"):
                kernel.add(f"const int column = b * {per_byte} + k;")
                code = f"gq_quantize<{bits}, {zero2}>({values.read(kernel, x, 'r', 'column')}, inverse)"
                kernel.add(f"if (column < {columns}) byte |= {code} << k * {bits};")
            kernel.add(f"{codes}[r * {length} + b] = (unsigned char)byte;")


def _stage(values: Values, kernel: WarpKernel, name: str, columns: int) -> None:
    """Read a row that is looked at twice once; and look for NaN, where it is an input."""
    element = values.read(kernel, name, "r", "c")
    checked = _input_of(values, name)
    kept = kernel.keep(name, columns)
    with kernel.columns(columns):
        kernel.add(f"const float x = {element};")
        kernel.add(f"{kept}[c] = x;")
        if checked:
            values.checked.add(checked)
            flag = kernel.pointer(values.add(FLAG, "int32", (1,), "workspace"), "int32", written=True)
            kernel.add(f"if (!(fabsf(x) <= {literal(np.finfo(np.float32).max)})) {flag}[0] = 1;")


def _input_of(values: Values, name: str) -> str:
    """The float input that the value ``name`` is, all of it; "": none."""
    node = origin(values.nodes, name, "reshape")
    if node.op != "input" or node.rows == ONE:
        return ""
    given: str = node.attrs["input"]
    return given if any(item.name == given and item.kind == "rows" for item in values.graph.inputs) else ""
