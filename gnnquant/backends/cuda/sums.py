"""Sums of codes over edges: a warp for each destination, a block for those that have many edges."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from gnnquant.backends.cuda.source import THREADS, literal
from gnnquant.backends.cuda.together import BEST, BEST_BYTES, FLUSH, LANES, SHARED_BYTES, WARPS, WarpKernel
from gnnquant.backends.cuda.values import stride
from gnnquant.integer_graph import EDGE_LEVELS

if TYPE_CHECKING:
    from gnnquant.backends.cuda.source import Kernel
    from gnnquant.backends.cuda.values import Values
    from gnnquant.integer_graph import Node

LOADED = {8: 8, 4: 8, 2: 4}
"""Bytes of a row that a lane loads, by bits: at most 16 codes."""
KNOWN = 256
"""Edges of each warp whose weights and sources are looked up once: all edges of most destinations."""
AT_LEAST_ONE = "(float)({0} > 1 ? {0} : 1)"


def fits(values: Values, node: Node) -> bool:
    """Whether the sum ``node`` can be made here: a lane's columns must belong to one head."""
    if node.attrs["reduce"] not in ("sum", "mean"):
        return False
    heads, width = node.attrs["heads"], node.columns // node.attrs["heads"]
    bits = values.quantizer(node.inputs[0], node).attrs["bits"]
    whole = heads == 1 or (width & (width - 1) == 0 and width * bits >= 8)
    return whole and node.columns * (4 * WARPS + 8) <= SHARED_BYTES // 2


def edge_value(values: Values, kernel: Kernel, node: Node, edge: str, source: str) -> str:
    """The weight of an edge, times the scale of its source: what becomes an 8-bit edge weight."""
    if len(node.inputs) == 1:
        return values.scale(kernel, node.inputs[0], source)
    row = source if node.attrs.get("per") == "source" else edge
    weight = values.read(kernel, node.inputs[1], row, "c")
    if node.attrs.get("unscaled"):
        return weight
    return f"{weight} * {values.scale(kernel, node.inputs[0], source)}"


@dataclass(frozen=True)
class _Shape:
    """How the lanes of a warp share out a row of codes.

    Attributes:
        columns: Of the row.
        heads: Of the sum.
        bits: Of a code.
        zero2: Doubled zero point.
        row_bytes: Of the row.
        loaded: Bytes that a lane loads.
        group: Lanes that share a row.
    """

    columns: int
    heads: int
    bits: int
    zero2: int
    row_bytes: int
    loaded: int
    group: int

    @property
    def each(self) -> int:
        """Columns of a lane."""
        return self.loaded * 8 // self.bits


