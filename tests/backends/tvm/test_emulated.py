"""Kernels for other processors, run under user-mode emulation by the C++ runtime, against the numpy oracle.

The TVM runtime is not there for them: ``tests/runtime/cpp/standin.cpp`` stands for it. Everything else
(artifact, checks, index program, kernels) is what runs on such a machine.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import gnnquant
from gnnquant.backends.tvm import build, targets
from gnnquant.errors import BackendError
from gnnquant.runtime.artifact import ArtifactPayload, to_bytes
from tests import zoo
from tests.backends.tvm import graphs
from tests.backends.tvm.models import graph_of
from tests.backends.tvm.oracle import Oracle
from tests.parity import converted, reference
from tests.runtime import native

if TYPE_CHECKING:
    from pathlib import Path

SIZES = ((0, 0), (1, 4), (13, 40), (83, 500))
"""Nodes and edges."""
MODELS = {
    "aarch64": ("gcn-2", "gcn-sparse-8", "gat-4", "sage-8", "sage-max", "gatv2-4", "floats"),
    "riscv64": ("gcn-2", "gcn-sparse-8", "gat-roots", "floats"),
}
"""INT2, INT8 that skips zeros, attention, mean, max, a general edge function, FP32; fewer where the code is
the same portable one."""
EXTENDED = {
    "+dotprod": ("gcn-2", "products-4"),
    "+dotprod,+i8mm": ("products-8", "gatv2-4"),
}
"""By features of aarch64: models whose products use them."""


@pytest.mark.parametrize("machine", MODELS)
def test_kernels_equal_the_oracle(
    machine: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    check_all(dict.fromkeys(MODELS[machine], machine), native.driver(machine, tmp_path_factory), tmp_path)


@pytest.mark.parametrize(("machine", "name"), [("aarch64", "gin"), ("riscv64", "sage_mean")])
def test_models_run_where_they_were_compiled_for(
    machine: str, name: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """From a PyG model to a file that another machine runs, as the integer reference has it."""
    driver = native.driver(machine, tmp_path_factory)
    graph = zoo.random_graph(60, 300)
    model = gnnquant.compile(converted(name, 4), target=machine, threads=2)
    if machine != native.HERE:
        with pytest.raises(BackendError, match="compiled for another machine"):
            model(graph.x, graph.edge_index)
    model.save(tmp_path / "model.gnnq")
    call = {"x": graph.x.numpy(), "edge_index": graph.edge_index.numpy()}
    data, plan = (tmp_path / "model.gnnq").read_bytes(), model._payload.plan  # type: ignore[union-attr]
    ((output,),) = driver.run(data, plan, [call], tmp_path)
    wanted = reference(name, 4)(graph.x, graph.edge_index).numpy()
    np.testing.assert_array_equal(output, wanted, strict=True)


@pytest.mark.parametrize("features", EXTENDED)
def test_products_of_bytes_on_arm(
    features: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    target = {"kind": "llvm", "mtriple": "aarch64-linux-gnu", "mattr": ["+neon", *features.split(",")]}
    driver = native.driver("aarch64", tmp_path_factory, "max")
    assert targets.describe(targets.resolve_target(target))[0].quads
    check_all(dict.fromkeys(EXTENDED[features], target), driver, tmp_path)
    # an older processor stops at the first of these instructions: they are really there
    with pytest.raises(AssertionError, match=r"exit code -?\d+"):
        check_all({EXTENDED[features][0]: target}, native.driver("aarch64", tmp_path_factory), tmp_path)


def check_all(models: dict[str, Any], driver: native.Driver, folder: Path) -> None:
    """Run models, each built for its target, on graphs of all sizes."""
    jobs = []
    for name, target in models.items():
        model = build(graph_of(name), target=target, threads=2)
        payload = ArtifactPayload(model.plan, model.constants, model.library, {"target": model.target})
        # each call twice: what depends on the graph alone is not computed again
        calls = [graphs.values(graph_of(name), *size) for size in SIZES for _ in range(2)]
        jobs.append((to_bytes(payload), model.plan, calls))
    for name, (_, _, calls), results in zip(models, jobs, driver.run_all(jobs, folder), strict=True):
        assert not isinstance(results, str), results
        for call, result in zip(calls, results, strict=True):
            check(name, call, result)


def check(name: str, call: dict[str, Any], result: Any) -> None:
    """Bit for bit; of a NaN, only that it is one (processors give it different signs)."""
    assert not isinstance(result, str), f"{name}: {result}"
    expected = Oracle(graph_of(name), call).outputs()
    for value, wanted in zip(result, expected, strict=True):
        np.testing.assert_array_equal(np.isnan(value), np.isnan(wanted), err_msg=name)
        numbers = ~np.isnan(wanted)
        same = value.view(np.int32)[numbers] == wanted.view(np.int32)[numbers]
        assert value.shape == wanted.shape
        assert same.all(), f"{name}: {int((~same).sum())} of {same.size} differ"
