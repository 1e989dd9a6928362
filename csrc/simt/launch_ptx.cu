// SPDX-License-Identifier: Apache-2.0
// What a launch must ask the CUDA runtime for beforehand.
#include <map>
#include <mutex>
#include <utility>

#include "simt/launch.h"

namespace cae::cuda {

void allow_shared_memory(const void* kernel, size_t bytes) {
  constexpr size_t kGranted = 48 * 1024;  // without asking
  if (bytes <= kGranted) {
    return;
  }
  static std::mutex mutex;
  static std::map<std::pair<const void*, int>, size_t> allowed;
  int device = 0;
  CAE_CUDA_CHECK(cudaGetDevice(&device));
  const std::lock_guard<std::mutex> lock(mutex);
  size_t& most = allowed[{kernel, device}];
  if (bytes > most) {
    CAE_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                        static_cast<int>(bytes)));
    most = bytes;
  }
}

}  // namespace cae::cuda
