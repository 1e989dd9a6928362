// SPDX-License-Identifier: Apache-2.0
#include "cuda/upsample_ring_pack.h"

#include "core/half_bits.h"
#include "ops/upsample_taps.h"

namespace cae::cuda {
namespace {

/// Tap i of the five that meet the difference on a side.
double side_tap(const float* taps, int side, int i) {
  switch (side) {
    case 0:
      return taps[i];
    case 1:
      return taps[20 + i];
    case 2:
      return taps[i * 5];
    default:
      return taps[i * 5 + 4];
  }
}

/// Tap `tap` of a phase, for one pair of channels.
double packed_tap(const float* taps, int side, const AxisTaps& axis, int phase, int tap) {
  if (tap == 3) {
    return side >= 2 ? 0.0 : side_tap(taps, side, phase == 0 ? 0 : 4);
  }
  double sum = 0.0;
  for (int i = 0; i < 5; ++i) {
    sum += axis.sum[tap][i] * side_tap(taps, side, i);
  }
  return sum;
}

}  // namespace

std::vector<uint16_t> pack_upsample_ring(const TensorView<const float>& weight, float scale) {
  check_shape(weight.shape, "weight", {"O", "C", 5, 5});
  const int64_t out_channels = weight.dim(0);
  const int64_t channels = weight.dim(1);
  const int64_t stored_out = (out_channels + 7) / 8 * 8;
  const int64_t blocks = ring_blocks(static_cast<int>(stored_out));
  const int64_t k_blocks = ring_k_blocks(static_cast<int>(channels));
  const AxisTaps phases[2] = {axis_taps(AxisOutput::kEven, 2), axis_taps(AxisOutput::kOdd, 2)};
  std::vector<uint16_t> packed(static_cast<size_t>(kRingSides * blocks * k_blocks * kRingStageHalves),
                               0);
  for (int side = 0; side < kRingSides; ++side) {
    for (int phase = 0; phase < 2; ++phase) {
      for (int64_t o = 0; o < out_channels; ++o) {
        const int64_t column = phase * stored_out + o;
        const int64_t block = (side * blocks + column / kRingColumns) * k_blocks;
        for (int64_t c = 0; c < channels; ++c) {
          for (int tap = 0; tap < kRingTaps; ++tap) {
            const double value = packed_tap(weight.data + (o * channels + c) * 25, side,
                                            phases[phase], phase, tap);
            const int64_t cell =
                ((block + c / kRingKBlock) * kRingTaps + tap) * kRingGroups + c % kRingKBlock / 8;
            packed[static_cast<size_t>((cell * kRingColumns + column % kRingColumns) * 8 + c % 8)] =
                half_bits(static_cast<float>(value * scale));
          }
        }
      }
    }
  }
  return packed;
}

}  // namespace cae::cuda
