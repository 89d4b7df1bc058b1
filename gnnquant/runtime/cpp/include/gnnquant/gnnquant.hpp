// Runs models that gnnquant compiled, without Python. C++17, Linux; docs/serving.md has the calling convention.
//
//   gnnquant::Model model("model.gnnq");
//   gnnquant::Inputs inputs;
//   inputs.rows("x", x.data(), {nodes, features});              // float32, row-major
//   inputs.edges("edge_index", edge_index.data(), edges);       // int64 [2, edges], row-major
//   std::vector<gnnquant::Output> outputs = model(inputs);      // float32, row-major
//
// Everything that a call passes is checked; what is wrong is an InputError that says which, how, and what to do.
// An artifact is native code: load only files whose origin you trust.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <new>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "gnnquant/artifact.hpp"
#include "gnnquant/index.hpp"
#include "gnnquant/library.hpp"

namespace gnnquant {

using Shape = std::vector<std::int64_t>;

namespace detail {

inline constexpr std::size_t kAlignment = 64;

inline std::size_t round_up(std::size_t size) { return (size + kAlignment - 1) / kAlignment * kAlignment; }

// Uninitialized memory at a multiple of 64; never at address 0.
class Memory {
 public:
  Memory() = default;
  explicit Memory(std::size_t bytes)
      : bytes_(static_cast<char*>(std::aligned_alloc(kAlignment, round_up(std::max<std::size_t>(bytes, 1))))) {
    if (!bytes_) throw std::bad_alloc();
  }
  char* get() const { return bytes_.get(); }

 private:
  struct Free {
    void operator()(char* bytes) const { std::free(bytes); }
  };
  std::unique_ptr<char, Free> bytes_;
};

// int32 entries as kernels read them.
struct Indices {
  Memory memory;
  std::int64_t size = 0;

  Indices() = default;
  template <typename Entries>
  Indices(const Entries& entries, std::int64_t padding)
      : memory(4 * static_cast<std::size_t>(entries.end() - entries.begin() + padding)),
        size(entries.end() - entries.begin() + padding) {
    auto* out = reinterpret_cast<std::int32_t*>(memory.get());
    for (const auto entry : entries) *out++ = static_cast<std::int32_t>(entry);
    std::fill(out, out + padding, 0);
  }
};

// First row of each thread's share and, last, the number of rows: shares cost about the same, where a row costs its
// edges plus 8, and start at multiples of 8.
inline std::vector<std::int32_t> partition_rows(const std::vector<std::int32_t>& indptr, std::int64_t threads) {
  static constexpr std::int64_t kCost = 8, kMultiple = 8;
  const auto rows = static_cast<std::int64_t>(indptr.size()) - 1;
  const std::int64_t total = indptr.back() + kCost * rows, last = rows / kMultiple;
  const auto cost = [&](std::int64_t border) {
    return static_cast<double>(indptr[border * kMultiple] + kCost * border * kMultiple);
  };
  std::vector<std::int32_t> found = {0};
  std::int64_t above = 0;
  for (std::int64_t share = 1; share < threads; ++share) {
    const double target = static_cast<double>(total * share) / static_cast<double>(threads);
    while (above < last && cost(above) < target) ++above;
    const std::int64_t below = std::max<std::int64_t>(above - 1, 0);
    const std::int64_t nearest = cost(above) - target < target - cost(below) ? above : below;
    found.push_back(static_cast<std::int32_t>(nearest * kMultiple));
  }
  found.push_back(static_cast<std::int32_t>(rows));
  return found;
}

inline std::string in_brackets(const Shape& shape, const std::string& first = "") {
  std::string text = first;
  for (const std::int64_t dim : shape) text += (text.empty() ? "" : ", ") + std::to_string(dim);
  return "[" + text + "]";
}

// One tensor or number of a call.
struct Given {
  std::string kind;
  Shape shape;
  const float* floats = nullptr;
  const std::int64_t* integers = nullptr;
  const bool* flags = nullptr;
  Shape numbers = {};
};

}  // namespace detail

// What a call is given, by the names of the model's inputs. It refers to the caller's memory, which must stay as it
// is during the call; a later call of the same name replaces what was there.
class Inputs {
 public:
  // Float rows: `data` is float32 of `shape`, row-major.
  Inputs& rows(const std::string& name, const float* data, Shape shape) {
    detail::Given given{"rows", std::move(shape)};
    given.floats = data;
    return set(name, std::move(given));
  }
  // Edges: `data` is int64 [2, count], row-major: all sources, then all destinations.
  Inputs& edges(const std::string& name, const std::int64_t* data, std::int64_t count) {
    detail::Given given{"edges", {2, count}};
    given.integers = data;
    return set(name, std::move(given));
  }
  // Integers: `data` is int64 of `shape`, row-major.
  Inputs& index(const std::string& name, const std::int64_t* data, Shape shape) {
    detail::Given given{"index", std::move(shape)};
    given.integers = data;
    return set(name, std::move(given));
  }
  // Flags: `data` is bool (one byte each) of `shape`, row-major.
  Inputs& mask(const std::string& name, const bool* data, Shape shape) {
    detail::Given given{"mask", std::move(shape)};
    given.flags = data;
    return set(name, std::move(given));
  }
  // A number, not negative.
  Inputs& size(const std::string& name, std::int64_t value) {
    detail::Given given{"size", {}};
    given.numbers = {value};
    return set(name, std::move(given));
  }
  // A sparse matrix [rows, columns]: `places` is int64 [2, entries], the rows of all entries and then their columns;
  // `values` is float32 [entries, ...]. Entries come by row, then by column.
  Inputs& adjacency(const std::string& name, const std::int64_t* places, const float* values, std::int64_t entries,
                    std::int64_t rows, std::int64_t columns) {
    detail::Given given{"adjacency", {2, entries}};
    given.integers = places;
    given.floats = values;
    given.numbers = {rows, columns};
    return set(name, std::move(given));
  }

