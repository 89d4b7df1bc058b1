"""Lowering and the reference interpreter against the converted model."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import gnnquant
from gnnquant.errors import BackendError, InputError
from gnnquant.integer_graph import PackedWeight, pack_codes, unpack_codes
from gnnquant.passes.lowering import lower
from gnnquant.quantizers.calibration import calibrate
from tests import zoo
from tests.parity import code_differences, converted, reference

LOWERED = [
    "gcn", "sage_mean", "sage_max", "gin", "gat", "appnp", "residual_gcn", "jumping_gcn",
    "pyg_gcn", "pyg_gat", "edge_conv",
]  # fmt: skip


@pytest.mark.parametrize("name", LOWERED)
@pytest.mark.parametrize("bits", [32, 8, 4, 2])
def test_reference_equals_the_model(name: str, bits: int) -> None:
    """The interpreted integer graph computes what the fake-quantized model does in eval mode."""
    q, interpreted = converted(name, bits), reference(name, bits)
    for nodes, edges in zoo.GRAPH_SIZES:
        graph = zoo.random_graph(nodes, edges, seed=nodes)
        with torch.no_grad():
            wanted = q(graph.x, graph.edge_index)
        got = interpreted(graph.x, graph.edge_index)
        # A rounding tie moves one code by one step; everything else agrees to float32 precision.
        close = torch.isclose(got, wanted, rtol=1e-4, atol=1e-5)
        assert float(close.float().mean()) >= 0.999


@pytest.mark.parametrize("name", ["gcn", "sage_mean", "gat", "residual_gcn", "edge_conv"])
@pytest.mark.parametrize("bits", [8, 4, 2])
def test_codes_agree_site_by_site(name: str, bits: int) -> None:
    """Every code of the reference equals the fake quantizer's, but for counted ties of one step."""
    q = converted(name, bits)
    graph = zoo.random_graph(500, 3000, seed=9)
    for site, difference in code_differences(q, graph.x, graph.edge_index).items():
        assert float(difference.max()) <= 1, site
        assert float((difference > 0).float().mean()) <= 0.001, site


def test_nodes_are_found_by_name_in_a_program_that_changes() -> None:
    graph = lower(converted("gcn", 2))
    first, *others = graph.nodes
    assert graph[first.name] is first
    graph.nodes = [*others, first]
    assert all(graph[node.name] is node for node in (first, *others))
    graph.nodes.pop()
    with pytest.raises(KeyError):
        graph[first.name]


def test_weights_are_packed_at_their_width() -> None:
    """A 2-bit weight takes 2 bits."""
    graph = lower(converted("gcn", 2))
    for weight in graph.weights.values():
        assert weight.data.nbytes == -(-weight.shape[0] * weight.shape[1] // 4)
        assert set(np.unique(weight.integers)) <= {-3, -1, 1, 3}


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_packing_round_trips(bits: int) -> None:
    """Codes survive packing, whatever their number."""
    codes = np.random.default_rng(0).integers(0, 2**bits, 1001).astype(np.uint8)
    packed = pack_codes(codes, bits)
    assert packed.nbytes == -(-1001 * bits // 8)
    np.testing.assert_array_equal(unpack_codes(packed, bits, 1001), codes)
    weight = PackedWeight(bits, 2**bits, (7, 143), packed, np.ones(143, np.float32))
    assert weight.integers.min() >= -(2 ** (bits - 1))


def test_uncalibrated_models_are_refused() -> None:
    """The error says what to call."""
    q = gnnquant.convert(zoo.build("gcn"), bits=8)
    with pytest.raises(BackendError, match="calibrate"):
        gnnquant.compile(q, target="reference")
    with pytest.raises(BackendError, match="convert"):
        gnnquant.compile(zoo.build("gcn"), target="reference")
    with pytest.raises(BackendError, match="threads"):
        gnnquant.compile(q, target="reference", threads=0)


def test_reference_checks_its_graph() -> None:
    """Indices out of range are an InputError with the position."""
    graph = zoo.random_graph()
    wrong = graph.edge_index.clone()
    wrong[1, 3] = 99
    with pytest.raises(InputError, match="99"):
        reference("gcn", 8)(graph.x, wrong)


def test_edge_weights_are_an_input() -> None:
    """Optional edge weights that were given in tracing are an input of the compiled model."""
    model = zoo.build("pyg_gcn").eval()
    graph = zoo.random_graph(50, 200)
    example = {"x": graph.x, "edge_index": graph.edge_index, "edge_weight": graph.edge_weight}
    q = calibrate(gnnquant.convert(model, example, bits=8), [example])
    compiled = gnnquant.compile(q, target="reference")
    other = zoo.random_graph(31, 90, seed=3)
    with torch.no_grad():
        wanted = q(other.x, other.edge_index, edge_weight=other.edge_weight)
    got = compiled(other.x, other.edge_index, edge_weight=other.edge_weight)
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)
