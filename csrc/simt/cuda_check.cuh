// SPDX-License-Identifier: Apache-2.0
// Checks of CUDA calls and kernel launches.
#pragma once

#include <cuda_runtime_api.h>

#include <stdexcept>
#include <string>

namespace cae::cuda {

inline void check_cuda(cudaError_t error, const char* what, const char* file, int line) {
  if (error == cudaSuccess) {
    return;
  }
  throw std::runtime_error(std::string(file) + ":" + std::to_string(line) + ": " + what + ": " +
                           cudaGetErrorString(error));
}

}  // namespace cae::cuda

/// Throws std::runtime_error with file and line if the call fails.
#define CAE_CUDA_CHECK(call) ::cae::cuda::check_cuda((call), #call, __FILE__, __LINE__)

/// After a launch by <<<>>>: what the runtime refused throws. Does not synchronise.
#define CAE_LAUNCH_CHECK() \
  ::cae::cuda::check_cuda(cudaGetLastError(), "kernel launch", __FILE__, __LINE__)
