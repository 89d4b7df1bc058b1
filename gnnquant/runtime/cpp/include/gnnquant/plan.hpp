// The plan of an artifact (gnnquant/runtime/plan.py): inputs, index program, buffers, calls. Checked on reading.
#pragma once

#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <map>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "gnnquant/json.hpp"

namespace gnnquant {

// One tensor or number of a call.
//
// name   its path within the call of the original model: "x", "x_dict[paper]"
// kind   "rows", "edges", "index", "mask", "size" or "adjacency"
// shape  shape of one row
struct InputInfo {
  std::string name;
  std::string kind;
  std::vector<std::int64_t> shape;

  std::int64_t columns() const {
    long long product = 1;
    for (const std::int64_t dim : shape) product = detail::times(product, dim);
    return product;
  }
};

namespace detail {

inline constexpr std::int64_t kInt32Max = 2147483647;
inline constexpr std::int64_t kGraphPadding = 1024;
inline constexpr std::int64_t kRowPadding = 64;
inline constexpr char kOne[] = "one";
inline const std::vector<std::string> kGraphParts = {"indptr", "src", "dst", "edge_id", "partition"};
inline const std::vector<std::string> kLoops = {"keep", "remove", "add", "replace", "remaining"};

inline bool one_of(const std::string& word, std::initializer_list<std::string_view> words) {
  return std::find(words.begin(), words.end(), word) != words.end();
}

inline std::int64_t bytes_of(const std::string& dtype) {
  static const std::map<std::string, std::int64_t> sizes = {
      {"bool", 1},  {"int8", 1},  {"uint8", 1}, {"int16", 2},   {"uint16", 2},
      {"int32", 4}, {"int64", 8}, {"float32", 4}, {"float64", 8}};
  const auto found = sizes.find(dtype);
  need(found != sizes.end(), "there is no type '" + dtype + "'");
  return found->second;
}

enum class Kind { size, array, graph, check };

struct IndexNode {
  std::string name, op;
  std::vector<std::string> inputs;
  Json attrs;
};

// A number, or the name of a space.
struct Dim {
  std::string space;
  std::int64_t number = 0;
};

// region, offset: where a workspace buffer lies. In a region of rows, its own space or an output, `offset` bytes are
//                 multiplied with the number of rows, rounded up to kRowPadding.
struct Buffer {
  std::string name, dtype, kind;
  std::vector<Dim> shape;
  std::string region;
  long long offset = 0;

  // What its rows are; "" where its size is fixed.
  const std::string& space() const {
    static const std::string none;
    return shape.empty() || shape[0].space == kOne ? none : shape[0].space;
  }
  // Bytes of a row, of all of it where its size is fixed.
  long long row_bytes() const {
    long long product = bytes_of(dtype);
    for (std::size_t i = space().empty() ? 0 : 1; i < shape.size(); ++i) {
      need(shape[i].space.empty() || shape[i].space == kOne, "buffer '" + name + "' has rows of rows");
      if (shape[i].space.empty()) product = times(product, shape[i].number);
    }
    return product;
  }
  bool in_output() const { return kind == "workspace" && region != space(); }
  bool in_arena() const { return kind == "graph" || (kind == "workspace" && !in_output()); }
  // The part of the arena in which it lies: what is kept with a graph has one of its own.
  const std::string& memory() const { return kind == "graph" ? name : region; }
};

struct Call {
  std::string function;
  std::vector<std::string> arguments;
  bool per_graph = false;
};

// An index array by which kernels read rows: its entries must be in lowest .. rows - 1.
struct Read {
  std::string index;
  Dim rows;
  std::int64_t lowest = 0;
};

struct Plan {
  std::vector<InputInfo> inputs;
  std::vector<IndexNode> index;
  std::vector<Buffer> buffers;
  std::vector<Call> calls;
  std::vector<std::string> outputs;
  std::vector<std::vector<std::int64_t>> output_shapes;
  std::int64_t threads = 1, input_alignment = 64;
  std::map<std::string, std::string> finite;
  std::map<std::string, std::int64_t> max_rows;
  std::vector<Read> reads;
  std::map<std::string, Kind> kinds;  // of the values of the index program

