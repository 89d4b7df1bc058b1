// A stand-in for libcuda.so.1 whose "GPU" is this processor. A module is a shared library with a function
// launch_<kernel> for each kernel (see shim.h). Addresses are checked: copies must stay inside of an allocation,
// and kernels may only be launched while a context is current. FAKE_CUDA says how to fail.
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <map>
#include <mutex>
#include <string>

static std::map<uint64_t, size_t> memory;
static std::mutex lock;
static thread_local int current = 0;
static int context = 0;

static bool fails(const char* what) {
  const char* given = getenv("FAKE_CUDA");
  return given && strcmp(given, what) == 0;
}

static bool inside(uint64_t address, size_t size) {
  std::lock_guard<std::mutex> held(lock);
  auto after = memory.upper_bound(address);
  if (after == memory.begin()) return false;
  --after;
  return address + size <= after->first + after->second;
}

extern "C" {
int cuInit(unsigned) { return fails("init") ? 100 : 0; }
int cuGetErrorName(int code, const char** text) { return *text = code == 2 ? "CUDA_ERROR_OUT_OF_MEMORY" : "CUDA_ERROR", 0; }
int cuGetErrorString(int, const char** text) { return *text = "the stand-in says no", 0; }
int cuDeviceGetCount(int* count) { return *count = fails("count") ? 0 : 1, 0; }
int cuDeviceGet(int* device, int) { return *device = 0, 0; }
int cuDeviceGetAttribute(int* value, int attribute, int) {
  return *value = attribute == 75 ? (fails("old") ? 7 : 8) : 0, 0;
}
int cuDevicePrimaryCtxRetain(void** found, int) { return *found = &context, 0; }
int cuCtxPushCurrent_v2(void* given) { return given == &context ? (++current, 0) : 201; }
int cuCtxPopCurrent_v2(void**) { return current > 0 ? (--current, 0) : 201; }
int cuMemAlloc_v2(uint64_t* address, size_t size) {
  if (!current) return 201;
  if (fails("memory")) return 2;
  void* block = aligned_alloc(256, (size + 255) / 256 * 256);
  memset(block, 0xA5, size);
  std::lock_guard<std::mutex> held(lock);
  memory[*address = reinterpret_cast<uint64_t>(block)] = size;
  return 0;
}
int cuMemFree_v2(uint64_t address) {
  std::lock_guard<std::mutex> held(lock);
  if (!current || !memory.erase(address)) return 1;
  free(reinterpret_cast<void*>(address));
  return 0;
}
int cuMemHostAlloc(void** block, size_t size, unsigned flags) {
  if (!current || flags != 2) return 1;
  return (*block = calloc(1, size)) ? 0 : 2;
}
int cuMemHostGetDevicePointer_v2(uint64_t* address, void* block, unsigned) {
  return *address = reinterpret_cast<uint64_t>(block), 0;
}
int cuMemFreeHost(void* block) { return free(block), 0; }
int cuMemcpyHtoDAsync_v2(uint64_t to, const void* from, size_t size, void*) {
  if (!current || !inside(to, size)) return 1;
  return memcpy(reinterpret_cast<void*>(to), from, size), 0;
}
int cuMemcpyDtoHAsync_v2(void* to, uint64_t from, size_t size, void*) {
  if (!current || !inside(from, size)) return 1;
  return memcpy(to, reinterpret_cast<void*>(from), size), 0;
}
int cuStreamSynchronize(void*) { return !current ? 201 : fails("kernel") ? 700 : 0; }
// streams and events: everything has been done when it is asked for
int cuStreamWaitEvent(void*, void* event, unsigned) { return current && event ? 0 : 1; }
int cuEventCreate(void** event, unsigned) { return !current ? 201 : (*event = malloc(1)) ? 0 : 2; }
int cuEventRecord(void* event, void*) { return current && event ? 0 : 1; }
int cuEventSynchronize(void* event) { return !current || !event ? 1 : fails("kernel") ? 700 : 0; }
int cuEventDestroy_v2(void* event) { return free(event), 0; }
int cuModuleLoadData(void** module, const char* path) {
  // the image is the path of a shared library
  if (fails("module")) return 209;
  return (*module = dlopen(path, RTLD_NOW | RTLD_LOCAL)) ? 0 : 200;
}
int cuModuleUnload(void* module) { return current && dlclose(module) == 0 ? 0 : 1; }
int cuModuleGetFunction(void** function, void* module, const char* name) {
  return (*function = dlsym(module, (std::string("launch_") + name).c_str())) ? 0 : 500;
}
int cuLaunchKernel(void* function, unsigned x, unsigned y, unsigned z, unsigned threads, unsigned, unsigned,
                   unsigned shared, void* stream, void** arguments, void** extra) {
  (void)stream;
  if (!current || !x || y != 1 || z != 1 || shared || extra) return 1;
  reinterpret_cast<void (*)(unsigned, unsigned, void**)>(function)(x, threads, arguments);
  return 0;
}
// for the tests: bytes that nobody has freed
size_t fake_cuda_held() {
  std::lock_guard<std::mutex> held(lock);
  size_t total = 0;
  for (const auto& block : memory) total += block.second;
  return total;
}
}
