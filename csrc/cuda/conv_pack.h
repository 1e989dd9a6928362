// SPDX-License-Identifier: Apache-2.0
// Weights as conv_tile_cuda.h reads them: halves, [piece of 64 columns][k-block][tap][group of 8
// inputs][column][8], so that what a block needs for one tap is one contiguous piece.
#pragma once

#include <cstdint>
#include <vector>

#include "cuda/conv_tile_cuda.h"

namespace cae::cuda {

/// Packed weights of a layer, and what normalising its output needs to know of their scale.
struct PackedConv {
  ConvKind kind = ConvKind::kConv3x3;
  int32_t in_channels = 0;    // as stored (kImage7x7: of the image)
  int32_t out_channels = 0;   // as stored
  int32_t real_channels = 0;  // without padding
  std::vector<uint16_t> weights;
  std::vector<float> scale;  // [out_channels] what the weights of each output were multiplied by;
                             // kUpsample: the same for all; 1 for padding
};

/// Channels as stored.
constexpr int32_t stored_channels(int64_t channels) {
  return static_cast<int32_t>((channels + 7) / 8 * 8);
}

/// weight [out][in][k][k] of the kind's own k: 3, 4, 7, 5. `in_scale` [in], or null for ones: what
/// the inputs were multiplied by, undone here. `bias` [out] where one is added before values are
/// stored, else null. Each output is scaled by the power of two that brings the norm of its weights
/// and bias next to 1, kUpsample's all by one: halves then overflow only where normalised inputs
/// are themselves beyond what halves hold. Throws std::invalid_argument for weights that are not
/// finite.
PackedConv pack_conv(ConvKind kind, const float* weight, const float* bias, int64_t out, int64_t in,
                     const float* in_scale);

}  // namespace cae::cuda
