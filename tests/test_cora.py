"""The whole road on real data: Cora, from GNNQUANT_DATA."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

import gnnquant
from gnnquant.datasets import load_dataset
from gnnquant.demo_models import GCN

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
    gnnquant.finetune(model, cora, epochs=20, lr=0.01, seed=0, progress=False)
    return model


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_trained_model_survives_lowering(cora: Data, trained: torch.nn.Module, bits: int) -> None:
    """Codes differ in rounding ties only, classes hardly ever, and compiled code in no bit."""
    q = gnnquant.convert(trained, bits=bits)
    gnnquant.finetune(q, cora, epochs=3, teacher=trained, seed=0, progress=False)
    seen: dict[str, torch.Tensor] = {}
    for site in q.sites.values():
        if site.kind != "weight":
            q.get_submodule(site.quantizer).register_forward_hook(
                lambda module, args, out, name=site.name: seen.update(
                    {name: out.codes + int(module.zero2) / 2}
                )
            )
    with torch.no_grad():
        scores = q.eval()(cora.x, cora.edge_index)
    reference = gnnquant.compile(q, target="reference")
    executor = reference._executor
    prepared = executor.prepare({"edge_index": cora.edge_index.numpy()}, cora.num_nodes)
    values = executor.evaluate(prepared, {"x": cora.x.numpy()}, cora.num_nodes)
    assert len(seen) == 4
    for name, codes in seen.items():
        difference = (values[name].codes - codes).abs()
        assert float(difference.max()) <= 1, name
        assert float((difference > 0).float().mean()) <= 0.001, name
    expected = reference(cora.x, cora.edge_index)
    same = scores.argmax(dim=1) == expected.argmax(dim=1)
    assert float(same.float().mean()) >= 0.999
    compiled = gnnquant.compile(q, threads=2)
    assert torch.equal(compiled(cora.x, cora.edge_index), expected)


def test_int2_learns(cora: Data, trained: torch.nn.Module) -> None:
    """A few epochs of distillation recover most of what rounding to 2 bits costs."""
    q = gnnquant.convert(trained, bits=2)
    gnnquant.finetune(q, cora, epochs=15, teacher=trained, seed=0, progress=False)

    def accuracy(model: torch.nn.Module) -> float:
        with torch.no_grad():
            right = model.eval()(cora.x, cora.edge_index).argmax(dim=1) == cora.y
        return float(right[cora.val_mask].float().mean())

    assert accuracy(q) > accuracy(trained) - 0.05
