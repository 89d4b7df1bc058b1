from __future__ import annotations

import functools
import warnings
from typing import TYPE_CHECKING

import pytest

with warnings.catch_warnings():  # PyG 2.8 scripts classes on import, which torch 2.13 deprecates
    warnings.simplefilter("ignore", DeprecationWarning)
    import torch_geometric.nn  # noqa: F401

from gnnquant.tracing import trace
from tests import zoo

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

    from gnnquant.tracing import TracedModule


@functools.cache
def _traced(name: str) -> tuple[nn.Module, TracedModule]:
    model = zoo.build(name)
    graph = zoo.random_graph()
    return model, trace(model, (graph.x, graph.edge_index))


@pytest.fixture(scope="session")
def traced() -> Callable[[str], tuple[nn.Module, TracedModule]]:
    """Name in the zoo -> (model, its trace); shared by all tests, so copy before changing anything."""
    return _traced
