"""The C++ example: built by CMake against the installed wheels, and run on Cora where it is there."""

from __future__ import annotations

import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import gnnquant

EXAMPLE = Path(__file__).parent.parent / "examples" / "cpp"
CORA = Path(os.environ.get("GNNQUANT_DATA", "")) / "Cora" / "raw" / "ind.cora.x"


def run(*command: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    for tool, package in (("cmake", "cmake"), ("g++", "g++"), ("make", "make")):
        if shutil.which(tool) is None:
            pytest.skip(f"install {package} to build the C++ example")
    build = tmp_path_factory.mktemp("build")
    for command in (
        [
            "cmake",
            "-S",
            EXAMPLE,
            "-B",
            build,
            "-DCMAKE_BUILD_TYPE=Debug",
            f"-DPython3_EXECUTABLE={sys.executable}",
        ],
        ["cmake", "--build", build],
    ):
        done = run(*command)
        assert done.returncode == 0, done.stdout + done.stderr
    return build / "classify"


def test_it_prints_the_classes(program: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepare = runpy.run_path(str(EXAMPLE / "prepare.py"))
    prepare["main"].__globals__["EPOCHS"] = 2
    prepare["main"](tmp_path, "Cora" if CORA.is_file() else "digits")
    said = capsys.readouterr().out.strip().splitlines()[-1]
    model = gnnquant.load(tmp_path / "model.gnnq")
    x, edge_index = (np.load(tmp_path / f"{name}.npy") for name in ("x", "edge_index"))
    done = run(program, tmp_path / "model.gnnq", tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr.strip() == said
    assert [int(line) for line in done.stdout.split()] == model(x, edge_index).argmax(axis=1).tolist()

    # what is wrong is said, and nothing is printed
    edge_index[1, 3] = len(x)
    np.save(tmp_path / "edge_index.npy", edge_index)
    wrong = run(program, tmp_path / "model.gnnq", tmp_path)
    assert (wrong.returncode, wrong.stdout) == (1, "")
    assert f"classify: edge_index[1, 3] = {len(x)} is not below {len(x)}" in wrong.stderr
    assert "absent/x.npy cannot be read" in run(program, tmp_path / "model.gnnq", "absent").stderr
    (tmp_path / "model.gnnq").write_bytes(b"GNNQ")
    assert "is truncated" in run(program, tmp_path / "model.gnnq", tmp_path).stderr


def test_it_is_short() -> None:
    assert len((EXAMPLE / "main.cpp").read_text(encoding="utf-8").splitlines()) < 150
