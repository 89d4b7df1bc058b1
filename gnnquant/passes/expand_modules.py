"""Recurrent, bilinear, attention and per-type layers become linear layers and elementwise operations."""

from __future__ import annotations

import inspect
import operator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import fx, nn

from gnnquant.passes.base import Pass, PassResult, remove_dead_nodes
from gnnquant.passes.rewriting import Builder, argument, call_name, shape_of

if TYPE_CHECKING:
    from collections.abc import Callable

    Expansion = Callable[["_Layer"], Any]


@dataclass(frozen=True)
class ExpandModules(Pass):
    """Write layers that are made of several matrix products as those products.

    Quantizers and backends then see ordinary linear layers. Covered are ``GRUCell``, ``LSTMCell``,
    ``RNNCell``; ``GRU``, ``LSTM`` and ``RNN`` over a number of steps that does not depend on the graph
    (the layers of ``JumpingKnowledge``); ``Bilinear``; ``MultiheadAttention`` and ``TransformerEncoder``;
    PyG's ``HeteroLinear`` and ``HeteroDictLinear``.

    Given::

        h = call_module[rnn](x, h0)                          GRUCell

    Result::

        gi = ops.linear(x, None, rnn.weight_ih, None, rnn.bias_ih)
        gh = ops.linear(h0, None, rnn.weight_hh, None, rnn.bias_hh)
        r, z, n = chunk(gi, 3, -1); ...                      the gates, elementwise
        h = n + z * (h0 - n)

    Where a layer has an option that is not covered, it stays as it is and the note says why.
    """

    name: ClassVar[str] = "expand-modules"

    def run(self, module: fx.GraphModule) -> PassResult:
        """Expand every such layer that is called."""
        expansions = _expansions()
        changed, notes = 0, []
        waiting = list(module.graph.nodes)
        while waiting:
            node = waiting.pop(0)
            if node.op != "call_module":
                continue
            layer = module.get_submodule(str(node.target))
            expand = expansions.get(type(layer))
            if expand is None:
                continue
            known = set(module.graph.nodes)
            result = expand(_Layer(Builder(module, node), layer, str(node.target), node))
            if isinstance(result, str):
                notes.append(f"{node.target}: {type(layer).__name__} stays: {result}")
                continue
            _replace(node, result)
            module.graph.erase_node(node)
            changed += 1
            # A layer may be made of layers that are to be expanded in their turn.
            waiting = [new for new in module.graph.nodes if new not in known] + waiting
        remove_dead_nodes(module)
        return PassResult(changed, tuple(notes))


def _expansions() -> dict[type[nn.Module], Expansion]:
    from torch_geometric.nn.dense.linear import HeteroDictLinear, HeteroLinear

    return {
        nn.GRUCell: _cell,
        nn.LSTMCell: _cell,
        nn.RNNCell: _cell,
        nn.GRU: _recurrent,
        nn.LSTM: _recurrent,
        nn.RNN: _recurrent,
        nn.Bilinear: _bilinear,
        nn.MultiheadAttention: _attention,
        nn.TransformerEncoderLayer: _encoder_layer,
        nn.TransformerEncoder: _encoder,
        HeteroLinear: _hetero_linear,
        HeteroDictLinear: _hetero_dict_linear,
    }


def _replace(node: fx.Node, value: Any) -> None:
    """Let the users of ``node`` read ``value``: a node, or a nested tuple or dict of nodes."""
    if isinstance(value, fx.Node):
        node.replace_all_uses_with(value)
        return
    for user in list(node.users):
        if user.target is operator.getitem:
            _replace(user, value[user.args[1]])
            user.graph.erase_node(user)
        else:
            user.args, user.kwargs = fx.node.map_arg(
                (user.args, user.kwargs), lambda operand: value if operand is node else operand
            )


