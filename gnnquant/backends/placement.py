"""Where the workspace buffers of a plan lie: over each other where no call needs both."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from gnnquant.runtime.memory import round_up

if TYPE_CHECKING:
    from collections.abc import Iterable

    from gnnquant.runtime.plan import Buffer, Plan


@dataclass(frozen=True)
class _Placed:
    """A buffer in a region: its bytes, and the first and last call that need them."""

    start: int
    end: int
    first: int
    last: int


def placed(plan: Plan, *, in_outputs: bool) -> Plan:
    """``plan`` with a place for every workspace buffer.

    What is needed last is placed first, of that the largest, each as far down in its region as those allow
    that are needed at the same time. The steps of a propagation so take turns in two places, and what is done
    with before an output is written lies in the output, which nothing else pushes it out of: an INT4 model of
    few classes needs little memory besides.

    Args:
        plan: What is called on which buffers.
        in_outputs: Whether the runtime's outputs have room for a multiple of ``ROW_PADDING`` rows and
            are writable from the first call on.
    """
    spans = _spans(plan)
    outputs = [
        buffer
        for buffer in plan.buffers
        if in_outputs and buffer.kind == "output" and buffer.space and buffer.name in spans
    ]
    regions: dict[str, list[_Placed]] = {}
    found: dict[str, Buffer] = {}
    buffers = [buffer for buffer in plan.buffers if buffer.kind == "workspace"]
    never = (0, 0)
    for buffer in sorted(buffers, key=lambda buffer: (-spans.get(buffer.name, never)[1], -buffer.row_bytes)):
        first, last = spans.get(buffer.name, never)
        size = buffer.row_bytes if buffer.space else round_up(buffer.row_bytes)
        lowest = partial(_lowest, size, first, last)
        fitting = (
            output.name
            for output in outputs
            if output.space == buffer.space
            and last < spans[output.name][0]
            and lowest(regions.get(output.name, ())) + size <= output.row_bytes
        )
        region = next(fitting, buffer.space)
        start = lowest(regions.get(region, ()))
        regions.setdefault(region, []).append(_Placed(start, start + size, first, last))
        found[buffer.name] = replace(buffer, region=region, offset=start)
    return replace(plan, buffers=tuple(found.get(buffer.name, buffer) for buffer in plan.buffers))


def _spans(plan: Plan) -> dict[str, tuple[int, int]]:
    """The first and last call that need each buffer.

    What stands from one run to the next is needed by all calls.
    """
    users: dict[str, list[int]] = {}
    for index, call in enumerate(plan.calls):
        for name in call.arguments:
            users.setdefault(name, []).append(index)
    spans = {}
    for name, calls in users.items():
        of_graph = {plan.calls[index].per_graph for index in calls}
        spans[name] = (calls[0], calls[-1]) if len(of_graph) == 1 else (0, len(plan.calls) - 1)
    return spans


def _lowest(size: int, first: int, last: int, others: Iterable[_Placed]) -> int:
    """The lowest start of ``size`` bytes that no other needs between the calls ``first`` and ``last``."""
    start = 0
    busy = (other for other in others if other.first <= last and first <= other.last)
    for other in sorted(busy, key=lambda other: other.start):
        if start + size <= other.start:
            break
        start = max(start, other.end)
    return start


__all__ = ["placed"]
