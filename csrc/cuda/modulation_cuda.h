// SPDX-License-Identifier: Apache-2.0
// From points of guided paths to the shifts and scales of the decoder.
#pragma once

#include <cstdint>

namespace cae::cuda {

constexpr int32_t kMaxPathVertices = 4096;

struct PathCodesParams {
  int32_t rows = 0;
  int32_t vertex_count = 0;              // V, in [1, kMaxPathVertices]
  int32_t code_dim = 0;                  // D
  int32_t grid = 0;                      // >= 1
  const float* vertices = nullptr;       // [N][V][D]
  const int32_t* image_index = nullptr;  // [rows], in [0, N); null: row / (grid + 1)
  const int32_t* step = nullptr;         // [rows], in [0, grid]; null: row % (grid + 1)
  const int32_t* active = nullptr;       // [rows], 0: nothing to do; null: all
  float* codes = nullptr;                // [rows][D]
  bool overlap = false;                  // LaunchOptions
};

/// The points at t = step / grid, as ops/path_codes.h says, bit for bit as the CPU makes them.
/// Indices are not checked.
void path_codes(const PathCodesParams& params, void* stream);

struct LinearParams {
  int32_t rows = 0;
  int32_t in = 0;
  int32_t out = 0;                // a multiple of 4, as stored: the engine pads weight and bias
  int32_t relu = 0;               // not 0: negative results become 0
  const float* x = nullptr;       // [rows] at stride x_stride: [in]
  int64_t x_stride = 0;           // floats
  const float* weight = nullptr;  // [in][out]: the transpose of what models store
  const float* bias = nullptr;    // [out]; null: 0
  float* y = nullptr;             // [rows][out]
  bool overlap = false;           // LaunchOptions
};

/// y = x * weight + bias in float32. A row is summed in the same order whatever the other rows and
/// their number.
void linear(const LinearParams& params, void* stream);

// Both launch on `stream`, a cudaStream_t, and return at once for no rows. They throw
// std::invalid_argument if sizes do not fit each other, std::runtime_error if the launch is
// refused.

}  // namespace cae::cuda
