"""From CUDA C++ to the bytes of a fatbin, by NVIDIA's compiler; no GPU is needed for it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from gnnquant.backends.tvm.cache import cached
from gnnquant.errors import BackendError

ARCHITECTURES = ("sm_80", "sm_90")
"""Machine code for compute capabilities 8.x and 9.x; PTX of the last one serves what comes after."""
OPTIONS = [
    "-std=c++17",
    "-O3",
    # no product is contracted with a sum; quotients, roots and small numbers are those of IEEE 754
    "-fmad=false",
    "-prec-div=true",
    "-prec-sqrt=true",
    "-ftz=false",
    "-gencode=arch=compute_80,code=sm_80",
    "-gencode=arch=compute_90,code=[sm_90,compute_90]",
]
USUAL = "/usr/local/cuda"
"""Where NVIDIA installs it."""


def find_nvcc() -> str:
    """The path of nvcc: on ``PATH``, under ``CUDA_HOME``, or where NVIDIA installs it.

    Raises:
        BackendError: There is none.
    """
    folders = [os.environ.get("CUDA_HOME", ""), USUAL]
    places = [str(Path(folder) / "bin" / "nvcc") for folder in folders if folder]
    for place in ("nvcc", *places):
        found = shutil.which(place)
        if found:
            return found
    raise BackendError(
        "cuda backend: no nvcc found, which makes the code for GPUs (no GPU is needed for that); install "
        "NVIDIA's CUDA toolkit 12 or newer, and put nvcc on PATH or set CUDA_HOME (looked on PATH and for "
        f"{', '.join(places)})"
    )


def build_fatbin(source: str) -> bytes:
    """Compile, unless this was done before: see ``gnnquant.backends.tvm.cache``.

    Raises:
        BackendError: There is no nvcc, or it failed.
    """
    compiler = find_nvcc()
    version = _run([compiler, "--version"])
    recipe = json.dumps({"source": source, "options": OPTIONS, "nvcc": version}, sort_keys=True)
    return cached(recipe, lambda: _compiled(compiler, source))


def _compiled(compiler: str, source: str) -> bytes:
    with tempfile.TemporaryDirectory(prefix="gnnquant-") as folder:
        given, made = Path(folder) / "kernels.cu", Path(folder) / "kernels.fatbin"
        given.write_text(source, encoding="utf-8")
        _run([compiler, *OPTIONS, "--fatbin", str(given), "-o", str(made)])
        return made.read_bytes()


def _run(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise BackendError(f"cuda backend: {command[0]} could not be run: {error}") from error
    if done.returncode:
        said = (done.stderr or done.stdout).strip()
        raise BackendError(f"cuda backend: {command[0]} failed with exit code {done.returncode}: {said}")
    return done.stdout


def dump(source: str) -> None:
    """Write the source where ``GNNQUANT_DUMP`` says."""
    folder = os.environ.get("GNNQUANT_DUMP")
    if folder:
        Path(folder).mkdir(parents=True, exist_ok=True)
        (Path(folder) / "cuda-kernels.cu").write_text(source, encoding="utf-8")
