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

/// `norm` reading the moments that `output` holds.
cuda::NormInput reading(const cuda::NormInput& norm, const LayerOutput& output);

/// Convolves `rows` rows and merges the moments where there are many.
void run_conv(const GpuConv& conv, const LayerInput& input, const LayerOutput& output, int32_t rows,
              Stream queue);

}  // namespace cae::gpu
