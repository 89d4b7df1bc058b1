"""Quantize trained PyTorch Geometric models and compile them to low-bit machine code.

The public names are loaded on first use: ``import gnnquant`` loads neither torch nor tvm, and
``gnnquant.load`` needs only numpy and the TVM runtime.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gnnquant.backends import compile
    from gnnquant.backends.onnx import export_onnx
    from gnnquant.config import QuantConfig, QuantSpec
    from gnnquant.converter import QuantizedModule, convert
    from gnnquant.errors import (
        ArtifactError,
        BackendError,
        FineTuneError,
        GnnQuantError,
        InputError,
        PassError,
        TraceError,
    )
    from gnnquant.finetuning import FineTuneResult, finetune
    from gnnquant.quantizers.calibration import calibrate
    from gnnquant.runtime import CompiledModel, load
    from gnnquant.smoothness import Smoothness, SmoothPropagation

__version__ = "0.1.0"

__all__ = [
    "ArtifactError",
    "BackendError",
    "CompiledModel",
    "FineTuneError",
    "FineTuneResult",
    "GnnQuantError",
    "InputError",
    "PassError",
    "QuantConfig",
    "QuantSpec",
    "QuantizedModule",
    "SmoothPropagation",
    "Smoothness",
    "TraceError",
    "__version__",
    "calibrate",
    "compile",
    "convert",
    "export_onnx",
    "finetune",
    "load",
]

_SOURCES = {
    "gnnquant.backends": ("compile",),
    "gnnquant.backends.onnx": ("export_onnx",),
    "gnnquant.config": ("QuantConfig", "QuantSpec"),
    "gnnquant.converter": ("QuantizedModule", "convert"),
    "gnnquant.errors": (
        "ArtifactError",
        "BackendError",
        "FineTuneError",
        "GnnQuantError",
        "InputError",
        "PassError",
        "TraceError",
    ),
    "gnnquant.finetuning": ("FineTuneResult", "finetune"),
    "gnnquant.quantizers.calibration": ("calibrate",),
    "gnnquant.runtime": ("CompiledModel", "load"),
    "gnnquant.smoothness": ("SmoothPropagation", "Smoothness"),
}
_MODULE_OF = {name: module for module, names in _SOURCES.items() for name in names}


def __getattr__(name: str) -> object:
    """Load a public name on first use (PEP 562)."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(_MODULE_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """The public names, loaded or not."""
    return sorted(__all__)
