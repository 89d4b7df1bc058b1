"""The drivers: what they report, what they push, and that they only add a penalty."""

import copy
import math
import pickle
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import fx, nn
from torch_geometric.data import Data
from torch_geometric.nn import APPNP, PMLP, GATConv, GCNConv, SAGEConv
from torch_geometric.nn.conv.gcn_conv import gcn_norm

import gnnquant
from gnnquant import FineTuneError, InputError, Smoothness, SmoothPropagation, ir
from gnnquant.smoothness import LagrangianDriver, dirichlet_energy, mean_neighbour_distance, measure
from gnnquant.smoothness.lagrangian import LayerDriver
from tests import zoo
from tests.smoothness.test_functional import features, random_graph


class Layers(nn.Module):
    """Linear layers whose results are marked as updates."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(5, 5) for _ in range(count))

    def forward(self, x: torch.Tensor, edge_index: torch.Tensor) -> torch.Tensor:
        for index, layer in enumerate(self.layers):
            x = ir.update(layer(x), f"layers.{index}", 0).relu()
        return x


class MarkerTracer(fx.Tracer):
    """Keeps the marker as a node; a stand-in for the project's tracer."""

    def trace_markers(self, model: nn.Module) -> fx.GraphModule:
        graph = self.trace(model)
        for node in list(graph.nodes):
            if node.op == "call_module":
                position = int(node.target.split(".")[1])
                with graph.inserting_after(node):
                    marker = graph.call_function(ir.update, (node, f"layers.{position}", 0))
                node.replace_all_uses_with(marker, lambda user, marker=marker: user is not marker)
        return fx.GraphModule(model, graph)


def traced(count: int) -> fx.GraphModule:
    torch.manual_seed(0)
    return MarkerTracer().trace_markers(Layers(count))


def inputs() -> dict[str, torch.Tensor]:
    return {"x": features().float(), "edge_index": random_graph()}


def test_layer_driver_returns_the_models_output_and_the_excess() -> None:
    model = traced(3)
    driver = LagrangianDriver.create(model, Smoothness(bound=0.01))
    output, penalty = driver.forward(inputs())
    torch.testing.assert_close(output, model(**inputs()), rtol=0, atol=0)
    assert penalty is not None
    first = model.get_submodule("layers.0")(inputs()["x"]).detach()
    second = model.get_submodule("layers.1")(first.relu()).detach()
    edges = inputs()["edge_index"]
    change = (dirichlet_energy(second, edges) - dirichlet_energy(first, edges)).abs()
    reports = driver.report()
    assert [report.layer for report in reports] == ["layers.0", "layers.1", "layers.2"]
    assert reports[1].value == pytest.approx(float(change), abs=1e-6)
    assert reports[1].bound == pytest.approx(0.01)
    assert not reports[1].held
    assert math.isnan(reports[0].value)
    assert reports[0].bound == math.inf
    assert reports[0].held
    for report, value in zip(reports, (first, second), strict=False):
        assert report.energy == pytest.approx(float(dirichlet_energy(value, edges)), rel=1e-5)
        assert report.distance == pytest.approx(float(mean_neighbour_distance(value, edges)), rel=1e-5)


def test_gradient_of_the_penalty_equals_finite_differences() -> None:
    model = traced(3).double()
    driver = LayerDriver(model, Smoothness(bound=0.001, damping=2.0))
    driver.multipliers = torch.tensor([0.3, 0.1], dtype=torch.float64)
    x, edges = features(), random_graph()
    weight = model.get_submodule("layers.1").weight

    def penalty() -> torch.Tensor:
        value = driver.forward({"x": x, "edge_index": edges})[1]
        assert value is not None
        return value

    (gradient,) = torch.autograd.grad(penalty(), weight)
    step = 1e-6
    with torch.no_grad():
        for row, column in [(0, 0), (2, 3), (4, 1)]:
            weight[row, column] += step
            above = float(penalty())
            weight[row, column] -= 2 * step
            below = float(penalty())
            weight[row, column] += step
            assert float(gradient[row, column]) == pytest.approx((above - below) / (2 * step), abs=1e-7)


def test_multipliers_rise_while_the_bound_is_broken_and_fall_while_it_holds() -> None:
    model = traced(2)
    broken = LayerDriver(model, Smoothness(bound=1e-6))
    for _ in range(3):
        broken.forward(inputs())
        broken.ascend()
    assert broken.report()[1].multiplier > 0
    loose = LayerDriver(model, Smoothness(bound=1.9))
    loose.multipliers = torch.tensor([0.2])
    _, penalty = loose.forward(inputs())
    loose.ascend()
    assert 0 <= loose.report()[1].multiplier < 0.2
    assert loose.report()[1].held
    assert penalty is not None
    assert float(penalty.detach()) <= 0


