# ruff: noqa: N805, N806, PLR0917 - TIR reads like this
"""A small library written directly in TIR: what the runtime needs of a compiler, and no more.

The model is ``y = sum_e w_e * (x_j + 1) + bias`` over the edges into each node (with self-loops where
the graph's mode adds them, weight 1), and the number of those edges as a second output.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from tvm.script import ir as I
from tvm.script import tirx as T

from gnnquant.backends.placement import placed
from gnnquant.integer_graph import GraphInput, IndexNode, Parameter
from gnnquant.runtime.plan import Buffer, Call, Plan

COLUMNS = 4
BIAS = np.arange(COLUMNS, dtype=np.float32) / 4


@I.ir_module
class Module:
    @T.prim_func(s_tir=True)
    def graph_count(edges: T.handle, ends: T.handle, mode: T.handle):
        T.func_attr({"global_symbol": "graph_count"})
        num_edges, num_ends = T.int64(), T.int64()
        E = T.match_buffer(edges, (2, num_edges), "int64")
        P = T.match_buffer(ends, (num_ends,), "int32")
        M = T.match_buffer(mode, (1,), "int32")
        for i in range(num_ends):
            P[i] = T.Select(i > T.int64(0) and M[0] >= 2, 1, 0)
        for e in range(num_edges):
            if not ((M[0] == 1 or M[0] >= 3) and E[0, e] == E[1, e]):
                P[E[1, e] + T.int64(1)] = P[E[1, e] + T.int64(1)] + 1
        for i in range(num_ends - T.int64(1)):
            P[i + T.int64(1)] = P[i + T.int64(1)] + P[i]

    @T.prim_func(s_tir=True)
    def graph_fill(
        edges: T.handle,
        ends: T.handle,
        indices: T.handle,
        edge_id: T.handle,
        cursor: T.handle,
        mode: T.handle,
    ):
        T.func_attr({"global_symbol": "graph_fill"})
        num_edges, num_ends, total, nodes = T.int64(), T.int64(), T.int64(), T.int64()
        E = T.match_buffer(edges, (2, num_edges), "int64")
        P = T.match_buffer(ends, (num_ends,), "int32")
        J = T.match_buffer(indices, (total,), "int32")
        K = T.match_buffer(edge_id, (total,), "int32")
        C = T.match_buffer(cursor, (nodes,), "int32")
        M = T.match_buffer(mode, (1,), "int32")
        for i in range(total):
            J[i] = 0
            K[i] = 0
        for i in range(nodes):
            C[i] = P[i]
            if M[0] >= 2:
                J[P[i + T.int64(1)] - 1] = T.Cast("int32", i)
                K[P[i + T.int64(1)] - 1] = -1
        for e in range(num_edges):
            if (M[0] == 1 or M[0] >= 3) and E[0, e] == E[1, e]:
                if M[0] == 4:
                    K[P[E[1, e] + T.int64(1)] - 1] = T.Cast("int32", e)
            else:
                J[C[E[1, e]]] = T.Cast("int32", E[0, e])
                K[C[E[1, e]]] = T.Cast("int32", e)
                C[E[1, e]] = C[E[1, e]] + 1

    @T.prim_func(s_tir=True)
    def add_one(x: T.handle, y: T.handle):
        T.func_attr({"global_symbol": "add_one"})
        n = T.int64()
        X = T.match_buffer(x, (n, 4), "float32")
        Y = T.match_buffer(y, (n, 4), "float32")
        for i in range(n):
            for j in range(4):
                Y[i, j] = X[i, j] + T.float32(1)

    @T.prim_func(s_tir=True)
    def aggregate(
        x: T.handle,
        weight: T.handle,
        ends: T.handle,
        indices: T.handle,
        edge_id: T.handle,
        partition: T.handle,
        bias: T.handle,
        y: T.handle,
        degree: T.handle,
    ):
        T.func_attr({"global_symbol": "aggregate"})
        n, num_ends, given, total, parts = T.int64(), T.int64(), T.int64(), T.int64(), T.int64()
        X = T.match_buffer(x, (n, 4), "float32")
        W = T.match_buffer(weight, (given,), "float32")
        P = T.match_buffer(ends, (num_ends,), "int32")
        J = T.match_buffer(indices, (total,), "int32")
        K = T.match_buffer(edge_id, (total,), "int32")
        S = T.match_buffer(partition, (parts,), "int32")
        B = T.match_buffer(bias, (4,), "float32")
        Y = T.match_buffer(y, (n, 4), "float32")
        D = T.match_buffer(degree, (n, 1), "float32")
        for part in T.parallel(parts - T.int64(1)):
            for r in range(S[part + T.int64(1)] - S[part]):
                D[S[part] + r, 0] = T.Cast("float32", P[S[part] + r + 1] - P[S[part] + r])
                for j in range(4):
                    Y[S[part] + r, j] = B[j]
                    for e in range(P[S[part] + r + 1] - P[S[part] + r]):
                        Y[S[part] + r, j] = Y[S[part] + r, j] + X[J[P[S[part] + r] + e], j] * T.if_then_else(
                            K[P[S[part] + r] + e] < 0,
                            T.float32(1),
                            W[K[P[S[part] + r] + e]],
                        )


def compile_library(path: str) -> None:
    """Compile the kernels for this kind of machine, without special features."""
    import tvm
    from tvm.target import Target

    tvm.compile(Module, target=Target({"kind": "llvm"})).export_library(path)


def make_plan(loops: str = "keep", threads: int = 1, **notes: Any) -> Plan:
    """The model above."""
    graph = ("g.indptr", "g.src", "g.edge_id", "g.partition")
    plan = Plan(
        inputs=(
            GraphInput("x", "rows", (COLUMNS,)),
            GraphInput("edge_index", "edges"),
            GraphInput("edge_weight", "rows"),
        ),
        parameters=(
            *(Parameter(name, "positional", {"input": name}) for name in ("x", "edge_index", "edge_weight")),
            Parameter("batch", "positional", {"constant": None}, optional=True),
        ),
        index=(
            IndexNode("nodes", "rows", (), {"input": "x"}),
            IndexNode("edges", "rows", (), {"input": "edge_index"}),
            IndexNode("weights", "rows", (), {"input": "edge_weight"}),
            IndexNode("fit", "same_size", ("weights", "edges"), {"message": "one row per edge is needed"}),
            IndexNode("source", "index_input", (), {"input": "edge_index", "part": 0}),
            IndexNode("target", "index_input", (), {"input": "edge_index", "part": 1}),
            IndexNode("g", "graph", ("source", "target", "nodes", "nodes"), {"loops": loops}),
        ),
        buffers=(
            Buffer("x", "float32", ("nodes", COLUMNS), "input"),
            Buffer("edge_weight", "float32", ("weights",), "input"),
            Buffer("bias", "float32", (COLUMNS,), "constant"),
            Buffer("shifted", "float32", ("nodes", COLUMNS), "workspace"),
            Buffer("y", "float32", ("nodes", COLUMNS), "output"),
            Buffer("degree", "float32", ("nodes", 1), "output"),
        ),
        calls=(
            Call("add_one", ("x", "shifted")),
            Call("aggregate", ("shifted", "edge_weight", *graph, "bias", "y", "degree")),
        ),
        outputs=("y", "degree"),
        output_shapes=((2, 2), (1,)),
        threads=threads,
        notes=notes,
    )
    return placed(plan, in_outputs=True)


def expected(
    x: np.ndarray, edge_index: np.ndarray, weight: np.ndarray, loops: str = "keep"
) -> tuple[np.ndarray, np.ndarray]:
    """The model in plain numpy."""
    nodes = len(x)
    edges = [(*map(int, pair), float(w)) for pair, w in zip(edge_index.T, weight, strict=True)]
    added = dict.fromkeys(range(nodes), 1.0) if loops in ("add", "replace", "remaining") else {}
    if loops in ("remove", "replace", "remaining"):
        if loops == "remaining":
            added |= {target: value for source, target, value in edges if source == target}
        edges = [edge for edge in edges if edge[0] != edge[1]]
    edges += [(node, node, value) for node, value in added.items()]
    y = np.tile(BIAS.astype(np.float64), (nodes, 1))
    degree = np.zeros((nodes, 1))
    for source, target, value in edges:
        y[target] += value * (x[source].astype(np.float64) + 1)
        degree[target] += 1
    return y.reshape(nodes, 2, 2), degree
