"""Which workspace buffers share memory."""

from __future__ import annotations

from gnnquant.runtime.executor import homes
from gnnquant.runtime.plan import Buffer, Call, Plan


def plan(calls: list[Call], buffers: list[Buffer], finite: dict[str, str] | None = None) -> Plan:
    return Plan((), (), (), tuple(buffers), tuple(calls), (), (), notes={"finite": finite or {}})


def steps(count: int, dtype: str = "uint8") -> list[Buffer]:
    return [Buffer(f"s{i}", dtype, ("nodes", 16), "workspace") for i in range(count)]


def chain(count: int) -> list[Call]:
    return [Call("step", (f"s{i}", f"s{i + 1}")) for i in range(count - 1)]


def test_steps_of_a_propagation_take_turns_in_two() -> None:
    found = homes(plan(chain(7), steps(7)))
    assert [found[f"s{i}"] for i in range(7)] == ["s0", "s1", "s0", "s1", "s0", "s1", "s0"]


def test_what_a_later_call_reads_stays() -> None:
    calls = [*chain(5), Call("last", ("s4", "s1", "s5"))]
    found = homes(plan(calls, steps(6)))
    assert [name for name, home in found.items() if home == "s1"] == ["s1"]


def test_other_shapes_and_types_have_other_memory() -> None:
    buffers = [*steps(3), Buffer("wide", "uint8", ("nodes", 32), "workspace"), *steps(5, "int8")[3:]]
    calls = [*chain(3), Call("f", ("s2", "wide")), Call("g", ("wide", "s3")), Call("h", ("s3", "s4"))]
    found = homes(plan(calls, buffers))
    assert found == {"s0": "s0", "s1": "s1", "s2": "s0", "wide": "wide", "s3": "s3", "s4": "s4"}


def test_what_is_kept_from_call_to_call_is_alone() -> None:
    calls = [Call("norm", ("s0",), per_graph=True), Call("f", ("s1", "s0", "s2")), Call("g", ("s2", "s3"))]
    found = homes(plan(calls, steps(4), {"x": "s1"}))
    assert found == {f"s{i}": f"s{i}" for i in range(4)}


def test_constants_and_inputs_share_nothing() -> None:
    buffers = [
        Buffer("w", "uint8", (16,), "constant"),
        Buffer("x", "float32", ("nodes", 4), "input"),
        *steps(2),
    ]
    assert set(homes(plan(chain(2), buffers))) == {"s0", "s1"}
