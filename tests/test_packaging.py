"""What the built wheel and sdist hold."""

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> tuple[set[str], set[str]]:
    """Names in the sdist (below its top folder), and in the wheel that is built from it."""
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (sdist,) = out.glob("*.tar.gz")
    (wheel,) = out.glob("*.whl")
    with tarfile.open(sdist) as archive:
        source = {name.partition("/")[2] for name in archive.getnames()}
    with zipfile.ZipFile(wheel) as archive:
        return source, set(archive.namelist())


def package_files() -> set[str]:
    files = (path for path in (ROOT / "gnnquant").rglob("*") if path.is_file())
    return {str(path.relative_to(ROOT)) for path in files if "__pycache__" not in path.parts}


def test_both_hold_the_whole_package(distributions: tuple[set[str], set[str]]) -> None:
    for names in distributions:
        assert package_files() <= names
        for name in ("passes/__init__.py", "backends/__init__.py", "backends/tvm/__init__.py", "py.typed"):
            assert f"gnnquant/{name}" in names


def test_the_root_links_are_no_packages(distributions: tuple[set[str], set[str]]) -> None:
    assert (ROOT / "passes").is_symlink()
    assert (ROOT / "backends").is_symlink()
    for names in distributions:
        assert not {name for name in names if name.split("/")[0] in ("passes", "backends")}


def test_the_wheel_installs_one_package_and_nothing_else(distributions: tuple[set[str], set[str]]) -> None:
    tops = {name.split("/")[0] for name in distributions[1]}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"gnnquant"}


def test_the_sdist_can_be_built_and_tested(distributions: tuple[set[str], set[str]]) -> None:
    expected = {"pyproject.toml", "Makefile", "constraints.txt", "README.md", "CHANGELOG.md", "LICENSE"}
    assert expected <= distributions[0]
    assert "tests/test_packaging.py" in distributions[0]


def test_every_requirement_is_pinned() -> None:
    """Each line of ``constraints.txt`` is one exact public version."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert all("==" in pin and "+" not in pin for pin in pins)
    names = {pin.split("==")[0] for pin in pins}
    assert {"torch", "torch-geometric", "numpy", "apache-tvm", "scikit-learn", "pytest"} <= names