def test_descent_and_ascent_reach_the_bound() -> None:
    """Min |w - w0|^2 under the constraint ends on the bound, not inside and not outside of it."""
    model = traced(2)
    bound = 0.02
    driver = LayerDriver(model, Smoothness(bound=bound, multiplier_lr=0.1, damping=5.0))
    start = {name: value.detach().clone() for name, value in model.named_parameters()}
    driver.forward(inputs())
    assert not driver.report()[1].held
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    for _ in range(600):
        _, penalty = driver.forward(inputs())
        distance = sum((value - start[name]).square().sum() for name, value in model.named_parameters())
        optimizer.zero_grad()
        (distance + penalty).backward()
        optimizer.step()
        driver.ascend()
    report = driver.report()[1]
    assert report.value == pytest.approx(bound, abs=1e-3)
    assert report.multiplier > 0


def test_propagation_driver_sets_the_constants_and_reports_every_step() -> None:
    model = SmoothPropagation(3, budget=0.2, multiplier_lr=1e-5).train()
    driver = LagrangianDriver.create(model, Smoothness(bound=0.05, multiplier_lr=1e-3))
    assert {step.budget for step in model.constraints} == {0.05}
    assert {step.multiplier_lr for step in model.constraints} == {1e-3}
    output, penalty = driver.forward(inputs())
    assert penalty is None
    assert output.shape == (12, 5)
    driver.ascend()
    reports = driver.report()
    assert [report.layer for report in reports] == [f"constraints.{k}" for k in range(3)]
    assert all(report.value > 0 and report.bound > 0 for report in reports)
    assert all(report.energy > 0 and report.distance > 0 for report in reports)
    assert reports[-1].energy == pytest.approx(
        float(dirichlet_energy(output, gcn_norm(inputs()["edge_index"], None, 12)[0])), rel=1e-5
    )
    assert not any(step.reporting for step in model.constraints)


def test_propagation_driver_keeps_the_layers_own_budget() -> None:
    model = SmoothPropagation(1, budget=0.07)
    LagrangianDriver.create(model, Smoothness())
    assert model.constraints[0].budget == 0.07


@pytest.mark.parametrize(("model", "words"), [(nn.Linear(2, 2), "neither"), (traced(1), "has 1")])
def test_a_model_with_nothing_to_constrain_is_refused(model: nn.Module, words: str) -> None:
    with pytest.raises(FineTuneError, match=words):
        LagrangianDriver.create(model, Smoothness())


def test_a_model_without_edge_index_is_refused() -> None:
    driver = LayerDriver(traced(2), Smoothness())
    with pytest.raises(FineTuneError, match="edge_index"):
        driver.forward({"x": features().float()})


@pytest.mark.parametrize("name", ["bound", "multiplier_lr", "slack_lr", "damping"])
def test_constants_must_be_positive(name: str) -> None:
    with pytest.raises(InputError, match=name):
        Smoothness(**{name: 0.0})


def graph(nodes: int = 30) -> Data:
    made = zoo.random_graph(nodes, 120, seed=4)
    y = torch.arange(nodes) % zoo.CLASSES
    mask = torch.arange(nodes) % 2 == 0
    return Data(x=made.x, edge_index=made.edge_index, y=y, train_mask=mask, val_mask=~mask)


class Gcn(nn.Module):
    LAYERS = ("conv1", "conv2")

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = GCNConv(zoo.FEATURES, 8)
        self.conv2 = GCNConv(8, zoo.CLASSES)

    def forward(self, x: torch.Tensor, edge_index: torch.Tensor) -> torch.Tensor:
        return self.conv2(self.conv1(x, edge_index).relu(), edge_index)


class Wide(nn.Module):
    LAYERS = ("convs.0", "convs.1", "convs.2")

    def __init__(self) -> None:
        super().__init__()
        widths = (zoo.FEATURES, 6, 11, zoo.CLASSES)
        self.convs = nn.ModuleList(SAGEConv(a, b) for a, b in pairwise(widths))

    def forward(self, x: torch.Tensor, edge_index: torch.Tensor) -> torch.Tensor:
        for conv in self.convs:
            x = conv(x.relu(), edge_index)
        return x


class Gat(nn.Module):
    LAYERS = ("conv1", "conv2")

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = GATConv(zoo.FEATURES, 3, heads=2)
        self.conv2 = GATConv(6, zoo.CLASSES)

    def forward(self, x: torch.Tensor, edge_index: torch.Tensor) -> torch.Tensor:
        return self.conv2(self.conv1(x, edge_index).relu(), edge_index)


class Steps(nn.Module):
    LAYERS = ("propagation", "propagation[1]", "propagation[2]")

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(zoo.FEATURES, zoo.CLASSES)
        self.propagation = APPNP(3, 0.1)

    def forward(self, x: torch.Tensor, edge_index: torch.Tensor) -> torch.Tensor:
        return self.propagation(self.linear(x), edge_index)


class Shared(nn.Module):
    LAYERS = ("conv", "conv[1]")

    def __init__(self) -> None:
        super().__init__()
        self.conv = GCNConv(zoo.FEATURES, zoo.FEATURES)

    def forward(self, x: torch.Tensor, edge_index: torch.Tensor) -> torch.Tensor:
        return self.conv(self.conv(x, edge_index).relu(), edge_index)


