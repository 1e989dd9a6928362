// SPDX-License-Identifier: Apache-2.0
// Fewer partial moments for who reads them: a large image leaves one pair per tile and channel, and
// every block of the next layer merges all of them.
#pragma once

#include <cstdint>
#include <vector>

#include "core/host_device.h"

namespace cae::cuda {

struct MergeMomentsParams {
  int32_t rows = 0;
  int32_t parts = 0;
  int32_t merged_parts = 0;         // at most `parts`
  int32_t channels = 0;             // pairs per part, as stored; kLayer moments: 1
  const float* partials = nullptr;  // [rows][parts][channels][2]: mean, M2
  const float* counts = nullptr;    // [parts] values behind each
  float* merged = nullptr;          // [rows][merged_parts][channels][2]
  const int32_t* active = nullptr;  // [rows], 0: nothing to do; null: all
  bool overlap = false;             // LaunchOptions
};

/// Merged part g is made of the parts [merged_begin(g), merged_begin(g + 1)).
CAE_HD constexpr int64_t merged_begin(int64_t parts, int64_t merged_parts, int64_t g) {
  return parts * g / merged_parts;
}

/// The counts of the merged parts: [merged_parts]. Sums of whole numbers, exact up to 2^24.
std::vector<float> merged_counts(const std::vector<float>& counts, int32_t merged_parts);

/// Launches on `stream`, a cudaStream_t; returns at once for no rows. A mean is the weighted sum of
/// means over the sum of counts, M2 the sum of M2 and count * (mean - merged mean)^2 (Chan, Golub
/// and LeVeque, 1979), in an order that depends on `parts` and `merged_parts` only. Throws
/// std::invalid_argument if sizes do not fit each other, std::runtime_error if the launch is
/// refused.
void merge_moments(const MergeMomentsParams& params, void* stream);

}  // namespace cae::cuda
