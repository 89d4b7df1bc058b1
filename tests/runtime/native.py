"""The C++ runtime in tests: ``cpp/run_artifact.cpp``, built for a machine and run, maybe under emulation."""

from __future__ import annotations

import fcntl
import importlib.util
import platform
import shutil
import struct
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from gnnquant.runtime.host import machine_name

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from gnnquant.runtime.plan import Plan

SOURCES = Path(__file__).parent / "cpp"
INCLUDE = Path(__file__).parents[2] / "gnnquant" / "runtime" / "cpp" / "include"
OPTIONS = ("-std=c++17", "-O0", "-Wall", "-Wextra", "-Wconversion", "-Wno-sign-conversion", "-Werror")
HERE = machine_name(platform.machine())
PROCESSORS = {"aarch64": "cortex-a53", "riscv64": "sifive-u54"}
"""By machine: the processor that is emulated, one without extensions that came later."""


@dataclass(frozen=True)
class Driver:
    """A program that runs artifacts.

    Attributes:
        command: How it is started.
    """

    command: tuple[str, ...]

    def run(
        self, artifact: bytes, plan: Plan, calls: Sequence[Mapping[str, Any]], folder: Path
    ) -> list[list[NDArray[np.float32]] | str]:
        """Outputs of each call, or ``"InputError: ..."``.

        Raises:
            RuntimeError: The artifact was refused; with the message.
        """
        (results,) = self.run_all([(artifact, plan, calls)], folder)
        if isinstance(results, str):
            raise RuntimeError(results)  # noqa: TRY004 - a message, not a value
        return results

    def workspace_bytes(self, artifact: bytes, plan: Plan, call: Mapping[str, Any], folder: Path) -> int:
        """Bytes that the kernels of an artifact work in during a call."""
        assert not isinstance(self.run(artifact, plan, [call], folder)[0], str)
        (size,) = struct.unpack("<q", (folder / "0.results").read_bytes()[-8:])
        return int(size)

    def run_all(
        self, jobs: Sequence[tuple[bytes, Plan, Sequence[Mapping[str, Any]]]], folder: Path
    ) -> list[list[list[NDArray[np.float32]] | str] | str]:
        """As :meth:`run`, of several artifacts in one process; a message where one is refused."""
        for number, (artifact, plan, calls) in enumerate(jobs):
            (folder / f"{number}.gnnq").write_bytes(artifact)
            (folder / f"{number}.calls").write_bytes(packed_calls(plan, calls))
        command = [*self.command, str(folder), str(len(jobs))]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"exit code {done.returncode}: {done.stderr.strip()}"
        return [
            unpacked_results((folder / f"{number}.results").read_bytes(), len(calls))
            for number, (_, _, calls) in enumerate(jobs)
        ]


def packed_calls(plan: Plan, calls: Sequence[Mapping[str, Any]]) -> bytes:
    """See ``cpp/run_artifact.cpp``. Values: arrays; numbers; (places, values, extents) of a sparse matrix.

    Names that are no inputs of the plan are float rows.
    """
    kinds = {item.name: item.kind for item in plan.inputs}
    found = [_numbers(len(calls))]
    for call in calls:
        found.append(_numbers(len(call)))
        for name, value in call.items():
            kind = kinds.get(name, "rows")
            shape, extra, data = _parts(kind, value)
            words = [_numbers(len(word)) + word for word in (name.encode(), kind.encode())]
            found += [*words, _numbers(len(shape), *shape), _numbers(len(extra), *extra)]
            found.append(_numbers(len(data)) + data)
    return b"".join(found)


def _parts(kind: str, value: Any) -> tuple[tuple[int, ...], tuple[int, ...], bytes]:
    if kind == "size":
        return (), (int(value),), b""
    if kind == "adjacency":
        places, values, extents = value
        return places.shape, extents, places.tobytes() + values.tobytes()
    return value.shape, (), value.tobytes()


def _numbers(*values: int) -> bytes:
    return struct.pack(f"<{len(values)}q", *values)


def unpacked_results(data: bytes, calls: int) -> list[list[NDArray[np.float32]] | str] | str:
    """Inverse of what the program writes."""
    at = 0

    def number() -> int:
        nonlocal at
        at += 8
        (value,) = struct.unpack_from("<q", data, at - 8)
        return int(value)

    def content() -> bytes:
        nonlocal at
        size = number()
        at += size
        return data[at - size : at]

    results: list[list[NDArray[np.float32]] | str] = []
    if content() != b"loaded":
        return content().decode()
    for _ in range(calls):
        word = content().decode()
        if word != "ok":
            results.append(f"{word}: {content().decode()}")
            continue
        outputs = []
        for _ in range(number()):
            shape = [number() for _ in range(number())]
            outputs.append(np.frombuffer(content(), np.float32).reshape(shape))
        results.append(outputs)
    number()  # the bytes of the workspace
    assert at == len(data)
    return results


def package_folder(name: str) -> Path:
    """Where a package of the TVM wheels lies."""
    spec = importlib.util.find_spec(name)
    assert spec is not None
    assert spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0])


def driver(machine: str, factory: pytest.TempPathFactory, processor: str = "") -> Driver:
    """The program for ``machine``; the test is skipped where its compiler or emulator is missing.

    ``processor`` is what is emulated in place of that of :data:`PROCESSORS`.
    """
    native = machine == HERE
    compiler = shutil.which("g++" if native else f"{machine}-linux-gnu-g++")
    if compiler is None:
        pytest.skip(f"install {'g++' if native else f'g++-{machine}-linux-gnu'} to build C++ for {machine}")
    emulator = None if native else shutil.which(f"qemu-{machine}-static") or shutil.which(f"qemu-{machine}")
    if not native and emulator is None:
        pytest.skip(f"install qemu-user-static to run code for {machine}")
    # one folder and one build for all processes of this run
    root = factory.getbasetemp()
    root = root.parent if root.name.startswith("popen-") else root
    program = root / f"run_artifact-{machine}"
    with (root / f"{program.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not program.exists():
            _build(compiler, program, native=native)
    if emulator is None:
        return Driver((str(program),))
    processor = processor or PROCESSORS[machine]
    return Driver((emulator, "-cpu", processor, "-L", f"/usr/{machine}-linux-gnu", str(program)))


def _build(compiler: str, program: Path, *, native: bool) -> None:
    packages = [package_folder(name) for name in ("tvm", "tvm_ffi")]
    command = [compiler, *OPTIONS, f"-I{INCLUDE}", str(SOURCES / "run_artifact.cpp")]
    for folder in packages:
        command += ["-isystem", str(folder / "include")]
    if native:
        for folder in packages:
            command += [f"-L{folder / 'lib'}", f"-Wl,-rpath,{folder / 'lib'}"]
        command += ["-ltvm_runtime", "-ltvm_ffi"]
    else:
        command.append(str(SOURCES / "standin.cpp"))
    unfinished = program.with_suffix(".new")
    done = subprocess.run(
        [*command, "-ldl", "-o", str(unfinished)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    unfinished.rename(program)
