// The index program (gnnquant/integer_graph.py, INDEX_OPS): what follows from integers and sizes of a call.
//
// Every index is checked before anything is read with it; an InputError names the first offending entry.
#pragma once

#include <algorithm>
#include <cstdint>
#include <map>
#include <memory>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "gnnquant/plan.hpp"

namespace gnnquant::detail {

using Wide = __int128;  // sums and products of int64 are exact in it
inline constexpr Wide kInt64Max = INT64_MAX, kInt64Min = INT64_MIN;

// int64 entries: of the program's own, or a part of an input that outlives the results.
struct Array {
  std::shared_ptr<const std::vector<std::int64_t>> own;
  const std::int64_t* data = nullptr;
  std::int64_t size = 0;

  Array() = default;
  Array(const std::int64_t* entries, std::int64_t count) : data(entries), size(count) {}
  explicit Array(std::vector<std::int64_t> entries)
      : own(std::make_shared<const std::vector<std::int64_t>>(std::move(entries))),
        data(own->data()),
        size(static_cast<std::int64_t>(own->size())) {}

  std::int64_t operator[](std::int64_t i) const { return data[i]; }
  const std::int64_t* begin() const { return data; }
  const std::int64_t* end() const { return data + size; }
};

// Edges by destination, stable; appended self-loops last in their row, with edge_id -1 where they replace none.
struct Csr {
  std::vector<std::int32_t> indptr, src, edge_id;
};

struct Graph {
  Array src, dst;
  std::int64_t sources = 0, destinations = 0;
  std::string loops;

  bool appends() const { return loops != "keep" && loops != "remove"; }

  Csr sorted() const {
    const bool drop = loops != "keep" && loops != "add", append = appends();
    Csr csr;
    csr.indptr.assign(destinations + 1, 0);
    for (std::int64_t e = 0; e < src.size; ++e) csr.indptr[dst[e] + 1] += !(drop && src[e] == dst[e]);
    for (std::int64_t i = 0; i < destinations; ++i) csr.indptr[i + 1] += csr.indptr[i] + append;
    csr.src.assign(csr.indptr.back(), 0);
    csr.edge_id.assign(csr.indptr.back(), -1);
    std::vector<std::int32_t> next(csr.indptr.begin(), csr.indptr.end() - 1);
    for (std::int64_t e = 0; e < src.size; ++e) {
      if (drop && src[e] == dst[e]) {
        if (loops == "remaining") csr.edge_id[csr.indptr[dst[e] + 1] - 1] = static_cast<std::int32_t>(e);
        continue;
      }
      const std::int32_t slot = next[dst[e]]++;
      csr.src[slot] = static_cast<std::int32_t>(src[e]);
      csr.edge_id[slot] = static_cast<std::int32_t>(e);
    }
    for (std::int64_t i = 0; append && i < destinations; ++i) {
      csr.src[csr.indptr[i + 1] - 1] = static_cast<std::int32_t>(i);
    }
    return csr;
  }
};

// What the index program reads of a call. Arrays: [2, E] of "edges" and "adjacency", [R, *shape] of "index" and
// "mask" (0 and 1). Numbers: the value of a "size", both extents of an "adjacency".
struct IndexInputs {
  std::map<std::string, std::int64_t> rows;
  std::map<std::string, std::vector<std::int64_t>> arrays;
  std::map<std::string, std::vector<std::int64_t>> numbers;
};

struct IndexResults {
  std::map<std::string, std::int64_t> sizes;
  std::map<std::string, Array> arrays;
  std::map<std::string, Graph> graphs;
};

class IndexProgram {
 public:
  explicit IndexProgram(const Plan& plan) : plan_(plan) {
    for (const IndexNode& node : plan.index) {
      nodes_[node.name] = &node;
      if (node.op == "index_input") origins_[node.name] = &node;
      if (node.op == "bounded" && origins_.count(node.inputs[0])) {
        origins_[node.name] = origins_[node.inputs[0]];
      }
    }
  }

  // `given` must outlive the results.
  IndexResults run(const IndexInputs& given) const {
    IndexResults results;
    for (const IndexNode& node : plan_.index) {
      switch (plan_.kinds.at(node.name)) {
        case Kind::size:
          results.sizes[node.name] = size(node, given, results);
          break;
        case Kind::check:
          same_size(node, results);
          break;
        case Kind::array:
          results.arrays[node.name] = array(node, given, results);
          break;
        case Kind::graph:
          results.graphs[node.name] = graph(node, results);
          break;
      }
    }
    return results;
  }

