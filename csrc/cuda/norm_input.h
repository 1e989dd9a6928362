// SPDX-License-Identifier: Apache-2.0
// What a kernel needs to normalise the raw values that the layer before it stored.
#pragma once

#include <cstdint>

namespace cae::cuda {

enum class NormKind : int32_t {
  kNone = 0,      // scale 1, shift 0
  kInstance = 1,  // per channel, biased variance: gamma * (x - mean) / sqrt(var + eps[c]) + beta
  kLayer = 2,     // per sample, unbiased: gamma * (x - mean) / (std + eps[0]) + beta
};

struct NormInput {
  NormKind kind = NormKind::kNone;
  int32_t channels = 0;             // as stored, a multiple of 8
  int32_t parts = 0;                // partial moments per row
  const float* partials = nullptr;  // (mean, M2): kInstance [rows][parts][channels][2],
                                    // kLayer [rows][parts][2]
  const float* counts = nullptr;    // [parts] values behind each partial
  float total = 0.0F;               // sum of counts
  const float* eps = nullptr;       // kInstance [channels], kLayer [1]; scaled as the weights are
  const float* gamma = nullptr;     // [mod rows at stride mod_stride][channels]; null: 1
  const float* beta = nullptr;      // the same; null: 0
  int64_t mod_stride = 0;           // floats; 0: one row for all
};

}  // namespace cae::cuda
