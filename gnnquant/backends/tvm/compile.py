"""From PrimFuncs to the bytes of a shared library."""

from __future__ import annotations

import json
import os
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import tvm
from tvm import tirx
from tvm.target import Target, codegen

from gnnquant.backends.tvm.cache import cached
from gnnquant.backends.tvm.targets import linker, triple_of
from gnnquant.errors import BackendError

# the runtime checks shapes; the checks that TVM generates are larger than the kernels
CONFIG = {"tirx.disable_assert": True}

LOWERING = ("FlattenBuffer", "NarrowDataType", "StmtSimplify", "MakePackedAPI")
"""Passes of ``tvm.tirx.transform``. The kernels are loops over arrays: of the default pipeline, which
schedules and allocates too and takes several times as long, they need no others."""
_PIPELINE = "gnnquant"

LINK_OPTIONS = ["-s", "-Wl,--gc-sections", "-Wl,--build-id=none"]


def build_library(functions: dict[str, Any], resolved: dict[str, Any]) -> bytes:
    """Compile, link and strip, unless this was done before: see ``cache``.

    Raises:
        BackendError: The linker failed, or there is none.
    """
    return cached(_recipe(functions, resolved), lambda: _compiled(functions, resolved))


def _recipe(functions: dict[str, Any], resolved: dict[str, Any]) -> str:
    """All that a library depends on. The linker is not part of it: any that works will do."""
    settings = {
        "kernels": {name: function.script() for name, function in functions.items()},
        "target": resolved,
        "host": str(codegen.llvm_get_system_triple()),
        "config": CONFIG,
        "lowering": LOWERING,
        "link": LINK_OPTIONS,
        "tvm": version("apache-tvm"),
        "llvm": codegen.llvm_version_major(),
    }
    return json.dumps(settings, sort_keys=True)


def _compiled(functions: dict[str, Any], resolved: dict[str, Any]) -> bytes:
    compiler, *options = linker(triple_of(resolved))
    with tvm.transform.PassContext(config=CONFIG):
        module = tvm.compile(tvm.IRModule(functions), target=Target(resolved), tir_pipeline=_PIPELINE)
    with tempfile.TemporaryDirectory(prefix="gnnquant-") as folder:
        path = Path(folder) / "model.so"
        try:
            module.export_library(str(path), cc=compiler, options=[*options, *LINK_OPTIONS])
        except RuntimeError as error:
            said = str(error).strip()
            raise BackendError(f"tvm backend: {compiler} could not link the kernels: {said}") from error
        return path.read_bytes()


def _lowering() -> tuple[Any, Any, Any]:
    """The pipeline, and how TVM finishes what runs on hosts and on devices."""
    arguments = {"NarrowDataType": (32,)}
    passes = [getattr(tirx.transform, name)(*arguments.get(name, ())) for name in LOWERING]
    _, host, device = tirx.get_tir_pipeline("default")
    return tvm.ir.transform.Sequential(passes), host, device


tirx.register_tir_pipeline(_PIPELINE, _lowering)


def dump(functions: dict[str, Any]) -> None:
    """Write the TIR of every kernel where ``GNNQUANT_DUMP`` says."""
    folder = os.environ.get("GNNQUANT_DUMP")
    if not folder:
        return
    Path(folder).mkdir(parents=True, exist_ok=True)
    for name, function in functions.items():
        (Path(folder) / f"tvm-{name}.txt").write_text(function.script())
