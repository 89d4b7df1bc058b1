"""What a compiled library needs of a machine, and whether this machine has it."""

from __future__ import annotations

import ctypes
import platform
import struct
import sys
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

_SAME_NAME = (
    "ssse3", "fma", "avx", "avx2", "f16c", "popcnt", "bmi2", "movbe", "adx", "aes", "gfni", "vaes",
    "vpclmulqdq", "rdseed", "xsave", "xsaveopt", "xsavec", "fsgsbase", "rdpid", "avx512f",
    "avx512bw", "avx512cd", "avx512dq", "avx512vl", "avx512ifma", "avx512vbmi", "cx16",
)  # fmt: skip
_X86 = {name: name for name in _SAME_NAME} | {
    "sse3": "pni",
    "sse4.1": "sse4_1",
    "sse4.2": "sse4_2",
    "bmi": "bmi1",
    "lzcnt": "abm",
    "sha": "sha_ni",
    "pclmul": "pclmulqdq",
    "rdrnd": "rdrand",
    "avx512vnni": "avx512_vnni",
    "avx512vbmi2": "avx512_vbmi2",
    "avx512bitalg": "avx512_bitalg",
    "avx512vpopcntdq": "avx512_vpopcntdq",
    "avx512bf16": "avx512_bf16",
    "avx512fp16": "avx512_fp16",
    "avxvnni": "avx_vnni",
    "amx-tile": "amx_tile",
    "amx-int8": "amx_int8",
    "amx-bf16": "amx_bf16",
    "amx-fp16": "amx_fp16",
}
_ARM = {
    "neon": "asimd",
    "dotprod": "asimddp",
    "fullfp16": "asimdhp",
    "lse": "atomics",
    "rdm": "asimdrdm",
    "crc": "crc32",
    "i8mm": "i8mm",
    "bf16": "bf16",
    "sve": "sve",
    "sve2": "sve2",
    "sme": "sme",
    "sme2": "sme2",
}
_RISCV = {name: name for name in ("m", "a", "f", "d", "c", "v", "zba", "zbb", "zbs", "zfh", "zvbb")}
FLAGS: dict[str, dict[str, str]] = {"x86_64": _X86, "aarch64": _ARM, "riscv64": _RISCV}
"""By machine: LLVM's name of each instruction-set feature and the kernel's in ``/proc/cpuinfo``."""

TILES = "amx-tile"
"""Code with this feature keeps data in the tile registers."""
_ARCH_PRCTL, _REQUEST_STATE, _TILE_DATA = 158, 0x1023, 18
_MACHINES = {"amd64": "x86_64", "arm64": "aarch64", "x86-64": "x86_64"}


def machine_name(name: str) -> str:
    """One name for each architecture, whoever names it."""
    return _MACHINES.get(name.lower(), name.lower())


def requirements(triple: str, mcpu: str, features: Iterable[str]) -> dict[str, Any]:
    """What code for an LLVM target needs, as it is stored under ``"target"`` in an artifact.

    Args:
        triple: LLVM target triple, ``x86_64-unknown-linux-gnu`` say.
        mcpu: LLVM name of the processor.
        features: LLVM feature names that the code may use, with or without a leading ``+``. Names
            that are no instruction set (tuning switches) are left out.
    """
    machine = machine_name(triple.split("-", maxsplit=1)[0])
    known = FLAGS.get(machine, {})
    names = {feature.removeprefix("+") for feature in features}
    system = next((name for name in ("linux", "darwin", "windows") if name in triple), "unknown")
    narrow = machine in {"i386", "i686", "arm", "armv7", "armv7l", "riscv32"}
    return {
        "kind": "llvm",
        "triple": triple,
        "mcpu": mcpu,
        "machine": machine,
        "system": system,
        "pointer_bits": 32 if narrow else 64,
        "byte_order": "little",
        "features": sorted(names & known.keys()),
    }


def gpu_requirements(architectures: Iterable[str]) -> dict[str, Any]:
    """What code for NVIDIA's GPUs needs, as :func:`requirements` says it of a processor.

    Args:
        architectures: Those that there is machine code for (``sm_80``); the last one's PTX is there too.
    """
    return {"kind": "cuda", "machine": "nvidia-gpu", "architectures": list(architectures)}


def missing_requirements(target: dict[str, Any]) -> list[str]:
    """What ``target`` (see :func:`requirements`) needs and this machine lacks, in words."""
    if target["kind"] == "cuda":
        from gnnquant.runtime import cuda_driver

        missing = cuda_driver.lacking()
        return [missing] if missing else []
    return _missing_of_processor(target)


def _missing_of_processor(target: dict[str, Any]) -> list[str]:
    machine = machine_name(platform.machine())
    if target["machine"] != machine:
        return [f"the architecture {target['machine']} (this machine is {machine})"]
    system = {"win32": "windows"}.get(sys.platform, sys.platform)
    if target["system"] not in (system, "unknown"):
        return [f"{target['system']} (this machine runs {system})"]
    bits = 8 * struct.calcsize("P")
    if target["pointer_bits"] != bits:
        return [f"a {target['pointer_bits']}-bit process (this one is {bits}-bit)"]
    if target["byte_order"] != sys.byteorder:
        return [f"{target['byte_order']}-endian memory (this machine is {sys.byteorder}-endian)"]
    unknown = [name for name in target["features"] if name not in FLAGS.get(machine, {})]
    lacking = [*lacking_features(target["features"]), *(unknown if host_flags() is not None else [])]
    return [f"the processor features {', '.join(lacking)}"] if lacking else []


def lacking_features(features: Iterable[str]) -> list[str]:
    """Which of these features (LLVM's names) this machine lacks, or its kernel does not let a process use."""
    have, known = host_flags(), FLAGS.get(machine_name(platform.machine()), {})
    if have is None:
        return []
    missing = {name for name in features if name in known and known[name] not in have}
    if TILES in features and TILES not in missing and not tiles_granted():
        missing |= {name for name in features if name.startswith("amx-")}
    return sorted(missing)


@lru_cache(maxsize=1)
def tiles_granted() -> bool:
    """Ask Linux for the tile registers of AMX, which a process has to do once, before it uses them."""
    system_call = getattr(ctypes.CDLL(None), "syscall", None)
    if system_call is None or sys.platform != "linux" or machine_name(platform.machine()) != "x86_64":
        return False
    return int(system_call(_ARCH_PRCTL, _REQUEST_STATE, _TILE_DATA)) == 0


@lru_cache(maxsize=1)
def host_flags() -> frozenset[str] | None:
    """Features of this machine's processor as the kernel names them; None where it does not say."""
    # an emulator of another machine may show the lines of its host
    wanted = {"x86_64": "flags", "aarch64": "Features", "riscv64": "isa"}.get(
        machine_name(platform.machine())
    )
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8", errors="replace") as lines:
            for line in lines:
                key, _, value = line.partition(":")
                if key.strip() == wanted:
                    return riscv_extensions(value.strip()) if wanted == "isa" else frozenset(value.split())
    except OSError:
        pass
    return None


def riscv_extensions(isa: str) -> frozenset[str]:
    """The extensions that an ``isa`` line of ``/proc/cpuinfo`` names: ``rv64imafdc_zicsr_zba``."""
    letters, *longer = isa.lower().split("_")
    letters = letters.removeprefix("rv32").removeprefix("rv64").replace("g", "imafd")
    return frozenset({*letters, *longer})
