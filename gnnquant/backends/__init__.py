"""``gnnquant.compile`` and the targets that it knows."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from gnnquant.errors import BackendError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gnnquant.integer_graph import IntegerGraph
    from gnnquant.runtime import CompiledModel

__all__ = ["compile"]


def compile(
    model: Any,
    example_inputs: tuple[Any, ...] | Mapping[str, Any] | None = None,
    *,
    target: str | dict[str, Any] = "llvm",
    threads: int | None = None,
) -> CompiledModel:
    """Compile a converted model to integer code.

    Args:
        model: What :func:`gnnquant.convert` returned, with ranges (calibrated or fine-tuned).
        example_inputs: Inputs on which the result is compared with the integer reference before it
            is returned, besides a small random graph on which it always is. The compiled model
            takes graphs of any size.
        target: ``"llvm"`` for this machine, a TVM target (``{"kind": "llvm", "mcpu": ...}``), or
            ``"reference"``: the same integer graph interpreted in torch.
        threads: Threads of one call; ``None``: the processors that this process may use.

    Returns:
        A model that is called like the original, with torch tensors or numpy arrays.

    Raises:
        BackendError: A node cannot be lowered, a site has no range, or the comparison failed.
    """
    from gnnquant.converter import FLOAT_BITS, QuantizedModule
    from gnnquant.passes.lowering import lower
    from gnnquant.runtime.host import missing_requirements

    if not isinstance(model, QuantizedModule):
        raise BackendError(
            f"compile takes what gnnquant.convert returned, not {type(model).__name__}: "
            "call gnnquant.convert(model) first (bits=32 for a float model)"
        )
    if threads is not None and (not isinstance(threads, int) or threads < 1):
        raise BackendError(f"threads must be a positive integer, not {threads!r}")
    graph = lower(model)
    info = {
        "bits": model.bits,
        "sites": {site.name: site.bits for site in model.sites.values()},
    }
    reference = _reference(graph, info)
    if target == "reference":
        return reference
    compiled = _tvm(graph, info, target, threads or _processors())
    if not missing_requirements(compiled.info["target"]):
        # Code is not trusted because it compiled: this processor may be the first of its kind.
        for example in (_random_inputs(graph), example_inputs):
            if example is not None:
                _compare(compiled, reference, example, exact=model.bits != FLOAT_BITS)
    return compiled


def _processors() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _reference(graph: IntegerGraph, info: dict[str, Any]) -> CompiledModel:
    from gnnquant.backends.reference import ReferenceExecutor
    from gnnquant.runtime import CompiledModel
    from gnnquant.runtime.plan import PlanInput

    inputs = [
        PlanInput(item.name, item.kind, item.columns, item.edge_index, item.optional) for item in graph.inputs
    ]
    shapes = [graph[name].shape for name in graph.outputs]
    return CompiledModel(ReferenceExecutor(graph), inputs, shapes, {**info, "target": "reference"}, None)


def _tvm(
    graph: IntegerGraph, info: dict[str, Any], target: str | dict[str, Any], threads: int
) -> CompiledModel:
    from importlib.metadata import version

    from gnnquant import __version__
    from gnnquant.backends.tvm import build
    from gnnquant.runtime.artifact import ArtifactPayload, model_from_payload
    from gnnquant.runtime.host import requirements

    built = build(graph, target=target, threads=threads)
    facts = built.target
    metadata = {
        **info,
        "gnnquant": __version__,
        "tvm": version("apache-tvm"),
        "target": requirements(facts["triple"], facts["mcpu"], facts["features"]),
    }
    return model_from_payload(ArtifactPayload(built.plan, built.constants, built.library, metadata))


def _random_inputs(graph: IntegerGraph) -> dict[str, Any]:
    """A small random graph, with a hub, self-loops and isolated nodes, as inputs of ``graph``."""
    import numpy as np

    nodes, edges = 37, 160
    random = np.random.default_rng(0)
    inputs: dict[str, Any] = {}
    for item in graph.inputs:
        if item.kind == "edge_index":
            ends = random.integers(0, nodes - 3, (2, edges))
            ends[1, : edges // 3] = 1
            inputs[item.name] = ends
            continue
        rows = nodes if item.kind == "node" else edges
        shape = (rows, item.columns) if item.columns else (rows,)
        inputs[item.name] = np.abs(random.standard_normal(shape)).astype(np.float32)
    return inputs


def _compare(
    compiled: CompiledModel,
    reference: CompiledModel,
    example: tuple[Any, ...] | Mapping[str, Any],
    exact: bool,
) -> None:
    """Raise unless both compute the same on ``example``: in every bit, or to float32 precision."""
    import numpy as np

    if isinstance(example, tuple):
        pair = compiled(*example), reference(*example)
    else:
        pair = compiled(**example), reference(**example)
    results = [item if isinstance(item, tuple) else (item,) for item in pair]
    for index, outputs in enumerate(zip(*results, strict=True)):
        got, wanted = (np.asarray(output) for output in outputs)
        scale = float(np.abs(wanted).max(initial=0))
        same = np.array_equal(got, wanted) if exact else np.allclose(got, wanted, 1e-4, 1e-5 * (1 + scale))
        if not same:
            raise BackendError(
                f"output {index} of the compiled model differs from the integer reference by "
                f"{np.abs(got - wanted).max():.3g}: the code for this processor is wrong, please "
                "report the model and the processor; target='reference' computes the right values"
            )
