// SPDX-License-Identifier: Apache-2.0
// Queues one layer of the GPU networks.
#pragma once

#include "engine/gpu_workspace.h"

namespace cae::gpu {

/// What a convolution reads.
struct LayerInput {
  cuda::ConvPrologue prologue = cuda::ConvPrologue::kPlain;
  cuda::NormInput norm;  // with the pointers of the call
  const uint16_t* y = nullptr;
  const float* image = nullptr;
  const uint16_t* stream_in = nullptr;
  uint16_t* stream_out = nullptr;
  const int32_t* y_row = nullptr;
  const int32_t* stream_row = nullptr;
  const int32_t* mod_row = nullptr;
  const int32_t* active = nullptr;
  const float* ring_rows = nullptr;
  const float* ring_columns = nullptr;
};

/// How the networks convolve on `device`: by warpgroups where its compute capability is 9.0 and the
/// build has the kernels, else portably. The environment may say otherwise: CAE_GPU_CONV=portable,
/// or wgmma, which throws std::invalid_argument where that cannot run; CAE_GPU_CLUSTER=1, 2 or 4
/// blocks that share their weights (2).
struct ConvChoice {
  cuda::ConvPath path = cuda::ConvPath::kPortable;
  int32_t cluster = 2;
};
ConvChoice choose_conv(int device);

/// `norm` reading the moments that `output` holds.
cuda::NormInput reading(const cuda::NormInput& norm, const LayerOutput& output);

/// Convolves `rows` rows and merges the moments where there are many.
void run_conv(const GpuConv& conv, const LayerInput& input, const LayerOutput& output, int32_t rows,
              Stream queue);

}  // namespace cae::gpu
