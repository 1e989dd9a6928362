// SPDX-License-Identifier: Apache-2.0
// Runs on the host: a few hundred numbers per layer.
#include "ops/norm_affine.h"

#include <cmath>

namespace cae {

ChannelMoments merge_moments(const ConvLayer& layer, const float* partials) {
  const auto channels = static_cast<size_t>(layer.out_channels);
  ChannelMoments moments{std::vector<double>(channels), std::vector<double>(channels),
                         layer.out_pixels()};
  const double inverse_count = 1.0 / static_cast<double>(moments.count);
  const float* chunk_mean = partials;
  for (const int64_t chunk : layer.chunks) {
    const double share = static_cast<double>(chunk) * inverse_count;
    for (size_t c = 0; c < channels; ++c) {
      moments.mean[c] += share * chunk_mean[c];
    }
    chunk_mean += 2 * channels;
  }
  chunk_mean = partials;
  for (const int64_t chunk : layer.chunks) {
    const auto pixels = static_cast<double>(chunk);
    for (size_t c = 0; c < channels; ++c) {
      const double offset = chunk_mean[c] - moments.mean[c];
      moments.m2[c] += chunk_mean[channels + c] + pixels * offset * offset;
    }
    chunk_mean += 2 * channels;
  }
  return moments;
}

void instance_norm_affine(const ChannelMoments& moments, float* scale, float* shift) {
  for (size_t c = 0; c < moments.mean.size(); ++c) {
    const double variance = moments.m2[c] / static_cast<double>(moments.count);
    const double factor = 1.0 / std::sqrt(variance + kNormEpsilon);
    scale[c] = static_cast<float>(factor);
    shift[c] = static_cast<float>(-moments.mean[c] * factor);
  }
}

void adain_affine(const ChannelMoments& moments, const float* modulation_scale,
                  const float* modulation_shift, float* scale, float* shift) {
  for (size_t c = 0; c < moments.mean.size(); ++c) {
    const double variance = moments.m2[c] / static_cast<double>(moments.count);
    const double factor = modulation_scale[c] / std::sqrt(variance + kNormEpsilon);
    scale[c] = static_cast<float>(factor);
    shift[c] = static_cast<float>(modulation_shift[c] - moments.mean[c] * factor);
  }
}

void layer_norm_affine(const ChannelMoments& moments, const float* bias, const float* gamma,
                       const float* beta, float* scale, float* shift) {
  const auto channels = static_cast<double>(moments.mean.size());
  const auto count = static_cast<double>(moments.count);
  double mean = 0.0;
  for (size_t c = 0; c < moments.mean.size(); ++c) {
    mean += (moments.mean[c] + bias[c]) / channels;
  }
  double m2 = 0.0;
  for (size_t c = 0; c < moments.mean.size(); ++c) {
    const double offset = moments.mean[c] + bias[c] - mean;
    m2 += moments.m2[c] + count * offset * offset;
  }
  const double deviation = std::sqrt(m2 / (count * channels - 1.0));
  const double inverse = 1.0 / (deviation + kNormEpsilon);
  for (size_t c = 0; c < moments.mean.size(); ++c) {
    scale[c] = static_cast<float>(gamma[c] * inverse);
    shift[c] = static_cast<float>(beta[c] + (bias[c] - mean) * gamma[c] * inverse);
  }
}

}  // namespace cae
