// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "core/tensor_view.h"

namespace cae {

/// Point on the straight guided path between two class codes (arXiv:2406.07961):
///   out[n, d] = (1 - t[n]) * start[n, d] + t[n] * end[n, d]
///   start, end  [N, D]  class codes of image and exemplar
///   t           [N]     unitless; 0 and 1 are the ends, nothing is clamped
///   out         [N, D]  may alias `start` or `end`
/// The product with t is fused with the sum: exact at t = 0 and t = 1 for finite codes.
/// Throws std::invalid_argument if shapes disagree.
void lerp_codes(const TensorView<const float>& start, const TensorView<const float>& end,
                const TensorView<const float>& t, const TensorView<float>& out);

namespace cpu {
void lerp_codes(const float* start, const float* end, const float* t, int64_t count,
                int64_t code_dim, float* out);
}  // namespace cpu

}  // namespace cae
