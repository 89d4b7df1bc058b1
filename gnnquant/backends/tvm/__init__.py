"""The TVM backend: an integer graph becomes a shared library of fused CPU kernels.

``import gnnquant.backends.tvm`` does not import tvm; :func:`build` does.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from gnnquant.errors import BackendError
from gnnquant.integer_graph import IntegerGraph
from gnnquant.runtime.plan import Buffer, Call, Plan, PlanGraph, PlanInput

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from gnnquant.backends.tvm.context import Context, Kernel


@dataclass(frozen=True)
class BuiltModel:
    """A compiled model.

    Attributes:
        plan: How to call it.
        constants: Arrays of the plan's constant buffers: packed weights, scales, biases.
        library: Bytes of the shared library with the plan's functions and those of
            ``gnnquant.backends.tvm.prepare``.
        target: Facts about the machine that it was compiled for: ``triple``, ``mcpu``,
            ``features`` (of that processor), ``vector_features`` (that kernels name explicitly),
            ``architecture``, ``pointer_bits``.
    """

    plan: Plan
    constants: dict[str, NDArray[Any]]
    library: bytes
    target: dict[str, Any] = field(default_factory=dict)


def build(
    graph: IntegerGraph, *, target: str | dict[str, Any] | None = "llvm", threads: int = 1
) -> BuiltModel:
    """Compile ``graph``.

    Args:
        graph: A lowered model.
        target: ``"llvm"`` or None for this machine's processor, or a TVM target as a dictionary,
            such as ``{"kind": "llvm", "mcpu": "x86-64-v3"}``.
        threads: Threads that the kernels use; results do not depend on it.

    Raises:
        BackendError: Naming the node that cannot be lowered, and why.
    """
    from gnnquant.backends.tvm import compile as compiler
    from gnnquant.backends.tvm.context import Context
    from gnnquant.backends.tvm.prepare import KERNELS

    if threads < 1:
        raise BackendError(f"tvm backend: threads must be at least 1, not {threads}")
    graph.verify()
    graph = _live(graph)
    resolved = compiler.resolve_target(target)
    machine, facts = compiler.describe(resolved)
    context = Context(graph, machine, threads)
    _declare(context)
    kernels, of_graphs = _kernels(context)
    functions = {name: kernel() for name, kernel in KERNELS.items()}
    calls: list[Call] = []
    for kernel in kernels:
        functions[kernel.b.name] = kernel.function()
        calls.append(Call(kernel.b.name, kernel.b.argument_names, per_graph=kernel.b.name in of_graphs))
    calls = [*_weight_calls(context, functions), *calls]
    pool = context.pooled()
    context.constants["constants"] = pool
    context.add("constants", "float32", pool.shape, "constant")
    _declare_scratch(context)
    compiler.dump(functions)
    used = {name for call in calls for name in call.arguments}
    buffers = [
        buffer
        for buffer in context.buffers.values()
        if buffer.name in used or buffer.kind in ("input", "output")
    ]
    plan = Plan(
        inputs=tuple(
            PlanInput(item.name, item.kind, item.columns, item.edge_index, item.optional)
            for item in graph.inputs
        ),
        graphs=tuple(
            PlanGraph(node.name, node.attrs["input"], node.attrs["loops"])
            for node in graph.nodes
            if node.op == "graph"
        ),
        buffers=tuple(buffers),
        calls=tuple(calls),
        outputs=tuple(f"output.{index}" for index in range(len(graph.outputs))),
        output_shapes=tuple(tuple(graph[name].shape) for name in graph.outputs),
        threads=threads,
        notes={"input_alignment": 4, "finite": _finite(context), **_limits(buffers)},
    )
    constants = {name: array for name, array in context.constants.items() if name in used}
    return BuiltModel(plan, constants, compiler.build_library(functions, resolved), facts)


def _live(graph: IntegerGraph) -> IntegerGraph:
    """``graph`` without nodes that no output needs."""
    wanted = set(graph.outputs)
    nodes = []
    for node in reversed(graph.nodes):
        if node.name in wanted:
            nodes.append(node)
            wanted.update(node.inputs)
            if node.rows not in ("node", ""):
                wanted.add(node.rows)
    return IntegerGraph(graph.inputs, nodes[::-1], graph.outputs, graph.weights, graph.constants)


def _declare(context: Context) -> None:
    """Buffers of inputs and outputs."""
    graph = context.graph
    for item in graph.inputs:
        if item.kind == "edge_index":
            continue
        dims: tuple[int | str, ...] = ("N",)
        if item.kind == "edge":
            of = [n.name for n in graph.nodes if n.op == "edge_input" and n.attrs["input"] == item.name]
            if not of:
                continue
            dims = (f"E:{graph[of[0]].rows}",)
        if item.columns:
            dims = (*dims, item.columns)
        context.add(item.name, "float32", dims, "input")
    for index, name in enumerate(graph.outputs):
        node = graph[name]
        if node.op in ("graph", "quantize") or node.rows != "node":
            raise BackendError(f"tvm backend: the output {name!r} is no float value per node")
        context.add(f"output.{index}", "float32", ("N", node.columns), "output")


def _kernels(context: Context) -> tuple[list[Kernel], set[str]]:
    """One kernel per stage, in execution order; their bodies are emitted later, in this order.

    Also the names of the kernels whose values depend on the graphs alone.
    """
    from gnnquant.backends.tvm.edges import EdgeKernel, RootKernel
    from gnnquant.backends.tvm.partition import Stage, resolve, stages
    from gnnquant.backends.tvm.rows import RowKernel

    graph = context.graph
    found = stages(graph)
    computed = {node.name for stage in found for node in stage.nodes}
    outputs = [(index, resolve(graph, name)) for index, name in enumerate(graph.outputs)]
    kernels: list[Kernel] = []
    of_graphs: set[str] = set()
    fixed = _fixed_by_graphs(graph)
    for number, stage in enumerate(found):
        if stage.rows == "node":
            inside = {node.name for node in stage.nodes}
            own = [(index, name) for index, name in outputs if name in inside]
            kernels.append(RowKernel(context, stage, f"k{number}_rows", own))
            continue
        norms = [node for node in stage.nodes if node.op == "gcn_norm"]
        if norms:
            roots = Stage(stage.level, stage.rows, norms, stage.exports)
            kernels.append(RootKernel(context, roots, f"k{number}_roots"))
        kernels.append(EdgeKernel(context, stage, f"k{number}_edges"))
        if all(node.name in fixed for node in stage.nodes):
            of_graphs |= {f"k{number}_roots", f"k{number}_edges"}
    copied = [(index, name) for index, name in outputs if name not in computed]
    if copied:
        kernels.append(RowKernel(context, Stage(0, "node"), "copy_rows", copied))
    return kernels, of_graphs


def _fixed_by_graphs(graph: IntegerGraph) -> set[str]:
    """Nodes that no float input reaches."""
    fixed: set[str] = set()
    for node in graph.nodes:
        if node.op not in ("node_input", "edge_input") and fixed.issuperset(node.inputs):
            fixed.add(node.name)
    return fixed


def _weight_calls(context: Context, functions: dict[str, Any]) -> list[Call]:
    from gnnquant.backends.tvm.weights import interleave, unpack

    calls = []
    unpacked = set()
    for key, layout in context.weights.items():
        name = key.split(".", maxsplit=1)[1]
        weight, group = context.graph.weights[name], layout.group
        if name not in unpacked:
            unpacked.add(name)
            function = f"unpack_{weight.bits}_{weight.zero2}"
            if function not in functions:
                functions[function] = unpack(function, weight.bits, weight.zero2)
            calls.append(Call(function, (f"weight.{name}", f"unpacked.{name}")))
        function = f"interleave_{group}"
        if function not in functions:
            functions[function] = interleave(function, group, context.machine)
        calls.append(Call(function, (f"unpacked.{name}", f"dense{group}.{name}")))
    return calls


def _declare_scratch(context: Context) -> None:
    from gnnquant.backends.tvm.context import SCRATCH

    for dtype, name in SCRATCH.items():
        size = context.scratch.get(dtype, 0)
        context.add(name, dtype, (context.threads, max(size, 64)), "workspace")


def _limits(buffers: list[Buffer]) -> dict[str, int]:
    """Most nodes and edges for which offsets fit 32 bits."""
    widest = {"N": 1, "E": 1}
    for buffer in buffers:
        if buffer.shape and isinstance(buffer.shape[0], str):
            width = int(np.prod([dim for dim in buffer.shape[1:] if isinstance(dim, int)] or [1]))
            kind = buffer.shape[0][0]
            widest[kind] = max(widest[kind], width)
    most = 2**31 - 1
    return {"max_nodes": most // widest["N"], "max_edges": most // widest["E"]}


def _finite(context: Context) -> dict[str, str]:
    """Inputs whose NaN and infinities show in a buffer of row scales."""
    from gnnquant.backends.tvm.partition import resolve

    graph = context.graph
    found: dict[str, str] = {}
    for node in graph.nodes:
        if node.op == "quantize" and f"scale.{node.name}" in context.buffers:
            source = graph[resolve(graph, node.inputs[0])]
            if source.op == "node_input":
                found.setdefault(source.attrs["input"], f"scale.{node.name}")
    return found


__all__ = ["BuiltModel", "build"]