  const std::map<std::string, detail::Given>& all() const { return given_; }

 private:
  Inputs& set(const std::string& name, detail::Given given) {
    given_[name] = std::move(given);
    return *this;
  }

  std::map<std::string, detail::Given> given_;
};

// One output of a call: float32, row-major, at a multiple of 64 bytes.
class Output {
 public:
  // With room for `rows` rows, the first dimension by default.
  explicit Output(Shape shape, std::int64_t rows = 0) : shape_(std::move(shape)), memory_(room(shape_, rows)) {}

  const Shape& shape() const { return shape_; }
  std::int64_t size() const {
    long long product = 1;
    for (const std::int64_t dim : shape_) product = detail::times(product, dim);
    return product;
  }
  float* data() { return reinterpret_cast<float*>(memory_.get()); }
  const float* data() const { return reinterpret_cast<const float*>(memory_.get()); }

 private:
  static std::size_t room(const Shape& shape, std::int64_t rows) {
    long long bytes = 4;
    for (std::size_t i = 0; i < shape.size(); ++i) bytes = detail::times(bytes, i ? shape[i] : std::max(shape[i], rows));
    return static_cast<std::size_t>(bytes);
  }

  Shape shape_;
  detail::Memory memory_;
};

namespace detail {

// Checks of what a call is given: gnnquant/runtime/inputs.py.
class Binding {
 public:
  Binding(const Plan& plan, const Inputs& inputs) : plan_(plan), given_(inputs.all()) {
    std::string names;
    for (const InputInfo& item : plan.inputs) names += (names.empty() ? "" : ", ") + item.name;
    for (const auto& [name, given] : given_) {
      if (!plan.input(name)) throw InputError("the model has no input '" + name + "': its inputs are " + names);
    }
    for (const InputInfo& item : plan.inputs) {
      const auto found = given_.find(item.name);
      if (found == given_.end()) {
        throw InputError("input '" + item.name + "' is missing: the model takes " + names);
      }
      check(item, found->second);
    }
  }

  const Given& operator[](const std::string& name) const { return given_.at(name); }

  // Rows of an input; edges, entries.
  std::int64_t rows(const InputInfo& item) const {
    const Given& given = given_.at(item.name);
    return item.kind == "edges" || item.kind == "adjacency" ? given.shape[1] : given.shape[0];
  }

