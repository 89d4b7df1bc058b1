// SHA-256 (FIPS 180-4) and zlib streams (RFC 1950, 1951), as artifacts use them.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "gnnquant/error.hpp"

namespace gnnquant::detail {

// 32 bytes.
inline std::string sha256(std::string_view first, std::string_view second = {}) {
  static constexpr std::array<std::uint32_t, 64> kRound = {
      0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
      0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
      0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
      0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
      0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
      0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
      0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
      0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};
  std::array<std::uint32_t, 8> state = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                        0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
  const auto turn = [](std::uint32_t x, int by) { return x >> by | x << (32 - by); };
  const auto block = [&](const unsigned char* bytes) {
    std::array<std::uint32_t, 64> w{};
    for (int i = 0; i < 16; ++i) {
      w[i] = std::uint32_t{bytes[4 * i]} << 24 | std::uint32_t{bytes[4 * i + 1]} << 16 |
             std::uint32_t{bytes[4 * i + 2]} << 8 | std::uint32_t{bytes[4 * i + 3]};
    }
    for (int i = 16; i < 64; ++i) {
      const std::uint32_t a = w[i - 15], b = w[i - 2];
      w[i] = w[i - 16] + (turn(a, 7) ^ turn(a, 18) ^ a >> 3) + w[i - 7] + (turn(b, 17) ^ turn(b, 19) ^ b >> 10);
    }
    auto s = state;
    for (int i = 0; i < 64; ++i) {
      const std::uint32_t one = turn(s[4], 6) ^ turn(s[4], 11) ^ turn(s[4], 25);
      const std::uint32_t first_sum = s[7] + one + ((s[4] & s[5]) ^ (~s[4] & s[6])) + kRound[i] + w[i];
      const std::uint32_t zero = turn(s[0], 2) ^ turn(s[0], 13) ^ turn(s[0], 22);
      const std::uint32_t second_sum = zero + ((s[0] & s[1]) ^ (s[0] & s[2]) ^ (s[1] & s[2]));
      s = {first_sum + second_sum, s[0], s[1], s[2], s[3] + first_sum, s[4], s[5], s[6]};
    }
    for (int i = 0; i < 8; ++i) state[i] += s[i];
  };
  std::array<unsigned char, 64> pending{};
  std::size_t held = 0;
  const auto add = [&](std::string_view data) {
    std::size_t at = 0;
    while (at < data.size()) {
      if (held == 0 && data.size() - at >= 64) {
        block(reinterpret_cast<const unsigned char*>(data.data()) + at);
        at += 64;
        continue;
      }
      const std::size_t some = std::min(64 - held, data.size() - at);
      std::memcpy(pending.data() + held, data.data() + at, some);
      held += some;
      at += some;
      if (held == 64) {
        block(pending.data());
        held = 0;
      }
    }
  };
  const std::uint64_t bits = 8 * static_cast<std::uint64_t>(first.size() + second.size());
  add(first);
  add(second);
  std::string tail(1, '\x80');
  tail.append((119 - held) % 64, '\0');
  for (int i = 7; i >= 0; --i) tail += static_cast<char>(bits >> 8 * i & 0xFF);
  add(tail);
  std::string digest;
  for (const std::uint32_t word : state) {
    for (int i = 3; i >= 0; --i) digest += static_cast<char>(word >> 8 * i & 0xFF);
  }
  return digest;
}

inline std::string hexadecimal(std::string_view bytes) {
  std::string result;
  for (const char c : bytes) {
    const auto byte = static_cast<unsigned char>(c);
    result += "0123456789abcdef"[byte >> 4];
    result += "0123456789abcdef"[byte & 15];
  }
  return result;
}

// One zlib stream, which must give `size` bytes and fill `packed`.
class Inflater {
 public:
  Inflater(std::string_view packed, std::size_t size) : packed_(packed), size_(size) {}

  std::string run() {
    const std::uint32_t method = bits(8), flags = bits(8);
    need(method % 16 == 8 && (256 * method + flags) % 31 == 0 && !(flags & 32), "it is no zlib stream");
    out_.reserve(size_);
    bool last = false;
    while (!last) {
      last = bits(1) == 1;
      const std::uint32_t kind = bits(2);
      need(kind < 3, "a zlib stream has an unknown block");
      if (kind == 0) {
        stored();
      } else {
        compressed(kind == 1);
      }
    }
    held_ = 0;  // the rest of a byte is padding
    buffer_ = 0;
    std::uint32_t a = 1, b = 0;
    for (const char c : out_) {
      a = (a + static_cast<unsigned char>(c)) % 65521;
      b = (b + a) % 65521;
    }
    std::uint32_t check = 0;
    for (int i = 0; i < 4; ++i) check = check << 8 | bits(8);
    need(check == (b << 16 | a), "the checksum of a zlib stream does not match");
    need(at_ == packed_.size(), "it does not end where it should");
    need(out_.size() == size_, "it has " + std::to_string(out_.size()) + " bytes instead of " + std::to_string(size_));
    return std::move(out_);
  }

 private:
  static constexpr int kLongest = 15;

