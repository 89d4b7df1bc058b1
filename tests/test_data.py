"""Model inputs taken from Data by name, and what may be iterated over."""

import pytest
import torch
from torch import Tensor, nn
from torch_geometric.data import Batch, Data, HeteroData, TemporalData
from torch_geometric.loader import DataLoader
from torch_geometric.nn import GCNConv, HeteroConv, SAGEConv, Sequential

import gnnquant
from gnnquant import InputError
from gnnquant.data import iterate, labelled_part, model_inputs


class Model(nn.Module):
    def forward(
        self,
        x: Tensor,
        edge_index: Tensor,
        edge_weight: Tensor | None = None,
        batch: Tensor | None = None,
    ) -> Tensor:
        return x


class NeedsBatch(nn.Module):
    def forward(self, x: Tensor, edge_index: Tensor, batch: Tensor) -> Tensor:
        return x


class NeedsSize(nn.Module):
    def forward(self, x: Tensor, num_nodes: int) -> Tensor:
        return x


def graph(**extra: Tensor) -> Data:
    return Data(x=torch.ones(3, 2), edge_index=torch.tensor([[0, 1], [1, 2]]), **extra)


def test_inputs_are_taken_by_name_and_missing_defaults_left_out() -> None:
    found = model_inputs(Model(), graph(y=torch.zeros(3)))
    assert list(found) == ["x", "edge_index"]
    weighted = model_inputs(Model(), graph(edge_weight=torch.ones(2)))
    assert list(weighted) == ["x", "edge_index", "edge_weight"]


def test_a_batch_gives_its_batch_vector() -> None:
    batch = next(iter(DataLoader([graph(), graph()], batch_size=2)))
    assert model_inputs(NeedsBatch(), batch)["batch"].tolist() == [0, 0, 0, 1, 1, 1]


def test_a_derived_attribute_serves_a_required_parameter() -> None:
    assert model_inputs(NeedsSize(), graph())["num_nodes"] == 3


def test_a_missing_required_input_is_named() -> None:
    with pytest.raises(InputError, match=r"NeedsBatch.forward needs 'batch'.*edge_index, x.*inputs="):
        model_inputs(NeedsBatch(), graph())


def test_inputs_may_rename_attributes() -> None:
    data = graph(adjacency_weight=torch.ones(2))
    found = model_inputs(Model(), data, {"edge_weight": "adjacency_weight"})
    assert list(found) == ["x", "edge_index", "edge_weight"]


