"""Row kernels: everything that can be computed from one row, for blocks of rows."""
# ruff: noqa: ARG005, PLR0917
# All rows have one signature, (row, column, lanes): not every one reads all three.

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from gnnquant.backends.tvm import maths
from gnnquant.backends.tvm.aggregate import aggregate_codes, aggregate_floats
from gnnquant.backends.tvm.context import Kernel, StoredCodes, StoredRows, fail
from gnnquant.backends.tvm.emit import (
    cast,
    choose,
    const,
    fold_max,
    intrinsic,
    maximum,
    minimum,
    number,
    opaque,
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
from gnnquant.backends.tvm.gemm import float_gemm, integer_gemm
from gnnquant.backends.tvm.layout import code_layout, round_up
from gnnquant.backends.tvm.partition import resolve
from gnnquant.backends.tvm.values import Codes, Rows
from gnnquant.integer_graph import ELEMENTWISE

if TYPE_CHECKING:
    from collections.abc import Callable

    from gnnquant.backends.tvm.context import Context
    from gnnquant.backends.tvm.partition import Stage
    from gnnquant.integer_graph import Node

INTEGER_BLOCK, FLOAT_BLOCK = 8, 24
"""Rows of a block, so that a panel of weights is used several times while it is in cache."""
INFINITY_BITS = 0x7F800000


class RowKernel(Kernel):
    """Emits one stage of node rows.

    Attributes:
        block: Rows of a block.
        base: First row of the current block.
        rows: Number of rows of the current block (the last block may be short).
        last: Last row of the matrix.
    """

    def __init__(self, context: Context, stage: Stage, name: str, outputs: list[tuple[int, str]]) -> None:
        """Prepare the kernel of ``stage`` that also writes ``outputs`` (position, node)."""
        super().__init__(context, name)
        self.stage = stage
        ops = {node.op for node in stage.nodes}
        self.block = 1
        if "float_gemm" in ops:
            self.block = FLOAT_BLOCK
        elif ops & {"gemm", "log_softmax"}:
            self.block = INTEGER_BLOCK
        self.base: Any = None
        self.rows: Any = None
        self.last: Any = None
        self.values: dict[str, Rows | Codes] = {}
        self.outputs = outputs
        self.reads: dict[str, int] = {}
        graph = context.graph
        for node in stage.nodes:
            for operand in node.inputs:
                origin = resolve(graph, operand)
                self.reads[origin] = self.reads.get(origin, 0) + 1
        for kept in [*stage.exports, *(output for _, output in outputs)]:
            self.reads[kept] = self.reads.get(kept, 0) + 1

    def body(self) -> None:
        """Emit the statements."""
        from tvm import tirx

        b = self.b
        graphs = [node.inputs[1] for node in self.stage.nodes if node.op.endswith("spmm")]
        with b.shared_loop(self.context.threads) as thread:
            self.thread = thread
            if graphs:
                share = self.graph_buffer(graphs[0], "partition")
                total = self.graph_buffer(graphs[0], "indptr").shape[0] - 1
                first, stop = b.let(share[thread]), b.let(share[thread + 1])
            else:
                total = b.size("nodes")
                step = (total + self.context.threads - 1) // self.context.threads
                first = b.let(tirx.min(thread * step, total))
                stop = b.let(tirx.min(first + step, total))
            self.last = total - 1
            blocks = (stop - first + (self.block - 1)) // self.block
            with b.loop(blocks) as index:
                self.base = b.let(first + index * self.block)
                self.rows = const(1)
                if self.block > 1:
                    self.rows = b.let(tirx.min(const(self.block), stop - self.base))
                for node in self.stage.nodes:
                    self._node(node)
                for position, name in self.outputs:
                    self._output(position, name)

    # ------------------------------------------------------------ values

    def each_row(self, body: Callable[[Any], None]) -> None:
        """``body(r)`` for the rows of the block."""
        if self.block == 1:
            body(0)
        else:
            with self.b.loop(self.rows) as r:
                body(r)

    def operand(self, name: str) -> Rows | Codes:
        """The value of a node, wherever it lives."""
        graph = self.context.graph
        name = resolve(graph, name)
        if name in self.values:
            return self.values[name]
        node = graph[name]
        value: Rows | Codes
        if node.op == "constant":
            value = self.constant(self.context.graph.constants[node.attrs["array"]])
        elif node.op == "node_input":
            value = self._memory(StoredRows(node.attrs["input"], node.columns, False), node.columns)
        else:
            stored = self.context.stored[name]
            if isinstance(stored, StoredRows):
                value = self._memory(stored, node.columns)
            else:
                value = self._unpack(node, stored)
        self.values[name] = value
        return value

    def float_rows(self, name: str) -> Rows:
        """The value of a float node."""
        value = self.operand(name)
        assert isinstance(value, Rows)
        return value

    def codes(self, name: str) -> Codes:
        """The value of a quantized node."""
        value = self.operand(name)
        assert isinstance(value, Codes)
        return value

    def constant(self, array: np.ndarray[Any, Any]) -> Rows:
        """A row constant."""
        offset = self.context.pool(array.astype(np.float32))
        return Rows(array.size, True, lambda r, j, lanes: self.pool(offset + j, lanes), True)

    def _memory(self, stored: StoredRows, columns: int) -> Rows:
        def at(r: Any, j: Any, lanes: int) -> Any:
            buffer = self.buffer(stored.buffer)
            if len(buffer.shape) == 1:
                return buffer[self.base + r]
            return buffer[self.base + r, span(j, lanes)]

        return Rows(columns, stored.padded, at, True)

    def local(self, columns: int) -> tuple[Rows, Callable[[Any, Any, Any, int], None]]:
        """New scratch rows and how to write them: ``save(r, j, value, lanes)``."""
        stride = round_up(columns + 2 * self.lanes - 1, 2 * self.lanes)
        start = self.reserve("float32", self.block * stride)

        def at(r: Any, j: Any, lanes: int) -> Any:
            return self.load("float32", start + r * stride + j, lanes)

        def save(r: Any, j: Any, value: Any, lanes: int) -> None:
            self.save("float32", value, start + r * stride + j, lanes)

        return Rows(columns, True, at, True), save

    def scalar(self) -> tuple[Callable[[Any], Any], Callable[[Any, Any], None]]:
        """One scratch float per row of the block: how to read and write it."""
        start = self.reserve("float32", self.block)
        return (
            lambda r: self.load("float32", start + r),
            lambda r, value: self.save("float32", value, start + r),
        )

    def solid(self, value: Rows) -> Rows:
        """``value`` as something that is cheap to read more than once."""
        if value.loaded:
            return value
        rows, save = self.local(value.columns)

        def row(r: Any) -> None:
            self.columns(
                value.columns,
                value.padded,
                lambda j, lanes: save(r, j, value.at(r, j, lanes), lanes),
            )

        self.each_row(row)
        return rows

    def _broadcast(self, name: str, shape: tuple[int, ...]) -> Rows:
        """The operand ``name`` as rows of ``shape``."""
        graph = self.context.graph
        own = graph[name].shape
        value = self.float_rows(name)
        if value.columns == int(np.prod(shape)):
            return value
        if value.columns == 1:
            return Rows(int(np.prod(shape)), True, lambda r, j, lanes: splat(value.at(r, 0, 1), lanes))
        origin = graph[resolve(graph, name)]
        if origin.op == "constant":
            array = graph.constants[origin.attrs["array"]].reshape(own)
            return self.constant(np.ascontiguousarray(np.broadcast_to(array, shape)))
        source = np.broadcast_to(np.arange(value.columns).reshape(own), shape).reshape(-1)
        return self.permute(self.solid(value), source)

    def permute(self, value: Rows, source: np.ndarray[Any, Any]) -> Rows:
        """Rows whose column j is column ``source[j]`` of ``value``, by runs of equal step."""
        rows, save = self.local(source.size)

        def row(r: Any) -> None:
            start = 0
            while start < source.size:
                stop = start + 1
                step = int(source[stop] - source[start]) if stop < source.size else 1
                while stop < source.size and source[stop] - source[stop - 1] == step:
                    stop += 1
                first, begin = int(source[start]), start
                self.each(
                    stop - start,
                    lambda i, first=first, begin=begin, step=step: save(
                        r, begin + i, value.at(r, first + i * step, 1), 1
                    ),
                )
                start = stop

        self.each_row(row)
        return rows

    # ------------------------------------------------------------ nodes

    def _node(self, node: Node) -> None:
        if node.op in ELEMENTWISE:
            value: Rows | Codes = self._elementwise(node)
        else:
            method = getattr(self, f"_op_{node.op}", None)
            if method is None:
                raise fail(node, "this operation cannot be lowered for rows of nodes")
            value = method(node)
        exported = node.name in self.stage.exports
        if isinstance(value, Rows) and self.reads.get(node.name, 0) > 1:
            value = self.solid(value)
        self.values[node.name] = value
        if exported:
            self._export(node, value)

    def _elementwise(self, node: Node) -> Rows:
        x = self._broadcast(node.inputs[0], node.shape)
        y = self._broadcast(node.inputs[1], node.shape) if len(node.inputs) > 1 else None
        scalar = node.attrs.get("scalar")

        def at(r: Any, j: Any, lanes: int) -> Any:
            second = None if scalar is None else opaque(scalar, lanes)
            if y is not None:
                second = y.at(r, j, lanes)
            return maths.elementwise(node.op, x.at(r, j, lanes), second, lanes)

        return Rows(node.columns, x.padded and (y is None or y.padded), at)

    def _op_quantize(self, node: Node) -> Codes:
        attrs = node.attrs
        bits, zero2 = attrs["bits"], attrs["zero2"]
        by_row = attrs["granularity"] == "row"
        x = self._broadcast(node.inputs[0], node.shape)
        x = self.solid(x) if by_row else x
        heads = self._heads(node)
        layout = code_layout(bits, heads, node.columns, self.lanes)
        reach = max(layout.column(layout.chunks * layout.per_chunk - 1) + layout.lanes, x.columns)
        stride = round_up(reach + 64, 64)
        start = self.reserve("uint8", self.block * stride)
        fixed = None if by_row else float(np.float32(attrs["scale"]))
        read, write = self.scalar() if by_row else (lambda r: number(fixed or 0.0), None)
        codes = Codes(x.columns, bits, zero2, start, stride, read, fixed)
        low, high = -((zero2 + 1) // 2), 2**bits - 1 - (zero2 + 1) // 2
        round_ = "llvm.floor" if zero2 % 2 else "llvm.rint"
        source = self.context.graph[resolve(self.context.graph, node.inputs[0])]
        watched = by_row and source.op == "node_input"

        def row(r: Any) -> None:
            if by_row:
                assert write is not None
                stat = self._statistic(x, r, zero2, watched)
                scale = self.b.let(stat * number(attrs["factor"]))
                write(r, scale)
                positive = scale > number(0.0)
                inverse = self.b.let(choose(positive, number(1.0) / scale, number(0.0)))
                if watched and self.base is not None:
                    self.b.store(self.buffer(self._watch(node)), scale, self.base + r)
            else:
                value = np.float32(1) / np.float32(fixed) if fixed and fixed > 0 else np.float32(0)
                inverse = number(float(value))

            def quantized(j: Any, lanes: int) -> None:
                place = start + r * stride + j
                if lanes == 4 * self.lanes and self.machine.rounding:
                    self.save("uint8", self._round_packed(x, r, j, inverse, bits, zero2), place, lanes)
                    return
                t = x.at(r, j, lanes) * splat(inverse, lanes)
                t = minimum(maximum(t, number(low, lanes)), number(high, lanes))
                u = cast(unary(round_, t, lanes), "int32", lanes) - splat(const(low), lanes)
                self.save("uint8", cast(u, "uint8", lanes), place, lanes)

            self.columns(x.columns, False, quantized, width=4)
            self._clear(start + r * stride + x.columns, stride - x.columns)

        self.each_row(row)
        return codes

    def _round_packed(self, x: Rows, r: Any, j: Any, inverse: Any, bits: int, zero2: int) -> Any:
        """Codes of four vectors at a time.

        The conversions to narrower integers saturate, so that only the upper end is clamped before
        (a float beyond the int32 range would become the smallest integer).
        """
        machine, lanes = self.machine, self.lanes
        offset = (zero2 + 1) // 2
        high = 2**bits - 1 - offset
        four = []
        for part in range(4):
            t = x.at(r, j + part * lanes, lanes) * splat(inverse, lanes)
            t = minimum(t, number(high, lanes))
            if zero2 % 2:
                t = unary("llvm.floor", t, lanes)
            four.append(intrinsic(machine.rounding, vector_type("int32", lanes), t))
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
            words = reinterpret(codes, "int32", lanes)
            order = [i // 2 + 4 * (i % 2) for i in range(8)]
            codes = reinterpret(shuffle([words], order), "uint8", 4 * lanes)
        return codes

    def _clear(self, start: Any, count: int) -> None:
        """Zeros in the byte scratch: kernels read whole vectors and words of codes."""
        width = 4 * self.lanes
        zero = splat(const(0, "uint8"), width)
        at = 0
        while count - at >= width:
            self.save("uint8", zero, start + at, width)
            at += width
        while count > at and width >= 1:
            # the rest overlaps what was cleared before
            self.save("uint8", zero, start + count - width, width)
            at = count

    def _watch(self, node: Node) -> str:
        name = f"scale.{node.name}"
        return self.context.add(name, "float32", ("N",), "workspace")

    def _statistic(self, x: Rows, r: Any, zero2: int, watched: bool) -> Any:
        """Largest (absolute) value of row r; NaN or infinity where the row of an input has one.

        The comparison is one of bit patterns, which order like the numbers from 0 to NaN.
        """
        lanes = self.lanes if x.columns >= self.lanes else 1
        both = watched and zero2 == 0
        best = self.b.registers(2 if both else 1, "int32", lanes)
        zero = splat(const(0), lanes)
        self.b.store(best, zero, 0)
        if both:
            self.b.store(best, zero, 1)

        def visit(j: Any, width: int) -> None:
            if watched and self.block > 1 and width > 1:
                # memory works ahead on the next block while this one is computed
                self.b.prefetch(x.at(r + self.block, j, 1))
            bits = reinterpret(x.at(r, j, width), "int32", width)
            magnitude = bits & splat(const(0x7FFFFFFF), width)
            self.b.store(best, maximum(best[0], magnitude if zero2 else bits), 0)
            if both:
                self.b.store(best, maximum(best[1], magnitude), 1)

        self.columns(x.columns, False, visit)
        result = self.b.let(fold_max(best[0], lanes))
        if both:
            largest = fold_max(best[1], lanes)
            result = self.b.let(choose(largest >= const(INFINITY_BITS), largest, result))
        return reinterpret(result, "float32")

    def _heads(self, node: Node) -> int:
        """Heads of the aggregations that read ``node``."""
        heads = {user.attrs["heads"] for user in self.context.graph.users(node.name) if user.op == "spmm"}
        most = max(heads, default=1)
        if any(most % count for count in heads):
            raise fail(node, f"it is aggregated with {sorted(heads)} heads, which do not divide")
        return most

    def _op_dequantize(self, node: Node) -> Rows:
        q = self.codes(node.inputs[0])

        def at(r: Any, j: Any, lanes: int) -> Any:
            u = cast(self.load("uint8", q.start + r * q.stride + j, lanes), "int32", lanes)
            doubled = u + u - splat(const(q.zero2), lanes)
            half = q.scale(r) * number(0.5)
            return product(cast(doubled, "float32", lanes), splat(half, lanes), lanes)

        return Rows(q.columns, True, at)

    def _op_gemm(self, node: Node) -> Rows:
        return integer_gemm(self, node, self.codes(node.inputs[0]))

    def _op_float_gemm(self, node: Node) -> Rows:
        return float_gemm(self, node, self.solid(self.float_rows(node.inputs[0])))

    def _op_spmm(self, node: Node) -> Rows:
        return aggregate_codes(self, node)

    def _op_float_spmm(self, node: Node) -> Rows:
        return aggregate_floats(self, node)

    def _op_concat(self, node: Node) -> Rows:
        parts = [self.float_rows(name) for name in node.inputs]
        shapes = [self.context.graph[name].shape for name in node.inputs]
        outer = int(np.prod(node.shape[:-1]))
        rows, save = self.local(node.columns)

        def row(r: Any) -> None:
            begin = 0
            for part, shape in zip(parts, shapes, strict=True):
                width = shape[-1]
                for o in range(outer):
                    target, first = begin + o * node.shape[-1], o * width

                    def copy(
                        j: Any, lanes: int, part: Rows = part, target: int = target, first: int = first
                    ) -> None:
                        save(r, target + j, part.at(r, first + j, lanes), lanes)

                    self.columns(width, False, copy)
                begin += width

        self.each_row(row)
        return rows

    def _op_sum_last(self, node: Node) -> Rows:
        shape = self.context.graph[node.inputs[0]].shape
        x = self.solid(self.float_rows(node.inputs[0]))
        length = shape[-1]
        rows, save = self.local(node.columns)

        def row(r: Any) -> None:
            self.each(node.columns, lambda o: save(r, o, self._sum(x, r, o * length, length), 1))

        self.each_row(row)
        return rows

    def _sum(self, x: Rows, r: Any, start: Any, length: int) -> Any:
        """``x[start] + x[start + 1] + ...``, left to right."""
        total = self.b.registers(1, "float32")
        self.b.store(total, x.at(r, start, 1), 0)
        if length > 1:
            with self.b.loop(length - 1) as i:
                self.b.store(total, total[0] + x.at(r, start + 1 + i, 1), 0)
        return total[0]

    def _op_mean_first(self, node: Node) -> Rows:
        x = self.solid(self.float_rows(node.inputs[0]))
        length = self.context.graph[node.inputs[0]].shape[0]

        def at(r: Any, j: Any, lanes: int) -> Any:
            total = x.at(r, j, lanes)
            for i in range(1, length):
                total = total + x.at(r, i * node.columns + j, lanes)
            return total / opaque(length, lanes)

        return Rows(node.columns, False, at)

    def _op_log_softmax(self, node: Node) -> Rows:
        x, largest, power = self._centred(node)
        totals = self.reserve("float32", self.block)

        def read(r: Any) -> Any:
            return self.load("float32", totals + r)

        def write(r: Any, value: Any) -> None:
            self.save("float32", value, totals + r)

        self.each_row(lambda r: write(r, self._sum(power, r, 0, node.columns)))
        lanes = self.lanes if self.block % self.lanes == 0 else 1

        def logarithm(index: Any) -> None:
            place = totals + index * lanes
            self.save("float32", maths.log(self.load("float32", place, lanes), lanes), place, lanes)

        self.each(self.block // lanes, logarithm)

        def at(r: Any, j: Any, lanes: int) -> Any:
            return (x.at(r, j, lanes) - splat(largest(r), lanes)) - splat(read(r), lanes)

        return Rows(node.columns, x.padded, at)

    def _op_softmax(self, node: Node) -> Rows:
        _, _, power = self._centred(node)
        read, write = self.scalar()
        self.each_row(lambda r: write(r, self._sum(power, r, 0, node.columns)))

        def at(r: Any, j: Any, lanes: int) -> Any:
            return power.at(r, j, lanes) / splat(read(r), lanes)

        return Rows(node.columns, power.padded, at)

    def _centred(self, node: Node) -> tuple[Rows, Callable[[Any], Any], Rows]:
        """The operand, the largest value of its row, ``exp(x - max)``."""
        x = self.solid(self.float_rows(node.inputs[0]))
        read, write = self.scalar()
        power, save = self.local(x.columns)
        lanes = self.lanes if x.columns >= self.lanes else 1

        def row(r: Any) -> None:
            best = self.b.registers(1, "float32", lanes)
            self.b.store(best, x.at(r, 0, lanes), 0)
            self.columns(
                x.columns,
                False,
                lambda j, width: self.b.store(best, maximum(best[0], x.at(r, j, width)), 0),
            )
            largest = self.b.let(fold_max(best[0], lanes))
            write(r, largest)
            self.columns(
                x.columns,
                x.padded,
                lambda j, width: save(
                    r, j, maths.exp(x.at(r, j, width) - splat(largest, width), width), width
                ),
            )

        self.each_row(row)
        return x, read, power

    # ------------------------------------------------------------ memory

    def _output(self, position: int, name: str) -> None:
        value = self.float_rows(name)
        buffer = self.buffer(f"output.{position}")

        def row(r: Any) -> None:
            self.columns(
                value.columns,
                False,
                lambda j, lanes: self.b.store(buffer, value.at(r, j, lanes), self.base + r, span(j, lanes)),
            )

        self.each_row(row)

    def _export(self, node: Node, value: Rows | Codes) -> None:
        """Write a value for later kernels."""
        if isinstance(value, Codes):
            self._export_codes(node, value)
            return
        wide = value.columns >= self.lanes
        stride = round_up(value.columns, self.lanes) if wide else value.columns
        name = self.context.add(f"rows.{node.name}", "float32", ("N", stride), "workspace")
        self.context.stored[node.name] = StoredRows(name, stride, wide)
        buffer = self.buffer(name)

        def row(r: Any) -> None:
            self.columns(
                value.columns,
                wide and value.padded,
                lambda j, lanes: self.b.store(buffer, value.at(r, j, lanes), self.base + r, span(j, lanes)),
            )

        self.each_row(row)

    def _export_codes(self, node: Node, q: Codes) -> None:
        layout = code_layout(q.bits, self._heads(node), q.columns, self.lanes)
        name = self.context.add(f"codes.{node.name}", "uint8", ("N", layout.row_bytes), "workspace")
        scale = ""
        if q.fixed is None:
            scale = self._watch(node)
        self.context.stored[node.name] = StoredCodes(name, layout, scale)
        buffer = self.buffer(name)
        lanes, per = layout.lanes, layout.per_chunk

        def row(r: Any) -> None:
            if scale:
                self.b.store(self.buffer(scale), q.scale(r), self.base + r)
            origin = q.start + r * q.stride
            plain = layout.bits == 8 and (layout.heads == 1 or layout.head_columns % layout.lanes == 0)
            if plain:
                self.columns(
                    layout.row_bytes,
                    False,
                    lambda j, width: self.b.store(
                        buffer,
                        self.load("uint8", origin + j, width),
                        self.base + r,
                        span(j, width),
                    ),
                    width=4,
                )
                return

            def chunk(index: Any) -> None:
                word = None
                for i in range(per):
                    part = self.load("uint8", origin + layout.column(index * per + i), lanes)
                    if layout.bits == 8:
                        word = part
                        continue
                    part = shift_left(cast(part, "uint16", lanes), i * layout.bits, "uint16", lanes)
                    word = part if word is None else word | part
                if layout.bits != 8:
                    word = reinterpret(word, "uint8", 2 * lanes)
                size = layout.chunk_bytes
                self.b.store(buffer, word, self.base + r, span(index * size, size))

            self.each(layout.chunks, chunk)

        self.each_row(row)

    def _unpack(self, node: Node, stored: StoredCodes) -> Codes:
        """Codes of another kernel, as bytes in scratch."""
        layout = stored.layout
        lanes, per = layout.lanes, layout.per_chunk
        bits, zero2 = node.attrs["bits"], node.attrs["zero2"]
        reach = max(layout.column(layout.chunks * per - 1) + lanes, node.columns)
        stride = round_up(reach + 64, 64)
        start = self.reserve("uint8", self.block * stride)
        buffer = self.buffer(stored.buffer)

        def row(r: Any) -> None:
            def chunk(index: Any) -> None:
                size = layout.chunk_bytes
                data = buffer[self.base + r, span(index * size, size)]
                for i in range(per):
                    part = data
                    if layout.bits != 8:
                        mask = splat(const(2**layout.bits - 1, "uint16"), lanes)
                        words = reinterpret(data, "uint16", lanes)
                        part = shift_right(words, i * layout.bits, "uint16", lanes) & mask
                        part = cast(part, "uint8", lanes)
                    column = layout.column(index * per + i)
                    self.save("uint8", part, start + r * stride + column, lanes)

            self.each(layout.chunks, chunk)
            self._clear(start + r * stride + node.columns, stride - node.columns)

        self.each_row(row)
        fixed = None if stored.scale else float(np.float32(node.attrs["scale"]))

        def scale(r: Any) -> Any:
            if fixed is not None:
                return number(fixed)
            return self.buffer(stored.scale)[self.base + r]

        return Codes(node.columns, bits, zero2, start, stride, scale, fixed)
