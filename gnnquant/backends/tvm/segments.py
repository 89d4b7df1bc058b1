"""Reductions over rows: of the edges of a destination, and of all rows of a space."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gnnquant.backends.tvm.context import fail
from gnnquant.backends.tvm.emit import cast, choose, const, maximum, minimum, number, product, span, splat

if TYPE_CHECKING:
    from collections.abc import Callable

    from gnnquant.backends.tvm.rows import RowKernel
    from gnnquant.integer_graph import Node

STARTS = {"sum": 0.0, "mean": 0.0, "mul": 1.0, "max": float("-inf"), "min": float("inf")}
"""What a reduction starts from."""


def combine(reduce: str, total: Any, value: Any, lanes: int) -> Any:
    """One step of a reduction."""
    if reduce == "mul":
        return product(total, value, lanes)
    if reduce == "max":
        return maximum(total, value)
    if reduce == "min":
        return minimum(total, value)
    return total + value


def start(kernel: RowKernel, node: Node) -> None:
    """What the sums of the thread's destinations start from; 0 for extrema of nothing."""
    reduce = node.attrs["reduce"]
    if reduce not in STARTS:
        raise fail(node, f"unknown reduction {reduce!r}")
    total, _ = kernel.declare(node)

    def row(i: Any, count: Any) -> None:
        value = number(STARTS[reduce])
        if reduce in ("max", "min"):
            value = choose(count > 0, value, number(0.0))

        def part(c: Any, lanes: int) -> None:
            kernel.b.store(total, splat(value, lanes), i, span(c, lanes))

        _each(kernel, node, part)

    _destinations(kernel, node, row)


def add(kernel: RowKernel, node: Node) -> None:
    """The rows of the block."""
    reduce = node.attrs["reduce"]
    total, wide = kernel.declare(node)
    x = kernel.float_rows(node.inputs[0])
    if wide and not x.padded:
        x = kernel.copied(x)

    def row(r: Any) -> None:
        i: Any = 0
        if node.op == "segment_reduce":
            i = kernel.b.let(kernel.graph_buffer(kernel.space, "dst")[kernel.base + r])

        def part(c: Any, lanes: int) -> None:
            value = combine(reduce, total[i, span(c, lanes)], x.at(r, c, lanes), lanes)
            kernel.b.store(total, value, i, span(c, lanes))

        _each(kernel, node, part)

    kernel.each_row(row)


def finish(kernel: RowKernel, node: Node) -> None:
    """The division of means."""
    if node.attrs["reduce"] != "mean":
        return
    total, _ = kernel.declare(node)

    def row(i: Any, count: Any) -> None:
        length = cast(maximum(count, const(1)), "float32")

        def part(c: Any, lanes: int) -> None:
            value = total[i, span(c, lanes)] / splat(length, lanes)
            kernel.b.store(total, value, i, span(c, lanes))

        _each(kernel, node, part)

    _destinations(kernel, node, row)


def _each(kernel: RowKernel, node: Node, body: Callable[[Any, int], None]) -> None:
    """Columns, each once."""
    kernel.columns(node.columns, node.columns >= kernel.lanes, body)


def _destinations(kernel: RowKernel, node: Node, row: Callable[[Any, Any], None]) -> None:
    """``row(i, number of rows that are reduced to row i)`` for the thread's results."""
    b = kernel.b
    if node.op == "row_reduce":
        row(0, kernel.last + 1)
        return
    indptr = kernel.graph_buffer(kernel.space, "indptr")
    first, stop = kernel.destinations
    with b.loop(stop - first) as index:
        i = b.let(first + index)
        row(i, b.let(indptr[i + 1] - indptr[i]))
