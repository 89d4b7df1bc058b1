"""Targets: the names that a user knows, what TVM is told of them, and how kernels are linked for them."""

from __future__ import annotations

import os
import shlex
import shutil
from typing import Any

from tvm.target import Target, codegen

from gnnquant.backends.tvm.emit import Machine
from gnnquant.errors import BackendError
from gnnquant.runtime.host import lacking_features, machine_name, requirements

NATIVE = ("native", "llvm")
"""Names of this machine; the second one is TVM's own."""
TARGETS: dict[str, dict[str, Any]] = {
    **{
        level: {"mtriple": "x86_64-linux-gnu", "mcpu": level}
        for level in ("x86-64-v2", "x86-64-v3", "x86-64-v4")
    },
    "aarch64": {"mtriple": "aarch64-linux-gnu", "mcpu": "generic", "mattr": ["+neon"]},
    "riscv64": {
        "mtriple": "riscv64-linux-gnu",
        "mcpu": "generic-rv64",
        "mattr": ["+m", "+a", "+f", "+d", "+c"],
        "mabi": "lp64d",
    },
}
"""By name: a TVM target of kind ``llvm``. The x86-64 levels are those of the System V ABI; ``aarch64`` is
Armv8-A with NEON, ``riscv64`` is RV64GC with the ABI of Debian, both without later extensions."""
_NAMES = ", ".join((NATIVE[0], *TARGETS))
PACKAGES = {
    "x86_64": "g++-x86-64-linux-gnu",
    "aarch64": "g++-aarch64-linux-gnu",
    "riscv64": "g++-riscv64-linux-gnu",
}
"""By machine: Debian's package of the compiler that links for it."""
AVX512 = {"avx512f", "avx512bw"}


def resolve_target(target: Any) -> dict[str, Any]:
    """The TVM target as a dictionary; without ``mcpu`` and ``mtriple`` it is the host's processor.

    Args:
        target: A name (``"native"``, a key of :data:`TARGETS`), a ``tvm.target.Target`` or a dictionary for
            one.

    Raises:
        BackendError: The name is unknown, the target is no CPU, or nothing can be linked for it.
    """
    resolved = _dictionary(target)
    if resolved.get("kind") == "cuda":
        raise BackendError(
            "tvm backend: code for GPUs is made by gnnquant.backends.cuda: compile with target='cuda'"
        )
    if resolved.get("kind") != "llvm":
        raise BackendError(f"tvm backend: target kind {resolved.get('kind')!r} is not 'llvm'")
    if "mcpu" not in resolved and "mtriple" not in resolved:
        resolved["mcpu"] = str(codegen.llvm_get_system_cpu())
        # a processor's name promises more than a virtual machine shows, or its kernel lets a process use
        missing = lacking_features(codegen.llvm_get_cpu_features(Target(resolved)))
        if missing:
            resolved["mattr"] = [*resolved.get("mattr", []), *(f"-{name}" for name in missing)]
    # level 3 unrolls loops that are short already: larger, and no faster
    resolved.setdefault("opt-level", 2)
    # scalars that stand side by side are addresses and weights of edges: they are used one by one
    resolved.setdefault("cl-opt", ["-vectorize-slp:bool=0"])
    linker(triple_of(resolved))
    return resolved


def _dictionary(target: Any) -> dict[str, Any]:
    if isinstance(target, str):
        if target in NATIVE:
            return {"kind": "llvm"}
        if target == "cuda":
            return {"kind": "cuda"}
        if target not in TARGETS:
            raise BackendError(
                f"tvm backend: unknown target {target!r}: it must be one of {_NAMES}, cuda, or a TVM "
                "target such as {'kind': 'llvm', 'mcpu': 'x86-64-v3'}"
            )
        return {"kind": "llvm", **TARGETS[target]}
    if isinstance(target, Target):
        # what TVM derives ("feature.has_dotprod") it will derive again
        members = {str(key): _plain(value) for key, value in target.attrs.items() if "." not in key}
        return {"kind": str(target.kind.name), **members}
    if isinstance(target, dict):
        return dict(target)
    raise BackendError(f"tvm backend: a target is a name or a TVM target, not a {type(target).__name__}")


def _plain(value: Any) -> Any:
    """A member of a TVM target as JSON has it."""
    if isinstance(value, (bool, int)):
        return value
    if isinstance(value, str):
        return str(value)
    return [_plain(item) for item in value]


def triple_of(resolved: dict[str, Any]) -> str:
    """LLVM's target triple."""
    return str(resolved.get("mtriple") or codegen.llvm_get_system_triple())


