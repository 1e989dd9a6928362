// SPDX-License-Identifier: Apache-2.0
// The emulated device: one, whose kernels and copies run when they are queued.
#include <cstring>
#include <stdexcept>

#include "cuda/gpu_runtime.h"
#include "emu/device_limits.h"
#include "emu/device_memory.h"

namespace cae::gpu {

bool is_emulated() { return true; }

int multiprocessors(int /*device*/) { return emu::device_limits().multiprocessors; }

int compute_capability(int /*device*/) { return emu::device_limits().arch; }

bool kernels_wait(int /*device*/) { return emu::device_limits().arch >= 90; }

DeviceGuard::DeviceGuard(int device) {
  if (device != 0) {
    throw std::runtime_error("the emulator has device 0 only, got " + std::to_string(device));
  }
}

DeviceGuard::~DeviceGuard() = default;

DeviceBuffer::DeviceBuffer(int device, size_t bytes) : bytes_(bytes), device_(device) {
  const DeviceGuard guard(device);
  if (bytes == 0) {
    return;
  }
  try {
    data_ = emu::allocate_device(bytes);
  } catch (const std::bad_alloc&) {
    throw OutOfDeviceMemory();
  }
}

void DeviceBuffer::seal() const {
  if (data_ != nullptr) {
    emu::seal_device(data_);
  }
}

void DeviceBuffer::release() noexcept {
  if (data_ != nullptr) {
    emu::free_device(data_);
    data_ = nullptr;
  }
  bytes_ = 0;
}

void copy_to_device(void* dst, const void* src, size_t bytes, Stream /*stream*/) {
  if (bytes != 0) {
    std::memcpy(emu::host_view(dst, bytes, "copy_to_device"), src, bytes);
  }
}

void copy_to_host(void* dst, const void* src, size_t bytes, Stream /*stream*/) {
  if (bytes != 0) {
    std::memcpy(dst, emu::host_view(src, bytes, "copy_to_host"), bytes);
  }
}

void copy_on_device(void* dst, const void* src, size_t bytes, Stream /*stream*/) {
  if (bytes != 0) {
    const uint8_t* from = emu::host_view(src, bytes, "copy_on_device");
    std::memmove(emu::host_view(dst, bytes, "copy_on_device"), from, bytes);
  }
}

void copy_rows_on_device(float* dst, int64_t dst_pitch, const float* src, int64_t src_pitch,
                         int64_t count, int64_t rows, Stream stream) {
  for (int64_t row = 0; row < rows; ++row) {
    copy_on_device(dst + row * dst_pitch, src + row * src_pitch,
                   static_cast<size_t>(count) * sizeof(float), stream);
  }
}

void fill_zero(void* dst, size_t bytes, Stream /*stream*/) {
  if (bytes != 0) {
    std::memset(emu::host_view(dst, bytes, "fill_zero"), 0, bytes);
  }
}

void order_streams(Stream /*before*/, Stream /*after*/) {}

void* foreign_address(void* data, size_t bytes) {
  return bytes == 0 ? nullptr : emu::host_view(data, bytes, "foreign_address");
}

void synchronize(Stream /*stream*/) {}

}  // namespace cae::gpu
