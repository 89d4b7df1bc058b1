"""Kernels for GPUs, compiled by g++ for this processor and run by a stand-in for NVIDIA's driver.

What runs is the source that nvcc gets, the executor and the ctypes layer below it; the only part that is not
the real one is ``driver.cpp``.
"""

from __future__ import annotations

import atexit
import re
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from gnnquant.backends.cuda import generate
from gnnquant.backends.cuda.nvcc import ARCHITECTURES
from gnnquant.backends.tvm.cache import cached
from gnnquant.runtime.artifact import ArtifactPayload
from gnnquant.runtime.host import gpu_requirements

if TYPE_CHECKING:
    from gnnquant.integer_graph import IntegerGraph

HERE = Path(__file__).parent
FLAGS = ("-std=c++17", "-O1", "-shared", "-fPIC", "-ffp-contract=off", "-fno-fast-math", "-w")
FLAGS += ("-U_FORTIFY_SOURCE",)  # jumps between stacks are meant


@cache
def folder() -> Path:
    """Where this process keeps its libraries, until it ends."""
    path = Path(tempfile.mkdtemp(prefix="gnnquant-emulated-"))
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return path


def library(name: str, source: str) -> Path:
    """A shared library from C++."""
    compiler = shutil.which("g++")
    if not compiler:
        pytest.skip("needs g++")

    def make() -> bytes:
        given, made = folder() / f"{name}.cpp", folder() / f"{name}.made"
        given.write_text(source, encoding="utf-8")
        subprocess.run([compiler, *FLAGS, str(given), "-o", str(made), "-ldl"], check=True)
        return made.read_bytes()

    path = folder() / f"{name}.so"
    if not path.exists():
        path.write_bytes(cached(repr((FLAGS, source)), make))
    return path


@cache
def driver() -> Path:
    """The stand-in for libcuda.so.1."""
    return library("driver", (HERE / "driver.cpp").read_text(encoding="utf-8"))


_images: dict[str, Path] = {}


def image_of(source: str) -> bytes:
    """What the stand-in loads in the place of a fatbin: the path of a library with the kernels."""
    if source not in _images:
        bodies = re.split(r"__launch_bounds__\(\d+\) ", source)[1:]
        assert bodies
        ways = {
            body.partition("(")[0]: "launch_together" if "int lane" in body else "launch" for body in bodies
        }
        launchers = "\n".join(f"LAUNCHER({name}, {way})" for name, way in ways.items())
        text = "\n".join([(HERE / "shim.h").read_text(encoding="utf-8"), source, launchers])
        _images[source] = library(f"kernels{len(_images)}", text)
    # with its end, as C has it: lengths are not passed on
    return str(_images[source]).encode() + b"\0"


def payload(graph: IntegerGraph) -> ArtifactPayload:
    """What ``compile`` makes of a graph, for the stand-in."""
    program = generate(graph)
    metadata = {"target": gpu_requirements(ARCHITECTURES), "bits": 0, "sites": {}}
    return ArtifactPayload(program.plan, program.constants, image_of(program.source), metadata)
