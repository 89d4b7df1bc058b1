"""What a model may be called with: graph objects, dictionaries, sparse matrices, numbers."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn
from torch_geometric import EdgeIndex
from torch_geometric import nn as gnn
from torch_geometric.data import Batch, Data, HeteroData

from gnnquant.errors import InputError, TraceError
from gnnquant.tracing import synthesize_inputs, trace
from gnnquant.tracing.signature import Fields
from tests import zoo
from tests.tracing.exactness import assert_same

GRAPH, OTHER = zoo.random_graph(), zoo.random_graph(33, 150, seed=5)
EDGE_TYPES = [("a", "to", "b"), ("b", "rev", "a"), ("a", "self", "a")]


def as_data(graph):
    return Data(
        x=graph.x,
        edge_index=graph.edge_index,
        edge_weight=graph.edge_weight,
        batch=graph.batch,
        y=graph.batch + 1,
        train_mask=graph.batch > 0,
        name="somewhere",
    )


def as_hetero(a, b, edges):
    data = HeteroData()
    for name, count in (("a", a), ("b", b)):
        data[name].x, data[name].y = torch.randn(count, 7), torch.ones(count)
    counts = {"a": a, "b": b}
    for source, relation, target in EDGE_TYPES:
        rows = [torch.randint(counts[name], (edges,)) for name in (source, target)]
        data[source, relation, target].edge_index = torch.stack(rows)
    return data


class OnData(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.head = gnn.GCNConv(7, 8), nn.Linear(8, 3)

    def forward(self, data):
        x, edge_index = data.x, data.edge_index
        x = self.conv(x, edge_index, data.edge_weight).relu()
        x = nn.functional.dropout(x, training=self.training) / data.num_nodes
        return self.head(gnn.global_mean_pool(x, data["batch"]))


def test_data():
    model = OnData()
    module = trace(model, (as_data(GRAPH),))
    assert_same(model, module, as_data(OTHER))
    assert_same(model, pickle.loads(pickle.dumps(module)), as_data(OTHER))
    assert module.signature.inputs == {
        "data": Fields.fromkeys(("x", "edge_index", "edge_weight", "batch"), "a tensor")
    }
    placeholder = next(iter(module.graph.nodes))
    assert placeholder.meta["spec"]["x"] == {"shape": (20, 7), "dtype": torch.float32, "sparse": False}
    lean = as_data(OTHER)
    del lean.y, lean.train_mask, lean.name
    module.eval()
    assert torch.equal(module(lean), module(data=as_data(OTHER)))


def test_data_that_lacks_what_the_model_reads():
    module = trace(OnData(), {"data": as_data(GRAPH)})
    data = as_data(OTHER)
    del data.edge_weight
    with pytest.raises(InputError, match=r"'data' has no 'edge_weight'.*it has 'x', 'edge_index'"):
        module(data)
    with pytest.raises(InputError, match=r"'data' was .* is now a tensor"):
        module(data.x)


def test_attributes_that_are_no_tensors_are_left_out():
    class Net(nn.Module):
        def forward(self, data):
            return data.x * len(data.name)

    with pytest.raises(TraceError, match=r"itself fails on the example .*without name: no tensors"):
        trace(Net(), (as_data(GRAPH),))


def test_data_is_not_changed():
    class Net(nn.Module):
        def forward(self, data):
            data.x = data.x * 2
            data.x += data.x.mean()
            return data.x

    data = as_data(GRAPH)
    before = data.x.clone()
    module = trace(Net(), (data,))
    assert torch.equal(data.x, before)
    again = as_data(OTHER)
    assert torch.equal(module(again), Net()(as_data(OTHER)))


def test_an_example_with_data_is_made_up():
    inputs = synthesize_inputs(OnData())
    assert inputs["data"].x.shape == (20, 7)
    model = OnData()
    assert_same(model, trace(model), as_data(OTHER))


class OnBatch(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.head = gnn.GraphConv(7, 8), nn.Linear(8, 3)

    def forward(self, batch):
        x = self.conv(batch.x, batch.edge_index)
        x = gnn.global_add_pool(x, batch.batch, size=batch.num_graphs)
        return self.head(x) / batch.num_graphs + batch.u + batch.ptr.diff().view(-1, 1)


def test_batches_of_another_number_of_graphs():
    def batch(*graphs):
        return Batch.from_data_list(
            [Data(x=g.x, edge_index=g.edge_index, u=torch.randn(1, 3), smiles="CC") for g in graphs]
        )

    model = OnBatch()
    assert_same(model, trace(model, (batch(GRAPH, OTHER),)), batch(OTHER, GRAPH, OTHER))


class OnHetero(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = gnn.HeteroConv({edge: gnn.SAGEConv((7, 7), 4) for edge in EDGE_TYPES})

    def forward(self, data):
        out = self.conv(data.x_dict, data.edge_index_dict)
        return {
            "a": out["a"] + data["a"].x.mean() / data["a"].num_nodes,
            "b": out["b"] * data["a", "to", "b"].edge_index.size(1),
        }


def test_hetero_data():
    model = OnHetero()
    module = trace(model, (as_hetero(20, 10, 40),))
    assert_same(model, module, as_hetero(9, 14, 33))
    layout = module.signature.inputs["data"]
    assert layout["a"] == {"x": "a tensor"}
    assert set(layout) == {"a", "b", *EDGE_TYPES}


def test_objects_inside_of_containers():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = gnn.GCNConv(7, 8)

        def forward(self, pair, extra):
            return self.conv(pair[0].x, pair[0].edge_index) * extra["shift", 1] + pair[1]

    model = Net()
    module = trace(model, ((as_data(GRAPH), GRAPH.x[:, :1]), {("shift", 1): torch.tensor(2.0)}))
    assert_same(model, module, (as_data(OTHER), OTHER.x[:, :1]), {("shift", 1): torch.tensor(3.0)})


def sparse(graph, layout):
    n = graph.x.size(0)
    if layout == "EdgeIndex":
        return EdgeIndex(graph.edge_index, sparse_size=(n, n)).sort_by("col")[0]
    matrix = torch.sparse_coo_tensor(
        graph.edge_index.flip(0), graph.edge_weight, (n, n), check_invariants=True
    ).coalesce()
    return {"coo": lambda m: m, "csr": torch.Tensor.to_sparse_csr, "csc": torch.Tensor.to_sparse_csc}[layout](
        matrix
    )


class OnAdjacency(nn.Module):
    def __init__(self, conv):
        super().__init__()
        self.conv = conv

    def forward(self, x, adj):
        return self.conv(x, adj)


@pytest.mark.filterwarnings("ignore:Sparse CS. tensor support is in beta")
@pytest.mark.filterwarnings("ignore:(Converting sparse tensor to CSR|Sparse invariant checks)")
@pytest.mark.parametrize("layout", ["coo", "csr", "csc", "EdgeIndex"])
@pytest.mark.parametrize("conv", ["GCNConv", "SAGEConv", "GATConv", "GraphConv"])
def test_adjacency_matrices(conv, layout):
    if layout == "csc" and conv in ("GCNConv", "GATConv"):
        pytest.skip("PyG does not take it")
    model = OnAdjacency(getattr(gnn, conv)(7, 4))
    module = trace(model, (GRAPH.x, sparse(GRAPH, layout)))
    assert_same(model, module, OTHER.x, sparse(OTHER, layout))
    data = next(n for n in module.graph.nodes if n.target == "adj")
    assert data.meta["spec"]["sparse"] == (layout != "EdgeIndex")
    assert ("layout" in data.meta) == (layout != "EdgeIndex")


@pytest.mark.filterwarnings("ignore:Sparse CS. tensor support is in beta")
def test_an_adjacency_inside_of_data():
    class Net(OnAdjacency):
        def forward(self, data):
            return self.conv(data.x, data.adj_t)

    model = Net(gnn.GCNConv(7, 4))
    module = trace(model, (Data(x=GRAPH.x, adj_t=sparse(GRAPH, "csr")),))
    assert_same(model, module, Data(x=OTHER.x, adj_t=sparse(OTHER, "csr")))


class Bipartite(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = gnn.SAGEConv((7, 7), 4)

    def forward(self, x, edge_index, *, scale, mask=None):
        return self.conv(x, edge_index) * scale if mask is None else x[0]


@pytest.mark.parametrize(("first", "second"), [(2, 3), (2.5, 3.5), (torch.tensor(2.0), torch.tensor(3.0))])
def test_pairs_and_keyword_only_scalars(first, second):
    model = Bipartite()
    module = trace(model, {"x": (GRAPH.x, GRAPH.x[:19]), "edge_index": GRAPH.edge_index, "scale": first})
    assert_same(model, module, (OTHER.x, OTHER.x[:31]), OTHER.edge_index, scale=second)
    with pytest.raises(InputError, match="'mask' was None"):
        module((OTHER.x, OTHER.x), OTHER.edge_index, scale=second, mask=OTHER.x)


def test_a_dense_adjacency_is_redrawn():
    model = OnAdjacency(gnn.DenseGCNConv(7, 4))
    adj = (torch.rand(20, 20) < 0.3).float()
    module = trace(model, (GRAPH.x, adj))
    assert_same(model, module, OTHER.x, (torch.rand(33, 33) < 0.3).float())


def test_types_of_another_number_than_graphs():
    """A vector of types looks like a batch: a second graph with the same types is found, too."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = gnn.HeteroBatchNorm(7, 3)

        def forward(self, x, kinds):
            return self.norm(x, kinds)

    model = Net()
    module = trace(model, (GRAPH.x, torch.arange(20) * 3 // 20))
    assert_same(model, module, OTHER.x, torch.arange(33) % 3)


def test_example_on_another_device():
    with pytest.raises(TraceError, match=r"model is on cpu and example input 'x' on meta"):
        trace(
            copy.deepcopy(OnAdjacency(gnn.GCNConv(7, 4))), {"x": GRAPH.x.to("meta"), "adj": GRAPH.edge_index}
        )
