"""``print(q)``: the table of sites."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch_geometric import nn as gnn

import gnnquant
from gnnquant.quantizers.calibration import calibrate
from tests.passes.rewrites import FEATURES, inputs

K = FEATURES


def _table(model: nn.Module, example: tuple[Any, ...]) -> tuple[list[str], dict[str, str]]:
    torch.manual_seed(0)
    q = gnnquant.convert(model, example, bits=4)
    assert str(q) == repr(q) == q.summary()
    header = [line for line in str(q).splitlines() if not line.startswith(tuple(q.sites))]
    return header, {line.split()[0]: line for line in str(q).splitlines() if line.startswith(tuple(q.sites))}


def test_what_runs_as_what() -> None:
    header, lines = _table(gnn.GAT(K, 8, 2, 5, heads=2), inputs())
    assert header[0].startswith("4-bit model: 6 sites, ")
    assert header[1].split() == ["site", "kind", "shape", "bits", "scales", "range", "runs", "as"]
    assert lines["convs.0.message"].endswith("fused attention")
    assert lines["convs.0.lin.input"].endswith("integer GEMM")
    assert lines["convs.0.lin.weight"].endswith("integer GEMM")
    _, lines = _table(gnn.GCN(K, 8, 2, 5, jk="cat"), inputs())
    assert lines["convs.0.message"].endswith("integer SpMM")
    assert any(line.endswith("8-bit storage") for line in lines.values())
    _, lines = _table(gnn.EdgeConv(nn.Sequential(nn.Linear(2 * K, 8), nn.ReLU(), nn.Linear(8, 5))), inputs())
    assert lines["message"].endswith("edge function in blocks")
    assert lines["nn.2.input"].endswith("integer GEMM on edges")
    assert " 64 x 8 " in lines["nn.2.input"]


def test_ranges_are_unset_before_calibration() -> None:
    torch.manual_seed(0)
    q = gnnquant.convert(gnn.GCN(K, 8, 2, 5), inputs(), bits=4)
    by_site = {line.split()[0]: line for line in q.summary().splitlines()}
    assert " unset " in by_site["convs.0.message"]
    assert " at most " in by_site["convs.0.lin.weight"]
    calibrate(q, [inputs()])
    assert "unset" not in q.summary()
    assert " of the row " in q.summary()


def test_a_model_that_cannot_be_compiled_says_why() -> None:
    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.pool = gnn.GCNConv(K, 8), gnn.TopKPooling(8)

        def forward(self, x: torch.Tensor, edge_index: torch.Tensor) -> torch.Tensor:
            return self.pool(self.conv(x, edge_index), edge_index)[0]

    header, lines = _table(Pooled(), inputs())
    assert header[1].startswith("float: cannot lower ")
    assert all(line.endswith("float") for line in lines.values())


def test_without_quantizers_there_is_a_header_only() -> None:
    q = gnnquant.convert(gnn.GCN(K, 8, 2, 5), inputs(), bits=32)
    assert q.summary().splitlines()[0].startswith("32-bit model: 0 sites")
    assert len(q.summary().splitlines()) == 1
