"""One rule per torch function, method or module: how it is written in the integer graph."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from gnnquant import ir
from gnnquant.errors import BackendError
from gnnquant.passes.lowering.emitter import describe
from gnnquant.passes.lowering.values import (
    Codes,
    EdgeIndex,
    EdgeRow,
    Rows,
    Scale,
    Size,
    WeightCodes,
    WeightScale,
)
from gnnquant.quantizers import ops
from gnnquant.quantizers.modules import Quantizer
from gnnquant.tracing.graph_ops import dtype_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import fx

    from gnnquant.passes.lowering.emitter import Emitter

    Rule = Callable[..., Any]


def refuse(node: fx.Node, why: str) -> BackendError:
    """The error for a node that a rule cannot write."""
    return BackendError(f"cannot lower {describe(node)}: {why}")


# ---------------------------------------------------------------- sites and their operations


def lower_quantizer(emitter: Emitter, node: fx.Node, quantizer: Quantizer, value: Any) -> Any:
    """A quantizer on rows, or on a parameter."""
    site = str(node.meta.get("site", node.target))
    if not bool(quantizer.calibrated):
        raise refuse(
            node,
            f"the site {site!r} has no range yet: call gnnquant.calibrate or gnnquant.finetune first",
        )
    if isinstance(value, Tensor):
        quantized = quantizer(value)
        codes = WeightCodes(quantized.codes, quantized.scale, quantizer)
        return codes, WeightScale(codes)
    if not isinstance(value, Rows):
        raise refuse(node, f"cannot quantize a {type(value).__name__}")
    scale = float(quantizer.log_scale.exp())
    is_row = quantizer.granularity == "row"
    emitted = emitter.emit(
        "quantize",
        (value.name,),
        value.shape,
        value.rows,
        name=site,
        bits=quantizer.bits,
        zero2=int(quantizer.zero2),
        granularity=quantizer.granularity,
        **{"factor" if is_row else "scale": scale},
    )
    return Codes(emitted.name, emitted.shape, emitted.rows), Scale(emitted.name)


def lower_linear(
    emitter: Emitter, node: fx.Node, x: Any, x_scale: Any, weight: Any, _: Any, bias: Any
) -> Rows:
    """``ops.linear``: an integer GEMM, or a float one where an operand is not quantized."""
    name = str(node.meta.get("linear") or node.name)
    if x.rows != "node":
        raise refuse(node, "linear layers on edges are not supported yet")
    if len(x.shape) != 1:
        raise refuse(node, f"linear layers on rows of shape {x.shape} are not supported")
    if isinstance(x, Codes) and isinstance(weight, WeightCodes):
        stored = emitter.weight(weight, f"{name}.weight")
        shape = (weight.codes.size(0),)
        out = emitter.emit("gemm", (x.name,), shape, name=name, weight=stored)
    else:
        if isinstance(x, Codes):
            x = _dequantized(emitter, x)
        if isinstance(weight, WeightCodes):
            weight = weight.codes * weight.scale
        array = emitter.array(weight.t(), f"{name}.weight")
        out = emitter.emit("float_gemm", (x.name,), (weight.size(0),), name=name, array=array)
    rows = Rows(out.name, out.shape)
    return rows if bias is None else emitter.binary("add", rows, bias)


def _dequantized(emitter: Emitter, codes: Codes) -> Rows:
    node = emitter.emit("dequantize", (codes.name,), codes.shape, codes.rows)
    return Rows(node.name, node.shape, node.rows)


def lower_propagate(
    emitter: Emitter,
    node: fx.Node,
    x: Any,
    x_scale: Any,
    edge_index: Any,
    edge_weight: Any,
    num_nodes: Any,
    reduce: str,
) -> Rows:
    """``ops.propagate``: an integer SpMM, or a float one."""
    if not isinstance(edge_index, EdgeIndex):
        raise refuse(node, "its edge_index is not an input of the model")
    if num_nodes is not None and num_nodes != Size("nodes"):
        raise refuse(node, f"its number of rows is {num_nodes}, not the number of nodes")
    csr = emitter.csr(edge_index)
    operands = [x.name, csr]
    heads = 1
    if edge_weight is not None:
        weight = _edge_rows(emitter, node, edge_weight, csr)
        heads = weight.shape[0] if weight.shape else 1
        operands.append(weight.name)
    op = "spmm" if isinstance(x, Codes) else "float_spmm"
    out = emitter.emit(
        op, operands, x.shape, name=str(node.meta.get("conv") or op), reduce=reduce, heads=heads
    )
    return Rows(out.name, out.shape)


def _edge_rows(emitter: Emitter, node: fx.Node, value: Any, csr: str, fill: float = 1.0) -> Rows:
    """An edge weight in the row order of ``csr``; ``fill`` for self-loops that were added."""
    if isinstance(value, Rows):
        if value.rows == csr:
            return value
        source = emitter.graph[value.name]
        if source.op == "edge_input":
            name = source.attrs["input"]
            moved = emitter.emit("edge_input", (csr,), source.shape, csr, name=name, input=name, fill=fill)
            return Rows(moved.name, moved.shape, csr)
    raise refuse(node, "its edge weight is neither an input nor computed for the same edge list")


def lower_dequantize(emitter: Emitter, node: fx.Node, codes: Any, scale: Any) -> Any:
    """``ops.dequantize`` of rows or of a parameter."""
    if isinstance(codes, WeightCodes):
        return codes.codes * codes.scale
    return _dequantized(emitter, codes)


# ---------------------------------------------------------------- graphs


def lower_gcn_norm(
    emitter: Emitter,
    node: fx.Node,
    edge_index: Any,
    edge_weight: Any = None,
    num_nodes: Any = None,
    improved: bool = False,
    add_self_loops: bool = True,
    flow: str = "source_to_target",
    dtype: Any = None,
) -> tuple[EdgeIndex, Rows]:
    """PyG's symmetric normalisation with self-loops."""
    if not isinstance(edge_index, EdgeIndex) or edge_index.loops != "keep":
        raise refuse(node, "gcn_norm of something else than an edge_index input")
    if flow != "source_to_target":
        raise refuse(node, f"flow={flow!r} is not supported")
    changed = EdgeIndex(edge_index.input, "remaining" if add_self_loops else "keep")
    csr = emitter.csr(changed)
    operands = [csr]
    fill = 2.0 if improved else 1.0
    if edge_weight is not None:
        operands.append(_edge_rows(emitter, node, edge_weight, csr, fill).name)
    out = emitter.emit("gcn_norm", operands, (), csr, fill=fill)
    return changed, Rows(out.name, (), csr)


