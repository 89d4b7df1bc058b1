"""Modules that stayed a leaf in tracing: activations, norms and aggregations."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn
from torch_geometric.nn import aggr
from torch_geometric.nn import norm as pyg_norm

from gnnquant.passes.lowering.operands import elementwise, float_operand, row_axis
from gnnquant.passes.lowering.rules import elementwise as entry
from gnnquant.passes.lowering.rules.creation import identity
from gnnquant.passes.lowering.rules.edges import OFF, aggregate
from gnnquant.passes.lowering.rules.parts import embedding, look_up
from gnnquant.passes.lowering.rules.reductions import reduce_axes, softmax_over
from gnnquant.passes.lowering.rules.shapes import flatten, unflatten
from gnnquant.passes.lowering.values import Index, Rows
from gnnquant.quantizers.dropout import Dropout
from gnnquant.smoothness import SmoothnessConstraint
from gnnquant.tracing.graph_ops import TrainingSwitch

if TYPE_CHECKING:
    from collections.abc import Callable

    from gnnquant.passes.lowering.program import Program

    Rule = Callable[..., Any]


# ---------------------------------------------------------------- activations


def _calls(rule: Rule, *attributes: str) -> Rule:
    """A module that is a function with some of the module's attributes."""

    def lower(program: Program, layer: nn.Module, x: Any, *_: Any, **__: Any) -> Any:
        return rule(program, x, *(getattr(layer, name) for name in attributes))

    return lower


def _same(program: Program, layer: nn.Module, x: Any, *_: Any, **__: Any) -> Any:
    return identity(program, x)


def smoothness_constraint(program: Program, layer: SmoothnessConstraint, *_: Any, **__: Any) -> Any:
    """A multiplier that is a constant of the finished model."""
    return layer.multiplier.detach()


# ---------------------------------------------------------------- norms


def batch_norm(program: Program, layer: Any, x: Any) -> Rows:
    """``(x - mean) / sqrt(var + eps) * weight + bias`` as one multiplication and one addition."""
    x = float_operand(program, x, "batch norm")
    if layer.running_mean is None or layer.running_var is None:
        return batch_statistics(program, x, layer)
    channel = row_axis(x, 1) if x.rank > 1 else None
    if channel is None:
        raise program.refuse("batch norm whose channels are the rows")
    scale = (layer.running_var.double() + layer.eps).rsqrt()
    if layer.weight is not None:
        scale = scale * layer.weight.double()
    shift = -layer.running_mean.double() * scale
    if layer.bias is not None:
        shift = shift + layer.bias.double()
    shape = (-1, *[1] * (x.rank - 2))
    product = elementwise(program, "mul", x, scale.float().reshape(shape))
    return elementwise(program, "add", product, shift.float().reshape(shape))


def batch_statistics(program: Program, x: Rows, layer: Any) -> Rows:
    """Batch norm that keeps no statistics: those of the very rows that it is given."""
    axes = [axis for axis in range(x.rank) if axis != 1]
    shape = (-1, *[1] * (x.rank - 2))
    weight, bias = (
        None if item is None else item.detach().reshape(shape) for item in (layer.weight, layer.bias)
    )
    return _affine(program, _standardised(program, x, axes, layer.eps), weight, bias)


def pyg_batch_norm(program: Program, layer: Any, x: Any) -> Rows:
    """PyG's ``BatchNorm``: torch's."""
    return batch_norm(program, layer.module, x)


def hetero_batch_norm(program: Program, layer: Any, x: Any, type_vec: Any) -> Rows:
    """Batch norm with statistics, scale and shift of every row's type."""
    if layer.running_mean is None or not isinstance(type_vec, Index):
        raise program.refuse("batch norm by type needs running statistics, and types that are integer inputs")
    scale = layer.running_var.double().clamp(layer.eps).rsqrt()
    shift = -layer.running_mean.double() * scale
    if layer.affine:
        scale = scale * layer.weight.double()
        shift = shift * layer.weight.double() + layer.bias.double()
    product = elementwise(program, "mul", x, look_up(program, scale.float(), type_vec))
    return elementwise(program, "add", product, look_up(program, shift.float(), type_vec))