 private:
  // ---------------------------------------------------------------- sizes

  std::int64_t size(const IndexNode& node, const IndexInputs& given, const IndexResults& results) const {
    if (node.op == "rows") return given.rows.at(node.attrs["input"].string());
    if (node.op == "size_input") {
      const Json* axis = node.attrs.find("axis");
      return given.numbers.at(node.attrs["input"].string()).at(axis && axis->is_integer() ? axis->integer() : 0);
    }
    if (node.op == "size") {
      std::size_t next = 0;
      const auto operand = [&](const char* side) {
        const Json* constant = node.attrs.find(side);
        return constant ? constant->integer() : results.sizes.at(node.inputs[next++]);
      };
      const Wide left = operand("left"), right = operand("right");
      return checked_size(node, calculate(node, left, right, "a size of 0"));
    }
    const Array& array = results.arrays.at(node.inputs[0]);
    if (node.op == "length") return array.size;
    return array.size ? checked_size(node, Wide{*std::max_element(array.begin(), array.end())} + 1) : 0;
  }

  void same_size(const IndexNode& node, const IndexResults& results) const {
    const std::int64_t left = results.sizes.at(node.inputs[0]), right = results.sizes.at(node.inputs[1]);
    if (left == right) return;
    throw InputError(size_in_words(node.inputs[0], left) + ", but " + size_in_words(node.inputs[1], right) + ": " +
                     node.attrs.string_or("message", "they must be equal"));
  }

  // ---------------------------------------------------------------- arrays

  Array array(const IndexNode& node, const IndexInputs& given, const IndexResults& results) const {
    const std::string& op = node.op;
    if (op == "index_input") return input(node, given);
    if (op == "values") return values(node);
    if (op == "combine") return combine(node, results);
    if (op == "join") return join(node, results);
    if (op == "part") return part(results.graphs.at(node.inputs[0]), node.attrs["part"].string());
    if (op == "arange" || op == "full") {
      std::vector<std::int64_t> made(checked_length(node, results.sizes.at(node.inputs[0])));
      if (op == "arange") {
        std::iota(made.begin(), made.end(), 0);
      } else {
        std::fill(made.begin(), made.end(), node.attrs["value"].integer());
      }
      return Array(std::move(made));
    }
    const Array& first = results.arrays.at(node.inputs[0]);
    if (op == "count" || op == "bounded") {
      const std::int64_t size = results.sizes.at(node.inputs[1]);
      check_range(node, 0, first, size, node.inputs[1]);
      return op == "bounded" ? first : count(node, first, size);
    }
    if (op == "take" || op == "put" || op == "select") return pick(node, results, first);
    return alone(node, first);
  }

  Array input(const IndexNode& node, const IndexInputs& given) const {
    const std::string& name = node.attrs["input"].string();
    const InputInfo& item = *plan_.input(name);
    const std::vector<std::int64_t>& all = given.arrays.at(name);
    const Json* part = node.attrs.find("part");
    if (item.kind == "edges" || item.kind == "adjacency") {
      const bool second = part->is_string() ? part->string() == "col" : part->integer() == 1;
      const auto half = static_cast<std::int64_t>(all.size() / 2);
      return Array(all.data() + (second ? half : 0), half);
    }
    const std::int64_t columns = item.columns(), column = part && part->is_integer() ? part->integer() : 0;
    const std::int64_t rows = given.rows.at(name);
    if (columns == 1) return Array(all.data(), rows);
    std::vector<std::int64_t> made(rows);
    for (std::int64_t i = 0; i < rows; ++i) made[i] = all[i * columns + column];
    return Array(std::move(made));
  }

  static Array values(const IndexNode& node) {
    std::vector<std::int64_t> made;
    for (const Json& value : node.attrs["values"].array()) made.push_back(value.integer());
    return Array(std::move(made));
  }