def _change_loops(changes: dict[str, str]) -> Rule:
    """One of PyG's functions on self-loops, without edge features.

    Args:
        changes: What was done to the self-loops before -> what has been done after.
    """

    def rule(
        emitter: Emitter, node: fx.Node, edge_index: Any, edge_attr: Any = None, *_: Any, **__: Any
    ) -> tuple[EdgeIndex, None]:
        if not isinstance(edge_index, EdgeIndex) or edge_index.loops not in changes:
            raise refuse(node, "it changes the self-loops of an edge list that was changed before")
        if edge_attr is not None:
            raise refuse(node, "self-loops with edge features are not supported yet")
        return EdgeIndex(edge_index.input, changes[edge_index.loops]), None

    return rule


def lower_gather(emitter: Emitter, node: fx.Node, x: Any, dim: Any, index: Any) -> Rows:
    """``index_select`` of node rows by an end of the edges."""
    if not isinstance(index, EdgeRow) or not isinstance(x, Rows) or x.rows != "node":
        raise refuse(node, "it selects rows by something else than edge_index")
    if dim not in (0, -1 - len(x.shape)):
        raise refuse(node, f"it selects along axis {dim}")
    csr = emitter.csr(index.edge_index)
    side = "dst" if index.row else "src"
    out = emitter.emit("gather", (x.name, csr), x.shape, csr, side=side)
    return Rows(out.name, out.shape, csr)


def lower_segment_softmax(
    emitter: Emitter,
    node: fx.Node,
    src: Any,
    index: Any = None,
    ptr: Any = None,
    num_nodes: Any = None,
    dim: int = 0,
) -> Rows:
    """PyG's softmax over the edges of one destination."""
    if not isinstance(index, EdgeRow) or index.row != 1 or ptr is not None or dim != 0:
        raise refuse(node, "a softmax over something else than the incoming edges")
    if not isinstance(src, Rows) or src.rows != emitter.csr(index.edge_index):
        raise refuse(node, "its values belong to another edge list than its index")
    return emitter.rows("segment_softmax", (src.name,), src)


# ---------------------------------------------------------------- shapes


