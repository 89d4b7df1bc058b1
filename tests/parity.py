"""Codes of a converted model beside those of the integer reference."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import gnnquant


def code_differences(q: nn.Module, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
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
        q.eval()(*args, **kwargs)
    for hook in hooks:
        hook.remove()
    model = gnnquant.compile(q, target="reference")
    call = model._bind(args, kwargs)
    prepared = model._prepared(call)
    values = model._executor.evaluate(prepared, call.floats)
    differences = {}
    for name, codes in seen.items():
        given, rows = codes, model._executor.graph[name].rows
        if rows in prepared.csr:  # the reference has edges in CSR order
            edge_id = prepared.csr[rows].edge_id
            assert int(edge_id.min()) >= 0, f"{name}: appended self-loops have no place in the given order"
            given = codes[edge_id]
        differences[name] = (values[name].codes - given.flatten(1)).abs()
    return differences
