"""The CUDA backend: an integer graph becomes one kernel per stored value, in CUDA C++.

The text of the kernels is written here (``source``, ``values``, ``kernels``), not by TVM's code generator,
and nvcc compiles it. No GPU is needed for that; ``gnnquant.runtime.cuda`` runs the result on one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gnnquant.backends.placement import placed
from gnnquant.errors import BackendError
from gnnquant.integer_graph import origin
from gnnquant.runtime.plan import Call, Plan

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from gnnquant.backends.cuda.source import Kernel
    from gnnquant.backends.cuda.values import Values
    from gnnquant.integer_graph import IntegerGraph, Node
    from gnnquant.runtime.plan import Buffer


@dataclass(frozen=True)
class Program:
    """A model as source.

    Attributes:
        plan: How to launch its kernels; ``notes["launches"]`` has a ``source.Launch`` for every call.
        constants: Arrays of the plan's constant buffers: packed weights, scales, biases.
        source: CUDA C++ with all kernels.
    """

    plan: Plan
    constants: dict[str, NDArray[Any]]
    source: str


def is_cuda(target: Any) -> bool:
    """Whether a target, a name or one of TVM's, is for NVIDIA's GPUs.

    Members of TVM's targets other than the kind do not count: the code is for every architecture of
    ``nvcc.ARCHITECTURES``.
    """
    if isinstance(target, dict):
        return target.get("kind") == "cuda"
    return target == "cuda" or getattr(getattr(target, "kind", None), "name", None) == "cuda"


def build(graph: IntegerGraph) -> tuple[Program, bytes]:
    """Write the kernels of ``graph`` and compile them.

    Returns:
        The program, and a fatbin with its kernels.

    Raises:
        BackendError: Naming the node that has no kernel; or nvcc is missing or failed.
    """
    from gnnquant.backends.cuda import nvcc

    program = generate(graph)
    nvcc.dump(program.source)
    return program, nvcc.build_fatbin(program.source)


def generate(graph: IntegerGraph) -> Program:
    """Write the kernels of ``graph``.

    Raises:
        BackendError: Naming the node that has no kernel, and why.
    """
    from gnnquant.backends.cuda.source import PRELUDE
    from gnnquant.backends.cuda.together import CROWDED, LIBRARY
    from gnnquant.backends.cuda.values import Values, stored_values

    graph.verify()
    graph = graph.live()
    values = Values(graph)
    _check_outputs(values)
    _declare_inputs(values)
    stored = stored_values(graph)
    copies = _place(values, stored)
    written: dict[str, str] = {}
    calls: list[Call] = []
    launches: list[dict[str, Any]] = []
    moving = _moving(graph)
    for nodes, kernel in _kernels(values, stored, copies):
        if kernel.work[1] == 0:  # values without columns
            continue
        text = kernel.text()
        name = written.setdefault(text, f"{kernel.operation}_{len(written)}")
        of_graph = not any(node.name in moving for node in nodes)
        calls.append(Call(name, tuple(kernel.buffers), per_graph=of_graph))
        launches.append(kernel.launch().to_json())
    texts = [text.replace("NAME", name, 1) for text, name in written.items()]
    source = "\n".join([PRELUDE + LIBRARY, *texts])
    buffers = _used(values, calls)
    plan = Plan(
        inputs=tuple(graph.inputs),
        parameters=tuple(graph.parameters),
        index=tuple(graph.index),
        buffers=buffers,
        calls=tuple(calls),
        outputs=tuple(f"output.{index}" for index in range(len(graph.outputs))),
        output_shapes=tuple(tuple(values.nodes[name].shape) for name in graph.outputs),
        result=graph.result,
        notes={
            "launches": launches,
            "reads": list(graph.reads()),
            "checked": sorted(values.checked),
            "crowded": CROWDED,
        },
    )
    kept = {buffer.name for buffer in buffers}
    constants = {name: array for name, array in values.constants.items() if name in kept}
    return Program(placed(plan, in_outputs=False), constants, source)


def _check_outputs(values: Values) -> None:
    for name in values.graph.outputs:
        if origin(values.nodes, name, "reshape", "gather").op == "quantize":
            raise BackendError(f"cuda backend: the output {name!r} is quantized, not float")


def _declare_inputs(values: Values) -> None:
    for node in values.graph.nodes:
        if node.op == "input":
            shape = (node.rows, node.columns) if node.shape else (node.rows,)
            values.add(node.attrs["input"], "float32", shape, "input")


def _place(values: Values, stored: set[str]) -> list[tuple[str, str]]:
    """Give every stored value a buffer; the first output that it is, or one of its own.

    Returns:
        Values that are copied into further outputs, and those.
    """
    copies = []
    for index, name in enumerate(values.graph.outputs):
        node, output = values.nodes[name], f"output.{index}"
        values.add(output, "float32", (node.rows, node.columns), "output")
        if name in stored and name not in values.stored:
            values.stored[name] = output
        else:
            copies.append((name, output))
    for node in values.graph.nodes:
        if node.name in stored and node.name not in values.stored:
            buffer = f"value.{node.name}"
            values.stored[node.name] = values.add(buffer, "float32", (node.rows, node.columns), "workspace")
    return copies


def _kernels(
    values: Values, stored: set[str], copies: list[tuple[str, str]]
) -> Iterator[tuple[list[Node], Kernel]]:
    """The kernels in execution order, and the nodes that each computes."""
    from gnnquant.backends.cuda import kernels, rows
    from gnnquant.backends.cuda.groups import grouped
    from gnnquant.backends.cuda.values import LIGHT, VIEWS, refuse

    for node in values.graph.nodes:
        if node.op not in kernels.FLOATS.keys() | VIEWS | LIGHT | {"quantize"}:
            raise refuse(node, "there is no kernel for this operation yet; compile for target='native'")
    groups = grouped(values, stored, [name for name, _ in copies])
    for group in groups.groups:
        first = group.nodes[0]
        if group.by_rows:
            if first.op == "spmm" and first.attrs["heads"] > 1:
                yield [first], kernels.edge_codes(values, first)
            yield group.nodes, rows.kernel_of(values, group, groups.read_outside)
            continue
        make = kernels.FLOATS.get(first.op, kernels.light)
        if first.columns:
            yield from ((group.nodes, kernel) for kernel in make(values, first, values.stored[first.name]))
    for name, output in copies:
        node = values.nodes[name]
        yield from (([node], kernel) for kernel in kernels.copy(values, node, output))


def _moving(graph: IntegerGraph) -> set[str]:
    """Nodes whose values depend on float inputs, not on constants and the index program alone."""
    found: set[str] = set()
    for node in graph.nodes:
        if node.op == "input" or found.intersection(node.inputs):
            found.add(node.name)
    return found


def _used(values: Values, calls: list[Call]) -> tuple[Buffer, ...]:
    used = {name for call in calls for name in call.arguments}
    kinds = ("input", "output")
    return tuple(item for item in values.buffers.values() if item.name in used or item.kind in kinds)


__all__ = ["Program", "build", "generate", "is_cuda"]
