// Classifies the nodes of a graph without Python: classify MODEL.gnnq FOLDER
//
// FOLDER holds x.npy (float32 [nodes, features]), edge_index.npy (int64 [2, edges]) and, if the accuracy is wanted,
// y.npy (int64 [nodes]); prepare.py writes them. Prints one class a line; the accuracy goes to standard error.
#include <gnnquant/gnnquant.hpp>

#include <algorithm>
#include <cctype>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <iostream>
#include <string>
#include <vector>

namespace {

// An array that numpy.save wrote in row-major order.
template <typename T>
struct Npy {
  gnnquant::Shape shape;
  std::vector<T> data;

  Npy(const std::string& path, const std::string& type) {
    std::ifstream file(path, std::ios::binary);
    if (!file) throw gnnquant::InputError(path + " cannot be read");
    char start[10] = {};
    file.read(start, sizeof start);
    if (!file || std::memcmp(start, "\x93NUMPY\x01", 7) != 0) throw gnnquant::InputError(path + " is no .npy file");
    std::string header(static_cast<unsigned char>(start[8]) + 256 * static_cast<unsigned char>(start[9]), '\0');
    file.read(header.data(), static_cast<std::streamsize>(header.size()));
    if (header.find("'descr': '" + type + "'") == std::string::npos ||
        header.find("'fortran_order': False") == std::string::npos) {
      throw gnnquant::InputError(path + " is not of type " + type + " in row-major order");
    }
    std::int64_t count = 1;
    for (std::size_t at = header.find('(') + 1; header.at(at) != ')'; ++at) {
      if (!std::isdigit(static_cast<unsigned char>(header[at]))) continue;
      std::size_t used = 0;
      shape.push_back(std::stoll(header.substr(at), &used));
      count *= shape.back();
      at += used - 1;
    }
    data.resize(static_cast<std::size_t>(count));
    file.read(reinterpret_cast<char*>(data.data()), static_cast<std::streamsize>(sizeof(T) * data.size()));
    if (!file) throw gnnquant::InputError(path + " is too short");
  }
};

std::vector<std::int64_t> classes(const gnnquant::Output& scores) {
  const std::int64_t nodes = scores.shape()[0], columns = scores.shape()[1];
  std::vector<std::int64_t> best;
  for (std::int64_t i = 0; i < nodes; ++i) {
    const float* row = scores.data() + i * columns;
    best.push_back(std::max_element(row, row + columns) - row);
  }
  return best;
}

int run(const std::string& artifact, const std::string& folder) {
  const Npy<float> x(folder + "/x.npy", "<f4");
  const Npy<std::int64_t> edges(folder + "/edge_index.npy", "<i8");
  if (edges.shape.size() != 2 || edges.shape[0] != 2) throw gnnquant::InputError("edge_index.npy is not [2, edges]");

  gnnquant::Model model(artifact);
  gnnquant::Inputs inputs;
  inputs.rows("x", x.data.data(), x.shape);
  inputs.edges("edge_index", edges.data.data(), edges.shape[1]);
  const std::vector<gnnquant::Output> outputs = model(inputs);
  const std::vector<std::int64_t> found = classes(outputs.at(0));
  for (const std::int64_t label : found) std::cout << label << "\n";

  if (std::ifstream(folder + "/y.npy").is_open()) {
    const Npy<std::int64_t> y(folder + "/y.npy", "<i8");
    if (y.data.size() != found.size()) throw gnnquant::InputError("y.npy has another number of nodes than x.npy");
    std::int64_t right = 0;
    for (std::size_t i = 0; i < found.size(); ++i) right += found[i] == y.data[i];
    std::cerr << right << " of " << found.size() << " classes are right\n";
  }
  return 0;
}

}  // namespace

int main(int count, char** arguments) {
  if (count != 3) {
    std::cerr << "usage: classify MODEL.gnnq FOLDER\n";
    return 2;
  }
  try {
    return run(arguments[1], arguments[2]);
  } catch (const std::exception& error) {
    std::cerr << "classify: " << error.what() << "\n";
    return 1;
  }
}
