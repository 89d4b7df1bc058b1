"""Codes of a converted model beside those of the integer reference."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import gnnquant


def code_differences(q: nn.Module, x: Tensor, edge_index: Tensor) -> dict[str, Tensor]:
    """|code of the fake quantizer - code of the reference| at every site that is not a weight."""
    seen: dict[str, Tensor] = {}
    hooks = [
        q.get_submodule(site.quantizer).register_forward_hook(
            lambda module, _, out, name=site.name: seen.update({name: out.codes + int(module.zero2) / 2})
        )
        for site in q.sites.values()
        if site.kind != "weight"
    ]
    with torch.no_grad():
        q.eval()(x, edge_index)
    for hook in hooks:
        hook.remove()
    executor = gnnquant.compile(q, target="reference")._executor
    prepared = executor.prepare({"edge_index": edge_index.numpy()}, x.size(0))
    values = executor.evaluate(prepared, {"x": x.numpy()}, x.size(0))
    return {name: (values[name].codes - codes.flatten(1)).abs() for name, codes in seen.items()}
