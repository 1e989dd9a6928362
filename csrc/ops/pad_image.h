// SPDX-License-Identifier: Apache-2.0
// Between layers: apply the affine map of a normalisation and write the next convolution's padded
// input; and the changes of layout at the network's ends.
#pragma once

#include <vector>

#include "ops/conv2d.h"

namespace cae {

/// What pad_image reads and writes for one image.
struct PadImage {
  const float* in = nullptr;        // [H, W, C]
  const float* scale = nullptr;     // [C]
  const float* shift = nullptr;     // [C]
  const float* residual = nullptr;  // padded like `out` (only its interior is read); may be `out`
  float* out = nullptr;             // [H + 2 pad, W + 2 pad, C], border included
  bool relu = false;
};

/// out = pad([residual +] [relu](scale[c] * in + shift[c])), for each image.
void pad_image(const PaddedShape& shape, const std::vector<PadImage>& images);

/// What pad_planes reads and writes for one image.
struct PadPlanes {
  const float* planes = nullptr;  // [C, H, W]
  float* out = nullptr;           // [H + 2 pad, W + 2 pad, C], border included
};

/// Pads and turns to channels-last.
void pad_planes(const PaddedShape& shape, const std::vector<PadPlanes>& images);

/// Interiors of N padded channels-last images -> planes [N, C, H, W].
void unpad_planes(const PaddedShape& shape, const std::vector<const float*>& in, float* planes);

/// planes[n, c, y, x] = tanh(in[n][y, x, c] + bias[c]); `shape` without a border.
void tanh_planes(const PaddedShape& shape, const std::vector<const float*>& in, const float* bias,
                 float* planes);

/// out[n, c] = mean over pixels of relu(in[n][p, c] + bias[c]).
void relu_mean(const PaddedShape& shape, const std::vector<const float*>& in, const float* bias,
               float* out);

namespace cpu {
void pad_image(const PaddedShape& shape, const std::vector<PadImage>& images);
void pad_planes(const PaddedShape& shape, const std::vector<PadPlanes>& images);
void unpad_planes(const PaddedShape& shape, const std::vector<const float*>& in, float* planes);
void tanh_planes(const PaddedShape& shape, const std::vector<const float*>& in, const float* bias,
                 float* planes);
void relu_mean(const PaddedShape& shape, const std::vector<const float*>& in, const float* bias,
               float* out);
}  // namespace cpu

}  // namespace cae