  Array combine(const IndexNode& node, const IndexResults& results) const {
    // an operand is an array, or a number that stands for as many
    std::vector<Array> sides;
    std::vector<bool> repeated;
    std::size_t next = 0;
    for (const char* side : {"left", "right"}) {
      const Json* constant = node.attrs.find(side);
      if (constant) {
        sides.emplace_back(std::vector<std::int64_t>{constant->integer()});
        repeated.push_back(true);
        continue;
      }
      const std::string& name = node.inputs[next++];
      const auto number = results.sizes.find(name);
      repeated.push_back(number != results.sizes.end());
      if (repeated.back()) {
        sides.emplace_back(std::vector<std::int64_t>{number->second});
      } else {
        sides.push_back(results.arrays.at(name));
      }
    }
    const Array &left = sides[0], &right = sides[1];
    if (!repeated[0] && !repeated[1] && left.size != right.size) {
      throw InputError(label(node) + ": " + std::to_string(left.size) + " and " + std::to_string(right.size) +
                       " entries cannot be combined");
    }
    const std::int64_t length = repeated[0] ? right.size : left.size;
    if (length) check_arithmetic(node, left, right);
    std::vector<std::int64_t> made(length);
    for (std::int64_t i = 0; i < length; ++i) {
      const Wide value = calculate(node, left[repeated[0] ? 0 : i], right[repeated[1] ? 0 : i], "0");
      made[i] = static_cast<std::int64_t>(value);
    }
    return Array(std::move(made));
  }

  Array join(const IndexNode& node, const IndexResults& results) const {
    std::int64_t total = 0;
    for (const std::string& name : node.inputs) total += results.arrays.at(name).size;
    std::vector<std::int64_t> made;
    made.reserve(checked_length(node, total));
    for (const std::string& name : node.inputs) {
      const Array& array = results.arrays.at(name);
      made.insert(made.end(), array.begin(), array.end());
    }
    return Array(std::move(made));
  }

  Array pick(const IndexNode& node, const IndexResults& results, const Array& array) const {
    const Array& index = results.arrays.at(node.inputs[1]);
    std::vector<std::int64_t> made;
    if (node.op == "select") {
      same_length(node, array, index);
      for (std::int64_t i = 0; i < array.size; ++i) {
        if (index[i] == 1) made.push_back(array[i]);
      }
    } else if (node.op == "take") {
      check_range(node, 1, index, array.size);
      made.reserve(index.size);
      for (const std::int64_t i : index) made.push_back(array[i]);
    } else {
      const Array& value = results.arrays.at(node.inputs[2]);
      same_length(node, index, value);
      check_range(node, 1, index, array.size);
      made.assign(array.begin(), array.end());
      for (std::int64_t i = 0; i < index.size; ++i) made[index[i]] = value[i];
    }
    return Array(std::move(made));
  }

  // `index` is checked.
  Array count(const IndexNode& node, const Array& index, std::int64_t size) const {
    std::vector<std::int64_t> made(checked_length(node, size), 0);
    for (const std::int64_t i : index) ++made[i];
    return Array(std::move(made));
  }

  // "not", "nonzero", "cumsum", "argsort"
  Array alone(const IndexNode& node, const Array& array) const {
    std::vector<std::int64_t> made;
    if (node.op == "nonzero") {
      for (std::int64_t i = 0; i < array.size; ++i) {
        if (array[i] == 1) made.push_back(i);
      }
      return Array(std::move(made));
    }
    made.resize(array.size);
    if (node.op == "argsort") {
      std::iota(made.begin(), made.end(), 0);
      std::stable_sort(made.begin(), made.end(),
                       [&](std::int64_t a, std::int64_t b) { return array[a] < array[b]; });
    } else if (node.op == "not") {
      for (std::int64_t i = 0; i < array.size; ++i) made[i] = static_cast<std::int64_t>(1 - Wide{array[i]});
    } else if (array.size) {
      const auto [low, high] = span(array);
      check_int64(node, Wide{array.size} * low);
      check_int64(node, Wide{array.size} * high);
      std::partial_sum(array.begin(), array.end(), made.begin());
    }
    return Array(std::move(made));
  }

  static Array part(const Graph& graph, const std::string& name) {
    const Csr csr = graph.sorted();
    if (name != "dst") {
      const std::vector<std::int32_t>& entries = name == "src" ? csr.src : csr.edge_id;
      return Array(std::vector<std::int64_t>(entries.begin(), entries.end()));
    }
    std::vector<std::int64_t> made(csr.src.size());
    for (std::int64_t i = 0; i < graph.destinations; ++i) {
      std::fill(made.begin() + csr.indptr[i], made.begin() + csr.indptr[i + 1], i);
    }
    return Array(std::move(made));
  }

  // ---------------------------------------------------------------- graphs

