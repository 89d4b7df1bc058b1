"""Sums over the edges of a destination row."""
# ruff: noqa: C901, PLR0915
# Emitters nest like the loops that they emit: one function is one loop nest.

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from gnnquant.backends.tvm.codes import plane_of
from gnnquant.backends.tvm.context import FAR, LINE, NEAR, StoredCodes, fail
from gnnquant.backends.tvm.edge_codes import edge_weights
from gnnquant.backends.tvm.emit import (
    cast,
    choose,
    const,
    maximum,
    minimum,
    number,
    product,
    shuffle,
    span,
    splat,
)
from gnnquant.backends.tvm.layout import PlaneLayout, divisor, vector_lanes
from gnnquant.backends.tvm.partition import resolve
from gnnquant.backends.tvm.segments import STARTS, combine
from gnnquant.backends.tvm.sums import EdgeSum
from gnnquant.backends.tvm.values import Rows
from gnnquant.integer_graph import ONE

if TYPE_CHECKING:
    from gnnquant.backends.tvm.rows import RowKernel
    from gnnquant.integer_graph import Node


def aggregate_codes(kernel: RowKernel, node: Node) -> Rows:
    """The op ``spmm``, for the rows of the block."""
    source = kernel.context.nodes[resolve(kernel.context.graph, node.inputs[0])]
    stored = kernel.context.stored.get(source.name)
    if not isinstance(stored, StoredCodes) or source.rows == ONE:
        raise fail(node, f"it cannot aggregate {source.op} {source.name!r}: only quantized rows of a space")
    if node.attrs["reduce"] in ("max", "min"):
        if stored.scale or len(node.inputs) > 1:
            raise fail(node, "extrema need one scale per tensor and no edge weight")
        return _extreme_code(kernel, node, stored, source)
    if node.attrs["reduce"] not in ("sum", "mean"):
        raise fail(node, f"unknown reduction {node.attrs['reduce']!r}")
    return EdgeSum(kernel, node, stored, source).emit()


def _extreme_code(kernel: RowKernel, node: Node, stored: StoredCodes, source: Node) -> Rows:
    """``spmm`` with reduce "max" or "min"."""
    b, lanes, layout = kernel.b, kernel.lanes, stored.layout
    assert isinstance(layout, PlaneLayout)
    graph = node.attrs["graph"]
    indptr = kernel.graph_buffer(graph, "indptr")
    indices = kernel.graph_buffer(graph, "src")
    codes = kernel.buffer(stored.buffer)
    rows, save = kernel.local(max(node.columns, layout.reach))
    size, zero2 = layout.unit, source.attrs["zero2"]
    half = kernel.learned(np.float32(source.attrs["scale"]) * np.float32(0.5))
    largest = node.attrs["reduce"] == "max"
    better, start = (maximum, 0) if largest else (minimum, 2**layout.bits - 1)

    def row(r: Any) -> None:
        first = b.let(indptr[kernel.base + r])
        degree = b.let(indptr[kernel.base + r + 1] - first)

        def unit(index: Any) -> None:
            best = b.registers(layout.planes, "uint8", size)
            for plane in range(layout.planes):
                b.store(best, splat(const(start, "uint8"), size), plane)
            with b.loop(degree) as k:
                data = b.let(codes[indices[first + k], span(index * size, size)])
                for plane in range(layout.planes):
                    b.store(best, better(best[plane], plane_of(data, layout, plane, size)), plane)
            for plane in range(layout.planes):
                found = b.let(shuffle([best[plane]], layout.places))
                for part in range(0, size, lanes):
                    u = cast(shuffle([found], range(part, part + lanes)), "int32", lanes)
                    value = cast(u + u - splat(const(zero2), lanes), "float32", lanes)
                    y = choose(splat(degree > 0, lanes), value * half(lanes), number(0.0, lanes))
                    save(r, (index * layout.planes + plane) * size + part, y, lanes)

        kernel.each(layout.units, unit)

    kernel.each_row(row)
    return Rows(node.columns, True, rows.at, True)


def aggregate_floats(kernel: RowKernel, node: Node) -> Rows:
    """The op ``float_spmm``, for the rows of the block."""
    b = kernel.b
    reduce, heads = node.attrs["reduce"], node.attrs["heads"]
    if reduce not in ("sum", "mean", "max", "min"):
        raise fail(node, f"unknown reduction {reduce!r}")
    if node.columns % heads:
        raise fail(node, f"{node.columns} columns do not divide into {heads} heads")
    graph = node.attrs["graph"]
    indptr = kernel.graph_buffer(graph, "indptr")
    indices = kernel.graph_buffer(graph, "src")
    base = kernel.base
    x = kernel.reader(node.inputs[0])
    head_columns = node.columns // heads
    weights = edge_weights(kernel, node)
    rows, save = kernel.local(node.columns)

    def row(r: Any) -> None:
        first = b.let(indptr[base + r])
        degree = b.let(indptr[base + r + 1] - first)
        if weights is not None:
            weights.begin(r, first, degree)

        def block(column: Any, lanes: int, vectors: int) -> None:
            acc = b.registers(vectors, "float32", lanes)
            for v in range(vectors):
                b.store(acc, number(STARTS[reduce], lanes), v)
            with b.loop(degree) as k:
                e = b.let(first + k)
                j = b.let(indices[e])
                if vectors * lanes * 4 >= LINE:
                    for distance, cache in ((NEAR, 1), (FAR, 2)):
                        kernel.prefetch(x, b.let(indices[e + distance]), column, vectors * lanes, cache=cache)
                weight, single = None, heads == 1 or head_columns % (vectors * lanes) == 0
                for v in range(vectors):
                    term = x.at(j, column + v * lanes, lanes)
                    if weights is not None:
                        if weight is None or not single:
                            head = 0 if heads == 1 else (column + v * lanes) // head_columns
                            weight = b.let(splat(weights.at(e, head, 1), lanes))
                        term = product(term, weight, lanes)
                    b.store(acc, combine(reduce, acc[v], term, lanes), v)
            for v in range(vectors):
                y = acc[v]
                if reduce == "mean":
                    y = y / splat(cast(maximum(degree, const(1)), "float32"), lanes)
                if reduce in ("max", "min"):
                    y = choose(splat(degree > 0, lanes), y, number(0.0, lanes))
                save(r, column + v * lanes, y, lanes)

        lanes = kernel.lanes
        if heads == 1 and (x.padded or node.columns % lanes == 0):
            count = -(-node.columns // lanes)
            vectors = divisor(count, 8)
            kernel.each(count // vectors, lambda i: block(i * (vectors * lanes), lanes, vectors))
        elif heads == 1:
            kernel.columns(node.columns, False, lambda j, width: block(j, width, 1))
        else:
            lanes = vector_lanes(head_columns, lanes)
            vectors = divisor(node.columns // lanes, 8)
            width = vectors * lanes
            kernel.each(node.columns // width, lambda i: block(i * width, lanes, vectors))

    kernel.each_row(row)
    return rows
