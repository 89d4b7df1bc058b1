from __future__ import annotations

import platform
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from gnnquant.runtime.artifact import ArtifactPayload, model_from_payload
from gnnquant.runtime.host import requirements

if TYPE_CHECKING:
    from gnnquant.runtime import CompiledModel

pytest.importorskip("tvm")

from tests.runtime import tiny_library


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("library") / "tiny.so"
    tiny_library.compile_library(str(path))
    return Path(path).read_bytes()


@pytest.fixture
def payload(library: bytes) -> ArtifactPayload:
    return make_payload(library)


@pytest.fixture
def model(payload: ArtifactPayload) -> CompiledModel:
    return model_from_payload(payload)


def make_payload(library: bytes, **options: object) -> ArtifactPayload:
    target = requirements(f"{platform.machine()}-unknown-linux-gnu", "generic", [])
    return ArtifactPayload(
        tiny_library.make_plan(**options),
        {"bias": tiny_library.BIAS},
        library,
        {"gnnquant": "0", "tvm": "0", "target": target, "bits": 8, "sites": {"conv.message": 8}},
    )


def random_graph(nodes: int, edges: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    x = generator.standard_normal((nodes, tiny_library.COLUMNS)).astype(np.float32)
    edge_index = generator.integers(0, max(nodes, 1), (2, edges))
    return x, edge_index, generator.standard_normal(edges).astype(np.float32)
