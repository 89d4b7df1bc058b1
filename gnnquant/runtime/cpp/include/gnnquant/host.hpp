// What compiled code needs of a machine, and whether this one has it (gnnquant/runtime/host.py).
#pragma once

#include <algorithm>
#include <fstream>
#include <map>
#include <set>
#include <sstream>
#include <string>
#include <vector>

#if defined(__x86_64__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "gnnquant/json.hpp"

namespace gnnquant::detail {

inline std::string this_machine() {
#if defined(__x86_64__)
  return "x86_64";
#elif defined(__aarch64__)
  return "aarch64";
#elif defined(__riscv) && __riscv_xlen == 64
  return "riscv64";
#else
  return "unknown";
#endif
}

// Where the kernel's name of an instruction set (in /proc/cpuinfo) is not LLVM's.
inline const std::map<std::string, std::string>& kernel_names() {
  static const std::map<std::string, std::string> names = {
      {"sse3", "pni"},
      {"sse4.1", "sse4_1"},
      {"sse4.2", "sse4_2"},
      {"bmi", "bmi1"},
      {"lzcnt", "abm"},
      {"sha", "sha_ni"},
      {"pclmul", "pclmulqdq"},
      {"rdrnd", "rdrand"},
      {"avx512vnni", "avx512_vnni"},
      {"avx512vbmi2", "avx512_vbmi2"},
      {"avx512bitalg", "avx512_bitalg"},
      {"avx512vpopcntdq", "avx512_vpopcntdq"},
      {"avx512bf16", "avx512_bf16"},
      {"avx512fp16", "avx512_fp16"},
      {"avxvnni", "avx_vnni"},
      {"amx-tile", "amx_tile"},
      {"amx-int8", "amx_int8"},
      {"amx-bf16", "amx_bf16"},
      {"amx-fp16", "amx_fp16"},
      {"neon", "asimd"},
      {"dotprod", "asimddp"},
      {"fullfp16", "asimdhp"},
      {"lse", "atomics"},
      {"rdm", "asimdrdm"},
      {"crc", "crc32"},
  };
  return names;
}

// Features of this processor as the kernel names them; empty where it does not say (emulators show another's).
inline std::set<std::string> host_flags() {
  const std::string machine = this_machine();
  const std::string wanted = machine == "x86_64" ? "flags" : machine == "aarch64" ? "Features" : "isa";
  std::ifstream file("/proc/cpuinfo");
  std::string line;
  while (std::getline(file, line)) {
    const std::size_t colon = line.find(':');
    const std::string key = line.substr(0, line.find_last_not_of(" \t", colon == 0 ? 0 : colon - 1) + 1);
    if (colon == std::string::npos || key != wanted) continue;
    std::string value = line.substr(colon + 1);
    std::set<std::string> found;
    if (key == "isa") {  // rv64imafdc_zicsr_zba
      std::size_t start = value.find_first_not_of(" \t");
      const std::size_t end = value.find('_');
      for (std::size_t i = start + 4; i < std::min(end, value.size()); ++i) {
        for (const char letter : value[i] == 'g' ? std::string("imafd") : std::string(1, value[i])) {
          found.insert(std::string(1, letter));
        }
      }
      value = end == std::string::npos ? "" : value.substr(end);
      for (char& c : value) c = c == '_' ? ' ' : c;
    }
    std::istringstream words(value);
    std::string word;
    while (words >> word) found.insert(word);
    return found;
  }
  return {};
}

// What `target`, an artifact's metadata, needs and this machine lacks, in words; empty: nothing.
inline std::string missing_requirements(const Json& target) {
  const std::string& machine = target["machine"].string();
  if (machine != this_machine()) {
    return "the architecture " + machine + " (this machine is " + this_machine() + ")";
  }
  const std::string& system = target["system"].string();
  if (system != "linux" && system != "unknown") return system + " (this machine runs linux)";
  const std::set<std::string> have = host_flags();
  std::string lacking;
  for (const Json& feature : target["features"].array()) {
    const auto renamed = kernel_names().find(feature.string());
    const std::string& name = renamed == kernel_names().end() ? feature.string() : renamed->second;
    if (!have.empty() && !have.count(name)) lacking += (lacking.empty() ? "" : ", ") + feature.string();
  }
  if (!lacking.empty()) return "the processor features " + lacking;
#if defined(__x86_64__) && defined(__linux__)
  for (const Json& feature : target["features"].array()) {
    // a process asks for the tile registers of AMX before it uses them: ARCH_REQ_XCOMP_PERM
    if (feature.string() == "amx-tile" && syscall(SYS_arch_prctl, 0x1023, 18) != 0) {
      return "leave of the kernel to use AMX tiles (arch_prctl ARCH_REQ_XCOMP_PERM)";
    }
  }
#endif
  return "";
}

}  // namespace gnnquant::detail
