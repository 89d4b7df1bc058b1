"""Compiled libraries that are kept: when they are used again, and when they must not be."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch_geometric.nn import GATv2Conv, GCNConv, SAGEConv

import gnnquant
from gnnquant import QuantSpec
from gnnquant.backends.tvm import build, cache
from gnnquant.backends.tvm import compile as compiler
from gnnquant.errors import BackendError
from gnnquant.passes.lowering import lower
from tests.backends.tvm.models import graph_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from gnnquant.integer_graph import IntegerGraph

GRAPH = "gcn-sparse-4"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GNNQUANT_CACHE", str(tmp_path / "kernels"))
    return tmp_path / "kernels"


def making(content: bytes, calls: list[bytes]) -> Callable[[], bytes]:
    def make() -> bytes:
        calls.append(content)
        return content

    return make


def library_of(**settings: Any) -> bytes:
    return build(graph_of(GRAPH), **{"target": "llvm", "threads": 1, **settings}).library


def test_same_kernels_are_compiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    first = library_of()

    def refuse(*arguments: Any, **options: Any) -> None:
        raise AssertionError("compiled again")

    monkeypatch.setattr(compiler, "_compiled", refuse)
    assert library_of() == first
    with pytest.raises(AssertionError, match="compiled again"):
        library_of(target={"kind": "llvm", "mcpu": "x86-64"})


def test_another_process_finds_them(folder: Path) -> None:
    code = f"""
