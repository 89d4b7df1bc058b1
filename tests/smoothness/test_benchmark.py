"""The figures of ``python -m benchmarks.smoothness``: the error bound, the plots and the document."""

from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import pytest
import torch
from torch_geometric.data import Data
from torch_geometric.nn.conv.gcn_conv import gcn_norm
from torch_geometric.utils import to_undirected

import gnnquant
from benchmarks.smoothness.errors import Step, relative_errors, steps_of
from benchmarks.smoothness.models import DEPTHS, MODELS, PROPAGATIONS
from benchmarks.smoothness.plots import COLOURS, Line, Panel, write
from benchmarks.smoothness.runs import FLOAT_BITS, WIDTHS, Run
from benchmarks.smoothness.table import document, plot
from gnnquant import SmoothPropagation
from tests import zoo
from tests.smoothness.test_functional import dense

STEPS = 5
SVG = "{http://www.w3.org/2000/svg}"
MULTIPLIERS = {"smp-descent": 2.0, "smp-laplacian": 0.1, "smp-adjacency": 0.4}


def undirected(nodes: int = 40) -> Data:
    """With a hub and an isolated node."""
    made = zoo.random_graph(nodes, 70, seed=1)
    hub = torch.stack([torch.zeros(nodes - 2, dtype=torch.int64), torch.arange(1, nodes - 1)])
    edges = torch.cat([made.edge_index[:, (made.edge_index != nodes - 1).all(dim=0)], hub], dim=1)
    return Data(x=made.x, edge_index=to_undirected(edges, num_nodes=nodes))


def model(name: str) -> torch.nn.Module:
    torch.manual_seed(0)
    made = MODELS[name](zoo.FEATURES, 4, STEPS).eval()
    for constraint in getattr(made.get_submodule("propagation"), "constraints", ()):
        constraint.multiplier.fill_(MULTIPLIERS[name])
    return made


@pytest.mark.parametrize("name", PROPAGATIONS)
def test_the_norm_of_a_step_bounds_that_of_its_matrix(name: str) -> None:
    """And is reached on the path of two nodes without self-loops, whose eigenvalues are -1 and 1."""
    (step, *_) = steps_of(model(name).get_submodule("propagation"))
    edges, weight = gcn_norm(undirected().edge_index, None, 40, dtype=torch.float64)
    for adjacency in (dense(edges, weight, 40), np.array([[0.0, 1.0], [1.0, 0.0]])):
        eye = np.eye(len(adjacency))
        pulled = step.keep * eye + step.pull * adjacency
        matrix = eye + (step.u * eye + step.v * adjacency) @ (pulled - eye)
        norm = np.linalg.norm(matrix, 2)
        assert norm <= step.norm + 1e-9
    assert step.v != 0 or norm == pytest.approx(step.norm)


def test_the_norm_of_a_step_is_found_at_its_vertex_too() -> None:
    step = Step(keep=0.0, pull=0.9, teleport=0.1, u=3.0, v=-2.5)
    at = np.linspace(-1, 1, 200_001)
    values = np.abs(1 + (step.u + step.v * at) * (step.keep + step.pull * at - 1))
    assert step.norm == pytest.approx(values.max())


def test_a_step_is_what_the_layer_computes() -> None:
    data, layer = undirected(), SmoothPropagation(1, mu=3.0, eta=0.15, initial=0.6).double().eval()
    x = data.x.double()
    (step,) = steps_of(layer)
    edges, weight = gcn_norm(data.edge_index, None, 40, dtype=torch.float64)
    adjacency = dense(edges, weight, 40)
    pulled = step.keep * x.numpy() + step.pull * adjacency @ x.numpy() + step.teleport * x.numpy()
    expected = x.numpy() + (step.u * np.eye(40) + step.v * adjacency) @ (pulled - x.numpy())
    np.testing.assert_allclose(layer(x, data.edge_index).numpy(), expected, rtol=1e-6)


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("name", PROPAGATIONS)
def test_measured_errors_are_within_the_bound(name: str, bits: int) -> None:
    made, data = model(name), undirected()
    q = gnnquant.calibrate(gnnquant.convert(made, (data.x, data.edge_index), bits=bits), [data])
    with torch.no_grad():  # clipping must be bounded as well
        for site in q.sites.values():
            if site.kind == "message":
                q.get_submodule(site.quantizer).log_scale -= 0.3
    errors = relative_errors(q, made.get_submodule("propagation"), data)
    assert len(errors["measured"]) == len(errors["bound"]) == STEPS + 1
    assert all(a <= b for a, b in zip(errors["measured"], errors["bound"], strict=True))
    assert errors["measured"][-1] > 0
    assert errors["bound"][-1] < 60 * errors["measured"][-1]


