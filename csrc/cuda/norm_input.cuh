// SPDX-License-Identifier: Apache-2.0
// How a kernel turns what the layer before it stored, raw, into normalised values: the moments of
// that layer's tiles are merged in a fixed order, and each channel gets scale and shift,
// value = scale[c] * raw + shift[c].
#pragma once

#include "cuda/norm_input.h"
#include "simt/simt.h"

namespace cae::cuda {

/// Bytes of shared memory: scale and shift of each channel, then scratch of finalise_norm.
HDFN constexpr uint32_t norm_bytes(int channels) {
  return static_cast<uint32_t>(channels) * 8 + 64 * 4;
}

/// Sum over all threads of the block, the same order whatever the scheduling. Every thread calls.
template <int kThreads>
KFN float block_sum(float value, int tid, uint32_t scratch) {
  UNROLL for (int m = 1; m < 32; m <<= 1) { value += dev::shfl_xor(value, m); }
  if ((tid & 31) == 0) {
    dev::stsf(scratch + (tid >> 5) * 4, value);
  }
  dev::sync();
  float sum = 0.0F;
  UNROLL for (int w = 0; w < kThreads / 32; ++w) { sum += dev::ldsf(scratch + w * 4); }
  return sum;
}

struct alignas(8) MomentPair {
  float mean;
  float m2;
};

/// Channel c of row `row`: mean and M2 of all parts.
KFN void merge_channel(const NormInput& n, int64_t row, int c, float& mean, float& m2) {
  const float* p = n.partials + ((row * n.parts) * n.channels + c) * 2;
  const int64_t pitch = static_cast<int64_t>(n.channels) * 2;
  float sum = 0.0F;
  UNROLL_BY(16) for (int t = 0; t < n.parts; ++t) {
    sum = dev::fma(dev::load(p + t * pitch), dev::load(n.counts + t), sum);
  }
  mean = sum / n.total;
  m2 = 0.0F;
  UNROLL_BY(16) for (int t = 0; t < n.parts; ++t) {
    const auto pair = dev::load(reinterpret_cast<const MomentPair*>(p + t * pitch));
    const float d = pair.mean - mean;
    m2 += dev::fma(d * d, dev::load(n.counts + t), pair.m2);
  }
}

/// Writes scale[count], shift[count] of the channels from `first` on to shared memory at `ss`
/// (norm_bytes(count) of it). Every one of kThreads threads calls; a dev::sync() must follow before
/// they are read.
template <int kThreads>
KFN void finalise_channels(const NormInput& n, int64_t row, int64_t mod_row, int tid, uint32_t ss,
                           int first, int count) {
  const float* gamma = n.gamma == nullptr ? nullptr : n.gamma + mod_row * n.mod_stride;
  const float* beta = n.beta == nullptr ? nullptr : n.beta + mod_row * n.mod_stride;
  float mean = 0.0F;
  float scale = 1.0F;
  if (n.kind == NormKind::kLayer) {
    const uint32_t scratch = ss + count * 8;
    const float* p = n.partials + row * n.parts * 2;
    float sum = 0.0F;
    for (int t = tid; t < n.parts; t += kThreads) {
      sum = dev::fma(dev::load(p + t * 2), dev::load(n.counts + t), sum);
    }
    mean = block_sum<kThreads>(sum, tid, scratch) / n.total;
    float m2 = 0.0F;
    for (int t = tid; t < n.parts; t += kThreads) {
      const float d = dev::load(p + t * 2) - mean;
      m2 += dev::fma(d * d, dev::load(n.counts + t), dev::load(p + t * 2 + 1));
    }
    m2 = block_sum<kThreads>(m2, tid, scratch + 128);
    scale = 1.0F / (dev::sqrt(m2 / (n.total - 1.0F)) + dev::load(n.eps));
  }
  for (int i = tid; i < count; i += kThreads) {
    const int c = first + i;
    if (n.kind == NormKind::kInstance) {
      float m2 = 0.0F;
      merge_channel(n, row, c, mean, m2);
      scale = dev::rsqrt(m2 / n.total + dev::load(n.eps + c));
    }
    const float g = gamma == nullptr ? scale : scale * dev::load(gamma + c);
    const float b = beta == nullptr ? 0.0F : dev::load(beta + c);
    dev::stsf(ss + i * 4, g);
    dev::stsf(ss + (count + i) * 4, b - mean * g);
  }
}

/// finalise_channels of all channels.
template <int kThreads>
KFN void finalise_norm(const NormInput& n, int64_t row, int64_t mod_row, int tid, uint32_t ss) {
  finalise_channels<kThreads>(n, row, mod_row, tid, ss, 0, n.channels);
}

}  // namespace cae::cuda
