"""``gnnquant.convert``: any PyG model becomes a quantized one that trains."""

from __future__ import annotations

import copy
import functools
import itertools
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils import _pytree as pytree
from torch_geometric.nn import MessagePassing

from gnnquant.config import BIT_WIDTHS, FLOAT_BITS, QuantConfig, QuantSpec
from gnnquant.errors import PassError
from gnnquant.passes.base import Pipeline
from gnnquant.passes.expand_modules import ExpandModules
from gnnquant.passes.extract_linears import ExtractLinears
from gnnquant.passes.find_rows import FindRows
from gnnquant.passes.functionalize import Functionalize
from gnnquant.passes.hoist_edge_linears import HoistEdgeLinears
from gnnquant.passes.insert_quantizers import InsertQuantizers
from gnnquant.passes.order_propagation import OrderPropagation
from gnnquant.passes.quantize_skips import QuantizeSkips
from gnnquant.passes.recognize_propagation import RecognizePropagation
from gnnquant.passes.share_values import ShareValues
from gnnquant.passes.sites import Site
from gnnquant.quantizers.calibration import quantizers_of
from gnnquant.quantizers.dropout import replace_dropout
from gnnquant.quantizers.modules import Quantizer
from gnnquant.quantizers.whole_layers import ROLES, attach, observe_values
from gnnquant.tracing import TracedModule, synthesize_inputs, trace_with_graphs
from gnnquant.tracing.check import evaluate

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor, fx

    from gnnquant.passes.base import Pass


class QuantizedModule(TracedModule):
    """A traced model with quantizers: an ``fx.GraphModule`` that takes the model's own inputs.

    Attributes:
        sites: Every quantized place, by name.
        bits: The width that :func:`convert` was asked for; 32 where there are no quantizers.
    """

    sites: dict[str, Site]
    bits: int

    def summary(self) -> str:
        """What ``print`` shows: a table with one line per site.

        For each site its name and kind, the shape on the example, bits, granularity, the range that the
        codes span ("unset" before calibration) and what its codes are read by in the compiled model. The
        graph itself is ``self.graph``; ``self.print_readable()`` shows it as code.
        """
        from gnnquant.passes.report import summary

        return summary(self, self.bits, self.sites)

    def __repr__(self) -> str:
        return self.summary()

    __str__ = __repr__


def convert(
    model: nn.Module,
    example_inputs: tuple[Any, ...] | dict[str, Any] | None = None,
    *,
    bits: int = 8,
    config: QuantConfig | None = None,
    check_inputs: tuple[Any, ...] | dict[str, Any] | None = None,
    strict: bool = False,
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
        check_inputs: Another graph, given like ``example_inputs``, on which the traced model is compared
            with the model; by default one is drawn from the example.
        strict: Refuse a model with a layer that cannot be looked into. By default such a layer stays one
            operation with quantizers at its messages and aggregates, and a ``UserWarning`` says
            which and why; it trains, but it does not compile.

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
    traced, graphs = trace_with_graphs(model, example_inputs, check_inputs=check_inputs, strict=strict)
    check = _identity_check(traced, graphs)
    quantized = QuantizedModule.from_graph(traced, copy.deepcopy(traced.graph))
    quantized.sites = {}
    quantized.bits = bits
    passes: list[Pass] = [
        Functionalize(),
        ExpandModules(),
        ExtractLinears(),
        HoistEdgeLinears(),
        ShareValues(),
        RecognizePropagation(),
        # Before quantizers: which values are messages and aggregates depends on the order.
        OrderPropagation(bits=bits, config=config),
    ]
    if bits != FLOAT_BITS:
        passes += [
            FindRows(graphs=tuple(graphs)),
            # Skips come last: where values are stored depends on where codes are read.
            InsertQuantizers(bits=bits, config=config),
            QuantizeSkips(bits=bits, config=config),
        ]
    Pipeline(tuple(passes), check=check).run(quantized)
    if bits != FLOAT_BITS:
        _quantize_whole_layers(quantized, graphs[0], bits, config)
        replace_dropout(quantized)
    quantized.train(model.training)
    return quantized


def _quantize_whole_layers(
    module: QuantizedModule,
    example: Mapping[str, Any],
    bits: int,
    config: QuantConfig,
) -> None:
    """Quantize the messages and aggregates of layers that tracing could not look into."""
    layers = {
        name: layer
        for whole in module.whole_layers
        for name, layer in module.named_modules()
        if isinstance(layer, MessagePassing) and (name == whole or name.startswith(f"{whole}."))
    }
    seen: dict[tuple[str, str], Tensor] = {}
    stops = [
        observe_values(layer, role, functools.partial(seen.__setitem__, (name, role)))
        for name, layer in layers.items()
        for role in ROLES
    ]
    evaluate(copy.deepcopy(module), example)
    for stop in stops:
        stop()
    for (name, role), value in seen.items():
        site = f"{name}.{role}"
        spec = config.resolve(site, role, bits)
        if value.dim() < 2:
            spec = spec.updated(QuantSpec(granularity="tensor"))
        if not spec.enabled:
            continue
        attach(layers[name], role, Quantizer(spec).train(module.training))
        assert spec.bits is not None
        assert spec.granularity is not None
        module.sites[site] = Site(
            site, role, spec.bits, spec.granularity, f"{site}_quantizer", tuple(value.shape)
        )


def _identity_check(
    traced: TracedModule, graphs: Sequence[Mapping[str, Any]]
) -> Callable[[fx.GraphModule], str]:
    """A check that a rewritten graph computes what the traced one does, quantizers switched off."""
    paths = (False, True) if traced.has_two_paths else (False,)

    def results(module: TracedModule) -> list[Any]:
        found = []
        for arguments, training in itertools.product(graphs, paths):
            with module.on_path(training):
                found += pytree.tree_leaves(evaluate(module, arguments))
        return found

    expected = results(traced)

    def check(module: fx.GraphModule) -> str:
        assert isinstance(module, TracedModule)
        quantizers = quantizers_of(module).values()
        for quantizer in quantizers:
            quantizer.bypassed = True
        try:
            computed = results(module)
        except Exception as failure:
            raise PassError(f"the rewritten graph does not run: {failure}") from failure
        finally:
            for quantizer in quantizers:
                quantizer.bypassed = False
        errors = [_error(result, wanted) for result, wanted in zip(computed, expected, strict=True)]
        worst = max(errors, default=0.0)
        return f"its output differs by {worst:.3g} on a graph that the trace was checked on" if worst else ""

    return check


def _error(result: Any, wanted: Any) -> float:
    """The largest difference of two tensors, 0 where it is no more than rounding."""
    if not isinstance(wanted, torch.Tensor):
        return 0.0
    a, b = (value.to_dense().double() for value in (result, wanted))
    scale = float(b.abs().max()) if b.numel() else 0.0
    rough = wanted.dtype in (torch.float16, torch.bfloat16)
    relative, absolute = (5e-2, 5e-2) if rough else (1e-4, 1e-5)
    if torch.allclose(a, b, rtol=relative, atol=absolute * (1 + scale), equal_nan=True):
        return 0.0
    return float((a - b).abs().nan_to_num(torch.inf).max())