  // Whether integers and sizes are those of an earlier call.
  bool same(const IndexInputs& earlier) const {
    for (const InputInfo& item : plan_.inputs) {
      const Given& given = given_.at(item.name);
      if (item.kind != "size" && earlier.rows.at(item.name) != rows(item)) return false;
      const auto numbers = earlier.numbers.find(item.name);
      if (numbers != earlier.numbers.end() && numbers->second != given.numbers) return false;
      const auto array = earlier.arrays.find(item.name);
      if (array == earlier.arrays.end()) continue;
      const std::vector<std::int64_t>& ours = array->second;
      if (given.integers && !std::equal(ours.begin(), ours.end(), given.integers)) return false;
      if (given.flags && !std::equal(ours.begin(), ours.end(), given.flags)) return false;
    }
    return true;
  }

  // Copies of all integers.
  IndexInputs copied() const {
    IndexInputs result;
    for (const InputInfo& item : plan_.inputs) {
      const Given& given = given_.at(item.name);
      if (item.kind != "size") result.rows[item.name] = rows(item);
      if (!given.numbers.empty()) result.numbers[item.name] = given.numbers;
      std::vector<std::int64_t>* array =
          one_of(item.kind, {"rows", "size"}) ? nullptr : &result.arrays[item.name];
      std::int64_t count = 1;
      for (const std::int64_t dim : given.shape) count *= dim;
      if (array && given.integers) array->assign(given.integers, given.integers + count);
      if (array && given.flags) array->assign(given.flags, given.flags + count);
    }
    return result;
  }

 private:
  static void check(const InputInfo& item, const Given& given) {
    if (given.kind != item.kind) {
      throw InputError(item.name + " was given as '" + given.kind + "', but the model takes '" + item.kind +
                       "' there: call Inputs::" + item.kind);
    }
    for (const std::int64_t dim : given.shape) {
      if (dim < 0) throw InputError(item.name + " has the negative dimension " + std::to_string(dim));
    }
    if (item.kind == "size" || item.kind == "adjacency") check_numbers(item, given);
    if (item.kind == "size") return;
    if (one_of(item.kind, {"rows", "index", "mask"})) check_shape(item, given.shape);
    const std::int64_t rows = one_of(item.kind, {"edges", "adjacency"}) ? given.shape[1] : given.shape[0];
    if (rows > kInt32Max) {
      const char* word = item.kind == "edges" ? " edges" : item.kind == "adjacency" ? " entries" : " rows";
      throw InputError(item.name + " has " + std::to_string(rows) + word + ": at most " + std::to_string(kInt32Max) +
                       " are supported");
    }
    long long count = 1;
    for (const std::int64_t dim : given.shape) count = times(count, dim);
    const bool none = item.kind == "adjacency" ? !given.integers || !given.floats
                                               : !given.integers && !given.floats && !given.flags;
    if (count && none) throw InputError(item.name + " is at address 0");
    if (item.kind == "adjacency") check_order(item, given);
  }

  static void check_numbers(const InputInfo& item, const Given& given) {
    for (std::size_t i = 0; i < given.numbers.size(); ++i) {
      const std::int64_t number = given.numbers[i];
      if (number >= 0 && number <= kInt32Max) continue;
      const char* what = item.kind == "size" ? " is " : i ? " has a number of columns of " : " has a number of rows of ";
      throw InputError(item.name + what + std::to_string(number) + ": it must be in 0 .. " +
                       std::to_string(kInt32Max));
    }
  }

  static void check_shape(const InputInfo& item, const Shape& found) {
    if (!found.empty() && std::equal(found.begin() + 1, found.end(), item.shape.begin(), item.shape.end())) return;
    std::string why;
    if (found.size() == 2 && item.shape.size() == 1) {
      why = ": the model was compiled for " + std::to_string(item.shape[0]) + " columns, not " +
            std::to_string(found[1]);
    }
    throw InputError(item.name + " has shape " + in_brackets(found) + ", but " + in_brackets(item.shape, "N") +
                     " is needed" + why);
  }