  Graph graph(const IndexNode& node, const IndexResults& results) const {
    Graph made{results.arrays.at(node.inputs[0]), results.arrays.at(node.inputs[1]),
               results.sizes.at(node.inputs[2]), results.sizes.at(node.inputs[3]), node.attrs["loops"].string()};
    const std::string hint = "; does the graph belong to these features?";
    same_length(node, made.src, made.dst);
    check_range(node, 0, made.src, made.sources, node.inputs[2], hint);
    check_range(node, 1, made.dst, made.destinations, node.inputs[3], hint);
    checked_length(node, std::max(made.sources, made.destinations));
    if (made.loops != "keep" && made.sources != made.destinations) {
      throw InputError(label(node) + " joins " + std::to_string(made.sources) + " sources to " +
                       std::to_string(made.destinations) +
                       " destinations: self-loops need the same rows at both ends");
    }
    const std::int64_t total = made.src.size + (made.appends() ? made.destinations : 0);
    if (total > kInt32Max) {
      throw InputError(label(node) + " has " + std::to_string(total) + " edges, self-loops included: at most " +
                       std::to_string(kInt32Max) + " are supported");
    }
    return made;
  }

  // ---------------------------------------------------------------- arithmetic

  static Wide calculate(const IndexNode& node, Wide left, Wide right, const char* zero) {
    const std::string& function = node.attrs["function"].string();
    if (function == "add") return left + right;
    if (function == "sub") return left - right;
    if (function == "mul") return left * right;
    if (function == "max") return std::max(left, right);
    if (function == "min") return std::min(left, right);
    if (function == "eq") return left == right;
    if (function == "ne") return left != right;
    if (function == "lt") return left < right;
    if (function == "le") return left <= right;
    if (function == "gt") return left > right;
    if (function == "ge") return left >= right;
    if (function == "and") return left != 0 && right != 0;
    if (function == "or") return left != 0 || right != 0;
    if (right == 0) {
      throw InputError(label(node) + ": " + std::to_string(static_cast<std::int64_t>(left)) +
                       " is to be divided by " + zero);
    }
    // as in Python: towards minus infinity, the rest has the sign of the divisor
    const Wide rest = left % right, up = rest != 0 && (rest < 0) != (right < 0);
    return function == "floordiv" ? left / right - up : rest + up * right;
  }

  static std::pair<Wide, Wide> span(const Array& array) {
    const auto [low, high] = std::minmax_element(array.begin(), array.end());
    return {*low, *high};
  }

  // Refuse divisions by zero and results that might not fit 64 bits; operands are not empty.
  static void check_arithmetic(const IndexNode& node, const Array& left, const Array& right) {
    const std::string& function = node.attrs["function"].string();
    const auto [low, high] = span(left);
    const auto [small, large] = span(right);
    if (function == "floordiv" || function == "mod") {
      const auto zero = std::find(right.begin(), right.end(), 0);
      if (zero != right.end()) {
        throw InputError(label(node) + "[" + std::to_string(zero - right.begin()) + "] is to be divided by 0");
      }
      if (small <= -1 && -1 <= large) check_int64(node, -low);
    } else if (function == "add") {
      check_int64(node, low + small);
      check_int64(node, high + large);
    } else if (function == "sub") {
      check_int64(node, low - large);
      check_int64(node, high - small);
    } else if (function == "mul") {
      for (const Wide a : {low, high}) {
        for (const Wide b : {small, large}) check_int64(node, a * b);
      }
    }
  }

  static void check_int64(const IndexNode& node, Wide value) {
    if (value < kInt64Min || value > kInt64Max) {
      throw InputError(label(node) + ": a number near " + decimal(value) + " does not fit 64 bits");
    }
  }

  static std::string decimal(Wide value) {
    std::string digits;
    const bool negative = value < 0;
    do {
      const auto digit = static_cast<int>(value % 10);
      digits += static_cast<char>('0' + (digit < 0 ? -digit : digit));
      value /= 10;
    } while (value != 0);
    if (negative) digits += '-';
    return std::string(digits.rbegin(), digits.rend());
  }

  static std::int64_t checked_size(const IndexNode& node, Wide size) {
    if (size < 0) throw InputError(label(node) + " would be " + decimal(size) + ": a size cannot be negative");
    check_int64(node, size);
    return static_cast<std::int64_t>(size);
  }

