"""Products of rows of 2-bit codes most of which are 0: sums of the weight's rows, for each bit of codes.

With codes ``u = u0 + 2 u1`` of a row, and those ``v`` of the weight, ``sum_k u_k v_k`` is that of the ``v_k``
whose ``u_k`` has the lower bit, and twice that of those whose ``u_k`` has the upper one: additions alone. The
weight's codes lie 4 bits apart, so that ``TOGETHER`` rows of 128 columns are added in one vector before their
halves go to sums of bytes, and these to sums of 16 bits (``lookups.ByteSums``).
"""
# ruff: noqa: C901, PLR0915
# Emitters nest like the loops that they emit: one function is one loop nest.

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tvm import tirx

from gnnquant.backends.tvm.emit import cast, const, mask_of, reinterpret, shift_right, span, splat
from gnnquant.backends.tvm.layout import round_up
from gnnquant.backends.tvm.lookups import CODES, GROUP, WORDS, ByteSums
from gnnquant.backends.tvm.nonzeros import MASKED, ones, positions_to_front
from gnnquant.integer_graph import integer_steps

if TYPE_CHECKING:
    from collections.abc import Callable

    from gnnquant.backends.tvm.context import Context
    from gnnquant.backends.tvm.emit import Machine
    from gnnquant.backends.tvm.layout import WeightLayout
    from gnnquant.backends.tvm.rows import RowKernel
    from gnnquant.backends.tvm.values import Codes

ALONE = 1
"""In place of ``lookups.GROUP``, of weights whose rows are added."""
TOGETHER = 5
"""Codes of 2 bits whose sum fits into 4 bits."""
RUNS = 17
"""Sums of 4 bits whose sum fits into 8 bits."""
PANEL = 4
"""Vectors of columns whose sums are in registers."""


def sums_bits(machine: Machine, layout: WeightLayout) -> bool:
    """Whether a weight is multiplied so: where its products may be looked up, its sums fit into 16 bits.

    With no more than one vector of columns, finding positions for each bit costs what is saved.
    """
    return layout.group == GROUP and bool(machine.front) and layout.padded > CODES


def row_bytes(layout: WeightLayout) -> int:
    """Bytes of a row of a weight's codes."""
    return round_up(layout.padded, 2 * CODES) // 2


def _rows(context: Context, layout: WeightLayout, name: str) -> str:
    """The buffer of a weight's rows of codes, behind which is one of zeros; declared on first use."""
    key, buffer = f"{ALONE}.{name}", f"dense{ALONE}.{name}"
    if key not in context.weights:
        context.weights[key] = replace(layout, group=ALONE, depth=1)
        context.add(buffer, "uint8", (layout.inputs + 1, row_bytes(layout)), "workspace")
    return buffer


def row_sums(kernel: RowKernel, q: Codes, layout: WeightLayout, name: str) -> Callable[[Any, Any], None]:
    """Emits the sums of a row, as ``sparse`` does it for other codes."""
    b = kernel.b
    rows = kernel.buffer(_rows(kernel.context, layout, name))
    found = [kernel.reserve("uint16", layout.inputs + MASKED) for _ in range(q.bits)]
    counts = b.registers(q.bits, "int32")

    def find(start: Any) -> None:
        """Positions of the codes that have each bit."""
        for bit in range(q.bits):
            b.store(counts, const(0), bit)
        with b.loop(-(-layout.inputs // MASKED)) as part:
            codes = b.let(kernel.load("uint8", start + part * MASKED, MASKED))
            for bit in range(q.bits):
                there = (codes & splat(const(1 << bit, "uint8"), MASKED)) != splat(const(0, "uint8"), MASKED)
                place, total = b.let(counts[bit]), b.let(ones(mask_of(there)))
                positions_to_front(kernel, there, part * MASKED, found[bit] + place, total)
                b.store(counts, place + total, bit)
        for bit in range(q.bits):
            none = splat(const(layout.inputs, "uint16"), TOGETHER)
            kernel.save("uint16", none, found[bit] + counts[bit], TOGETHER)

    def add(sums: ByteSums, count: int, place: Any, first: Any) -> None:
        """Add the rows at ``TOGETHER`` positions from ``place`` on, ``count`` vectors from ``first`` on."""
        some = [b.let(cast(kernel.load("uint16", place + i), "int32")) for i in range(TOGETHER)]
        low = splat(const(15, "uint8"), CODES)
        for v in range(0, count, 2):
            at = span((first + v) // 2 * CODES, CODES)
            total = rows[some[0], at]
            for row in some[1:]:
                total = total + rows[row, at]
            total = b.let(total)
            sums.add(v, total & low)
            if v + 1 < count:
                high = shift_right(reinterpret(total, "uint16", WORDS), 4, "uint16", WORDS)
                sums.add(v + 1, reinterpret(high, "uint8", CODES) & low)

    def row(r: Any, total: Any) -> None:
        find(q.start + r * q.stride)

        def panel(index: Any, count: int) -> None:
            first = index * PANEL
            sums = ByteSums(kernel, count)
            for bit in reversed(range(q.bits)):
                groups = b.let((counts[bit] + (TOGETHER - 1)) // TOGETHER)
                with b.loop((groups + (RUNS - 1)) // RUNS) as run:
                    sums.clear()
                    with b.loop(tirx.min(groups - run * RUNS, const(RUNS))) as group:
                        add(sums, count, found[bit] + (run * RUNS + group) * TOGETHER, first)
                    sums.flush()
                if bit:
                    sums.double()
            # the weight's integers are its codes less the zero point, or twice as much
            step, zero = integer_steps(layout.zero2)
            if step == 2:
                sums.double()
            codes = sum(counts[bit] * 2**bit for bit in range(q.bits))
            sums.shift(b.let(cast(codes * -zero, "uint16")))
            for v in range(count):
                sums.save(v, total + (first + v) * CODES)

        vectors = layout.padded // CODES
        panels, rest = divmod(vectors, PANEL)
        kernel.each(panels, lambda index: panel(index, PANEL))
        if rest:
            panel(panels, rest)

    return row
