// SPDX-License-Identifier: Apache-2.0
// The emulated device's memory: host memory that kernels may touch between its red zones only.
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <stdexcept>

#include "cuda/gpu_runtime.h"
#include "emu/emu_counts.h"
#include "emu/external_memory.h"
#include "simt/simt.h"

namespace cae::emu {
namespace {

void admit(const void* data, size_t bytes, const char* name) {
  const std::lock_guard<std::mutex> lock(turn);
  ::emu::S.ranges.push_back({static_cast<const char*>(data), bytes, name});
}

void dismiss(const void* data) {
  const std::lock_guard<std::mutex> lock(turn);
  auto& ranges = ::emu::S.ranges;
  ranges.erase(std::find_if(ranges.begin(), ranges.end(),
                            [data](const ::emu::Range& range) { return range.p == data; }));
}

}  // namespace

ExternalMemory::ExternalMemory(const void* data, size_t bytes, bool /*writable*/) : data_(data) {
  admit(data, bytes, "external");
}

ExternalMemory::~ExternalMemory() { dismiss(data_); }

}  // namespace cae::emu

namespace cae::gpu {
namespace {

constexpr size_t kAlignment = 256;

}  // namespace

bool is_emulated() { return true; }

DeviceGuard::DeviceGuard(int device) {
  if (device != 0) {
    throw std::runtime_error("the emulator has device 0 only");
  }
}

DeviceGuard::~DeviceGuard() = default;

DeviceBuffer::DeviceBuffer(int device, size_t bytes) : bytes_(bytes), device_(device) {
  const DeviceGuard guard(device);
  if (bytes == 0) {
    return;
  }
  data_ = std::aligned_alloc(kAlignment, (bytes + kAlignment - 1) / kAlignment * kAlignment);
  if (data_ == nullptr) {
    throw OutOfDeviceMemory();
  }
  std::memset(data_, 0xff, bytes);
  emu::admit(data_, bytes, "device");
}

void DeviceBuffer::release() noexcept {
  if (data_ != nullptr) {
    emu::dismiss(data_);
    std::free(data_);
    data_ = nullptr;
  }
  bytes_ = 0;
}

void copy_to_device(void* dst, const void* src, size_t bytes, Stream /*stream*/) {
  std::memmove(dst, src, bytes);
}
void copy_to_host(void* dst, const void* src, size_t bytes, Stream /*stream*/) {
  std::memmove(dst, src, bytes);
}
void copy_on_device(void* dst, const void* src, size_t bytes, Stream /*stream*/) {
  std::memmove(dst, src, bytes);
}
void copy_rows_on_device(float* dst, int64_t dst_pitch, const float* src, int64_t src_pitch,
                         int64_t count, int64_t rows, Stream /*stream*/) {
  for (int64_t row = 0; row < rows; ++row) {
    std::memmove(dst + row * dst_pitch, src + row * src_pitch,
                 static_cast<size_t>(count) * sizeof(float));
  }
}
void fill_zero(void* dst, size_t bytes, Stream /*stream*/) { std::memset(dst, 0, bytes); }
void synchronize(Stream /*stream*/) {}

}  // namespace cae::gpu
