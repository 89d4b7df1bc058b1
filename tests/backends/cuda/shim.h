// CUDA C++ as plain C++: kernels become functions that a loop over blocks and threads calls.
// They use no shared memory, no atomics and nothing of a warp, so that one thread after the other does the same.
#include <math.h>
#include <string.h>

#include <utility>

#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(threads)

struct Index {
  unsigned x;
};
static thread_local Index blockIdx, threadIdx, blockDim;

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

#define LAUNCHER(kernel)                                                              \
  extern "C" void launch_##kernel(unsigned blocks, unsigned threads, void** arguments) { \
    launch(kernel, blocks, threads, arguments);                                       \
  }