  static void check_order(const InputInfo& item, const Given& given) {
    const std::int64_t *row = given.integers, *column = row + given.shape[1];
    for (std::int64_t i = 1; i < given.shape[1]; ++i) {
      if (std::pair(row[i - 1], column[i - 1]) > std::pair(row[i], column[i])) {
        throw InputError(item.name + ": entry " + std::to_string(i) +
                         " belongs before the one before it: sort entries by row, then by column");
      }
    }
  }

  const Plan& plan_;
  const std::map<std::string, Given>& given_;
};

// What kernels read of the integers of one call, and their buffers.
struct Prepared {
  IndexInputs given;
  std::map<std::string, std::int64_t> sizes;
  std::map<std::string, Indices> indices;
  Memory arena;
  std::size_t workspace_bytes = 0;
  std::map<std::string, Shape> shapes;
  std::map<std::string, DLTensor> tensors;
  std::vector<std::vector<TVMFFIAny>> arguments;  // of each call
  bool graph_values_stand = false;
};

class Executor {
 public:
  explicit Executor(Artifact artifact)
      : metadata(std::move(artifact.metadata)),
        plan(std::move(artifact.plan)),
        program_(plan),
        library_(artifact.library) {
    std::map<std::string, std::size_t> first;
    for (const Call& call : plan.calls) {
      for (const std::string& name : call.arguments) first.emplace(name, kernels_.size());
      kernels_.push_back(library_.function(call.function));
    }
    for (const auto& [name, call] : first) named_.insert(name);
    for (const auto& [input, scale] : plan.finite) scales_[first.at(scale)].emplace_back(input, scale);
    for (const Buffer& buffer : plan.buffers) {
      buffers_[buffer.name] = &buffer;
      for (const Dim& dim : buffer.shape) {
        if (!dim.space.empty()) spaces_.insert(dim.space);
      }
      if (buffer.kind != "constant") continue;
      const std::string& data = artifact.constants.at(buffer.name).data;
      Memory& copy = constants_[buffer.name] = Memory(data.size());
      std::memcpy(copy.get(), data.data(), data.size());
    }
  }

  std::vector<Output> run(const Inputs& inputs) {
    const Binding binding(plan, inputs);
    const std::lock_guard<std::mutex> lock(mutex_);
    if (library_.pooled()) use_threads(plan.threads);
    if (!prepared_ || !binding.same(prepared_->given)) {
      prepared_.reset();
      prepared_ = prepare(binding.copied());
    }
    for (const InputInfo& item : plan.inputs) {
      if (!one_of(item.kind, {"rows", "adjacency"})) continue;
      if (!plan.finite.count(item.name)) check_finite(item, binding);
      point(item, binding[item.name].floats);
    }
    std::vector<Output> outputs;
    for (std::size_t i = 0; i < plan.outputs.size(); ++i) {
      Shape shape = {prepared_->shapes.at(plan.outputs[i])[0]};
      shape.insert(shape.end(), plan.output_shapes[i].begin(), plan.output_shapes[i].end());
      outputs.emplace_back(std::move(shape), padded_rows(*prepared_, *buffers_.at(plan.outputs[i])));
      prepared_->tensors.at(plan.outputs[i]).data = outputs.back().data();
    }
    for (const Buffer& buffer : plan.buffers) {
      if (!buffer.in_output()) continue;
      char* output = static_cast<char*>(prepared_->tensors.at(buffer.region).data);
      prepared_->tensors.at(buffer.name).data = output + buffer.offset * padded_rows(*prepared_, buffer);
    }
    call_kernels(binding);
    return outputs;
  }

  // Bytes of all workspace buffers, as the last call had them.
  std::size_t workspace_bytes() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return prepared_ ? prepared_->workspace_bytes : 0;
  }

  const Json metadata;
  const Plan plan;

