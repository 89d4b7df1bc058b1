"""Features that are quantized ahead of the calls."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

import gnnquant
from gnnquant.errors import BackendError, InputError
from tests import zoo

if TYPE_CHECKING:
    from pathlib import Path


def converted(name: str, bits: int) -> gnnquant.QuantizedModule:
    data = zoo.random_graph(40, 160, seed=1)
    q = gnnquant.convert(zoo.build(name), (data.x, data.edge_index), bits=bits)
    gnnquant.calibrate(q, [(data.x, data.edge_index)])
    return q


@pytest.mark.parametrize(("name", "bits"), [("gcn", 8), ("gcn", 2), ("sage_mean", 4), ("gat", 4)])
def test_results_are_those_of_floats(name: str, bits: int) -> None:
    q = converted(name, bits)
    plain = gnnquant.compile(q, target="reference")
    model = gnnquant.compile(q, threads=2, prepared_features=True)
    for nodes, edges in ((50, 300), (7, 0), (50, 200)):
        data = zoo.random_graph(nodes, edges, seed=nodes)
        wanted = plain(data.x, data.edge_index)
        features = model.prepare_features(data.x)
        assert repr(features) == f"FeatureHandle(x, num_rows={nodes})"
        graph = model.prepare(data.edge_index, nodes)
        for call in ((features, data.edge_index), (features, graph), (data.x, graph), (features, graph)):
            assert torch.equal(model(*call), wanted)


def test_a_handle_keeps_codes_only() -> None:
    data = zoo.random_graph(60, 100)
    model = gnnquant.compile(converted("gcn", 2), prepared_features=True)
    features = model.prepare_features(data.x)
    wanted = model(data.x, data.edge_index)
    data.x.mul_(0)
    assert torch.equal(model(features, data.edge_index), wanted)
    held = {name: array for name, array in features.prepared.items() if not name.startswith("extent.")}
    assert all(name.startswith(("codes.", "scale.")) for name in held)
    assert sum(array.nbytes for name, array in held.items() if name.startswith("codes.")) < data.x.numel() * 4


def test_numpy_in_numpy_out_also_after_saving(tmp_path: Path) -> None:
    data = zoo.random_graph(30, 90)
    model = gnnquant.compile(converted("gcn", 8), prepared_features=True)
    model.save(tmp_path / "model.gnnq")
    loaded = gnnquant.load(tmp_path / "model.gnnq")
    x, edges = data.x.numpy(), data.edge_index.numpy()
    found = loaded(loaded.prepare_features(x), edges)
    assert isinstance(found, np.ndarray)
    np.testing.assert_array_equal(found, model(x, edges))


def test_what_cannot_be_prepared_is_refused() -> None:
    data = zoo.random_graph(30, 90)
    q = converted("gcn", 4)
    with pytest.raises(InputError, match="prepared_features=True"):
        gnnquant.compile(q).prepare_features(data.x)
    with pytest.raises(InputError, match="prepared_features=True"):
        gnnquant.compile(q, target="reference").prepare_features(data.x)
    one, other = (gnnquant.compile(q, prepared_features=True) for _ in range(2))
    with pytest.raises(InputError, match="prepared by another model"):
        other(one.prepare_features(data.x), data.edge_index)
    with pytest.raises(InputError, match="NaN"):
        one.prepare_features(data.x * torch.nan)
    with pytest.raises(InputError, match="float32"):
        one.prepare_features(data.x.double())
    with pytest.raises(InputError, match="30 nodes"):
        one(one.prepare_features(data.x[:20]), one.prepare(data.edge_index, 30))
    floats = gnnquant.convert(zoo.build("gcn"), (data.x, data.edge_index), bits=32)
    with pytest.raises(BackendError, match="compile without prepared_features"):
        gnnquant.compile(floats, prepared_features=True)