def _shape(values: Values, node: Node) -> _Shape:
    heads, quantizer = node.attrs["heads"], values.quantizer(node.inputs[0], node)
    bits, row_bytes = quantizer.attrs["bits"], stride(quantizer)
    loaded = _loaded(bits, row_bytes, node.columns // heads if heads > 1 else 16)
    group = 1
    while group < LANES and group * loaded < row_bytes:
        group *= 2
    return _Shape(node.columns, heads, bits, quantizer.attrs["zero2"], row_bytes, loaded, group)


def begin(values: Values, node: Node) -> WarpKernel:
    """A kernel that makes the sum ``node``; its row is kept from then on.

    With several heads, the 8-bit edge weights were made before (``edge_codes``); else they are made here.
    """
    graph, shape = node.attrs["graph"], _shape(values, node)
    columns, heads, zero2 = shape.columns, shape.heads, shape.zero2
    kernel = WarpKernel("spmm", (node.rows, LANES), crowded=graph)
    kernel.share(f"__shared__ unsigned long long totals[{columns}];", 8 * columns)
    y = kernel.keep(node.name, columns)
    factor = literal(0.5 / EDGE_LEVELS)
    if heads == 1:
        _largest(values, kernel, node)
        back = f"(m * {factor})"
    else:
        largest = kernel.pointer(f"edge_scale.{node.name}", "float32")
        back = f"({largest}[r * {heads} + c / {columns // heads}] * {factor})"
    mean = f" / {AT_LEAST_ONE.format('(end - begin)')}" if node.attrs["reduce"] == "mean" else ""
    finish = f"gq_finish<{shape.each}, {shape.group}>(sums, weights, lane, [=](int j, int sum, int by) {{"
    with kernel.block("if (together)"):
        kernel.add(f"for (int c = threadIdx.x; c < {columns}; c += {THREADS}) totals[c] = 0;")
        kernel.add("__syncthreads();")
    with kernel.block(
        f"for (int piece = 0; piece < {shape.row_bytes}; piece += {shape.group * shape.loaded})"
    ):
        kernel.add(f"const int at = piece + lane % {shape.group} * {shape.loaded};")
        kernel.add(f"const int column = at * 8 / {shape.bits};")
        kernel.add(f"int sums[{shape.each}] = {{}}, weights = 0, chunks = 0;")
        kernel.add(f"long long from = begin + (together ? warp * {LANES} : 0);")
        with kernel.block(f"for (int slot = lane; from < end; from += step, slot += {LANES})"):
            _add_edges(values, kernel, node, shape)
            # 32 bits hold the sum of so many edges; what a warp has alone is less
            with kernel.block(f"if (together && (++chunks % {FLUSH} == 0 || from + step >= end))"):
                kernel.add(finish)
                kernel.add(f"  const unsigned long long total = 2LL * sum - {zero2}LL * by;")
                kernel.add(f"  if (column + j < {columns}) atomicAdd(totals + column + j, total);")
                kernel.add("});")
        with kernel.block("if (!together)"):
            kernel.add(finish)
            kernel.add("  const int c = column + j;")
            kernel.add(f"  if (c < {columns}) {y}[c] = (float)(2 * sum - {zero2} * by) * {back}{mean};")
            kernel.add("});")
    with kernel.block("if (together)"):
        kernel.add("__syncthreads();")
        kernel.add("if (warp > 0) return;")
        with kernel.block(f"for (int c = lane; c < {columns}; c += {LANES})"):
            kernel.add(f"{y}[c] = (float)(long long)totals[c] * {back}{mean};")
    kernel.add("__syncwarp();")
    return kernel


def _add_edges(values: Values, kernel: WarpKernel, node: Node, shape: _Shape) -> None:
    """Add the weighted codes of up to 32 edges, of which each lane looks up one."""
    heads, columns, q = shape.heads, shape.columns, node.inputs[0]
    codes = kernel.pointer(f"codes.{values.quantizer(q, node).name}", "uint8")
    src = kernel.pointer(f"{node.attrs['graph']}.src", "int32")
    kernel.add("(void)slot;")
    kernel.add(f"const int count = end - from < {LANES} ? (int)(end - from) : {LANES};")
    kernel.add("int source = 0, code = 0;")
    if heads == 1:
        # what is known of the first edges was overwritten where there are several pieces
        first = f"slot >= {KNOWN}" if shape.row_bytes <= shape.group * shape.loaded else "true"
        with kernel.block(f"if ({first} && slot % {KNOWN} == lane)"):
            _look_up(values, kernel, node, "from + turn * (long long)step + lane", KNOWN // LANES)
        with kernel.block("if (from + lane < end)"):
            kernel.add(f"source = known_rows[warp][slot % {KNOWN}];")
            kernel.add(f"code = gq_edge_code(known[warp][slot % {KNOWN}] * ratio);")
    else:
        with kernel.block("if (from + lane < end)"):
            kernel.add(f"const long long s = {src}[from + lane];")
            kernel.add(f"source = (int){values.source_row(kernel, q, 's')};")
    kernel.add("(void)code;")
    kernel.add("const auto weight = [=](int at) {")
    if heads == 1:
        kernel.add("  const int found = __shfl_sync(GQ_ALL, code, at & 31);")
        kernel.add("  return at < count ? found : 0;")
    else:
        weights = kernel.pointer(f"edge_codes.{node.name}", "int8")
        kernel.add(f"  const int head = column < {columns} ? column / {columns // heads} : 0;")
        kernel.add(f"  return at < count ? (int){weights}[(from + at) * {heads} + head] : 0;")
    kernel.add("};")
    template = f"gq_gather<{shape.bits}, {shape.loaded}, {shape.group}, {shape.row_bytes}>"
    kernel.add(f"{template}(sums, weights, {codes} + at, column < {columns}, source, count, lane, weight);")


def _largest(values: Values, kernel: WarpKernel, node: Node) -> None:
    """``m``, the largest magnitude of the edges of the row, and ``ratio``, by which they become codes.

    What the first edges of every warp have is kept in shared memory.
    """
    src = kernel.pointer(f"{node.attrs['graph']}.src", "int32")
    kernel.share(BEST, BEST_BYTES)
    kernel.share(f"__shared__ float known[{WARPS}][{KNOWN}];", 4 * WARPS * KNOWN)
    kernel.share(f"__shared__ int known_rows[{WARPS}][{KNOWN}];", 4 * WARPS * KNOWN)
    kernel.add("float m = 0.0f;")
    kernel.add("int slot = lane;")
    kernel.add("#pragma unroll 4")
    with kernel.block(f"for (long long e = begin + thread; e < end; e += step, slot += {LANES})"):
        kernel.add(f"const long long s = {src}[e];")
        kernel.add(f"const float value = {edge_value(values, kernel, node, 'e', 's')};")
        with kernel.block(f"if (slot < {KNOWN})"):
            row = values.source_row(kernel, node.inputs[0], "s")
            kernel.add(f"known[warp][slot] = value, known_rows[warp][slot] = (int){row};")
        kernel.add("m = gq_larger(m, fabsf(value));")
    kernel.add("m = together ? gq_block_largest<1>(m, best, warp, lane) : gq_warp_largest(m, 1);")
    kernel.add(f"const float ratio = gq_inverse(m, {literal(EDGE_LEVELS)});")


def _look_up(values: Values, kernel: WarpKernel, node: Node, edge: str, turns: int) -> None:
    """Let each lane look up the weights and sources of several edges at once."""
    src = kernel.pointer(f"{node.attrs['graph']}.src", "int32")
    kernel.add("#pragma unroll")
    with kernel.block(f"for (int turn = 0; turn < {turns}; ++turn)"):
        kernel.add(f"const long long e = {edge};")
        with kernel.block("if (e < end)"):
            kernel.add(f"const long long s = {src}[e];")
            row = values.source_row(kernel, node.inputs[0], "s")
            kernel.add(f"known_rows[warp][turn * {LANES} + lane] = (int){row};")
            value = edge_value(values, kernel, node, "e", "s")
            kernel.add(f"known[warp][turn * {LANES} + lane] = {value};")


def _loaded(bits: int, row_bytes: int, width: int) -> int:
    """Bytes that a lane loads: more where a warp would not cover the row, less where a head is narrow."""
    loaded = 16 if bits == 8 and row_bytes > LANES * LOADED[8] else LOADED[bits]
    while loaded * 8 // bits > width and loaded > 1 and loaded * 8 // bits > 1:
        loaded //= 2
    return loaded
