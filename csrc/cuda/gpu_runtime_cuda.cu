// SPDX-License-Identifier: Apache-2.0
// The GPU's memory and streams, by the CUDA runtime.
#include <cuda_runtime.h>

#include "cuda/gpu_runtime.h"
#include "simt/cuda_check.cuh"
#include "simt/simt.h"

namespace cae::gpu {
namespace {

void copy(void* dst, const void* src, size_t bytes, cudaMemcpyKind kind, Stream stream) {
  if (bytes != 0) {
    CAE_CUDA_CHECK(cudaMemcpyAsync(dst, src, bytes, kind, static_cast<cudaStream_t>(stream)));
  }
}

/// Lets this thread allocate and free while another one captures a graph: neither touches what is
/// captured.
class RelaxedCapture {
 public:
  RelaxedCapture() { cudaThreadExchangeStreamCaptureMode(&mode_); }
  ~RelaxedCapture() { cudaThreadExchangeStreamCaptureMode(&mode_); }
  RelaxedCapture(const RelaxedCapture&) = delete;
  RelaxedCapture& operator=(const RelaxedCapture&) = delete;

 private:
  cudaStreamCaptureMode mode_ = cudaStreamCaptureModeRelaxed;
};

/// Never launched: tells for which architecture the kernels were compiled that this GPU runs.
KERNEL void __launch_bounds__(32) waiting_kernel() { dev::pdl_wait(); }

}  // namespace

bool is_emulated() { return false; }

DeviceGuard::DeviceGuard(int device) {
  CAE_CUDA_CHECK(cudaGetDevice(&previous_));
  CAE_CUDA_CHECK(cudaSetDevice(device));
}

DeviceGuard::~DeviceGuard() { cudaSetDevice(previous_); }

DeviceBuffer::DeviceBuffer(int device, size_t bytes) : bytes_(bytes), device_(device) {
  const DeviceGuard guard(device);
  if (bytes == 0) {
    return;
  }
  const RelaxedCapture relaxed;
  const cudaError_t error = cudaMalloc(&data_, bytes);
  if (error == cudaErrorMemoryAllocation) {
    cudaGetLastError();  // it must not surface in a later launch check
    throw OutOfDeviceMemory();
  }
  CAE_CUDA_CHECK(error);
}

int multiprocessors(int device) {
  int count = 0;
  CAE_CUDA_CHECK(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device));
  return count;
}

int compute_capability(int device) {
  int major = 0;
  int minor = 0;
  CAE_CUDA_CHECK(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
  CAE_CUDA_CHECK(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device));
  return 10 * major + minor;
}

bool kernels_wait(int device) {
  const DeviceGuard guard(device);
  cudaFuncAttributes attributes{};
  CAE_CUDA_CHECK(
      cudaFuncGetAttributes(&attributes, reinterpret_cast<const void*>(&waiting_kernel)));
  return attributes.ptxVersion >= 90;
}

void DeviceBuffer::seal() const {}

void DeviceBuffer::release() noexcept {
  if (data_ != nullptr) {
    const RelaxedCapture relaxed;
    cudaFree(data_);  // knows the device by the address
    data_ = nullptr;
  }
  bytes_ = 0;
}

void copy_to_device(void* dst, const void* src, size_t bytes, Stream stream) {
  copy(dst, src, bytes, cudaMemcpyHostToDevice, stream);
}

void copy_to_host(void* dst, const void* src, size_t bytes, Stream stream) {
  copy(dst, src, bytes, cudaMemcpyDeviceToHost, stream);
}

void copy_on_device(void* dst, const void* src, size_t bytes, Stream stream) {
  copy(dst, src, bytes, cudaMemcpyDeviceToDevice, stream);
}

void copy_rows_on_device(float* dst, int64_t dst_pitch, const float* src, int64_t src_pitch,
                         int64_t count, int64_t rows, Stream stream) {
  if (count == 0 || rows == 0) {
    return;
  }
  CAE_CUDA_CHECK(cudaMemcpy2DAsync(
      dst, static_cast<size_t>(dst_pitch) * sizeof(float), src,
      static_cast<size_t>(src_pitch) * sizeof(float), static_cast<size_t>(count) * sizeof(float),
      static_cast<size_t>(rows), cudaMemcpyDeviceToDevice, static_cast<cudaStream_t>(stream)));
}

void fill_zero(void* dst, size_t bytes, Stream stream) {
  if (bytes != 0) {
    CAE_CUDA_CHECK(cudaMemsetAsync(dst, 0, bytes, static_cast<cudaStream_t>(stream)));
  }
}

namespace {

bool is_captured(Stream stream) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  if (cudaStreamIsCapturing(static_cast<cudaStream_t>(stream), &status) != cudaSuccess) {
    cudaGetLastError();  // the default stream, while another one that blocks it is captured
    return true;
  }
  return status != cudaStreamCaptureStatusNone;
}

}  // namespace

void order_streams(Stream before, Stream after) {
  if (before == after || is_captured(after) || is_captured(before)) {
    return;
  }
  cudaEvent_t event = nullptr;
  CAE_CUDA_CHECK(cudaEventCreateWithFlags(&event, cudaEventDisableTiming));
  cudaError_t error = cudaEventRecord(event, static_cast<cudaStream_t>(before));
  if (error == cudaSuccess) {
    error = cudaStreamWaitEvent(static_cast<cudaStream_t>(after), event, 0);
  }
  cudaEventDestroy(event);  // freed when it has happened
  CAE_CUDA_CHECK(error);
}

void* foreign_address(void* data, size_t /*bytes*/) { return data; }

void synchronize(Stream stream) {
  CAE_CUDA_CHECK(cudaStreamSynchronize(static_cast<cudaStream_t>(stream)));
}

}  // namespace cae::gpu
