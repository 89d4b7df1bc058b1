"""What a converted model consists of, as a table: ``print(q)``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gnnquant.errors import BackendError
from gnnquant.passes.lowering import lower
from gnnquant.quantizers import ops
from gnnquant.quantizers.calibration import quantizers_of
from gnnquant.quantizers.functional import code_range

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from gnnquant.integer_graph import IntegerGraph, Node
    from gnnquant.passes.sites import Site
    from gnnquant.quantizers.modules import Quantizer
    from gnnquant.tracing import TracedModule

COLUMNS = ("site", "kind", "shape", "bits", "scales", "range", "runs as")
_FOLLOWED = ("gather", "reshape", "columns")
"""Operations whose result is still codes, where their operand is."""


def summary(module: TracedModule, bits: int, sites: Mapping[str, Site]) -> str:
    """A header and one line per site of a converted model.

    The header counts sites and parameters, and says why the model cannot be compiled where that is so.
    ``range`` is what the codes span: of every row's largest magnitude where scales are by row. ``runs as``
    is what reads the codes in the compiled model.
    """
    parameters = sum(parameter.numel() for parameter in module.parameters())
    plural = "" if len(sites) == 1 else "s"
    lines = [f"{bits}-bit model: {len(sites)} site{plural}, {parameters:,} parameters"]
    graph: IntegerGraph | None = None
    try:
        graph = lower(module, require_ranges=False)
    except BackendError as error:
        lines.append(f"float: {error}")
    quantizers = quantizers_of(module)
    rows: list[tuple[str, ...]] = [COLUMNS]
    for site in sites.values():
        runs_as = "float" if graph is None else _use(module, graph, site)
        rows.append(
            (
                site.name,
                site.kind,
                " x ".join(map(str, site.shape)),
                str(site.bits),
                site.granularity,
                _range(quantizers[site.quantizer]),
                runs_as,
            )
        )
    if len(rows) > 1:
        lines += _aligned(rows)
    return "\n".join(lines)


def _aligned(rows: list[tuple[str, ...]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def _range(quantizer: Quantizer) -> str:
    """What the codes span."""
    if not bool(quantizer.calibrated):
        return "unset"
    low, high = code_range(quantizer.bits, int(quantizer.zero2))
    scale = float(quantizer.learned_scale().detach().max())
    span = f"{low * scale:.3g} .. {high * scale:.3g}"
    return span + {"row": " of the row", "column": " at most"}.get(quantizer.granularity, "")


def _use(module: TracedModule, graph: IntegerGraph, site: Site) -> str:
    """What reads the codes of ``site``."""
    if site.kind == "weight":
        layers = [node for node in module.graph.nodes if node.target is ops.linear]
        mine = [node for node in layers if node.args[2].meta.get("site") == site.name]
        return "integer GEMM" if any(node.args[1] is not None for node in mine) else "float GEMM"
    found = next((node for node in graph.nodes if node.op == "quantize" and node.name == site.name), None)
    if found is None:  # lowering merged it with another that has the same range
        return "shared"
    uses = dict.fromkeys(_uses(graph, found, site))
    return ", ".join(uses) or "unused"


def _uses(graph: IntegerGraph, node: Node, site: Site) -> Iterator[str]:
    is_edge = any(item.name == node.rows and item.op == "graph" for item in graph.index)
    for user in graph.users(node.name):
        if user.op == "gemm":
            yield "integer GEMM on edges" if is_edge else "integer GEMM"
        elif user.op == "spmm":
            yield "fused attention" if _is_attention(graph, user) else "integer SpMM"
        elif user.op in _FOLLOWED:
            yield from _uses(graph, user, site)
        elif user.op == "dequantize":
            yield "edge function in blocks" if is_edge else f"{site.bits}-bit storage"


def _is_attention(graph: IntegerGraph, spmm: Node) -> bool:
    """Whether the edge weight of ``spmm`` comes from a softmax over the edges of a destination."""
    waiting = list(spmm.inputs[1:])
    while waiting:
        node = graph[waiting.pop()]
        if node.op == "segment_softmax":
            return True
        if node.rows == spmm.attrs["graph"] and node.op != "gather":
            waiting += node.inputs
    return False
