// SPDX-License-Identifier: Apache-2.0
// AlignedBuffer: float storage on cache-line boundaries, uninitialised until written.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>

namespace cae {

/// Owns `size` floats aligned to 64 bytes; large ones lie on huge pages where the system has some,
/// which saves the misses of address translation. Movable, not copyable. Throws std::bad_alloc.
class AlignedBuffer {
 public:
  static constexpr int64_t kAlignment = 64;  // bytes

  AlignedBuffer() = default;
  explicit AlignedBuffer(int64_t size);
  AlignedBuffer(AlignedBuffer&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}
  AlignedBuffer& operator=(AlignedBuffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
  }
  AlignedBuffer(const AlignedBuffer&) = delete;
  AlignedBuffer& operator=(const AlignedBuffer&) = delete;
  ~AlignedBuffer();

  float* data() { return data_; }
  const float* data() const { return data_; }
  int64_t size() const { return size_; }

 private:
  float* data_ = nullptr;
  int64_t size_ = 0;
};

}  // namespace cae
