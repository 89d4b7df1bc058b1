"""Model inputs taken from Data by name, and what may be iterated over."""

import pytest
import torch
from torch import Tensor, nn
from torch_geometric.data import Data, HeteroData
from torch_geometric.loader import DataLoader
from torch_geometric.nn import GCNConv, Sequential

from gnnquant import InputError
from gnnquant.data import iterate, model_inputs


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


def test_one_graph_and_loaders_can_be_iterated_again() -> None:
    data = graph()
    assert list(iterate(data)) == [data]
    loader = DataLoader([graph(), graph(), graph()], batch_size=2)
    assert len(list(iterate(loader))) == len(list(iterate(loader))) == 2


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (iter([graph()]), "only once"),
        (HeteroData(), "not a"),
        ([HeteroData()], "list of HeteroData"),
        (3, "not a int"),
    ],
)
def test_what_is_not_graphs_is_refused(wrong, words: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(InputError, match=words):
        list(iterate(wrong))
