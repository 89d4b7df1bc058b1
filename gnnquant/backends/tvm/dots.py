"""Sums of products of adjacent integers, as the target's vectors have them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gnnquant.backends.tvm.emit import intrinsic, reinterpret, shift_left, shift_right, shuffle, vector_type

if TYPE_CHECKING:
    from gnnquant.backends.tvm.emit import Machine


def dot_words(machine: Machine, x: Any, y: Any) -> Any:
    """Sums of products of adjacent int16 pairs: int16x2V by int16x2V to int32xV."""
    lanes = machine.lanes
    if machine.words:
        return intrinsic(machine.words, vector_type("int32", lanes), x, y)
    if all(machine.halves):
        multiply, add = machine.halves
        kind = vector_type("int32", lanes)
        parts = (range(lanes), range(lanes, 2 * lanes))
        products = (intrinsic(multiply, kind, shuffle([x], part), shuffle([y], part)) for part in parts)
        return intrinsic(add, kind, *products)
    x, y = reinterpret(x, "int32", lanes), reinterpret(y, "int32", lanes)

    def low(v: Any) -> Any:
        return shift_right(shift_left(v, 16, "int32", lanes), 16, "int32", lanes)

    def high(v: Any) -> Any:
        return shift_right(v, 16, "int32", lanes)

    return low(x) * low(y) + high(x) * high(y)


def dot_bytes(machine: Machine, x: Any, y: Any) -> Any:
    """Sums of products of adjacent byte pairs, x unsigned: bytes x4V to int16x2V."""
    return intrinsic(machine.bytes, vector_type("int16", 2 * machine.lanes), x, y)


def dot_quads(machine: Machine, sums: Any, x: Any, y: Any, lanes: int | None = None) -> Any:
    """``sums`` plus sums of products of four adjacent bytes, x unsigned: bytes x4V to int32xV.

    V is the number of the machine's lanes, or half of it.
    """
    lanes = lanes or machine.lanes
    name = machine.quads if lanes == machine.lanes else machine.half_quads
    return intrinsic(name, vector_type("int32", lanes), sums, x, y)
