"""The C++ runtime beside the Python one: the same bits, the same words for what is wrong, never a crash."""

from __future__ import annotations

import dataclasses
import json
import math
import zlib
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

import gnnquant
from gnnquant.errors import ArtifactError, InputError
from gnnquant.integer_graph import IndexNode, IntegerGraph, Node, Parameter
from gnnquant.quantizers.calibration import calibrate
from gnnquant.runtime import host
from gnnquant.runtime.artifact import ArtifactPayload, from_bytes, model_from_payload, to_bytes
from gnnquant.runtime.indexing import SIZE, IndexProgram
from gnnquant.runtime.plan import Plan
from tests import zoo
from tests.parity import converted
from tests.runtime import native
from tests.runtime import test_indexing as programs
from tests.runtime.conftest import make_payload, random_graph
from tests.runtime.test_artifact import reseal

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

SIZES = ((0, 0), (1, 0), (1, 4), (13, 40), (150, 900))
"""Nodes and edges."""
GIVEN: dict[str, Any] = {
    "x": np.zeros((5, 4), np.float32),
    "w": np.zeros(7, np.float32),
    "e": programs.E,
    "f": programs.F,
    "batch": programs.BATCH,
    "types": programs.TYPES,
    "count": 6,
    "adj": (programs.ADJ, np.ones(3, np.float32), (3, 4)),
    "mask": programs.TYPES > 2,
}
"""A call with the inputs of the index programs."""


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> native.Driver:
    return native.driver(native.HERE, tmp_path_factory)


def stored(model: Any) -> ArtifactPayload:
    """What a compiled or built model would save."""
    if isinstance(model, gnnquant.CompiledModel):
        assert model._payload
        return model._payload
    return ArtifactPayload(model.plan, model.constants, model.library, {"target": model.target})


