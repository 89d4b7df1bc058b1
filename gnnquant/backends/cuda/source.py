"""CUDA C++ text: device functions that every kernel may use, and the writer of one kernel.

Each product and sum of floats is an operator of its own, in the written order; ``nvcc`` must not
contract them (``-fmad=false``). The functions are those of ``gnnquant.exact_math``. Threads that work
together share integers, whose sums have no order, and maxima: ``together.py``.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from gnnquant import exact_math
from gnnquant.integer_graph import EDGE_LEVELS, SMALLEST, SQUARINGS

if TYPE_CHECKING:
    from collections.abc import Iterator

THREADS = 256
"""Threads of a block."""
SLICE = 32768
"""Edges whose sum fits 32 bits: 127 * 510 * 32768 < 2^31."""
TYPES = {
    "float32": "float",
    "int32": "int",
    "int8": "signed char",
    "uint8": "unsigned char",
}


def literal(value: float) -> str:
    """A float32 literal, exact."""
    return f"{float(np.float32(value)).hex()}f"


def accumulator(inputs: int, bits: int, zero2: int, zero2_of_rows: int) -> str:
    """The type that holds every sum of ``inputs`` products."""
    integers = max(zero2, 2 * (2**bits - 1) - zero2)
    largest = inputs * max(zero2_of_rows, 510 - zero2_of_rows) * integers
    return "int" if largest < 2**31 else "long long"


def _horner(coefficients: tuple[float, ...], variable: str) -> str:
    steps = [f"  float p = {literal(coefficients[0])};"]
    steps += [f"  p = p * {variable} + {literal(value)};" for value in coefficients[1:]]
    return "\n".join(steps)


_SQUARES = "\n".join(["  t = t * t;"] * SQUARINGS)
PRELUDE = f"""\
#define GQ static __device__ __forceinline__

template <int BITS> GQ int gq_code(const unsigned char* codes, unsigned long long i) {{
  if (BITS == 8) return codes[i];
  const unsigned long long per_byte = 8 / BITS;
  return (codes[i / per_byte] >> (int)(i % per_byte) * BITS) & ((1 << BITS) - 1);
}}

// maximum and minimum keep a NaN that they have seen
GQ float gq_larger(float x, float y) {{ return y > x || y != y ? y : x; }}
GQ float gq_smaller(float x, float y) {{ return y < x || y != y ? y : x; }}
GQ float gq_inverse(float x, float numerator) {{ return x >= {literal(SMALLEST)} ? numerator / x : 0.0f; }}

template <int BITS, int ZERO2> GQ int gq_quantize(float v, float inverse) {{
  const float t = v * inverse;
  const float u = (ZERO2 % 2 ? floorf(t) : rintf(t)) + (float)((ZERO2 + 1) / 2);
  const float last = (float)((1 << BITS) - 1);
  return (int)(u > 0.0f ? (u < last ? u : last) : 0.0f);
}}

// an 8-bit edge weight; 0 where weights that overflowed leave no number
GQ signed char gq_edge_code(float t) {{
  return (signed char)(fabsf(t) < {literal(EDGE_LEVELS + 1)} ? (int)rintf(t) : 0);
}}

GQ float gq_exp(float x) {{
  x = x < {literal(exact_math.EXP_LOW)} ? {literal(exact_math.EXP_LOW)} : x;
  x = x > {literal(exact_math.EXP_HIGH)} ? {literal(exact_math.EXP_HIGH)} : x;
  const float k = rintf(x * {literal(exact_math.LOG2_E)});
  const float r = (x - k * {literal(exact_math.LN2_HIGH)}) - k * {literal(exact_math.LN2_LOW)};
{_horner(exact_math.EXP_COEFFICIENTS, "r")}
  const float y = (p * (r * r) + r) + 1.0f;
  return y * __int_as_float(((int)k + 127) << 23);
}}

GQ float gq_power(float t) {{
{_SQUARES}
  return t;
}}

GQ float gq_log(float x) {{
  const int bits = __float_as_int(x);
  const float mantissa = __int_as_float((bits & 0x7FFFFF) | 0x3F000000);
  const int small = mantissa < {literal(exact_math.SQRT_HALF)};
  const float f = (small ? mantissa + mantissa : mantissa) - 1.0f;
  const float e = (float)(((bits >> 23) & 255) - 126 - small);
  const float z = f * f;
{_horner(exact_math.LOG_COEFFICIENTS, "f")}
  const float y = ((p * f) * z + e * {literal(exact_math.LN2_LOW)}) - 0.5f * z;
  return (f + y) + e * {literal(exact_math.LN2_HIGH)};
}}

