// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "core/tensor_view.h"

namespace cae {

/// Signed difference of two images, and the saliency map it gives:
///   difference[n, c, y, x] = a[n, c, y, x] - b[n, c, y, x]
///   saliency[n, y, x]      = sum over c of abs(difference[n, c, y, x]), divided by its maximum
///                            over y, x; zeros where that maximum is 0 or not finite
///   a, b, difference  [N, C, H, W]     saliency  [N, H, W]
/// Throws std::invalid_argument if shapes disagree.
void difference_saliency(const TensorView<const float>& a, const TensorView<const float>& b,
                         const TensorView<float>& difference, const TensorView<float>& saliency);

namespace cpu {
void difference_saliency(const float* a, const float* b, int64_t images, int64_t channels,
                         int64_t pixels, float* difference, float* saliency);
}  // namespace cpu

}  // namespace cae