@dataclass
class _Layer:
    """A call of a layer that is being expanded.

    Attributes:
        build: Writes the nodes.
        layer: The module.
        path: Its qualified name.
        node: The call.
    """

    build: Builder
    layer: Any
    path: str
    node: fx.Node

    def arguments(self) -> dict[str, Any]:
        """The arguments of the call by name, defaults included."""
        bound = inspect.signature(self.layer.forward).bind(*self.node.args, **self.node.kwargs)
        bound.apply_defaults()
        return dict(bound.arguments)

    def parameter(self, name: str) -> fx.Node | None:
        """A parameter of the layer, where it has one of that name."""
        if operator.attrgetter(name)(self.layer) is None:
            return None
        return self.build.parameter(f"{self.path}.{name}")

    def linear(self, x: fx.Node, weight: str, bias: str, name: str) -> fx.Node:
        """A linear layer on parameters of this layer; ``name`` tells its sites apart."""
        kernel = self.parameter(weight)
        assert kernel is not None
        return self.build.linear(x, kernel, self.parameter(bias), f"{self.path}.{name}")

    def add(self, x: fx.Node | None, y: fx.Node | None) -> fx.Node | None:
        """``x + y``, where ``None`` is zero."""
        if x is None or y is None:
            return x if y is None else y
        return self.build.call("add", x, y)

    def mul(self, x: fx.Node, y: fx.Node | None) -> fx.Node | None:
        """``x * y``, where ``None`` is zero."""
        return None if y is None else self.build.call("mul", x, y)

    def chunks(self, x: fx.Node | None, count: int) -> list[fx.Node | None]:
        """``x`` cut along its last axis."""
        if x is None:
            return [None] * count
        parts = self.build.call("chunk", x, count, -1)
        return [self.build.call(operator.getitem, parts, index) for index in range(count)]

    def function(self, target: Any, x: fx.Node | None) -> fx.Node:
        """An elementwise function of a sum that has at least one term."""
        assert x is not None
        return self.build.call(target, x)


# ---------------------------------------------------------------- recurrent layers

State = tuple[fx.Node, ...]


def _step(call: _Layer, kind: str, gi: fx.Node, gh: fx.Node | None, state: State | None) -> State:
    """One step of a cell, from its products with the input and with the hidden state."""
    build = call.build
    if kind == "GRU":
        reset_i, update_i, new_i = call.chunks(gi, 3)
        reset_h, update_h, new_h = call.chunks(gh, 3)
        reset = call.function(torch.sigmoid, call.add(reset_i, reset_h))
        update = call.function(torch.sigmoid, call.add(update_i, update_h))
        new = call.function(torch.tanh, call.add(new_i, call.mul(reset, new_h)))
        kept = build.call("sub", state[0], new) if state else build.call("neg", new)
        return (build.call("add", new, build.call("mul", update, kept)),)
    if kind == "LSTM":
        gates = call.chunks(call.add(gi, gh), 4)
        let_in, forget, out = (call.function(torch.sigmoid, gates[i]) for i in (0, 1, 3))
        cell = call.mul(let_in, call.function(torch.tanh, gates[2]))
        if state:
            cell = call.add(call.mul(forget, state[1]), cell)
        assert cell is not None
        return build.call("mul", out, build.call(torch.tanh, cell)), cell
    squash = torch.relu if call.layer.nonlinearity == "relu" else torch.tanh
    return (call.function(squash, call.add(gi, gh)),)


def _cell(call: _Layer) -> Any:
    values = call.arguments()
    x, given = values["input"], values["hx"]
    if len(shape_of(x) or ()) != 2:
        return "its input is not [N, F]"
    state: State | None = None
    if given is not None:
        state = tuple(given) if isinstance(given, (tuple, list)) else (given,)
    kind = type(call.layer).__name__.removesuffix("Cell")
    gi = call.linear(x, "weight_ih", "bias_ih", "ih")
    gh = _hidden(call, state, "weight_hh", "bias_hh", "hh")
    result = _step(call, kind, gi, gh, state)
    return result if kind == "LSTM" else result[0]


def _hidden(call: _Layer, state: State | None, weight: str, bias: str, name: str) -> fx.Node | None:
    """The product with the hidden state; the bias alone where that is zero."""
    if state is None:
        return call.parameter(bias)
    return call.linear(state[0], weight, bias, name)


