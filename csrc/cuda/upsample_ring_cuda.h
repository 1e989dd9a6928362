// SPDX-License-Identifier: Apache-2.0
// What the outermost ring of an upsampled image gets beyond the form that the convolution computes.
//
// Nearest upsampling x2 and a 5x5 convolution with reflection are, per phase, a 3x3 convolution of
// the small image x with a replicated border, but for the first and the last output of an axis.
// Along one axis, with taps w0..w4 and n pixels,
//   exact(0)      = replicated(0)      + w0 * (x[1] - x[0])
//   exact(2n - 1) = replicated(2n - 1) + w4 * (x[n - 2] - x[n - 1]).
// With E = R + D along each axis, E_y E_x = R_y R_x + D_y E_x + R_y D_x. So the top and the bottom
// row get the exact horizontal convolution of a difference of two rows, the left and the right
// column the replicated vertical convolution of a difference of two columns, and where both meet
// both are added.
#pragma once

#include <cstdint>

#include "cuda/conv_tile_cuda.h"

namespace cae::cuda {

struct UpsampleRingParams {
  ConvPrologue prologue = ConvPrologue::kAffineRelu;
  int32_t rows = 0;
  int32_t height = 0;  // of the small image, at least 2
  int32_t width = 0;
  int32_t in_channels = 0;    // as stored, a multiple of 8
  int32_t out_channels = 0;   // the same
  int32_t real_channels = 0;  // outputs that are not padding
  NormInput norm;
  const uint16_t* y = nullptr;          // [.][height][width][in_channels] half
  const uint16_t* stream_in = nullptr;  // kResidual: as y
  const uint16_t* weights = nullptr;    // pack_upsample_ring
  float* ring_rows = nullptr;      // [rows][2: top, bottom][2 * width][out_channels], pads zero
  float* ring_columns = nullptr;   // [rows][2: left, right][2 * height][out_channels]
  const int32_t* y_row = nullptr;  // row of y and its moments; null: the slot itself
  const int32_t* stream_row = nullptr;  // row of stream_in
  const int32_t* mod_row = nullptr;     // row of gamma and beta
  const int32_t* active = nullptr;      // [rows], 0: nothing to do; null: all
  bool overlap = false;                 // LaunchOptions
};

/// Launches on `stream`, a cudaStream_t; returns at once for no rows. Inputs are rounded to half as
/// the convolution rounds them, and so is their difference; sums are float32. Throws
/// std::invalid_argument if sizes do not fit each other, std::runtime_error if the launch is
/// refused.
void upsample_ring(const UpsampleRingParams& params, void* stream);

}  // namespace cae::cuda
