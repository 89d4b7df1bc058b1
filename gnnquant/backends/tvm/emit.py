"""A thin layer over TVM's IR builder: loops, stores, vectors and IEEE float arithmetic.

Everything here hands out and takes TIR expressions (typed ``Any``: TVM has no stubs). A vector of
one lane is a scalar, so that one piece of code serves vectors and tails.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence


@dataclass(frozen=True)
class Machine:
    """What of the target the kernels depend on.

    Attributes:
        lanes: float32 elements of a vector: 16, 8 or 4.
        words: x86 name of the product of 16-bit pairs (pmaddwd) on such vectors, ``""`` elsewhere.
        bytes: x86 name of the product of unsigned and signed byte pairs (pmaddubsw), ``""`` without
            it.
        rounding: x86 name of the conversion to the nearest int32, ``""`` where the generic one is used.
        narrow: x86 names of the saturating conversions from int32 to int16 and from there to uint8.
        halves: Arm names of the product of int16 vectors as int32 (smull) and of the sum of adjacent int32
            (addp).
        quads: Name of the sum of an int32 and the products of four unsigned and four signed bytes (vpdpbusd
            of AVX512-VNNI and AVX-VNNI; sdot and usdot of Arm), ``""`` without it.
        quads_limit: Largest code that ``quads`` takes: 127 where it reads both operands as signed.
        half_quads: ``quads`` on vectors of half as many lanes, ``""`` without it.
        front: x86 name of the move of those of 64 bytes that a mask picks to the front (vpcompressb), ``""``
            without it.
        lookup: x86 name of the choice of 64 bytes of a vector, each by one of another (vpermb), ``""``
            without it.
        tiles: Whether there are tile registers and products of bytes on them (AMX-INT8).
    """

    lanes: int
    words: str = ""
    bytes: str = ""
    rounding: str = ""
    narrow: tuple[str, str] = ("", "")
    halves: tuple[str, str] = ("", "")
    quads: str = ""
    quads_limit: int = 0
    half_quads: str = ""
    front: str = ""
    lookup: str = ""
    tiles: bool = False

    def by_quads(self, bits: int) -> bool:
        """Whether products of four bytes take codes of this width."""
        return bool(self.quads) and 2**bits - 1 <= self.quads_limit

    def by_lookups(self, bits: int) -> bool:
        """Whether products of codes of this width are looked up; tiles are faster still."""
        return bool(self.lookup) and not self.tiles and bits == 2

    @property
    def sums(self) -> int:
        """Vectors of sums that registers hold beside what is added to them, measured rather than counted."""
        return 16 if self.lanes == 4 and not self.words else 8

    @property
    def aligns_frames(self) -> bool:
        """Whether frames are aligned to vectors of 32 bytes: many of them leave the 16 registers for a while.

        Otherwise half of them may lie in two cache lines each, and are waited for.
        """
        return self.lanes == 8


def const(value: float, dtype: str = "int32") -> Any:
    """A scalar constant."""
    return tirx.const(value, dtype)


def vector_type(dtype: str, lanes: int) -> str:
    """The name of a vector type, of the scalar type for one lane."""
    return dtype if lanes == 1 else f"{dtype}x{lanes}"


def splat(value: Any, lanes: int) -> Any:
    """``lanes`` copies of a scalar."""
    return value if lanes == 1 else tirx.Broadcast(value, lanes)


def number(value: float, lanes: int = 1) -> Any:
    """A float32 constant, rounded once."""
    return splat(const(float(np.float32(value)), "float32"), lanes)


def opaque(value: float, lanes: int = 1) -> Any:
    """A float32 constant that neither TVM nor LLVM folds (both rewrite ``x / c``)."""
    return splat(fence(const(float(np.float32(value)), "float32"), 1), lanes)


def span(start: Any, lanes: int) -> Any:
    """The index of ``lanes`` consecutive elements."""
    return start if lanes == 1 else tirx.Ramp(start, 1, lanes)


def cast(value: Any, dtype: str, lanes: int = 1) -> Any:
    """Conversion by value."""
    return tirx.Cast(vector_type(dtype, lanes), value)


def bind(value: Any) -> Any:
    """Evaluate once, before the statement that is being built."""
    if isinstance(value, (tirx.Var, tirx.IntImm, tirx.FloatImm)):
        return value
    return T.Bind(value)


def reinterpret(value: Any, dtype: str, lanes: int = 1) -> Any:
    """The same bits under another type."""
    return T.reinterpret(value, dtype=vector_type(dtype, lanes))


def mask_of(condition: Any) -> Any:
    """int64: a bit for each of the 64 lanes of a condition."""
    return T.Call("tirx.reinterpret", [condition], ret_ty="int64")


def intrinsic(name: str, dtype: str, *arguments: Any) -> Any:
    """A pure LLVM intrinsic."""
    return T.call_llvm_pure_intrin(dtype, name, *arguments)


def effect(name: str, *arguments: Any) -> None:
    """An LLVM intrinsic that is called for what it does."""
    T.evaluate(T.call_llvm_intrin("void", name, *arguments))


def fence(value: Any, lanes: int) -> Any:
    """``value``, which later operations cannot be contracted with."""
    return intrinsic("llvm.arithmetic.fence", vector_type("float32", lanes), value)


def product(x: Any, y: Any, lanes: int) -> Any:
    """``x * y`` rounded to float32 before anything is added to it."""
    return fence(x * y, lanes)


def unary(name: str, x: Any, lanes: int) -> Any:
    """A float32 intrinsic such as ``llvm.fabs``."""
    return intrinsic(name, vector_type("float32", lanes), x)


def maximum(x: Any, y: Any) -> Any:
    """``x > y ? x : y`` (y where either is not a number)."""
    return tirx.Max(x, y)


def minimum(x: Any, y: Any) -> Any:
    """``x < y ? x : y`` (y where either is not a number)."""
    return tirx.Min(x, y)


def choose(condition: Any, x: Any, y: Any) -> Any:
    """Elementwise choice; both sides are evaluated."""
    return tirx.Select(condition, x, y)


def shuffle(vectors: Sequence[Any], lanes: Sequence[int]) -> Any:
    """The given lanes of the concatenated ``vectors``."""
    return tirx.Shuffle(list(vectors), [const(lane) for lane in lanes])


def shift_left(x: Any, bits: int, dtype: str, lanes: int) -> Any:
    """``x << bits`` on integers."""
    return T.shift_left(x, splat(const(bits, dtype), lanes)) if bits else x


def shift_right(x: Any, bits: int, dtype: str, lanes: int) -> Any:
    """``x >> bits``, arithmetic for signed types."""
    return T.shift_right(x, splat(const(bits, dtype), lanes)) if bits else x


def all_of(*conditions: Any) -> Any:
    """Conjunction."""
    return tirx.all(*conditions)


def any_of(*conditions: Any) -> Any:
    """Disjunction."""
    return tirx.any(*conditions)


def fold_max(value: Any, lanes: int) -> Any:
    """The largest lane of a float vector, by halving."""
    while lanes > 1:
        half = lanes // 2
        low, high = shuffle([value], range(half)), shuffle([value], range(half, lanes))
        value = maximum(low, high)
        lanes = half
    return value


def fold_sum(value: Any, lanes: int) -> Any:
    """The sum of the lanes of an integer vector, by halving."""
    while lanes > 1:
        half = lanes // 2
        value = shuffle([value], range(half)) + shuffle([value], range(half, lanes))
        lanes = half
    return value


def transposed(rows: Sequence[Any], lanes: int, group: int = 1) -> list[Any]:
    """The columns of a square of vectors, of elements of ``group`` lanes; ``rows`` should be bound."""
    found = list(rows)
    step = group
    while step < lanes:
        # exchange the halves that are not on the diagonal in squares of twice ``step`` lanes
        low = [lane if not lane & step else lanes + lane - step for lane in range(lanes)]
        high = [lane + step if not lane & step else lanes + lane for lane in range(lanes)]
        for i in range(lanes // group):
            if not i * group & step:
                other = i + step // group
                pair = found[i], found[other]
                found[i], found[other] = bind(shuffle(pair, low)), bind(shuffle(pair, high))
        step *= 2
    return found


def _identifier(name: str) -> str:
    return "".join(c if c.isalnum() else "_" for c in name)


class Builder:
    """One PrimFunc under construction.

    ``function`` runs a callback that emits the body; arguments may be declared before or within.
    """

    def __init__(self, name: str) -> None:
        """Start the function ``name``."""
        self.name = name
        self._arguments: dict[str, Any] = {}
        self._sizes: dict[str, Any] = {}

    def size(self, name: str) -> Any:
        """The int32 variable ``name``, bound by the shape of some argument."""
        if name not in self._sizes:
            self._sizes[name] = tirx.Var(name, "int32")
        return self._sizes[name]

    def argument(self, name: str, shape: Sequence[Any], dtype: str, align: int = -1) -> Any:
        """A buffer argument, in call order; the same buffer when asked for again.

        ``align`` is its alignment in bytes, 64 by default.
        """
        if name not in self._arguments:
            self._arguments[name] = T.Buffer(tuple(shape), dtype, align=align, buffer_name=_identifier(name))
        return self._arguments[name]

    @property
    def argument_names(self) -> tuple[str, ...]:
        """Names of the arguments in call order."""
        return tuple(self._arguments)

    def function(self, body: Callable[[], None]) -> Any:
        """The finished PrimFunc."""
        with IRBuilder() as builder, T.prim_func(s_tir=True):
            T.func_name(self.name)
            T.func_attr({"global_symbol": self.name, "tirx.noalias": True})
            body()
        # the builder wants arguments before statements, but which there are is known only now
        function = builder.get()
        parameters = list(self._arguments.values())
        return tirx.PrimFunc(parameters, function.body, function.ret_type, function.attrs)

    @contextmanager
    def loop(self, extent: Any) -> Iterator[Any]:
        """A serial loop from 0 (TVM miscompiles others)."""
        with T.serial(extent) as variable:
            yield variable

    @contextmanager
    def shared_loop(self, threads: int) -> Iterator[Any]:
        """A loop over threads, no loop for one."""
        if threads == 1:
            yield const(0)
        else:
            with T.parallel(threads) as variable:
                yield variable

    @contextmanager
    def when(self, condition: Any) -> Iterator[None]:
        """Statements under a condition."""
        with T.If(condition), T.Then():
            yield

    def branch(self, condition: Any, then: Callable[[], None], other: Callable[[], None]) -> None:
        """Two alternatives."""
        with T.If(condition):
            with T.Then():
                then()
            with T.Else():
                other()

    def let(self, value: Any) -> Any:
        """Evaluate once, here."""
        return bind(value)

    def store(self, buffer: Any, value: Any, *index: Any) -> None:
        """``buffer[index] = value``."""
        T.buffer_store(buffer, value, list(index))

    def registers(self, count: int, dtype: str, lanes: int = 1) -> Any:
        """A small array, indexed by constants only: LLVM keeps it in registers."""
        return T.alloc_buffer((count,), vector_type(dtype, lanes), scope="global")

    def prefetch(self, element: Any, cache: int = 1) -> None:
        """Ask for the cache line of ``element``, into the first or second cache; any address is harmless."""
        T.evaluate(T.Call("tirx.prefetch", [T.address_of(element), 0, 4 - cache, 1], ret_ty="void"))

    def align_frame(self) -> None:
        """Align what leaves registers: LLVM sees to that in functions that ask where their frame is."""
        frame = T.call_llvm_pure_intrin("handle", "llvm.frameaddress", const(0))
        T.evaluate(T.Call("tirx.prefetch", [frame, 0, 3, 1], ret_ty="void"))

    def lazy(self, condition: Any, x: Any, y: Any) -> Any:
        """Choice that evaluates one side."""
        return T.if_then_else(condition, x, y)
