// Runs artifacts, each on the calls of a file, and writes what comes of each call: see tests/runtime/native.py.
//
//   run_artifact FOLDER COUNT     reads FOLDER/0.gnnq and FOLDER/0.calls, writes FOLDER/0.results, and so on
//
// All numbers are int64; strings are a length and bytes. CALLS: their number; for each the number of inputs; for each
// input name, kind, number of dimensions, dimensions, number of further numbers, these, bytes of data, data (places
// before values). RESULTS: "loaded", or "ArtifactError" and a message; for each call a word ("ok", "InputError", ...); then the number of outputs and of each the
// number of dimensions, dimensions and floats, or the message; last the bytes of the workspace.
#include <fstream>
#include <memory>

#include "gnnquant/gnnquant.hpp"

namespace {

class Reader {
 public:
  explicit Reader(const char* path) : file_(path, std::ios::binary) {}

  std::int64_t number() {
    std::int64_t value = 0;
    file_.read(reinterpret_cast<char*>(&value), sizeof value);
    if (!file_) throw std::runtime_error("the file of calls is too short");
    return value;
  }
  gnnquant::Shape numbers() {
    gnnquant::Shape values(number());
    for (std::int64_t& value : values) value = number();
    return values;
  }
  std::string bytes() {
    std::string data(number(), '\0');
    file_.read(data.data(), static_cast<std::streamsize>(data.size()));
    return data;
  }

 private:
  std::ifstream file_;
};

class Writer {
 public:
  explicit Writer(const char* path) : file_(path, std::ios::binary) {}

  void number(std::int64_t value) { file_.write(reinterpret_cast<const char*>(&value), sizeof value); }
  void bytes(std::string_view data) {
    number(static_cast<std::int64_t>(data.size()));
    file_.write(data.data(), static_cast<std::streamsize>(data.size()));
  }
  void outputs(const std::vector<gnnquant::Output>& outputs) {
    bytes("ok");
    number(static_cast<std::int64_t>(outputs.size()));
    for (const gnnquant::Output& output : outputs) {
      number(static_cast<std::int64_t>(output.shape().size()));
      for (const std::int64_t dim : output.shape()) number(dim);
      bytes({reinterpret_cast<const char*>(output.data()), 4 * static_cast<std::size_t>(output.size())});
    }
  }

 private:
  std::ofstream file_;
};

// The memory that the inputs of one call refer to must outlive it.
struct Call {
  std::vector<std::string> data;
  gnnquant::Inputs inputs;

  explicit Call(Reader& reader) : data(reader.number()) {
    for (std::string& bytes : data) {
      const std::string name = reader.bytes(), kind = reader.bytes();
      gnnquant::Shape shape = reader.numbers();
      const gnnquant::Shape extra = reader.numbers();
      bytes = reader.bytes();
      const auto* integers = reinterpret_cast<const std::int64_t*>(bytes.data());
      if (kind == "rows") inputs.rows(name, reinterpret_cast<const float*>(bytes.data()), shape);
      if (kind == "edges") inputs.edges(name, integers, shape[1]);
      if (kind == "index") inputs.index(name, integers, shape);
      if (kind == "mask") inputs.mask(name, reinterpret_cast<const bool*>(bytes.data()), shape);
      if (kind == "size") inputs.size(name, extra[0]);
      if (kind == "adjacency") {
        const auto* values = reinterpret_cast<const float*>(bytes.data() + 16 * shape[1]);
        inputs.adjacency(name, integers, values, shape[1], extra[0], extra[1]);
      }
    }
  }
};

void run(gnnquant::Model& model, Reader& reader, Writer& writer) {
  const Call call(reader);
  const auto failed = [&](const char* kind, const std::exception& error) {
    writer.bytes(kind);
    writer.bytes(error.what());
  };
  try {
    writer.outputs(model(call.inputs));
  } catch (const gnnquant::InputError& error) {
    failed("InputError", error);
  } catch (const gnnquant::BackendError& error) {
    failed("BackendError", error);
  }
}

// What is not known to be wrong with an artifact or a call ends the program.
void run_file(const std::string& path) {
  Writer writer((path + ".results").c_str());
  std::unique_ptr<gnnquant::Model> model;
  try {
    model = std::make_unique<gnnquant::Model>(path + ".gnnq");
  } catch (const gnnquant::ArtifactError& error) {
    writer.bytes("ArtifactError");
    writer.bytes(error.what());
    return;
  }
  writer.bytes("loaded");
  Reader reader((path + ".calls").c_str());
  for (std::int64_t calls = reader.number(); calls > 0; --calls) run(*model, reader, writer);
  writer.number(static_cast<std::int64_t>(model->workspace_bytes()));
}

}  // namespace

int main(int count, char** arguments) {
  if (count != 3) throw std::runtime_error("usage: run_artifact FOLDER COUNT");
  for (int i = 0; i < std::stoi(arguments[2]); ++i) run_file(arguments[1] + ("/" + std::to_string(i)));
}
