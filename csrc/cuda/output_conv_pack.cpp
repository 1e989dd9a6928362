// SPDX-License-Identifier: Apache-2.0
// Weights of the output convolution in the order of its operands, see output_conv_cuda.cu.
#include <cmath>
#include <limits>

#include "core/check.h"
#include "core/half_bits.h"
#include "cuda/output_conv_cuda.h"

namespace cae::cuda {
namespace {

/// The power of two p for which the largest of |values| * p is in [1, 2); 1 where all are 0.
float unit_scale(const float* values, int64_t count) {
  float largest = 0.0F;
  for (int64_t i = 0; i < count; ++i) {
    CAE_CHECK(std::isfinite(values[i]), "weight must be finite, got ", values[i]);
    largest = std::fmax(largest, std::fabs(values[i]));
  }
  if (largest < std::numeric_limits<float>::min()) {  // subnormal: its inverse may not be a float
    return 1.0F;
  }
  int exponent = 0;
  std::frexp(largest, &exponent);  // largest = f * 2^exponent, f in [0.5, 1)
  return std::ldexp(1.0F, 1 - exponent > 126 ? 126 : 1 - exponent);
}

}  // namespace

PackedOutputConv pack_output_conv(const float* weight, const float* bias, int64_t image_channels,
                                  int64_t channels) {
  CAE_CHECK(image_channels >= 1 && image_channels <= kMaxImageChannels,
            "image_channels must be in [1, ", kMaxImageChannels, "], got ", image_channels);
  CAE_CHECK(channels >= 1 && channels <= 1024, "channels must be in [1, 1024], got ", channels);
  PackedOutputConv packed;
  packed.channels = static_cast<int32_t>((channels + 7) / 8 * 8);
  packed.image_channels = static_cast<int32_t>(image_channels);
  packed.bias.assign(bias, bias + image_channels);
  constexpr int64_t kFilter = kOutputTaps * kOutputTaps;
  std::vector<float> up;
  for (int64_t o = 0; o < image_channels; ++o) {
    up.push_back(unit_scale(weight + o * channels * kFilter, channels * kFilter));
    packed.scale.push_back(1.0F / up.back());
  }
  // The value of column n = kx * image_channels + o for input k of a chunk of 16 and filter row ky.
  const auto value = [&](int64_t chunk, int64_t k, int64_t ky, int64_t n) {
    const int64_t c = chunk * 16 + k;
    const int64_t kx = n / image_channels;
    const int64_t o = n % image_channels;
    if (c >= channels || kx >= kOutputTaps) {
      return uint16_t{0};
    }
    const float w = weight[((o * channels + c) * kOutputTaps + ky) * kOutputTaps + kx];
    return half_bits(w * up[static_cast<size_t>(o)]);
  };
  const int64_t chunks = (packed.channels + 15) / 16;
  const int64_t n8 = image_channels;  // groups of 8 columns: 7 image_channels, rounded up
  const int64_t fragments = kOutputTaps * n8;
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    for (int64_t pair = 0; pair < (fragments + 1) / 2; ++pair) {
      for (int64_t lane = 0; lane < 32; ++lane) {
        for (int64_t fragment = 2 * pair; fragment < 2 * pair + 2; ++fragment) {
          for (int64_t i = 0; i < 4; ++i) {  // k = 2 (lane % 4) + {0, 1, 8, 9}
            const int64_t k = lane % 4 * 2 + i / 2 * 8 + i % 2;
            const int64_t n = fragment % n8 * 8 + lane / 4;
            packed.weights.push_back(fragment < fragments ? value(chunk, k, fragment / n8, n)
                                                          : uint16_t{0});
          }
        }
      }
    }
  }
  return packed;
}

}  // namespace cae::cuda
