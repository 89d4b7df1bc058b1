"""The TVM backend: an integer graph becomes a shared library of fused CPU kernels.

``import gnnquant.backends.tvm`` does not import tvm; :func:`build` does.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from gnnquant.backends.placement import placed
from gnnquant.backends.tvm.partition import (
    EDGE_ROWS,
    EDGE_VALUES,
    FEATURES,
    ROWS,
    Family,
    Stage,
    known_codes,
    quantized_features,
    resolve,
    stages,
    weighed_beside,
    weighed_rows,
    written_in_place,
)
from gnnquant.errors import BackendError
from gnnquant.runtime.plan import Buffer, Call, Plan

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from gnnquant.backends.tvm.context import Context, Kernel
    from gnnquant.integer_graph import IntegerGraph, Node


@dataclass(frozen=True)
class BuiltModel:
    """A compiled model.

    Attributes:
        plan: How to call it.
        constants: Arrays of the plan's constant buffers: packed weights, scales, biases.
        library: Bytes of the shared library with the plan's functions and those of
            ``gnnquant.backends.tvm.prepare``.
        target: What the library needs of a machine: ``gnnquant.runtime.host.requirements``.
    """

    plan: Plan
    constants: dict[str, NDArray[Any]]
    library: bytes
    target: dict[str, Any]


def build(
    graph: IntegerGraph, *, target: Any = "native", threads: int = 1, prepared_features: bool = False
) -> BuiltModel:
    """Compile ``graph``.

    Args:
        graph: A lowered model.
        target: A name or a TVM target: see ``gnnquant.backends.tvm.targets``.
        threads: Threads that the kernels use; results do not depend on it.
        prepared_features: Whether the input is quantized by calls of its own, which can be left out.

    Raises:
        BackendError: Naming the node that cannot be lowered, and why; or nothing can be built for ``target``.
    """
    from gnnquant.backends.tvm import compile as compiler
    from gnnquant.backends.tvm import targets
    from gnnquant.backends.tvm.context import INPUT_ALIGNMENT, Context
    from gnnquant.backends.tvm.prepare import KERNELS
    from gnnquant.backends.tvm.recompute import recomputed

    if threads < 1:
        raise BackendError(f"tvm backend: threads must be at least 1, not {threads}")
    graph.verify()
    graph = recomputed(graph).live()
    resolved = targets.resolve_target(target)
    machine, needs = targets.describe(resolved)
    graph, known = known_codes(graph)
    context = Context(graph, machine, threads)
    _declare(context)
    context.features = quantized_features(graph) if prepared_features else frozenset()
    context.weighed = weighed_rows(graph)
    context.known = known
    context.beside = weighed_beside(graph, context.features)
    kernels, of_graphs, of_features = _kernels(context, features=prepared_features)
    functions = {name: kernel() for name, kernel in KERNELS.items()}
    calls: list[Call] = []
    for kernel in kernels:
        functions[kernel.b.name] = kernel.function()
        name = kernel.b.name
        calls.append(Call(name, kernel.b.argument_names, name in of_graphs, name in of_features))
    calls = _merged(functions, [*_weight_calls(context, functions), *calls])
    _declare_scratch(context)
    compiler.dump(functions)
    used = {name for call in calls for name in call.arguments}
    buffers = [
        buffer
        for buffer in context.buffers.values()
        if buffer.name in used or buffer.kind in ("input", "output")
    ]
    plan = Plan(
        inputs=tuple(graph.inputs),
        parameters=tuple(graph.parameters),
        index=tuple(graph.index),
        buffers=tuple(buffers),
        calls=tuple(calls),
        outputs=tuple(f"output.{index}" for index in range(len(graph.outputs))),
        output_shapes=tuple(tuple(graph[name].shape) for name in graph.outputs),
        result=graph.result,
        threads=threads,
        notes={
            "input_alignment": INPUT_ALIGNMENT,
            "finite": _finite(context),
            "max_rows": _limits(buffers),
            "reads": list(graph.reads()),
        },
    )
    constants = {name: array for name, array in context.constants.items() if name in used}
    plan = placed(plan, in_outputs=True)
    return BuiltModel(plan, constants, compiler.build_library(functions, resolved), needs)


def _declare(context: Context) -> None:
    """Buffers of inputs and outputs."""
    graph = context.graph
    for node in graph.nodes:
        if node.op == "input":
            shape = (node.rows, node.columns) if node.shape else (node.rows,)
            context.add(node.attrs["input"], "float32", shape, "input")
    for index, name in enumerate(graph.outputs):
        node = graph[name]
        if graph[resolve(graph, name)].op == "quantize":
            raise BackendError(f"tvm backend: the output {name!r} is quantized, not float")
        context.add(f"output.{index}", "float32", (node.rows, node.columns), "output")


def _kernels(context: Context, *, features: bool) -> tuple[list[Kernel], set[str], set[str]]:
    """One kernel per stage, in execution order; their bodies are emitted later, in this order.

    Also the names of the kernels whose values follow from the index program alone, and of those that
    quantize the input and nothing else.
    """
    from gnnquant.backends.tvm.edges import EdgeKernel, RootKernel
    from gnnquant.backends.tvm.rows import EdgeCodesKernel, RowKernel, WeighKernel

    graph = context.graph
    kernels: list[Kernel] = []
    of_graphs: set[str] = set()
    of_features: set[str] = set()
    copied = {index: resolve(graph, name) for index, name in enumerate(graph.outputs)}
    apart = _weighed_apart(context)
    rounded: set[str] = set()
    for number, stage in enumerate(stages(graph, features=features)):
        started = len(kernels)
        sums = [resolve(graph, node.inputs[0]) for node in stage.nodes if node.op == "spmm"]
        kernels += [
            WeighKernel(context, f"k{number}_scales{index}", apart.pop(name))
            for index, name in enumerate(dict.fromkeys(sums))
            if name in apart
        ]
        for node in stage.nodes:
            known = context.known.get(node.name)
            if known is not None and known.codes not in rounded:
                kernels.append(EdgeCodesKernel(context, f"k{number}_codes{len(rounded)}", node))
                rounded.add(known.codes)
                of_graphs.add(kernels[-1].b.name)
        if stage.family.kind == EDGE_VALUES:
            if any(node.op == "gcn_norm" for node in stage.nodes):
                kernels.append(RootKernel(context, stage, f"k{number}_roots"))
            kernels.append(EdgeKernel(context, stage, f"k{number}_edges"))
        else:
            inside = {node.name for node in stage.nodes}
            own = [
                (index, name)
                for index, name in copied.items()
                if name in inside and written_in_place(stage, name)
            ]
            for index, _ in own:
                del copied[index]
            kernels.append(RowKernel(context, stage, f"k{number}_rows", own))
        if stage.family.kind == FEATURES:
            of_features |= {kernel.b.name for kernel in kernels[started:]}
        if not stage.family.moving:
            of_graphs |= {kernel.b.name for kernel in kernels[started:]}
    spaces = sorted({context.nodes[name].rows for name in copied.values()})
    for number, space in enumerate(spaces):
        family = Family(EDGE_ROWS if space in context.graphs else ROWS, True, space)
        own = [(index, name) for index, name in copied.items() if context.nodes[name].rows == space]
        kernels.append(RowKernel(context, Stage(0, family), f"copy{number}_rows", own))
    return kernels, of_graphs, of_features


def _weighed_apart(context: Context) -> dict[str, list[tuple[Node, str]]]:
    """By quantized value, the numbers of rows that a kernel of its own multiplies its scales with."""
    return {
        name: pairs
        for name, weights in context.weighed.items()
        if (pairs := [(context.nodes[name], w) for w in weights if w not in context.beside.get(name, ())])
    }


def _weight_calls(context: Context, functions: dict[str, Any]) -> list[Call]:
    from gnnquant.backends.tvm import bitsums, lookups
    from gnnquant.backends.tvm.weights import interleave, join, nibbles, unpack

    calls = []
    unpacked = set()

    def call(function: str, make: Callable[[], Any], *arguments: str) -> None:
        if function not in functions:
            functions[function] = make()
        calls.append(Call(function, arguments, per_graph=True))

    for key, layout in context.weights.items():
        name = key.split(".", maxsplit=1)[1]
        weight, group = context.graph.weights[name], layout.group
        if name not in unpacked:
            unpacked.add(name)
            function = f"unpack_{weight.bits}_{weight.zero2}"
            call(
                function,
                partial(unpack, function, weight.bits, weight.zero2),
                f"weight.{name}",
                f"unpacked.{name}",
            )
        if group in (bitsums.ALONE, lookups.GROUP):
            form = nibbles if group == bitsums.ALONE else join
            function = f"{form.__name__}_{layout.inputs}_{layout.padded}_{layout.zero2}"
            make = partial(form, function, layout)
        else:
            function = f"interleave_{group}"
            make = partial(interleave, function, group, context.machine)
        call(function, make, f"unpacked.{name}", f"dense{group}.{name}")
    return calls


def _merged(functions: dict[str, Any], calls: list[Call]) -> list[Call]:
    """Calls of the first of equal functions; the others, which differ in names only, are dropped."""
    import tvm_ffi

    first: dict[int, list[str]] = {}
    same: dict[str, str] = {}
    for name in dict.fromkeys(call.function for call in calls):
        body = functions[name].without_attr("global_symbol")
        equals = first.setdefault(tvm_ffi.structural_hash(body), [])
        for other in equals:
            if tvm_ffi.structural_equal(body, functions[other].without_attr("global_symbol")):
                same[name] = other
                del functions[name]
                break
        else:
            equals.append(name)
    return [replace(call, function=same.get(call.function, call.function)) for call in calls]


def _declare_scratch(context: Context) -> None:
    from gnnquant.backends.tvm.context import SCRATCH

    for dtype, name in SCRATCH.items():
        size = context.scratch.get(dtype, 0)
        context.add(name, dtype, (context.threads, max(size, 64)), "workspace")


def _limits(buffers: list[Buffer]) -> dict[str, int]:
    """Most rows of each space for which offsets fit 32 bits."""
    limits: dict[str, int] = {}
    for buffer in buffers:
        if buffer.shape and isinstance(buffer.shape[0], str):
            width = int(np.prod([dim for dim in buffer.shape[1:] if isinstance(dim, int)] or [1]))
            most = (2**31 - 1) // max(width, 1)
            limits[buffer.shape[0]] = min(limits.get(buffer.shape[0], most), most)
    return limits


def _finite(context: Context) -> dict[str, str]:
    """Inputs whose NaN and infinities show in a buffer: scales of their rows, or what a watch has found."""
    graph = context.graph
    found: dict[str, str] = {}
    for node in graph.nodes:
        source = graph[resolve(graph, node.inputs[0])] if node.op == "quantize" else node
        if node.op != "quantize" or source.op != "input":
            continue
        for name in (f"scale.{node.name}", f"largest.{node.name}"):
            if name in context.buffers:
                found.setdefault(source.attrs["input"], name)
    return found


__all__ = ["BuiltModel", "build"]
