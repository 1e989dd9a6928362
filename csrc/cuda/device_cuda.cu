// SPDX-License-Identifier: Apache-2.0
// Device query through the static CUDA runtime, which opens the driver's library when it is first
// asked: the extension loads on a machine that has neither driver nor GPU, and says so here.
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "cuda/device_cuda.h"
#include "cuda/lerp_codes_cuda.h"
#include "simt/cuda_check.cuh"

#ifndef CAE_CUDA_ARCHS
#error "CMake must define CAE_CUDA_ARCHS, the semicolon-separated list of architectures"
#endif

namespace cae {
namespace {

std::vector<std::string> split(const std::string& list, char separator) {
  std::vector<std::string> parts;
  size_t begin = 0;
  while (begin <= list.size()) {
    const size_t end = std::min(list.find(separator, begin), list.size());
    if (end > begin) {
      parts.push_back(list.substr(begin, end - begin));
    }
    begin = end + 1;
  }
  return parts;
}

std::string version_text(int version) {
  return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

// The oldest driver is known of CUDA 13; a later one may want another.
constexpr const char* kNeedsDriver =
    CUDART_VERSION / 1000 == 13 ? " needs driver >= 580" : " needs a driver as new as itself";

/// What to do about a failed query, in words where the runtime's own text does not help.
std::string describe(cudaError_t error, const CudaStatus& status) {
  const std::string text = cudaGetErrorString(error);
  const std::string needed = "CUDA " + version_text(status.runtime) + kNeedsDriver;
  if (status.driver == 0) {
    return "no NVIDIA driver found (" + needed + ")";
  }
  if (error == cudaErrorInsufficientDriver) {
    return "the driver serves CUDA " + version_text(status.driver) + " only: " + needed;
  }
  return text;
}

struct DeviceFree {
  void operator()(float* pointer) const { cudaFree(pointer); }
};
using DeviceArray = std::unique_ptr<float, DeviceFree>;

DeviceArray upload(const std::vector<float>& values) {
  float* pointer = nullptr;
  CAE_CUDA_CHECK(cudaMalloc(&pointer, values.size() * sizeof(float)));
  DeviceArray array(pointer);
  CAE_CUDA_CHECK(
      cudaMemcpy(pointer, values.data(), values.size() * sizeof(float), cudaMemcpyHostToDevice));
  return array;
}

/// Makes a device current and restores the previous one.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device) {
    CAE_CUDA_CHECK(cudaGetDevice(&previous_));
    CAE_CUDA_CHECK(cudaSetDevice(device));
  }
  ~DeviceGuard() { cudaSetDevice(previous_); }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int previous_ = 0;
};

}  // namespace

CudaStatus cuda_status() {
  CudaStatus status;
  status.built = true;
  status.compiler = "nvcc " + std::to_string(__CUDACC_VER_MAJOR__) + "." +
                    std::to_string(__CUDACC_VER_MINOR__) + "." +
                    std::to_string(__CUDACC_VER_BUILD__);
  status.archs = split(CAE_CUDA_ARCHS, ';');
  cudaRuntimeGetVersion(&status.runtime);
  cudaDriverGetVersion(&status.driver);
  int count = 0;
  cudaError_t error = cudaGetDeviceCount(&count);
  for (int i = 0; i < count && error == cudaSuccess; ++i) {
    cudaDeviceProp properties{};
    error = cudaGetDeviceProperties(&properties, i);
    if (error != cudaSuccess) {
      break;
    }
    status.devices.push_back({properties.name, properties.major, properties.minor,
                              static_cast<int64_t>(properties.totalGlobalMem)});
  }
  if (error != cudaSuccess) {
    status.devices.clear();
    status.error = describe(error, status);
    cudaGetLastError();  // the query's failure must not surface in a later launch check
  } else if (count == 0) {
    status.error = "no CUDA device found";
  }
  return status;
}

void check_cuda_device(int32_t device) {
  const CudaStatus status = cuda_status();
  const auto count = static_cast<int32_t>(status.devices.size());
  if (count == 0) {
    throw std::runtime_error(status.error);
  }
  if (device < 0 || device >= count) {
    throw std::runtime_error("CUDA device must be in [0, " + std::to_string(count - 1) + "], got " +
                             std::to_string(device));
  }
  // Several blocks with a ragged end, values whose products round, both ends of the path.
  constexpr int64_t kPoints = 251;
  constexpr int64_t kCodeDim = 7;
  std::vector<float> start;
  std::vector<float> end;
  std::vector<float> t;
  for (int64_t i = 0; i < kPoints * kCodeDim; ++i) {
    start.push_back(std::sin(static_cast<float>(i)));
    end.push_back(10.0F * std::cos(static_cast<float>(i)));
  }
  for (int64_t i = 0; i < kPoints; ++i) {
    t.push_back(static_cast<float>(i) / static_cast<float>(kPoints - 1));
  }
  std::vector<float> got(start.size());
  {
    const DeviceGuard guard(device);
    const DeviceArray start_d = upload(start);
    const DeviceArray end_d = upload(end);
    const DeviceArray t_d = upload(t);
    const DeviceArray out_d = upload(got);
    cuda::lerp_codes(start_d.get(), end_d.get(), t_d.get(), out_d.get(), kPoints, kCodeDim,
                     nullptr);
    CAE_CUDA_CHECK(
        cudaMemcpy(got.data(), out_d.get(), got.size() * sizeof(float), cudaMemcpyDeviceToHost));
  }
  for (size_t i = 0; i < got.size(); ++i) {
    const float u = t[i / kCodeDim];
    if (got[i] != std::fmaf(u, end[i], (1.0F - u) * start[i])) {
      throw std::runtime_error("lerp_codes on CUDA device " + std::to_string(device) +
                               " differs from the CPU at element " + std::to_string(i));
    }
  }
}

}  // namespace cae
