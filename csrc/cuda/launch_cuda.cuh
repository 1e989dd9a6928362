// SPDX-License-Identifier: Apache-2.0
// Checks of CUDA calls and kernel launches, and the grid of an element-wise kernel.
#pragma once

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdint>
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

constexpr int kThreadsPerBlock = 256;
// Element-wise kernels stride over the grid; more blocks than this only cost their launch.
constexpr int64_t kMaxBlocks = 4096;

/// Blocks of kThreadsPerBlock for `count` > 0 elements.
inline unsigned elementwise_blocks(int64_t count) {
  return static_cast<unsigned>(
      std::min((count + kThreadsPerBlock - 1) / kThreadsPerBlock, kMaxBlocks));
}

}  // namespace cae::cuda

/// Throws std::runtime_error with file and line if the call fails.
#define CAE_CUDA_CHECK(call) ::cae::cuda::check_cuda((call), #call, __FILE__, __LINE__)

/// Last line of every launcher: a launch that the runtime refused throws. Does not synchronise.
#define CAE_LAUNCH_CHECK() \
  ::cae::cuda::check_cuda(cudaGetLastError(), "kernel launch", __FILE__, __LINE__)
