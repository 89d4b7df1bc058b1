"""Sums of products of adjacent integers, as the target's vectors have them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gnnquant.backends.tvm.emit import (
    bind,
    const,
    intrinsic,
    reinterpret,
    shift_left,
    shift_right,
    shuffle,
    splat,
    vector_type,
)
from gnnquant.integer_graph import EDGE_LEVELS

if TYPE_CHECKING:
    from collections.abc import Callable

    from gnnquant.backends.tvm.emit import Machine

LARGEST = 32767
"""Largest sum of two products of bytes that stays exact."""


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


@dataclass(frozen=True)
class EdgeDots:
    """How codes of four edges are multiplied by their 8-bit weights and added.

    Attributes:
        prepare: ``prepare(weights)``: int8 x4V, the same four in every int32 lane, once for all columns.
        add: ``add(sums, codes, prepared)``: int32 xV plus sums of four products each, of uint8 x4V.
        less: What codes are less in these products.
    """

    prepare: Callable[[Any], Any]
    add: Callable[[Any, Any, Any], Any]
    less: int = 0


def edge_dots(machine: Machine, bits: int, *, negative: bool) -> EdgeDots:
    """The quickest that is exact for codes of ``bits`` bits, and weights that may be ``negative`` or not.

    Processors without products of four bytes have them of two, whose sums must fit int16, or of words.
    """
    lanes, ones = machine.lanes, splat(const(1, "int16"), 2 * machine.lanes)

    def of_quads(sums: Any, codes: Any, weights: Any) -> Any:
        return dot_quads(machine, sums, codes, weights)

    def of_bytes(sums: Any, codes: Any, weights: Any) -> Any:
        return sums + dot_words(machine, dot_bytes(machine, codes, weights), ones)

    def of_signed(sums: Any, codes: Any, weights: Any) -> Any:
        signed = reinterpret(codes ^ splat(const(128, "uint8"), 4 * lanes), "int8", 4 * lanes)
        return of_bytes(sums, reinterpret(weights, "uint8", 4 * lanes), signed)

    def of_words(sums: Any, codes: Any, weights: tuple[Any, Any]) -> Any:
        pairs = bind(reinterpret(codes, "uint16", 2 * lanes))
        even = pairs & splat(const(255, "uint16"), 2 * lanes)
        odd = shift_right(pairs, 8, "uint16", 2 * lanes)
        for words, weight in zip((even, odd), weights, strict=True):
            sums = sums + dot_words(machine, reinterpret(words, "int16", 2 * lanes), weight)
        return sums

    def as_words(weights: Any) -> tuple[Any, Any]:
        pairs = bind(reinterpret(weights, "int16", 2 * lanes))
        even = shift_right(shift_left(pairs, 8, "int16", 2 * lanes), 8, "int16", 2 * lanes)
        return bind(even), bind(shift_right(pairs, 8, "int16", 2 * lanes))

    if machine.by_quads(bits):
        return EdgeDots(bind, of_quads)
    if machine.bytes and 2 * (2**bits - 1) * EDGE_LEVELS <= LARGEST:
        return EdgeDots(bind, of_bytes)
    if machine.bytes and not negative:
        assert 2 * 128 * EDGE_LEVELS <= LARGEST
        return EdgeDots(bind, of_signed, less=128)
    return EdgeDots(as_words, of_words)