import tests.backends.tvm.models as models
from gnnquant.backends.tvm import build
import sys
sys.stdout.buffer.write(build(models.graph_of({GRAPH!r}), target="llvm", threads=1).library)
"""
    one = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout
    assert len(list(folder.iterdir())) == 1
    (entry,) = folder.iterdir()
    assert entry.read_bytes()[cache.DIGEST :] == one
    assert library_of() == one
    assert list(folder.iterdir()) == [entry]


@pytest.mark.parametrize(
    "change",
    [
        lambda functions, target: (functions, {**target, "mcpu": "x86-64"}),
        lambda functions, target: (functions, {**target, "opt-level": 3}),
        lambda functions, target: (dict(list(functions.items())[1:]), target),
    ],
)
def test_recipe_tells_what_differs(
    change: Callable[[Any, Any], tuple[Any, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[Any, Any]] = []
    monkeypatch.setattr(compiler, "build_library", lambda *both: seen.append(both) or b"")
    library_of()
    library_of()
    (functions, target), again = seen
    assert compiler._recipe(functions, target) == compiler._recipe(*again)
    assert compiler._recipe(functions, target) != compiler._recipe(*change(functions, target))


def lowered(seed: int, layer: Callable[..., Any], depth: int = 2, **options: Any) -> IntegerGraph:
    """A model with numbers of its own, calibrated on data of its own."""
    generator = torch.manual_seed(seed)
    model = Stack(layer, depth)
    for parameter in model.parameters():
        parameter.data += torch.randn(parameter.shape, generator=generator)
    q = gnnquant.convert(model, **options)
    x = seed + torch.rand(20, 8, generator=generator)
    gnnquant.calibrate(q, [(x, torch.randint(20, (2, 60), generator=generator))])
    return lower(q)


class Stack(torch.nn.Module):
    def __init__(self, layer: Callable[..., Any], depth: int) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(layer(8, 8) for _ in range(depth))

    def forward(self, x: torch.Tensor, edge_index: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x, edge_index).relu() * 0.7
        return x


TENSOR = gnnquant.QuantConfig(sites={"*message": QuantSpec(granularity="tensor")})


@pytest.mark.parametrize(
    "options",
    [{"bits": 8}, {"bits": 2}, {"bits": 4, "config": TENSOR}, {"bits": 32}],
    ids=["INT8", "INT2", "INT4 tensor", "FP32"],
)
@pytest.mark.parametrize("layer", [GCNConv, GATv2Conv, SAGEConv])
def test_numbers_of_the_model_are_no_part_of_it(layer: Callable[..., Any], options: dict[str, Any]) -> None:
    """A model that was tuned on has other weights and scales, and the same kernels."""
    one, other = (build(lowered(seed, layer, **options), target="llvm", threads=1) for seed in (1, 2))
    assert one.plan == other.plan
    assert one.library == other.library
    assert any(not np.array_equal(one.constants[name], other.constants[name]) for name in one.constants)


def test_equal_layers_share_a_kernel() -> None:
    plans = [build(lowered(1, GCNConv, depth, bits=8), target="llvm", threads=1).plan for depth in (4, 9)]
    short, long = ({call.function for call in plan.calls if "_rows" in call.function} for plan in plans)
    # the input, a layer, the last layer
    assert len(short) == len(long) == 3
    assert sum("_rows" in call.function for call in plans[1].calls) >= 9


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_roots_of_degrees_are_not_kept(bits: int) -> None:
    """Every kernel that reads them takes them from the degrees, which the prepared graph has."""
    plan = build(lowered(1, GCNConv, 3, bits=bits), target="llvm", threads=1).plan
    workspace = {buffer.name for buffer in plan.buffers if buffer.kind == "workspace"}
    assert not [name for name in workspace if name.startswith("rows.")]
    readers = [call for call in plan.calls if any(name.endswith(".degrees") for name in call.arguments)]
    assert len(readers) == 4  # the input, two layers, the last layer
    assert not any(call.per_graph for call in readers)


@pytest.mark.parametrize(
    "damage",
    [lambda entry: b"", lambda entry: entry[:-1], lambda entry: entry[:40] + b"\x00" + entry[41:]],
    ids=["empty", "cut short", "altered"],
)
def test_damaged_entry_is_made_anew(damage: Callable[[bytes], bytes], folder: Path) -> None:
    calls: list[bytes] = []
    make = making(b"library " * 9, calls)
    cache.cached("recipe", make)
    (entry,) = folder.iterdir()
    whole = entry.read_bytes()
    entry.write_bytes(damage(whole))
    assert cache.cached("recipe", make) == b"library " * 9
    assert len(calls) == 2
    assert entry.read_bytes() == whole


def test_off(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GNNQUANT_CACHE", "off")
    calls: list[bytes] = []
    for _ in range(2):
        assert cache.cached("recipe", making(b"x", calls)) == b"x"
    assert len(calls) == 2
    assert not folder.exists()


def test_default_is_the_users_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GNNQUANT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    cache.cached("recipe", making(b"x", []))
    (entry,) = (tmp_path / "home" / "gnnquant" / "kernels").iterdir()
    assert entry.suffix == ".so"
    assert entry.parent.stat().st_mode & 0o777 == 0o700


def test_folder_that_cannot_be_made_costs_only_time(folder: Path) -> None:
    folder.write_text("a file")
    with pytest.warns(UserWarning, match="cannot be kept in .*GNNQUANT_CACHE"):
        assert cache.cached("recipe", making(b"x", [])) == b"x"


def test_no_code_from_a_folder_that_others_write(folder: Path) -> None:
    calls: list[bytes] = []
    cache.cached("recipe", making(b"x", calls))
    folder.chmod(0o777)
    with pytest.warns(UserWarning, match="other users may write there"):
        cache.cached("recipe", making(b"x", calls))
    assert len(calls) == 2


def test_failure_leaves_nothing(folder: Path) -> None:
    def fail() -> bytes:
        raise BackendError("no compiler")

    with pytest.raises(BackendError, match="no compiler"):
        cache.cached("recipe", fail)
    assert list(folder.iterdir()) == []


def test_least_recently_used_goes_first(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = cache.DIGEST + 100
    monkeypatch.setattr(cache, "LIMIT", 3 * size)
    calls: list[bytes] = []
    for number, name in enumerate("abc"):
        cache.cached(name, making(name.encode() * 100, calls))
        for path in folder.iterdir():
            if path.read_bytes()[cache.DIGEST :].startswith(name.encode()):
                os.utime(path, (number, number))
    cache.cached("a", making(b"a" * 100, calls))  # used now
    cache.cached("d", making(b"d" * 100, calls))
    kept = sorted(path.read_bytes()[cache.DIGEST :][:1] for path in folder.iterdir())
    assert kept == [b"a", b"c", b"d"]


def test_remains_of_a_killed_process_go(folder: Path) -> None:
    folder.mkdir(mode=0o700)
    for name, age in (("new-old", cache.ABANDONED + 60), ("new-now", 0)):
        (folder / name).write_bytes(b"half")
        os.utime(folder / name, (time.time() - age,) * 2)
    cache.cached("recipe", making(b"x", []))
    assert sorted(path.name for path in folder.iterdir() if path.suffix != ".so") == ["new-now"]


def test_processes_share_a_folder(folder: Path) -> None:
    code = """
import random, sys
from gnnquant.backends.tvm import cache
cache.LIMIT = 200_000
generator = random.Random(int(sys.argv[1]))
for _ in range(300):
    number = generator.randrange(20)
    wanted = bytes([number]) * 20_000
    assert cache.cached(str(number), lambda wanted=wanted: wanted) == wanted
"""
    running = [
        subprocess.Popen([sys.executable, "-W", "error", "-c", code, str(seed)], stderr=subprocess.PIPE)
        for seed in range(3)
    ]
    for process in running:
        errors = process.communicate()[1]
        assert process.returncode == 0, errors.decode()
    assert all(path.suffix == ".so" for path in folder.iterdir())
