"""The graphs of this room by name, and what they are compiled to, each once in a process."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from gnnquant.backends.tvm import BuiltModel, build
from tests.backends.tvm import graphs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from numpy.typing import NDArray

    from gnnquant.integer_graph import IntegerGraph

SIZES = ((0, 0), (1, 0), (1, 4), (5, 0), (13, 40), (150, 900))
"""Nodes and edges."""
MODELS: dict[str, Callable[[], IntegerGraph]] = {
    **{f"gcn-{bits}": lambda bits=bits: graphs.gcn(bits) for bits in (2, 4, 8)},  # type: ignore[misc]
    **{  # wide enough for products that skip zeros
        f"gcn-sparse-{bits}": lambda bits=bits: graphs.gcn(  # type: ignore[misc]
            bits, signed=False, loops="add", features=301, hidden=128
        )
        for bits in (2, 4, 8)
    },
    "gcn-tensor": lambda: graphs.gcn(4, granularity="tensor"),
    "gcn-tensor-8": lambda: graphs.gcn(8, granularity="tensor", features=130, hidden=64),
    "gcn-tensor-2": lambda: graphs.gcn(2, granularity="tensor", loops="keep", features=300, hidden=130),
    "gcn-tensor-replace": lambda: graphs.gcn(4, granularity="tensor", loops="replace"),
    "gcn-tensor-weighted": lambda: graphs.gcn(4, granularity="tensor", weighted=True),
    "gat-tensor": lambda: graphs.gat(4, granularity="tensor"),
    "gcn-replace": lambda: graphs.gcn(4, loops="replace"),
    "gcn-weighted": lambda: graphs.gcn(8, weighted=True, hidden=3, features=6),
    **{f"sage-{bits}": lambda bits=bits: graphs.sage(bits) for bits in (2, 4, 8)},  # type: ignore[misc]
    "sage-max": lambda: graphs.sage(4, "max", hidden=130),
    "sage-max-narrow": lambda: graphs.sage(2, "max", features=5, hidden=8),
    "gat-1": lambda: graphs.gat(4, heads=1, width=24),
    "gat-2": lambda: graphs.gat(2, heads=2, width=70),
    "gat-4": lambda: graphs.gat(4),
    "gat-8": lambda: graphs.gat(8, heads=3, width=5),
    "gat-weighted": lambda: graphs.gat(8, heads=8, width=20, weighted=True),
    "gat-roots": lambda: graphs.gat(8, factored=True),
    "gat-roots-1": lambda: graphs.gat(4, heads=1, width=24, factored=True, granularity="tensor"),
    "gat-roots-3": lambda: graphs.gat(8, heads=3, width=5, factored=True, granularity="tensor"),
    "gat-roots-8": lambda: graphs.gat(2, heads=8, width=8, factored=True, granularity="tensor"),
    "gat-roots-24": lambda: graphs.gat(4, heads=24, width=2, factored=True, granularity="tensor"),
    "attention-parts": lambda: graphs.attention_parts(4),
    "attention-parts-8": lambda: graphs.attention_parts(8, heads=8),
    "sage-min": lambda: graphs.sage(4, "min", features=12, hidden=40),
    "gatv2-4": lambda: graphs.gatv2(4),
    "gatv2-8": lambda: graphs.gatv2(8, heads=2, width=5),
    "edges-sums": lambda: graphs.edge_mlp(4, "sum", "mul"),
    "edges-extrema": lambda: graphs.edge_mlp(4, "max", "min"),
    "edges-8": lambda: graphs.edge_mlp(8, "mean", "sum", features=9, hidden=64),
    "edges-2": lambda: graphs.edge_mlp(2, "max", "mean", features=40, hidden=8),
    "bipartite": lambda: graphs.bipartite(4),
    "pooled": graphs.pooled,
    "shapes": graphs.shapes,
    **{f"products-{bits}": lambda bits=bits: graphs.products(bits) for bits in (4, 8)},  # type: ignore[misc]
    **{f"columns-{bits}": lambda bits=bits: graphs.columns(bits) for bits in (4, 8)},  # type: ignore[misc]
    "lookups": graphs.lookups,
    "floats": graphs.floats,
    "floats-mean": lambda: graphs.floats("mean", heads=1, features=16),
    "floats-max": lambda: graphs.floats("max", heads=2, features=16),
}
FAINT = (
    "gcn-2",
    "gcn-8",
    "gcn-tensor-8",
    "gcn-weighted",
    "gcn-tensor-weighted",
    "gat-8",
    "gat-weighted",
    "edges-8",
)
"""Models whose inputs may be next to nothing."""
THREADS = {"bipartite": 2, "pooled": 2}
"""Models that are called with more than one thread through the whole runtime too."""


@cache
def graph_of(name: str) -> IntegerGraph:
    """The graph ``name``; nobody may change it."""
    graph = MODELS[name]()
    graph.verify()
    return graph


def calls_of(name: str, sizes: Iterable[tuple[int, int]]) -> list[dict[str, NDArray[Any]]]:
    """Inputs of the graph ``name``: of so many nodes and edges, and next to nothing if it can take that."""
    graph = graph_of(name)
    calls = [graphs.values(graph, *size) for size in sizes]
    return [*calls, graphs.faint(graph)] if name in FAINT else calls


def built(name: str, threads: int = 1, mcpu: str = "") -> BuiltModel:
    """The compiled graph ``name``."""
    return _built(name, threads, mcpu)


@cache
def _built(name: str, threads: int, mcpu: str) -> BuiltModel:
    target = {"kind": "llvm", "mcpu": mcpu} if mcpu else "llvm"
    return build(graph_of(name), target=target, threads=threads)