  const InputInfo* input(std::string_view name) const {
    for (const InputInfo& item : inputs) {
      if (item.name == name) return &item;
    }
    return nullptr;
  }
};

inline std::vector<std::string> strings(const Json& value) {
  std::vector<std::string> result;
  for (const Json& item : value.array()) result.push_back(item.string());
  return result;
}

inline std::vector<std::int64_t> numbers(const Json& value) {
  std::vector<std::int64_t> result;
  for (const Json& item : value.array()) {
    need(item.integer() >= 0, "a dimension is negative");
    result.push_back(item.integer());
  }
  return result;
}

inline Dim dimension(const Json& value) {
  if (value.is_string()) return {value.string(), 0};
  need(value.integer() >= 0, "a dimension is negative");
  return {"", value.integer()};
}

// Checks nodes one after another: operands come first and fit, constants are what their operations need.
class ProgramReader {
 public:
  explicit ProgramReader(Plan& plan) : plan_(plan) {}

  void add(const Json& item) {
    IndexNode node{item["name"].string(), item["op"].string(), strings(item["inputs"]), item["attrs"]};
    const auto wrong = [&](bool condition, const std::string& what) {
      need(condition, "index program: '" + node.name + "' " + what);
    };
    wrong(operands_fit(node), "cannot take its operands");
    wrong(constants_fit(node), "has constants that do not fit '" + node.op + "'");
    const Kind kind = one_of(node.op, {"rows", "size_input", "size", "length", "extent"}) ? Kind::size
                      : node.op == "same_size"                                         ? Kind::check
                      : node.op == "graph"                                             ? Kind::graph
                                                                                       : Kind::array;
    wrong(plan_.kinds.emplace(node.name, kind).second, "is defined twice");
    plan_.index.push_back(std::move(node));
  }

 private:
  bool operands_fit(const IndexNode& node) const {
    static const std::map<std::string, std::string> forms = {
        {"rows", ""},     {"size_input", ""}, {"length", "a"}, {"extent", "a"}, {"same_size", "ss"},
        {"values", ""},   {"index_input", ""}, {"arange", "s"}, {"full", "s"},  {"not", "a"},
        {"select", "aa"}, {"nonzero", "a"},   {"take", "aa"},  {"put", "aaa"},  {"count", "as"},
        {"cumsum", "a"},  {"argsort", "a"},   {"bounded", "as"}, {"part", "g"}, {"graph", "aass"}};
    std::string found;
    for (const std::string& name : node.inputs) {
      const auto kind = plan_.kinds.find(name);
      if (kind == plan_.kinds.end() || kind->second == Kind::check) return false;
      found += kind->second == Kind::size ? 's' : kind->second == Kind::array ? 'a' : 'g';
    }
    if (node.op == "size" || node.op == "combine") {
      std::size_t constants = 0;
      for (const char* side : {"left", "right"}) {
        const Json* constant = node.attrs.find(side);
        if (constant && !constant->is_integer()) return false;
        constants += constant != nullptr;
      }
      const bool sizes = found.find_first_not_of('s') == std::string::npos;
      const bool arrays = found.find('g') == std::string::npos && found.find('a') != std::string::npos;
      return found.size() + constants == 2 && (node.op == "size" ? sizes : arrays);
    }
    if (node.op == "join") return !found.empty() && found.find_first_not_of('a') == std::string::npos;
    const auto form = forms.find(node.op);
    return form != forms.end() && form->second == found;
  }

  bool constants_fit(const IndexNode& node) const {
    const Json& attrs = node.attrs;
    if (one_of(node.op, {"rows", "size_input", "index_input"})) {
      const InputInfo* item = plan_.input(attrs.string_or("input", ""));
      return item != nullptr && reads_right(node, *item);
    }
    const std::string function = attrs.string_or("function", "");
    const bool arithmetic = one_of(function, {"add", "sub", "mul", "floordiv", "mod", "max", "min"});
    if (node.op == "size") return arithmetic;
    if (node.op == "combine") {
      return arithmetic || one_of(function, {"eq", "ne", "lt", "le", "gt", "ge", "and", "or"});
    }
    if (node.op == "values") {
      for (const Json& value : attrs["values"].array()) {
        if (!value.is_integer()) return false;
      }
    }
    if (node.op == "full") return attrs["value"].is_integer();
    if (node.op == "part") return one_of(attrs["part"].string(), {"src", "dst", "edge_id"});
    if (node.op == "graph") {
      return std::find(kLoops.begin(), kLoops.end(), attrs["loops"].string()) != kLoops.end();
    }
    return true;
  }

