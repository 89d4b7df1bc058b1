// Kernels in a shared library, and the TVM runtime that they run on (its C interface alone).
//
// Of TVM: TVMBackendParallelLaunch, and for the size of its thread pool TVMFFIFunctionGetGlobal, TVMFFIFunctionCall,
// TVMFFIObjectDecRef and TVMFFIErrorMoveFromRaised. A machine without TVM needs these five functions only.
#pragma once

#include <dlfcn.h>
#include <sched.h>
#include <sys/mman.h>
#include <tvm/ffi/c_api.h>
#include <tvm/runtime/c_backend_api.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "gnnquant/error.hpp"

namespace gnnquant::detail {

// A compiled function: 0 on success; arguments are DLTensor pointers.
using Kernel = int (*)(void* self, const TVMFFIAny* arguments, std::int32_t count, TVMFFIAny* result);

// Throws BackendError with TVM's message where `status` is not 0.
inline void check_status(int status, const std::string& what) {
  if (status == 0) return;
  TVMFFIObjectHandle raised = nullptr;
  TVMFFIErrorMoveFromRaised(&raised);
  std::string message = "unknown error";
  if (raised) {
    // TVMFFIErrorCell follows the head of the object; it starts with the kind and the message
    const auto* cell = reinterpret_cast<const TVMFFIByteArray*>(static_cast<const char*>(raised) + sizeof(TVMFFIObject));
    message.assign(cell[1].data, cell[1].size);
    TVMFFIObjectDecRef(raised);
  }
  throw BackendError("TVM: " + what + ": " + message);
}

inline TVMFFIAny any(std::int64_t value) {
  TVMFFIAny result{};
  result.type_index = kTVMFFIInt;
  result.v_int64 = value;
  return result;
}

inline TVMFFIAny any(const std::string& value) {
  TVMFFIAny result{};
  result.type_index = kTVMFFIRawStr;
  result.v_c_str = value.c_str();
  return result;
}

inline TVMFFIAny call_global(const std::string& name, std::vector<TVMFFIAny> arguments) {
  const TVMFFIByteArray key{name.data(), name.size()};
  TVMFFIObjectHandle function = nullptr;
  check_status(TVMFFIFunctionGetGlobal(&key, &function), name);
  if (!function) throw BackendError("the TVM runtime has no function '" + name + "'");
  TVMFFIAny result{};
  const int status =
      TVMFFIFunctionCall(function, arguments.data(), static_cast<std::int32_t>(arguments.size()), &result);
  TVMFFIObjectDecRef(function);
  check_status(status, name);
  return result;
}

// Make parallel regions that this thread starts use `threads` threads, on the cores that the process may use.
//
// TVM keeps a pool for each calling thread, which cannot grow, and by itself binds it to the first cores.
inline void use_threads(std::int64_t threads) {
  static constexpr std::int64_t kRoom = 16, kKeepAffinity = -3;
  thread_local std::int64_t current = 0;
  if (current == threads) return;
  cpu_set_t allowed;
  CPU_ZERO(&allowed);
  std::vector<std::string> cores;
  if (sched_getaffinity(0, sizeof allowed, &allowed) == 0) {
    for (int core = 0; core < CPU_SETSIZE; ++core) {
      if (CPU_ISSET(core, &allowed)) cores.push_back(std::to_string(core));
    }
  }
  if (current == 0) {
    // not in TVM's headers: where it is missing, the pool has TVM's own size
    using Limit = void (*)(int);
    if (auto limit = reinterpret_cast<Limit>(dlsym(RTLD_DEFAULT, "_ZN3tvm7runtime9threading17SetMaxConcurrencyEi"))) {
      const auto most = std::min(static_cast<std::int64_t>(cores.size()), std::max(threads, kRoom));
      limit(static_cast<int>(std::max<std::int64_t>(most, 1)));
    }
    call_global("runtime.NumThreads", {});  // makes this thread's pool
  }
  std::vector<TVMFFIAny> names;
  for (const std::string& core : cores) names.push_back(any(core));
  const TVMFFIAny list = call_global("ffi.Array", names);
  call_global("runtime.config_threadpool", {any(kKeepAffinity), any(threads), list});
  if (list.v_obj) TVMFFIObjectDecRef(list.v_obj);
  current = threads;
}

class Library {
 public:
  // Opens `content`; no file is left behind.
  explicit Library(const std::string& content) : file_(memfd_create("gnnquant", MFD_CLOEXEC)) {
    if (file_ < 0) throw BackendError(std::string("no memory for the compiled code: ") + std::strerror(errno));
    std::size_t done = 0;
    while (done < content.size()) {
      const ssize_t some = write(file_, content.data() + done, content.size() - done);
      if (some < 0 && errno == EINTR) continue;
      if (some <= 0) {
        const std::string why = std::strerror(errno);
        close(file_);
        throw BackendError("no memory for the compiled code: " + why);
      }
      done += static_cast<std::size_t>(some);
    }
    // The system's loader knows libraries by path: while the file is open, no other has its number.
    handle_ = dlopen(("/proc/self/fd/" + std::to_string(file_)).c_str(), RTLD_NOW | RTLD_LOCAL);
    if (!handle_) {
      const char* wrong = dlerror();
      close(file_);
      throw ArtifactError(std::string("the compiled code cannot be loaded: ") + (wrong ? wrong : "unknown error"));
    }
    if (void* launch = dlsym(handle_, "__TVMBackendParallelLaunch")) {
      *static_cast<decltype(&TVMBackendParallelLaunch)*>(launch) = &TVMBackendParallelLaunch;
      pooled_ = true;
    }
  }
  Library(const Library&) = delete;
  Library& operator=(const Library&) = delete;
  ~Library() {
    dlclose(handle_);
    close(file_);
  }

  // Whether kernels start parallel regions.
  bool pooled() const { return pooled_; }

  Kernel function(const std::string& name) const {
    void* symbol = dlsym(handle_, ("__tvm_ffi_" + name).c_str());
    if (!symbol) throw ArtifactError("the compiled code has no function '" + name + "'");
    return reinterpret_cast<Kernel>(symbol);
  }

 private:
  int file_;
  void* handle_ = nullptr;
  bool pooled_ = false;
};

}  // namespace gnnquant::detail
