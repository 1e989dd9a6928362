// SPDX-License-Identifier: Apache-2.0
// Arrays in device memory: what GpuEngine returns and what it takes.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "bindings/dlpack_types.h"
#include "cuda/gpu_runtime.h"

namespace cae::bindings {

/// A cudaStream_t as a Python integer; 0 is the default stream. Throws std::invalid_argument.
gpu::Stream read_stream(const pybind11::object& stream);

/// C-contiguous float32, float16 or int32 on one device, with the stream that its contents were
/// queued on; views share memory.
class DeviceArray {
 public:
  /// `code` as in DLPack, 32 bits. Contents undefined. Throws gpu::OutOfDeviceMemory.
  DeviceArray(std::vector<int64_t> shape, int code, int device, gpu::Stream queue);
  /// Memory that `owner` keeps alive.
  DeviceArray(std::shared_ptr<const void> owner, void* data, std::vector<int64_t> shape, int code,
              int device, gpu::Stream queue, int bits = 32)
      : owner_(std::move(owner)),
        data_(data),
        shape_(std::move(shape)),
        code_(code),
        bits_(bits),
        device_(device),
        queue_(queue) {}

  const std::vector<int64_t>& shape() const { return shape_; }
  int code() const { return code_; }
  int bits() const { return bits_; }
  int device() const { return device_; }
  int64_t numel() const;
  size_t bytes() const { return static_cast<size_t>(numel() * bits_ / 8); }
  float* floats() const { return static_cast<float*>(data_); }
  int32_t* ints() const { return static_cast<int32_t*>(data_); }
  void* data() const { return data_; }

  /// Rows [first, first + count), sharing memory.
  DeviceArray rows(int64_t first, int64_t count) const;

  /// Copies to NumPy; waits for the stream.
  pybind11::array to_numpy(gpu::Stream stream) const;
  /// Copies from host memory of the same size; waits for the stream.
  void copy_from(const void* source, gpu::Stream stream) const;

  /// A capsule "dltensor" for who works on `stream`, which from now on waits for the contents; as
  /// DLPack numbers streams: None or 1 the default stream, -1 none, which then is the caller's to
  /// order. The emulator's memory is CPU memory. Throws std::invalid_argument.
  pybind11::capsule to_dlpack(const pybind11::object& stream) const;
  pybind11::tuple dlpack_device() const;

 private:
  std::shared_ptr<const void> owner_;
  void* data_;
  std::vector<int64_t> shape_;
  int code_;
  int bits_ = 32;
  int device_;
  gpu::Stream queue_;
};

/// An argument in device memory: a DeviceArray, anything with __dlpack__ on the engine's GPU, or
/// host memory, which is copied over. Make and destroy with the GIL.
class DeviceArgument {
 public:
  /// Throws std::invalid_argument naming the argument for another dtype, another device, or memory
  /// of a GPU that is not C-contiguous and 16-byte aligned.
  DeviceArgument(const pybind11::handle& object, const char* name, int code, int device,
                 gpu::Stream stream);

  const std::vector<int64_t>& shape() const { return shape_; }
  const float* floats() const { return static_cast<const float*>(data_); }
  const int32_t* ints() const { return static_cast<const int32_t*>(data_); }

 private:
  bool take_foreign(const pybind11::handle& object, const char* name, int code, int device,
                    gpu::Stream stream);

  pybind11::object owner_;
  std::shared_ptr<DeviceArray> copy_;
  const void* data_ = nullptr;
  std::vector<int64_t> shape_;
};

}  // namespace cae::bindings
