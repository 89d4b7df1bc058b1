"""``gnnquant.compile`` and the targets that it knows."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from gnnquant.errors import BackendError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gnnquant.integer_graph import IntegerGraph
    from gnnquant.runtime import CompiledModel
    from gnnquant.runtime.artifact import ArtifactPayload

__all__ = ["compile"]


def compile(
    model: Any,
    example_inputs: tuple[Any, ...] | Mapping[str, Any] | None = None,
    *,
    target: Any = "native",
    threads: int | None = None,
    prepared_features: bool = False,
) -> CompiledModel:
    """Compile a converted model to integer code.

    Args:
        model: What :func:`gnnquant.convert` returned, with ranges (calibrated or fine-tuned).
        example_inputs: Inputs, by position or by parameter name, on which the result is compared with the
            integer reference before it is returned, besides a small random call. Where random integers
            are no input of the model, they are all that it is compared on; without them
            ``info["self_check"]`` is then ``"skipped"``. The compiled model takes graphs of any size.
        target: ``"native"`` for this machine; ``"x86-64-v2"``, ``"x86-64-v3"``, ``"x86-64-v4"``,
            ``"aarch64"`` or ``"riscv64"`` for others, which may need a cross compiler to link with and give a
            model that is saved here and loaded there; ``"cuda"`` for NVIDIA GPUs of compute capability 8.0
            and newer, which needs nvcc, but no GPU, to compile; a TVM target (``{"kind": "llvm",
            "mcpu": ...}``); or ``"reference"``: the same integer graph interpreted in torch.
        threads: Threads of one call; ``None``: the processors that this process may use (give the number
            for another machine). ``"cuda"`` takes none.
        prepared_features: Whether :meth:`CompiledModel.prepare_features` can quantize the float input ahead
            of the calls: for features that stay the same. Calls with floats then take a little longer.
            Not for ``"cuda"``.

    Returns:
        A model that is called like the original, with torch tensors or numpy arrays.

    Raises:
        BackendError: A node cannot be lowered, a site has no range, nothing can be built for the target, or
            the comparison failed.
    """
    from gnnquant.backends.cuda import is_cuda
    from gnnquant.backends.self_check import check_compiled
    from gnnquant.converter import QuantizedModule
    from gnnquant.passes.lowering import lower
    from gnnquant.runtime.artifact import model_from_payload
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
    if is_cuda(target):
        if threads is not None or prepared_features:
            raise BackendError(
                "target='cuda' takes neither threads nor prepared_features: leave them out (the GPU has its "
                "own threads, and quantizes features in every call)"
            )
        payload = _cuda(graph, info)
    else:
        payload = _tvm(graph, info, target, threads or _processors(), prepared_features)
    compiled = model_from_payload(payload)
    # Code is not trusted because it compiled: this processor may be the first of its kind.
    runs_here = not missing_requirements(payload.metadata["target"])
    if runs_here and not check_compiled(compiled, reference, graph, example_inputs):
        payload.metadata["self_check"] = "skipped"
        compiled = model_from_payload(payload)
    return compiled


def _processors() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _reference(graph: IntegerGraph, info: dict[str, Any]) -> CompiledModel:
    from gnnquant.backends.reference import ReferenceExecutor
    from gnnquant.runtime import CompiledModel

    return CompiledModel(ReferenceExecutor(graph), graph, {**info, "target": "reference"})


def _tvm(
    graph: IntegerGraph, info: dict[str, Any], target: Any, threads: int, prepared_features: bool
) -> ArtifactPayload:
    from importlib.metadata import version

    from gnnquant import __version__
    from gnnquant.backends.tvm import build
    from gnnquant.runtime.artifact import ArtifactPayload

    built = build(graph, target=target, threads=threads, prepared_features=prepared_features)
    versions = {"gnnquant": __version__, "tvm": version("apache-tvm")}
    metadata = {**info, **versions, "target": built.target}
    return ArtifactPayload(built.plan, built.constants, built.library, metadata)


def _cuda(graph: IntegerGraph, info: dict[str, Any]) -> ArtifactPayload:
    from gnnquant import __version__
    from gnnquant.backends.cuda import build
    from gnnquant.backends.cuda.nvcc import ARCHITECTURES
    from gnnquant.runtime.artifact import ArtifactPayload
    from gnnquant.runtime.host import gpu_requirements

    program, fatbin = build(graph)
    metadata = {**info, "gnnquant": __version__, "target": gpu_requirements(ARCHITECTURES)}
    return ArtifactPayload(program.plan, program.constants, fatbin, metadata)
