"""Models of the zoo, converted once, and their codes beside those of the integer reference."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

import gnnquant
from gnnquant.quantizers.calibration import calibrate
from tests import zoo


class SmoothNet(nn.Module):
    """A feature network with smoothness-aware propagation."""

    def __init__(self) -> None:
        super().__init__()
        self.lin1 = nn.Linear(zoo.FEATURES, zoo.HIDDEN)
        self.lin2 = nn.Linear(zoo.HIDDEN, zoo.CLASSES)
        self.propagation = gnnquant.SmoothPropagation(K=3)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return self.propagation(self.lin2(self.lin1(x).relu()), edge_index)


def float_model(name: str) -> nn.Module:
    """A model of the zoo, or ``"smp"``, in eval mode."""
    if name == "smp":
        torch.manual_seed(0)
        return SmoothNet().eval()
    return zoo.build(name).eval()


@cache
def converted(name: str, bits: int) -> nn.Module:
    """The model ``name``, converted and calibrated; nobody may change it."""
    graph = zoo.random_graph(60, 300, seed=5)
    return calibrate(gnnquant.convert(float_model(name), bits=bits), [(graph.x, graph.edge_index)])


@cache
def reference(name: str, bits: int) -> gnnquant.CompiledModel:
    """What interprets :func:`converted`."""
    return gnnquant.compile(converted(name, bits), target="reference")


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