def instance_norm(
    program: Program,
    layer: Any,
    x: Any,
    batch: Any = None,
    batch_size: Any = None,
) -> Rows:
    """PyG's ``InstanceNorm`` with running statistics, which are those of every graph."""
    if layer.running_mean is None:
        raise program.refuse("instance norm without running statistics as a leaf")
    return batch_norm(program, layer, x)


def functional_instance_norm(
    program: Program,
    x: Any,
    running_mean: Any = None,
    running_var: Any = None,
    weight: Any = None,
    bias: Any = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Rows:
    """``F.instance_norm`` of [B, C, ...]: over all axes but the first two."""
    if not use_input_stats:
        return functional_batch_norm(
            program, x, running_mean, running_var, weight, bias, False, momentum, eps
        )
    x = float_operand(program, x, "instance norm")
    shape = (-1, *[1] * (x.rank - 2))
    weight, bias = (None if item is None else item.detach().reshape(shape) for item in (weight, bias))
    return _affine(program, _standardised(program, x, list(range(2, x.rank)), eps), weight, bias)


def _standardised(program: Program, x: Rows, axes: list[int], eps: float) -> Rows:
    """``(x - mean) / sqrt(var + eps)`` over axes."""
    centred = elementwise(program, "sub", x, reduce_axes(program, x, axes, "mean", True))
    variance = reduce_axes(program, program.local("mul", centred, centred), axes, "mean", True)
    root = program.local("sqrt", program.local("add", variance, scalar=float(eps)))
    return elementwise(program, "div", centred, root)


def layer_norm(program: Program, layer: nn.LayerNorm, x: Any) -> Rows:
    """Over the last axes of a row."""
    return normalised_layer(program, x, len(layer.normalized_shape), layer.weight, layer.bias, layer.eps)


def normalised_layer(program: Program, x: Any, count: int, weight: Any, bias: Any, eps: float) -> Rows:
    """``(x - mean) / sqrt(var + eps) * weight + bias`` over the last ``count`` axes."""
    x = float_operand(program, x, "layer norm")
    axes = list(range(x.rank - count, x.rank))
    return _affine(program, _standardised(program, x, axes, eps), weight, bias)


def _affine(program: Program, x: Rows, weight: Any, bias: Any) -> Rows:
    if weight is not None:
        x = elementwise(program, "mul", x, weight.detach())
    return x if bias is None else elementwise(program, "add", x, bias.detach())


def functional_layer_norm(
    program: Program, x: Any, normalized_shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5
) -> Rows:
    """``F.layer_norm``."""
    return normalised_layer(program, x, len(normalized_shape), weight, bias, eps)


def functional_batch_norm(
    program: Program,
    x: Any,
    running_mean: Any,
    running_var: Any,
    weight: Any = None,
    bias: Any = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Rows:
    """``F.batch_norm`` with running statistics."""
    if training:
        raise program.refuse("batch norm with the statistics of the batch")
    layer: Any = nn.BatchNorm1d(int(running_mean.numel()), eps)
    layer.running_mean, layer.running_var = running_mean, running_var
    layer.weight = None if weight is None else nn.Parameter(weight)
    layer.bias = None if bias is None else nn.Parameter(bias)
    return batch_norm(program, layer, x)


# ---------------------------------------------------------------- aggregations


def _aggregation(reduce: str) -> Rule:
    def rule(
        program: Program,
        layer: nn.Module,
        x: Any,
        index: Any = None,
        ptr: Any = None,
        dim_size: Any = None,
        dim: int = -2,
        max_num_elements: Any = None,
    ) -> Rows:
        if index is None:
            if ptr is not None:
                raise program.refuse("an aggregation over sorted segments")
            x = float_operand(program, x, "an aggregation")
            return reduce_axes(program, x, [dim % x.rank], reduce, True)
        return aggregate(program, x, index, dim, dim_size, reduce)

    return rule


def training_switch(program: Program, layer: TrainingSwitch, *args: Any, **kwargs: Any) -> Any:
    """A function with a training flag, which is off."""
    if layer.function in OFF:
        return OFF[layer.function](program, *args, **kwargs)
    from gnnquant.passes.lowering.rules import find_function_rule

    rule = find_function_rule(layer.function)
    if rule is None:
        name = getattr(layer.function, "__name__", layer.function)
        raise program.refuse(f"there is no rule for {name!r}")
    if isinstance(layer.flag, str):
        return rule(program, *args, **kwargs, **{layer.flag: False})
    return rule(program, *args[: layer.flag], False, *args[layer.flag :], **kwargs)


MODULES: dict[type, Rule] = {
    TrainingSwitch: training_switch,
    SmoothnessConstraint: smoothness_constraint,
    **dict.fromkeys(
        (
            nn.Dropout,
            Dropout,
            nn.Dropout1d,
            nn.Dropout2d,
            nn.AlphaDropout,
            nn.FeatureAlphaDropout,
            nn.Identity,
        ),
        _same,
    ),
    nn.ReLU: _calls(entry.NAMES["relu"]),
    nn.Sigmoid: _calls(entry.NAMES["sigmoid"]),
    nn.Tanh: _calls(entry.NAMES["tanh"]),
    nn.LeakyReLU: _calls(entry.leaky_relu, "negative_slope"),
    nn.ELU: _calls(entry.elu, "alpha"),
    nn.SELU: _calls(entry.selu),
    nn.CELU: _calls(entry.celu, "alpha"),
    nn.PReLU: _calls(entry.prelu, "weight"),
    nn.RReLU: _calls(entry.rrelu, "lower", "upper"),
    nn.GELU: _calls(entry.gelu, "approximate"),
    nn.SiLU: _calls(entry.silu),
    nn.Mish: _calls(entry.mish),
    nn.Softplus: _calls(entry.softplus, "beta", "threshold"),
    nn.LogSigmoid: _calls(entry.log_sigmoid),
    nn.Hardtanh: _calls(entry.hardtanh, "min_val", "max_val"),
    nn.ReLU6: _calls(entry.relu6),
    nn.Hardsigmoid: _calls(entry.hardsigmoid),
    nn.Hardswish: _calls(entry.hardswish),
    nn.Softsign: _calls(entry.softsign),
    nn.GLU: _calls(entry.glu, "dim"),
    nn.Softmax: _calls(softmax_over("softmax"), "dim"),
    nn.LogSoftmax: _calls(softmax_over("log_softmax"), "dim"),
    nn.Flatten: _calls(flatten, "start_dim", "end_dim"),
    nn.Unflatten: _calls(unflatten, "dim", "unflattened_size"),
    nn.Embedding: _calls(embedding, "weight"),
    nn.BatchNorm1d: batch_norm,
    nn.BatchNorm2d: batch_norm,
    pyg_norm.BatchNorm: pyg_batch_norm,
    pyg_norm.HeteroBatchNorm: hetero_batch_norm,
    pyg_norm.InstanceNorm: instance_norm,
    nn.LayerNorm: layer_norm,
    aggr.SumAggregation: _aggregation("sum"),
    aggr.MeanAggregation: _aggregation("mean"),
    aggr.MaxAggregation: _aggregation("max"),
    aggr.MinAggregation: _aggregation("min"),
    aggr.MulAggregation: _aggregation("mul"),
}
NAMES: dict[str, Rule] = {
    "layer_norm": functional_layer_norm,
    "batch_norm": functional_batch_norm,
    "instance_norm": functional_instance_norm,
}
