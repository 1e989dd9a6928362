// SPDX-License-Identifier: Apache-2.0
// A block merges one group of parts for 32 neighbouring channels, a lane each: reads are 256 bytes
// in a row. Its warps share the parts, and their sums are added in the order of the warps.
#include "core/check.h"
#include "cuda/moments_cuda.h"
#include "simt/launch.h"
#include "simt/simt.h"

namespace cae::cuda {
namespace {

constexpr int kMomentsThreads = 256;
constexpr int kMomentsWarps = kMomentsThreads / 32;

struct alignas(8) Moments {
  float mean;
  float m2;
};

/// Sum over the warps, of a value per lane. Every thread calls; `scratch` holds kMomentsThreads
/// floats, which no later sum may reuse.
KFN float sum_of_warps(float value, int tid, uint32_t scratch) {
  dev::stsf(scratch + tid * 4, value);
  dev::sync();
  float sum = 0.0F;
  UNROLL for (int w = 0; w < kMomentsWarps; ++w) {
    sum += dev::ldsf(scratch + (w * 32 + (tid & 31)) * 4);
  }
  return sum;
}

KERNEL void __launch_bounds__(kMomentsThreads) merge_moments_kernel(const MergeMomentsParams p) {
  dev::pdl_launch();
  dev::pdl_wait();
  const int channel_blocks = (p.channels + 31) / 32;
  const int blocks = channel_blocks * p.merged_parts;
  const int64_t row = dev::bx() / blocks;
  if (p.active != nullptr && dev::load(p.active + row) == 0) {
    return;
  }
  const int block = dev::bx() % blocks;
  const int group = block / channel_blocks;
  const int tid = dev::tid();
  const int channel = block % channel_blocks * 32 + (tid & 31);
  const bool inside = channel < p.channels;
  const int begin = static_cast<int>(merged_begin(p.parts, p.merged_parts, group));
  const int end = static_cast<int>(merged_begin(p.parts, p.merged_parts, group + 1));
  const auto* part = reinterpret_cast<const Moments*>(p.partials) + row * p.parts * p.channels +
                     (inside ? channel : 0);
  const uint32_t scratch = dev::smem_base();

  float sum = 0.0F;
  float count = 0.0F;
  UNROLL_BY(4) for (int t = begin + (tid >> 5); t < end; t += kMomentsWarps) {
    const float n = dev::load(p.counts + t);
    sum = dev::fma(dev::load(part + static_cast<int64_t>(t) * p.channels).mean, n, sum);
    count += n;
  }
  const float total = sum_of_warps(count, tid, scratch);
  const float mean = sum_of_warps(sum, tid, scratch + kMomentsThreads * 4) / total;
  float m2 = 0.0F;
  UNROLL_BY(4) for (int t = begin + (tid >> 5); t < end; t += kMomentsWarps) {
    const Moments of = dev::load(part + static_cast<int64_t>(t) * p.channels);
    const float d = of.mean - mean;
    m2 += dev::fma(d * d, dev::load(p.counts + t), of.m2);
  }
  m2 = sum_of_warps(m2, tid, scratch + 2 * kMomentsThreads * 4);
  if (tid < 32 && inside) {
    const int64_t at = (row * p.merged_parts + group) * p.channels + channel;
    dev::store(reinterpret_cast<Moments*>(p.merged) + at, Moments{mean, m2});
  }
}

}  // namespace

std::vector<float> merged_counts(const std::vector<float>& counts, int32_t merged_parts) {
  const auto parts = static_cast<int64_t>(counts.size());
  CAE_CHECK(merged_parts >= 1 && merged_parts <= parts, "merged_parts must be in [1, ", parts,
            "], got ", merged_parts);
  std::vector<float> merged(static_cast<size_t>(merged_parts), 0.0F);
  for (int64_t g = 0; g < merged_parts; ++g) {
    for (int64_t t = merged_begin(parts, merged_parts, g);
         t < merged_begin(parts, merged_parts, g + 1); ++t) {
      merged[static_cast<size_t>(g)] += counts[static_cast<size_t>(t)];
    }
  }
  return merged;
}

void merge_moments(const MergeMomentsParams& params, void* stream) {
  if (params.rows == 0) {
    return;
  }
  CAE_CHECK(params.channels >= 1, "channels must be at least 1, got ", params.channels);
  CAE_CHECK(params.merged_parts >= 1 && params.merged_parts <= params.parts,
            "merged_parts must be in [1, ", params.parts, "], got ", params.merged_parts);
  const int64_t blocks =
      static_cast<int64_t>(params.rows) * params.merged_parts * ((params.channels + 31) / 32);
  CAE_CHECK(blocks <= INT32_MAX, params.rows, " rows are too many for one launch");
  launch(merge_moments_kernel, Grid{static_cast<int>(blocks), 1, 1}, kMomentsThreads,
         3 * kMomentsThreads * 4, stream, params, {params.overlap});
}

}  // namespace cae::cuda