def machine_of(triple: str) -> str:
    """The architecture, under the name that ``platform.machine`` has for it."""
    return machine_name(triple.split("-", maxsplit=1)[0])


def linker(triple: str) -> list[str]:
    """The command that links shared libraries for ``triple``, with its first arguments.

    For this machine's architecture: ``CXX``, or else g++, c++ or clang++. For another: the environment
    variable ``GNNQUANT_CXX_AARCH64`` (``..._RISCV64``, ``..._X86_64``), which may hold arguments too, or else
    Debian's ``aarch64-linux-gnu-g++``.

    Raises:
        BackendError: There is none, with the package to install; or the kernels are for no such machine.
    """
    machine = machine_of(triple)
    if machine == machine_of(str(codegen.llvm_get_system_triple())):
        found = os.environ.get("CXX") or shutil.which("g++") or shutil.which("c++") or shutil.which("clang++")
        if not found:
            raise BackendError("tvm backend: no C++ compiler found to link with; install g++ or set CXX")
        return [found]
    if machine not in PACKAGES or "linux" not in triple:
        raise BackendError(
            f"tvm backend: cannot link for {triple!r}: kernels are made for Linux on {', '.join(PACKAGES)}, "
            "and for the machine that this runs on"
        )
    variable = f"GNNQUANT_CXX_{machine.upper()}"
    command = shlex.split(os.environ.get(variable, "")) or [f"{machine}-linux-gnu-g++"]
    if not shutil.which(command[0]):
        raise BackendError(
            f"tvm backend: no compiler {command[0]!r} found, to link for {machine}; install Debian's "
            f"{PACKAGES[machine]}, or set {variable} to another cross compiler"
        )
    return command


def describe(resolved: dict[str, Any]) -> tuple[Machine, dict[str, Any]]:
    """The vectors of a target, and what code for it needs of a machine."""
    available = set(codegen.llvm_get_cpu_features(Target(resolved)))
    triple = triple_of(resolved)
    machines = {"x86_64": _x86, "aarch64": _arm}
    machine = machines.get(machine_of(triple), _portable)(available)
    return machine, requirements(triple, str(resolved.get("mcpu", "")), available)


def _portable(_: set[str]) -> Machine:
    return Machine(4)


def _arm(available: set[str]) -> Machine:
    quads, limit = "", 0
    if "i8mm" in available:
        quads, limit = "llvm.aarch64.neon.usdot.v4i32.v16i8", 255
    elif "dotprod" in available:
        quads, limit = "llvm.aarch64.neon.sdot.v4i32.v16i8", 127
    halves = ("llvm.aarch64.neon.smull.v4i32", "llvm.aarch64.neon.addp.v4i32")
    return Machine(4, halves=halves if "neon" in available else ("", ""), quads=quads, quads_limit=limit)


def _x86(available: set[str]) -> Machine:
    if available >= AVX512:
        quads = "llvm.x86.avx512.vpdpbusd.512" if "avx512vnni" in available else ""
        half_quads = "llvm.x86.avx512.vpdpbusd.256" if {"avx512vnni", "avx512vl"} <= available else ""
        words, pairs = "llvm.x86.avx512.pmaddw.d.512", "llvm.x86.avx512.pmaddubs.w.512"
        tiles = {"amx-tile", "amx-int8"} <= available
        return Machine(
            16,
            words,
            pairs,
            "llvm.x86.avx512.mask.cvtps2dq.512",
            ("llvm.x86.avx512.packssdw.512", "llvm.x86.avx512.packuswb.512"),
            quads=quads,
            quads_limit=255,
            half_quads=half_quads,
            front="llvm.x86.avx512.mask.compress.v64i8" if "avx512vbmi2" in available else "",
            lookup="llvm.x86.avx512.permvar.qi.512" if "avx512vbmi" in available else "",
            tiles=tiles,
        )
    if "avx2" in available:
        return Machine(
            8,
            "llvm.x86.avx2.pmadd.wd",
            "llvm.x86.avx2.pmadd.ub.sw",
            "llvm.x86.avx.cvt.ps2dq.256",
            ("llvm.x86.avx2.packssdw", "llvm.x86.avx2.packuswb"),
            quads="llvm.x86.avx512.vpdpbusd.256" if "avxvnni" in available else "",
            quads_limit=255,
        )
    return Machine(
        4,
        "llvm.x86.sse2.pmadd.wd",
        "llvm.x86.ssse3.pmadd.ub.sw.128" if "ssse3" in available else "",
        "llvm.x86.sse2.cvtps2dq",
        ("llvm.x86.sse2.packssdw.128", "llvm.x86.sse2.packuswb.128"),
    )
