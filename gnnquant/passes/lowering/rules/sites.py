"""Quantizers, and the operations on codes: linear layers and message passing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from gnnquant.integer_graph import ONE
from gnnquant.passes.lowering.operands import align, as_rows, constant_rows, elementwise, float_operand
from gnnquant.passes.lowering.values import Adjacency, Codes, Index, Rows, Scale, WeightCodes, WeightScale
from gnnquant.quantizers import ops
from gnnquant.quantizers.modules import Quantizer

if TYPE_CHECKING:
    from collections.abc import Callable

    from gnnquant.passes.lowering.program import Program

    Rule = Callable[..., Any]


def quantizer(program: Program, layer: Quantizer, value: Any) -> Any:
    """A quantizer on rows, or on a parameter."""
    assert program.node is not None
    site = str(program.node.meta.get("site", program.node.target))
    if not bool(layer.calibrated) and program.require_ranges:
        raise program.refuse(
            f"the site {site!r} has no range yet: call gnnquant.calibrate or gnnquant.finetune first"
        )
    if isinstance(value, Tensor):
        quantized = layer(value)
        weight = WeightCodes(quantized.codes, quantized.scale, layer, value, site)
        return weight, WeightScale(weight)
    codes = quantized_rows(program, layer, float_operand(program, value, "a quantizer"), site)
    return codes, Scale(codes.name)


def quantized_rows(program: Program, layer: Quantizer, x: Rows, site: str) -> Codes:
    """Codes of rows."""
    is_row = layer.granularity == "row"
    if is_row and x.rows != ONE and x.axis != layer.row_axis:
        raise program.refuse(f"its rows are axis {x.axis}, and axis {layer.row_axis} was quantized")
    name = program.write(
        "quantize",
        (x,),
        x.shape,
        x.rows,
        site,
        bits=layer.bits,
        zero2=int(layer.zero2),
        granularity=layer.granularity,
        **{"factor" if is_row else "scale": float(layer.learned_scale())},
    )
    return Codes(name, x.shape, x.rows, x.axis)


def rows_of_constant(program: Program, x: Any) -> Any:
    """A constant with a row per node, as rows; anything else as it is."""
    if isinstance(x, WeightCodes):
        return quantized_rows(program, x.quantizer, rows_of_constant(program, x.value), x.site)
    if not isinstance(x, Tensor):
        return x
    rows = as_rows(program, x)
    if rows.shape[0] != 1:
        return constant_rows(program, rows, 0)
    return program.expand(program.reshape(rows, rows.shape[1:]), program.size_of(1))


def linear(program: Program, x: Any, x_scale: Any, weight: Any, weight_scale: Any, bias: Any) -> Rows:
    """``ops.linear``: an integer GEMM, or a float one where an operand is not quantized."""
    assert program.node is not None
    name = str(program.node.meta.get("linear") or program.node.name)
    x = rows_of_constant(program, x) if isinstance(x, WeightCodes) else x
    if isinstance(x, Codes) and isinstance(weight, WeightCodes):
        x = last_axis_in_row(program, x)
        stored = program.weight(weight, f"{name}.weight")
        shape = (*x.shape[:-1], weight.codes.size(0))
        written = program.write("gemm", (x,), shape, x.rows, name, weight=stored)
        out = Rows(written, shape, x.rows, x.axis)
    else:
        if isinstance(weight, WeightCodes):
            weight = weight.codes * weight.scale
        out = float_linear(program, x, weight, name)
    return out if bias is None else elementwise(program, "add", out, bias)


def last_axis_in_row(program: Program, x: Rows) -> Rows:
    """``x``, whose last axis must not be the one of the rows."""
    if not x.shape or x.axis == x.rank - 1:
        raise program.refuse("a linear layer along the axis of the rows")
    return x


def float_linear(program: Program, x: Any, weight: Tensor, name: str) -> Rows:
    """``x @ weight.T`` for a constant weight [M, K]."""
    x = last_axis_in_row(program, float_operand(program, x, "a linear layer"))
    shape = (*x.shape[:-1], weight.size(0))
    array = program.constant_array(weight.t(), f"{name}.weight")
    written = program.write("float_gemm", (x,), shape, x.rows, name, array=array)
    return Rows(written, shape, x.rows, x.axis)


def plain_linear(program: Program, x: Any, weight: Any, bias: Any = None) -> Rows:
    """``F.linear`` that is no site."""
    if not isinstance(weight, Tensor):
        raise program.refuse("the weight of a linear layer depends on the inputs")
    out = constant_product(program, float_operand(program, x, "a linear layer"), weight.t())
    return out if bias is None else elementwise(program, "add", out, bias)


def constant_product(program: Program, x: Rows, weight: Tensor) -> Rows:
    """``x @ weight`` along the last axis for a constant [K, M]."""
    x = last_axis_in_row(program, x)
    shape = (*x.shape[:-1], weight.size(1))
    if not program.exact:
        assert program.node is not None
        return float_linear(program, x, weight.t(), program.node.name)
    left = program.reshape(x, (int(np.prod(x.shape[:-1])), x.shape[-1]))
    right = program.constant(weight)
    name = program.write("matmul", (left, right), (left.shape[0], weight.size(1)), x.rows)
    return program.reshape(Rows(name, (left.shape[0], weight.size(1)), x.rows, x.axis), shape)


def propagate(
    program: Program,
    x: Any,
    x_scale: Any,
    edge_index: Any,
    edge_weight: Any,
    num_nodes: Any,
    reduce: str,
) -> Rows:
    """``ops.propagate``: an integer SpMM, or a float one."""
    if not isinstance(edge_index, Index) or not edge_index.is_edges:
        raise program.refuse("its edge list does not depend on the inputs")
    return sparse_product(program, x, edge_index, edge_weight, num_nodes, reduce)


def sparse_product(program: Program, x: Any, edges: Index, weight: Any, num_nodes: Any, reduce: str) -> Rows:
    """Weighted sums (or means, maxima) of the sources' rows at every destination."""
    assert program.node is not None
    x = rows_of_constant(program, x)
    if not isinstance(x, Codes):
        x = as_rows(program, x)
    source, target = edges.ends
    if num_nodes is None:
        num_nodes = program.size("extent", (target,))
    into = program.size_of(num_nodes)
    if x.rows == ONE:
        if x.shape[:1] != (1,):
            raise program.refuse("message passing over a single row")
        x = program.expand(program.reshape(x, x.shape[1:]), program.size_of(1))
    if x.axis != 0:
        raise program.refuse("message passing over rows that are not the first axis")
    operands = [x]
    heads = 1
    if weight is not None:
        weight = as_rows(program, weight)
        if weight.rows == ONE:
            weight = program.expand(program.reshape(weight, weight.shape[1:]), edges.rows)
        program.unify(weight.rows, edges.rows)
        heads = weight.shape[0] if weight.shape else 1
        operands.append(weight)
    op = "spmm" if isinstance(x, Codes) else "float_spmm"
    name = str(program.node.meta.get("conv") or op)
    attrs = {"src": source, "dst": target, "reduce": reduce, "heads": heads, "product": op}
    written = program.write("propagate", operands, x.shape, into, name, **attrs)
    return Rows(written, x.shape, into, 0)


