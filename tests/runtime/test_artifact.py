from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import stat
import struct
import subprocess
import sys
import tempfile
import textwrap
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gnnquant.errors import ArtifactError
from gnnquant.runtime import CompiledModel, artifact, host, load
from gnnquant.runtime.artifact import ArtifactPayload, from_bytes, to_bytes
from tests.runtime.conftest import random_graph


def reseal(data: bytes, change: Any) -> bytes:
    """``data`` with its header edited and the checksums made right again."""
    (length,) = struct.unpack_from("<I", data, 16)
    header = json.loads(data[56 : 56 + length])
    stored = [
        data[section["offset"] : section["offset"] + section["length"]] for section in header["sections"]
    ]
    change(header, stored)
    raw = json.dumps(header).encode()
    for _ in range(3):
        offset = 56 + len(raw)
        for section, content in zip(header.get("sections", []), stored, strict=False):
            if isinstance(section, dict) and section.get("offset") != "bad":
                section["offset"] = offset
            offset += len(content)
        raw = json.dumps(header).encode()
    prefix = struct.pack("<4sIQI4x", b"GNNQ", artifact.FORMAT_VERSION, offset, len(raw))
    return prefix + hashlib.sha256(prefix + raw).digest() + raw + b"".join(stored)


def test_round_trip(model: CompiledModel, tmp_path: Path) -> None:
    path = tmp_path / "model.gnnq"
    model.save(path)
    loaded = load(str(path))
    graph = random_graph(50, 200)
    for got, wanted in zip(loaded(*graph), model(*graph), strict=True):
        np.testing.assert_array_equal(got, wanted)
    assert loaded.info == model.info
    assert loaded.info["size_bytes"] == path.stat().st_size
    loaded.save(tmp_path / "again.gnnq")
    assert (tmp_path / "again.gnnq").read_bytes() == path.read_bytes()
    assert CompiledModel.load(path).info == model.info
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again.gnnq", "model.gnnq"]


def test_constants_and_plan_survive(payload: ArtifactPayload) -> None:
    again = from_bytes(to_bytes(payload))
    assert again.plan == payload.plan
    assert again.library == payload.library
    np.testing.assert_array_equal(again.constants["bias"], payload.constants["bias"])
    assert again.constants["bias"].dtype == np.float32


