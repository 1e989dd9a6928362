// SPDX-License-Identifier: Apache-2.0
#include "cuda/conv_pack.h"

#include <cmath>

#include "core/check.h"
#include "core/half_bits.h"

namespace cae::cuda {
namespace {

int kernel_size(ConvKind kind) {
  switch (kind) {
    case ConvKind::kConv3x3:
      return 3;
    case ConvKind::kStride2:
      return 4;
    case ConvKind::kImage7x7:
      return 7;
    case ConvKind::kUpsample:
      return 5;
  }
  return 0;
}

/// The weights of one layer, by output, input and place, scaled.
struct WeightSource {
  const float* weight;
  const float* in_scale;
  int64_t out;
  int64_t in;
  int kernel;
  const std::vector<float>& scale;

  double at(int64_t o, int64_t c, int ky, int kx) const {
    if (o >= out || c >= in || ky >= kernel || kx >= kernel) {
      return 0.0;
    }
    const double undo = in_scale == nullptr ? 1.0 : 1.0 / in_scale[c];
    return weight[((o * in + c) * kernel + ky) * kernel + kx] * undo *
           static_cast<double>(scale[static_cast<size_t>(o)]);
  }
};

/// Taps of the enlarged image that phase `phase` of an output sees at low-resolution tap `tap`,
/// both along one axis: even outputs {w0 + w1, w2 + w3, w4}, odd ones {w0, w1 + w2, w3 + w4}.
struct TapRange {
  int first;
  int last;
};
TapRange upsample_taps_of(int phase, int tap) {
  const int first = 2 * tap - phase;
  return {first < 0 ? 0 : first, first + 1 > 4 ? 4 : first + 1};
}

/// Weight of column n, k-block kb, tap, and input k of the block.
double packed_weight(ConvKind kind, const WeightSource& w, int stored_in, int stored_out, int n,
                     int kb, int tap, int k) {
  if (kind == ConvKind::kConv3x3) {
    return w.at(n, kb * kConvKBlock + k, tap / 3, tap % 3);
  }
  if (kind == ConvKind::kStride2) {
    const int blocks = (stored_in + kConvKBlock - 1) / kConvKBlock;
    const int parity = kb / blocks;
    return w.at(n, kb % blocks * kConvKBlock + k, tap / 2 * 2 + parity / 2,
                tap % 2 * 2 + parity % 2);
  }
  if (kind == ConvKind::kImage7x7) {
    const int kx = k / 8 * 2 + k % 8 / 4;
    return kx < 7 ? w.at(n, k % 4, tap, kx) : 0.0;
  }
  const int phase = n / stored_out;
  if (phase >= 4) {
    return 0.0;
  }
  const TapRange ys = upsample_taps_of(phase / 2, tap / 3);
  const TapRange xs = upsample_taps_of(phase % 2, tap % 3);
  double sum = 0.0;
  for (int ky = ys.first; ky <= ys.last; ++ky) {
    for (int kx = xs.first; kx <= xs.last; ++kx) {
      sum += w.at(n % stored_out, kb * kConvKBlock + k, ky, kx);
    }
  }
  return sum;
}

/// The power of two that brings `norm` next to 1.
float unit_scale(double norm) {
  constexpr double kMost = 60.0;  // its square, which scales epsilons, is a float as well
  return norm > 0.0 ? static_cast<float>(std::exp2(
                          std::fmin(std::fmax(-std::round(std::log2(norm)), -kMost), kMost)))
                    : 1.0F;
}

std::vector<float> output_scales(ConvKind kind, const WeightSource& w, const float* bias,
                                 int32_t stored) {
  std::vector<float> scale(static_cast<size_t>(stored), 1.0F);
  double largest = 0.0;
  for (int64_t o = 0; o < w.out; ++o) {
    double squares = bias == nullptr ? 0.0 : static_cast<double>(bias[o]) * bias[o];
    for (int64_t c = 0; c < w.in; ++c) {
      for (int tap = 0; tap < w.kernel * w.kernel; ++tap) {
        const double value = w.at(o, c, tap / w.kernel, tap % w.kernel);
        squares += value * value;
      }
    }
    CAE_CHECK(std::isfinite(squares), "weights of output channel ", o, " are not finite");
    scale[static_cast<size_t>(o)] = unit_scale(std::sqrt(squares));
    largest = std::max(largest, squares);
  }
  if (kind == ConvKind::kUpsample) {
    // Layer norm takes one scale for all; an output's norm counts five times over its phases.
    scale.assign(scale.size(), unit_scale(std::sqrt(largest)));
  }
  return scale;
}

}  // namespace

PackedConv pack_conv(ConvKind kind, const float* weight, const float* bias, int64_t out, int64_t in,
                     const float* in_scale) {
  PackedConv packed;
  packed.kind = kind;
  packed.in_channels = kind == ConvKind::kImage7x7 ? static_cast<int32_t>(in) : stored_channels(in);
  packed.out_channels = stored_channels(out);
  packed.real_channels = static_cast<int32_t>(out);
  const std::vector<float> ones(static_cast<size_t>(packed.out_channels), 1.0F);
  const int kernel = kernel_size(kind);
  packed.scale =
      output_scales(kind, {weight, in_scale, out, in, kernel, ones}, bias, packed.out_channels);

  const WeightSource source{weight, in_scale, out, in, kernel, packed.scale};
  const auto epilogue =
      kind == ConvKind::kUpsample ? ConvEpilogue::kShuffle : ConvEpilogue::kMoments;
  const int pieces = conv_pieces(conv_columns(epilogue, packed.out_channels));
  const int k_blocks = conv_k_blocks(kind, packed.in_channels);
  const int k_size = kind == ConvKind::kImage7x7 ? kConvImageKBlock : kConvKBlock;
  packed.weights.reserve(static_cast<size_t>(pieces) * k_blocks * conv_taps(kind) * k_size *
                         kConvColumns);
  for (int piece = 0; piece < pieces; ++piece) {
    for (int kb = 0; kb < k_blocks; ++kb) {
      for (int tap = 0; tap < conv_taps(kind); ++tap) {
        for (int group = 0; group < k_size / 8; ++group) {
          for (int n = 0; n < kConvColumns; ++n) {
            for (int e = 0; e < 8; ++e) {
              const double value =
                  packed_weight(kind, source, packed.in_channels, packed.out_channels,
                                piece * kConvColumns + n, kb, tap, group * 8 + e);
              packed.weights.push_back(half_bits(static_cast<float>(value)));
            }
          }
        }
      }
    }
  }
  return packed;
}

}  // namespace cae::cuda
