// SPDX-License-Identifier: Apache-2.0
// The end of the class encoder: the mean over pixels of its last convolution, then a linear layer.
#pragma once

#include <cstdint>

namespace cae::cuda {

struct ClassHeadParams {
  int32_t rows = 0;
  int32_t parts = 0;
  int32_t channels = 0;
  int32_t stored_channels = 0;  // of `partials`
  int32_t code_dim = 0;
  const float* partials = nullptr;  // [rows][parts][stored_channels][2]: mean, M2
  const float* counts = nullptr;    // [parts] pixels behind each
  float total = 0.0F;               // sum of counts
  const float* unscale = nullptr;   // [channels], undoes the scale of the weights; null: 1
  const float* weight = nullptr;    // [code_dim][channels]
  const float* bias = nullptr;      // [code_dim]
  float* class_code = nullptr;      // [rows][code_dim]
  bool overlap = false;             // LaunchOptions
};

/// class_code[d] = sum over c of weight[d][c] * mean[c] * unscale[c], plus bias[d], in float32, the
/// same for a row whatever the others. Launches on `stream`, a cudaStream_t; returns at once for no
/// rows. Throws std::invalid_argument if sizes do not fit each other, std::runtime_error if the
/// launch is refused.
void class_head(const ClassHeadParams& params, void* stream);

}  // namespace cae::cuda
