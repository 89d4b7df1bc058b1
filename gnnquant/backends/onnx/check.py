"""An exported model is run by ONNX Runtime beside the reference before it gets its name."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from gnnquant.backends.onnx.containers import (
    FIRST_OPSET,
    NEWEST_OPSET,
    PACKED_OPSET,
    PACKED_RUNTIME,
)
from gnnquant.backends.onnx.session import OnnxSession, find_runtime, open_session
from gnnquant.backends.self_check import arrays_of, calls_of
from gnnquant.errors import BackendError, InputError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from gnnquant.integer_graph import IntegerGraph
    from gnnquant.runtime import CompiledModel

FLOAT_TOLERANCE = 1e-5
"""Largest difference of a float model, in units of its largest output (at least 1)."""
SHARE = 0.9
"""Share of the numbers of a quantized model that must agree: one code may round the other way."""
STEP = 0.1
"""Or all of them must agree to this share of the largest output."""


def check_exported(
    session: OnnxSession,
    reference: CompiledModel,
    graph: IntegerGraph,
    example: tuple[Any, ...] | Mapping[str, Any] | None,
) -> bool:
    """Compare both on a small random call and on ``example``.

    Returns:
        Whether there was a call to compare them on: random integers may be no input of some models.

    Raises:
        BackendError: They differ, or ONNX Runtime fails.
    """
    calls = list(calls_of(reference, graph, example))
    for (args, kwargs), wanted in calls:
        try:
            found = session(*args, **kwargs)
        except InputError:
            raise
        except Exception as error:  # ONNX Runtime's exceptions have no common base
            words = " ".join(str(error).split())
            raise BackendError(
                f"ONNX Runtime cannot run the exported model, please report it: {words}"
            ) from error
        compare(list(arrays_of(found)), list(arrays_of(wanted)), graph)
    return bool(calls)


def compare(found: list[NDArray[Any]], wanted: list[NDArray[Any]], graph: IntegerGraph) -> None:
    """Check the outputs of an exported model against those of the reference.

    Raises:
        BackendError: They differ by more than sums in another order explain, or one rounding.
    """
    rounded = any(node.op == "quantize" for node in graph.nodes)
    for index, (ours, theirs) in enumerate(zip(found, wanted, strict=True)):
        if ours.shape != theirs.shape or not _agree(ours, theirs, rounded=rounded):
            raise BackendError(
                f"output {index} of the exported model differs from the integer reference by "
                f"{_difference(ours, theirs)} in ONNX Runtime: please report the model and the version of "
                "ONNX Runtime"
            )


def _difference(ours: NDArray[Any], theirs: NDArray[Any]) -> str:
    if ours.shape != theirs.shape:
        return f"its shape {list(ours.shape)} instead of {list(theirs.shape)}"
    return f"{np.nanmax(np.abs(ours - theirs), initial=0):.3g}"


def _agree(ours: NDArray[Any], theirs: NDArray[Any], *, rounded: bool) -> bool:
    finite = np.abs(theirs[np.isfinite(theirs)])
    scale = max(1.0, float(finite.max(initial=0)))
    close = np.isclose(ours, theirs, FLOAT_TOLERANCE, FLOAT_TOLERANCE * scale, equal_nan=True)
    if not rounded or close.all():
        return bool(close.all())
    near = np.isclose(ours, theirs, 0, STEP * float(finite.max(initial=0)), equal_nan=True)
    return bool(close.mean() >= SHARE or near.all())


@lru_cache(maxsize=1)
def newest_opset() -> int:
    """The newest operator set that was tested and that the installed packages have and run right."""
    from onnx import defs

    newest = min(NEWEST_OPSET, defs.onnx_opset_version())
    runtime = find_runtime()
    if runtime is None:
        return newest
    version = tuple(int(part) for part in runtime.__version__.split(".")[:2])
    if version < PACKED_RUNTIME:
        newest = min(newest, PACKED_OPSET - 1)
    return next((opset for opset in range(newest, FIRST_OPSET, -1) if _runs(opset)), FIRST_OPSET)


def _runs(opset: int) -> bool:
    """Whether ONNX Runtime takes the operators of quantization of an operator set."""
    from onnx import TensorProto, helper

    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["codes"]),
        helper.make_node("DequantizeLinear", ["codes", "scale"], ["y"]),
    ]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n"]) for name in "xy")
    constants = [
        helper.make_tensor("scale", TensorProto.FLOAT, [], [1.0]),
        helper.make_tensor("zero", TensorProto.INT8, [], [0]),
    ]
    opsets = [helper.make_opsetid("", opset)]
    model = helper.make_model(
        helper.make_graph(nodes, "probe", [x], [y], constants),
        opset_imports=opsets,
        ir_version=helper.find_min_ir_version_for(opsets),
    )
    try:
        open_session(model.SerializeToString())
    except BackendError:
        return False
    return True