  // A canonical Huffman code: how many words have each length, and the symbols in the order of their words.
  struct Code {
    std::array<std::uint16_t, kLongest + 1> count{};
    std::vector<std::uint16_t> symbols;

    Code(const std::uint8_t* lengths, int number) {
      for (int length = 1; length <= kLongest; ++length) {
        for (int symbol = 0; symbol < number; ++symbol) {
          if (lengths[symbol] != length) continue;
          ++count[length];
          symbols.push_back(static_cast<std::uint16_t>(symbol));
        }
      }
      std::int64_t room = 1;
      for (int length = 1; length <= kLongest; ++length) {
        room = 2 * room - count[length];
        need(room >= 0, "a zlib stream has too many words of one length");
      }
    }
  };

  std::uint32_t bits(int number) {
    while (held_ < number) {
      need(at_ < packed_.size(), "a zlib stream ends too early");
      buffer_ |= std::uint64_t{static_cast<unsigned char>(packed_[at_++])} << held_;
      held_ += 8;
    }
    const auto result = static_cast<std::uint32_t>(buffer_ & ((std::uint64_t{1} << number) - 1));
    buffer_ >>= number;
    held_ -= number;
    if (held_ == 0) buffer_ = 0;
    return result;
  }

  int symbol(const Code& code) {
    int word = 0, first = 0, place = 0;
    for (int length = 1; length <= kLongest; ++length) {
      word |= static_cast<int>(bits(1));
      const int count = code.count[length];
      if (word - first < count) return code.symbols[place + word - first];
      place += count;
      first = 2 * (first + count);
      word *= 2;
    }
    throw Malformed("a zlib stream has an unknown word");
  }

  void room_for(std::size_t more) { need(more <= size_ - out_.size(), "it is longer than it should be"); }

  void stored() {
    held_ = 0;
    buffer_ = 0;
    const std::uint32_t length = bits(16);
    need(bits(16) == (length ^ 0xFFFF), "a zlib stream has a block of no clear length");
    need(length <= packed_.size() - at_, "a zlib stream ends too early");
    room_for(length);
    out_.append(packed_.substr(at_, length));
    at_ += length;
  }

  void compressed(bool fixed) {
    std::array<std::uint8_t, 320> lengths{};
    int literals = 288, distances = 30;
    if (fixed) {
      for (int i = 0; i < 288; ++i) lengths[i] = i < 144 ? 8 : i < 256 ? 9 : i < 280 ? 7 : 8;
      std::memset(lengths.data() + 288, 5, 30);
    } else {
      literals = static_cast<int>(bits(5)) + 257;
      distances = static_cast<int>(bits(5)) + 1;
      need(literals <= 286 && distances <= 30, "a zlib stream has too many symbols");
      read_lengths(lengths.data(), literals + distances);
    }
    const Code literal(lengths.data(), literals), distance(lengths.data() + literals, distances);
    while (true) {
      const int found = symbol(literal);
      if (found < 256) {
        room_for(1);
        out_ += static_cast<char>(found);
      } else if (found == 256) {
        return;
      } else {
        copy(found - 257, distance);
      }
    }
  }

  void copy(int kind, const Code& distance) {
    need(kind < 29, "a zlib stream has an unknown length");
    std::size_t length = 258;
    if (kind < 28) {
      const int extra = kind < 8 ? 0 : kind / 4 - 1;
      length = (kind < 8 ? kind : (4 + kind % 4) << extra) + 3 + bits(extra);
    }
    const int far = symbol(distance);
    const int extra = far < 4 ? 0 : far / 2 - 1;
    const std::size_t back = (far < 4 ? far : (2 + far % 2) << extra) + 1 + bits(extra);
    need(back <= out_.size(), "a zlib stream reaches back too far");
    room_for(length);
    for (std::size_t i = 0; i < length; ++i) out_ += out_[out_.size() - back];
  }

  void read_lengths(std::uint8_t* lengths, int number) {
    static constexpr std::array<std::uint8_t, 19> kOrder = {16, 17, 18, 0, 8,  7, 9,  6, 10, 5,
                                                            11, 4,  12, 3, 13, 2, 14, 1, 15};
    std::array<std::uint8_t, 19> own{};
    const int given = static_cast<int>(bits(4)) + 4;
    for (int i = 0; i < given; ++i) own[kOrder[i]] = static_cast<std::uint8_t>(bits(3));
    const Code code(own.data(), 19);
    int at = 0;
    while (at < number) {
      const int found = symbol(code);
      if (found < 16) {
        lengths[at++] = static_cast<std::uint8_t>(found);
        continue;
      }
      need(found != 16 || at > 0, "a zlib stream repeats what is not there");
      const std::uint8_t value = found == 16 ? lengths[at - 1] : 0;
      const int times = found == 16 ? 3 + bits(2) : found == 17 ? 3 + bits(3) : 11 + bits(7);
      need(times <= number - at, "a zlib stream has too many lengths");
      std::memset(lengths + at, value, times);
      at += times;
    }
  }

  std::string_view packed_;
  std::size_t size_;
  std::size_t at_ = 0;
  std::uint64_t buffer_ = 0;
  int held_ = 0;
  std::string out_;
};

}  // namespace gnnquant::detail