def _recurrent(call: _Layer) -> Any:
    layer, build = call.layer, call.build
    values = call.arguments()
    x, given = values["input"], values["hx"]
    shape = shape_of(x)
    if shape is None or len(shape) != 3:
        return "its input is not [N, steps, F]"
    axis = 1 if layer.batch_first else 0
    if not _is_static(x, axis):
        return "its number of steps depends on the graph"
    if getattr(layer, "proj_size", 0):
        return "it has a projection (proj_size)"
    kind = type(layer).__name__
    states = [] if given is None else list(given) if isinstance(given, (tuple, list)) else [given]
    last: list[State] = []
    for depth in range(layer.num_layers):
        if depth and layer.dropout:
            owner, _, stem = call.path.rpartition(".")
            x = build.submodule(owner, f"{stem}_dropout", nn.Dropout(layer.dropout), x)
        outputs = []
        for suffix in ("", "_reverse")[: 2 if layer.bidirectional else 1]:
            start = tuple(build.call("select", item, 0, len(last)) for item in states) or None
            steps, final = _run(call, x, axis, f"_l{depth}{suffix}", start)
            outputs.append(build.call(torch.stack, steps, dim=axis))
            last.append(final)
        x = outputs[0] if len(outputs) == 1 else build.call(torch.cat, outputs, dim=-1)
    finals = tuple(build.call(torch.stack, list(parts), dim=0) for parts in zip(*last, strict=True))
    return x, finals if kind == "LSTM" else finals[0]


def _run(
    call: _Layer, x: fx.Node, axis: int, suffix: str, state: State | None
) -> tuple[list[fx.Node], State]:
    """All steps of one direction of one layer: outputs in the order of ``x``, and the last state."""
    kind = type(call.layer).__name__
    count = x.meta["shape"][axis]
    inputs = call.linear(x, f"weight_ih{suffix}", f"bias_ih{suffix}", f"ih{suffix}")
    outputs: dict[int, fx.Node] = {}
    for step in reversed(range(count)) if suffix.endswith("_reverse") else range(count):
        gi = call.build.call("select", inputs, axis, step)
        gh = _hidden(call, state, f"weight_hh{suffix}", f"bias_hh{suffix}", f"hh{suffix}")
        state = _step(call, kind, gi, gh, state)
        outputs[step] = state[0]
    assert state is not None
    return [outputs[step] for step in range(count)], state


def _is_static(node: fx.Node, axis: int) -> bool:
    """Whether the length of ``axis`` is the same for every graph: a stack of a list has its length."""
    if node.op == "placeholder":
        return axis > 0
    name = call_name(node)
    rank = len(shape_of(node) or ())
    if name == "stack":
        dim = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
        return isinstance(dim, int) and dim % rank == axis
    if name == "unsqueeze":
        dim = argument(node, 1, "dim")
        return isinstance(dim, int) and dim % rank == axis
    if name in ("view", "reshape") and len(node.args) == rank + 1:
        length = node.args[axis + 1]  # a length that depends on the graph is computed by a node
        return isinstance(length, int) and length > 0
    if name in ("relu", "tanh", "elu", "leaky_relu", "contiguous", "dropout") or node.op == "call_module":
        operand = node.all_input_nodes[0] if node.all_input_nodes else None
        shape = shape_of(operand)
        same = operand is not None and shape is not None and len(shape) == rank
        return same and _is_static(node.all_input_nodes[0], axis)
    return False


# ---------------------------------------------------------------- products of two inputs


def _bilinear(call: _Layer) -> Any:
    """``sum_j (x1 W_j) * x2_j``: the first product is a linear layer with all j as outputs."""
    build, layer = call.build, call.layer
    values = call.arguments()
    first, second = values["input1"], values["input2"]
    if shape_of(first) is None or shape_of(second) is None:
        return "its inputs are no tensors"
    weight = build.call("transpose", build.parameter(f"{call.path}.weight"), 1, 2)
    flat = build.call("reshape", weight, layer.out_features * layer.in2_features, layer.in1_features)
    products = build.linear(first, flat, None, call.path)
    products = build.call("unflatten", products, -1, (layer.out_features, layer.in2_features))
    weighted = build.call("mul", products, build.call("unsqueeze", second, -2))
    return call.add(build.call("sum", weighted, -1), call.parameter("bias"))


