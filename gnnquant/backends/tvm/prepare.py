"""Kernels that turn an ``edge_index`` into CSR form, compiled into every model's library.

Signatures (all buffers contiguous and 64-byte aligned, called as ``module[name](*buffers)``; they
return nothing). E is the number of given edges, N the number of nodes, E' the number of edges of
the graph with the self-loops of its mode; ``P >= GRAPH_PADDING``::

    graph_count(edge_index int64 [2, E], indptr int32 [N + 1], mode int32 [1])
        writes all of indptr; E' = indptr[N]
    graph_fill(edge_index int64 [2, E], indptr int32 [N + 1], indices int32 [E' + P],
               edge_id int32 [E' + P], cursor int32 [N], mode int32 [1])
        writes all of indices and edge_id, padding (zeros) included; cursor is scratch

``mode[0]`` is the position of the graph's ``loops`` in ``integer_graph.LOOPS`` (0 keep, 1 remove,
2 add, 3 replace, 4 remaining). Indices must be in range: the index program checks them. Row i of the
result holds the edges with destination ``edge_index[1, e] == i`` in the order in which they
were given, ``indices`` their sources and ``edge_id`` their positions e; an appended self-loop is
the last of its row with ``edge_id`` -1, or, in mode "remaining", the position of the last self-loop
of that node that was removed (-1 where there was none). E = 0 and N = 1 are fine, E' must stay below
2^31 (the caller checks E + N).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gnnquant.backends.tvm.emit import Builder, all_of, any_of, cast, choose, const

if TYPE_CHECKING:
    from collections.abc import Callable

KEEP, REMOVE, ADD, REPLACE, REMAINING = range(5)


def graph_count() -> Any:
    """PrimFunc: row pointers of the graph in a self-loop mode."""
    b = Builder("graph_count")
    edges, ends = b.size("edges"), b.size("ends")
    index = b.argument("edge_index", (2, edges), "int64")
    indptr = b.argument("indptr", (ends,), "int32")
    mode = b.argument("mode", (1,), "int32")

    def body() -> None:
        drop = b.let(_drops(mode[0]))
        appended = b.let(choose(mode[0] >= ADD, const(1), const(0)))
        b.store(indptr, const(0), 0)
        with b.loop(ends - 1) as i:
            b.store(indptr, appended, i + 1)
        with b.loop(edges) as e:
            target = b.let(cast(index[1, e], "int32"))
            kept = choose(all_of(drop > 0, index[0, e] == index[1, e]), const(0), const(1))
            b.store(indptr, indptr[target + 1] + kept, target + 1)
        with b.loop(ends - 1) as i:
            b.store(indptr, indptr[i] + indptr[i + 1], i + 1)

    return b.function(body)


def graph_fill() -> Any:
    """PrimFunc: stable counting sort of the edges by destination."""
    b = Builder("graph_fill")
    edges, ends = b.size("edges"), b.size("ends")
    total, nodes = b.size("total"), b.size("nodes")
    index = b.argument("edge_index", (2, edges), "int64")
    indptr = b.argument("indptr", (ends,), "int32")
    indices = b.argument("indices", (total,), "int32")
    edge_id = b.argument("edge_id", (total,), "int32")
    cursor = b.argument("cursor", (nodes,), "int32")
    mode = b.argument("mode", (1,), "int32")

    def body() -> None:
        drop = b.let(_drops(mode[0]))
        with b.loop(nodes) as i:
            b.store(cursor, indptr[i], i)
            with b.when(mode[0] >= ADD):
                b.store(indices, i, indptr[i + 1] - 1)
                b.store(edge_id, const(-1), indptr[i + 1] - 1)
        with b.loop(edges) as e:
            target = b.let(cast(index[1, e], "int32"))
            source = b.let(cast(index[0, e], "int32"))

            def keep() -> None:
                slot = b.let(cursor[target])
                b.store(indices, source, slot)
                b.store(edge_id, e, slot)
                b.store(cursor, slot + 1, target)

            def dropped() -> None:
                with b.when(mode[0] == REMAINING):
                    b.store(edge_id, e, indptr[target + 1] - 1)

            b.branch(all_of(drop > 0, source == target), dropped, keep)
        with b.loop(total - indptr[ends - 1]) as i:
            b.store(indices, const(0), indptr[ends - 1] + i)
            b.store(edge_id, const(0), indptr[ends - 1] + i)

    return b.function(body)


def _drops(mode: Any) -> Any:
    """1 where ``mode`` removes given self-loops."""
    return choose(any_of(mode == REMOVE, mode >= REPLACE), const(1), const(0))


KERNELS: dict[str, Callable[[], Any]] = {
    "graph_count": graph_count,
    "graph_fill": graph_fill,
}
"""Builders of the PrimFuncs by exported name."""
