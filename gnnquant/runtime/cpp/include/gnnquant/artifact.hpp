// The .gnnq file (docs/serving.md): header, plan, constants and library, verified before anything is used.
#pragma once

#include <cerrno>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <iterator>
#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "gnnquant/bytes.hpp"
#include "gnnquant/host.hpp"
#include "gnnquant/plan.hpp"

namespace gnnquant::detail {

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "artifacts are little-endian");

struct Constant {
  std::string dtype, data;
  std::vector<std::int64_t> shape;
};

struct Artifact {
  Json metadata;
  Plan plan;
  std::map<std::string, Constant> constants;
  std::string library;
};

inline constexpr std::uint32_t kFormatVersion = 6;
inline constexpr std::size_t kPrefix = 24, kStart = 56;
inline constexpr std::uint64_t kMaxRatio = 1032;  // zlib cannot expand more

template <typename T>
T number_at(std::string_view data, std::size_t at) {
  T value;
  std::memcpy(&value, data.data() + at, sizeof value);
  return value;
}

// The verified header of `data`; `where` names the file in messages.
inline Json read_header(std::string_view data, const std::string& where) {
  const auto have = std::to_string(data.size());
  if (data.empty() || data.substr(0, 4) != std::string_view("GNNQ").substr(0, data.size())) {
    throw ArtifactError(where + " is not a gnnquant artifact: it does not start with 'GNNQ'");
  }
  if (data.size() < kStart) throw ArtifactError(where + " is truncated: it has only " + have + " bytes");
  const auto version = number_at<std::uint32_t>(data, 4);
  const auto total = number_at<std::uint64_t>(data, 8);
  const auto length = number_at<std::uint32_t>(data, 16);
  if (version != kFormatVersion) {
    const bool newer = version > kFormatVersion;
    throw ArtifactError(where + " was made by " + (newer ? "a newer" : "an older") + " gnnquant (file format " +
                        std::to_string(version) + ", this one reads " + std::to_string(kFormatVersion) +
                        (newer ? "): upgrade gnnquant" : "): compile the model again"));
  }
  const std::string truncated = where + " is truncated: it has " + have + " of " + std::to_string(total) + " bytes";
  if (data.size() < kStart + std::uint64_t{length}) throw ArtifactError(truncated);
  const std::string_view raw = data.substr(kStart, length);
  if (sha256(data.substr(0, kPrefix), raw) != data.substr(kPrefix, kStart - kPrefix)) {
    throw ArtifactError(where + " is altered: the checksum of its header does not match");
  }
  if (data.size() < total) throw ArtifactError(truncated);
  if (data.size() > total) {
    throw ArtifactError(where + " is altered: it has " + have + " bytes instead of " + std::to_string(total));
  }
  return Json::parse(raw);
}

inline std::string unpack(std::string_view stored, const Json& section, const std::string& where) {
  const std::string& name = section["name"].string();
  if (hexadecimal(sha256(stored)) != section["sha256"].string()) {
    throw ArtifactError(where + " is altered: the checksum of section '" + name + "' does not match");
  }
  const auto size = static_cast<std::uint64_t>(section["size"].integer());
  if (section["encoding"].string() == "raw") {
    need(stored.size() == size, "section '" + name + "' has another size than it says");
    return std::string(stored);
  }
  need(size <= kMaxRatio * stored.size(), "section '" + name + "' cannot have " + std::to_string(size) + " bytes");
  return Inflater(stored, size).run();
}

inline void check_constants(const Artifact& artifact) {
  for (const auto& [name, constant] : artifact.constants) {
    long long bytes = bytes_of(constant.dtype);
    for (const std::int64_t dim : constant.shape) bytes = times(bytes, dim);
    need(bytes == static_cast<long long>(constant.data.size()), "constant '" + name + "' has another size");
  }
  for (const Buffer& buffer : artifact.plan.buffers) {
    if (buffer.kind != "constant") continue;
    const auto found = artifact.constants.find(buffer.name);
    need(found != artifact.constants.end(), "constant '" + buffer.name + "' is missing");
    bool same = found->second.dtype == buffer.dtype && found->second.shape.size() == buffer.shape.size();
    for (std::size_t i = 0; same && i < buffer.shape.size(); ++i) {
      same = buffer.shape[i].space.empty() && buffer.shape[i].number == found->second.shape[i];
    }
    need(same, "constant '" + buffer.name + "' has another type or shape than its buffer");
  }
}

inline Artifact read_sections(std::string_view data, const Json& header, const std::string& where) {
  Artifact artifact;
  bool has_plan = false, has_library = false;
  const Json::Array& sections = header["sections"].array();
  std::uint64_t end = data.size();
  for (const Json& section : sections) {
    const auto length = static_cast<std::uint64_t>(section["length"].integer());
    need(length <= end, "its sections are longer than the file");
    end -= length;
  }
  for (const Json& section : sections) {
    const std::string &name = section["name"].string(), &kind = section["kind"].string();
    const auto length = static_cast<std::uint64_t>(section["length"].integer());
    need(static_cast<std::uint64_t>(section["offset"].integer()) == end,
         "section '" + name + "' is not where it should be");
    std::string content = unpack(data.substr(end, length), section, where);
    end += length;
    if (kind == "plan" && !std::exchange(has_plan, true)) {
      artifact.plan = read_plan(Json::parse(content));
    } else if (kind == "library" && !std::exchange(has_library, true)) {
      artifact.library = std::move(content);
    } else {
      Constant constant{kind == "constant" ? section["dtype"].string() : "", std::move(content), {}};
      if (kind == "constant") constant.shape = numbers(section["shape"]);
      const bool fresh = kind == "constant" && artifact.constants.emplace(name, std::move(constant)).second;
      need(fresh, "section '" + name + "' of kind '" + kind + "' is one too many");
    }
  }
  need(has_plan && has_library, "it has no plan or no library");
  return artifact;
}

inline Artifact read_artifact(std::string_view data, const std::string& where) {
  try {
    const Json header = read_header(data, where);
    const std::string lacking = missing_requirements(header["metadata"]["target"]);
    if (!lacking.empty()) {
      throw ArtifactError(where + " was compiled for another machine: it needs " + lacking +
                          ". Compile the model again for this machine");
    }
    Artifact artifact = read_sections(data, header, where);
    check_constants(artifact);
    artifact.metadata = header["metadata"];
    return artifact;
  } catch (const Malformed& error) {
    throw ArtifactError(where + " is malformed: " + error.what());
  }
}

inline std::string read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::string content((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  if (!file.is_open() || file.bad()) throw ArtifactError(path + " cannot be read: " + std::strerror(errno));
  return content;
}

}  // namespace gnnquant::detail
