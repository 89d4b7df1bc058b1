"""The whole road on real data: Cora, from GNNQUANT_DATA."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

import gnnquant
from gnnquant.backends.onnx.session import OnnxSession
from gnnquant.datasets import load_dataset
from gnnquant.demo_models import GCN
from gnnquant.passes.lowering import lower
from tests.parity import code_differences

if TYPE_CHECKING:
    from torch_geometric.data import Data

ROOT = os.environ.get("GNNQUANT_DATA", "")

pytestmark = pytest.mark.skipif(
    not (Path(ROOT) / "Cora" / "raw" / "ind.cora.x").is_file(),
    reason="GNNQUANT_DATA does not name a folder with Cora/raw",
)


@pytest.fixture(scope="module")
def cora() -> Data:
    return load_dataset("Cora")


@pytest.fixture(scope="module")
def trained(cora: Data) -> torch.nn.Module:
    torch.manual_seed(0)
    model = GCN(cora.num_features, 7)
    gnnquant.finetune(model, cora, epochs=100, lr=0.01, seed=0, progress=False)
    return model


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_trained_model_survives_lowering(
    cora: Data, trained: torch.nn.Module, bits: int, tmp_path: Path
) -> None:
    """Codes differ in rounding ties only, classes hardly ever (in ONNX too), and compiled code in no bit."""
    q = gnnquant.convert(trained, bits=bits)
    gnnquant.finetune(q, cora, epochs=3, teacher=trained, seed=0, progress=False)
    differences = code_differences(q, cora.x, cora.edge_index)
    assert len(differences) == 4
    for name, difference in differences.items():
        assert float(difference.max()) <= 1, name
        assert float((difference > 0).float().mean()) <= 0.001, name
    with torch.no_grad():
        scores = q(cora.x, cora.edge_index)
    reference = gnnquant.compile(q, target="reference")
    expected = reference(cora.x, cora.edge_index)
    same = scores.argmax(dim=1) == expected.argmax(dim=1)
    assert float(same.float().mean()) >= 0.999
    compiled = gnnquant.compile(q, threads=2)
    assert torch.equal(compiled(cora.x, cora.edge_index), expected)
    gnnquant.export_onnx(q, tmp_path / "cora.onnx")
    exported = OnnxSession(lower(q), tmp_path / "cora.onnx", threads=1)(cora.x, cora.edge_index)
    assert float((exported.argmax(dim=1) == expected.argmax(dim=1)).float().mean()) >= 0.999


def test_int2_learns(cora: Data, trained: torch.nn.Module) -> None:
    """A few epochs of distillation recover most of what rounding to 2 bits costs."""
    q = gnnquant.convert(trained, bits=2)
    gnnquant.finetune(q, cora, epochs=15, teacher=trained, seed=0, progress=False)

    def accuracy(model: torch.nn.Module) -> float:
        with torch.no_grad():
            right = model.eval()(cora.x, cora.edge_index).argmax(dim=1) == cora.y
        return float(right[cora.val_mask].float().mean())

    assert accuracy(q) > accuracy(trained) - 0.05