def test_saving_replaces_a_file_whole_or_not_at_all(
    model: CompiledModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.gnnq"
    path.write_bytes(b"old")

    def fail(*args: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        model.save(path)
    assert path.read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["model.gnnq"]


def test_the_library_is_private_and_does_not_stay(
    payload: ArtifactPayload, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gnnquant.runtime import tvm_abi

    modes = []
    original = tvm_abi.TvmRuntime.load_library

    def record(self: Any, path: str) -> Any:
        modes.append(stat.S_IMODE(Path(path).stat().st_mode))
        modes.append(stat.S_IMODE(Path(path).parent.stat().st_mode))
        return original(self, path)

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(tvm_abi.TvmRuntime, "load_library", record)
    artifact.load_bytes(to_bytes(payload))
    assert modes == [0o600, 0o700]
    assert not list(tmp_path.iterdir())


def test_two_libraries_in_one_process_keep_apart(library: bytes, tmp_path: Path) -> None:
    from tests.runtime.conftest import make_payload

    graph = random_graph(30, 100)
    degrees = [
        artifact.load_bytes(to_bytes(make_payload(library, loops=loops)))(*graph)[1]
        for loops in ("keep", "add")
    ]
    np.testing.assert_array_equal(degrees[0] + 1, degrees[1])


class TestDamage:
    @pytest.fixture
    def data(self, payload: ArtifactPayload) -> bytes:
        return to_bytes(payload)

    @pytest.fixture(autouse=True)
    def no_code_is_loaded(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(*args: object, **kwargs: object) -> None:
            pytest.fail("code of a damaged artifact was loaded")

        monkeypatch.setattr(artifact, "model_from_payload", fail)

    def test_not_an_artifact(self, tmp_path: Path) -> None:
        for content in (b"", b"PK\3\4 a zip file", b"GNN", bytes(100)):
            path = tmp_path / "file"
            path.write_bytes(content)
            with pytest.raises(ArtifactError, match=r"is not a gnnquant artifact|is truncated"):
                load(path)
        with pytest.raises(ArtifactError, match=r"cannot be read: No such file"):
            load(tmp_path / "absent.gnnq")
        with pytest.raises(ArtifactError, match=r"cannot be read: Is a directory"):
            load(tmp_path)

    def test_every_truncation_is_found(self, data: bytes) -> None:
        generator = np.random.default_rng(0)
        lengths = {*range(1, 80), len(data) - 1, *generator.integers(1, len(data), 100).tolist()}
        for length in sorted(lengths):
            with pytest.raises(ArtifactError, match="truncated"):
                artifact.load_bytes(data[:length])

    def test_every_altered_byte_is_found(self, data: bytes) -> None:
        generator = np.random.default_rng(1)
        positions = {*range(80), *generator.integers(0, len(data), 400).tolist()}
        for position in sorted(positions):
            changed = bytearray(data)
            changed[position] ^= int(generator.integers(1, 256))
            with pytest.raises(ArtifactError):
                artifact.load_bytes(bytes(changed))

    def test_bytes_after_the_end(self, data: bytes) -> None:
        with pytest.raises(ArtifactError, match="altered"):
            artifact.load_bytes(data + b"x")

    def test_newer_format(self, data: bytes) -> None:
        newer = data[:4] + struct.pack("<I", artifact.FORMAT_VERSION + 1) + data[8:]
        with pytest.raises(ArtifactError, match=r"made by a newer gnnquant.*upgrade"):
            artifact.load_bytes(newer)

    def test_older_format(self, data: bytes) -> None:
        older = data[:4] + struct.pack("<I", 1) + data[8:]
        with pytest.raises(ArtifactError, match=r"made by an older gnnquant.*compile the model again"):
            artifact.load_bytes(older)

    @pytest.mark.parametrize(
        ("key", "value", "message"),
        [
            ("machine", "riscv64", "needs the architecture riscv64"),
            ("system", "plan9", "needs plan9"),
            ("pointer_bits", 32, "needs a 32-bit process"),
            ("byte_order", "big", "needs big-endian memory"),
            ("features", ["sse4.2", "quantum2"], "needs the processor features .*quantum2"),
        ],
    )
    def test_other_machine(self, data: bytes, key: str, value: Any, message: str) -> None:
        def change(header: dict, stored: list[bytes]) -> None:
            header["metadata"]["target"][key] = value

        with pytest.raises(ArtifactError, match=message):
            artifact.load_bytes(reseal(data, change))

    def test_resealed_without_change_is_fine(self, data: bytes) -> None:
        from_bytes(reseal(data, lambda header, stored: None))

    @pytest.mark.parametrize(
        "change",
        [
            lambda header, stored: header.pop("metadata"),
            lambda header, stored: header["metadata"].pop("target"),
            lambda header, stored: header["metadata"].update(target=3),
            lambda header, stored: header["metadata"]["target"].update(features=None),
            lambda header, stored: header.pop("sections"),
            lambda header, stored: header.update(sections=[1, 2, 3]),
            lambda header, stored: header["sections"][1].update(offset="bad"),
            lambda header, stored: header["sections"][1].update(length=-1),
            lambda header, stored: header["sections"][1].update(length="1"),
            lambda header, stored: header["sections"][1].update(shape=[3]),
            lambda header, stored: header["sections"][1].update(shape=[-1, -1]),
            lambda header, stored: header["sections"][1].update(dtype="object"),
            lambda header, stored: header["sections"][1].update(dtype=["float32"]),
            lambda header, stored: header["sections"][1].update(size=17),
            lambda header, stored: header["sections"][0].update(size=2**60),
            lambda header, stored: header["sections"][0].update(kind="novel"),
            lambda header, stored: header["sections"][0].update(kind="library"),
            lambda header, stored: header["sections"][0].pop("sha256"),
            lambda header, stored: (header["sections"].pop(), stored.pop()),
        ],
    )
    def test_malformed_with_right_checksums(self, data: bytes, change: Any) -> None:
        with pytest.raises(ArtifactError):
            artifact.load_bytes(reseal(data, change))

    @pytest.mark.parametrize(
        "change",
        [
            lambda plan: plan.clear(),
            lambda plan: plan.update(threads="1"),
            lambda plan: plan.update(threads=0),
            lambda plan: plan.update(calls=[{"function": "add_one", "arguments": 5}]),
            lambda plan: plan.update(calls=[{"function": "add_one", "arguments": ["z"]}]),
            lambda plan: plan.update(buffers="none"),
            lambda plan: plan["buffers"][0].update(dtype="complex64"),
            lambda plan: plan["buffers"][0].update(shape=[-1]),
            lambda plan: plan["buffers"][0].update(shape=[{}]),
            lambda plan: plan["buffers"][0].update(shape=["h", 4]),
            lambda plan: plan["buffers"][0].update(shape=["source", 4]),
            lambda plan: plan["buffers"][2].update(shape=[5]),
            lambda plan: plan["inputs"][0].pop("kind"),
            lambda plan: plan["inputs"][0].update(name=[]),
            lambda plan: plan["inputs"][0].update(kind="novel"),
            lambda plan: plan["inputs"][0].update(shape=[5]),
            lambda plan: plan["inputs"].pop(),
            lambda plan: plan["index"][-1]["attrs"].update(loops="many"),
            lambda plan: plan["index"][-1].update(inputs=["source", "target", "nodes"]),
            lambda plan: plan["index"][-1].update(inputs=["nodes", "target", "nodes", "nodes"]),
            lambda plan: plan["index"][-1].update(name="source"),
            lambda plan: plan["index"][0].update(op="novel"),
            lambda plan: plan["index"][0].update(attrs={}),
            lambda plan: plan["index"][4]["attrs"].update(part=2),
            lambda plan: plan["index"][4]["attrs"].update(input="x"),
            lambda plan: plan["index"].reverse(),
            lambda plan: plan["parameters"].pop(0),
            lambda plan: plan["parameters"][0].update(kind="novel"),
            lambda plan: plan["parameters"][0].update(tree={"input": "y"}),
            lambda plan: plan["parameters"][0].update(tree={}),
            lambda plan: plan["parameters"][0].update(tree=[1]),
            lambda plan: plan.update(result={"output": 2}),
            lambda plan: plan.update(result={"tuple": 5}),
            lambda plan: plan.update(output_shapes=[[3], [1]]),
            lambda plan: plan["buffers"][1].update(kind="index"),
            lambda plan: plan["buffers"][3].update(kind="input"),
            lambda plan: plan.update(notes=[]),
            lambda plan: plan.update(notes={"finite": {"x": "absent"}}),
            lambda plan: plan.update(notes={"max_rows": {"absent": 5}}),
            lambda plan: plan.update(notes={"max_rows": {"nodes": "5"}}),
        ],
    )
    def test_malformed_plan_with_right_checksums(self, data: bytes, change: Any) -> None:
        def edit(header: dict, stored: list[bytes]) -> None:
            plan = json.loads(zlib.decompress(stored[0]))
            change(plan)
            raw = json.dumps(plan).encode()
            stored[0] = zlib.compress(raw)
            header["sections"][0].update(
                length=len(stored[0]), size=len(raw), sha256=hashlib.sha256(stored[0]).hexdigest()
            )

        with pytest.raises(ArtifactError, match="malformed"):
            artifact.load_bytes(reseal(data, edit))

    def test_decompression_is_bounded(self, data: bytes) -> None:
        bomb = zlib.compress(bytes(50_000_000), 9)

        def change(header: dict, stored: list[bytes]) -> None:
            stored[0] = bomb
            header["sections"][0].update(length=len(bomb), sha256=hashlib.sha256(bomb).hexdigest(), size=1000)

        with pytest.raises(ArtifactError, match="does not end where it should"):
            artifact.load_bytes(reseal(data, change))


def test_library_that_is_none(payload: ArtifactPayload) -> None:
    broken = dataclasses.replace(payload, library=b"\x7fELF but not quite")
    with pytest.raises(ArtifactError, match="compiled code cannot be loaded"):
        artifact.load_bytes(to_bytes(broken))


def test_library_without_the_functions(payload: ArtifactPayload) -> None:
    plan = payload.plan
    call = dataclasses.replace(plan.calls[0], function="absent")
    broken = dataclasses.replace(payload, plan=dataclasses.replace(plan, calls=(call,)))
    with pytest.raises(ArtifactError, match="no function 'absent'"):
        artifact.load_bytes(to_bytes(broken))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("threads", 0, "no thread"),
        ("index", (), "'x' has the dimension 'nodes'"),
        ("buffers", (), "unknown buffer 'x'"),
        ("outputs", ("y",), "not its output buffers"),
        ("output_shapes", (), "differ in number"),
    ],
)
def test_malformed_plan(payload: ArtifactPayload, field: str, value: Any, message: str) -> None:
    plan = dataclasses.replace(payload.plan, **{field: value})
    with pytest.raises(ArtifactError, match=message):
        artifact.model_from_payload(dataclasses.replace(payload, plan=plan), size=0)


def test_requirements_name_instruction_sets_only() -> None:
    target = host.requirements("x86_64-unknown-linux-gnu", "znver3", ["+avx2", "slow-3ops-lea"])
    assert target["features"] == ["avx2"]
    assert target["machine"] == "x86_64"
    assert host.requirements("arm64-apple-darwin", "apple-m1", ["neon"])["machine"] == "aarch64"


NO_TORCH = """
    import sys
    from importlib.abc import MetaPathFinder

    import numpy as np

    class Blocker(MetaPathFinder):
        def find_spec(self, name, path=None, target=None):
            if name.split(".")[0] in ("torch", "torch_geometric", "tvm", "tvm_ffi"):
                raise ImportError(f"{name} is blocked")
            return None

    sys.meta_path.insert(0, Blocker())
    from gnnquant.runtime import load
    from gnnquant.errors import InputError

    model = load(sys.argv[1])
    data = np.load(sys.argv[2])
    for _ in range(3):
        y, degree = model(data["x"], data["edge_index"], edge_weight=data["weight"])
    assert np.array_equal(y, data["y"])
    handle = model.prepare(data["edge_index"], len(data["x"]))
    assert np.array_equal(model(data["x"], handle, data["weight"])[0], data["y"])
    try:
        model(data["x"].astype(np.float64), handle, data["weight"])
    except InputError as error:
        assert "float32 is needed" in str(error)
    else:
        raise AssertionError
    loaded = {name.split(".")[0] for name in sys.modules}
    assert not loaded & {"torch", "tvm", "tvm_ffi"}, loaded
    print("ran")
"""


def test_runs_where_torch_cannot_be_imported(library: bytes, tmp_path: Path) -> None:
    from tests.runtime.conftest import make_payload

    model = artifact.load_bytes(to_bytes(make_payload(library, threads=2)))
    x, edge_index, weight = random_graph(300, 2000)
    y = model(x, edge_index, weight)[0]
    model.save(tmp_path / "model.gnnq")
    np.savez(tmp_path / "data.npz", x=x, edge_index=edge_index, weight=weight, y=y)
    files = [str(tmp_path / "model.gnnq"), str(tmp_path / "data.npz")]
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(NO_TORCH), *files],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[2],
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout == "ran\n"
