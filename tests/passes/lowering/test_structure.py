"""Which operations a model becomes."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import nn
from torch_geometric import nn as gnn
from torch_geometric.utils import scatter

from tests.passes.lowering.helpers import index_ops, lowered, ops
from tests.zoo import mlp, random_graph

GRAPH = random_graph()
X, EDGES, WEIGHT, BATCH = GRAPH
ATTRIBUTES = torch.randn(EDGES.size(1), 3)


def test_gcn_is_a_product_and_a_sparse_product() -> None:
    graph = lowered(gnn.GCNConv(7, 6), X, EDGES, bits=8)
    root = {"from_index": 1, "sqrt": 1, "rdiv": 1, "eq": 1, "where": 1, "constant": 1}
    rest = {"input": 1, "quantize": 2, "gemm": 1, "spmm": 1, "mul": 1, "constant": 1, "add": 1}
    assert ops(graph) == Counter(root) + Counter(rest)
    (csr,) = [node for node in graph.index if node.op == "graph"]
    assert csr.attrs["loops"] == "remaining"
    assert csr.inputs[2:] == ("x_rows", "x_rows")


def test_gat_makes_no_edge_values_as_wide_as_nodes() -> None:
    graph = lowered(gnn.GATConv(7, 4, heads=2), X, EDGES, bits=8)
    edges = [node for node in graph.nodes if node.rows.startswith("csr")]
    assert edges
    assert max(node.columns for node in edges) == 4  # two numbers for each head
    assert all(node.op != "exp" for node in edges)
    assert ops(graph)["spmm"] == ops(graph)["segment_softmax"] == 1


def test_edge_network_runs_in_the_order_of_its_aggregation() -> None:
    graph = lowered(gnn.EdgeConv(mlp(14, 6)), X, EDGES)
    assert ops(graph)["segment_reduce"] == 1
    gathers = [node for node in graph.nodes if node.op == "gather"]
    assert {node.attrs["index"] for node in gathers} == {"csr.src", "csr.dst"}
    assert index_ops(graph) == {"rows": 1, "index_input": 2, "graph": 1}


def test_edge_features_are_moved_once() -> None:
    graph = lowered(gnn.GINEConv(mlp(7, 6), edge_dim=3), X, EDGES, ATTRIBUTES)
    moved = [node for node in graph.nodes if node.attrs.get("index") == "csr.edge_id"]
    assert len(moved) == 1
    assert moved[0].inputs == ("edge_attr",)


def test_features_of_loops_are_means_over_the_edges_that_come_in() -> None:
    graph = lowered(gnn.GATConv(7, 4, edge_dim=3), X, EDGES, ATTRIBUTES)
    loops = {node.attrs["loops"] for node in graph.index if node.op == "graph"}
    assert loops == {"remove", "replace"}
    assert [node.attrs["reduce"] for node in graph.nodes if node.op == "segment_reduce"] == ["mean"]


def test_pooling_by_batch_is_a_graph_from_nodes_to_graphs() -> None:
    class Pool(nn.Module):
        def forward(self, x: torch.Tensor, batch: torch.Tensor) -> torch.Tensor:
            return gnn.global_mean_pool(x, batch)

    graph = lowered(Pool(), X, BATCH)
    assert ops(graph) == {"input": 1, "float_spmm": 1}
    assert index_ops(graph)["extent"] == 1
    checks = [node.attrs["message"] for node in graph.index if node.op == "same_size"]
    assert len(checks) == 1
    assert "'x'" in checks[0]
    assert "'batch'" in checks[0]


def test_flipped_edges_are_another_graph_of_the_same_list() -> None:
    graph = lowered(gnn.DirGNNConv(gnn.GCNConv(7, 6)), X, EDGES)
    inputs = [node.inputs[:2] for node in graph.index if node.op == "graph"]
    assert inputs == [("edge_index[0]", "edge_index[1]"), ("edge_index[1]", "edge_index[0]")]


def test_edges_of_a_type_are_selected_in_the_index_program() -> None:
    kinds = torch.arange(EDGES.size(1)) % 3
    graph = lowered(gnn.RGCNConv(7, 6, 3), X, EDGES, kinds)
    assert index_ops(graph)["nonzero"] == 3
    assert index_ops(graph)["graph"] == 3


@pytest.mark.filterwarnings("ignore:Sparse")  # of torch, whose sparse tensors are in beta state
def test_sparse_input_is_an_adjacency() -> None:
    adjacency = torch.sparse_coo_tensor(EDGES.flip(0), torch.ones(EDGES.size(1)), (20, 20)).coalesce()
    graph = lowered(gnn.SAGEConv(7, 6), X, adjacency.to_sparse_csr())
    assert [item.kind for item in graph.inputs] == ["rows", "adjacency"]
    assert ops(graph)["float_spmm"] == 1


def test_nested_inputs_and_results() -> None:
    kinds = [("a", "to", "b"), ("b", "back", "a")]
    model = gnn.HeteroConv({kind: gnn.SAGEConv((7, 7), 6) for kind in kinds})
    features = {"a": X, "b": X[:9]}
    edges = {("a", "to", "b"): EDGES % 9, ("b", "back", "a"): EDGES % 9}
    graph = lowered(model, features, edges)
    assert {item.name for item in graph.inputs} >= {"args_dict[0][a]", "args_dict[1][a,to,b]"}
    assert graph.result == {"dict": [["b", {"output": 0}], ["a", {"output": 1}]]}


def test_what_no_output_needs_is_left_out() -> None:
    class Unused(nn.Module):
        def forward(self, x: torch.Tensor, edge_index: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
            scatter(x[edge_index[0]], edge_index[1], dim=0)
            return x * 2

    graph = lowered(Unused(), X, EDGES, X)
    assert ops(graph) == {"input": 1, "mul": 1}
    assert graph.parameters[2].tree == {"unused": True}


def test_parameters_are_folded() -> None:
    model = nn.utils.parametrizations.weight_norm(nn.Linear(7, 6, bias=False))
    graph = lowered(model, X)
    assert ops(graph) == {"input": 1, "float_gemm": 1}


@pytest.mark.parametrize("bits", [8, 2])
def test_quantizers_without_range_can_be_looked_at(bits: int) -> None:
    graph = lowered(gnn.GCNConv(7, 6), X, EDGES, bits=bits)
    assert {node.attrs["bits"] for node in graph.nodes if node.op == "quantize"} == {bits}
