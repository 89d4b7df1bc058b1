from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session", autouse=True)
def _own_kernels(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The processes of one run share compiled kernels, with each other and with nobody else."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.getbasetemp()
        folder = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder
        patch.setenv("GNNQUANT_CACHE", str(folder / "kernels"))
        yield