  static std::int64_t checked_length(const IndexNode& node, std::int64_t size) {
    if (size > kInt32Max) {
      throw InputError(label(node) + " would have " + std::to_string(size) + " entries or rows: at most " +
                       std::to_string(kInt32Max) + " are supported");
    }
    return size;
  }

  static void same_length(const IndexNode& node, const Array& left, const Array& right) {
    if (left.size != right.size) {
      throw InputError(label(node) + ": " + std::to_string(left.size) + " and " + std::to_string(right.size) +
                       " entries do not belong together");
    }
  }

  // ---------------------------------------------------------------- checks and words

  void check_range(const IndexNode& node, int operand, const Array& index, std::int64_t size,
                   const std::string& size_name = "", const std::string& hint = "") const {
    const auto bad =
        std::find_if(index.begin(), index.end(), [&](std::int64_t i) { return i < 0 || i >= size; });
    if (bad == index.end()) return;
    const std::string where = place(node, node.inputs[operand], bad - index.begin());
    const std::string wrong =
        *bad < 0 ? "is negative" : "is not below " + std::to_string(size) + words_after_size(size_name);
    const std::string right = size ? "every index must be in 0 .. " + std::to_string(size - 1)
                                   : std::string("there is nothing that it could name");
    throw InputError(where + " = " + std::to_string(*bad) + " " + wrong + ": " + right + hint);
  }

  static std::string label(const IndexNode& node) { return node.attrs.string_or("label", node.name); }

  // Words for an entry of the array `name`, an operand of `node`.
  std::string place(const IndexNode& node, const std::string& name, std::int64_t position) const {
    const std::string number = std::to_string(position);
    const auto origin = origins_.find(name);
    if (origin == origins_.end()) return label(node) + "[" + number + "]";
    const InputInfo& item = *plan_.input(origin->second->attrs["input"].string());
    const std::string of = node.attrs.string_or("label", item.name);
    const Json* part = origin->second->attrs.find("part");
    if (item.kind == "edges") return of + "[" + std::to_string(part->integer()) + ", " + number + "]";
    if (item.kind == "adjacency") return of + ": " + part->string() + " index " + number;
    std::string columns;
    std::int64_t column = part && part->is_integer() ? part->integer() : 0;
    for (auto dim = item.shape.rbegin(); dim != item.shape.rend(); ++dim) {
      columns = ", " + std::to_string(column % *dim) + columns;
      column /= *dim;
    }
    return of + "[" + number + columns + "]";
  }

  // The input that the size `name` repeats, and its axis (-1: the entries of an "adjacency").
  std::pair<const InputInfo*, std::int64_t> size_source(const std::string& name) const {
    const auto found = nodes_.find(name);
    const IndexNode* node = found == nodes_.end() ? nullptr : found->second;
    if (node && node->op == "length") {
      const auto origin = origins_.find(node->inputs[0]);
      node = origin == origins_.end() ? nullptr : origin->second;
    }
    if (!node || !one_of(node->op, {"rows", "size_input", "index_input"})) return {nullptr, 0};
    const InputInfo* item = plan_.input(node->attrs["input"].string());
    const Json* axis = node->attrs.find("axis");
    if (node->op == "size_input") return {item, axis && axis->is_integer() ? axis->integer() : 0};
    return {item, item->kind == "adjacency" ? -1 : 0};
  }

  static std::string rows_word(const InputInfo& item, std::int64_t axis) {
    if (item.kind == "edges") return "edges";
    if (item.kind != "adjacency") return "rows";
    return axis < 0 ? "entries" : axis == 0 ? "rows" : "columns";
  }

  std::string words_after_size(const std::string& name) const {
    const auto [item, axis] = size_source(name);
    if (!item) return "";
    if (item->kind == "size") return ", which is " + item->name;
    return ", the number of " + rows_word(*item, axis) + " of " + item->name;
  }

  std::string size_in_words(const std::string& name, std::int64_t size) const {
    const auto [item, axis] = size_source(name);
    const std::string number = std::to_string(size);
    if (!item) return label(*nodes_.at(name)) + " is " + number;
    if (item->kind == "size") return item->name + " is " + number;
    return item->name + " has " + number + " " + rows_word(*item, axis);
  }

  const Plan& plan_;
  std::map<std::string, const IndexNode*> nodes_;
  std::map<std::string, const IndexNode*> origins_;
};

}  // namespace gnnquant::detail
