"""From PrimFuncs to the bytes of a shared library."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import tvm
from tvm.target import Target, codegen

from gnnquant.backends.tvm.cache import cached
from gnnquant.backends.tvm.emit import Machine
from gnnquant.errors import BackendError
from gnnquant.runtime.host import machine_name, requirements

CONFIG = {
    # the runtime checks shapes; the checks that TVM generates are larger than the kernels
    "tirx.disable_assert": True,
    # it merges register arrays of different types and then rejects the result
    "tirx.disable_storage_rewrite": True,
}

LINK_OPTIONS = ["-s", "-Wl,--gc-sections", "-Wl,--build-id=none"]


def resolve_target(target: str | dict[str, Any]) -> dict[str, Any]:
    """The TVM target as a dictionary; without an ``mcpu`` it is the host's processor."""
    if target == "llvm":
        resolved: dict[str, Any] = {"kind": "llvm"}
    elif isinstance(target, str):
        raise BackendError(
            f"tvm backend: unknown target {target!r}; use 'llvm' (this machine) or a dictionary "
            "such as {'kind': 'llvm', 'mcpu': 'x86-64-v3'}"
        )
    else:
        resolved = dict(target)
    if resolved.get("kind") != "llvm":
        raise BackendError(f"tvm backend: target kind {resolved.get('kind')!r} is not 'llvm'")
    host = str(codegen.llvm_get_system_triple())
    triple = resolved.get("mtriple", host)
    if _architecture(triple) != _architecture(host):
        raise BackendError(f"tvm backend: cannot link for {triple!r} on {host!r}; build on such a machine")
    # level 3 unrolls loops that are short already: larger, and no faster
    resolved.setdefault("opt-level", 2)
    if "mcpu" not in resolved and "mtriple" not in resolved:
        resolved["mcpu"] = str(codegen.llvm_get_system_cpu())
    return resolved


def _architecture(triple: str) -> str:
    return machine_name(triple.split("-", maxsplit=1)[0])


def describe(resolved: dict[str, Any]) -> tuple[Machine, dict[str, Any]]:
    """The vectors of a target, and what code for it needs of a machine."""
    target = Target(resolved)
    available = set(codegen.llvm_get_cpu_features(target))
    triple = resolved.get("mtriple", str(codegen.llvm_get_system_triple()))
    x86 = _architecture(triple) == "x86_64"
    machine = Machine(4)
    if x86 and {"avx512f", "avx512bw"} <= available:
        machine = Machine(
            16,
            "llvm.x86.avx512.pmaddw.d.512",
            "llvm.x86.avx512.pmaddubs.w.512",
            "llvm.x86.avx512.vpdpbusd.512" if "avx512vnni" in available else "",
        )
    elif x86 and "avx2" in available:
        machine = Machine(
            8,
            "llvm.x86.avx2.pmadd.wd",
            "llvm.x86.avx2.pmadd.ub.sw",
            "llvm.x86.avx512.vpdpbusd.256" if "avxvnni" in available else "",
            "llvm.x86.avx.cvt.ps2dq.256",
            ("llvm.x86.avx2.packssdw", "llvm.x86.avx2.packuswb"),
        )
    elif x86:
        machine = Machine(
            4,
            "llvm.x86.sse2.pmadd.wd",
            "llvm.x86.ssse3.pmadd.ub.sw.128" if "ssse3" in available else "",
            "",
            "llvm.x86.sse2.cvtps2dq",
            ("llvm.x86.sse2.packssdw.128", "llvm.x86.sse2.packuswb.128"),
        )
    return machine, requirements(triple, resolved.get("mcpu", ""), available if x86 else ())


def build_library(functions: dict[str, Any], resolved: dict[str, Any]) -> bytes:
    """Compile, link and strip, unless this was done before: see ``cache``.

    Raises:
        BackendError: Without a C++ compiler.
    """
    return cached(_recipe(functions, resolved), lambda: _compiled(functions, resolved))


def _recipe(functions: dict[str, Any], resolved: dict[str, Any]) -> str:
    """All that a library depends on. The linker is not part of it: any that works will do."""
    settings = {
        "kernels": {name: function.script() for name, function in functions.items()},
        "target": resolved,
        "host": str(codegen.llvm_get_system_triple()),
        "config": CONFIG,
        "link": LINK_OPTIONS,
        "tvm": version("apache-tvm"),
        "llvm": codegen.llvm_version_major(),
    }
    return json.dumps(settings, sort_keys=True)


def _compiled(functions: dict[str, Any], resolved: dict[str, Any]) -> bytes:
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("c++")
    compiler = compiler or shutil.which("clang++")
    if not compiler:
        raise BackendError("tvm backend: no C++ compiler found to link with; install g++ or set CXX")
    with tvm.transform.PassContext(config=CONFIG):
        module = tvm.compile(tvm.IRModule(functions), target=Target(resolved))
    with tempfile.TemporaryDirectory(prefix="gnnquant-") as folder:
        path = Path(folder) / "model.so"
        module.export_library(str(path), cc=compiler, options=LINK_OPTIONS)
        return path.read_bytes()


def dump(functions: dict[str, Any]) -> None:
    """Write the TIR of every kernel where ``GNNQUANT_DUMP`` says."""
    folder = os.environ.get("GNNQUANT_DUMP")
    if not folder:
        return
    Path(folder).mkdir(parents=True, exist_ok=True)
    for name, function in functions.items():
        (Path(folder) / f"tvm-{name}.txt").write_text(function.script())
