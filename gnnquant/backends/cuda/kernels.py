"""One emitter for each operation that has kernels of its own; each writes one value.

All sums of floats run in the order that ``gnnquant.integer_graph`` gives, in one thread. Sums of integers are
exact.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gnnquant.backends.cuda.rows import reduced
from gnnquant.backends.cuda.source import SLICE, THREADS, Kernel, accumulator, literal
from gnnquant.backends.cuda.sums import AT_LEAST_ONE, edge_value
from gnnquant.backends.cuda.together import BEST, BEST_BYTES, LANES, WarpKernel
from gnnquant.backends.cuda.values import broadcast, refuse
from gnnquant.integer_graph import EDGE_LEVELS, ONE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from gnnquant.backends.cuda.values import Values
    from gnnquant.integer_graph import Node

AT_ONCE = "#pragma unroll 4"
"""Edges whose values are loaded at once."""
_SHARE = f"const float share = 1.0f / (total + {literal(1e-16)});"
_STEPS = {
    "sum": "{0} + {1}",
    "mean": "{0} + {1}",
    "mul": "{0} * {1}",
    "max": "gq_larger({0}, {1})",
    "min": "gq_smaller({0}, {1})",
}


def _edges(kernel: Kernel, graph: str) -> None:
    """Declare ``begin`` and ``end``, the edges of the destination ``r``."""
    indptr = kernel.pointer(f"{graph}.indptr", "int32")
    kernel.add(f"const long long begin = {indptr}[r], end = {indptr}[r + 1];")


def _destinations(values: Values, graph: str) -> str:
    return values.graph.index_node(graph).inputs[3]


def _fold(kernel: Kernel, reduce: str, count: str, element: str) -> None:
    """``y`` from ``element``, an expression of ``e`` in ``begin .. end - 1``."""
    if reduce in ("max", "min"):
        kernel.add("float y = 0.0f;")
        with kernel.block("for (long long e = begin; e < end; ++e)"):
            kernel.add(f"const float x = {element};")
            kernel.add(f"y = e == begin ? x : {_STEPS[reduce].format('y', 'x')};")
        return
    kernel.add(f"float y = {'1.0f' if reduce == 'mul' else '0.0f'};")
    with kernel.block("for (long long e = begin; e < end; ++e)"):
        kernel.add(f"y = {_STEPS[reduce].format('y', element)};")
    if reduce == "mean":
        kernel.add(f"y = y / {AT_LEAST_ONE.format(count)};")


# ---------------------------------------------------------------- between spaces


def copy(values: Values, node: Node, out: str) -> Iterator[Kernel]:
    """A value that is an expression, into the buffer ``out``."""
    kernel = Kernel("copy", (node.rows, node.columns))
    to = kernel.pointer(out, "float32", written=True)
    kernel.add(f"{to}[i] = {values.read(kernel, node.name, 'r', 'c')};")
    yield kernel


def light(values: Values, node: Node, out: str) -> Iterator[Kernel]:
    """A light value that is read more than once."""
    kernel = Kernel(node.op, (node.rows, node.columns))
    to = kernel.pointer(out, "float32", written=True)
    kernel.add(f"{to}[i] = {values.computed(kernel, node, 'r', '0' if node.columns == 1 else 'c')};")
    yield kernel


def segment_reduce(values: Values, node: Node, out: str) -> Iterator[Kernel]:
    """Edge rows by destination."""
    kernel = Kernel("segment_reduce", (node.rows, node.columns))
    to = kernel.pointer(out, "float32", written=True)
    _edges(kernel, node.attrs["graph"])
    _fold(kernel, node.attrs["reduce"], "(end - begin)", values.read(kernel, node.inputs[0], "e", "c"))
    kernel.add(f"{to}[i] = y;")
    yield kernel


def row_reduce(values: Values, node: Node, out: str) -> Iterator[Kernel]:
    """All rows, one after the other: a thread for each column."""
    kernel = Kernel("row_reduce", (ONE, node.columns))
    to = kernel.pointer(out, "float32", written=True)
    kernel.add(f"const long long begin = 0, end = {kernel.rows(values.nodes[node.inputs[0]].rows)};")
    _fold(kernel, node.attrs["reduce"], "end", values.read(kernel, node.inputs[0], "e", "c"))
    kernel.add(f"{to}[i] = y;")
    yield kernel


def float_spmm(values: Values, node: Node, out: str) -> Iterator[Kernel]:
    """Weighted float rows of the sources."""
    graph, width = node.attrs["graph"], node.columns // node.attrs["heads"]
    kernel = Kernel("float_spmm", (node.rows, node.columns))
    to = kernel.pointer(out, "float32", written=True)
    src = kernel.pointer(f"{graph}.src", "int32")
    _edges(kernel, graph)
    element = values.read(kernel, node.inputs[0], f"(long long){src}[e]", "c")
    if len(node.inputs) > 1:
        element = f"{element} * {values.read(kernel, node.inputs[1], 'e', f'(c / {width})')}"
    _fold(kernel, node.attrs["reduce"], "(end - begin)", element)
    kernel.add(f"{to}[i] = y;")
    yield kernel


def spmm(values: Values, node: Node, out: str) -> Iterator[Kernel]:
    """Codes of the sources: their largest or smallest, or sums that no warp makes (``sums.fits``)."""
    if node.attrs["reduce"] in ("max", "min"):
        yield _extreme_code(values, node, out)
        return
    yield edge_codes(values, node)
    yield _code_sums(values, node, out)


def _extreme_code(values: Values, node: Node, out: str) -> Kernel:
    graph, (q,) = node.attrs["graph"], node.inputs
    if values.quantizer(q, node).attrs["granularity"] != "tensor":
        raise refuse(node, "the largest of codes with a scale for each row is not defined")
    kernel = Kernel("spmm_extreme", (node.rows, node.columns))
    to = kernel.pointer(out, "float32", written=True)
    src = kernel.pointer(f"{graph}.src", "int32")
    _edges(kernel, graph)
    kernel.add("int y = 0;")
    with kernel.block("for (long long e = begin; e < end; ++e)"):
        kernel.add(f"const int x = {values.doubled(kernel, q, f'(long long){src}[e]', 'c')};")
        sign = ">" if node.attrs["reduce"] == "max" else "<"
        kernel.add(f"y = e == begin || x {sign} y ? x : y;")
    kernel.add(f"{to}[i] = (float)y * ({values.scale(kernel, q, '0')} * 0.5f);")
    return kernel


def edge_codes(values: Values, node: Node) -> Kernel:
    """8-bit edge weights and, for each destination and head, the largest weight."""
    graph, heads, q = node.attrs["graph"], node.attrs["heads"], node.inputs[0]
    values.quantizer(q, node)
    codes = values.add(f"edge_codes.{node.name}", "int8", (graph, heads), "workspace")
    largest = values.add(f"edge_scale.{node.name}", "float32", (node.rows, heads), "workspace")
    by_warps = _shared_out(heads)
    kernel = (
        WarpKernel("edge_codes", (node.rows, LANES), crowded=graph)
        if by_warps
        else Kernel("edge_codes", (node.rows, heads))
    )
    to = kernel.pointer(codes, "int8", written=True)
    top = kernel.pointer(largest, "float32", written=True)
    row = f"(long long){kernel.pointer(f'{graph}.src', 'int32')}[e]"
    value = edge_value(values, kernel, node, "e", row)
    code = f"{to}[e * {heads} + c] = gq_edge_code(({value}) * ratio);"
    if isinstance(kernel, WarpKernel):
        loop = _begin_edges(kernel, heads)
    else:
        _edges(kernel, graph)
        loop = "for (long long e = begin; e < end; ++e)"
    kernel.add("float m = 0.0f;")
    kernel.add(AT_ONCE)
    with kernel.block(loop):
        kernel.add(f"m = gq_larger(m, fabsf({value}));")
    if isinstance(kernel, WarpKernel):
        _largest_of_all(kernel, "m", heads)
    kernel.add(f"const float ratio = gq_inverse(m, {literal(EDGE_LEVELS)});")
    kernel.add(AT_ONCE)
    with kernel.block(loop):
        kernel.add(code)
    kernel.add(f"if (thread < {heads}) {top}[r * {heads} + c] = m;" if by_warps else f"{top}[i] = m;")
    return kernel


def _shared_out(columns: int) -> bool:
    """Whether the lanes of a warp can share out the edges of a destination, each for one column."""
    return 0 < columns <= LANES and columns & (columns - 1) == 0


def _begin_edges(kernel: WarpKernel, columns: int) -> str:
    """Declare the column ``c`` of a lane; a loop over its edges ``e``."""
    kernel.add(f"const int c = lane % {columns};")
    kernel.add("(void)c;")
    first = f"begin + thread / {columns}"
    return f"for (long long e = {first}; e < end; e += step / {columns})"


def _largest_of_all(kernel: WarpKernel, name: str, columns: int) -> None:
    """Let all threads of a row know the largest of their variables ``name``, by columns."""
    kernel.share(BEST, BEST_BYTES)
    alone, block = (
        f"gq_warp_largest({name}, {columns})",
        f"gq_block_largest<{columns}>({name}, best, warp, lane)",
    )
    kernel.add(f"{name} = together ? {block} : {alone};")


def _code_sums(values: Values, node: Node, out: str) -> Kernel:
    graph, heads, q = node.attrs["graph"], node.attrs["heads"], node.inputs[0]
    width = node.columns // heads
    kernel = Kernel("spmm", (node.rows, node.columns))
    to = kernel.pointer(out, "float32", written=True)
    codes = kernel.pointer(f"edge_codes.{node.name}", "int8")
    largest = kernel.pointer(f"edge_scale.{node.name}", "float32")
    src = kernel.pointer(f"{graph}.src", "int32")
    _edges(kernel, graph)
    kernel.add(f"const int h = c / {width};")
    kernel.add("long long total = 0;")
    # 32 bits hold the sum of a slice; a hub has several
    with kernel.block(f"for (long long from = begin; from < end; from += {SLICE})"):
        kernel.add(f"const long long to = from + {SLICE} < end ? from + {SLICE} : end;")
        kernel.add("int part = 0;")
        with kernel.block("for (long long e = from; e < to; ++e)"):
            value = values.doubled(kernel, q, f"(long long){src}[e]", "c")
            kernel.add(f"part += (int){codes}[e * {heads} + h] * {value};")
        kernel.add("total += part;")
    factor = literal(0.5 / EDGE_LEVELS)
    kernel.add(f"float y = (float)total * ({largest}[r * {heads} + h] * {factor});")
    if node.attrs["reduce"] == "mean":
        kernel.add(f"y = y / {AT_LEAST_ONE.format('(end - begin)')};")
    kernel.add(f"{to}[i] = y;")
    return kernel


# ---------------------------------------------------------------- edge rows


def gcn_norm(values: Values, node: Node, out: str) -> Iterator[Kernel]:
    """Roots of degrees, then both of an edge times its weight."""
    graph, weights = node.rows, node.inputs
    rows = _destinations(values, graph)
    roots = values.add(f"roots.{node.name}", "float32", (rows, node.columns), "workspace")

    def weight(kernel: Kernel, edge: str) -> str:
        if weights:
            return values.read(kernel, weights[0], edge, "c")
        edge_id = kernel.pointer(f"{graph}.edge_id", "int32")
        return f"({edge_id}[{edge}] < 0 ? {kernel.number(node.attrs['fill'])} : 1.0f)"

    kernel = Kernel("gcn_roots", (rows, node.columns))
    to = kernel.pointer(roots, "float32", written=True)
    _edges(kernel, graph)
    _fold(kernel, "sum", "", weight(kernel, "e"))
    kernel.add(f"{to}[i] = gq_inverse(sqrtf(y < 0.0f ? 0.0f : y), 1.0f);")
    yield kernel

    kernel = Kernel("gcn_norm", (graph, node.columns))
    to = kernel.pointer(out, "float32", written=True)
    root = kernel.pointer(roots, "float32")
    src, dst = (kernel.pointer(f"{graph}.{part}", "int32") for part in ("src", "dst"))
    ends = [f"{root}[(long long){end}[r] * {node.columns} + c]" for end in (src, dst)]
    kernel.add(f"{to}[i] = ({ends[0]} * {weight(kernel, 'r')}) * {ends[1]};")
    yield kernel


def segment_softmax(values: Values, node: Node, out: str) -> Iterator[Kernel]:
    """A thread for each destination and column, or a warp for each destination; over its edges thrice."""
    graph, columns = node.rows, node.columns
    if _shared_out(columns):
        yield _softmax_of_warps(values, node, out)
        return
    kernel = Kernel("segment_softmax", (_destinations(values, graph), columns))
    to = kernel.pointer(out, "float32", written=True)
    _edges(kernel, graph)
    x = values.read(kernel, node.inputs[0], "e", "c")
    _fold(kernel, "max", "", x)
    power = _power(kernel, node, x)
    kernel.add("float total = 0.0f;")
    with kernel.block("for (long long e = begin; e < end; ++e)"):
        kernel.add(f"const float power = {power};")
        kernel.add("total = total + power;")
        kernel.add(f"{to}[e * {columns} + c] = power;")
    kernel.add(_SHARE)
    with kernel.block("for (long long e = begin; e < end; ++e)"):
        kernel.add(f"{to}[e * {columns} + c] = {to}[e * {columns} + c] * share;")
    yield kernel


def _power(kernel: Kernel, node: Node, x: str) -> str:
    """What a softmax adds up of ``x``, whose largest is ``y``."""
    if not node.attrs.get("roots"):
        return f"gq_exp({x} - y)"
    kernel.add("const float most = 1.0f / y;")
    return f"gq_power({x} * most)"


def _sum_by_tiles(kernel: WarpKernel, powers: str, columns: int) -> None:
    """``total`` of each column in the order of the edges: all warps load, one adds."""
    size = THREADS * 8
    kernel.share(f"__shared__ float tile[{size}], whole[{LANES}];", 4 * (size + LANES))
    kernel.add("__syncthreads();")
    kernel.add(f"const long long last = end * {columns};")
    with kernel.block(f"for (long long from = begin * {columns}; from < last; from += {size})"):
        kernel.add(f"const int count = last - from < {size} ? (int)(last - from) : {size};")
        kernel.add("#pragma unroll")
        with kernel.block("for (int k = 0; k < 8; ++k)"):
            kernel.add(f"const int at = k * {THREADS} + threadIdx.x;")
            kernel.add(f"if (at < count) tile[at] = {powers}[from + at];")
        kernel.add("__syncthreads();")
        with kernel.block("if (warp == 0)"):
            kernel.add("#pragma unroll 16")
            with kernel.block(f"for (int at = c; at < count; at += {columns})"):
                kernel.add("total = total + tile[at];")
        kernel.add("__syncthreads();")
    kernel.add("if (warp == 0) whole[lane] = total;")
    kernel.add("__syncthreads();")
    kernel.add("total = whole[lane];")


def _softmax_of_warps(values: Values, node: Node, out: str) -> Kernel:
    """Powers by all lanes; their sums by all lanes of one warp alike, in the order of the edges."""
    graph, columns = node.rows, node.columns
    kernel = WarpKernel("segment_softmax", (_destinations(values, graph), LANES), crowded=graph)
    to = kernel.pointer(out, "float32", written=True)
    loop = _begin_edges(kernel, columns)
    x = values.read(kernel, node.inputs[0], "e", "c")
    element = f"{to}[e * {columns} + c]"
    kernel.add("float y = GQ_LOWEST;")
    kernel.add(AT_ONCE)
    with kernel.block(loop):
        kernel.add(f"y = gq_larger(y, {x});")
    _largest_of_all(kernel, "y", columns)
    power = _power(kernel, node, x)
    kernel.add(AT_ONCE)
    with kernel.block(loop):
        kernel.add(f"{element} = {power};")
    kernel.add("float total = 0.0f;")
    with kernel.block("if (together)"):
        _sum_by_tiles(kernel, to, columns)
    with kernel.block("else"):
        edges = LANES // columns
        kernel.add("__syncwarp();")
        with kernel.block(f"for (long long from = begin; from < end; from += {edges})"):
            kernel.add(f"const long long e = from + lane / {columns};")
            kernel.add(f"const float power = e < end ? {element} : 0.0f;")
            kernel.add("#pragma unroll")
            with kernel.block(f"for (int k = 0; k < {edges}; ++k)"):
                kernel.add(f"const float other = __shfl_sync(GQ_ALL, power, k * {columns} + c);")
                kernel.add("total = from + k < end ? total + other : total;")
    kernel.add(_SHARE)
    kernel.add(AT_ONCE)
    with kernel.block(loop):
        kernel.add(f"{element} = {element} * share;")
    return kernel


# ---------------------------------------------------------------- quantized


def gemm(values: Values, node: Node, out: str) -> Iterator[Kernel]:
    """Codes times the integers of a weight, both packed: a thread for each sum."""
    (q,), weight = node.inputs, values.graph.weights[node.attrs["weight"]]
    inputs, outputs = weight.shape
    zero2 = values.quantizer(q, node).attrs["zero2"]
    name = node.attrs["weight"]
    packed = values.constant(f"weight.{name}", weight.data)
    column_scale = values.constant(f"column_scale.{name}", weight.column_scale)
    kernel = Kernel("gemm", (node.rows, node.columns))
    to = kernel.pointer(out, "float32", written=True)
    data = kernel.pointer(packed, "uint8")
    scales = kernel.pointer(column_scale, "float32")
    kernel.add(f"const int m = c % {outputs}, start = c / {outputs} * {inputs};")
    kernel.add(f"{accumulator(inputs, weight.bits, weight.zero2, zero2)} total = 0;")
    integer = f"gq_code<{weight.bits}>({data}, (long long)k * {outputs} + m)"
    integer = f"2 * {integer} - {weight.zero2}" if weight.zero2 % 2 else f"{integer} - {weight.zero2 // 2}"
    with kernel.block(f"for (int k = 0; k < {inputs}; ++k)"):
        kernel.add(f"total += {values.doubled(kernel, q, 'r', '(start + k)')} * ({integer});")
    kernel.add(f"{to}[i] = ((float)total * ({values.scale(kernel, q, 'r')} * 0.5f)) * {scales}[m];")
    yield kernel


# ---------------------------------------------------------------- float rows


def float_gemm(values: Values, node: Node, out: str) -> Iterator[Kernel]:
    """A float matrix product, each sum from 0 in order."""
    array = values.graph.constants[node.attrs["array"]]
    inputs, outputs = array.shape
    kernel = Kernel("float_gemm", (node.rows, node.columns))
    to = kernel.pointer(out, "float32", written=True)
    matrix = kernel.pointer(values.constant(f"constant.{node.attrs['array']}", array.reshape(-1)), "float32")
    kernel.add(f"const int m = c % {outputs}, start = c / {outputs} * {inputs};")
    kernel.add("float y = 0.0f;")
    with kernel.block(f"for (int k = 0; k < {inputs}; ++k)"):
        value = values.read(kernel, node.inputs[0], "r", "(start + k)")
        kernel.add(f"y = y + {value} * {matrix}[(long long)k * {outputs} + m];")
    kernel.add(f"{to}[i] = y;")
    yield kernel


def matmul(values: Values, node: Node, out: str) -> Iterator[Kernel]:
    """A matrix product within each row, each sum from its first product."""
    x, y = (values.nodes[name] for name in node.inputs)
    (*batch, rows, columns), inner = node.shape, x.shape[-1]
    kernel = Kernel("matmul", (node.rows, node.columns))
    to = kernel.pointer(out, "float32", written=True)
    kernel.add(f"const int column = c % {columns}, row = c / {columns} % {rows}, b = c / {columns * rows};")
    kernel.add("(void)b;")
    left = f"(({broadcast('b', batch, x.shape[:-2])} * {rows} + row) * {inner} + k)"
    right = f"(({broadcast('b', batch, y.shape[:-2])} * {inner} + k) * {columns} + column)"
    kernel.add("float y = 0.0f;")
    with kernel.block(f"for (int k = 0; k < {inner}; ++k)"):
        product = f"{values.read(kernel, x.name, 'r', left)} * {values.read(kernel, y.name, 'r', right)}"
        kernel.add(f"const float x = {product};")
        kernel.add("y = k == 0 ? x : y + x;")
    kernel.add(f"{to}[i] = y;")
    yield kernel


def reduce(values: Values, node: Node, out: str) -> Iterator[Kernel]:
    """One axis of the row shape, from its first element on."""
    kernel = Kernel("reduce", (node.rows, node.columns))
    to = kernel.pointer(out, "float32", written=True)
    kernel.add(f"{to}[i] = {reduced(values, kernel, node, 'r')};")
    yield kernel


def softmax(values: Values, node: Node, out: str) -> Iterator[Kernel]:
    """Along the last axis, or its logarithm: a thread for each of the other elements."""
    length = node.shape[-1]
    kernel = Kernel(node.op, (node.rows, node.columns // max(length, 1)))
    to = kernel.pointer(out, "float32", written=True)
    x = values.read(kernel, node.inputs[0], "r", f"(c * {length} + k)")
    element = f"{to}[i * {length} + k]"
    loop = f"for (int k = 0; k < {length}; ++k)"
    kernel.add("float y = 0.0f, total = 0.0f;")
    with kernel.block(loop):
        kernel.add(f"const float x = {x};")
        kernel.add("y = k == 0 ? x : gq_larger(y, x);")
    with kernel.block(loop):
        kernel.add(f"const float centred = {x} - y;")
        kernel.add("const float power = gq_exp(centred);")
        kernel.add("total = k == 0 ? power : total + power;")
        kernel.add(f"{element} = {'power' if node.op == 'softmax' else 'centred'};")
    if node.op == "log_softmax":
        kernel.add("total = gq_log(total);")
    with kernel.block(loop):
        kernel.add(f"{element} = {element} {'/' if node.op == 'softmax' else '-'} total;")
    yield kernel


FLOATS: dict[str, Callable[[Values, Node, str], Iterator[Kernel]]] = {
    "segment_reduce": segment_reduce,
    "row_reduce": row_reduce,
    "float_spmm": float_spmm,
    "spmm": spmm,
    "gcn_norm": gcn_norm,
    "segment_softmax": segment_softmax,
    "gemm": gemm,
    "float_gemm": float_gemm,
    "matmul": matmul,
    "reduce": reduce,
    "softmax": softmax,
    "log_softmax": softmax,
}
"""Kernels of the operations whose float values are always stored."""
