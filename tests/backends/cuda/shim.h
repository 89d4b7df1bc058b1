// CUDA C++ as plain C++: kernels become functions that a loop over blocks and threads calls. Where threads wait
// for each other, each has a stack of its own, and they take turns: a shuffle, a product of a warp or a barrier is
// done when all that take part have come to it. A thread that waits for ever ends the process.
// What this cannot show: missing barriers whose effect depends on how turns are taken (they run forwards in blocks
// of even numbers, and backwards in others), and memory that other threads see late.
#include <math.h>
#include <setjmp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

#include <utility>

#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(threads)
#define __shared__ static thread_local

struct Index {
  unsigned x;
};
static thread_local Index blockIdx, threadIdx, blockDim;

struct uint2 {
  unsigned x, y;
};
struct uint4 {
  unsigned x, y, z, w;
};

static inline float __int_as_float(int bits) {
  float value;
  memcpy(&value, &bits, 4);
  return value;
}

static inline int __float_as_int(float value) {
  int bits;
  memcpy(&bits, &value, 4);
  return bits;
}

static inline unsigned long long atomicAdd(unsigned long long* to, unsigned long long value) {
  const unsigned long long before = *to;
  *to += value;
  return before;
}

// ---------------------------------------------------------------- threads that wait for each other

enum { MOST = 256, STACK = 1 << 17 };
struct Fiber {
  ucontext_t context;
  jmp_buf place;
  char* stack;
  bool started, done;
};
struct Meeting {  // of a warp or a block
  unsigned come, members, number;
};
static thread_local Fiber fibers[MOST];
static thread_local jmp_buf scheduler;
static thread_local Meeting warps[MOST / 32], block;
static thread_local unsigned slots[MOST][6];
static thread_local const std::pair<void (*)(void*), void*>* job;

static void pause_thread() {
  Fiber& fiber = fibers[threadIdx.x];
  if (!_setjmp(fiber.place)) _longjmp(scheduler, 1);
}

static void meet(Meeting& meeting) {
  const unsigned number = meeting.number;
  if (++meeting.come == meeting.members) {
    meeting.come = 0;
    ++meeting.number;
    return;
  }
  while (meeting.number == number) pause_thread();
}

static void fiber_main() {
  job->first(job->second);
  fibers[threadIdx.x].done = true;
  _longjmp(scheduler, 1);
}

static void run_together(unsigned threads, const std::pair<void (*)(void*), void*>& what) {
  job = &what;
  block = {0, threads, 0};
  for (unsigned i = 0; i < threads; ++i) {
    if (!fibers[i].stack) fibers[i].stack = static_cast<char*>(malloc(STACK));
    fibers[i].started = fibers[i].done = false;
    if (i % 32 == 0) warps[i / 32] = {0, threads - i < 32 ? threads - i : 32, 0};
  }
  static thread_local unsigned left, turn;
  for (left = threads; left;) {
    const unsigned before = left;
    unsigned meetings = block.number;
    for (unsigned i = 0; i < threads; i += 32) meetings += warps[i / 32].number;
    static thread_local unsigned at;
    for (turn = 0; turn < threads; ++turn) {
      at = blockIdx.x % 2 ? threads - 1 - turn : turn;
      if (fibers[at].done) continue;
      threadIdx.x = at;
      if (!_setjmp(scheduler)) {
        if (fibers[at].started) _longjmp(fibers[at].place, 1);
        fibers[at].started = true;
        getcontext(&fibers[at].context);
        fibers[at].context.uc_stack.ss_sp = fibers[at].stack;
        fibers[at].context.uc_stack.ss_size = STACK;
        makecontext(&fibers[at].context, fiber_main, 0);
        setcontext(&fibers[at].context);
      }
      if (fibers[at].done) --left;
    }
    unsigned after = block.number;
    for (unsigned i = 0; i < threads; i += 32) after += warps[i / 32].number;
    if (left == before && after == meetings) {
      fprintf(stderr, "threads wait for each other for ever\n");
      abort();
    }
  }
}

static inline void __syncthreads() { meet(block); }
static inline void __syncwarp() { meet(warps[threadIdx.x / 32]); }

template <class T> static T exchange(unsigned mask, T value, unsigned from) {
  static_assert(sizeof(T) == 4, "one word");
  if (mask != 0xffffffffu) abort();
  memcpy(slots[threadIdx.x], &value, 4);
  __syncwarp();
  memcpy(&value, slots[threadIdx.x / 32 * 32 + from % 32], 4);
  __syncwarp();
  return value;
}
template <class T> static T __shfl_sync(unsigned mask, T value, int lane) { return exchange(mask, value, lane); }
template <class T> static T __shfl_xor_sync(unsigned mask, T value, int by) {
  return exchange(mask, value, threadIdx.x % 32 ^ by);
}

// mma.sync.m16n8k32 of u8 and s8: where each lane's operands belong is written in the PTX manual
#define GQ_MMA
static void gq_mma(int (&sums)[4], unsigned a0, unsigned a1, unsigned a2, unsigned a3, unsigned b0, unsigned b1) {
  const unsigned mine[6] = {a0, a1, a2, a3, b0, b1};
  memcpy(slots[threadIdx.x], mine, sizeof mine);
  __syncwarp();
  const unsigned lane = threadIdx.x % 32, first = threadIdx.x - lane;
  for (int i = 0; i < 4; ++i) {
    const unsigned row = lane / 4 + (i < 2 ? 0 : 8), column = lane % 4 * 2 + i % 2;
    for (unsigned k = 0; k < 32; ++k) {
      const unsigned half = k / 16, shift = k % 4 * 8, part = k % 16 / 4;
      const unsigned a = slots[first + row % 8 * 4 + part][2 * half + (row >= 8)];
      const unsigned b = slots[first + column * 4 + part][4 + half];
      sums[i] += static_cast<int>(a >> shift & 255) * static_cast<int8_t>(b >> shift & 255);
    }
  }
  __syncwarp();
}

// ---------------------------------------------------------------- launches

template <class... A, std::size_t... I>
static void call(void (*kernel)(A...), void** arguments, std::index_sequence<I...>) {
  kernel(*static_cast<A*>(arguments[I])...);
}

// The threads run in reverse order: no result may depend on it.
template <class... A>
static void launch(void (*kernel)(A...), unsigned blocks, unsigned threads, void** arguments) {
  blockDim.x = threads;
  for (blockIdx.x = blocks; blockIdx.x-- > 0;) {
    for (threadIdx.x = threads; threadIdx.x-- > 0;) {
      call(kernel, arguments, std::index_sequence_for<A...>{});
    }
  }
}

template <class... A>
static void launch_together(void (*kernel)(A...), unsigned blocks, unsigned threads, void** arguments) {
  auto one = [&] { call(kernel, arguments, std::index_sequence_for<A...>{}); };
  using One = decltype(one);
  const std::pair<void (*)(void*), void*> what{[](void* given) { (*static_cast<One*>(given))(); }, &one};
  blockDim.x = threads;
  for (blockIdx.x = blocks; blockIdx.x-- > 0;) run_together(threads, what);
}

#define LAUNCHER(kernel, how)                                                             \
  extern "C" void launch_##kernel(unsigned blocks, unsigned threads, void** arguments) { \
    how(kernel, blocks, threads, arguments);                                              \
  }