 private:
  std::unique_ptr<Prepared> prepare(IndexInputs given) const {
    auto prepared = std::make_unique<Prepared>();
    prepared->given = std::move(given);
    const IndexResults results = program_.run(prepared->given);
    prepared->sizes = results.sizes;
    prepared->sizes[kOne] = 1;
    for (const auto& [name, graph] : results.graphs) add_graph(*prepared, name, graph);
    check_sizes(*prepared, results);
    for (const Buffer& buffer : plan.buffers) {
      if (buffer.kind != "index") continue;
      const Array& array = results.arrays.at(buffer.name);
      const std::int64_t rows = extent(*prepared, buffer.shape[0]);
      if (array.size != rows) {
        throw BackendError("index '" + buffer.name + "' has " + std::to_string(array.size) + " entries for " +
                           std::to_string(rows) + " rows");
      }
      check_int32(buffer.name, array);
      prepared->indices[buffer.name] = Indices(array, kGraphPadding);
    }
    lay_out(*prepared);
    return prepared;
  }

  // The parts of a graph that calls name, and the number of its edges.
  void add_graph(Prepared& prepared, const std::string& name, const Graph& graph) const {
    const auto wanted = [&](const char* part) { return named_.count(name + "." + part) > 0; };
    const bool any = std::any_of(kGraphParts.begin(), kGraphParts.end(),
                                 [&](const std::string& part) { return wanted(part.c_str()); });
    if (!any && !spaces_.count(name)) return;
    const Csr csr = graph.sorted();
    prepared.sizes[name] = csr.indptr.back();
    auto& indices = prepared.indices;
    if (wanted("indptr")) indices[name + ".indptr"] = Indices(csr.indptr, 0);
    if (wanted("src")) indices[name + ".src"] = Indices(csr.src, kGraphPadding);
    if (wanted("edge_id")) indices[name + ".edge_id"] = Indices(csr.edge_id, kGraphPadding);
    if (wanted("partition")) indices[name + ".partition"] = Indices(partition_rows(csr.indptr, plan.threads), 0);
    if (!wanted("dst")) return;
    std::vector<std::int32_t> dst(csr.src.size());
    for (std::int64_t i = 0; i < graph.destinations; ++i) {
      std::fill(dst.begin() + csr.indptr[i], dst.begin() + csr.indptr[i + 1], static_cast<std::int32_t>(i));
    }
    indices[name + ".dst"] = Indices(dst, kGraphPadding);
  }

  static std::int64_t extent(const Prepared& prepared, const Dim& dim) {
    return dim.space.empty() ? dim.number : prepared.sizes.at(dim.space);
  }

  // Rows that the region of a buffer has room for, 1 where it has none.
  static std::int64_t padded_rows(const Prepared& prepared, const Buffer& buffer) {
    if (buffer.space().empty()) return 1;
    return (prepared.sizes.at(buffer.space()) + kRowPadding - 1) / kRowPadding * kRowPadding;
  }

  // Refuse what is beyond the 32-bit offsets of the kernels, and reads out of bounds.
  void check_sizes(const Prepared& prepared, const IndexResults& results) const {
    for (const std::string& space : spaces_) {
      const auto limit = plan.max_rows.find(space);
      const std::int64_t most = limit == plan.max_rows.end() ? kInt32Max : std::min(limit->second, kInt32Max);
      const std::int64_t rows = prepared.sizes.at(space);
      if (rows > most) {
        throw InputError(space + " has " + std::to_string(rows) +
                         " rows or edges, self-loops included: this model takes at most " + std::to_string(most));
      }
    }
    for (const Read& read : plan.reads) {
      const auto [low, high] = span_of(results, read.index);
      const std::int64_t rows = extent(prepared, read.rows);
      if (low > high || (low >= read.lowest && high < rows)) continue;
      throw BackendError("the compiled code would read the rows " + std::to_string(low) + " .. " +
                         std::to_string(high) + " of " + std::to_string(rows) + " by '" + read.index +
                         "': please report the model");
    }
  }

  // Smallest and largest entry of an index array; (0, -1) where there is none.
  static std::pair<std::int64_t, std::int64_t> span_of(const IndexResults& results, const std::string& name) {
    const auto found = results.arrays.find(name);
    if (found != results.arrays.end()) {
      const Array& array = found->second;
      if (!array.size) return {0, -1};
      const auto [low, high] = std::minmax_element(array.begin(), array.end());
      return {*low, *high};
    }
    const std::size_t dot = name.rfind('.');
    const Graph& graph = results.graphs.at(name.substr(0, dot));
    const std::string part = name.substr(dot + 1);
    if (part == "edge_id") return {graph.appends() ? -1 : 0, graph.src.size - 1};
    if (graph.src.size == 0 && !graph.appends()) return {0, -1};
    return {0, (part == "src" ? graph.sources : graph.destinations) - 1};
  }

