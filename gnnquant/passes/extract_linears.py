"""Products with a parameter become explicit linear layers."""

from __future__ import annotations

import math
import string
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import fx, nn

from gnnquant.passes.base import Pass, PassResult, remove_dead_nodes
from gnnquant.passes.constants import Constants, weight_name
from gnnquant.passes.rewriting import Builder, argument, call_name, is_float, shape_of

MAX_SPLIT = 64
"""Most linear layers that one product with stacked weights is split into."""


@dataclass(frozen=True)
class ExtractLinears(Pass):
    """Write every product of a value and a parameter as :func:`gnnquant.quantizers.ops.linear`.

    The parameter may be any expression of parameters (a slice, a transpose, a sum of bases, weight
    norm); products are linear modules, ``F.linear``, ``matmul`` and its relatives, and ``einsum``.

    Given::

        y = call_module[conv.lin](x)                                 [N, K] -> [N, M]
        z = matmul(x, W)                                             W [K, M]
        a = matmul(h, S)                                             [S, N, K] and [S, K, M]

    Result::

        y = ops.linear(x, None, conv.lin.weight, None, conv.lin.bias)
        z = ops.linear(x, None, W.t(), None, None)                   y = x w^T + b
        a = stack([ops.linear(h.select(0, s), None, S[s].t(), None, None) for s in ...])

    Products of two computed values stay as they are.
    """

    name: ClassVar[str] = "extract-linears"
    provides: ClassVar[frozenset[str]] = frozenset({"linears-explicit"})

    def run(self, module: fx.GraphModule) -> PassResult:
        """Rewrite every product that has a constant operand."""
        constants = Constants(module)
        changed, notes = 0, []
        for node in list(module.graph.nodes):
            build = Builder(module, node)
            result = _module_call(build, node) or _function_call(build, constants, node)
            if isinstance(result, str):
                notes.append(f"{node.name}: {result}")
            elif result is not None:
                node.replace_all_uses_with(result)
                module.graph.erase_node(node)
                changed += 1
        remove_dead_nodes(module)
        return PassResult(changed, tuple(notes))


def _module_call(build: Builder, node: fx.Node) -> fx.Node | None:
    """``nn.Linear`` and PyG's ``Linear``."""
    from torch_geometric.nn.dense.linear import Linear as PygLinear

    if node.op != "call_module":
        return None
    layer = build.module.get_submodule(str(node.target))
    if type(layer).forward not in (nn.Linear.forward, PygLinear.forward):
        return None
    path = str(node.target)
    bias = None if layer.bias is None else build.parameter(f"{path}.bias")
    x = node.args[0] if node.args else next(iter(node.kwargs.values()))
    out = build.linear(x, build.parameter(f"{path}.weight"), bias, path)  # type: ignore[arg-type]
    out.meta.update(node.meta)
    return out


def _function_call(build: Builder, constants: Constants, node: fx.Node) -> fx.Node | str | None:
    """``F.linear`` and products; a text says why a product with a parameter stays."""
    if constants.is_constant(node):
        return None
    name = call_name(node)
    if name == "linear":
        return _linear_call(build, constants, node)
    scaled = _SCALED.get(name)
    if scaled is not None:
        return _scaled_product(build, constants, node, scaled)
    product = _product(node, name, constants)
    if product is None:
        return None
    found = product.with_constant_last(constants)
    return None if found is None else _emit(build, constants, found)


def _linear_call(build: Builder, constants: Constants, node: fx.Node) -> fx.Node | None:
    x, weight = argument(node, 0, "input"), argument(node, 1, "weight")
    bias = argument(node, 2, "bias")
    if not constants.is_constant(weight) or len(weight.meta["shape"]) != 2:
        return None
    out = build.linear(x, weight, bias, weight_name(constants.leaves(weight)))
    out.meta.update({key: value for key, value in node.meta.items() if key != "linear"})
    return out


# ---------------------------------------------------------------- products in Einstein's notation


@dataclass(frozen=True)
class _Product:
    """``einsum(f"{x_axes},{w_axes}->{out_axes}", x, w)``: one letter per axis."""

    x: fx.Node
    x_axes: str
    w: fx.Node
    w_axes: str
    out_axes: str

    def with_constant_last(self, constants: Constants) -> _Product | None:
        """The same product with the constant as ``w``; ``None`` if neither or both are constant."""
        if not is_float(self.x) or not is_float(self.w):
            return None
        is_constant = [constants.is_constant(operand) for operand in (self.x, self.w)]
        if sum(is_constant) != 1:
            return None
        if is_constant[1]:
            return self
        return _Product(self.w, self.w_axes, self.x, self.x_axes, self.out_axes)


