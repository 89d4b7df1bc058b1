"""The drivers: what they report, what they push, and that they only add a penalty."""

import pytest
import torch
from torch import fx, nn

from gnnquant import FineTuneError, InputError, Smoothness, SmoothPropagation, ir
from gnnquant.smoothness import LagrangianDriver, dirichlet_energy
from gnnquant.smoothness.lagrangian import LayerDriver
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
    first = model.get_submodule("layers.0")(inputs()["x"])
    second = model.get_submodule("layers.1")(first.relu())
    edges = inputs()["edge_index"]
    change = (dirichlet_energy(second, edges) - dirichlet_energy(first, edges)).abs()
    reports = driver.report()
    assert [report.layer for report in reports] == ["layers.0 -> layers.1", "layers.1 -> layers.2"]
    assert reports[0].value == pytest.approx(float(change.detach()), abs=1e-6)
    assert reports[0].bound == pytest.approx(0.01)
    assert not reports[0].held


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
    assert broken.report()[0].multiplier > 0
    loose = LayerDriver(model, Smoothness(bound=1.9))
    loose.multipliers = torch.tensor([0.2])
    _, penalty = loose.forward(inputs())
    loose.ascend()
    assert 0 <= loose.report()[0].multiplier < 0.2
    assert loose.report()[0].held
    assert penalty is not None
    assert float(penalty.detach()) <= 0


def test_descent_and_ascent_reach_the_bound() -> None:
    """Min |w - w0|^2 under the constraint ends on the bound, not inside and not outside of it."""
    model = traced(2)
    bound = 0.02
    driver = LayerDriver(model, Smoothness(bound=bound, multiplier_lr=0.1, damping=5.0))
    start = {name: value.detach().clone() for name, value in model.named_parameters()}
    driver.forward(inputs())
    assert not driver.report()[0].held
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    for _ in range(600):
        _, penalty = driver.forward(inputs())
        distance = sum((value - start[name]).square().sum() for name, value in model.named_parameters())
        optimizer.zero_grad()
        (distance + penalty).backward()
        optimizer.step()
        driver.ascend()
    report = driver.report()[0]
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
