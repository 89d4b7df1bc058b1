"""ONNX export: the integer graph in standard operators (docs/onnx.md)."""

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING, Any

from gnnquant.errors import BackendError
from gnnquant.folders import write_whole

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping

    from gnnquant.integer_graph import IntegerGraph

__all__ = ["export_onnx"]

LARGEST = 2**31 - 2**20
"""Bytes of weights and constants that fit a file: protobuf holds 2 GiB, and nodes need some."""


def export_onnx(
    model: Any,
    path: str | os.PathLike[str],
    example_inputs: tuple[Any, ...] | Mapping[str, Any] | None = None,
    *,
    opset: int | None = None,
) -> None:
    """Write a converted model as a standard ONNX model: no custom operators, graphs of any size.

    Quantized values are ``QuantizeLinear`` and ``DequantizeLinear`` nodes, weights are stored packed;
    docs/onnx.md says which type holds which width. Sums over edges are those of the integer reference,
    also with duplicate edges, isolated nodes and without edges. Indices are not checked.

    Where onnxruntime is installed, the model is run beside the integer reference before the file gets its
    name; otherwise a ``UserWarning`` says that it was not.

    Args:
        model: What :func:`gnnquant.convert` returned, with ranges (calibrated or fine-tuned);
            ``bits=32`` gives a float model.
        path: The file to write.
        example_inputs: Inputs, by position or by parameter name, on which the exported model is compared
            besides a small random call.
        opset: Version of the operator set: 18 to 25, 21 and up with weights of 4 bits or less. 25 packs
            all codes and needs onnxruntime 1.32; before, 2-bit weights take 4 bits, and values 8.
            ``None``: the newest that the installed onnxruntime runs right.

    Raises:
        BackendError: A node cannot be exported (the message names it), a site has no range, the operator
            set is too old or not tested, the model is too large, onnx is not installed, or the comparison
            failed.
    """
    from gnnquant.converter import QuantizedModule
    from gnnquant.passes.lowering import lower

    if not isinstance(model, QuantizedModule):
        raise BackendError(
            f"export_onnx takes what gnnquant.convert returned, not {type(model).__name__}: "
            "call gnnquant.convert(model) first (bits=32 for a float model)"
        )
    _require_onnx()
    graph = lower(model)
    _check_size(graph)
    data = _exported(graph, model.bits, _sites(model), _chosen_opset(graph, opset), example_inputs)
    write_whole(path, data)


def _sites(model: Any) -> dict[str, int]:
    """Bits by site."""
    return {site.name: site.bits for site in model.sites.values()}


def _check_size(graph: IntegerGraph) -> None:
    stored = sum(math.prod(weight.shape) for weight in graph.weights.values())
    stored += sum(array.nbytes for array in graph.constants.values())
    if stored > LARGEST:
        raise BackendError(
            f"weights and constants of {stored / 2**30:.1f} GiB do not fit an ONNX file of 2 GiB: export "
            "parts of the model, or use gnnquant.compile"
        )


def _require_onnx() -> None:
    try:
        import onnx  # noqa: F401
    except ImportError as error:
        raise BackendError("export_onnx needs the package onnx: pip install 'gnnquant[onnx]'") from error


def _chosen_opset(graph: IntegerGraph, opset: int | None) -> int:
    """The operator set to use.

    Raises:
        BackendError: The one that was asked for is too old for a node, or not tested.
    """
    from gnnquant.backends.onnx.check import newest_opset
    from gnnquant.backends.onnx.containers import FIRST_OPSET, NEWEST_OPSET, WEIGHT_OPSETS

    if opset is None:
        opset = newest_opset()
    elif isinstance(opset, bool) or not isinstance(opset, int):
        raise BackendError(f"opset must be an integer, not {opset!r}")
    if opset > NEWEST_OPSET:
        raise BackendError(f"opset {opset} is not tested: pass {NEWEST_OPSET} or less, or leave opset out")
    if opset < FIRST_OPSET:
        raise BackendError(
            f"opset {opset} has no sums over edges that are right with duplicate edges: pass "
            f"opset={FIRST_OPSET} or more"
        )
    for name, weight in graph.weights.items():
        needed = WEIGHT_OPSETS[weight.bits]
        if opset < needed:
            raise BackendError(
                f"{name!r} has {weight.bits}-bit codes, which need opset {needed}, but the operator set is "
                f"{opset}: pass opset={needed} or more"
            )
    return opset


def _exported(
    graph: IntegerGraph,
    bits: int,
    sites: dict[str, int],
    opset: int,
    example_inputs: tuple[Any, ...] | Mapping[str, Any] | None,
) -> bytes:
    """The model as bytes, compared with the reference."""
    from onnx import helper

    import gnnquant
    from gnnquant.backends.onnx.check import check_exported
    from gnnquant.backends.onnx.emit import emit_model
    from gnnquant.backends.onnx.session import OnnxSession, find_runtime
    from gnnquant.backends.reference import ReferenceExecutor
    from gnnquant.runtime import CompiledModel

    metadata = {"gnnquant": gnnquant.__version__, "bits": bits, "sites": sites}
    model = emit_model(graph, opset, metadata)
    runtime = find_runtime()
    if runtime is None:
        warnings.warn(
            "the exported model was not compared with the integer reference, because onnxruntime is not "
            "installed: pip install 'gnnquant[onnx]'",
            stacklevel=3,
        )
        compared = "no: onnxruntime was not installed"
    else:
        reference = CompiledModel(ReferenceExecutor(graph), graph, {"bits": bits})
        session = OnnxSession(graph, model.SerializeToString())
        ran = check_exported(session, reference, graph, example_inputs)
        compared = f"onnxruntime {runtime.__version__}" if ran else "no: random inputs are none of this model"
    helper.set_model_props(
        model, {item.key: item.value for item in model.metadata_props} | {"compared": compared}
    )
    return bytes(model.SerializeToString())