def lower_getitem(emitter: Emitter, node: fx.Node, value: Any, index: Any) -> Any:
    """A part of a tuple, a row of an edge index, or a slice of a constant."""
    if isinstance(value, EdgeIndex):
        if index in (0, 1, -1, -2):
            return EdgeRow(value, index % 2)
        raise refuse(node, "it takes something else than a row of edge_index")
    if isinstance(value, (tuple, list, Tensor)):
        return value[index]
    raise refuse(node, "indexing computed values is not supported")


def lower_size(emitter: Emitter, node: fx.Node, value: Any, dim: Any = None) -> Any:
    """A number of nodes, edges or columns."""
    if isinstance(value, Tensor):
        return value.size() if dim is None else value.size(dim)
    if isinstance(value, (EdgeIndex, EdgeRow)):
        sizes: tuple[Any, ...] = (2, Size("edges")) if isinstance(value, EdgeIndex) else (Size("edges"),)
    elif isinstance(value, (Rows, Codes)):
        sizes = (Size("nodes" if value.rows == "node" else "edges"), *value.shape)
    else:
        raise refuse(node, f"the size of a {type(value).__name__}")
    return sizes if dim is None else sizes[dim]


def lower_dtype(emitter: Emitter, node: fx.Node, value: Any) -> torch.dtype:
    """The element type of a value."""
    return value.dtype if isinstance(value, Tensor) else node.all_input_nodes[0].meta["dtype"]


def lower_num_nodes(emitter: Emitter, node: fx.Node, edge_index: Any, num_nodes: Any = None) -> Any:
    """PyG's ``maybe_num_nodes``: what it was given."""
    if num_nodes is None:
        raise refuse(node, "it counts nodes by the largest index; pass num_nodes")
    return num_nodes


def lower_extreme(emitter: Emitter, node: fx.Node, *values: Any) -> Any:
    """``min`` and ``max`` of sizes that are the same."""
    if all(value == values[0] for value in values):
        return values[0]
    raise refuse(node, f"it compares the sizes {values}")


def lower_reshape(emitter: Emitter, node: fx.Node, value: Any, *_: Any, **__: Any) -> Any:
    """``view``, ``reshape``, ``unsqueeze``, ``squeeze``, ``flatten`` that keep rows apart."""
    if isinstance(value, Tensor):
        return getattr(value, str(node.target))(*_, **__)
    if not isinstance(value, (Rows, Codes)):
        raise refuse(node, f"reshaping a {type(value).__name__}")
    old, new = node.all_input_nodes[0].meta["shape"], node.meta["shape"]
    if not new or not old or old[0] != new[0]:
        raise refuse(node, f"it reshapes {tuple(old)} to {tuple(new)}, across rows")
    shape = tuple(new[1:])
    if isinstance(value, Codes):
        return Codes(value.name, shape, value.rows)
    if shape == value.shape:
        return value
    out = emitter.emit("reshape", (value.name,), shape, value.rows)
    return Rows(out.name, out.shape, out.rows)


def lower_concat(emitter: Emitter, node: fx.Node, tensors: Any, dim: int = 0) -> Rows:
    """Concatenation of columns."""
    if not all(isinstance(item, Rows) and item.rows == tensors[0].rows for item in tensors):
        raise refuse(node, "it concatenates something else than rows of one kind")
    axes = len(tensors[0].shape)
    if dim not in (-1, axes):
        raise refuse(node, f"it concatenates along axis {dim}, not the last")
    width = sum(item.shape[-1] for item in tensors)
    shape = (*tensors[0].shape[:-1], width)
    names = [item.name for item in tensors]
    out = emitter.emit("concat", names, shape, tensors[0].rows)
    return Rows(out.name, out.shape, out.rows)


def identity(emitter: Emitter, node: fx.Node, value: Any, *_: Any, **__: Any) -> Any:
    """Markers, dropout in eval mode, copies."""
    return value


# ---------------------------------------------------------------- float operations


def _elementwise(op: str) -> Rule:
    def rule(emitter: Emitter, node: fx.Node, x: Any, y: Any, **kwargs: Any) -> Any:
        if kwargs.get("alpha", 1) != 1 or kwargs.get("rounding_mode") is not None:
            raise refuse(node, f"{op} with {kwargs}")
        if not isinstance(x, Rows) and not isinstance(y, Rows):
            for operand in (x, y):
                if not isinstance(operand, (Tensor, int, float)):
                    raise refuse(node, f"{op} of a {type(operand).__name__}")
            return getattr(operator, {"div": "truediv"}.get(op, op))(x, y)
        for operand in (x, y):
            if not isinstance(operand, (Rows, Tensor, int, float)):
                raise refuse(node, f"{op} of a {type(operand).__name__}")
        return emitter.binary(op, x, y)

    return rule


