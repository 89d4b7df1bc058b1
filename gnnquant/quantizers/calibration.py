"""Ranges from data: no labels, no gradients, seconds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from gnnquant.errors import FineTuneError
from gnnquant.quantizers.modules import Quantizer
from gnnquant.quantizers.sparse import sparse_inputs


def quantizers_of(module: nn.Module) -> dict[str, Quantizer]:
    """Quantizers of a converted model by qualified name."""
    return {name: child for name, child in module.named_modules() if isinstance(child, Quantizer)}


def is_calibrated(module: nn.Module) -> bool:
    """Whether every quantizer has a range from data."""
    return all(bool(quantizer.calibrated) for quantizer in quantizers_of(module).values())


@torch.no_grad()
def calibrate(module: nn.Module, batches: Any) -> nn.Module:
    """Choose every quantizer's range and grid from example data.

    The model runs in eval mode; each quantizer tries a fixed set of ranges on what it sees, adds up
    the squared errors over all batches and keeps the best. Values that are never negative get an
    unsigned grid. Quantizers see what the quantizers before them produce. Where train mode computes
    something else, it is run too, for the quantizers that eval mode did not reach. A quantizer that no
    row reached takes the range that covers whatever comes, if its granularity is ``"row"``.

    Args:
        module: What ``gnnquant.convert`` returned; changed in place.
        batches: A PyG ``Data``, or an iterable of ``Data`` objects, of dictionaries from the
            parameter names of ``forward`` to values, or of tuples of positional arguments.

    Returns:
        ``module``.

    Raises:
        FineTuneError: If there is no batch, or a batch makes a quantizer see NaN or infinity.
    """
    quantizers = quantizers_of(module)
    before = {
        name: [buffer.clone() for buffer in _range_of(quantizer)] for name, quantizer in quantizers.items()
    }
    was_training = module.training
    module.eval()
    for quantizer in quantizers.values():
        quantizer.start_observing()
    try:
        with sparse_inputs(module):
            problem = _observe_all(module, batches)
    finally:
        wrong = [name for name, quantizer in quantizers.items() if not quantizer.stop_observing()]
        module.train(was_training)
    if wrong:
        problem = f"{wrong[0]!r} saw NaN or infinity: check the inputs and the weights"
    if problem:
        for name, kept in before.items():
            for buffer, value in zip(_range_of(quantizers[name]), kept, strict=True):
                buffer.copy_(value)
        raise FineTuneError(f"calibrate: {problem}")
    for quantizer in quantizers.values():
        if not quantizer.calibrated:
            quantizer.cover_all()
    return module


def _range_of(quantizer: Quantizer) -> tuple[Tensor, ...]:
    return quantizer.log_scale, quantizer.zero2, quantizer.calibrated


def _observe_all(module: nn.Module, batches: Any) -> str:
    """Run ``module`` on every batch; returns what is wrong with the batches, or ``""``."""
    count = 0
    for batch in _batches(batches):
        _run(module, batch)
        if getattr(module, "has_two_paths", False):
            _observe_train_path(module, batch)
        count += 1
    return "" if count else "there is no batch: pass at least one Data object"


def _observe_train_path(module: Any, batch: Any) -> None:
    """Run what train mode computes, for the quantizers that are on no other path."""
    on_eval_path = {str(node.target) for node in module.path_graph(training=False).nodes}
    others = [quantizer for name, quantizer in quantizers_of(module).items() if name in on_eval_path]
    for quantizer in others:
        quantizer.pause_observing(paused=True)
    with module.on_path(training=True):
        _run(module, batch)
    for quantizer in others:
        quantizer.pause_observing(paused=False)


def _batches(batches: Any) -> Iterable[Any]:
    from torch_geometric.data.data import BaseData

    if isinstance(batches, (Mapping, BaseData)) or hasattr(batches, "edge_index"):
        return [batches]
    if isinstance(batches, (Tensor, str)) or not isinstance(batches, Iterable):
        raise FineTuneError(
            f"calibrate takes a Data object or an iterable of them, not {type(batches).__name__}"
        )
    return batches


def _run(module: nn.Module, batch: Any) -> None:
    if isinstance(batch, tuple):
        module(*batch)
    elif isinstance(batch, Mapping):
        module(**batch)
    else:
        from gnnquant.data import model_inputs

        module(**model_inputs(module, batch))
