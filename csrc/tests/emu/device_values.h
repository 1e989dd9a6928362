// SPDX-License-Identifier: Apache-2.0
// Device memory of a test: made from what the host has, read back as a vector.
#pragma once

#include <cstdint>
#include <vector>

#include "cuda/gpu_runtime.h"

namespace cae::testing {

template <class T>
class DeviceArray {
 public:
  DeviceArray(const std::vector<T>& values)  // NOLINT: a vector stands for its copy on the device
      : buffer_(0, values.size() * sizeof(T)), size_(values.size()) {
    gpu::copy_to_device(buffer_.data(), values.data(), buffer_.bytes(), nullptr);
    gpu::synchronize(nullptr);
  }
  DeviceArray(size_t size, T value) : DeviceArray(std::vector<T>(size, value)) {}

  T* data() const { return buffer_.as<T>(); }
  void seal() const { buffer_.seal(); }

  std::vector<T> values() const {
    std::vector<T> values(size_);
    gpu::copy_to_host(values.data(), buffer_.data(), buffer_.bytes(), nullptr);
    gpu::synchronize(nullptr);
    return values;
  }

 private:
  gpu::DeviceBuffer buffer_;
  size_t size_;
};

}  // namespace cae::testing