def test_inputs_may_be_a_function_to_a_dict_or_a_tuple() -> None:
    data = graph()
    found = model_inputs(Model(), data, lambda data: {"x": data.x, "edge_index": data.edge_index})
    assert list(found) == ["x", "edge_index"]
    found = model_inputs(Model(), data, lambda data: (data.x, data.edge_index))
    assert list(found) == ["x", "edge_index"]


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({"features": "x"}, "'features'"),
        ({"edge_weight": "nowhere"}, "no 'nowhere'"),
        (lambda data: {"features": data.x}, "'features'"),
        (lambda data: data.x, "dict or a tuple"),
        (lambda data: (1, 2, 3, 4, 5), "5 values for the 4 parameters"),
    ],
)
def test_wrong_inputs_are_refused(inputs, words: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(InputError, match=words):
        model_inputs(Model(), graph(), inputs)


def test_a_model_that_hides_its_parameters_is_refused() -> None:
    with pytest.raises(InputError, match="names no parameters"):
        model_inputs(Sequential("x, edge_index", [(GCNConv(2, 2), "x, edge_index -> x")]), graph())


class OnData(nn.Module):
    """Unannotated, as most are written."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = GCNConv(2, 2)

    def forward(self, data):  # type: ignore[no-untyped-def]
        return self.conv(data.x, data.edge_index)


class OnTyped(nn.Module):
    def forward(self, scale: float, inputs: "Data | Batch", x: Tensor) -> Tensor:
        return inputs.x * scale + x


class OnUnion(nn.Module):
    def forward(self, everything: HeteroData | None = None) -> Tensor | None:
        return None


class OnBatchVector(nn.Module):
    def forward(self, x: Tensor, batch: Tensor) -> Tensor:
        return x


class OnTypes(nn.Module):
    def forward(self, x_dict, edge_index_dict, edge_attr_dict=None, weight_dict=None):  # type: ignore[no-untyped-def]
        return x_dict


def hetero(nodes: int = 3) -> HeteroData:
    data = HeteroData()
    data["a"].x, data["b"].x = torch.randn(nodes, 2), torch.randn(nodes + 1, 2)
    data["a"].y = torch.arange(nodes) % 2
    data["a", "to", "b"].edge_index = torch.tensor([[0, 1, 2], [2, 1, 0]])
    data["b", "of", "a"].edge_index = torch.tensor([[3, 1, 2], [2, 1, 0]])
    return data


def test_a_parameter_that_takes_a_graph_is_given_the_graph() -> None:
    data = graph(scale=torch.ones(1))
    assert model_inputs(OnData(), data) == {"data": data}
    found = model_inputs(OnTyped(), data)
    assert found["inputs"] is data
    assert found["x"] is data.x
    typed = hetero()
    assert model_inputs(OnUnion(), typed) == {"everything": typed}
    batch = Batch.from_data_list([graph(), graph()])
    assert model_inputs(OnBatchVector(), batch)["batch"] is batch.batch
    assert model_inputs(OnData(), data, {"data": "x"})["data"] is data.x


def test_a_traced_model_says_what_takes_a_graph() -> None:
    traced = gnnquant.convert(OnData(), (graph(),), bits=8)
    data = graph()
    assert model_inputs(traced, data)["data"] is data
    by_name = gnnquant.convert(GCNConv(2, 2), (graph().x, graph().edge_index), bits=8)
    assert model_inputs(by_name, data)["x"] is data.x


def test_attributes_of_types_are_dictionaries() -> None:
    data = hetero()
    found = model_inputs(OnTypes(), data)
    assert list(found) == ["x_dict", "edge_index_dict"]
    assert list(found["x_dict"]) == ["a", "b"]
    data["a", "to", "b"].edge_attr = torch.ones(3, 1)
    assert list(model_inputs(OnTypes(), data)["edge_attr_dict"]) == [("a", "to", "b")]
    assert data.node_types == ["a", "b"]
    with pytest.raises(InputError, match="needs 'x', and the data has no 'x'"):
        model_inputs(Model(), data)
    assert data.node_types == ["a", "b"]


def test_labels_are_those_of_one_type() -> None:
    data = hetero()
    assert labelled_part(data) is data["a"]
    assert labelled_part(graph()).x is not None
    data["b"].y = torch.zeros(4)
    with pytest.raises(InputError, match="'a', 'b' have y"):
        labelled_part(data)
    data["b"].train_mask = torch.ones(4, dtype=torch.bool)
    assert labelled_part(data) is data["b"]
    assert "y" not in labelled_part(HeteroData())


class OnHetero(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        convs = {edge: SAGEConv((2, 2), 2) for edge in hetero().edge_types}
        self.conv = HeteroConv(convs)  # type: ignore[no-untyped-call]

    def forward(self, data: HeteroData) -> Tensor:
        found: Tensor = self.conv(data.x_dict, data.edge_index_dict)["a"]
        return found


@pytest.mark.parametrize("typed", [False, True])
def test_whole_graphs_from_calibration_to_compiled_code(typed: bool) -> None:
    """``data`` is all that a user passes anywhere."""
    torch.manual_seed(0)
    data: Data | HeteroData = hetero(20) if typed else graph(y=torch.tensor([0, 1, 1]))
    part = labelled_part(data)
    part.train_mask = torch.ones(part.y.size(0), dtype=torch.bool)
    model: nn.Module = OnHetero() if typed else OnData()
    q = gnnquant.convert(model, (data,), bits=8)
    gnnquant.calibrate(q, data)
    gnnquant.finetune(q, data, epochs=2, teacher=model, progress=False)
    with torch.no_grad():
        wanted = q(data)
    compiled = gnnquant.compile(q, (data,), target="reference")
    torch.testing.assert_close(compiled(data), wanted, rtol=1e-4, atol=1e-5)


def test_one_graph_and_loaders_can_be_iterated_again() -> None:
    data = graph()
    assert list(iterate(data)) == [data]
    loader = DataLoader([graph(), graph(), graph()], batch_size=2)
    assert len(list(iterate(loader))) == len(list(iterate(loader))) == 2


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (iter([graph()]), "only once"),
        (TemporalData(), "not a"),
        ([graph(), 3], "list of int"),
        (3, "not a int"),
    ],
)
def test_what_is_not_graphs_is_refused(wrong, words: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(InputError, match=words):
        list(iterate(wrong))
