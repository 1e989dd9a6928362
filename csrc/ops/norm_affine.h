// SPDX-License-Identifier: Apache-2.0
// Normalisations as one affine map per channel, out = scale[c] * in + shift[c], made from the
// moments that a convolution leaves behind.
#pragma once

#include <vector>

#include "ops/conv_layer.h"

namespace cae {

constexpr double kNormEpsilon = 1e-5;

/// Per-channel mean and sum of squared deviations over all pixels of one image.
struct ChannelMoments {
  std::vector<double> mean;
  std::vector<double> m2;
  int64_t count = 0;
};

/// Merges the partial moments of a layer's chunks, in chunk order.
ChannelMoments merge_moments(const ConvLayer& layer, const float* partials);

/// (x - mean) / sqrt(variance + eps), biased variance.
void instance_norm_affine(const ChannelMoments& moments, float* scale, float* shift);

/// modulation_scale[c] * instance_norm(x) + modulation_shift[c].
void adain_affine(const ChannelMoments& moments, const float* modulation_scale,
                  const float* modulation_shift, float* scale, float* shift);

/// Layer norm over (C, H, W) of x + bias[c]:
/// (x + bias - mean) / (unbiased standard deviation + eps) * gamma[c] + beta[c].
void layer_norm_affine(const ChannelMoments& moments, const float* bias, const float* gamma,
                       const float* beta, float* scale, float* shift);

}  // namespace cae