  static void check_int32(const std::string& name, const Array& array) {
    for (std::int64_t i = 0; i < array.size; ++i) {
      if (array[i] < -kInt32Max - 1 || array[i] > kInt32Max) {
        throw InputError(name + "[" + std::to_string(i) + "] = " + std::to_string(array[i]) + " does not fit 32 bits");
      }
    }
  }

  // Buffers in one piece of memory, tensors that describe them, and the arguments of calls that point to these.
  void lay_out(Prepared& prepared) const {
    std::map<std::string, std::size_t> regions, starts;
    for (const Buffer& buffer : plan.buffers) {
      if (buffer.kind == "index") continue;
      Shape& shape = prepared.shapes[buffer.name];
      for (const Dim& dim : buffer.shape) shape.push_back(extent(prepared, dim));
      if (!buffer.in_arena()) continue;
      const auto end = times(buffer.offset + buffer.row_bytes(), padded_rows(prepared, buffer));
      std::size_t& bytes = regions[buffer.memory()];
      bytes = std::max(bytes, round_up(static_cast<std::size_t>(end)));
    }
    std::size_t total = 0;
    for (const auto& [region, bytes] : regions) {
      starts[region] = total;
      total += bytes;
    }
    prepared.arena = Memory(total);
    prepared.workspace_bytes = total;
    for (const Buffer& buffer : plan.buffers) {
      if (buffer.kind == "index") continue;
      char* data = nullptr;  // of inputs and outputs, and what lies in these: known later
      if (buffer.in_arena()) {
        data = prepared.arena.get() + starts.at(buffer.memory()) + buffer.offset * padded_rows(prepared, buffer);
      }
      if (buffer.kind == "constant") data = constants_.at(buffer.name).get();
      prepared.tensors[buffer.name] = tensor(buffer.dtype, prepared.shapes[buffer.name], data);
    }
    for (auto& [name, indices] : prepared.indices) {
      Shape& shape = prepared.shapes[name] = {indices.size};
      prepared.tensors[name] = tensor("int32", shape, indices.memory.get());
    }
    for (const Call& call : plan.calls) {
      std::vector<TVMFFIAny>& packed = prepared.arguments.emplace_back();
      for (const std::string& name : call.arguments) {
        TVMFFIAny argument{};
        argument.type_index = kTVMFFIDLTensorPtr;
        argument.v_ptr = &prepared.tensors.at(name);
        packed.push_back(argument);
      }
    }
  }

  static DLTensor tensor(const std::string& dtype, Shape& shape, void* data) {
    DLTensor result{};
    result.data = data;
    result.device = {kDLCPU, 0};
    result.ndim = static_cast<std::int32_t>(shape.size());
    const int code = dtype == "bool" ? kDLBool : dtype[0] == 'f' ? kDLFloat : dtype[0] == 'u' ? kDLUInt : kDLInt;
    result.dtype = {static_cast<std::uint8_t>(code), static_cast<std::uint8_t>(8 * bytes_of(dtype)), 1};
    result.shape = shape.data();
    return result;
  }

  // Let kernels read `data`, or a copy where it is not aligned as they need.
  void point(const InputInfo& item, const float* data) {
    const auto tensor = prepared_->tensors.find(item.name);
    if (tensor == prepared_->tensors.end()) return;  // an input that no kernel reads
    const Shape& shape = prepared_->shapes.at(item.name);
    const std::int64_t rows = prepared_->given.rows.at(item.name);
    if (rows != shape[0]) {
      throw BackendError(item.name + " has " + std::to_string(rows) + " rows, where the plan has " +
                         std::to_string(shape[0]));
    }
    if (!data || reinterpret_cast<std::uintptr_t>(data) % static_cast<std::uintptr_t>(plan.input_alignment)) {
      const auto bytes = 4 * static_cast<std::size_t>(rows * item.columns());
      Memory& copy = copies_[item.name] = Memory(bytes);
      if (bytes) std::memcpy(copy.get(), data, bytes);
      data = reinterpret_cast<const float*>(copy.get());
    }
    tensor->second.data = const_cast<float*>(data);  // kernels only read it
  }

