"""CUDA C++ for threads that work together, and the writer of kernels in which a warp has a row.

Lanes of a warp share integers, whose sums have no order, and maxima; sums of floats are made by one lane, or
by all lanes alike, in the order of the reference.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from gnnquant.backends.cuda.source import THREADS, Kernel, Launch

if TYPE_CHECKING:
    from collections.abc import Iterator

LANES = 32
TILE = 16
"""Rows that the tensor cores take at once."""
WARPS = THREADS // LANES
SHARED_BYTES = 40 << 10
"""Shared memory of a block: 48 KiB need no asking, and several blocks should fit a multiprocessor."""
CROWDED = 256
"""Destinations with more edges than this get a block of threads, others a warp."""
UNROLLED = 8
"""Turns of a loop over columns whose loads are under way at once."""
BEST, BEST_BYTES = f"__shared__ float best[{WARPS}][{LANES}];", 4 * THREADS
"""Shared memory of ``gq_block_largest``."""
FLUSH = 1024
"""Chunks of 32 edges whose sum fits 32 bits: see ``source.SLICE``."""

LIBRARY = """
#define GQ_ALL 0xffffffffu
#define GQ_LOWEST __int_as_float(0xff800000)

GQ float gq_warp_largest(float x, int least) {
  for (int mask = 16; mask >= least; mask /= 2) x = gq_larger(x, __shfl_xor_sync(GQ_ALL, x, mask));
  return x;
}

// the largest of each column, of all warps of a block; lanes of one lane % COLUMNS have one column
template <int COLUMNS, int WARPS>
GQ float gq_block_largest(float x, float (&shared)[WARPS][32], int warp, int lane) {
  x = gq_warp_largest(x, COLUMNS);
  __syncthreads();
  shared[warp][lane] = x;
  __syncthreads();
  for (int other = 0; other < WARPS; ++other) x = gq_larger(x, shared[other][lane]);
  return x;
}

// V bytes from an address that is a multiple of V
template <int V> GQ void gq_load(unsigned (&to)[(V + 3) / 4], const unsigned char* from) {
  if constexpr (V == 16) {
    const uint4 words = *reinterpret_cast<const uint4*>(from);
    to[0] = words.x, to[1] = words.y, to[2] = words.z, to[3] = words.w;
  } else if constexpr (V == 8) {
    const uint2 words = *reinterpret_cast<const uint2*>(from);
    to[0] = words.x, to[1] = words.y;
  } else if constexpr (V == 4) {
    to[0] = *reinterpret_cast<const unsigned*>(from);
  } else if constexpr (V == 2) {
    to[0] = *reinterpret_cast<const unsigned short*>(from);
  } else {
    to[0] = *from;
  }
}

// Of the edges from k on out of count, whose sources the lanes hold: weighted codes, V bytes of a row a lane.
// The lanes of a row are a group; all groups of a warp take AHEAD edges each, which are loaded at once.
template <int BITS, int V, int GROUP, int STRIDE, int AHEAD, class Weight>
GQ void gq_some(int (&sums)[V * 8 / BITS], int& weights, const unsigned char* codes, bool reads, int source,
                int k, int count, int lane, Weight weight) {
  unsigned words[AHEAD][(V + 3) / 4];
  int by[AHEAD];
#pragma unroll
  for (int ahead = 0; ahead < AHEAD; ++ahead) {
    const int at = k + ahead * (32 / GROUP) + lane / GROUP;
    const int row = __shfl_sync(GQ_ALL, source, at & 31);
    by[ahead] = weight(at);
#pragma unroll
    for (int word = 0; word < (V + 3) / 4; ++word) words[ahead][word] = 0;
    if (reads && at < count) gq_load<V>(words[ahead], codes + (long long)row * STRIDE);
  }
#pragma unroll
  for (int ahead = 0; ahead < AHEAD; ++ahead) {
    weights += by[ahead];
#pragma unroll
    for (int j = 0; j < V * 8 / BITS; ++j) {
      sums[j] += by[ahead] * (int)((words[ahead][j * BITS / 32] >> (j * BITS % 32)) & ((1 << BITS) - 1));
    }
  }
}

