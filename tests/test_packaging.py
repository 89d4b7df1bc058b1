"""What the built wheel and sdist hold."""

import re
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
    expected = {"pyproject.toml", "Makefile", "constraints.txt", "constraints-lowest.txt"}
    expected |= {"README.md", "CHANGELOG.md", "LICENSE"}
    assert expected <= distributions[0]
    assert "tests/test_packaging.py" in distributions[0]


def pins(file: str) -> list[tuple[str, str]]:
    lines = (ROOT / file).read_text(encoding="utf-8").splitlines()
    entries = [line.split(" ;")[0] for line in lines if line and not line.startswith("#")]
    assert all(entry.count("==") == 1 for entry in entries)
    return [(name, version) for name, _, version in (entry.partition("==") for entry in entries)]


@pytest.mark.parametrize("file", ["constraints.txt", "constraints-lowest.txt"])
def test_every_requirement_is_pinned(file: str) -> None:
    """Each line is one exact public version."""
    assert not [version for _, version in pins(file) if "+" in version]
    names = {name for name, _ in pins(file)}
    assert {"torch", "torch-geometric", "numpy", "apache-tvm", "scikit-learn", "pytest"} <= names


def test_the_lowest_versions_are_those_that_are_declared() -> None:
    declared = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    declared = declared[declared.index("dependencies = [") : declared.index("dev = [")]
    bounds = re.findall(r'"([\w-]+)>=([\d.]+)"', declared)
    lowest = dict(pins("constraints-lowest.txt"))
    assert len(bounds) == 9
    for name, bound in bounds:
        assert lowest[name.replace("_", "-")] in (bound, f"{bound}.0"), name
