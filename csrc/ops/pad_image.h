// SPDX-License-Identifier: Apache-2.0
// Between layers: apply the affine map of a normalisation and write the next convolution's padded
// input, where it does not do so itself; and the changes of layout at the network's ends.
#pragma once

#include <vector>

#include "ops/conv2d.h"
#include "ops/conv_source.h"
#include "ops/scratch.h"

namespace cae {

/// What pad_image reads and writes for one image.
struct PadImage {
  ConvSource source;
  float* out = nullptr;     // [H + 2 pad, W + 2 pad, C], border included
  float* stream = nullptr;  // a copy without the border, [H, W, C], or null
};

/// out = pad(source), for each image.
void pad_image(const PaddedShape& shape, const std::vector<PadImage>& images);

/// What pad_planes reads and writes for one image.
struct PadPlanes {
  const float* planes = nullptr;  // [C, H, W]
  float* out = nullptr;           // [H + 2 pad, W + 2 pad, C], border included
};

/// Pads and turns to channels-last.
void pad_planes(const PaddedShape& shape, const std::vector<PadPlanes>& images);

/// planes[n, c, y, x] = source n at [y, x, c]; `shape` without a border.
void source_planes(const PaddedShape& shape, const std::vector<ConvSource>& sources, float* planes,
                   Scratch& scratch);

/// out[n, c] = mean over pixels of relu(in[n][p, c] + bias[c]).
void relu_mean(const PaddedShape& shape, const std::vector<const float*>& in, const float* bias,
               float* out);

namespace cpu {
void pad_image(const PaddedShape& shape, const std::vector<PadImage>& images);
void pad_planes(const PaddedShape& shape, const std::vector<PadPlanes>& images);
void source_planes(const PaddedShape& shape, const std::vector<ConvSource>& sources, float* planes,
                   Scratch& scratch);
void relu_mean(const PaddedShape& shape, const std::vector<const float*>& in, const float* bias,
               float* out);
}  // namespace cpu

}  // namespace cae
