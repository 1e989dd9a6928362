// SPDX-License-Identifier: Apache-2.0
// launch() by the CUDA runtime. Included through simt/launch.h.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>

#include "simt/cuda_check.cuh"
#include "simt/launch.h"

namespace cae::cuda {

/// Lets `kernel` have `bytes` of dynamic shared memory on the current device: more than 48 KB must
/// be asked for, once for each kernel and device. Any thread may call.
void allow_shared_memory(const void* kernel, size_t bytes);

/// Starts kernel(params) on the current device. Does not synchronise. Throws std::runtime_error if
/// the runtime refuses the launch.
template <class P>
void launch(void (*kernel)(P), Grid grid, int threads, size_t shared_bytes, Stream stream,
            const P& params, LaunchOptions options = {}) {
  const auto* entry = reinterpret_cast<const void*>(kernel);
  allow_shared_memory(entry, shared_bytes);
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(grid.x, grid.y, grid.z);
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = shared_bytes;
  config.stream = static_cast<cudaStream_t>(stream);
  cudaLaunchAttribute attributes[2] = {};
  config.attrs = attributes;
  if (options.overlap) {
    attributes[config.numAttrs].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[config.numAttrs++].val.programmaticStreamSerializationAllowed = 1;
  }
  if (options.cluster > 1) {
    attributes[config.numAttrs].id = cudaLaunchAttributeClusterDimension;
    attributes[config.numAttrs].val.clusterDim.x = options.cluster;
    attributes[config.numAttrs].val.clusterDim.y = 1;
    attributes[config.numAttrs++].val.clusterDim.z = 1;
  }
  void* arguments[] = {const_cast<P*>(&params)};  // the runtime copies them and writes nothing
  CAE_CUDA_CHECK(cudaLaunchKernelExC(&config, entry, arguments));
}

}  // namespace cae::cuda