def _product(node: fx.Node, name: str, constants: Constants) -> _Product | None:
    """The product that ``node`` computes, if it is one of two tensors."""
    if name == "einsum":
        return _einsum(node)
    if name not in ("matmul", "mm", "bmm", "mv", "rmatmul"):
        return None
    x, w = argument(node, 0, "input"), argument(node, 1, "mat2" if name in ("mm", "bmm") else "other")
    if w is None:
        w = argument(node, 1, "vec")
    if name == "rmatmul":
        x, w = w, x
    if call_name(w) == "expand" and len(shape_of(x) or ()) >= len(shape_of(w) or ()):
        assert isinstance(w, fx.Node)
        if constants.is_constant(w.args[0]):  # the product repeats it along the axes of x anyway
            w = w.args[0]
    return _matrix_product(x, w)


def _matrix_product(x: Any, w: Any) -> _Product | None:
    """Axes of ``matmul``: batch axes aligned from the right, an axis of length 1 repeats."""
    x_shape, w_shape = shape_of(x), shape_of(w)
    if not x_shape or not w_shape:
        return None
    batch = string.ascii_lowercase[: max(len(x_shape), len(w_shape))]
    x_axes = batch[len(batch) - max(len(x_shape) - 2, 0) :] if len(x_shape) > 2 else ""
    w_axes = batch[len(batch) - max(len(w_shape) - 2, 0) :] if len(w_shape) > 2 else ""
    out_axes = max(x_axes, w_axes, key=len)
    rows, columns = ("" if len(x_shape) == 1 else "I"), ("" if len(w_shape) == 1 else "J")
    return _Product(x, f"{x_axes}{rows}K", w, f"{w_axes}K{columns}", f"{out_axes}{rows}{columns}")


def _einsum(node: fx.Node) -> _Product | None:
    equation, *operands = node.args
    if len(operands) == 1 and isinstance(operands[0], (tuple, list)):
        operands = list(operands[0])
    if not isinstance(equation, str) or len(operands) != 2 or "." in equation:
        return None
    left, arrow, out = equation.replace(" ", "").partition("->")
    x_axes, _, w_axes = left.partition(",")
    if not arrow:
        letters = sorted(set(x_axes + w_axes))
        out = "".join(letter for letter in letters if (x_axes + w_axes).count(letter) == 1)
    if any(len(set(axes)) != len(axes) for axes in (x_axes, w_axes, out)):
        return None
    x, w = operands
    if shape_of(x) is None or shape_of(w) is None:
        return None
    return _Product(x, x_axes, w, w_axes, out)  # type: ignore[arg-type]


def _emit(build: Builder, constants: Constants, product: _Product) -> fx.Node | str:
    """The product as one linear layer, or as one for each of its stacked weights."""
    product = _without_ones(build, product)
    x_axes, w_axes, out_axes = product.x_axes, product.w_axes, product.out_axes
    shared = [axis for axis in w_axes if axis in x_axes and axis in out_axes]
    summed = [axis for axis in x_axes if axis in w_axes and axis not in out_axes]
    lone = [axis for axis in x_axes + w_axes if axis not in out_axes and axis not in summed]
    if not summed or lone:
        return "it is no matrix product"
    if x_axes[0] in summed:
        return "it sums over the rows of its operand"
    if shared:
        sizes = dict(zip(product.w_axes, product.w.meta["shape"], strict=True))
        if math.prod(sizes[axis] for axis in shared) > MAX_SPLIT:
            return f"its weights are a stack of more than {MAX_SPLIT} matrices"
        return _split(build, constants, product, shared[0], sizes[shared[0]])
    return _one_linear(build, constants, product, "".join(summed))


def _without_ones(build: Builder, product: _Product) -> _Product:
    """Drop axes of length 1 that repeat: x [1, N, K] with W [S, K, M] is one layer with S * M outputs."""
    for axis in set(product.x_axes) & set(product.w_axes) & set(product.out_axes):
        x_position, w_position = product.x_axes.index(axis), product.w_axes.index(axis)
        if product.w.meta["shape"][w_position] == 1:
            w = build.call("select", product.w, w_position, 0)
            product = replace(product, w=w, w_axes=product.w_axes.replace(axis, ""))
        elif product.x.meta["shape"][x_position] == 1:
            x = build.call("select", product.x, x_position, 0)
            product = replace(product, x=x, x_axes=product.x_axes.replace(axis, ""))
    return product