def dequantize(program: Program, codes: Any, scale: Any) -> Any:
    """``ops.dequantize`` of rows or of a parameter."""
    if isinstance(codes, WeightCodes):
        return codes.codes * codes.scale
    return as_rows(program, codes)


def scale_of_rows(program: Program, scale: Any, index: Any) -> Any:
    """``ops.scale_of_rows``: the scale goes with the codes, which a rule selects."""
    return scale


def adjacency(program: Program, matrix: Any) -> tuple[Index, Rows]:
    """``ops.adjacency``: the entries of a sparse input."""
    if not isinstance(matrix, Adjacency):
        raise program.refuse("it takes the entries of something else than a sparse matrix")
    return matrix.edges, matrix.weight


def matmul(program: Program, x: Any, y: Any) -> Rows:
    """A matrix product: within each row, or over all rows."""
    if isinstance(x, Adjacency):
        return sparse_product(program, y, x.edges, x.weight, x.extents[0], "sum")
    x, y = (item if isinstance(item, Tensor) else as_rows(program, item) for item in (x, y))
    if isinstance(y, Tensor) and y.dim() == 1:
        return _drop_last(program, matmul(program, x, y.unsqueeze(-1)))
    if isinstance(y, Tensor) and y.dim() == 2 and isinstance(x, Rows) and x.axis != x.rank - 1:
        return constant_product(program, x, y)
    x, y = as_rows(program, x), as_rows(program, y)
    if x.rank == 1 or y.rank == 1:
        raise program.refuse("a matrix product with a vector that depends on the inputs")
    return row_matmul(program, x, y)


