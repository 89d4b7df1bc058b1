"""Sums of codes over edges: a warp for each destination, a block for those that have many edges."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gnnquant.backends.cuda.source import THREADS, literal
from gnnquant.backends.cuda.together import FLUSH, LANES, SHARED_BYTES, WARPS, WarpKernel
from gnnquant.backends.cuda.values import stride
from gnnquant.integer_graph import EDGE_LEVELS

if TYPE_CHECKING:
    from gnnquant.backends.cuda.values import Values
    from gnnquant.integer_graph import Node

LOADED = {8: 8, 4: 8, 2: 4}
"""Bytes of a row that a lane loads, by bits: at most 16 codes."""
AT_LEAST_ONE = "(float)({0} > 1 ? {0} : 1)"


def fits(values: Values, node: Node) -> bool:
    """Whether the sum ``node`` can be made here: a lane's columns must belong to one head."""
    if node.attrs["reduce"] not in ("sum", "mean"):
        return False
    heads, width = node.attrs["heads"], node.columns // node.attrs["heads"]
    bits = values.quantizer(node.inputs[0], node).attrs["bits"]
    whole = heads == 1 or (width & (width - 1) == 0 and width * bits >= 8)
    return whole and node.columns * (4 * WARPS + 8) <= SHARED_BYTES // 2


def edge_value(values: Values, kernel: WarpKernel, node: Node, edge: str, source: str) -> str:
    """The weight of an edge times the scale of its source: what becomes an 8-bit edge weight."""
    scale = values.scale(kernel, node.inputs[0], source)
    return f"{values.read(kernel, node.inputs[1], edge, 'c')} * {scale}" if len(node.inputs) > 1 else scale


def begin(values: Values, node: Node) -> WarpKernel:
    """A kernel that makes the sum ``node``; its row is kept from then on.

    With several heads, the 8-bit edge weights were made before (``edge_codes``); else they are made here.
    """
    graph, heads, q = node.attrs["graph"], node.attrs["heads"], node.inputs[0]
    columns, width = node.columns, node.columns // heads
    quantizer = values.quantizer(q, node)
    bits, zero2, row_bytes = quantizer.attrs["bits"], quantizer.attrs["zero2"], stride(quantizer)
    loaded = _loaded(bits, row_bytes, width if heads > 1 else 16)
    group = 1
    while group < LANES and group * loaded < row_bytes:
        group *= 2
    each = loaded * 8 // bits

    kernel = WarpKernel("spmm", (node.rows, LANES), crowded=graph)
    kernel.share(f"__shared__ unsigned long long totals[{columns}];", 8 * columns)
    codes = kernel.pointer(f"codes.{quantizer.name}", "uint8")
    src = kernel.pointer(f"{graph}.src", "int32")
    y = kernel.keep(node.name, columns)
    factor = literal(0.5 / EDGE_LEVELS)
    value = ""
    if heads == 1:
        value = edge_value(values, kernel, node, "e", "s")
        _largest(kernel, src, value)
        back = f"(m * {factor})"
    else:
        weights = kernel.pointer(f"edge_codes.{node.name}", "int8")
        largest = kernel.pointer(f"edge_scale.{node.name}", "float32")
        back = f"({largest}[r * {heads} + c / {width}] * {factor})"
    mean = f" / {AT_LEAST_ONE.format('(end - begin)')}" if node.attrs["reduce"] == "mean" else ""
    with kernel.block("if (together)"):
        kernel.add(f"for (int c = threadIdx.x; c < {columns}; c += {THREADS}) totals[c] = 0;")
        kernel.add("__syncthreads();")
    with kernel.block(f"for (int piece = 0; piece < {row_bytes}; piece += {group * loaded})"):
        kernel.add(f"const int at = piece + lane % {group} * {loaded}, column = at * 8 / {bits};")
        kernel.add(f"int sums[{each}] = {{}}, weights = 0, chunks = 0;")
        with kernel.block(
            f"for (long long from = begin + (together ? warp * {LANES} : 0); from < end; from += step)"
        ):
            kernel.add("const long long e = from + lane;")
            kernel.add(f"const int count = end - from < {LANES} ? (int)(end - from) : {LANES};")
            kernel.add("int source = 0;")
            if heads == 1:
                kernel.add("int code = 0;")
            with kernel.block("if (e < end)"):
                kernel.add(f"const long long s = {src}[e];")
                kernel.add(f"source = (int){values.source_row(kernel, q, 's')};")
                if heads == 1:
                    kernel.add(f"code = gq_edge_code(({value}) * ratio);")
            kernel.add("const auto weight = [=](int at) {")
            if heads == 1:
                kernel.add("  const int found = __shfl_sync(GQ_ALL, code, at & 31);")
                kernel.add("  return at < count ? found : 0;")
            else:
                kernel.add(f"  const int head = column < {columns} ? column / {width} : 0;")
                kernel.add(f"  return at < count ? (int){weights}[(from + at) * {heads} + head] : 0;")
            kernel.add("};")
            shape = f"{bits}, {loaded}, {group}, {row_bytes}"
            arguments = f"sums, weights, {codes} + at, column < {columns}, source, count, lane, weight"
            kernel.add(f"gq_gather<{shape}>({arguments});")
            # 32 bits hold the sum of so many edges; what a warp has alone is less
            with kernel.block(f"if (together && (++chunks % {FLUSH} == 0 || from + step >= end))"):
                kernel.add(f"gq_finish<{each}, {group}>(sums, weights, lane, [=](int j, int sum, int by) {{")
                kernel.add(f"  const long long total = 2LL * sum - {zero2}LL * by;")
                kernel.add(f"  if (column + j < {columns}) atomicAdd(totals + column + j, (unsigned long long)total);")
                kernel.add("});")
        with kernel.block("if (!together)"):
            kernel.add(f"gq_finish<{each}, {group}>(sums, weights, lane, [=](int j, int sum, int by) {{")
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


def _largest(kernel: WarpKernel, src: str, value: str) -> None:
    """``m``, the largest magnitude of the edges of the row, and ``ratio``, by which they become codes."""
    kernel.share("__shared__ float best[4][32];", 512)
    kernel.add("float m = 0.0f;")
    with kernel.block("for (long long e = begin + thread; e < end; e += step)"):
        kernel.add(f"const long long s = {src}[e];")
        kernel.add("(void)s;")
        kernel.add(f"m = gq_larger(m, fabsf({value}));")
    kernel.add("m = together ? gq_block_largest<1>(m, best, warp, lane) : gq_warp_largest(m, 1);")
    kernel.add(f"const float ratio = gq_inverse(m, {literal(EDGE_LEVELS)});")


def _loaded(bits: int, row_bytes: int, width: int) -> int:
    """Bytes that a lane loads: more where a warp would not cover the row, less where a head is narrow."""
    loaded = 16 if bits == 8 and row_bytes > LANES * LOADED[8] else LOADED[bits]
    while loaded * 8 // bits > width and loaded > 1 and loaded * 8 // bits > 1:
        loaded //= 2
    return loaded
