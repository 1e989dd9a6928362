// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "core/tensor_view.h"

namespace cae {

/// Points on guided paths, polylines through class codes, at t = step / grid by arc length.
///   vertices     [N, V, D]  V >= 1 vertices of each image's path
///   image_index  [M]        which path, in [0, N)
///   step         [M]        in [0, grid]
///   out          [M, D]
/// Between vertices a and b the point is (1 - u) * a + u * b with the last product fused, so
/// vertices are met exactly. With V = 2, u = step / grid exactly. A path of length zero (one
/// vertex, or all equal) stays at its first vertex. Lengths are summed in double precision.
/// Throws std::invalid_argument if shapes disagree or an index or step is out of range.
void path_codes(const TensorView<const float>& vertices,
                const TensorView<const int32_t>& image_index, const TensorView<const int32_t>& step,
                int64_t grid, const TensorView<float>& out);

/// Throws std::invalid_argument unless every index is in [0, images).
void check_image_index(const TensorView<const int32_t>& image_index, int64_t images);

namespace cpu {
void path_codes(const float* vertices, int64_t vertex_count, int64_t code_dim,
                const int32_t* image_index, const int32_t* step, int64_t count, int64_t grid,
                float* out);
}  // namespace cpu

}  // namespace cae