  static bool reads_right(const IndexNode& node, const InputInfo& item) {
    if (node.op == "rows") return item.kind != "size";
    if (node.op == "size_input") {
      if (item.kind == "size") return true;
      const std::int64_t axis = node.attrs["axis"].integer();
      return item.kind == "adjacency" && (axis == 0 || axis == 1);
    }
    const Json* part = node.attrs.find("part");
    if (item.kind == "adjacency") return part && part->is_string() && one_of(part->string(), {"row", "col"});
    const bool columns = item.kind == "index" || item.kind == "mask";
    if (!part || part->is_null()) return columns && item.columns() == 1;
    const std::int64_t count = item.kind == "edges" ? 2 : columns ? item.columns() : 0;
    return part->is_integer() && part->integer() >= 0 && part->integer() < count;
  }

  Plan& plan_;
};

inline bool is_space(const Plan& plan, const std::string& name) {
  const auto kind = plan.kinds.find(name);
  return name == kOne || (kind != plan.kinds.end() && (kind->second == Kind::size || kind->second == Kind::graph));
}

// Whether `buffer` holds float rows of `shape`, one for each element of a space.
inline bool holds_rows(const Buffer& buffer, const std::vector<std::int64_t>& shape) {
  long long columns = 1, wanted = 1;
  for (std::size_t i = 1; i < buffer.shape.size(); ++i) {
    if (!buffer.shape[i].space.empty()) return false;
    columns = times(columns, buffer.shape[i].number);
  }
  for (const std::int64_t dim : shape) wanted = times(wanted, dim);
  return buffer.dtype == "float32" && !buffer.shape.empty() && columns == wanted;
}

inline void check_buffer(const Plan& plan, const Buffer& buffer) {
  const std::string what = "buffer '" + buffer.name + "' ";
  bytes_of(buffer.dtype);
  need(one_of(buffer.kind, {"input", "index", "constant", "graph", "workspace", "output"}), what + "has an unknown kind");
  for (const Dim& dim : buffer.shape) {
    need(dim.space.empty() || is_space(plan, dim.space), what + "has an unknown dimension");
  }
  if (buffer.kind == "input") {
    const InputInfo* item = plan.input(buffer.name);
    const bool floats = item && one_of(item->kind, {"rows", "adjacency"});
    need(floats && holds_rows(buffer, item->shape), what + "is no float input");
  }
  if (buffer.kind == "index") {
    const auto kind = plan.kinds.find(buffer.name);
    const bool array = kind != plan.kinds.end() && kind->second == Kind::array;
    need(array && buffer.dtype == "int32" && buffer.shape.size() == 1, what + "is no index array");
  }
}

inline void check_names(const Plan& plan) {
  std::set<std::string> names;
  std::map<std::string, const Buffer*> outputs;
  for (const auto& [name, kind] : plan.kinds) {
    for (const std::string& part : kGraphParts) {
      if (kind == Kind::graph) names.insert(name + "." + part);
    }
  }
  for (const Buffer& buffer : plan.buffers) {
    need(names.insert(buffer.name).second, "buffer '" + buffer.name + "' is defined twice");
    check_buffer(plan, buffer);
    if (buffer.kind == "output") outputs[buffer.name] = &buffer;
  }
  for (const Call& call : plan.calls) {
    for (const std::string& name : call.arguments) {
      need(names.count(name), "'" + call.function + "' uses the unknown buffer '" + name + "'");
    }
  }
  need(plan.outputs.size() == plan.output_shapes.size(), "outputs and their shapes differ in number");
  need(plan.outputs.size() == outputs.size(), "the outputs are not the output buffers");
  for (std::size_t i = 0; i < plan.outputs.size(); ++i) {
    const auto found = outputs.find(plan.outputs[i]);
    const bool good = found != outputs.end() && holds_rows(*found->second, plan.output_shapes[i]);
    need(good, "output '" + plan.outputs[i] + "' has no such buffer");
  }
}

inline void check_place(const Plan& plan, const Buffer& buffer) {
  const std::string what = "buffer '" + buffer.name + "' lies at " + std::to_string(buffer.offset) + " of '" +
                           buffer.region + "'";
  need(buffer.offset >= 0, what);
  if (buffer.kind != "workspace") {
    need(buffer.region.empty() && buffer.offset == 0, what);
  } else if (buffer.in_output()) {
    const auto output = std::find_if(plan.buffers.begin(), plan.buffers.end(), [&](const Buffer& other) {
      return other.kind == "output" && other.name == buffer.region;
    });
    need(output != plan.buffers.end() && output->space() == buffer.space(), what);
    need(buffer.offset <= output->row_bytes() && buffer.row_bytes() <= output->row_bytes() - buffer.offset, what);
  } else if (buffer.space().empty()) {
    need(buffer.offset % 64 == 0, what);
  }
}

inline void read_notes(Plan& plan, const Json& notes) {
  if (const Json* value = notes.find("input_alignment")) plan.input_alignment = value->integer();
  need(plan.input_alignment >= 1 && plan.input_alignment <= 64, "the alignment of inputs is unknown");
  std::set<std::string> used, scales;
  for (const Call& call : plan.calls) used.insert(call.arguments.begin(), call.arguments.end());
  for (const Buffer& buffer : plan.buffers) {
    const bool floats = buffer.kind == "workspace" && buffer.dtype == "float32";
    if (floats && used.count(buffer.name)) scales.insert(buffer.name);
  }
  if (const Json* value = notes.find("finite")) {
    for (const auto& [name, scale] : value->object()) {
      need(plan.input(name) && scales.count(scale.string()), "it looks for NaN of '" + name + "' nowhere");
      plan.finite[name] = scale.string();
    }
  }
  if (const Json* value = notes.find("max_rows")) {
    for (const auto& [name, most] : value->object()) {
      need(is_space(plan, name), "it limits the rows of '" + name + "'");
      plan.max_rows[name] = most.integer();
    }
  }
  const Json* reads = notes.find("reads");
  for (const Json& item : reads ? reads->array() : Json::Array()) {
    const Json::Array& entry = item.array();
    need(entry.size() == 3, "it reads rows by nothing");
    Read read{entry[0].string(), dimension(entry[1]), entry[2].integer()};
    const std::size_t dot = read.index.rfind('.');
    const auto array = plan.kinds.find(read.index);
    const auto graph = plan.kinds.find(read.index.substr(0, dot));
    const bool of_graph = dot != std::string::npos && graph != plan.kinds.end() && graph->second == Kind::graph &&
                          one_of(read.index.substr(dot + 1), {"src", "dst", "edge_id"});
    const bool known = of_graph || (array != plan.kinds.end() && array->second == Kind::array);
    need(known && (read.rows.space.empty() || is_space(plan, read.rows.space)),
         "it reads rows by '" + read.index + "'");
    plan.reads.push_back(std::move(read));
  }
}

inline Plan read_plan(const Json& json) {
  Plan plan;
  for (const Json& item : json["inputs"].array()) {
    InputInfo input{item["name"].string(), item["kind"].string(), numbers(item["shape"])};
    need(one_of(input.kind, {"rows", "edges", "index", "mask", "size", "adjacency"}),
         "input '" + input.name + "' has the kind '" + input.kind + "'");
    plan.inputs.push_back(std::move(input));
  }
  ProgramReader program(plan);
  for (const Json& item : json["index"].array()) program.add(item);
  for (const Json& item : json["buffers"].array()) {
    Buffer buffer{item["name"].string(), item["dtype"].string(), item["kind"].string(), {}, item["region"].string(),
                  item["offset"].integer()};
    for (const Json& dim : item["shape"].array()) buffer.shape.push_back(dimension(dim));
    plan.buffers.push_back(std::move(buffer));
  }
  for (const Json& item : json["calls"].array()) {
    plan.calls.push_back({item["function"].string(), strings(item["arguments"]), item["per_graph"].boolean()});
  }
  plan.outputs = strings(json["outputs"]);
  for (const Json& shape : json["output_shapes"].array()) plan.output_shapes.push_back(numbers(shape));
  plan.threads = json["threads"].integer();
  need(plan.threads >= 1 && plan.threads <= 65536, "it is for no thread");
  check_names(plan);
  for (const Buffer& buffer : plan.buffers) check_place(plan, buffer);
  read_notes(plan, json["notes"]);
  return plan;
}

}  // namespace detail
}  // namespace gnnquant
