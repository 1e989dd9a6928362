// SPDX-License-Identifier: Apache-2.0
#include "cuda/upsample_ring_pack.h"

#include "core/check.h"
#include "core/half_bits.h"
#include "cuda/conv_pack.h"
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

std::vector<uint16_t> pack_upsample_ring(const float* weight, int64_t out, int64_t in,
                                         float scale) {
  CAE_CHECK(out >= 1 && in >= 1, "out and in must be at least 1, got ", out, " and ", in);
  const int64_t stored_out = stored_channels(out);
  const int64_t blocks = ring_blocks(static_cast<int>(stored_out));
  const int64_t k_blocks = ring_k_blocks(stored_channels(in));
  const AxisTaps phases[2] = {axis_taps(AxisOutput::kEven, 2), axis_taps(AxisOutput::kOdd, 2)};
  std::vector<uint16_t> packed(
      static_cast<size_t>(kRingSides * blocks * k_blocks * kRingStageHalves), 0);
  for (int side = 0; side < kRingSides; ++side) {
    for (int phase = 0; phase < 2; ++phase) {
      for (int64_t o = 0; o < out; ++o) {
        const int64_t column = phase * stored_out + o;
        const int64_t block = (side * blocks + column / kRingColumns) * k_blocks;
        for (int64_t c = 0; c < in; ++c) {
          for (int tap = 0; tap < kRingTaps; ++tap) {
            const double value =
                packed_tap(weight + (o * in + c) * 25, side, phases[phase], phase, tap);
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
