"""Quantized rows: from floats to codes and back, and codes in memory."""
# ruff: noqa: PLR0917
# All rows have one signature, (row, column, lanes): not every one reads all three.

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from gnnquant.backends.tvm import maths
from gnnquant.backends.tvm.context import LINE, StoredCodes, fail
from gnnquant.backends.tvm.emit import (
    bind,
    cast,
    choose,
    const,
    fold_max,
    intrinsic,
    maximum,
    minimum,
    number,
    product,
    reinterpret,
    shift_left,
    shift_right,
    shuffle,
    span,
    splat,
    unary,
    vector_type,
)
from gnnquant.backends.tvm.layout import ByteLayout, PlaneLayout, plane_layout, round_up
from gnnquant.backends.tvm.partition import resolve
from gnnquant.backends.tvm.stream import Stream
from gnnquant.backends.tvm.values import Codes, Rows
from gnnquant.backends.tvm.watch import Watch
from gnnquant.integer_graph import ONE, SMALLEST

if TYPE_CHECKING:
    from collections.abc import Callable

    from gnnquant.backends.tvm.context import Context
    from gnnquant.backends.tvm.rows import RowKernel
    from gnnquant.integer_graph import Node

    Load = Callable[[Any, int], Any]
    """``load(first, count)``"""
    Store = Callable[[Any, Any, int], None]
    """``store(first, value, count)``"""

INFINITY_BITS = 0x7F800000
LEAST_SCALE = 2.0**-125
"""From here on halves of scales are exact, whatever these are."""
AS_SET, DOWN = 4, 9
"""How AVX-512 rounds: as the processor is set, which is to the nearest; down, without exceptions."""


