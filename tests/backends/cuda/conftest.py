from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from gnnquant.runtime import cuda_driver
from tests.backends.cuda import emulation

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def emulated(monkeypatch: pytest.MonkeyPatch) -> Path:
    """The stand-in for NVIDIA's driver in its place."""
    monkeypatch.setattr(cuda_driver, "LIBRARY", str(emulation.driver()))
    monkeypatch.delenv("FAKE_CUDA", raising=False)
    return emulation.driver()
