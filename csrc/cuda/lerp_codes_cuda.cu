// SPDX-License-Identifier: Apache-2.0
// Interpolates class codes: one thread per element, striding over the grid. Memory-bound, and tiny
// beside the decoder; it exists so that the points of a path are made where they are decoded.
#include "cuda/launch_cuda.cuh"
#include "cuda/lerp_codes_cuda.h"

namespace cae::cuda {
namespace {

__global__ void __launch_bounds__(kThreadsPerBlock)
    lerp_codes_kernel(const float* start, const float* end, const float* t, float* out,
                      int64_t count, int64_t d) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count;
       i += stride) {
    const float u = t[i / d];
    // Roundings spelled out, so that no compiler flag changes which codes are decoded.
    const float rest = __fmul_rn(__fsub_rn(1.0F, u), start[i]);
    out[i] = __fmaf_rn(u, end[i], rest);
  }
}

}  // namespace

void lerp_codes(const float* start, const float* end, const float* t, float* out, int64_t n,
                int64_t d, void* stream) {
  const int64_t count = n * d;
  if (count == 0) {
    return;
  }
  lerp_codes_kernel<<<elementwise_blocks(count), kThreadsPerBlock, 0,
                      static_cast<cudaStream_t>(stream)>>>(start, end, t, out, count, d);
  CAE_LAUNCH_CHECK();
}

}  // namespace cae::cuda
