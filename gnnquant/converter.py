"""``gnnquant.convert``: any PyG model becomes a quantized one that trains."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from gnnquant.config import BIT_WIDTHS, QuantConfig
from gnnquant.errors import PassError
from gnnquant.passes.base import Pipeline
from gnnquant.passes.extract_linears import ExtractLinears
from gnnquant.passes.insert_quantizers import InsertQuantizers
from gnnquant.passes.quantize_skips import QuantizeSkips
from gnnquant.passes.recognize_propagation import RecognizePropagation
from gnnquant.quantizers.calibration import quantizers_of
from gnnquant.tracing import TracedModule, synthesize_inputs, trace

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor, fx

    from gnnquant.passes.base import Pass
    from gnnquant.passes.sites import Site

FLOAT_BITS = 32


class QuantizedModule(TracedModule):
    """A traced model with quantizers: an ``fx.GraphModule`` that takes the model's own inputs.

    Attributes:
        sites: Every quantized place, by name.
        bits: The width that :func:`convert` was asked for; 32 where there are no quantizers.
    """

    sites: dict[str, Site]
    bits: int

    def summary(self) -> str:
        """One line per site: name, kind, bits, granularity, grid, range."""
        quantizers = quantizers_of(self)
        lines = []
        for site in self.sites.values():
            quantizer = quantizers[site.quantizer]
            scale = quantizer.log_scale.detach().exp()
            span = f"{float(scale.min()):.3g}"
            if scale.numel() > 1:
                span += f" .. {float(scale.max()):.3g}"
            lines.append(
                f"{site.name:32} {site.kind:10} {site.bits} bits  {site.granularity:7}"
                f" zero2={int(quantizer.zero2):<4} scale={span}"
            )
        return "\n".join(lines)


def convert(
    model: nn.Module,
    example_inputs: tuple[Any, ...] | dict[str, Any] | None = None,
    *,
    bits: int = 8,
    config: QuantConfig | None = None,
) -> QuantizedModule:
    """Trace ``model`` and insert learnable quantizers.

    The user's model is left as it is; the result owns copies of its parameters under the same
    names. Ranges of weights are chosen at once; those of activations by :func:`gnnquant.calibrate`
    or at the start of :func:`gnnquant.finetune`.

    Args:
        model: Any PyG model.
        example_inputs: Positional arguments, or a dictionary by parameter name. ``None``: a small
            random graph is made from the model's own layer widths.
        bits: 8, 4 or 2; or 32 for the traced model without quantizers.
        config: Specifications per kind of site and per site name.

    Returns:
        A module that is called like ``model``.

    Raises:
        TraceError: The model cannot be traced, or its trace computes something else.
        PassError: A pass broke the graph (a bug in gnnquant).
        ValueError: For ``bits`` or a ``config`` that does not exist.
    """
    if bits not in (*BIT_WIDTHS, FLOAT_BITS):
        raise ValueError(f"bits must be one of {(*BIT_WIDTHS, FLOAT_BITS)}, not {bits!r}")
    if not isinstance(model, nn.Module):
        raise TypeError(f"convert takes a torch.nn.Module, not {type(model).__name__}")
    config = config or QuantConfig()
    if example_inputs is None:
        example_inputs = synthesize_inputs(model)
    traced = trace(model, example_inputs)
    check = _identity_check(traced, example_inputs)
    quantized = QuantizedModule.from_graph(traced, copy.deepcopy(traced.graph))
    quantized.sites = {}
    quantized.bits = bits
    passes: list[Pass] = [RecognizePropagation(), ExtractLinears()]
    if bits != FLOAT_BITS:
        passes += [
            # Skips come last: where values are stored depends on where codes are read.
            InsertQuantizers(bits=bits, config=config),
            QuantizeSkips(bits=bits, config=config),
        ]
    Pipeline(tuple(passes), check=check).run(quantized)
    quantized.train(model.training)
    return quantized


def _identity_check(
    traced: TracedModule, example: tuple[Any, ...] | Mapping[str, Any]
) -> Callable[[fx.GraphModule], str]:
    """A check that a rewritten graph computes what the traced one does, quantizers switched off."""
    with torch.no_grad():
        expected = pytree.tree_leaves(_in_eval_mode(traced, example))

    def check(module: fx.GraphModule) -> str:
        quantizers = quantizers_of(module).values()
        for quantizer in quantizers:
            quantizer.bypassed = True
        try:
            with torch.no_grad():
                results = pytree.tree_leaves(_in_eval_mode(module, example))
        except Exception as failure:
            raise PassError(f"the rewritten graph does not run: {failure}") from failure
        finally:
            for quantizer in quantizers:
                quantizer.bypassed = False
        for result, wanted in zip(results, expected, strict=True):
            if isinstance(wanted, torch.Tensor) and not _close(result, wanted):
                error = float((result - wanted).abs().max())
                return f"its output differs by {error:.3g} on the example graph"
        return ""

    return check


def _in_eval_mode(module: nn.Module, example: tuple[Any, ...] | Mapping[str, Any]) -> Any:
    was_training = module.training
    module.eval()
    try:
        return module(*example) if isinstance(example, tuple) else module(**example)
    finally:
        module.train(was_training)


def _close(result: Tensor, wanted: Tensor) -> bool:
    scale = float(wanted.abs().max()) if wanted.numel() else 0.0
    return torch.allclose(result, wanted, rtol=1e-4, atol=1e-5 * (1 + scale), equal_nan=True)