GQ float gq_maximum(float x, float y) {{ return x > y ? x : y; }}
GQ float gq_minimum(float x, float y) {{ return x < y ? x : y; }}
GQ float gq_relu(float x) {{ return x > 0.0f ? x : 0.0f; }}
GQ float gq_leaky_relu(float x, float slope) {{ return x > 0.0f ? x : x * slope; }}
GQ float gq_elu(float x, float alpha) {{ return x > 0.0f ? x : alpha * (gq_exp(x) - 1.0f); }}
GQ float gq_sigmoid(float x) {{ return 1.0f / (1.0f + gq_exp(-x)); }}
GQ float gq_tanh(float x) {{
  const float t = gq_exp(fabsf(x) * -2.0f);
  const float y = (1.0f - t) / (1.0f + t);
  return x < 0.0f ? -y : y;
}}
"""


@dataclass(frozen=True)
class Launch:
    """How a kernel is launched: one thread for each of ``work[0]`` rows times ``work[1]``.

    Attributes:
        work: A space and the threads for each of its rows.
        scalars: What follows the buffers among the arguments: ``("rows", space)`` as int64, or
            ``("float", bits)``, a float32 by its bits.
        crowded: A graph whose crowded destinations get a block each, before all others; "": none.
    """

    work: tuple[str, int]
    scalars: tuple[tuple[str, str | int], ...]
    crowded: str = ""

    def to_json(self) -> dict[str, Any]:
        """A JSON-able dictionary."""
        return {
            "work": list(self.work),
            "scalars": [list(item) for item in self.scalars],
            "crowded": self.crowded,
        }


@dataclass
class Kernel:
    """One kernel under construction.

    The body knows the number ``i`` of its thread, and with ``i`` the row ``r`` and what is left, ``c``.

    Attributes:
        operation: What it computes, for its name.
        work: See :class:`Launch`.
        lines: The body.
        buffers: Names of its buffers, in the order of its arguments.
        locals: Pointers to the row ``r`` of values that this kernel keeps in shared memory, by node.
    """

    operation: str
    work: tuple[str, int]
    lines: list[str] = field(default_factory=list)
    buffers: list[str] = field(default_factory=list)
    locals: dict[str, str] = field(default_factory=dict)
    _parameters: list[str] = field(default_factory=list)
    _sizes: dict[str, str] = field(default_factory=dict)
    _scalars: list[tuple[str, str | int]] = field(default_factory=list)
    _scalar_parameters: list[str] = field(default_factory=list)
    _depth: int = 1

    def pointer(self, buffer: str, dtype: str, *, written: bool = False) -> str:
        """The name of the pointer to ``buffer``; ask for what is written before it is read."""
        if buffer not in self.buffers:
            constant = "" if written else "const "
            self._parameters.append(f"{constant}{TYPES[dtype]}* __restrict__ p{len(self.buffers)}")
            self.buffers.append(buffer)
        return f"p{self.buffers.index(buffer)}"

    def rows(self, space: str) -> str:
        """The number of rows of ``space``, a ``long long``."""
        if space not in self._sizes:
            self._sizes[space] = f"n{len(self._sizes)}"
            self._scalars.append(("rows", space))
            self._scalar_parameters.append(f"const long long {self._sizes[space]}")
        return self._sizes[space]

    def number(self, value: float) -> str:
        """A float32 that is an argument: models that differ in their numbers share their code."""
        name = f"f{len(self._scalars)}"
        self._scalars.append(("float", int(np.float32(value).view(np.uint32))))
        self._scalar_parameters.append(f"const float {name}")
        return name

    def add(self, line: str) -> None:
        """A statement."""
        self.lines.append("  " * self._depth + line)

    @contextmanager
    def block(self, head: str) -> Iterator[None]:
        """A loop or branch: ``head { ... }``."""
        self.add(head + " {")
        self._depth += 1
        yield
        self._depth -= 1
        self.add("}")

    def launch(self) -> Launch:
        """How it is launched."""
        return Launch(self.work, tuple(self._scalars))

    def text(self) -> str:
        """Its source; the name is still ``NAME``."""
        body = "\n".join([f"  {line}" for line in self.head()] + self.lines)
        parameters = ", ".join([*self._parameters, *self._scalar_parameters])
        return f'extern "C" __global__ void __launch_bounds__({THREADS}) NAME({parameters}) {{\n{body}\n}}\n'

    def head(self) -> list[str]:
        """What the body knows: ``i``, ``r`` and ``c``."""
        space, each = self.work
        count = self.rows(space)
        return [
            f"const long long i = (long long)blockIdx.x * {THREADS} + threadIdx.x;",
            f"if (i >= {count} * {each}) return;",
            f"const long long r = i / {each};",
            f"const int c = (int)(i % {each});",
            "(void)r, (void)c;",
        ]
