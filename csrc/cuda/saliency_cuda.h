// SPDX-License-Identifier: Apache-2.0
// What makes the difference: counterfactual - reference, and its map, as ops/difference_saliency.h.
#pragma once

#include <cstdint>

#include "core/host_device.h"
#include "search/flip_search.h"

namespace cae::cuda {

/// Device pointers. The reference of an image is its reconstruction; the image itself where its
/// status is kReconstructionFlips, or `against_input`. Where the status is kAlreadyTarget or
/// kNonFinite, difference and map are zeros.
struct SaliencyParams {
  int32_t images = 0;    // N
  int32_t channels = 0;  // C
  int32_t pixels = 0;    // of an image, a multiple of 4
  bool against_input = false;
  const search::FlipState* states = nullptr;  // [N]
  const float* counterfactual = nullptr;      // [N][C][pixels]
  const float* reconstruction = nullptr;      // [N][C][pixels]
  const float* inputs = nullptr;              // [N][C][pixels]
  float* difference = nullptr;                // [N][C][pixels]
  float* saliency = nullptr;                  // [N][pixels] in [0, 1]; zeros where a sum is not
                                              // finite or all are 0
  float* workspace = nullptr;                 // [N][saliency_parts(pixels)]
  bool overlap = false;                       // LaunchOptions, of both kernels
};

constexpr int32_t kSaliencyBlock = 1024;  // pixels

CAE_HD constexpr int32_t saliency_parts(int32_t pixels) {
  return (pixels + kSaliencyBlock - 1) / kSaliencyBlock;
}

/// The same as the CPU's, bit for bit. Launches twice on `stream`, a cudaStream_t; returns at once
/// for no images. Throws std::invalid_argument if sizes are out of range, std::runtime_error if a
/// launch is refused.
void difference_saliency(const SaliencyParams& params, void* stream);

}  // namespace cae::cuda