def check_same(
    payload: ArtifactPayload, calls: Sequence[dict[str, Any]], run: native.Driver, folder: Path
) -> None:
    """Both runtimes give the same bits, in the first call on a graph and in the next one."""
    ours = model_from_payload(payload)
    results = run.run(to_bytes(payload), payload.plan, [call for call in calls for _ in range(2)], folder)
    for number, result in enumerate(results):
        wanted = ours(**calls[number // 2])
        assert not isinstance(result, str), result
        for value, expected in zip(result, wanted if isinstance(wanted, tuple) else (wanted,), strict=True):
            np.testing.assert_array_equal(value, expected, strict=True)


@pytest.mark.parametrize(
    ("name", "threads"),
    [("gcn-sparse-8", 1), ("gcn-tensor-8", 2), ("gat-4", 2), ("edges-sums", 3), ("pooled", 2)],
)
def test_graphs_give_the_same_bits(name: str, threads: int, driver: native.Driver, tmp_path: Path) -> None:
    """Hubs, self-loops, duplicates, isolated nodes, no edges, no nodes; several threads."""
    from tests.backends.tvm import graphs
    from tests.backends.tvm.models import built, graph_of

    calls = [graphs.values(graph_of(name), nodes, edges) for nodes, edges in SIZES]
    check_same(stored(built(name, threads)), calls, driver, tmp_path)


@pytest.mark.parametrize(("name", "bits"), [("gat", 4), ("sage_max", 2)])
def test_models_give_the_same_bits(name: str, bits: int, driver: native.Driver, tmp_path: Path) -> None:
    model = gnnquant.compile(converted(name, bits), threads=2 if bits == 4 else 1)
    calls = []
    for nodes, edges in zoo.GRAPH_SIZES:
        graph = zoo.random_graph(nodes, edges, seed=nodes + edges)
        calls.append({"x": graph.x.numpy(), "edge_index": graph.edge_index.numpy()})
    check_same(stored(model), calls, driver, tmp_path)


def test_batches_of_graphs(driver: native.Driver, tmp_path: Path) -> None:
    model = zoo.GraphClassifier(zoo.FEATURES, zoo.CLASSES).eval()
    graph = zoo.random_graph(60, 300)
    batch = torch.arange(60) // 7
    q = calibrate(
        gnnquant.convert(model, (graph.x, graph.edge_index, batch), bits=4),
        [(graph.x, graph.edge_index, batch)],
    )
    call = {"x": graph.x.numpy(), "edge_index": graph.edge_index.numpy(), "batch": batch.numpy()}
    check_same(stored(gnnquant.compile(q, threads=1)), [call], driver, tmp_path)


@pytest.mark.parametrize("name", ["smp", "appnp"])
def test_buffers_share_memory_as_in_python(name: str, driver: native.Driver, tmp_path: Path) -> None:
    """The steps of a propagation take turns in two."""
    payload = stored(gnnquant.compile(converted(name, 4), threads=1))
    graph = zoo.random_graph(300, 900)
    call = {"x": graph.x.numpy(), "edge_index": graph.edge_index.numpy()}
    ours = model_from_payload(payload)
    ours(**call)
    (workspace,) = ours._executor._free  # type: ignore[attr-defined]
    size = driver.workspace_bytes(to_bytes(payload), payload.plan, call, tmp_path)
    assert size == workspace._arena.size
    buffers = [buffer for buffer in payload.plan.buffers if buffer.kind == "workspace"]
    apart = sum(math.prod(workspace._shapes[b.name]) * np.dtype(b.dtype).itemsize for b in buffers)
    assert size < apart
    check_same(payload, [call], driver, tmp_path)


# ---------------------------------------------------------------- the index program


def bare(library: bytes, nodes: Sequence[IndexNode]) -> ArtifactPayload:
    """An artifact that runs an index program and nothing else."""
    plan = Plan(programs.INPUTS, _parameters(), tuple(nodes), (), (), (), ())
    return dataclasses.replace(make_payload(library), plan=plan, constants={})


def _parameters() -> tuple[Parameter, ...]:
    return tuple(Parameter(item.name, "keyword", {"input": item.name}) for item in programs.INPUTS)


def all_values() -> IntegerGraph:
    """Every case of ``test_indexing.VALUES`` in one program; the row program copies what it finds."""
    index: list[IndexNode] = []
    rows: list[Node] = []
    for number, (nodes, _) in enumerate(programs.VALUES.values()):
        names = {node.name: f"c{number}_{node.name}" for node in nodes}
        for node in nodes:
            inputs = tuple(names[name] for name in node.inputs)
            index.append(dataclasses.replace(node, name=names[node.name], inputs=inputs))
        array = space = index[-1].name
        if IndexProgram(index, programs.INPUTS).kinds[array] == SIZE:
            array = f"c{number}_all"
            index.append(IndexNode(array, "arange", (space,)))
        else:
            space = f"c{number}_length"
            index.append(IndexNode(space, "length", (array,)))
        rows.append(Node(f"o{number}", "from_index", (), {"index": array}, (1,), space))
    outputs = [node.name for node in rows]
    return IntegerGraph(list(programs.INPUTS), list(_parameters()), index, rows, outputs)


def test_operations_of_the_index_program(driver: native.Driver, tmp_path: Path) -> None:
    from gnnquant.backends.tvm import build

    payload = stored(build(all_values()))
    (result,) = driver.run(to_bytes(payload), payload.plan, [GIVEN], tmp_path)
    assert not isinstance(result, str), result
    for case, found in zip(programs.VALUES, result, strict=True):
        wanted = programs.VALUES[case][1]
        wanted = np.arange(wanted) if isinstance(wanted, int) else wanted
        assert found.reshape(-1).astype(int).tolist() == wanted.tolist(), case


def test_functions_of_the_index_program(driver: native.Driver, tmp_path: Path) -> None:
    """``combine`` with arrays, numbers and sizes on both sides, and with nothing; all self-loop modes."""
    from gnnquant.backends.tvm import build

    listing = programs.listing
    index = [
        programs.N,
        listing("a", 7, -3, 0, 5),
        listing("c", 2, 2, -4, 5),
        listing("nothing"),
        programs.SRC,
        programs.DST,
    ]
    wanted: dict[str, Any] = {}
    a, c = np.array([7, -3, 0, 5]), np.array([2, 2, -4, 5])
    functions = {**programs.FUNCTIONS, "and": np.logical_and, "or": np.logical_or}
    for name, function in functions.items():
        forms: list[tuple[tuple[str, ...], dict[str, int], Any]] = [
            (("a", "c"), {}, function(a, c)),
            (("a",), {"right": 2}, function(a, 2)),
            (("c",), {"left": 3}, function(3, c)),
            (("n", "c"), {}, function(5, c)),
            (("a", "n"), {}, function(a, 5)),
            (("nothing",), {"right": 0}, np.empty(0)),
        ]
        for form, (inputs, numbers, values) in enumerate(forms):
            index.append(IndexNode(f"{name}{form}", "combine", inputs, {"function": name, **numbers}))
            wanted[f"{name}{form}"] = values
    for loops in programs.LOOPS:
        index.append(IndexNode(f"g_{loops}", "graph", programs.G, {"loops": loops}))
        edges = programs.loops_by_hand(programs.E, 5, loops)
        for place, part in enumerate(("src", "dst", "edge_id")):
            index.append(IndexNode(f"{loops}_{part}", "part", (f"g_{loops}",), {"part": part}))
            wanted[f"{loops}_{part}"] = np.array(edges)[:, place]
    rows = []
    for name in wanted:
        index.append(IndexNode(f"{name}_length", "length", (name,)))
        rows.append(Node(f"o_{name}", "from_index", (), {"index": name}, (1,), f"{name}_length"))
    graph = IntegerGraph(
        list(programs.INPUTS), list(_parameters()), index, rows, [node.name for node in rows]
    )
    payload = stored(build(graph))
    (result,) = driver.run(to_bytes(payload), payload.plan, [GIVEN], tmp_path)
    assert not isinstance(result, str), result
    for name, found in zip(wanted, result, strict=True):
        assert found.reshape(-1).astype(int).tolist() == wanted[name].astype(int).tolist(), name


def test_wrong_data_is_named_in_the_same_words(library: bytes, driver: native.Driver, tmp_path: Path) -> None:
    payloads = [bare(library, nodes) for nodes, _ in programs.FAILURES.values()]
    jobs = [(to_bytes(payload), payload.plan, [GIVEN]) for payload in payloads]
    for case, results in zip(programs.FAILURES, driver.run_all(jobs, tmp_path), strict=True):
        with pytest.raises(InputError) as raised:
            programs.run(*programs.FAILURES[case][0])
        assert results == [f"InputError: {raised.value}"], case


def test_malformed_programs_are_refused(library: bytes, driver: native.Driver, tmp_path: Path) -> None:
    plan = bare(library, ()).plan
    jobs = [(to_bytes(bare(library, nodes)), plan, [GIVEN]) for nodes in programs.MALFORMED.values()]
    for case, message in zip(programs.MALFORMED, driver.run_all(jobs, tmp_path), strict=True):
        assert isinstance(message, str), case
        assert ".gnnq is malformed: " in message, case


# ---------------------------------------------------------------- calls


def tiny_call(**changes: Any) -> dict[str, Any]:
    x, edge_index, weight = random_graph(9, 30)
    call = {"x": x, "edge_index": edge_index, "edge_weight": weight, **changes}
    return {name: value for name, value in call.items() if value is not None}


def with_value(array: Any, place: Any, value: Any) -> Any:
    changed = array.copy()
    changed[place] = value
    return changed


def wrong_calls() -> dict[str, dict[str, Any]]:
    call = tiny_call()
    x, edge_index, weight = call["x"], call["edge_index"], call["edge_weight"]
    return {
        "index too large": tiny_call(edge_index=with_value(edge_index, (0, 7), 9)),
        "index far too large": tiny_call(edge_index=with_value(edge_index, (1, 0), 2**62)),
        "index negative": tiny_call(edge_index=with_value(edge_index, (1, 29), -1)),
        "no nodes": tiny_call(x=x[:0]),
        "columns": tiny_call(x=x[:, :-1].copy()),
        "other weights": tiny_call(edge_weight=weight[:-1].copy()),
        "nan": tiny_call(x=with_value(x, (4, 2), np.nan)),
        "infinity": tiny_call(x=with_value(x, (8, 0), -np.inf)),
        "nan in weights": tiny_call(edge_weight=with_value(weight, 3, np.nan)),
    }


def test_wrong_calls_are_refused_in_the_same_words(
    library: bytes, driver: native.Driver, tmp_path: Path
) -> None:
    payload = make_payload(library, threads=2)
    model = model_from_payload(payload)
    calls = wrong_calls()
    # the model still works after each of them
    both = [call for wrong in calls.values() for call in (wrong, tiny_call())]
    results = driver.run(to_bytes(payload), payload.plan, both, tmp_path)
    for number, (case, call) in enumerate(calls.items()):
        with pytest.raises(InputError) as raised:
            model(**call)
        ours = str(raised.value).removesuffix(", e.g. with nan_to_num")
        assert results[2 * number] == f"InputError: {ours}", case
        after = results[2 * number + 1]
        assert not isinstance(after, str)
        for value, wanted in zip(after, model(**tiny_call()), strict=True):
            np.testing.assert_array_equal(value, wanted)


def test_names_and_kinds_are_checked(library: bytes, driver: native.Driver, tmp_path: Path) -> None:
    payload = make_payload(library)
    calls = [tiny_call(edge_weight=None), tiny_call(y=np.zeros(3, np.float32))]
    missing, unknown = driver.run(to_bytes(payload), payload.plan, calls, tmp_path)
    assert missing == "InputError: input 'edge_weight' is missing: the model takes x, edge_index, edge_weight"
    assert unknown == "InputError: the model has no input 'y': its inputs are x, edge_index, edge_weight"
    # as if the caller had passed the edges as float rows
    renamed = dataclasses.replace(payload.plan, inputs=())
    (kind,) = driver.run(to_bytes(payload), renamed, [tiny_call()], tmp_path)
    assert (
        kind
        == "InputError: edge_index was given as 'rows', but the model takes 'edges' there: call Inputs::edges"
    )


def test_entries_of_a_matrix_must_be_sorted(library: bytes, driver: native.Driver, tmp_path: Path) -> None:
    payload = bare(library, ())
    unsorted = {**GIVEN, "adj": (programs.ADJ[:, ::-1].copy(), np.ones(3, np.float32), (3, 4))}
    negative = {**GIVEN, "count": -1}
    results = driver.run(to_bytes(payload), payload.plan, [unsorted, negative, GIVEN], tmp_path)
    assert "adj: entry 1 belongs before the one before it" in results[0]
    assert results[1] == f"InputError: count is -1: it must be in 0 .. {2**31 - 1}"
    assert results[2] == []


# ---------------------------------------------------------------- files


def refusal(data: bytes, driver: native.Driver, folder: Path) -> str:
    """What the C++ runtime says of a file that it must not load."""
    return refusals([data], driver, folder)[0]


def refusals(files: Sequence[bytes], driver: native.Driver, folder: Path) -> list[str]:
    """As :func:`refusal`, of several files."""
    none = Plan((), (), (), (), (), (), ())
    messages = driver.run_all([(data, none, []) for data in files], folder)
    assert all(isinstance(message, str) for message in messages)
    return [str(message).removeprefix(f"{folder}/{number}.gnnq ") for number, message in enumerate(messages)]


def test_damaged_files_are_refused_in_the_same_words(
    library: bytes, driver: native.Driver, tmp_path: Path
) -> None:
    data = to_bytes(make_payload(library))
    rng = np.random.default_rng(0)
    damaged = [data[:length] for length in (0, 3, 4, 55, 56, 300, len(data) - 1)] + [data + b"x"]
    places = [0, 4, 8, 16, 24, 60, *rng.integers(0, len(data), 12)]
    damaged += [data[:place] + bytes([data[place] ^ 0x41]) + data[place + 1 :] for place in places]
    for content, message in zip(damaged, refusals(damaged, driver, tmp_path), strict=True):
        with pytest.raises(ArtifactError) as raised:
            from_bytes(content, "it")
        assert message == str(raised.value).removeprefix("it ")


def plan_section(change: Any) -> Any:
    """A change of the stored plan, with its checksums right."""

    def edit(header: Any, sections: list[bytes]) -> None:
        import hashlib

        plan = json.loads(zlib.decompress(sections[0]))
        change(plan)
        raw = json.dumps(plan).encode()
        sections[0] = zlib.compress(raw, 6)
        digest = hashlib.sha256(sections[0]).hexdigest()
        header["sections"][0].update(length=len(sections[0]), size=len(raw), sha256=digest, encoding="zlib")

    return edit


BROKEN: dict[str, Any] = {
    "no metadata": lambda header, _: header.pop("metadata"),
    "sections": lambda header, _: header.update(sections=[*header["sections"][:-1], 3]),
    "size": lambda header, _: header["sections"][0].update(size=header["sections"][0]["size"] - 1),
    "huge size": lambda header, _: header["sections"][0].update(size=2**50),
    "negative size": lambda header, _: header["sections"][0].update(size=-1),
    "kind": lambda header, _: header["sections"][0].update(kind="other"),
    "two plans": lambda header, _: header["sections"][1].update(kind="plan"),
    "constant's shape": lambda header, _: header["sections"][1].update(shape=[2**40, 2**40]),
    "constant's type": lambda header, _: header["sections"][1].update(dtype="object"),
    "no threads": plan_section(lambda plan: plan.update(threads=0)),
    "deep": plan_section(lambda plan: plan.update(result=json.loads("[" * 500 + "]" * 500))),
    "unknown buffer": plan_section(lambda plan: plan["calls"][0].update(arguments=["absent"])),
    "unknown function": plan_section(lambda plan: plan["calls"][0].update(function="absent")),
    "unknown dimension": plan_section(lambda plan: plan["buffers"][0].update(shape=["absent"])),
    "output": plan_section(lambda plan: plan.update(outputs=[])),
    "notes": plan_section(lambda plan: plan.update(notes={"finite": {"x": "absent"}})),
    "reads": plan_section(lambda plan: plan.update(notes={"reads": [["absent", 3, 0]]})),
}


def test_malformed_files_are_refused(library: bytes, driver: native.Driver, tmp_path: Path) -> None:
    files = [reseal(to_bytes(make_payload(library)), change) for change in BROKEN.values()]
    for case, message in zip(BROKEN, refusals(files, driver, tmp_path), strict=True):
        assert "malformed" in message or "no function 'absent'" in message, case


def test_sections_of_every_encoding(library: bytes, driver: native.Driver, tmp_path: Path) -> None:
    """Stored, fixed and dynamic blocks of zlib, and sections that are not packed."""
    payload = make_payload(library)
    wanted = model_from_payload(payload)(**tiny_call())

    def repack(level: int, strategy: int) -> Any:
        def change(header: Any, sections: list[bytes]) -> None:
            import hashlib

            for place, section in enumerate(header["sections"]):
                content = (
                    zlib.decompress(sections[place]) if section["encoding"] == "zlib" else sections[place]
                )
                packer = zlib.compressobj(level, strategy=strategy)
                sections[place] = packer.compress(content) + packer.flush() if level >= 0 else content
                digest = hashlib.sha256(sections[place]).hexdigest()
                encoding = "zlib" if level >= 0 else "raw"
                section.update(length=len(sections[place]), sha256=digest, encoding=encoding)

        return change

    kinds = [(0, 0), (1, 0), (9, 0), (6, zlib.Z_FIXED), (6, zlib.Z_HUFFMAN_ONLY), (6, zlib.Z_RLE), (-1, 0)]
    files = [reseal(to_bytes(payload), repack(*kind)) for kind in kinds]
    for found in driver.run_all([(data, payload.plan, [tiny_call()]) for data in files], tmp_path):
        (result,) = found
        assert not isinstance(result, str)
        for value, expected in zip(result, wanted, strict=True):
            np.testing.assert_array_equal(value, expected)


def test_code_for_another_machine_is_refused(library: bytes, driver: native.Driver, tmp_path: Path) -> None:
    payload = make_payload(library)

    def said(**changes: Any) -> str:
        target = {**payload.metadata["target"], **changes}
        other = dataclasses.replace(payload, metadata={**payload.metadata, "target": target})
        return refusal(to_bytes(other), driver, tmp_path)

    assert f"needs the architecture s390x (this machine is {native.HERE})" in said(machine="s390x")
    assert "needs windows (this machine runs linux)" in said(system="windows")
    assert "needs the processor features teleport" in said(features=["teleport"])


def test_names_of_features_are_those_of_python() -> None:
    text = (native.INCLUDE / "gnnquant" / "host.hpp").read_text(encoding="utf-8")
    renamed = {
        name: kernel for flags in host.FLAGS.values() for name, kernel in flags.items() if name != kernel
    }
    for name, kernel in renamed.items():
        assert f'{{"{name}", "{kernel}"}},' in text
    assert text.count('      {"') == len(renamed)


def test_formats_agree() -> None:
    from gnnquant.runtime import artifact
    from gnnquant.runtime.plan import GRAPH_PADDING

    text = "".join(path.read_text(encoding="utf-8") for path in (native.INCLUDE / "gnnquant").glob("*.hpp"))
    assert f"kFormatVersion = {artifact.FORMAT_VERSION};" in text
    assert f"kGraphPadding = {GRAPH_PADDING};" in text
