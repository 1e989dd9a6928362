// SPDX-License-Identifier: Apache-2.0
// What a convolution reads: the raw output of the layer before, normalised while it is loaded.
#pragma once

namespace cae {

/// Pixel p, channel c is relu(affine), residual + affine or affine, channels-last, where
/// affine = scale[c] * in[p, c] + shift[c].
struct ConvSource {
  const float* in = nullptr;        // [H, W, C]
  const float* scale = nullptr;     // [C]
  const float* shift = nullptr;     // [C]
  const float* residual = nullptr;  // [H, W, C] or null
  bool relu = false;                // excludes `residual`
};

}  // namespace cae