  void call_kernels(const Binding& binding) {
    const bool stand = std::exchange(prepared_->graph_values_stand, false);
    for (std::size_t i = 0; i < plan.calls.size(); ++i) {
      if (plan.calls[i].per_graph && stand) continue;
      const std::vector<TVMFFIAny>& packed = prepared_->arguments[i];
      TVMFFIAny result{};
      check_status(kernels_[i](nullptr, packed.data(), static_cast<std::int32_t>(packed.size()), &result),
                   plan.calls[i].function);
      const auto scales = scales_.find(i);
      if (scales == scales_.end()) continue;
      for (const auto& [input, scale] : scales->second) {
        std::int64_t count = 1;
        for (const std::int64_t dim : prepared_->shapes.at(scale)) count *= dim;
        const auto* data = static_cast<const float*>(prepared_->tensors.at(scale).data);
        if (!all_finite(data, count)) check_finite(*plan.input(input), binding);
      }
    }
    prepared_->graph_values_stand = true;
  }

  static bool all_finite(const float* data, std::int64_t count) {
    bool good = true;  // without an early end, so that compilers make vectors of it
    for (std::int64_t i = 0; i < count; ++i) good &= std::abs(data[i]) <= 3.402823466e+38F;
    return good;
  }

  void check_finite(const InputInfo& item, const Binding& binding) const {
    const float* data = binding[item.name].floats;
    const std::int64_t columns = item.columns(), count = binding.rows(item) * columns;
    if (all_finite(data, count)) return;
    std::int64_t at = 0;
    while (std::isfinite(data[at])) ++at;
    Shape where = {at / columns};
    std::int64_t rest = at % columns;
    for (auto dim = item.shape.rbegin(); dim != item.shape.rend(); ++dim) {
      where.insert(where.begin() + 1, rest % *dim);
      rest /= *dim;
    }
    const std::string value = std::isnan(data[at]) ? "nan" : data[at] > 0 ? "inf" : "-inf";
    throw InputError(item.name + in_brackets(where) + " is " + value +
                     ": NaN and infinity cannot be quantized; clean " + item.name + " first");
  }

  IndexProgram program_;
  Library library_;
  std::vector<Kernel> kernels_;
  std::map<std::string, const Buffer*> buffers_;
  std::map<std::size_t, std::vector<std::pair<std::string, std::string>>> scales_;
  std::set<std::string> named_, spaces_;
  std::map<std::string, Memory> constants_, copies_;
  std::unique_ptr<Prepared> prepared_;
  std::mutex mutex_;
};

}  // namespace detail

// A compiled model. Calls of one model run one after another, whichever threads they come from; the graphs of the
// last call are kept sorted for the next one.
class Model {
 public:
  // Reads the file that CompiledModel.save wrote; throws ArtifactError or BackendError.
  explicit Model(const std::string& path) : Model(detail::read_file(path), path) {}

  // The content of such a file; `where` names it in messages.
  static Model from_bytes(std::string_view content, const std::string& where = "the artifact") {
    return Model(content, where);
  }

  // Runs the model: the tensors of its result, in order. Throws InputError.
  std::vector<Output> operator()(const Inputs& inputs) { return executor_->run(inputs); }

  const std::vector<InputInfo>& inputs() const { return executor_->plan.inputs; }
  // Bytes that the kernels worked in during the last call, beyond inputs, outputs, weights and the graph.
  std::size_t workspace_bytes() const { return executor_->workspace_bytes(); }
  // The artifact's metadata: versions, target, inputs, outputs, bits.
  const Json& metadata() const { return executor_->metadata; }

 private:
  Model(std::string_view content, const std::string& where)
      : executor_(std::make_unique<detail::Executor>(detail::read_artifact(content, where))) {}

  std::unique_ptr<detail::Executor> executor_;
};

}  // namespace gnnquant
