// SPDX-License-Identifier: Apache-2.0
// Bytes of a fuzzer as arguments: every sequence of bytes is some sequence of values; when it is
// used up, zeros follow. A target defines LLVMFuzzerTestOneInput and says with CAE_FUZZ_CHECK what
// must hold of whatever the code under test accepts.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

namespace cae::fuzz {

class Bytes {
 public:
  Bytes(const uint8_t* data, size_t size) : data_(data), left_(size) {}

  bool empty() const { return left_ == 0; }

  uint8_t byte() {
    if (left_ == 0) {
      return 0;
    }
    --left_;
    return *data_++;
  }

  /// Any value of T, bit by bit.
  template <class T>
  T raw() {
    uint8_t bytes[sizeof(T)];
    for (uint8_t& each : bytes) {
      each = byte();
    }
    T value;
    std::memcpy(&value, bytes, sizeof(T));
    return value;
  }

  /// In [least, most], a range of at most 256 values.
  int64_t small(int64_t least, int64_t most) { return least + byte() % (most - least + 1); }

  /// A size as mistakes make it: mostly small, sometimes any 64 bits.
  int64_t size() {
    const uint8_t kind = byte();
    return kind < 224 ? kind % 8 : kind < 240 ? raw<int16_t>() : raw<int64_t>();
  }

  /// Finite and ordinary, or one time in sixteen any bits: NaN, infinities, denormals.
  float number() {
    const uint8_t kind = byte();
    return kind % 16 == 15 ? raw<float>() : static_cast<float>(raw<int16_t>()) / 4096.0F;
  }

  std::vector<float> numbers(int64_t count) {
    std::vector<float> values(static_cast<size_t>(count));
    for (float& value : values) {
      value = number();
    }
    return values;
  }

 private:
  const uint8_t* data_;
  size_t left_;
};

/// True if `body` returns, false if it refuses its arguments with one line. Other exceptions pass,
/// and end the process.
template <class Body>
bool accepts(Body&& body) {
  try {
    body();
    return true;
  } catch (const std::invalid_argument& error) {
    const std::string text = error.what();
    if (text.empty() || text.find('\n') != std::string::npos) {
      std::fprintf(stderr, "not one line: \"%s\"\n", text.c_str());
      std::abort();
    }
    return false;
  }
}

}  // namespace cae::fuzz

/// Ends the process unless `condition` holds.
#define CAE_FUZZ_CHECK(condition)                                                         \
  do {                                                                                    \
    if (!(condition)) {                                                                   \
      std::fprintf(stderr, "%s:%d: does not hold: %s\n", __FILE__, __LINE__, #condition); \
      std::abort();                                                                       \
    }                                                                                     \
  } while (false)

// NOLINTNEXTLINE(readability-identifier-naming): libFuzzer's name
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);