def _reversed(op: str) -> Rule:
    rule = _elementwise(op)

    def swapped(emitter: Emitter, node: fx.Node, x: Any, y: Any) -> Any:
        return rule(emitter, node, y, x)

    return swapped


def _unary(op: str) -> Rule:
    def rule(emitter: Emitter, node: fx.Node, x: Any, inplace: bool = False) -> Any:
        if isinstance(x, Tensor):
            return getattr(torch, op)(x)
        if not isinstance(x, Rows):
            raise refuse(node, f"{op} of a {type(x).__name__}")
        return emitter.rows(op, (x.name,), x)

    return rule


def lower_leaky_relu(
    emitter: Emitter, node: fx.Node, x: Any, negative_slope: float = 0.01, inplace: bool = False
) -> Rows:
    """``leaky_relu``."""
    return emitter.rows("leaky_relu", (x.name,), x, scalar=float(negative_slope))


def lower_elu(
    emitter: Emitter, node: fx.Node, x: Any, alpha: float = 1.0, inplace: bool = False, **_: Any
) -> Rows:
    """``elu``."""
    return emitter.rows("elu", (x.name,), x, scalar=float(alpha))


def _over_row(op: str) -> Rule:
    def rule(emitter: Emitter, node: fx.Node, x: Any, dim: Any = None, **kwargs: Any) -> Rows:
        if not isinstance(x, Rows) or len(x.shape) != 1 or dim not in (1, -1):
            raise refuse(node, f"{op} over something else than the columns of [N, C]")
        if kwargs.get("dtype") is not None:
            raise refuse(node, f"{op} with a dtype")
        return emitter.rows(op, (x.name,), x)

    return rule


def lower_sum(
    emitter: Emitter, node: fx.Node, x: Any, dim: Any = None, keepdim: bool = False, **_: Any
) -> Any:
    """Sum over the last axis of a row."""
    if isinstance(x, Tensor):
        return x.sum(dim, keepdim) if dim is not None else x.sum()
    axis = dim[0] if isinstance(dim, (tuple, list)) and len(dim) == 1 else dim
    if not isinstance(x, Rows) or not x.shape or axis not in (-1, len(x.shape)):
        raise refuse(node, f"a sum over axis {dim}")
    shape = (*x.shape[:-1], 1) if keepdim else x.shape[:-1]
    out = emitter.emit("sum_last", (x.name,), shape, x.rows)
    return Rows(out.name, out.shape, out.rows)


def lower_mean(
    emitter: Emitter, node: fx.Node, x: Any, dim: Any = None, keepdim: bool = False, **_: Any
) -> Any:
    """Mean over heads: the first axis of a row."""
    if isinstance(x, Tensor):
        return x.mean(dim, keepdim) if dim is not None else x.mean()
    axes = 2
    if not isinstance(x, Rows) or len(x.shape) != axes or dim not in (1, -2) or keepdim:
        raise refuse(node, f"a mean over axis {dim}")
    out = emitter.emit("mean_first", (x.name,), x.shape[1:], x.rows)
    return Rows(out.name, out.shape, out.rows)


def lower_batch_norm(emitter: Emitter, node: fx.Node, layer: nn.BatchNorm1d, x: Any) -> Rows:
    """``(x - mean) / sqrt(var + eps) * weight + bias`` as one multiplication and one addition."""
    if layer.running_mean is None or layer.running_var is None:
        raise refuse(node, "batch norm without running statistics depends on the batch")
    if not isinstance(x, Rows) or len(x.shape) != 1:
        raise refuse(node, "batch norm of something else than [N, C]")
    scale = (layer.running_var.double() + layer.eps).rsqrt()
    if layer.weight is not None:
        scale = scale * layer.weight.double()
    shift = -layer.running_mean.double() * scale
    if layer.bias is not None:
        shift = shift + layer.bias.double()
    return emitter.binary("add", emitter.binary("mul", x, scale.float()), shift.float())


