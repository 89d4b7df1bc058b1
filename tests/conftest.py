from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session", autouse=True)
def _own_kernels(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test reads kernels that another version of the code has left in the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GNNQUANT_CACHE", str(tmp_path_factory.mktemp("kernels")))
        yield