def _drop_last(program: Program, x: Rows) -> Rows:
    return program.reshape(x, x.shape[:-1])


def row_matmul(program: Program, x: Rows, y: Rows) -> Rows:
    """``x @ y`` of two tensors of at least two axes."""
    if x.axis is not None and x.axis == x.rank - 1:
        if y.axis is not None and y.axis == y.rank - 2:
            return summed_over_rows(program, x, y)
        raise program.refuse("a matrix product that sums over rows of one operand only")
    rows_of_matrix = x.axis is not None and x.axis == x.rank - 2
    if (y.axis is not None and y.axis >= y.rank - 2) or (rows_of_matrix and y.axis is not None):
        raise program.refuse("a matrix product between rows: every row meets every other")
    if not rows_of_matrix:
        (left, right), rows, axis = align(program, (x, y))
        shape = (*np.broadcast_shapes(left.shape[:-2], right.shape[:-2]), left.shape[-2], right.shape[-1])
        return Rows(program.write("matmul", (left, right), shape, rows), shape, rows, axis)
    # The rows are those of the matrix: each is a matrix of one row.
    left, right = _of_equal_rank(program, program.reshape(x, (*x.shape[:-1], 1, x.shape[-1])), y)
    batch = np.broadcast_shapes(left.shape[:-2], right.shape[:-2])
    shape = (*batch, 1, right.shape[-1])
    out = Rows(program.write("matmul", (left, right), shape, x.rows), shape, x.rows, len(batch))
    return program.reshape(out, (*batch, shape[-1]))


def _of_equal_rank(program: Program, x: Rows, y: Rows) -> tuple[Rows, Rows]:
    """Row shapes of as many axes."""
    rank = max(len(x.shape), len(y.shape))
    first, second = (program.reshape(item, (*[1] * (rank - len(item.shape)), *item.shape)) for item in (x, y))
    return first, second


def summed_over_rows(program: Program, x: Rows, y: Rows) -> Rows:
    """``x @ y`` where the axis that is summed over is the rows: the sum of outer products."""
    columns = program.reshape(x, (*x.shape, 1))
    lines = program.reshape(y, (*y.shape[:-1], 1, y.shape[-1]))
    left, right = _of_equal_rank(program, columns, lines)
    rows = program.unify(x.rows, y.rows)
    shape = tuple(np.broadcast_shapes(left.shape, right.shape))
    product = Rows(program.write("mul", (left, right), shape, rows), shape, rows, 0)
    return Rows(program.write("row_reduce", (product,), shape, reduce="sum"), shape)


def addmm(program: Program, bias: Any, x: Any, y: Any, *, beta: float = 1.0, alpha: float = 1.0) -> Rows:
    """``beta * bias + alpha * x @ y``."""
    product = scaled(program, matmul(program, x, y), alpha)
    if beta == 0:
        return product
    return elementwise(program, "add", bias if beta == 1 else scaled(program, bias, beta), product)


def scaled(program: Program, x: Any, factor: float) -> Any:
    """``x * factor``."""
    if factor == 1:
        return x
    return x * factor if isinstance(x, Tensor) else elementwise(program, "mul", x, factor)


FUNCTIONS: dict[Any, Rule] = {
    ops.linear: linear,
    ops.propagate: propagate,
    ops.dequantize: dequantize,
    ops.scale_of_rows: scale_of_rows,
    ops.adjacency: adjacency,
}
NAMES: dict[str, Rule] = {
    "linear": plain_linear,
    **dict.fromkeys(("matmul", "mm", "bmm"), matmul),
    "addmm": addmm,
}
MODULES: dict[type, Rule] = {Quantizer: quantizer}