def lower_module(emitter: Emitter, node: fx.Node, layer: nn.Module, args: Any, kwargs: Any) -> Any:
    """A module that stayed a leaf in tracing."""
    from torch_geometric.nn.norm import BatchNorm

    from gnnquant.smoothness import SmoothnessConstraint

    operands = (*args, *kwargs.values())
    x = operands[0]
    if isinstance(layer, Quantizer):
        return lower_quantizer(emitter, node, layer, x)
    if isinstance(layer, SmoothnessConstraint):
        return layer.multiplier.detach()
    if isinstance(layer, BatchNorm):
        layer = layer.module
    if isinstance(layer, nn.BatchNorm1d):
        return lower_batch_norm(emitter, node, layer, x)
    if isinstance(layer, (nn.Dropout, nn.Identity)):
        return x
    if isinstance(layer, nn.LeakyReLU):
        return lower_leaky_relu(emitter, node, x, layer.negative_slope)
    if isinstance(layer, nn.ELU):
        return lower_elu(emitter, node, x, layer.alpha)
    if isinstance(layer, (nn.LogSoftmax, nn.Softmax)):
        op = "log_softmax" if isinstance(layer, nn.LogSoftmax) else "softmax"
        return _over_row(op)(emitter, node, x, layer.dim)
    for kind, op in ((nn.ReLU, "relu"), (nn.Sigmoid, "sigmoid"), (nn.Tanh, "tanh")):
        if isinstance(layer, kind):
            return _unary(op)(emitter, node, x)
    raise refuse(node, f"there is no rule for the module {type(layer).__name__}")


def _functions() -> dict[Any, Rule]:
    from torch_geometric import utils
    from torch_geometric.nn.conv.gcn_conv import gcn_norm
    from torch_geometric.utils.num_nodes import maybe_num_nodes

    rules: dict[Any, Rule] = {
        ops.linear: lower_linear,
        ops.propagate: lower_propagate,
        ops.dequantize: lower_dequantize,
        gcn_norm: lower_gcn_norm,
        utils.remove_self_loops: _change_loops({"keep": "remove"}),
        utils.add_self_loops: _change_loops({"keep": "add", "remove": "replace"}),
        utils.add_remaining_self_loops: _change_loops({"keep": "remaining"}),
        utils.softmax: lower_segment_softmax,
        operator.getitem: lower_getitem,
        dtype_of: lower_dtype,
        maybe_num_nodes: lower_num_nodes,
        min: lower_extreme,
        max: lower_extreme,
        torch.cat: lower_concat,
        torch.concat: lower_concat,
        torch.index_select: lower_gather,
        functional.leaky_relu: lower_leaky_relu,
        functional.elu: lower_elu,
        functional.log_softmax: _over_row("log_softmax"),
        torch.log_softmax: _over_row("log_softmax"),
        functional.softmax: _over_row("softmax"),
        torch.softmax: _over_row("softmax"),
        functional.dropout: identity,
        torch.sum: lower_sum,
        torch.mean: lower_mean,
    }
    for marker in ir.ROLE_MARKERS.values():
        rules[marker] = identity
    binary: dict[str, tuple[Any, ...]] = {
        "add": (operator.add, operator.iadd, torch.add),
        "sub": (operator.sub, operator.isub, torch.sub),
        "mul": (operator.mul, operator.imul, torch.mul),
        "div": (operator.truediv, operator.itruediv, torch.div),
    }
    for op, functions in binary.items():
        rules.update(dict.fromkeys(functions, _elementwise(op)))
    unary: dict[str, tuple[Any, ...]] = {
        "relu": (functional.relu, torch.relu),
        "sigmoid": (torch.sigmoid, functional.sigmoid),
        "tanh": (torch.tanh, functional.tanh),
        "exp": (torch.exp,),
        "neg": (torch.neg, operator.neg),
    }
    for op, functions in unary.items():
        rules.update(dict.fromkeys(functions, _unary(op)))
    return rules


FUNCTION_RULES: dict[Any, Rule] = _functions()
METHOD_RULES: dict[Any, Rule] = {
    "size": lower_size,
    "index_select": lower_gather,
    "log_softmax": _over_row("log_softmax"),
    "softmax": _over_row("softmax"),
    "sum": lower_sum,
    "mean": lower_mean,
    "contiguous": identity,
    "clone": identity,
    **dict.fromkeys(("view", "reshape", "unsqueeze", "squeeze", "flatten"), lower_reshape),
    **{op: _elementwise(op) for op in ("add", "sub", "mul", "div")},
    **{f"{op}_": _elementwise(op) for op in ("add", "sub", "mul", "div")},
    **{f"__r{op}__": _reversed(op) for op in ("sub", "mul", "add")},
    **{op: _unary(op) for op in ("relu", "sigmoid", "tanh", "exp", "neg")},
    "relu_": _unary("relu"),
}
