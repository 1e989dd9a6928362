// SPDX-License-Identifier: Apache-2.0
// AlignedBuffer: float storage on cache-line boundaries, uninitialised until written.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <new>
#include <utility>

namespace cae {

/// Owns `size` floats aligned to 64 bytes. Movable, not copyable. Throws std::bad_alloc.
class AlignedBuffer {
 public:
  static constexpr std::align_val_t kAlignment{64};

  AlignedBuffer() = default;
  explicit AlignedBuffer(int64_t size) : size_(size) {
    constexpr int64_t kLimit = std::numeric_limits<int64_t>::max() / 8;
    if (size < 0 || size > kLimit) {
      throw std::bad_alloc();
    }
    if (size > 0) {
      const size_t bytes = static_cast<size_t>(size) * sizeof(float);
      data_ = static_cast<float*>(::operator new(bytes, kAlignment));
    }
  }
  AlignedBuffer(AlignedBuffer&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}
  AlignedBuffer& operator=(AlignedBuffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
  }
  AlignedBuffer(const AlignedBuffer&) = delete;
  AlignedBuffer& operator=(const AlignedBuffer&) = delete;
  ~AlignedBuffer() {
    if (data_ != nullptr) {
      ::operator delete(data_, kAlignment);
    }
  }

  float* data() { return data_; }
  const float* data() const { return data_; }
  int64_t size() const { return size_; }

 private:
  float* data_ = nullptr;
  int64_t size_ = 0;
};

}  // namespace cae
