// SPDX-License-Identifier: Apache-2.0
// Memory and streams of a device, without a CUDA header: gpu_runtime_cuda.cu is the GPU's,
// emu/gpu_runtime_emu.cpp the emulator's. What is queued on a stream runs in order;
// std::runtime_error says with file and line what the runtime refused.
#pragma once

#include <cstddef>
#include <cstdint>
#include <new>
#include <utility>

namespace cae::gpu {

using Stream = void*;  // a cudaStream_t; null is the default stream

/// True in the emulator's build: device memory and kernels are on the CPU.
bool is_emulated();

int multiprocessors(int device);

/// 10 * major + minor.
int compute_capability(int device);

/// True where dev::pdl_wait() waits, so that launches may overlap: compute capability 9.0 or newer,
/// and machine code for it in this build. What a driver makes of older PTX does not wait.
bool kernels_wait(int device);

class OutOfDeviceMemory : public std::bad_alloc {
 public:
  const char* what() const noexcept override { return "out of device memory"; }
};

/// Makes a device current and restores the previous one.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device);
  ~DeviceGuard();  // NOLINT(performance-trivially-destructible): not so on a GPU
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int previous_ = 0;
};

/// Device memory, aligned to 256 bytes, contents undefined. Move-only; frees itself, which waits
/// for what still uses it. `data()` is for kernels and copies: the host cannot read it.
class DeviceBuffer {
 public:
  DeviceBuffer() = default;
  /// Throws OutOfDeviceMemory. Zero bytes: null.
  DeviceBuffer(int device, size_t bytes);
  ~DeviceBuffer() { release(); }
  DeviceBuffer(DeviceBuffer&& other) noexcept { swap(other); }
  DeviceBuffer& operator=(DeviceBuffer&& other) noexcept {
    if (this != &other) {
      release();
      swap(other);
    }
    return *this;
  }
  DeviceBuffer(const DeviceBuffer&) = delete;
  DeviceBuffer& operator=(const DeviceBuffer&) = delete;

  /// Says that nothing writes the memory from now on: it is there for every kernel, also before
  /// dev::pdl_wait(). The emulator holds kernels to it.
  void seal() const;

  void* data() const { return data_; }
  size_t bytes() const { return bytes_; }
  int device() const { return device_; }
  template <class T>
  T* as() const {
    return static_cast<T*>(data_);
  }

 private:
  void release() noexcept;
  void swap(DeviceBuffer& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    std::swap(device_, other.device_);
  }

  void* data_ = nullptr;
  size_t bytes_ = 0;
  int device_ = 0;
};

/// Queued on the stream: host memory must live, and must not be read or written, until
/// synchronize(stream). Zero bytes: nothing.
void copy_to_device(void* dst, const void* src, size_t bytes, Stream stream);
void copy_to_host(void* dst, const void* src, size_t bytes, Stream stream);
void copy_on_device(void* dst, const void* src, size_t bytes, Stream stream);
/// `rows` rows of `count` floats, at pitches of so many floats.
void copy_rows_on_device(float* dst, int64_t dst_pitch, const float* src, int64_t src_pitch,
                         int64_t count, int64_t rows, Stream stream);
void fill_zero(void* dst, size_t bytes, Stream stream);

/// What is queued on `after` from now on waits for what `before` holds. Nothing where one of them
/// is being captured in a graph: then whoever captures has ordered them.
void order_streams(Stream before, Stream after);

/// Where other libraries find `bytes` of device memory: there; in the emulator, whose addresses
/// only kernels and copies understand, the host memory behind them.
void* foreign_address(void* data, size_t bytes);

/// Waits until all that was queued on the stream is done. Throws what a kernel ended with.
void synchronize(Stream stream);

}  // namespace cae::gpu
