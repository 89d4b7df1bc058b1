"""Layers that cannot be looked into stay one node each.

A layer that hands values to Python (``.tolist()``, a hash, a NumPy routine) has no graph, but the rest
of the model has. The culprit is found by trying: layers that tracing noticed something in come first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from torch_geometric.nn import Aggregation, MessagePassing

from gnnquant.errors import TraceError
from gnnquant.tracing.check import ranked_notes
from gnnquant.tracing.leaves import open_modules

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from torch import nn

    from gnnquant.tracing.module import TracedModule
    from gnnquant.tracing.tracer import Note


_LAYERS = ("torch_geometric.nn.conv.", "torch_geometric.nn.norm.", "torch_geometric.nn.pool.")
"""Where PyG has layers that are neither ``MessagePassing`` nor ``Aggregation``, such as ``WLConv``."""


class Attempts(Protocol):
    """What can be traced again with other layers kept whole."""

    original: nn.Module
    evidence: list[str]

    def trace(self, whole: Collection[str]) -> TracedModule:
        """One attempt; raises ``TraceError`` and leaves ``evidence``."""
        ...


def suspects(notes: Mapping[Note, None]) -> list[str]:
    """The modules that tracing noticed something in, the likeliest cause of a wrong trace first."""
    return list(dict.fromkeys(note.module for note in ranked_notes(notes)))


def keep_layers_whole(attempts: Attempts, error: TraceError) -> tuple[TracedModule, list[str]] | None:
    """Trace with as few layers as possible kept whole, after an attempt without any has failed.

    Returns:
        The module and one line for every layer kept whole, or None where nothing helps.
    """
    names = {module: name for name, module in attempts.original.named_modules()}
    candidates = [
        names[module]
        for module in open_modules(attempts.original)
        if isinstance(module, (MessagePassing, Aggregation)) or type(module).__module__.startswith(_LAYERS)
    ]
    whole: list[str] = []
    reasons: dict[str, TraceError] = {}
    failure = error
    while True:
        suspect = _next_suspect(attempts.evidence, candidates, whole)
        if suspect is None:
            break
        whole.append(suspect)
        reasons[suspect] = failure
        try:
            traced = attempts.trace(whole)
        except TraceError as another:
            failure = another
        else:
            return _fewer(attempts, traced, whole, reasons)
    outer = [name for name in candidates if not any(_inside(name, other) for other in candidates)]
    if not outer or set(outer) == set(whole):
        return None
    try:
        traced = attempts.trace(outer)
    except TraceError:
        return None
    return _fewer(attempts, traced, outer, {name: reasons.get(name, error) for name in outer})


def _next_suspect(evidence: list[str], candidates: list[str], whole: list[str]) -> str | None:
    """The innermost candidate around the likeliest place that is not kept whole yet."""
    for place in evidence:
        around = [name for name in candidates if name == place or _inside(place, name)]
        for name in sorted(around, key=len, reverse=True):
            if name not in whole:
                return name
    return None


def _inside(path: str, outer: str) -> bool:
    """Whether the module ``path`` is part of ``outer``."""
    return path != outer and (not outer or path.startswith(f"{outer}."))


def _fewer(
    attempts: Attempts, traced: TracedModule, whole: list[str], reasons: Mapping[str, TraceError]
) -> tuple[TracedModule, list[str]]:
    """Look into every layer again that need not be whole."""
    for name in list(whole):
        fewer = [other for other in whole if other != name]
        if not fewer:
            break
        try:
            traced = attempts.trace(fewer)
        except TraceError:
            continue
        whole = fewer
    return traced, [
        f"{type(attempts.original.get_submodule(name)).__name__} {name!r} cannot be looked into and stays "
        "one operation, which trains but does not compile; only its messages and aggregates are "
        f"quantized. Why: {reasons[name]}"
        for name in whole
    ]