// Of up to 32 edges: many at once where there are many
template <int BITS, int V, int GROUP, int STRIDE, class Weight>
GQ void gq_gather(int (&sums)[V * 8 / BITS], int& weights, const unsigned char* codes, bool reads, int source,
                  int count, int lane, Weight weight) {
  constexpr int GROUPS = 32 / GROUP, MANY = GROUPS >= 4 ? GROUP : 8, FEW = MANY > 4 ? 4 : MANY > 2 ? 2 : 1;
  int k = 0;
  for (; count - k > GROUPS * FEW; k += GROUPS * MANY) {
    gq_some<BITS, V, GROUP, STRIDE, MANY>(sums, weights, codes, reads, source, k, count, lane, weight);
  }
  for (; k < count; k += GROUPS * FEW) {
    gq_some<BITS, V, GROUP, STRIDE, FEW>(sums, weights, codes, reads, source, k, count, lane, weight);
  }
}

// Adds up what the groups of a warp have. Each lane is left with some of the sums, from the
// returned one on: EACH / groups of them, or 1 that several lanes have.
template <int EACH, int GROUP> GQ int gq_scatter(int (&sums)[EACH], int& weights, int lane) {
  int first = 0, left = EACH;
#pragma unroll
  for (int mask = GROUP; mask < 32; mask *= 2) {
    weights += __shfl_xor_sync(GQ_ALL, weights, mask);
    if (left == 1) {
      sums[0] += __shfl_xor_sync(GQ_ALL, sums[0], mask);
      continue;
    }
    left /= 2;
    const bool upper = lane & mask;
#pragma unroll
    for (int j = 0; j < EACH / 2; ++j) {
      if (j >= left) break;
      const int given = upper ? sums[j] : sums[j + left];
      sums[j] = (upper ? sums[j + left] : sums[j]) + __shfl_xor_sync(GQ_ALL, given, mask);
    }
    if (upper) first += left;
  }
  return first;
}

// gq_scatter, then put(j, sum, weights) for each of the sums, by one lane; they begin anew
template <int EACH, int GROUP, class Put>
GQ void gq_finish(int (&sums)[EACH], int& weights, int lane, Put put) {
  constexpr int GROUPS = 32 / GROUP, LEFT = EACH > GROUPS ? EACH / GROUPS : 1;
  const int first = gq_scatter<EACH, GROUP>(sums, weights, lane);
#pragma unroll
  for (int j = 0; j < LEFT; ++j) {
    if (lane < GROUP * EACH) put(first + j, sums[j], weights);
  }
  weights = 0;
#pragma unroll
  for (int j = 0; j < EACH; ++j) sums[j] = 0;
}

// 16 codes as bytes, in the order in which ``products.fragments`` has the rows of a weight
template <int BITS> GQ void gq_bytes(unsigned (&to)[4], const unsigned char* from) {
  if constexpr (BITS == 8) {
    gq_load<16>(to, from);
  } else if constexpr (BITS == 4) {
    unsigned words[2];
    gq_load<8>(words, from);
    to[0] = words[0] & 0x0F0F0F0Fu, to[1] = words[0] >> 4 & 0x0F0F0F0Fu;
    to[2] = words[1] & 0x0F0F0F0Fu, to[3] = words[1] >> 4 & 0x0F0F0F0Fu;
  } else {
    unsigned words[1];
    gq_load<4>(words, from);
#pragma unroll
    for (int j = 0; j < 4; ++j) to[j] = words[0] >> 2 * j & 0x03030303u;
  }
}

