// SPDX-License-Identifier: Apache-2.0
// Interpolates class codes: one thread per element, striding over the grid. Memory-bound, and tiny
// beside the decoder; it exists so that the points of a path are made where they are decoded.
#include <algorithm>

#include "cuda/lerp_codes_cuda.h"
#include "simt/launch.h"
#include "simt/simt.h"

namespace cae::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kMaxBlocks = 4096;  // more only cost their launch

struct LerpParams {
  const float* start;
  const float* end;
  const float* t;
  float* out;
  int64_t count;
  int64_t d;
};

KERNEL void __launch_bounds__(kThreads) lerp_codes_kernel(const LerpParams p) {
  const int64_t stride = static_cast<int64_t>(dev::gx()) * kThreads;
  for (int64_t i = static_cast<int64_t>(dev::bx()) * kThreads + dev::tid(); i < p.count;
       i += stride) {
    const float u = dev::load(p.t + i / p.d);
    // Roundings spelled out, so that no compiler flag changes which codes are decoded.
    const float rest = dev::mul(dev::add(1.0F, -u), dev::load(p.start + i));
    dev::store(p.out + i, dev::fma(u, dev::load(p.end + i), rest));
  }
}

}  // namespace

void lerp_codes(const float* start, const float* end, const float* t, float* out, int64_t n,
                int64_t d, void* stream) {
  const int64_t count = n * d;
  if (count == 0) {
    return;
  }
  const auto blocks = static_cast<int>(std::min((count + kThreads - 1) / kThreads, kMaxBlocks));
  launch(lerp_codes_kernel, Grid{blocks}, kThreads, 0, stream,
         LerpParams{start, end, t, out, count, d});
}

}  // namespace cae::cuda
