"""Kernels of random shapes on random graphs against numpy integers, and none reads past its inputs."""

from __future__ import annotations

import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gnnquant.backends.tvm import build
from tests.backends.tvm import graphs
from tests.backends.tvm.driver import Library
from tests.backends.tvm.models import MODELS
from tests.backends.tvm.oracle import Oracle

if TYPE_CHECKING:
    from gnnquant.integer_graph import IntegerGraph

BITS = st.sampled_from((2, 4, 8))
WIDTHS = st.one_of(st.integers(1, 20), st.sampled_from((31, 32, 33, 63, 64, 65, 96, 127, 128, 130)))
LOOPS = st.sampled_from(("keep", "add", "remaining"))
GRANULARITIES = st.sampled_from(("row", "tensor"))
FAMILIES = {
    "gcn": st.builds(
        graphs.gcn,
        BITS,
        signed=st.booleans(),
        granularity=GRANULARITIES,
        loops=LOOPS,
        features=st.one_of(WIDTHS, st.integers(200, 300)),
        hidden=WIDTHS,
        weighted=st.booleans(),
    ),
    "sage": st.builds(
        graphs.sage, BITS, st.sampled_from(("mean", "max", "min")), features=WIDTHS, hidden=WIDTHS
    ),
    "gat": st.builds(
        graphs.gat,
        BITS,
        heads=st.integers(1, 8),
        width=st.integers(1, 20),
        features=WIDTHS,
        factored=st.booleans(),
        granularity=GRANULARITIES,
    ),
    "gatv2": st.builds(
        graphs.gatv2, BITS, heads=st.integers(1, 4), width=st.integers(1, 20), features=WIDTHS
    ),
    "edges": st.builds(
        graphs.edge_mlp,
        BITS,
        st.sampled_from(("sum", "mean", "max", "min", "mul")),
        features=st.integers(8, 40),
        hidden=WIDTHS,
    ),
    "floats": st.builds(
        lambda reduce, heads, each: graphs.floats(reduce, heads, 2 * heads * each),
        st.sampled_from(("sum", "mean", "max")),
        st.integers(1, 4),
        st.integers(1, 12),
    ),
}
SIZES = st.lists(
    st.tuples(st.integers(0, 200), st.integers(0, 800), st.integers(0, 2**16)), min_size=3, max_size=3
)
"""Nodes, edges and a seed of the values, of the calls of one model."""


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=6, deadline=None, derandomize=True, database=None)
@given(data=st.data(), threads=st.integers(1, 3), sizes=SIZES)
def test_random_shapes_equal_numpy(
    family: str, data: st.DataObject, threads: int, sizes: list[tuple[int, int, int]]
) -> None:
    graph: IntegerGraph = data.draw(FAMILIES[family])
    library = Library(build(graph, target="llvm", threads=threads))
    for nodes, edges, seed in sizes:
        inputs: dict[str, Any] = graphs.values(graph, nodes, edges if nodes else 0, seed)
        oracle = Oracle(graph, inputs)
        for value, expected in zip(library.run(inputs), oracle.outputs(), strict=True):
            np.testing.assert_array_equal(value, expected, strict=True)


def guarded(*names: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.backends.tvm.guarded", *names]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("part", range(2))
def test_nothing_is_accessed_around_arrays(part: int) -> None:
    names = list(MODELS)[part::2]
    run = guarded(*names)
    lines = run.stdout.splitlines()
    assert run.returncode == 0, f"{lines[-1:]}: {run.stderr[-2000:]}"
    # a line for each call
    assert list(dict.fromkeys(lines)) == [f"{name} {side}" for name in names for side in ("before", "after")]


@pytest.mark.parametrize("side", ["before", "after"])
def test_the_guard_stops_who_reads_too_much(side: str) -> None:
    assert guarded(side).returncode == -signal.SIGSEGV