#ifndef GQ_MMA
// a product of 16 x 32 bytes by 32 x 8 signed bytes on the tensor cores, spread over the lanes as PTX says
GQ void gq_mma(int (&sums)[4], unsigned a0, unsigned a1, unsigned a2, unsigned a3, unsigned b0, unsigned b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+r"(sums[0]), "+r"(sums[1]), "+r"(sums[2]), "+r"(sums[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}
#endif

// 16 rows of codes by TILES x 8 columns of a weight: lane / 4 is the row, and that + 8; codes of rows that
// are not there are null
template <int BITS, int TILES, int BLOCKS, int ALL, int STRIDE>
GQ void gq_product(int (&sums)[TILES][4], const unsigned char* upper, const unsigned char* lower,
                   const signed char* weight, int first, int lane) {
#pragma unroll 2
  for (int block = 0; block < BLOCKS; ++block) {
    const int at = (block * 4 + lane % 4) * 2 * BITS;
    unsigned a[4] = {}, b[4] = {};
    if (upper && at < STRIDE) gq_bytes<BITS>(a, upper + at);
    if (lower && at < STRIDE) gq_bytes<BITS>(b, lower + at);
#pragma unroll
    for (int tile = 0; tile < TILES; ++tile) {
      if (first + tile < ALL) {
        unsigned w[4];
        gq_load<16>(w, reinterpret_cast<const unsigned char*>(weight) +
                           ((block * ALL + first + tile) * 32 + lane) * 16);
        gq_mma(sums[tile], a[0], b[0], a[1], b[1], w[0], w[1]);
        gq_mma(sums[tile], a[2], b[2], a[3], b[3], w[2], w[3]);
      }
    }
  }
}
"""


@dataclass
class WarpKernel(Kernel):
    """A kernel in which a warp has a row ``r``, and knows its ``warp`` and ``lane``.

    With ``crowded``, a graph, rows are its destinations. Those with many edges have a whole block, of which
    all warps run the body: ``together`` is true then, ``thread`` and ``step`` are the first edge of a thread
    and how many edges are between its edges.

    Attributes:
        crowded: See there; "": no graph.
        shared: Declarations of shared memory of the block.
    """

    crowded: str = ""
    shared: list[str] = field(default_factory=list)
    _floats: int = 0
    _shared_bytes: int = 0

    def head(self) -> list[str]:
        """What the body knows."""
        lines = [*self.shared]
        if self._floats:
            lines.append(f"__shared__ float own[{WARPS}][{self._floats}];")
        lines.append(f"const int lane = threadIdx.x % {LANES}, warp = threadIdx.x / {LANES};")
        lines += self._place()
        return [*lines, "(void)lane, (void)warp;"]

    def _place(self) -> list[str]:
        count = self.rows(self.work[0])
        if not self.crowded:
            return [
                f"const long long r = (long long)blockIdx.x * {WARPS} + warp;",
                f"if (r >= {count}) return;",
                *(["float* const mine = own[warp];"] if self._floats else []),
            ]
        alone, order = self.rows(f"{self.crowded}.crowded"), self.pointer(f"{self.crowded}.order", "int32")
        indptr = self.pointer(f"{self.crowded}.indptr", "int32")
        return [
            f"const bool together = blockIdx.x < {alone};",
            f"const long long own_row = (blockIdx.x - {alone}) * {WARPS} + warp;",
            f"const long long r = together ? {order}[blockIdx.x] : own_row;",
            f"if (r >= {count}) return;",
            f"const long long begin = {indptr}[r], end = {indptr}[r + 1];",
            f"if (!together && end - begin > {CROWDED}) return;",
            f"const int thread = together ? threadIdx.x : lane, step = together ? {THREADS} : {LANES};",
            "(void)thread, (void)step;",
            *(["float* const mine = own[together ? 0 : warp];"] if self._floats else []),
        ]

    def launch(self) -> Launch:
        """How it is launched."""
        return Launch(self.work, super().launch().scalars, self.crowded)

    def share(self, declaration: str, size: int) -> None:
        """Declare shared memory of the block."""
        if declaration not in self.shared:
            self.shared.append(declaration)
            self._shared_bytes += size

    def room(self, columns: int) -> bool:
        """Whether :meth:`keep` has room for another row."""
        return self._shared_bytes + 4 * WARPS * (self._floats + columns) <= SHARED_BYTES

    def keep(self, name: str, columns: int) -> str:
        """A pointer to floats of the row, that readers of the value ``name`` find."""
        self.locals[name] = f"(mine + {self._floats})" if self._floats else "mine"
        self._floats += columns
        return self.locals[name]

    @contextmanager
    def columns(self, count: int, column: str = "c") -> Iterator[None]:
        """A loop over columns, which the lanes share out; then all lanes see what was written."""
        steps = -(-count // LANES)
        self.add(f"#pragma unroll {min(steps, UNROLLED)}")
        with self.block(f"for (int turn = 0; turn < {steps}; ++turn)"):
            self.add(f"const int {column} = turn * {LANES} + lane;")
            with self.block(f"if ({column} < {count})" if count % LANES else ""):
                yield
        self.add("__syncwarp();")


@dataclass
class TileKernel(WarpKernel):
    """A kernel in which a block has 16 rows, :data:`TILE`, from ``top`` on; see :meth:`each_row`."""

    def _place(self) -> list[str]:
        return [
            f"const long long top = (long long)blockIdx.x * {TILE};",
            *(["float* const mine = own[warp];"] if self._floats else []),
        ]

    @contextmanager
    def each_row(self) -> Iterator[None]:
        """After what all warps did: a warp with a row ``r``, which is ``row`` of the tile."""
        self.add("__syncthreads();")
        with self.block(f"for (int row = warp; row < {TILE}; row += {WARPS})"):
            self.add("const long long r = top + row;")
            self.add(f"if (r >= {self.rows(self.work[0])}) break;")
            yield
