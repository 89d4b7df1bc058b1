// JSON as artifacts hold it (RFC 8259, and Python's NaN and Infinity), read only.
#pragma once

#include <cerrno>
#include <cstdint>
#include <cstdlib>
#include <limits>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "gnnquant/error.hpp"

namespace gnnquant {

// One value. Accessors throw detail::Malformed where the value has another type.
class Json {
 public:
  using Array = std::vector<Json>;
  using Object = std::vector<std::pair<std::string, Json>>;  // in the order of the text

  Json() = default;
  template <typename T>
  explicit Json(T value) : value_(std::move(value)) {}

  // The value of `text`, all of it.
  static Json parse(std::string_view text);

  bool is_null() const { return std::holds_alternative<std::nullptr_t>(value_); }
  bool is_integer() const { return std::holds_alternative<std::int64_t>(value_); }
  bool is_string() const { return std::holds_alternative<std::string>(value_); }
  bool is_object() const { return std::holds_alternative<Object>(value_); }

  bool boolean() const { return get<bool>("true or false"); }
  std::int64_t integer() const { return get<std::int64_t>("an integer"); }
  const std::string& string() const { return get<std::string>("a string"); }
  const Array& array() const { return get<Array>("an array"); }
  const Object& object() const { return get<Object>("an object"); }

  // The member `key` of an object, or null.
  const Json* find(std::string_view key) const {
    for (const auto& [name, value] : object()) {
      if (name == key) return &value;
    }
    return nullptr;
  }
  const Json& operator[](std::string_view key) const {
    const Json* found = find(key);
    detail::need(found != nullptr, "there is no member '" + std::string(key) + "'");
    return *found;
  }
  std::string string_or(std::string_view key, const std::string& otherwise) const {
    const Json* found = find(key);
    return found && found->is_string() ? found->string() : otherwise;
  }

 private:
  template <typename T>
  const T& get(const char* what) const {
    const T* value = std::get_if<T>(&value_);
    detail::need(value != nullptr, std::string("a value is not ") + what);
    return *value;
  }

  std::variant<std::nullptr_t, bool, std::int64_t, double, std::string, Array, Object> value_ = nullptr;
};

namespace detail {

class JsonReader {
 public:
  explicit JsonReader(std::string_view text) : text_(text) {}

  Json all() {
    Json result = value(0);
    space();
    need(at_ == text_.size(), "there is text behind the JSON value");
    return result;
  }

 private:
  static constexpr int kDeepest = 200;

  void space() {
    while (at_ < text_.size() && std::string_view(" \t\r\n").find(text_[at_]) != std::string_view::npos) ++at_;
  }
  char peek() {
    space();
    need(at_ < text_.size(), "JSON ends too early");
    return text_[at_];
  }
  bool take(std::string_view word) {
    if (text_.substr(at_, word.size()) != word) return false;
    at_ += word.size();
    return true;
  }
  void expect(char c) {
    need(peek() == c, std::string("JSON lacks '") + c + "'");
    ++at_;
  }

  Json value(int depth) {
    need(depth < kDeepest, "JSON is nested too deeply");
    switch (peek()) {
      case '{':
        return Json(members(depth));
      case '[':
        return Json(items(depth));
      case '"':
        return Json(text());
      default:
        return scalar();
    }
  }

  Json scalar() {
    constexpr double infinity = std::numeric_limits<double>::infinity();
    if (take("null")) return Json();
    if (take("true")) return Json(true);
    if (take("false")) return Json(false);
    if (take("NaN")) return Json(std::numeric_limits<double>::quiet_NaN());
    if (take("Infinity")) return Json(infinity);
    if (take("-Infinity")) return Json(-infinity);
    return number();
  }

  Json number() {
    std::size_t end = at_;
    bool whole = true;
    while (end < text_.size() && std::string_view("+-.eE0123456789").find(text_[end]) != std::string_view::npos) {
      whole = whole && std::string_view(".eE").find(text_[end]) == std::string_view::npos;
      ++end;
    }
    const std::string digits(text_.substr(at_, end - at_));
    need(!digits.empty(), "JSON has no value where there should be one");
    at_ = end;
    char* stop = nullptr;
    errno = 0;
    const long long exact = std::strtoll(digits.c_str(), &stop, 10);
    if (whole && errno == 0 && *stop == '\0') return Json(static_cast<std::int64_t>(exact));
    const double rounded = std::strtod(digits.c_str(), &stop);
    need(*stop == '\0', "JSON has the number '" + digits + "'");
    return Json(rounded);
  }

  Json::Object members(int depth) {
    Json::Object result;
    expect('{');
    if (peek() == '}') {
      ++at_;
      return result;
    }
    while (true) {
      peek();
      std::string name = text();
      expect(':');
      result.emplace_back(std::move(name), value(depth + 1));
      if (peek() == '}') break;
      expect(',');
    }
    ++at_;
    return result;
  }

  Json::Array items(int depth) {
    Json::Array result;
    expect('[');
    if (peek() == ']') {
      ++at_;
      return result;
    }
    while (true) {
      result.push_back(value(depth + 1));
      if (peek() == ']') break;
      expect(',');
    }
    ++at_;
    return result;
  }

  std::string text() {
    expect('"');
    std::string result;
    while (true) {
      need(at_ < text_.size(), "a JSON string does not end");
      const char c = text_[at_++];
      if (c == '"') return result;
      if (c == '\\') {
        escape(result);
      } else {
        result += c;
      }
    }
  }

  void escape(std::string& result) {
    need(at_ < text_.size(), "a JSON string does not end");
    const char c = text_[at_++];
    constexpr std::string_view kinds = "\"\\/bfnrt", plain = "\"\\/\b\f\n\r\t";
    if (const auto place = kinds.find(c); place != std::string_view::npos) {
      result += plain[place];
      return;
    }
    need(c == 'u', "a JSON string has an unknown escape");
    std::uint32_t code = hex();
    if (code >= 0xD800 && code < 0xDC00 && take("\\u")) {
      code = 0x10000 + ((code - 0xD800) << 10) + ((hex() - 0xDC00) & 0x3FF);
    }
    encode(code, result);
  }

  std::uint32_t hex() {
    need(at_ + 4 <= text_.size(), "a JSON string does not end");
    std::uint32_t code = 0;
    for (int i = 0; i < 4; ++i) {
      const char c = text_[at_++];
      const auto digit = std::string_view("0123456789abcdef").find(static_cast<char>(c >= 'A' && c <= 'F' ? c + 32 : c));
      need(digit != std::string_view::npos, "a JSON string has an unknown escape");
      code = code * 16 + static_cast<std::uint32_t>(digit);
    }
    return code;
  }

  static void encode(std::uint32_t code, std::string& result) {
    const auto put = [&](std::uint32_t byte) { result += static_cast<char>(byte); };
    if (code < 0x80) {
      put(code);
    } else if (code < 0x800) {
      put(0xC0 | code >> 6);
      put(0x80 | (code & 0x3F));
    } else if (code < 0x10000) {
      put(0xE0 | code >> 12);
      put(0x80 | (code >> 6 & 0x3F));
      put(0x80 | (code & 0x3F));
    } else {
      put(0xF0 | code >> 18);
      put(0x80 | (code >> 12 & 0x3F));
      put(0x80 | (code >> 6 & 0x3F));
      put(0x80 | (code & 0x3F));
    }
  }

  std::string_view text_;
  std::size_t at_ = 0;
};

}  // namespace detail

inline Json Json::parse(std::string_view text) { return detail::JsonReader(text).all(); }

}  // namespace gnnquant