def result(model: str, depth: int, seed: int, test: float, *, constrained: bool = False) -> dict[str, Any]:
    layer = {"layer": "a", "value": 1.0, "held": True, "multiplier": 0.5, "energy": 0.1, "distance": 2.0}
    curve = {"measured": [0.01] * (depth + 1), "bound": [0.1] * (depth + 1)}
    return {
        "job": {
            "dataset": "Cora",
            "model": model,
            "depth": depth,
            "seed": seed,
            "schedule": {"epochs": 3, "lr": 0.1, "tuning_epochs": 2, "tuning_lr": 0.2},
        },
        "seconds": 60.0,
        "versions": {"torch": "2"},
        "result": {
            "code": "abc",
            "rows": [
                {
                    "bits": bits,
                    "constrained": constrained,
                    "test": test,
                    "energy": 0.2,
                    "layers": [layer],
                    "errors": {} if model == "gcn" else {"calibrated": curve, "fine-tuned": curve},
                }
                for bits in (FLOAT_BITS, *WIDTHS)
            ],
        },
    }


RESULTS = [
    *(result("gcn", 8, seed, 0.5 + 0.01 * seed) for seed in range(3)),
    *(result("gcn", 8, seed, 0.6 + 0.011 * seed, constrained=True) for seed in range(3)),
    result("appnp", 8, 0, 0.8),
    result("smp-descent", 8, 0, 0.8),
]


def test_the_document_says_where_the_constraint_helps() -> None:
    text = document(RESULTS, 9, "plots")
    assert "8 of 9 runs are done" in text
    assert "| 8 | gcn constrained | 61.1 ± 1.1 |" in text
    assert "| 8 | smp-descent | 80.0 (1) |" in text
    (helps,) = [line for line in text.splitlines() if line.startswith("- helps") and "FP32" in line]
    assert "FP32 depth 8 (+10.1 ± 0.1)" in helps
    (single,) = [line for line in text.splitlines() if line.startswith("- one seed only")]
    assert "FP32 depth 8 (+0.0)" in single
    assert "geometric series" in text


def test_a_run_that_ended_early_is_named() -> None:
    stopped = result("smp-laplacian", 64, 0, 0.3)
    stopped["result"]["rows"] = stopped["result"]["rows"][:1]
    stopped["result"]["stopped"] = "fine-tuning diverged"
    text = document([*RESULTS, stopped], 9, "plots")
    assert "- smp-laplacian, depth 64, seed 0: fine-tuning diverged" in text
    assert "| 64 | smp-laplacian | 30.0 (1) | - | - | - |" in text


@pytest.mark.parametrize("results", [RESULTS, RESULTS[:1], []])
def test_plots_are_xml(results: list[dict[str, Any]], tmp_path: Path) -> None:
    plot(results, tmp_path)
    assert len(list(tmp_path.iterdir())) == (3 if results else 0)
    for path in tmp_path.iterdir():
        assert ET.parse(path).getroot().tag.endswith("svg")


def test_points_that_an_axis_cannot_show_are_left_out(tmp_path: Path) -> None:
    points = [(1.0, 0.0), (2.0, 0.1), (4.0, float("nan")), (8.0, 10.0)]
    panel = Panel("a < b", [Line("x & y", points, 0)], "k", "e", log_x=True, log_y=True)
    write(tmp_path / "plot.svg", [panel])
    root = ET.parse(tmp_path / "plot.svg").getroot()
    written = {"".join(node.itertext()).strip() for node in root.iter(f"{SVG}text")}
    assert {"a < b", "x & y", "k", "e"} <= written
    in_colour = [node for node in root.iter(f"{SVG}path") if COLOURS[0] in node.get("style", "")]
    line, _of_the_legend = in_colour
    assert line.get("d", "").count("L") == 1


def test_runs_have_names_of_their_own() -> None:
    runs = [
        Run("Cora", model, depth, seed)
        for model, depths in DEPTHS.items()
        for depth in depths
        for seed in range(2)
    ]
    assert len({run.key for run in runs}) == len(runs)
