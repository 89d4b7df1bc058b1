"""Operations along the columns of a row: joins, static gathers, reductions, products."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from tvm import tirx

from gnnquant.backends.tvm import maths
from gnnquant.backends.tvm.context import fail
from gnnquant.backends.tvm.emit import fold_max, maximum, opaque, product, reinterpret, splat, transposed
from gnnquant.backends.tvm.segments import STARTS, combine
from gnnquant.backends.tvm.values import Rows

if TYPE_CHECKING:
    from collections.abc import Callable

    from gnnquant.backends.tvm.rows import RowKernel
    from gnnquant.integer_graph import Node

MOST_RUNS = 64
"""Runs of a permutation that are written out; longer ones read a table."""
LEAST_ACROSS = 4
"""Lanes of a vector of sums for which it is worth to transpose squares."""


def concat(kernel: RowKernel, node: Node) -> Rows:
    """The op ``concat``."""
    parts = [kernel.float_rows(name) for name in node.inputs]
    shapes = [kernel.context.nodes[name].shape for name in node.inputs]
    outer = int(np.prod(node.shape[:-1]))
    rows, save = kernel.local(node.columns)

    def row(r: Any) -> None:
        begin = 0
        for part, shape in zip(parts, shapes, strict=True):
            width = shape[-1]

            def group(o: Any, part: Rows = part, width: int = width, begin: int = begin) -> None:
                target, first = begin + o * node.shape[-1], o * width
                kernel.columns(
                    width,
                    False,
                    lambda j, lanes: save(r, target + j, part.at(r, first + j, lanes), lanes),
                )

            if width:
                kernel.each(outer, group)
            begin += width

    kernel.each_row(row)
    return rows


def columns(kernel: RowKernel, node: Node) -> Rows:
    """The op ``columns``: a slice is read where it lies, anything else is copied."""
    x = kernel.float_rows(node.inputs[0])
    source = np.asarray(node.attrs["index"], dtype=np.int64).reshape(-1)
    if source.size != node.columns or (source.size and not 0 <= source.min() <= source.max() < x.columns):
        raise fail(node, f"its columns do not lie in 0 .. {x.columns - 1}")
    first = int(source[0]) if source.size else 0
    if (source == np.arange(first, first + source.size)).all():
        padded = x.padded and first % kernel.lanes == 0
        return Rows(source.size, padded, lambda r, j, lanes: x.at(r, first + j, lanes), x.loaded)
    return permute(kernel, x, source)


def permute(kernel: RowKernel, x: Rows, source: np.ndarray[Any, Any]) -> Rows:
    """Rows whose column j is column ``source[j]`` of ``x``, by runs of equal step."""
    x = kernel.solid(x)
    rows, save = kernel.local(source.size)
    runs = _runs(source)

    def from_table(r: Any) -> None:
        table = kernel.keep(source.astype(np.int32))

        def column(j: Any) -> None:
            place = kernel.b.let(reinterpret(kernel.kept(table + j), "int32"))
            save(r, j, x.at(r, place, 1), 1)

        kernel.each(source.size, column)

    def by_runs(r: Any) -> None:
        for begin, first, step, length in runs:
            _run(kernel, x, save, r, (begin, first, step, length))

    kernel.each_row(from_table if len(runs) > MOST_RUNS else by_runs)
    return rows


def _run(
    kernel: RowKernel, x: Rows, save: Callable[..., None], r: Any, run: tuple[int, int, int, int]
) -> None:
    begin, first, step, length = run
    if step == 1:
        kernel.columns(length, False, lambda j, lanes: save(r, begin + j, x.at(r, first + j, lanes), lanes))
    elif step == 0:
        value = kernel.b.let(x.at(r, first, 1))
        kernel.columns(length, False, lambda j, lanes: save(r, begin + j, splat(value, lanes), lanes))
    else:
        kernel.each(length, lambda j: save(r, begin + j, x.at(r, first + j * step, 1), 1))


def _runs(source: np.ndarray[Any, Any]) -> list[tuple[int, int, int, int]]:
    """Runs of equal step: first column, its source, step, length."""
    runs = []
    start = 0
    while start < source.size:
        stop = start + 1
        step = int(source[stop] - source[start]) if stop < source.size else 1
        while stop < source.size and source[stop] - source[stop - 1] == step:
            stop += 1
        if stop - start == 2 and step not in (0, 1):  # two columns are no run: the next may begin one
            stop, step = start + 1, 1
        runs.append((start, int(source[start]), step, stop - start))
        start = stop
    return runs


def reduce(kernel: RowKernel, node: Node) -> Rows:
    """The op ``reduce``."""
    shape = kernel.context.nodes[node.inputs[0]].shape
    kind, axis = node.attrs["reduce"], node.attrs["axis"] % len(shape)
    outer, length, inner = (int(np.prod(part)) for part in (shape[:axis], shape[axis], shape[axis + 1 :]))
    if kind not in STARTS or not length:
        raise fail(node, f"a reduction {kind!r} over {length} elements")
    x = kernel.float_rows(node.inputs[0])
    if inner == 1 and kind in ("sum", "mean") and _across(kernel, outer, length) > 1:
        place = _sums(kernel, x, outer, length, length if kind == "mean" else 0)
        return Rows(
            outer, True, lambda r, j, lanes: kernel.load("float32", place + r * outer + j, lanes), True
        )
    rows, save = kernel.local(node.columns)

    def row(r: Any) -> None:
        def group(o: Any) -> None:
            def part(j: Any, lanes: int) -> None:
                first = o * (length * inner) + j
                total = _ordered(kernel, kind, length, lambda k: x.at(r, first + k * inner, lanes), lanes)
                if kind == "mean":
                    total = total / opaque(length, lanes)
                save(r, o * inner + j, total, lanes)

            kernel.columns(inner, False, part)

        kernel.each(outer, group)

    kernel.each_row(row)
    return rows


def _ordered(kernel: RowKernel, kind: str, length: int, at: Callable[[Any], Any], lanes: int) -> Any:
    """``at(0)`` combined with ``at(1)``, then with ``at(2)``, and so on."""
    total = kernel.b.registers(1, "float32", lanes)
    kernel.b.store(total, at(0), 0)
    if length > 1:
        with kernel.b.loop(length - 1) as k:
            kernel.b.store(total, combine(kind, total[0], at(k + 1), lanes), 0)
    return total[0]


def matmul(kernel: RowKernel, node: Node) -> Rows:
    """The op ``matmul``: rows of the left matrix, vectors of columns of the right one."""
    nodes = [kernel.context.nodes[name] for name in node.inputs]
    left, right = (operand.shape for operand in nodes)
    batch = node.shape[:-2]
    height, length, width = left[-2], left[-1], right[-1]
    if right[-2] != length or not length:
        raise fail(node, f"{list(left)} by {list(right)} is no matrix product")
    operands, steps = [], []
    for operand in nodes:
        matrix = operand.shape[-2:]
        single = int(np.prod(operand.shape[:-2])) == 1
        value = kernel.float_rows(operand.name) if single else kernel.broadcast(operand.name, batch + matrix)
        operands.append(kernel.solid(value))
        steps.append(0 if single else int(np.prod(matrix)))
    x, y = operands
    rows, save = kernel.local(node.columns)

    def row(r: Any) -> None:
        def line(n: Any, i: Any) -> None:
            def part(j: Any, lanes: int) -> None:
                def term(k: Any) -> Any:
                    factor = splat(x.at(r, n * steps[0] + i * length + k, 1), lanes)
                    return product(factor, y.at(r, n * steps[1] + k * width + j, lanes), lanes)

                total = _ordered(kernel, "sum", length, term, lanes)
                save(r, (n * height + i) * width + j, total, lanes)

            kernel.columns(width, False, part)

        kernel.each(int(np.prod(batch)), lambda n: kernel.each(height, lambda i: line(n, i)))

    kernel.each_row(row)
    return rows


def log_softmax(kernel: RowKernel, node: Node) -> Rows:
    """The op ``log_softmax``."""
    groups, length = _groups(node)
    x, largest, power = _centred(kernel, node)
    totals = _totals(kernel, power, groups, length)
    # logarithms of all groups of the block at once
    count = kernel.block * groups
    lanes = kernel.lanes if count % kernel.lanes == 0 else 1

    def logarithm(index: Any) -> None:
        place = totals + index * lanes
        kernel.save("float32", maths.log(kernel.load("float32", place, lanes), lanes), place, lanes)

    kernel.each(count // lanes, logarithm)

    def at(r: Any, o: Any, j: Any, lanes: int) -> Any:
        shifted = x.at(r, o * length + j, lanes) - splat(largest(r, o), lanes)
        return shifted - splat(kernel.load("float32", totals + r * groups + o), lanes)

    return _by_group(kernel, node, at, x.padded)


def softmax(kernel: RowKernel, node: Node) -> Rows:
    """The op ``softmax``."""
    groups, length = _groups(node)
    _, _, power = _centred(kernel, node)
    totals = _totals(kernel, power, groups, length)

    def at(r: Any, o: Any, j: Any, lanes: int) -> Any:
        total = kernel.load("float32", totals + r * groups + o)
        return power.at(r, o * length + j, lanes) / splat(total, lanes)

    return _by_group(kernel, node, at, power.padded)


def _groups(node: Node) -> tuple[int, int]:
    """Number and length of the runs of the last axis."""
    if not node.columns:
        raise fail(node, "a softmax over nothing")
    return node.columns // node.shape[-1], node.shape[-1]


def _by_group(kernel: RowKernel, node: Node, at: Callable[[Any, Any, Any, int], Any], padded: bool) -> Rows:
    """Rows of ``at(r, group, column of the group, lanes)``; read lazily where there is one group."""
    groups, length = _groups(node)
    if groups == 1:
        return Rows(node.columns, padded, lambda r, j, lanes: at(r, 0, j, lanes))
    rows, save = kernel.local(node.columns)

    def row(r: Any) -> None:
        def group(o: Any) -> None:
            kernel.columns(length, False, lambda j, lanes: save(r, o * length + j, at(r, o, j, lanes), lanes))

        kernel.each(groups, group)

    kernel.each_row(row)
    return rows


def _totals(kernel: RowKernel, x: Rows, groups: int, length: int) -> int:
    """Sums of the groups, in scratch: its offset."""
    if _across(kernel, groups, length) > 1:
        return _sums(kernel, x, groups, length)
    totals = kernel.reserve("float32", kernel.block * groups)

    def row(r: Any) -> None:
        def group(o: Any) -> None:
            total = _ordered(kernel, "sum", length, lambda k: x.at(r, o * length + k, 1), 1)
            kernel.save("float32", total, totals + r * groups + o)

        kernel.each(groups, group)

    kernel.each_row(row)
    return totals


def _across(kernel: RowKernel, groups: int, length: int) -> int:
    """Lanes of the vectors of sums that run across the groups and rows of a block; 1 if they cannot."""
    lanes = kernel.lanes
    while lanes >= LEAST_ACROSS and (length < lanes or kernel.block * groups % lanes):
        lanes //= 2
    return lanes if lanes >= LEAST_ACROSS else 1


def _sums(kernel: RowKernel, x: Rows, groups: int, length: int, divisor: int = 0) -> int:
    """Sums of the groups, as many at a time as a vector has lanes, in scratch: its offset.

    A square of columns is read along the groups and added across them, so that every sum still runs
    from left to right.
    """
    b, lanes = kernel.b, _across(kernel, groups, length)
    totals = kernel.reserve("float32", kernel.block * groups + kernel.lanes)
    whole, rest = divmod(length, lanes)

    def some(index: Any) -> None:
        places = []
        for lane in range(lanes):
            group = index * lanes + lane
            r = 0 if kernel.block == 1 else b.let(tirx.min(group // groups, kernel.rows - 1))
            places.append((r, b.let(group % groups * length)))
        total = b.registers(1, "float32", lanes)

        def square(column: Any, first: int, start: bool) -> None:
            rows = [b.let(x.at(r, begin + column, lanes)) for r, begin in places]
            for position, value in enumerate(transposed(rows, lanes)[first:]):
                fresh = start and position == 0
                b.store(total, value if fresh else total[0] + value, 0)

        square(0, 0, True)
        if whole > 1:
            with b.loop(whole - 1) as part:
                square((part + 1) * lanes, 0, False)
        if rest:
            square(length - lanes, lanes - rest, False)
        value = total[0] / opaque(divisor, lanes) if divisor else total[0]
        kernel.save("float32", value, totals + index * lanes, lanes)

    kernel.each(kernel.block * groups // lanes, some)
    return totals


def _centred(kernel: RowKernel, node: Node) -> tuple[Rows, Callable[[Any, Any], Any], Rows]:
    """The operand, the largest value of a group, ``exp(x - max)``."""
    groups, length = _groups(node)
    x = kernel.solid(kernel.float_rows(node.inputs[0]))
    place = kernel.reserve("float32", kernel.block * groups)
    power, save = kernel.local(x.columns)
    lanes = kernel.lanes_of(length)
    b = kernel.b

    def row(r: Any) -> None:
        def group(o: Any) -> None:
            first = o * length
            best = b.registers(1, "float32", lanes)
            b.store(best, x.at(r, first, lanes), 0)
            kernel.columns(
                length,
                False,
                lambda j, width: b.store(best, maximum(best[0], x.at(r, first + j, width)), 0),
            )
            largest = b.let(fold_max(best[0], lanes))
            kernel.save("float32", largest, place + r * groups + o)

            def part(j: Any, width: int) -> None:
                shifted = x.at(r, first + j, width) - splat(largest, width)
                save(r, first + j, maths.exp(shifted, width), width)

            kernel.columns(length, x.padded and groups == 1, part)

        kernel.each(groups, group)

    kernel.each_row(row)
    return x, lambda r, o: kernel.load("float32", place + r * groups + o), power
