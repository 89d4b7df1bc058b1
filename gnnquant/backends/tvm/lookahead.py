"""Asking for what the next block of a kernel reads, while this one is computed."""

from __future__ import annotations

from itertools import accumulate
from typing import TYPE_CHECKING, Any

from tvm import tirx

from gnnquant.backends.tvm.context import AHEAD, LINE
from gnnquant.backends.tvm.emit import any_of, choose, const, reinterpret

if TYPE_CHECKING:
    from collections.abc import Callable

    from gnnquant.backends.tvm.rows import RowKernel
    from gnnquant.backends.tvm.values import Rows

MOST = 1024
"""Edges of a block that the block before asks for; one that has more asks for them itself."""
SMALL = 2**21
"""Bytes of a table that is in cache before long: its rows come soon after they are asked for."""
MOST_TURNS = 64
"""Turns among which the requests are divided: fewer than ``GRAPH_PADDING``, since turns may ask for edges
that are not there. Their loops all have as many steps, which processors foresee."""
FLOATS = LINE // 4
"""Float32 numbers of a cache line."""
RUN = 8
"""Lines of a stream that are asked for without a loop."""
QUANTIZED, MULTIPLIED, AFTER = 0.3, 0.4, (0.1, 0.2)
"""Shares of a stream, measured, of the loop that quantizes a block, of its product and of the next loops."""


class Lookahead:
    """Spreads the requests for what the next block gathers over the loops that follow this block's sum.

    Memory serves a request every few nanoseconds and queues few: those of a loop that does nothing but sum
    are waited for, and while the rest of a block is computed there are none. So every row of every loop
    that follows the sum takes its share; how many there are is known when all are emitted.

    Args:
        kernel: Whose blocks.
        indptr: Of the graph.
        table: What is gathered, [rows, bytes].
        ask: Emits the requests for an edge.

    Attributes:
        alone: Whether this block has to ask for its edges itself.
    """

    def __init__(self, kernel: RowKernel, indptr: Any, table: Any, ask: Callable[[Any], None]) -> None:
        b = kernel.b
        self._kernel, self._ask = kernel, ask
        self._end = b.let(indptr[kernel.base + kernel.rows])
        last = tirx.min(kernel.base + kernel.rows + kernel.block, kernel.last + 1)
        self._next_end = b.let(indptr[last])
        self._small = b.let(table.shape[0] <= SMALL // int(table.shape[1]))
        self.alone = b.let(any_of(self._small, self._end - indptr[kernel.base] > MOST))
        self._turns = 0

    def begin(self) -> None:
        """From here on, loops over the rows ask."""
        kernel, b, end = self._kernel, self._kernel.b, self._end
        place, self._settle = kernel.promised()
        turns = b.let(reinterpret(kernel.kept(place), "int32"))
        # a block that asks for itself has asked for the first edges of the next one
        start = b.let(choose(self.alone, end + AHEAD, end))
        next_alone = any_of(self._small, self._next_end - end > MOST)
        stop = choose(next_alone, end + AHEAD, self._next_end)
        self._start = start
        self._share = b.let((tirx.max(stop - start, const(0)) + (turns - 1)) // turns)
        kernel.lookahead = self

    def turn(self, r: Any) -> None:
        """The share of row r of a loop."""
        if not self._left:
            return
        b = self._kernel.b
        first = b.let(self._start + (self._turns + r) * self._share)
        with b.loop(self._share) as k:
            self._ask(b.let(first + k))

    def next_loop(self) -> None:
        """A loop over the rows is emitted."""
        self._turns += self._kernel.block if self._left else 0

    @property
    def _left(self) -> bool:
        """Whether another loop takes part."""
        return self._turns + self._kernel.block <= MOST_TURNS

    def finish(self) -> None:
        """All loops are emitted."""
        self._settle(max(self._turns, 1))


class Stream:
    """Spreads the requests for the next block's rows of an input over the loops of this block.

    A loop that looks for the largest value of a row can do nothing but wait for memory, which then has
    nothing to do while the rows are multiplied. Products of floats read several rows at once, which the
    processor does not foresee. What is asked for at once is waited for as well, as soon as there are more
    requests than memory queues.

    Args:
        kernel: Whose blocks.
        x: The rows, which lie one after another.
        spread: Whether the loops before and after the product take part: where it may be short.
    """

    def __init__(self, kernel: RowKernel, x: Rows, *, spread: bool = False) -> None:
        self._kernel, self.x = kernel, x
        lines = kernel.block * x.columns // FLOATS + 1
        after = [(False, share) for share in AFTER]
        shares = [(False, QUANTIZED), (True, MULTIPLIED), *after] if spread else [(True, 1.0)]
        # whether it is that of the product, its first line and the end of its lines
        self._parts: list[tuple[bool, int, int]] = []
        ends = [0, *(round(lines * end) for end in accumulate(share for _, share in shares))]
        for (of_product, _), first, last in zip(shares, ends, ends[1:], strict=False):
            self._parts.append((of_product, first, last))

    def rows(self) -> Callable[[Any], None] | None:
        """Emits what a row of the next loop over those of the block asks for; None where it does not ask."""
        if not self._parts or self._parts[0][0]:
            return None
        _, first, last = self._parts.pop(0)
        return lambda r: self._share(first, last, r, self._kernel.block)

    def ask(self, turn: Any, turns: int) -> None:
        """What ``turn`` among ``turns`` of the product asks for."""
        if self._parts and self._parts[0][0]:
            _, first, last = self._parts[0]
            self._share(first, last, turn, turns)

    def multiplied(self) -> None:
        """The product is emitted, in all its ways."""
        if self._parts and self._parts[0][0]:
            self._parts.pop(0)

    def _share(self, first: int, last: int, turn: Any, turns: int) -> None:
        """The lines of a turn."""
        share = -(-(last - first) // turns)
        start = first + turn * share

        def some(index: Any, lines: int) -> None:
            place = (start + index * RUN) * FLOATS
            self._kernel.prefetch(self.x, self._kernel.block, place, lines * FLOATS, cache=2)

        runs, rest = divmod(share, RUN)
        self._kernel.each(runs, lambda index: some(index, RUN))
        if rest:
            some(runs, rest)