def _attention(call: _Layer) -> Any:
    build, layer = call.build, call.layer
    values = call.arguments()
    query, key, value = values["query"], values["key"], values["value"]
    if layer.bias_k is not None or layer.add_zero_attn:
        return "it has add_bias_kv or add_zero_attn"
    rank = len(shape_of(query) or ())
    if rank not in (2, 3):
        return "its query is not [L, F] or [B, L, F]"
    turned = rank == 3 and not layer.batch_first
    if turned:
        same = {node: build.call("transpose", node, 0, 1) for node in dict.fromkeys((query, key, value))}
        query, key, value = same[query], same[key], same[value]
    heads = [
        build.call("transpose", build.call("unflatten", part, -1, (layer.num_heads, layer.head_dim)), -3, -2)
        for part in _projections(call, query, key, value)
    ]
    queries = build.call("mul", heads[0], layer.head_dim**-0.5)
    scores = build.call(torch.matmul, queries, build.call("transpose", heads[1], -2, -1))
    for mask, is_padding in ((values["key_padding_mask"], True), (values["attn_mask"], False)):
        scores = _masked(build, scores, mask, is_padding, layer.num_heads)
    weights = build.call("softmax", scores, -1)
    if layer.dropout:
        dropped = build.submodule(call.path, "_dropout", nn.Dropout(layer.dropout), weights)
    else:
        dropped = weights
    mixed = build.call("transpose", build.call(torch.matmul, dropped, heads[2]), -3, -2)
    out = build.call("flatten", mixed, -2)
    out = call.linear(out, "out_proj.weight", "out_proj.bias", "out_proj")
    if turned:
        out = build.call("transpose", out, 0, 1)
    if not values["need_weights"]:
        return out, None
    return out, build.call("mean", dropped, -3) if values["average_attn_weights"] else dropped


def _projections(call: _Layer, query: fx.Node, key: fx.Node, value: fx.Node) -> list[Any]:
    """Queries, keys and values [.., L, F]."""
    build, layer, path = call.build, call.layer, call.path
    bias = call.parameter("in_proj_bias")
    if layer._qkv_same_embed_dim and query is key is value:
        weight = build.parameter(f"{path}.in_proj_weight")
        return call.chunks(build.linear(query, weight, bias, f"{path}.in_proj"), 3)
    width = layer.embed_dim
    results = []
    for index, (x, name) in enumerate(((query, "q_proj"), (key, "k_proj"), (value, "v_proj"))):
        rows = slice(index * width, (index + 1) * width)
        if layer._qkv_same_embed_dim:
            whole = build.parameter(f"{path}.in_proj_weight")
            weight = build.call(operator.getitem, whole, rows)
        else:
            weight = build.parameter(f"{path}.{name}_weight")
        part = None if bias is None else build.call(operator.getitem, bias, rows)
        results.append(build.linear(x, weight, part, f"{path}.{name}"))
    return results


def _masked(build: Builder, scores: fx.Node, mask: Any, is_padding: bool, heads: int) -> fx.Node:
    """Scores [.., H, L, S] with a mask that is true, or minus infinity, where nothing may be read."""
    if not isinstance(mask, fx.Node):
        return scores
    if is_padding:  # [.., S]
        mask = build.call("unsqueeze", build.call("unsqueeze", mask, -2), -2)
    elif len(mask.meta["shape"]) == 3 and len(scores.meta["shape"]) == 4:  # [B * H, L, S]
        mask = build.call("unflatten", mask, 0, (-1, heads))
    if mask.meta["dtype"] is torch.bool:
        return build.call("masked_fill", scores, mask, float("-inf"))
    return build.call("add", scores, mask)


