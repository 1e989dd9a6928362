// SPDX-License-Identifier: Apache-2.0
// Weights as upsample_ring reads them. Packed are, for each side of the ring (top, bottom, left,
// right), the five taps that touch the difference there, as 2 phases of 3 taps: the columns are
// those of phase 0, then those of phase 1. A fourth tap is what corners add (top and bottom).
#pragma once

#include <cstdint>
#include <vector>

#include "core/host_device.h"

namespace cae::cuda {

constexpr int kRingSides = 4;
constexpr int kRingTaps = 4;
constexpr int kRingKBlock = 32;   // input channels per stage
constexpr int kRingColumns = 64;  // of a block, of the 2 * out_channels
constexpr int kRingGroups = kRingKBlock / 8;
constexpr int kRingStageHalves = kRingTaps * kRingKBlock * kRingColumns;

CAE_HD constexpr int ring_blocks(int stored_out_channels) {
  return (2 * stored_out_channels + kRingColumns - 1) / kRingColumns;
}
CAE_HD constexpr int ring_k_blocks(int stored_in_channels) {
  return (stored_in_channels + kRingKBlock - 1) / kRingKBlock;
}

/// weight [out][in][5][5] times `scale`, that of the convolution (PackedConv::scale), sums of taps
/// rounded to half: [side][block][k-block][tap][group of 8 channels][kRingColumns][8].
std::vector<uint16_t> pack_upsample_ring(const float* weight, int64_t out, int64_t in, float scale);

}  // namespace cae::cuda
