// SPDX-License-Identifier: Apache-2.0
// The residual stream on its way in and out: float32 NCHW outside, half NHWC inside.
#pragma once

#include <cstdint>

#include "cuda/norm_input.h"

namespace cae::cuda {

struct ImportStreamParams {
  int32_t rows = 0;
  int32_t height = 0;
  int32_t width = 0;
  int32_t channels = 0;         // of `in`
  int32_t stored_channels = 0;  // of `out`: rounded up to a multiple of 8, the rest zeros
  const float* in = nullptr;    // [rows][channels][height][width]
  uint16_t* out = nullptr;      // [rows][height][width][stored_channels] half, to nearest even
  bool overlap = false;         // LaunchOptions
};

/// stream_in + scale * y + shift, the end of the last residual block; both outputs from the same
/// float32 sum.
struct FinishStreamParams {
  int32_t rows = 0;
  int32_t height = 0;
  int32_t width = 0;
  int32_t channels = 0;                 // of `image`; the stored ones, norm.channels, are more
  NormInput norm;                       // of y
  const uint16_t* y = nullptr;          // [.][height][width][norm.channels] half
  const uint16_t* stream_in = nullptr;  // as y; null: nothing is added
  const int32_t* y_row = nullptr;       // row of y and its moments; null: the slot itself
  const int32_t* stream_row = nullptr;  // row of stream_in
  const int32_t* mod_row = nullptr;     // row of gamma and beta
  const int32_t* active = nullptr;      // [rows], 0: nothing to do; null: all
  uint16_t* stream = nullptr;  // [rows][height][width][norm.channels] half, pads zero; or null
  float* image = nullptr;      // [rows][channels][height][width]; or null
  bool overlap = false;        // LaunchOptions
};

/// Launch on `stream`, a cudaStream_t; return at once for no rows. Throw std::invalid_argument if
/// sizes do not fit each other, std::runtime_error if the launch is refused.
void import_stream(const ImportStreamParams& params, void* stream);
void finish_stream(const FinishStreamParams& params, void* stream);

}  // namespace cae::cuda
