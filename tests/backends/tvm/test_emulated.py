"""Kernels for other processors, run under user-mode emulation by the C++ runtime, against the numpy oracle.

The TVM runtime is not there for them: ``tests/runtime/cpp/standin.cpp`` stands for it. Everything else
(artifact, checks, index program, kernels) is what runs on such a machine.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from gnnquant.backends.tvm import build
from gnnquant.runtime.artifact import ArtifactPayload, to_bytes
from tests.backends.tvm import graphs
from tests.backends.tvm.models import graph_of
from tests.backends.tvm.oracle import Oracle
from tests.runtime import native

if TYPE_CHECKING:
    from pathlib import Path

SIZES = ((0, 0), (1, 4), (13, 40), (83, 500))
"""Nodes and edges."""
MODELS = ("gcn-2", "gcn-sparse-8", "gat-4", "sage-8", "sage-max", "gatv2-4", "floats")
"""INT2, INT8 that skips zeros, attention, mean, max, a general edge function, FP32."""


@pytest.mark.parametrize("machine", ["aarch64", "riscv64"])
def test_kernels_equal_the_oracle(
    machine: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Bit for bit; of a NaN, only that it is one (processors give it different signs)."""
    driver = native.driver(machine, tmp_path_factory)
    calls = {name: [graphs.values(graph_of(name), *size) for size in SIZES] for name in MODELS}
    jobs = []
    for name in MODELS:
        model = build(graph_of(name), target=machine, threads=2)
        payload = ArtifactPayload(model.plan, model.constants, model.library, {"target": model.target})
        # each call twice: what depends on the graph alone is not computed again
        twice = [call for call in calls[name] for _ in range(2)]
        jobs.append((to_bytes(payload), model.plan, twice))
    for name, results in zip(MODELS, driver.run_all(jobs, tmp_path), strict=True):
        assert not isinstance(results, str), results
        for number, result in enumerate(results):
            check(name, calls[name][number // 2], result)


def check(name: str, call: dict[str, Any], result: Any) -> None:
    assert not isinstance(result, str), f"{name}: {result}"
    expected = Oracle(graph_of(name), call).outputs()
    for value, wanted in zip(result, expected, strict=True):
        np.testing.assert_array_equal(np.isnan(value), np.isnan(wanted), err_msg=name)
        numbers = ~np.isnan(wanted)
        same = value.view(np.int32)[numbers] == wanted.view(np.int32)[numbers]
        assert value.shape == wanted.shape
        assert same.all(), f"{name}: {int((~same).sum())} of {same.size} differ"
