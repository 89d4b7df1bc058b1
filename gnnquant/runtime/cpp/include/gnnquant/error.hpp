// Errors that gnnquant raises on purpose: each message says what was wrong and what to do.
#pragma once

#include <stdexcept>
#include <string>

namespace gnnquant {

class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// An artifact is truncated, altered, malformed, of another format or for another machine.
class ArtifactError : public Error {
 public:
  using Error::Error;
};

// An input of a call is wrong.
class InputError : public Error {
 public:
  using Error::Error;
};

// The TVM runtime is not as it should be, or a kernel failed.
class BackendError : public Error {
 public:
  using Error::Error;
};

namespace detail {

// Content that does not follow the file format; becomes an ArtifactError that names the file.
class Malformed : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

inline void need(bool condition, const std::string& wrong) {
  if (!condition) throw Malformed(wrong);
}

// The product of two numbers that are not negative.
inline long long times(long long a, long long b) {
  long long result = 0;
  need(!__builtin_mul_overflow(a, b, &result), "a shape is too large");
  return result;
}

}  // namespace detail
}  // namespace gnnquant