def _encoder_layer(call: _Layer) -> Any:
    """Self-attention and two linear layers, each with a residual connection and a norm."""
    build, layer = call.build, call.layer
    values = call.arguments()
    x = values["src"]
    masks = {"attn_mask": values["src_mask"], "key_padding_mask": values["src_key_padding_mask"]}
    if shape_of(x) is None:
        return "its input is no tensor"

    def attended(value: fx.Node) -> fx.Node:
        pair = build.layer(f"{call.path}.self_attn", None, value, value, value, need_weights=False, **masks)
        mixed = build.call(operator.getitem, pair, 0)
        mixed.meta.update(shape=value.meta["shape"], dtype=value.meta["dtype"])
        return build.layer(f"{call.path}.dropout1", mixed.meta["shape"], mixed)

    def fed_forward(value: fx.Node) -> fx.Node:
        shape = value.meta["shape"]
        wide = build.layer(f"{call.path}.linear1", (*shape[:-1], layer.linear1.out_features), value)
        if isinstance(layer.activation, nn.Module):
            wide = build.layer(f"{call.path}.activation", wide.meta["shape"], wide)
        else:
            wide = build.call(layer.activation, wide)
        wide = build.layer(f"{call.path}.dropout", wide.meta["shape"], wide)
        out = build.layer(f"{call.path}.linear2", shape, wide)
        return build.layer(f"{call.path}.dropout2", shape, out)

    for block, norm in ((attended, "norm1"), (fed_forward, "norm2")):
        if layer.norm_first:
            inner = build.layer(f"{call.path}.{norm}", x.meta["shape"], x)
            x = build.call("add", x, block(inner))
        else:
            x = build.layer(f"{call.path}.{norm}", x.meta["shape"], build.call("add", x, block(x)))
    return x


def _encoder(call: _Layer) -> Any:
    build, layer = call.build, call.layer
    values = call.arguments()
    x = values["src"]
    if shape_of(x) is None:
        return "its input is no tensor"
    masks = {"src_mask": values["mask"], "src_key_padding_mask": values["src_key_padding_mask"]}
    if layer.enable_nested_tensor and masks["src_key_padding_mask"] is not None:
        return "it returns zeros for what is padded (enable_nested_tensor)"
    for index in range(len(layer.layers)):
        x = build.layer(f"{call.path}.layers.{index}", x.meta["shape"], x, **masks)
    if layer.norm is not None:
        x = build.layer(f"{call.path}.norm", x.meta["shape"], x)
    return x


# ---------------------------------------------------------------- one layer per type


def _hetero_linear(call: _Layer) -> Any:
    """Rows of each type in turn: selected, multiplied by the type's weight, put back in place."""
    build, layer = call.build, call.layer
    values = call.arguments()
    x, types = values["x"], values["type_vec"]
    if len(shape_of(x) or ()) != 2:
        return "its input is not [N, F]"
    weights = build.parameter(f"{call.path}.weight")
    biases = call.parameter("bias")
    rows = build.call("size", x, 0)
    out = build.call("new_zeros", x, rows, layer.out_channels)
    for index in range(layer.num_types):
        chosen = build.call("view", build.call("nonzero", build.call(operator.eq, types, index)), -1)
        # How many rows there are of a type is known in a run only: an even share stands in for it.
        chosen.meta.update(shape=(-(-x.meta["shape"][0] // layer.num_types),), dtype=torch.int64)
        selected = build.call("index_select", x, 0, chosen)
        weight = build.call("t", build.call(operator.getitem, weights, index))
        bias = None if biases is None else build.call(operator.getitem, biases, index)
        part = build.linear(selected, weight, bias, call.path)
        out = build.call("index_copy", out, 0, chosen, part)
    return out


def _hetero_dict_linear(call: _Layer) -> Any:
    given = call.arguments()["x_dict"]
    if not isinstance(given, dict):
        return "its input is not a dictionary of tensors"
    names = {layer: name for name, layer in call.layer.lins.named_children()}
    result = {}
    for key, layer in call.layer.lins.items():
        if key in given:
            path = f"{call.path}.lins.{names[layer]}"
            bias = None if layer.bias is None else call.build.parameter(f"{path}.bias")
            weight = call.build.parameter(f"{path}.weight")
            result[key] = call.build.linear(given[key], weight, bias, path)
    return result
