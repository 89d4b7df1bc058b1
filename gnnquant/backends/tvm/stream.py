"""Asking for the rows that the next block of a kernel reads, while this one is computed."""

from __future__ import annotations

from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any

from gnnquant.backends.tvm.context import LINE

if TYPE_CHECKING:
    from collections.abc import Callable

    from gnnquant.backends.tvm.rows import RowKernel
    from gnnquant.backends.tvm.values import Rows

FLOATS = LINE // 4
"""Float32 numbers of a cache line."""
RUN = 8
"""Lines of a stream that are asked for without a loop."""
QUANTIZED, MULTIPLIED, AFTER = 0.3, 0.4, (0.1, 0.2)
"""Shares of a stream, measured, of the loop that quantizes a block, of its product and of the next loops."""


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
        ends = [0, *(round(lines * end) for end in accumulate(share for _, share in shares))]
        self._parts = [
            (of_product, first, last)
            for (of_product, _), (first, last) in zip(shares, pairwise(ends), strict=True)
        ]

    @property
    def _multiplying(self) -> bool:
        """Whether it is the product's turn."""
        return bool(self._parts) and self._parts[0][0]

    def rows(self) -> Callable[[Any], None] | None:
        """Emits what a row of the next loop over those of the block asks for; None where it does not ask."""
        if not self._parts or self._multiplying:
            return None
        _, first, last = self._parts.pop(0)
        return lambda r: self._share(first, last, r, self._kernel.block)

    def ask(self, turn: Any, turns: int) -> None:
        """What ``turn`` among ``turns`` of the product asks for."""
        if self._multiplying:
            _, first, last = self._parts[0]
            self._share(first, last, turn, turns)

    def multiplied(self) -> None:
        """The product is emitted, in all its ways."""
        if self._multiplying:
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
