"""Which workspace buffers share memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from gnnquant.backends.placement import placed
from gnnquant.runtime.memory import ALIGNMENT, lay_out, padded_rows
from gnnquant.runtime.plan import Buffer, Call, Plan

if TYPE_CHECKING:
    from collections.abc import Mapping

OUTPUT = Buffer("out", "float32", ("nodes", 8), "output")


def plan(calls: list[Call], buffers: list[Buffer], *, in_outputs: bool = True) -> Plan:
    outputs = tuple(buffer.name for buffer in buffers if buffer.kind == "output")
    return placed(
        Plan((), (), (), tuple(buffers), tuple(calls), outputs, ((8,),) * len(outputs)), in_outputs=in_outputs
    )


def places(found: Plan) -> dict[str, tuple[str, int]]:
    return {b.name: (b.region, b.offset) for b in found.buffers if b.kind == "workspace"}


def steps(count: int, width: int = 16) -> list[Buffer]:
    return [Buffer(f"s{i}", "uint8", ("nodes", width), "workspace") for i in range(count)]


def chain(count: int) -> list[Call]:
    return [Call("step", (f"s{i}", f"s{i + 1}")) for i in range(count - 1)]


def test_steps_of_a_propagation_take_turns_in_two() -> None:
    found = places(plan(chain(7), steps(7)))
    assert [found[f"s{i}"] for i in range(7)] == [("nodes", 16), ("nodes", 0)] * 3 + [("nodes", 16)]


def test_what_a_later_call_reads_stays() -> None:
    calls = [*chain(5), Call("last", ("s4", "s1", "s5"))]
    found = places(plan(calls, steps(6)))
    assert [name for name, place in found.items() if place == found["s1"]] == ["s1"]


def test_small_buffers_lie_over_large_ones_of_other_types() -> None:
    buffers = [
        Buffer("codes", "uint8", ("nodes", 64), "workspace"),
        Buffer("floats", "float32", ("nodes", 4), "workspace"),
        Buffer("scales", "float32", ("nodes",), "workspace"),
    ]
    calls = [Call("f", ("codes",)), Call("g", ("floats", "scales"))]
    assert places(plan(calls, buffers)) == {
        "codes": ("nodes", 0),
        "floats": ("nodes", 0),
        "scales": ("nodes", 16),
    }


def test_what_is_done_with_before_the_output_is_written_lies_in_it() -> None:
    calls = [Call("f", ("s0",)), Call("g", ("s0", "s1")), Call("h", ("s1", "out"))]
    assert places(plan(calls, [*steps(2), OUTPUT])) == {"s0": ("out", 0), "s1": ("nodes", 0)}
    assert places(plan(calls, [*steps(2), OUTPUT], in_outputs=False)) == {
        "s0": ("nodes", 16),
        "s1": ("nodes", 0),
    }
    assert places(plan(calls, [*steps(2, width=64), OUTPUT]))["s0"] == ("nodes", 64), "it has 32 bytes a row"
    edges = Buffer("s0", "uint8", ("edges", 16), "workspace")
    assert places(plan(calls, [edges, *steps(2)[1:], OUTPUT]))["s0"] == ("edges", 0)


def test_what_cannot_lie_in_the_output_does_not_push_others_out_of_it() -> None:
    wide, last, narrow, other = (
        Buffer(name, "uint8", ("nodes", width), "workspace")
        for name, width in (("wide", 16), ("last", 16), ("narrow", 8), ("other", 16))
    )
    calls = [
        Call("f", ("wide", "narrow", "other")),
        Call("g", ("narrow", "last")),
        Call("h", ("last", "out")),
    ]
    found = places(plan(calls, [wide, last, narrow, other, OUTPUT]))
    assert found["last"] == ("nodes", 0)
    assert sorted(place for name, place in found.items() if name != "last") == [
        ("nodes", 0),
        ("out", 0),
        ("out", 8),
    ]


def test_what_is_kept_from_run_to_run_is_alone() -> None:
    calls = [
        Call("norm", ("s0", "s3"), per_graph=True),
        Call("more", ("s3", "s4"), per_graph=True),
        Call("f", ("s1", "s0", "s4")),
        Call("g", ("s1", "s2")),
        Call("h", ("s2", "out")),
    ]
    found = places(plan(calls, [*steps(5), OUTPUT]))
    for name in ("s0", "s4"):
        assert found[name][0] == "nodes"
        assert [other for other, place in found.items() if place == found[name]] == [name]
    assert found["s3"][0] == "out", "only calls that are made once need it"


def test_constants_and_inputs_have_no_place() -> None:
    buffers = [
        Buffer("w", "uint8", (16,), "constant"),
        Buffer("x", "float32", ("nodes", 4), "input"),
        *steps(2),
    ]
    found = plan(chain(2), buffers)
    assert found.buffers[:2] == tuple(buffers[:2])


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    shapes = st.tuples(
        st.sampled_from(("uint8", "float32", "int64")),
        st.one_of(
            st.tuples(st.sampled_from(("nodes", "edges")), st.integers(1, 40)),
            st.tuples(st.sampled_from(("nodes", "edges"))),
            st.tuples(st.integers(1, 3), st.integers(1, 99)),
        ),
    )
    buffers = [
        Buffer(f"b{i}", dtype, shape, "workspace")
        for i, (dtype, shape) in enumerate(draw(st.lists(shapes, min_size=1, max_size=12)))
    ]
    buffers += [
        Buffer(f"out{i}", "float32", (space, width), "output")
        for i, (space, width) in enumerate(
            draw(st.lists(st.tuples(st.sampled_from(("nodes", "edges")), st.integers(1, 40)), max_size=2))
        )
    ]
    names = [buffer.name for buffer in buffers]
    calls = draw(
        st.lists(
            st.tuples(st.lists(st.sampled_from(names), min_size=1, max_size=5, unique=True), st.booleans()),
            min_size=1,
            max_size=8,
        )
    )
    return plan([Call("f", tuple(arguments), per_graph) for arguments, per_graph in calls], buffers)


@settings(max_examples=300, deadline=None)
@given(plans(), st.integers(0, 200), st.integers(0, 200))
def test_no_call_disturbs_what_another_needs(found: Plan, nodes: int, edges: int) -> None:
    """Every call marks its buffers; at the end of two runs each mark that matters is still there."""
    sizes = {"nodes": nodes, "edges": edges}
    memory = _memory(found, sizes)
    users: dict[str, list[int]] = {}
    for index, call in enumerate(found.calls):
        for name in call.arguments:
            users.setdefault(name, []).append(index)
    kinds = {name: {found.calls[index].per_graph for index in calls} for name, calls in users.items()}
    for run in range(2):
        for index, call in enumerate(found.calls):
            if run and call.per_graph:
                continue
            for name in call.arguments:
                earlier = [other for other in users[name] if other < index]
                stands = len(kinds[name]) == 2 and run
                if earlier or stands:
                    assert (memory[name] == _mark(name)).all()
                memory[name][...] = _mark(name)


def _mark(name: str) -> int:
    return 1 + sum(name.encode()) % 251


def _memory(found: Plan, sizes: Mapping[str, int]) -> dict[str, np.ndarray]:
    """The bytes of each buffer."""
    starts, size = lay_out(found.buffers, sizes)
    arena = np.zeros(size, np.uint8)
    outputs = {
        buffer.name: np.zeros(padded_rows(buffer, sizes) * buffer.row_bytes, np.uint8)
        for buffer in found.buffers
        if buffer.kind == "output"
    }
    memory = {}
    for buffer in found.buffers:
        rows = padded_rows(buffer, sizes)
        if buffer.kind == "output":
            raw, start = outputs[buffer.name], 0
        elif buffer.name in starts:
            raw, start = arena, starts[buffer.name]
        else:
            raw, start = outputs[buffer.region], buffer.offset * rows
        length = buffer.row_bytes * (sizes[buffer.space] if buffer.space else 1)
        assert start % ALIGNMENT == 0
        assert start + length <= raw.size
        memory[buffer.name] = raw[start : start + length]
    return memory
