// SPDX-License-Identifier: Apache-2.0
// CUDA side of the op lerp_codes (contract: ops/lerp_codes.h).
#pragma once

#include <cstdint>

namespace cae::cuda {

/// out[n, d] = fma(t[n], end[n, d], (1 - t[n]) * start[n, d]), the rounding of the CPU side: the
/// same codes bit for bit. Asynchronous on `stream` (a cudaStream_t); device pointers.
void lerp_codes(const float* start,  // [N, D]
                const float* end,    // [N, D]
                const float* t,      // [N]
                float* out,          // [N, D], may alias start or end
                int64_t n, int64_t d, void* stream);

}  // namespace cae::cuda