def _split(build: Builder, constants: Constants, product: _Product, axis: str, count: int) -> fx.Node | str:
    parts = []
    for index in range(count):
        x = build.call("select", product.x, product.x_axes.index(axis), index)
        w = build.call("select", product.w, product.w_axes.index(axis), index)
        axes = [text.replace(axis, "") for text in (product.x_axes, product.w_axes, product.out_axes)]
        part = _emit(build, constants, _Product(x, axes[0], w, axes[1], axes[2]))
        if isinstance(part, str):
            return part
        parts.append(part)
    return build.call(torch.stack, parts, dim=product.out_axes.index(axis))


def _one_linear(build: Builder, constants: Constants, product: _Product, summed: str) -> fx.Node:
    """A product without shared axes: all free axes of the weight become outputs."""
    x_free = "".join(axis for axis in product.x_axes if axis not in summed)
    w_free = "".join(axis for axis in product.w_axes if axis not in summed)
    x = _permuted(build, product.x, product.x_axes, x_free + summed)
    if len(summed) > 1:
        x = build.call("flatten", x, -len(summed), -1)
    weight, outputs = _weight(build, constants, product, w_free, summed)
    out = build.linear(x, weight, None, weight_name(constants.leaves(product.w)))
    if not w_free:
        out = build.call("squeeze", out, -1)
    elif len(w_free) > 1:
        out = build.call("unflatten", out, -1, outputs)
    return _permuted(build, out, x_free + w_free, product.out_axes)


def _weight(
    build: Builder, constants: Constants, product: _Product, w_free: str, summed: str
) -> tuple[fx.Node, tuple[int, ...]]:
    """The weight [M, K], and the axes that M consists of."""
    sizes = dict(zip(product.w_axes, product.w.meta["shape"], strict=True))
    outputs = tuple(sizes[axis] for axis in w_free)
    if len(w_free) == len(summed) == 1 and product.w_axes == summed + w_free:
        return _transposed(build, constants, product.w), outputs
    weight = _permuted(build, product.w, product.w_axes, w_free + summed)
    if len(w_free) != 1 or len(summed) != 1:
        inputs = math.prod(sizes[axis] for axis in summed)
        weight = build.call("reshape", weight, math.prod(outputs), inputs)
    return weight, outputs


def _transposed(build: Builder, constants: Constants, weight: fx.Node) -> fx.Node:
    """``weight.t()``; of a weight that is a transpose itself, what it is the transpose of."""
    operand = weight.all_input_nodes[0] if len(weight.all_input_nodes) == 1 else None
    swaps = weight.args[1:] in ((0, 1), (1, 0), (-1, -2), (-2, -1))
    if call_name(weight) == "t" or (call_name(weight) == "transpose" and swaps):
        assert operand is not None
        if constants.is_constant(operand):
            return operand
    return build.call("t", weight)


def _permuted(build: Builder, value: fx.Node, axes: str, wanted: str) -> fx.Node:
    if axes == wanted:
        return value
    return build.call("permute", value, tuple(axes.index(axis) for axis in wanted))


# ---------------------------------------------------------------- beta * input + alpha * product

_SCALED = {
    "addmm": ("mat1", "mat2"),
    "addmv": ("mat", "vec"),
    "baddbmm": ("batch1", "batch2"),
}
"""Function -> names of its two factors."""


def _scaled_product(
    build: Builder, constants: Constants, node: fx.Node, factors: tuple[str, str]
) -> fx.Node | str | None:
    added, x, w = argument(node, 0, "input"), argument(node, 1, factors[0]), argument(node, 2, factors[1])
    beta, alpha = node.kwargs.get("beta", 1), node.kwargs.get("alpha", 1)
    product = _matrix_product(x, w)
    found = None if product is None else product.with_constant_last(constants)
    if found is None:
        return None
    out = _emit(build, constants, found)
    if isinstance(out, str):
        return out
    if alpha != 1:
        out = build.call("mul", out, alpha)
    if beta == 0:
        return out
    return build.call("add", out, added if beta == 1 else build.call("mul", added, beta))
