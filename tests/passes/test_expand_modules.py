"""``expand-modules``: layers of several products, checked against torch's own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch_geometric.nn import HeteroLinear

from gnnquant.passes.expand_modules import ExpandModules
from gnnquant.quantizers import ops
from tests.passes.rewrites import FEATURES, calls, inputs, rewrite

HIDDEN = 5


class Cell(nn.Module):
    def __init__(self, cell: nn.Module, steps: int, *, is_pair: bool = False) -> None:
        super().__init__()
        self.cell, self.steps, self.is_pair = cell, steps, is_pair

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        state: Any = None
        for _ in range(self.steps):
            state = self.cell(x, state)
        return state[0] + state[1] if self.is_pair else state


class Recurrent(nn.Module):
    def __init__(self, layer: nn.Module, axis: int) -> None:
        super().__init__()
        self.layer, self.axis = layer, axis

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        out, last = self.layer(torch.stack([x, 2 * x, x - 1], dim=self.axis))
        last = last[0] if isinstance(last, tuple) else last
        return out.sum(self.axis) + last.sum()


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    "cell",
    [nn.GRUCell, nn.LSTMCell, nn.RNNCell, lambda *args, **kw: nn.RNNCell(*args, nonlinearity="relu", **kw)],
)
def test_cells(cell: Any, steps: int, bias: bool) -> None:
    layer = cell(FEATURES, HIDDEN, bias=bias)
    model = Cell(layer, steps, is_pair=isinstance(layer, nn.LSTMCell))
    module, result = rewrite(model, inputs(), ExpandModules())
    assert result.changed == steps
    assert not calls(module, type(layer))
    assert len(calls(module, ops.linear)) == 2 * steps - 1
    assert {node.meta["linear"] for node in calls(module, ops.linear)} <= {"cell.ih", "cell.hh"}


@pytest.mark.parametrize("kind", [nn.GRU, nn.LSTM, nn.RNN])
@pytest.mark.parametrize("options", [{}, {"bidirectional": True}, {"num_layers": 2, "dropout": 0.5}])
@pytest.mark.parametrize("axis", [0, 1])
def test_recurrent_layers_over_a_list_of_steps(kind: Any, options: dict[str, Any], axis: int) -> None:
    layer = kind(FEATURES, HIDDEN, batch_first=axis == 1, **options)
    module, result = rewrite(Recurrent(layer, axis), inputs(), ExpandModules())
    assert result.changed == 1
    assert not calls(module, kind)
    assert len(calls(module, nn.Dropout)) == (1 if "dropout" in options else 0)


def test_a_number_of_steps_that_depends_on_the_graph_stays() -> None:
    class Sequence(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gru = nn.GRU(FEATURES, HIDDEN, batch_first=True)

        def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
            return self.gru(x.unsqueeze(0))[0].squeeze(0)

    module, result = rewrite(Sequence(), inputs(), ExpandModules())
    assert len(calls(module, nn.GRU)) == 1
    assert "number of steps depends on the graph" in result.notes[0]


@pytest.mark.parametrize("kind", [nn.GRU, nn.LSTM])
@pytest.mark.parametrize("how", ["unsqueeze", "view"])
def test_one_step_with_a_state(kind: Any, how: str) -> None:
    class Step(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = kind(FEATURES, HIDDEN, num_layers=2)

        def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
            state: Any = x.new_zeros(2, x.size(0), HIDDEN)
            state = (state, state + 1) if kind is nn.LSTM else state
            for _ in range(2):
                step = x.unsqueeze(0) if how == "unsqueeze" else x.view(1, -1, FEATURES)
                out, state = self.layer(step, state)
            return out.squeeze(0)

    module, result = rewrite(Step(), inputs(), ExpandModules())
    assert result.changed == 2
    assert not calls(module, kind)


@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize("activation", ["relu", nn.GELU()])
def test_transformer_encoder(norm_first: bool, activation: Any) -> None:
    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            layer = nn.TransformerEncoderLayer(
                8, 2, 16, activation=activation, batch_first=True, norm_first=norm_first
            )
            self.encoder = nn.TransformerEncoder(layer, 2, nn.LayerNorm(8), enable_nested_tensor=False)

        def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
            return self.encoder(torch.cat([x, x[:, :1]], -1).view(4, -1, 8))

    module, result = rewrite(Encoder(), inputs(), ExpandModules())
    assert result.changed == 5
    assert not calls(module, nn.MultiheadAttention)
    assert len(calls(module, nn.Linear)) == 4
    assert len(calls(module, nn.LayerNorm)) == 5


def test_bilinear() -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pair = nn.Bilinear(FEATURES, FEATURES, HIDDEN)

        def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
            return self.pair(x, x * x)

    module, _ = rewrite(Pair(), inputs(), ExpandModules())
    assert len(calls(module, ops.linear)) == 1


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("options", [{}, {"bias": False}, {"kdim": 3, "vdim": 4}, {"batch_first": True}])
def test_attention(options: dict[str, Any], batched: bool) -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, dropout=0.3, **options)

        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            q = torch.cat([x, x[:, :1]], dim=-1)
            k, v = q[:, : options.get("kdim", 8)], q[:, : options.get("vdim", 8)]
            if batched:
                axis = 0 if options.get("batch_first") else 1
                q, k, v = (item.unsqueeze(axis) for item in (q, k, v))
            padding = mask.unsqueeze(0) if batched else mask
            out, weights = self.attention(q, k, v, key_padding_mask=padding)
            return out.sum() + weights

    x, _ = inputs()
    module, result = rewrite(Attention(), (x, torch.arange(len(x)) > 15), ExpandModules())
    assert result.changed == 1
    assert not calls(module, nn.MultiheadAttention)
    assert len(calls(module, torch.matmul)) == 2


def test_a_layer_per_type_selects_rows() -> None:
    class Typed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lin = HeteroLinear(FEATURES, HIDDEN, 3)

        def forward(self, x: Tensor, kind: Tensor) -> Tensor:
            return self.lin(x, kind)

    x, _ = inputs()
    module, result = rewrite(Typed(), (x, torch.arange(len(x)) % 3), ExpandModules())
    assert result.changed == 1
    assert len(calls(module, ops.linear)) == 3
    assert len(calls(module, "index_copy")) == 3
