"""Products of codes and a packed weight on the tensor cores: 16 rows and all columns for each block."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from gnnquant.backends.cuda.source import accumulator
from gnnquant.backends.cuda.together import LANES, TILE, WARPS, TileKernel
from gnnquant.backends.cuda.values import stride

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from gnnquant.backends.cuda.values import Values
    from gnnquant.integer_graph import Node, PackedWeight

MOST_COLUMNS = 512
"""Wider products are not made here: their rows would not fit shared memory."""
DEPTH = 64
"""Codes of a row that two instructions take: 16 for each of 4 lanes."""


def fits(values: Values, node: Node) -> bool:
    """Whether the product ``node`` can be made here."""
    weight = values.graph.weights[node.attrs["weight"]]
    inputs, outputs = weight.shape
    zero2 = values.quantizer(node.inputs[0], node).attrs["zero2"]
    exact = accumulator(inputs, weight.bits, weight.zero2, zero2) == "int"
    return inputs > 0 and node.columns == outputs <= MOST_COLUMNS and exact


def begin(values: Values, node: Node) -> TileKernel:
    """A kernel that makes the product ``node``; it is in ``tile`` from then on.

    Codes u are multiplied as they are; that ``2u - zero2`` is meant, the sums of columns correct.
    """
    (q,), name = node.inputs, node.attrs["weight"]
    weight = values.graph.weights[name]
    inputs, outputs = weight.shape
    quantizer = values.quantizer(q, node)
    bits, zero2 = quantizer.attrs["bits"], quantizer.attrs["zero2"]
    tiles, blocks = -(-outputs // 8), -(-inputs // DEPTH)
    each = -(-tiles // WARPS)
    kernel = TileKernel("gemm", (node.rows, WARPS * LANES // TILE))
    # 8 more, so that rows begin at other banks
    kernel.share(f"__shared__ float tile[{TILE}][{tiles * 8 + 8}];", 4 * TILE * (tiles * 8 + 8))
    codes = kernel.pointer(f"codes.{quantizer.name}", "uint8")
    packed = kernel.pointer(values.constant(f"fragments.{name}.{bits}", fragments(weight, bits)), "int8")
    column_scale = kernel.pointer(values.constant(f"column_scale.{name}", weight.column_scale), "float32")
    totals = weight.integers.astype(np.int64).sum(axis=0).astype(np.int32)
    column_sum = kernel.pointer(values.constant(f"column_sum.{name}", totals), "int32")
    rows = kernel.rows(node.rows)
    kernel.add("const long long upper = top + lane / 4, lower = upper + 8;")
    for side in ("upper", "lower"):
        start = f"{codes} + {values.source_row(kernel, q, side)} * {stride(quantizer)}"
        kernel.add(f"const unsigned char* const {side}_codes = {side} < {rows} ? {start} : nullptr;")
    kernel.add(f"const int first = warp * {each};")
    kernel.add(f"int sums[{each}][4] = {{}};")
    shape = f"{bits}, {each}, {blocks}, {tiles}, {stride(quantizer)}"
    kernel.add(f"gq_product<{shape}>(sums, upper_codes, lower_codes, {packed}, first, lane);")
    for index, side in enumerate(("upper", "lower")):
        with kernel.block(f"if ({side} < {rows})"):
            kernel.add(f"const float scale = {values.scale(kernel, q, side)} * 0.5f;")
            kernel.add("#pragma unroll")
            with kernel.block(f"for (int j = 0; j < {2 * each}; ++j)"):
                kernel.add("const int m = (first + j / 2) * 8 + lane % 4 * 2 + j % 2;")
                with kernel.block(f"if (m < {outputs})"):
                    # wraps around where the result does not
                    sum_ = f"2u * (unsigned)sums[j / 2][{2 * index} + j % 2]"
                    kernel.add(f"const int total = (int)({sum_} - {zero2}u * (unsigned){column_sum}[m]);")
                    at = f"tile[lane / 4 + {8 * index}][m]"
                    kernel.add(f"{at} = ((float)total * scale) * {column_scale}[m];")
    kernel.locals[node.name] = "tile[row]"
    return kernel


def fragments(weight: PackedWeight, bits: int) -> NDArray[np.int8]:
    """The integers of a weight as ``gq_product`` loads them: for each 64 rows and 8 columns 16 a lane.

    Lane ``4 n + t`` has the rows ``16 t .. 16 t + 15`` of column n, in the order in which ``gq_bytes``
    unpacks 16 codes of ``bits``.
    """
    inputs, outputs = weight.shape
    blocks, tiles = -(-inputs // DEPTH), -(-outputs // 8)
    padded = np.zeros((blocks * DEPTH, tiles * 8), np.int8)
    padded[:inputs, :outputs] = weight.integers
    order = {8: np.arange(16), 4: _every(2, 8), 2: _every(4, 16)}[bits]
    parts = padded.reshape(blocks, 4, 16, tiles, 8)[:, :, order]
    return np.ascontiguousarray(parts.transpose(0, 3, 4, 1, 2)).reshape(-1)


def _every(step: int, within: int) -> NDArray[np.int64]:
    """0 .. 15, within each ``within`` numbers first every ``step``-th, then the ones beside them."""
    return np.arange(16).reshape(16 // within, within // step, step).transpose(0, 2, 1).reshape(-1)