@pytest.mark.parametrize("bits", [2, 32])
@pytest.mark.parametrize("model", [Gcn, Wide, Gat, Steps, Shared])
def test_every_layer_of_a_converted_model_is_reported(model: type[nn.Module], bits: int) -> None:
    """Layers of different width, heads, steps of one layer, and a layer that is called twice."""
    torch.manual_seed(0)
    q, data = gnnquant.convert(model(), (graph().x, graph().edge_index), bits=bits), graph()
    result = gnnquant.finetune(q, data, epochs=2, smoothness=Smoothness(bound=1e-4), seed=0, progress=False)
    for record in result.history:
        assert [report.layer for report in record.smoothness] == list(model.LAYERS)
        assert all(report.energy > 0 and report.distance > 0 for report in record.smoothness)
    last = result.history[-1].smoothness
    assert all(report.multiplier > 0 for report in last[1:] if not report.held)
    assert not all(report.held for report in last)


def test_multipliers_stay_with_the_model() -> None:
    """They are reported at inference as training left them, copied, and further training goes on."""
    q, data = gnnquant.convert(Wide(), bits=4), graph()
    fresh = set(q.state_dict())
    tight = Smoothness(bound=1e-4, multiplier_lr=1.0)
    result = gnnquant.finetune(q, data, epochs=3, smoothness=tight, progress=False)
    assert set(q.state_dict()) == fresh
    left = [report.multiplier for report in result.history[-1].smoothness]
    assert max(left) > 0
    for model in (q, copy.deepcopy(q), pickle.loads(pickle.dumps(q))):
        for _ in range(2):
            reports = measure(model, data)
            assert [report.multiplier for report in reports] == left
            assert [report.bound for report in reports] == [math.inf, *[pytest.approx(1e-4)] * 2]
    more = gnnquant.finetune(q, data, epochs=1, smoothness=Smoothness(2, 1e-9), progress=False)
    assert [report.multiplier for report in more.history[0].smoothness] == pytest.approx(left, abs=1e-6)


def test_measuring_leaves_the_model_as_it_is() -> None:
    for model in (SmoothPropagation(2), gnnquant.convert(Wide(), bits=32)):
        model.train()
        state = copy.deepcopy(model.state_dict())
        reports = measure(model, graph(), smoothness=Smoothness(bound=0.07))
        assert model.training
        assert len(reports) == (3 if isinstance(model, fx.GraphModule) else 2)
        torch.testing.assert_close(model.state_dict(), state, rtol=0, atol=0)
        assert reports == measure(model, graph(), smoothness=Smoothness(bound=0.07))
    assert {step.budget for step in SmoothPropagation(2).constraints} == {0.2}


def test_measuring_reports_the_multipliers_of_propagation() -> None:
    layer = SmoothPropagation(2, initial=0.25)
    reports = measure(layer, graph(), smoothness=Smoothness(bound=0.07))
    assert [report.multiplier for report in reports] == [0.25, 0.25]
    edges = gcn_norm(graph().edge_index, None, 30)[0].size(1)
    assert [report.bound for report in reports] == pytest.approx([0.07 * edges] * 2)
    assert [report.bound for report in measure(layer, graph())] == pytest.approx([0.2 * edges] * 2)


def test_the_layers_of_train_mode_are_constrained_where_modes_differ() -> None:
    """PMLP propagates in eval mode alone: nothing to constrain in training, everything to measure."""
    q = gnnquant.convert(PMLP(5, 8, 3, 3), (features().float(), random_graph()), bits=32)
    with pytest.raises(FineTuneError, match="has 0"):
        LagrangianDriver.create(q, Smoothness())


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support:UserWarning")
@pytest.mark.parametrize("sparse", [torch.Tensor.to_sparse, torch.Tensor.to_sparse_csr])
def test_a_sparse_adjacency_gives_the_edges(sparse: Callable[[torch.Tensor], torch.Tensor]) -> None:
    edges = random_graph().unique(dim=1)
    by_list = LayerDriver(traced(2), Smoothness())
    by_list.forward({"x": features().float(), "edge_index": edges})
    matrix = torch.zeros(12, 12)
    matrix[edges[1], edges[0]] = 1.0
    by_matrix = LayerDriver(traced(2), Smoothness())
    adjacency = sparse(matrix)
    by_matrix.forward({"x": features().float(), "edge_index": adjacency})
    assert by_matrix.report()[1].energy == pytest.approx(by_list.report()[1].energy)


@pytest.mark.parametrize(
    ("rows", "words"),
    [([12, 6], r"layers\.0: 12, layers\.1: 6.*pooling"), ([6, 6], "edges name 11 nodes.*6 rows")],
)
def test_layers_over_other_nodes_are_refused(rows: list[int], words: str) -> None:
    driver = LayerDriver(traced(2), Smoothness())
    with pytest.raises(FineTuneError, match=words):
        driver._check([torch.ones(count, 3) for count in rows], random_graph())
