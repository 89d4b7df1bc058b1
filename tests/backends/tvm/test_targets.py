"""Names of targets, how their kernels are linked, and what is said of code for another machine."""

from __future__ import annotations

import platform
import shutil
from functools import cache
from typing import TYPE_CHECKING, Any

import pytest
import torch

import gnnquant
from gnnquant import BackendError
from gnnquant.backends.tvm import build, targets
from gnnquant.errors import ArtifactError
from gnnquant.runtime import host
from gnnquant.runtime.artifact import ArtifactPayload, load_bytes, model_from_payload, to_bytes
from tests import zoo
from tests.backends.tvm import graphs
from tests.parity import converted, reference

if TYPE_CHECKING:
    from pathlib import Path

HERE = host.machine_name(platform.machine())
MACHINES = {"x86-64-v2": 62, "x86-64-v3": 62, "x86-64-v4": 62, "aarch64": 183, "riscv64": 243}
"""``e_machine`` of the ELF header by target."""


@cache
def named(name: str) -> ArtifactPayload:
    """What :func:`built` makes for a name; nobody may change it."""
    return built(name)


def built(target: Any) -> ArtifactPayload:
    model = build(graphs.gcn(4), target=target)
    return ArtifactPayload(model.plan, model.constants, model.library, {"target": model.target})


def needs_compiler(target: str) -> None:
    machine = targets.machine_of(targets.TARGETS[target]["mtriple"])
    if machine != HERE and not shutil.which(f"{machine}-linux-gnu-g++"):
        pytest.skip(f"install {targets.PACKAGES[machine]} to link for {machine}")


@pytest.mark.parametrize("name", targets.TARGETS)
def test_every_name_gives_code_for_its_machine(name: str) -> None:
    needs_compiler(name)
    payload = named(name)
    assert payload.library[:4] == b"\x7fELF"
    assert int.from_bytes(payload.library[18:20], "little") == MACHINES[name]
    needs = payload.metadata["target"]
    assert needs["system"] == "linux"
    assert needs["triple"] == targets.TARGETS[name]["mtriple"]


def test_levels_differ_in_what_they_need() -> None:
    needs = {
        name: set(targets.describe(targets.resolve_target(name))[1]["features"])
        for name in ("x86-64-v2", "x86-64-v3", "x86-64-v4")
    }
    assert "ssse3" in needs["x86-64-v2"] < needs["x86-64-v3"] < needs["x86-64-v4"]
    assert "avx2" in needs["x86-64-v3"] - needs["x86-64-v2"]
    assert "avx512f" in needs["x86-64-v4"] - needs["x86-64-v3"]


def test_native_is_this_processor() -> None:
    native = targets.resolve_target("native")
    assert native == targets.resolve_target("llvm") == targets.resolve_target({"kind": "llvm"})
    assert not host.missing_requirements(targets.describe(native)[1])


@pytest.mark.parametrize("name", ["native", "x86-64-v2", "x86-64-v3", "x86-64-v4"])
def test_code_that_this_processor_can_run_equals_the_reference(name: str, tmp_path: Path) -> None:
    """From a PyG model to a file and back, for each level of x86-64 that this processor has."""
    if name != "native":
        needs_compiler(name)
    lacking = host.missing_requirements(targets.describe(targets.resolve_target(name))[1])
    if lacking:
        pytest.skip(f"this machine lacks {', '.join(lacking)}")
    path = tmp_path / "model.gnnq"
    gnnquant.compile(converted("gat", 4), target=name, threads=1).save(path)
    model = gnnquant.load(path)
    for nodes, edges in ((83, 500), (6, 0)):
        graph = zoo.random_graph(nodes, edges)
        wanted = reference("gat", 4)(graph.x, graph.edge_index)
        assert torch.equal(model(graph.x, graph.edge_index), wanted)


def test_targets_of_tvm_are_taken() -> None:
    from tvm.target import Target

    given = {"kind": "llvm", "mtriple": "aarch64-linux-gnu", "mattr": ["+neon", "+dotprod"]}
    needs_compiler("aarch64")
    resolved = targets.resolve_target(Target(given))
    assert resolved == targets.resolve_target(given)
    assert {"dotprod", "neon"} <= set(targets.describe(resolved)[1]["features"])


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("riscv", "unknown target 'riscv': it must be one of native, x86-64-v2, .*aarch64, riscv64"),
        ("cuda", "made by gnnquant.backends.cuda"),
        ({"kind": "cuda"}, "made by gnnquant.backends.cuda"),
        ({"kind": "vulkan"}, "'vulkan' is not 'llvm'"),
        ({"kind": "llvm", "mtriple": "powerpc64le-linux-gnu"}, "cannot link for 'powerpc64le-linux-gnu'"),
        (7, "not a int"),
    ],
)
def test_targets_that_cannot_be(target: Any, message: str) -> None:
    with pytest.raises(BackendError, match=message):
        build(graphs.floats(), target=target)


def other_machine() -> str:
    return "aarch64" if HERE != "aarch64" else "riscv64"


def test_a_missing_cross_compiler_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    machine = other_machine()
    monkeypatch.delenv(f"GNNQUANT_CXX_{machine.upper()}", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    variable = f"GNNQUANT_CXX_{machine.upper()}"
    with pytest.raises(BackendError, match=rf"g\+\+-{machine}-linux-gnu, or set {variable}"):
        targets.resolve_target(machine)


def test_the_variable_names_another_cross_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    machine = other_machine()
    needs_compiler(machine)
    compiler = shutil.which(f"{machine}-linux-gnu-g++")
    assert compiler
    seen = tmp_path / "seen"
    script = tmp_path / "cross"
    script.write_text(f'#!/bin/sh\necho "$@" > {seen}\nexec {compiler} "$@"\n')
    script.chmod(0o755)
    monkeypatch.setenv(f"GNNQUANT_CXX_{machine.upper()}", f"{script} -Wl,-O1")
    monkeypatch.setenv("GNNQUANT_CACHE", "off")
    assert built(machine).library[:4] == b"\x7fELF"
    assert "-Wl,-O1" in seen.read_text()


def test_a_linker_that_fails_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = other_machine()
    monkeypatch.setenv(f"GNNQUANT_CXX_{machine.upper()}", "false")
    monkeypatch.setenv("GNNQUANT_CACHE", "off")
    with pytest.raises(BackendError, match="false could not link the kernels"):
        built(machine)


@pytest.mark.parametrize("name", targets.TARGETS)
def test_code_for_another_machine_says_so(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    needs_compiler(name)
    payload = named(name)
    if payload.metadata["target"]["machine"] == HERE:
        # a processor without the features of any level
        monkeypatch.setattr(host, "host_flags", lambda: frozenset({"fpu"}))
        needed = "processor features .*ssse3"
    else:
        needed = f"the architecture {name} \\(this machine is {HERE}\\)"
    with pytest.raises(ArtifactError, match=f"compiled for another machine: it needs .*{needed}"):
        load_bytes(to_bytes(payload))
    model = model_from_payload(payload)
    inputs = graphs.values(graphs.gcn(4), 5, 4)
    with pytest.raises(BackendError, match="compiled for another machine"):
        model._executor.prepare(inputs)  # type: ignore[arg-type]


def test_extensions_of_riscv() -> None:
    assert host.riscv_extensions("rv64imafdc_zicsr_zba") == {*"imafdc", "zicsr", "zba"}
    assert host.riscv_extensions("rv64gcv") == {*"imafdcv"}
    target = host.requirements("riscv64-linux-gnu", "generic-rv64", ["m", "+v", "64bit"])
    assert target["features"] == ["m", "v"]
