"""One scale for all codes as a factor of the sum."""

from __future__ import annotations

import pytest
from torch_geometric import nn as gnn

from gnnquant import QuantConfig, QuantSpec
from gnnquant.passes.lowering.factor_norms import factor_norms
from gnnquant.passes.lowering.factor_scales import factor_scales
from tests.backends.tvm import graphs
from tests.passes.lowering.helpers import assert_rounded_elsewhere, lowered
from tests.zoo import random_graph

X, EDGES, WEIGHT, _ = random_graph()
TENSOR = QuantConfig(activations=QuantSpec(granularity="tensor"))


@pytest.mark.parametrize("weighted", [False, True])
def test_sums_with_weights_are_multiplied_afterwards(weighted: bool) -> None:
    weights = (WEIGHT,) if weighted else ()
    graph = lowered(gnn.GCNConv(7, 6), X, EDGES, *weights, bits=8, config=TENSOR)
    graph.verify()
    (total,) = (node for node in graph.nodes if node.op == "spmm")
    quantizer = graph[total.inputs[0]]
    assert total.attrs["unscaled"]
    (product,) = graph.users(total.name)
    # with the root of the degree of the destination, where there are no weights
    factor = product if weighted else graph[product.inputs[1]]
    assert (product.op, factor.op, factor.attrs["scalar"]) == ("mul", "mul", quantizer.attrs["scale"])


def test_other_sums_stay_as_they_are() -> None:
    """Scales of rows belong to the edges, and without weights there is nothing to be rounded."""
    for layer, config in ((gnn.GCNConv(7, 6), None), (gnn.SAGEConv(7, 6), TENSOR)):
        graph = lowered(layer, X, EDGES, bits=8, config=config)
        assert all("unscaled" not in node.attrs for node in graph.nodes)
        assert factor_scales(graph).nodes == graph.nodes


@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize("reduce", ["sum", "mean"])
@pytest.mark.parametrize(("nodes", "edges"), [(1, 0), (6, 0), (9, 3), (40, 300)])
def test_only_the_order_of_products_changes(heads: int, reduce: str, nodes: int, edges: int) -> None:
    m = graphs.Maker(3)
    x = m.input("x", 6)
    g = m.graph(x)
    q = m.quantize(x, 4, 16, "tensor")
    weight = m.edge_input("edge_weight", g, heads)
    norm = m.add("gcn_norm", (), (), g, fill=1.0)
    plain = m.finish(m.spmm(q, g, weight, reduce, heads), m.spmm(q, g, norm, reduce))
    factored = factor_scales(factor_norms(plain))
    factored.verify()
    assert sum(node.attrs.get("unscaled", False) for node in factored.nodes) == 2
    assert_rounded_elsewhere(plain, factored, nodes, edges)