def quantize(kernel: RowKernel, node: Node) -> Codes:
    """The op ``quantize``."""
    bits, zero2 = node.attrs["bits"], node.attrs["zero2"]
    x, read, scale_of, by_row, finish = _prepared(kernel, node)
    stride = round_up(max(_layout(kernel.context, node).reach, x.columns) + 64, 64)
    start = kernel.reserve("uint8", kernel.block * stride)
    codes = Codes(x.columns, bits, zero2, start, stride, kernel.block, kernel.rows, read, not by_row)
    low, high = -((zero2 + 1) // 2), 2**bits - 1 - (zero2 + 1) // 2
    wide = 4 * kernel.lanes
    # one conversion instead of two, each of which has half of its vectors from the other's columns
    one_step = bool(kernel.machine.rounding) and wide // 2 < x.columns < wide and x.padded
    round_ = "llvm.floor" if zero2 % 2 else "llvm.rint"

    def row(r: Any) -> None:
        inverse = kernel.b.let(scale_of(r))

        def quantized(j: Any, lanes: int) -> None:
            place = start + r * stride + j
            if lanes == wide and kernel.machine.rounding:
                kernel.save("uint8", _round_packed(kernel, x, r, j, inverse, bits, zero2), place, lanes)
                return
            t = x.at(r, j, lanes) * splat(inverse, lanes)
            t = minimum(maximum(t, number(low, lanes)), number(high, lanes))
            u = cast(unary(round_, t, lanes), "int32", lanes) - splat(const(low), lanes)
            kernel.save("uint8", cast(u, "uint8", lanes), place, lanes)

        if one_step:
            quantized(0, wide)
        else:
            kernel.columns(x.columns, False, quantized, width=4)
        clear(kernel, start + r * stride + x.columns, stride - x.columns)

    kernel.each_row(row)
    finish()
    return codes


class _Prepared(NamedTuple):
    """How rows become codes.

    Attributes:
        x: What to quantize.
        read: The scale of a row.
        scale_of: Finds it and returns its inverse.
        by_row: Whether each row has its own.
        finish: Emits what follows the rows of a block.
    """

    x: Rows
    read: Callable[[Any], Any]
    scale_of: Callable[[Any], Any]
    by_row: bool
    finish: Callable[[], None]


def _prepared(kernel: RowKernel, node: Node) -> _Prepared:
    x = kernel.broadcast(node.inputs[0], node.shape)
    given = kernel.context.nodes[resolve(kernel.context.graph, node.inputs[0])].op == "input"
    if given and not kernel.machine.tiles and _multiplied_next(kernel, node):
        # zeros may be skipped: few products to ask beside
        kernel.stream = Stream(kernel, x, spread=node.attrs["zero2"] == 0)
    if node.attrs["granularity"] == "row":
        x = kernel.solid(x)
        return _Prepared(x, *_row_scale(kernel, node, x, given), True, lambda: None)
    if not given:
        return _Prepared(x, *_fixed_scale(kernel, node), False, lambda: None)
    watch = Watch(kernel, node, x)
    return _Prepared(watch.x, *_fixed_scale(kernel, node), False, watch.finish)


def goes_to_memory(kernel: RowKernel, node: Node) -> bool:
    """Whether :func:`quantize_to_memory` takes ``node``: nobody here reads it, and vectors fit its rows."""
    if kernel.reads.get(node.name) != 1 or node.name not in kernel.stage.exports:
        return False
    layout, wide = _layout(kernel.context, node), 4 * kernel.lanes
    step = layout.unit * layout.planes if isinstance(layout, PlaneLayout) else wide
    return bool(kernel.machine.rounding) and step % wide == 0 and node.columns % step == 0


def quantize_to_memory(kernel: RowKernel, node: Node) -> None:
    """The op ``quantize``, and its codes written for later kernels, from registers."""
    bits, zero2 = node.attrs["bits"], node.attrs["zero2"]
    x, read, scale_of, by_row, finish = _prepared(kernel, node)
    layout, beside, store = _declare(kernel, node, not by_row)
    wide = 4 * kernel.lanes

    def row(r: Any) -> None:
        inverse = kernel.b.let(scale_of(r))
        beside(r, read(r))

        def rounded(first: Any) -> Any:
            return _round_packed(kernel, x, r, first, inverse, bits, zero2)

        def into_row(place: Any, value: Any, width: int) -> None:
            store(r, place, value, width)

        def unit(index: Any) -> None:
            assert isinstance(layout, PlaneLayout)
            parts = []
            for first in range(0, layout.planes * layout.unit, wide):
                codes = bind(rounded(index * (layout.planes * layout.unit) + first))
                parts += [shuffle([codes], range(at, at + layout.unit)) for at in range(0, wide, layout.unit)]
            _pack_unit(layout, index, parts, into_row)

        if isinstance(layout, PlaneLayout):
            kernel.each(layout.units, unit)
        else:
            kernel.each(
                node.columns // wide, lambda index: into_row(index * wide, rounded(index * wide), wide)
            )

    kernel.each_row(row)
    finish()


def _fixed_scale(kernel: RowKernel, node: Node) -> tuple[Callable[[Any], Any], Callable[[Any], Any]]:
    """The scale that all rows have: how to read it, and its inverse."""
    value = np.float32(node.attrs["scale"])
    scale = kernel.learned(value)
    inverse = kernel.learned(np.float32(1) / value if value >= SMALLEST else 0.0)
    return lambda _: scale(), lambda _: inverse()


def _row_scale(
    kernel: RowKernel, node: Node, x: Rows, watched: bool
) -> tuple[Callable[[Any], Any], Callable[[Any], Any]]:
    """A scale per row: how to read it, and how to find it and return its inverse."""
    read, write = kernel.scalar()
    factor = kernel.learned(node.attrs["factor"])
    source = kernel.context.nodes[resolve(kernel.context.graph, node.inputs[0])]
    largest = _largest(kernel, node, source, x, watched)

    def inverse(r: Any) -> Any:
        scale = kernel.b.let(largest(r) * factor())
        write(r, scale)
        if watched:
            kernel.b.store(kernel.buffer(_watch(kernel, node)), scale, kernel.base + r)
        return maths.inverse(scale, 1.0, 1)

    return read, inverse


def _multiplied_next(kernel: RowKernel, node: Node) -> bool:
    """Whether the next product of the kernel is that of the codes of ``node``."""
    later = kernel.stage.nodes[kernel.stage.nodes.index(node) :]
    product = next((other for other in later if other.op == "gemm"), None)
    return product is not None and resolve(kernel.context.graph, product.inputs[0]) == node.name


def dequantize(kernel: RowKernel, node: Node) -> Rows:
    """The op ``dequantize``."""
    there = _lying(kernel, node.inputs[0])
    if there is not None:
        return there
    q, real = kernel.codes(node.inputs[0]), _real(quantizer_of(kernel, node.inputs[0]))

    def at(r: Any, j: Any, lanes: int) -> Any:
        return real(kernel.load("uint8", q.start + r * q.stride + j, lanes), q.scale(r), lanes)

    return Rows(q.columns, True, at)


def quantizer_of(kernel: RowKernel, name: str) -> Node:
    """The node that made the codes ``name``, which may be gathered."""
    return _behind_gathers(kernel, name)[0]


def _behind_gathers(kernel: RowKernel, name: str) -> tuple[Node, list[Node]]:
    """The node that made what ``name`` gathers, and the gathers, the last one first."""
    graph, nodes = kernel.context.graph, kernel.context.nodes
    gathers, node = [], nodes[resolve(graph, name)]
    while node.op == "gather":
        gathers.append(node)
        node = nodes[resolve(graph, node.inputs[0])]
    return node, gathers


def _real(quantizer: Node) -> Callable[[Any, Any, int], Any]:
    """The floats of codes, ``f32(2u - zero2) * (scale / 2)``, given codes, their scale and lanes."""
    zero2 = quantizer.attrs["zero2"]

    def real(codes: Any, scale: Any, lanes: int) -> Any:
        u = cast(codes, "int32", lanes)
        doubled = u + u - splat(const(zero2), lanes)
        return product(cast(doubled, "float32", lanes), splat(scale * number(0.5), lanes), lanes)

    def undoubled(codes: Any, scale: Any, lanes: int) -> Any:
        u = cast(cast(codes, "int32", lanes), "float32", lanes)
        return product(u - number(zero2 / 2, lanes) if zero2 else u, splat(scale, lanes), lanes)

    return undoubled if halves_exactly(quantizer) else real


def halves_exactly(quantizer: Node) -> bool:
    """Whether half the scale is exact: a factor 2 then moves without rounding."""
    return quantizer.attrs["granularity"] == "tensor" and quantizer.attrs["scale"] >= LEAST_SCALE


def _lying(kernel: RowKernel, name: str) -> Rows | None:
    """Floats of codes that another kernel stored in the order of columns, a byte each."""
    found = _stored(kernel, name)
    if found is None or resolve(kernel.context.graph, name) in kernel.values:
        return None
    node, stored, place = found
    if not isinstance(stored.layout, ByteLayout):
        return None
    _ask_next(kernel, name, stored)
    buffer, scale = kernel.buffer(stored.buffer), _scale_of(kernel, node, stored, place)
    padded, real = stored.layout.row_bytes >= round_up(node.columns, kernel.lanes), _real(node)

    def at(r: Any, j: Any, lanes: int) -> Any:
        return real(buffer[place(r), span(j, lanes)], scale(r), lanes)

    return Rows(node.columns, padded, at)


def _declare(
    kernel: RowKernel, node: Node, fixed: bool
) -> tuple[ByteLayout | PlaneLayout, Callable[[Any, Any], None], Callable[[Any, Any, Any, int], None]]:
    """Where codes go that later kernels read.

    Returns:
        Their layout; ``beside(r, scale)``, which writes what lies beside a row; ``store(r, place, value,
        width)``, which writes bytes of it.
    """
    layout = _layout(kernel.context, node)
    name = kernel.context.add(f"codes.{node.name}", "uint8", (node.rows, layout.row_bytes), "workspace")
    watch = "" if fixed else _watch(kernel, node)
    kernel.context.stored[node.name] = StoredCodes(name, layout, watch)
    buffer = kernel.buffer(name)
    weights = [
        (kernel.buffer(weighed_scales(kernel.context, node, name)), kernel.float_rows(name))
        for name in kernel.context.beside.get(node.name, ())
    ]

    def beside(r: Any, scale: Any) -> None:
        if watch:
            kernel.b.store(kernel.buffer(watch), scale, kernel.base + r)
        for weighed, weight in weights:
            kernel.b.store(weighed, product(weight.at(r, 0, 1), scale, 1), kernel.base + r)

    def store(r: Any, place: Any, value: Any, width: int) -> None:
        kernel.b.store(buffer, value, kernel.base + r, span(place, width))

    return layout, beside, store


def store_codes(kernel: RowKernel, node: Node, q: Codes) -> None:
    """Write codes for later kernels."""
    layout, beside, store = _declare(kernel, node, q.fixed)

    def row(r: Any) -> None:
        beside(r, q.scale(r))
        origin = q.start + r * q.stride

        def load(column: Any, width: int) -> Any:
            return kernel.load("uint8", origin + column, width)

        def into_row(place: Any, value: Any, width: int) -> None:
            store(r, place, value, width)

        def unit(index: Any) -> None:
            assert isinstance(layout, PlaneLayout)
            first = index * layout.planes
            parts = [load((first + plane) * layout.unit, layout.unit) for plane in range(layout.planes)]
            _pack_unit(layout, index, parts, into_row)

        if isinstance(layout, PlaneLayout):
            kernel.each(layout.units, unit)
        else:
            kernel.columns(
                layout.row_bytes, False, lambda j, width: into_row(j, load(j, width), width), width=4
            )

    kernel.each_row(row)


def _pack_unit(layout: PlaneLayout, index: Any, parts: list[Any], store: Store) -> None:
    """Store a unit of a row, given the codes of each plane in the order of columns."""
    unit, planes = layout.unit, layout.planes
    word = None
    for plane, codes in enumerate(parts):
        part = codes
        if planes > 1:
            # codes have so few bits that nothing leaves its byte
            words = reinterpret(codes, "uint16", unit // 2)
            part = shift_left(words, plane * layout.bits, "uint16", unit // 2)
        word = part if word is None else word | part
    if planes > 1:
        word = reinterpret(word, "uint8", unit)
    store(index * unit, shuffle([word], layout.order), unit)


def _unpack_unit(layout: PlaneLayout, index: Any, load: Load, store: Store) -> None:
    """The reverse of :func:`_pack_unit`: ``load`` reads packed bytes, ``store`` takes codes by column."""
    unit, planes = layout.unit, layout.planes
    data = bind(shuffle([load(index * unit, unit)], layout.places))
    for plane in range(planes):
        store((index * planes + plane) * unit, plane_of(data, layout, plane, unit), unit)


def plane_of(data: Any, layout: PlaneLayout, plane: int, size: int) -> Any:
    """The codes of a plane in ``size`` bytes."""
    if layout.planes == 1:
        return data
    mask = splat(const((2**layout.bits - 1) * 0x0101, "uint16"), size // 2)
    words = reinterpret(data, "uint16", size // 2)
    return reinterpret(shift_right(words, plane * layout.bits, "uint16", size // 2) & mask, "uint8", size)


def stored_codes(kernel: RowKernel, name: str) -> Codes | None:
    """Codes of another kernel, or rows gathered from them; None where ``name`` is no quantized value."""
    found = _stored(kernel, name)
    if found is None:
        return None
    _ask_next(kernel, name, found[1])
    return _unpack(kernel, *found)


def _ask_next(kernel: RowKernel, name: str, stored: StoredCodes) -> None:
    """Ask for the rows of the next block, which sums over edges keep the processor from foreseeing."""
    node = kernel.context.nodes[resolve(kernel.context.graph, name)]
    if node.op == "gather" or node.rows == ONE or kernel.block == 1:
        return
    buffer = kernel.buffer(stored.buffer)

    def row(r: Any) -> None:
        for first in range(0, stored.layout.row_bytes, LINE):
            kernel.b.prefetch(buffer[kernel.base + kernel.block + r, first], 2)

    kernel.each_row(row)


def _stored(kernel: RowKernel, name: str) -> tuple[Node, StoredCodes, Callable[[Any], Any]] | None:
    """The quantized value behind ``name``, where it lies, and at which row for row r of the block."""
    node, gathers = _behind_gathers(kernel, name)
    stored = kernel.context.stored.get(node.name)
    if not isinstance(stored, StoredCodes):
        return None

    def place(r: Any) -> Any:
        row = kernel.base + r
        for gather in gathers:
            if "fill" in gather.attrs:
                raise fail(gather, "codes are gathered with a fill value; gather before quantizing")
            index = kernel.index_array(gather.attrs["index"], gather.rows)
            row = index[0 if gather.rows == ONE else row]
        return 0 if node.rows == ONE else row

    return node, stored, place


def _scale_of(
    kernel: RowKernel, node: Node, stored: StoredCodes, place: Callable[[Any], Any]
) -> Callable[[Any], Any]:
    """The scale of row r of the block."""
    step = None if stored.scale else kernel.learned(node.attrs["scale"])

    def scale(r: Any) -> Any:
        return step() if step else kernel.buffer(stored.scale)[place(r)]

    return scale


def _unpack(kernel: RowKernel, node: Node, stored: StoredCodes, place: Callable[[Any], Any]) -> Codes:
    """Codes in memory, row ``place(r)`` for row r of the block, as bytes in scratch."""
    layout = stored.layout
    bits, zero2 = node.attrs["bits"], node.attrs["zero2"]
    stride = round_up(max(layout.reach, node.columns) + 64, 64)
    start = kernel.reserve("uint8", kernel.block * stride)
    buffer = kernel.buffer(stored.buffer)

    def row(r: Any) -> None:
        origin = kernel.b.let(place(r))

        def load(byte: Any, width: int) -> Any:
            return buffer[origin, span(byte, width)]

        def store(column: Any, value: Any, width: int) -> None:
            kernel.save("uint8", value, start + r * stride + column, width)

        if isinstance(layout, PlaneLayout):
            kernel.each(layout.units, lambda index: _unpack_unit(layout, index, load, store))
        else:
            kernel.columns(layout.row_bytes, False, lambda j, width: store(j, load(j, width), width), width=4)
        clear(kernel, start + r * stride + node.columns, stride - node.columns)

    kernel.each_row(row)
    scale = _scale_of(kernel, node, stored, place)
    return Codes(node.columns, bits, zero2, start, stride, kernel.block, kernel.rows, scale, not stored.scale)


def _round_packed(kernel: RowKernel, x: Rows, r: Any, j: Any, inverse: Any, bits: int, zero2: int) -> Any:
    """Codes of four vectors at a time.

    The conversions to narrower integers saturate, so that only the upper end is clamped before
    (a float beyond the int32 range would become the smallest integer). Vectors behind the last column are 0.
    """
    machine, lanes = kernel.machine, kernel.lanes
    offset = (zero2 + 1) // 2
    high = 2**bits - 1 - offset
    four = []
    for part in range(4):
        if isinstance(j, int) and j + part * lanes >= x.columns:
            four.append(splat(const(0), lanes))
            continue
        t = x.at(r, j + part * lanes, lanes) * splat(inverse, lanes)
        t = minimum(t, number(high, lanes))
        four.append(_rounded(machine.rounding, t, lanes, down=bool(zero2 % 2)))
    to16, to8 = machine.narrow
    halves = []
    for part in (0, 2):
        pair = intrinsic(to16, vector_type("int16", 2 * lanes), four[part], four[part + 1])
        if offset:
            pair = pair + splat(const(offset, "int16"), 2 * lanes)
        halves.append(pair)
    codes = intrinsic(to8, vector_type("uint8", 4 * lanes), *halves)
    if lanes > 4:
        # the conversions work within 128-bit parts
        words, parts = reinterpret(codes, "int32", lanes), lanes // 4
        order = [4 * (i % parts) + i // parts for i in range(lanes)]
        codes = reinterpret(shuffle([words], order), "uint8", 4 * lanes)
    return codes


def _rounded(name: str, value: Any, lanes: int, *, down: bool) -> Any:
    """``value`` as int32, the nearest or the one below, by the processor's conversion."""
    dtype = vector_type("int32", lanes)
    if ".mask." not in name:
        return intrinsic(name, dtype, unary("llvm.floor", value, lanes) if down else value)
    # of all lanes
    mode = const(DOWN if down else AS_SET)
    return intrinsic(name, dtype, value, splat(const(0), lanes), const(-1, "int16"), mode)


def _largest(kernel: RowKernel, node: Node, source: Node, x: Rows, watched: bool) -> Callable[[Any], Any]:
    """The statistic of the row to quantize; several quantizers of a value find it once."""
    graph, zero2 = kernel.context.graph, node.attrs["zero2"]

    def alike(other: Node) -> bool:
        return (
            other.op == "quantize"
            and other.attrs["granularity"] == "row"
            and resolve(graph, other.inputs[0]) == source.name
            and other.shape == node.shape
            and bool(other.attrs["zero2"]) == bool(zero2)
        )

    found = [other.name for other in kernel.stage.nodes if alike(other)]
    if len(found) == 1:
        return lambda r: _statistic(kernel, x, r, zero2, watched)
    if found[0] in kernel.statistics:
        return kernel.statistics[found[0]]
    read, write = kernel.scalar()
    kernel.statistics[found[0]] = read

    def first(r: Any) -> Any:
        value = kernel.b.let(_statistic(kernel, x, r, zero2, watched))
        write(r, value)
        return value

    return first


def _statistic(kernel: RowKernel, x: Rows, r: Any, zero2: int, watched: bool) -> Any:
    """Largest (absolute) value of row r; NaN or infinity where the row of an input has one.

    The comparison is one of bit patterns, which order like the numbers from 0 to NaN.
    """
    lanes = kernel.lanes_of(x.columns)
    both = watched and zero2 == 0
    best = kernel.b.registers(2 if both else 1, "int32", lanes)
    zero = splat(const(0), lanes)
    kernel.b.store(best, zero, 0)
    if both:
        kernel.b.store(best, zero, 1)

    def visit(j: Any, width: int) -> None:
        asked = kernel.stream is not None and kernel.stream.x is x
        if watched and kernel.block > 1 and width > 1 and not asked:
            # memory works ahead on the next block while this one is computed
            kernel.b.prefetch(x.at(r + kernel.block, j, 1))
        bits = reinterpret(x.at(r, j, width), "int32", width)
        magnitude = bits & splat(const(0x7FFFFFFF), width)
        kernel.b.store(best, maximum(best[0], magnitude if zero2 else bits), 0)
        if both:
            kernel.b.store(best, maximum(best[1], magnitude), 1)

    kernel.columns(x.columns, False, visit)
    result = kernel.b.let(fold_max(best[0], lanes))
    if both:
        largest = fold_max(best[1], lanes)
        result = kernel.b.let(choose(largest >= const(INFINITY_BITS), largest, result))
    return reinterpret(result, "float32")


def clear(kernel: RowKernel, start: Any, count: int) -> None:
    """Zeros in the byte scratch: kernels read whole vectors and words of codes."""
    width = 4 * kernel.lanes
    zero = splat(const(0, "uint8"), width)
    at = 0
    while count - at >= width:
        kernel.save("uint8", zero, start + at, width)
        at += width
    while count > at and width >= 1:
        # the rest overlaps what was cleared before
        kernel.save("uint8", zero, start + count - width, width)
        at = count


def _watch(kernel: RowKernel, node: Node) -> str:
    """The buffer of row scales."""
    return kernel.context.add(f"scale.{node.name}", "float32", (node.rows,), "workspace")


def weighed_scales(context: Context, quantizer: Node, weight: str) -> str:
    """The buffer of the scales of a quantized value times the numbers ``weight`` of its rows."""
    return context.add(f"weighed.{quantizer.name}.{weight}", "float32", (quantizer.rows,), "workspace")


def _layout(context: Context, node: Node) -> ByteLayout | PlaneLayout:
    """How the codes of ``node`` are stored: as those who sum them over edges read them best."""
    graph, bits, lanes = context.graph, node.attrs["bits"], context.machine.lanes
    summed = any(user.op == "spmm" and resolve(graph, user.inputs[0]) == node.name for user in graph.nodes)
    if bits == 8 and not summed:
        return ByteLayout(node.columns, lanes)
    return plane_layout(bits, node.columns, lanes, context.machine.sums)
