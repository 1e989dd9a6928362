// SPDX-License-Identifier: Apache-2.0
// One block per row: the means go to shared memory, then each warp makes every eighth element of
// the code.
#include "core/check.h"
#include "cuda/class_head_cuda.h"
#include "simt/launch.h"
#include "simt/simt.h"

namespace cae::cuda {
namespace {

constexpr int kHeadThreads = 256;
constexpr int kMaxHeadChannels = 8192;  // means in 32 KiB of shared memory

KERNEL void __launch_bounds__(kHeadThreads) class_head_kernel(const ClassHeadParams p) {
  dev::pdl_launch();
  dev::pdl_wait();
  const int tid = dev::tid();
  const int lane = tid & 31;
  const int64_t row = dev::bx();
  const uint32_t pooled = dev::smem_base();
  const int64_t pitch = static_cast<int64_t>(p.stored_channels) * 2;
  for (int c = tid; c < p.channels; c += kHeadThreads) {
    const float* part = p.partials + row * p.parts * pitch + c * 2;
    float sum = 0.0F;
    UNROLL_BY(8) for (int t = 0; t < p.parts; ++t) {
      sum = dev::fma(dev::load(part + t * pitch), dev::load(p.counts + t), sum);
    }
    const float mean = sum / p.total;
    dev::stsf(pooled + c * 4, p.unscale == nullptr ? mean : mean * dev::load(p.unscale + c));
  }
  dev::sync();
  for (int d = tid >> 5; d < p.code_dim; d += kHeadThreads / 32) {
    const float* weight = p.weight + static_cast<int64_t>(d) * p.channels;
    float sum = 0.0F;
    UNROLL_BY(8) for (int c = lane; c < p.channels; c += 32) {
      sum = dev::fma(dev::load(weight + c), dev::ldsf(pooled + c * 4), sum);
    }
    UNROLL for (int m = 1; m < 32; m <<= 1) { sum += dev::shfl_xor(sum, m); }
    if (lane == 0) {
      dev::store(p.class_code + row * p.code_dim + d, sum + dev::load(p.bias + d));
    }
  }
}

}  // namespace

void class_head(const ClassHeadParams& params, void* stream) {
  if (params.rows == 0) {
    return;
  }
  CAE_CHECK(params.channels >= 1 && params.channels <= kMaxHeadChannels, "channels must be in [1, ",
            kMaxHeadChannels, "], got ", params.channels);
  CAE_CHECK(params.stored_channels >= params.channels, "channels as stored must be at least ",
            params.channels, ", got ", params.stored_channels);
  CAE_CHECK(params.code_dim >= 1 && params.parts >= 1,
            "code_dim and parts must be at least 1, got ", params.code_dim, " and ", params.parts);
  launch(class_head_kernel, Grid{params.rows, 1, 1}, kHeadThreads,
         static_cast<uint32_t>(params.channels) * 4, stream, params, {params.overlap});
}

}  // namespace cae::cuda
