"""Numbers that multiply rows one after the other."""

from __future__ import annotations

import pytest
from torch_geometric import nn as gnn

from gnnquant import QuantConfig, QuantSpec
from gnnquant.passes.lowering.merge_factors import merge_factors
from tests.backends.tvm import graphs
from tests.passes.lowering.helpers import assert_rounded_elsewhere, lowered, ops
from tests.zoo import random_graph

X, EDGES, _, _ = random_graph()


def test_scale_and_norm_are_one_number_of_a_row() -> None:
    config = QuantConfig(activations=QuantSpec(granularity="tensor"))
    graph = lowered(gnn.GCNConv(7, 6), X, EDGES, bits=8, config=config)
    graph.verify()
    (total,) = (node for node in graph.nodes if node.op == "spmm")
    (product,) = graph.users(total.name)
    factor = graph[product.inputs[1]]
    assert (factor.columns, factor.rows) == (1, total.rows)
    assert [user.op for user in graph.users(product.name)] == ["add"]


@pytest.mark.parametrize(("nodes", "edges"), [(1, 0), (6, 0), (9, 3), (40, 300)])
def test_only_the_order_of_products_changes(nodes: int, edges: int) -> None:
    m = graphs.Maker(3)
    x, gate, other = m.input("x", 6), m.input("gate", 1), m.input("other", 1)
    rows = m.rows(x)
    numbers = [m.gather(name, m.index("arange", rows), rows) for name in (gate, other)]
    y = m.add("mul", (x,), (6,), scalar=0.3)
    y = m.add("mul", (numbers[0], y), (6,))
    y = m.add("mul", (y,), (6,), scalar=-7.0)
    y = m.add("mul", (y, numbers[1]), (6,))
    z = m.add("mul", (m.add("mul", (m.add("relu", (x,), (6,)),), (6,), scalar=3.0),), (6,), scalar=0.1)
    plain = m.finish(y, z)
    merged = merge_factors(plain)
    merged.verify()
    assert (ops(plain)["mul"], ops(merged)["mul"]) == (6, 4)
    assert sum(node.op == "mul" and node.columns > 1 for node in merged.nodes) == 2
    assert_rounded_elsewhere(plain, merged, nodes, edges)


@pytest.mark.parametrize("scalars", [(1e-30, 1e30), (1e15, 1e15), (0.0, 2.0), (float("inf"), 0.5)])
def test_what_could_overflow_or_vanish_stays(scalars: tuple[float, float]) -> None:
    m = graphs.Maker(3)
    y = m.input("x", 6)
    for scalar in scalars:
        y = m.add("mul", (y,), (6,), scalar=scalar)
    plain = m.finish(y)
    assert merge_factors(plain).nodes == plain.nodes


def test_what_is_read_elsewhere_stays() -> None:
    """A product that is an output, or of which something else is made, is computed anyway."""
    m = graphs.Maker(3)
    x = m.input("x", 6)
    first = m.add("mul", (x,), (6,), scalar=0.3)
    second = m.add("mul", (first,), (6,), scalar=0.2)
    third = m.add("mul", (second,), (6,), scalar=0.1)
    plain = m.finish(first, third, m.add("relu", (second,), (6,)))
    assert merge_factors(plain).nodes == plain.nodes


def test_numbers_of_other_rows_stay() -> None:
    """Products of two matrices, of single columns and of a number of the model are none of these."""
    m = graphs.Maker(3)
    x, narrow, weight = m.input("x", 6), m.input("narrow", 1), m.constant(6)
    y = m.add("mul", (m.add("mul", (x, x), (6,)),), (6,), scalar=0.5)
    y = m.add("mul", (m.add("mul", (y, weight), (6,)), m.constant(1)), (6,))
    z = m.add("mul", (m.add("mul", (narrow,), (1,), scalar=0.5),), (1,), scalar=0.5)
    plain = m.finish(y, z)
    assert merge_factors(plain).nodes == plain.nodes
