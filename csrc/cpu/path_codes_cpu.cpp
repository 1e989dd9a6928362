// SPDX-License-Identifier: Apache-2.0
// Serial: a few numbers per point.
#include <cmath>
#include <vector>

#include "ops/path_codes.h"
#include "ops/path_point.h"

namespace cae::cpu {
namespace {

/// lengths[i] = arc length from the first vertex to vertex i.
std::vector<double> arc_lengths(const float* vertices, int64_t vertex_count, int64_t code_dim) {
  std::vector<double> lengths(static_cast<size_t>(vertex_count), 0.0);
  for (int64_t i = 1; i < vertex_count; ++i) {
    double squares = 0.0;
    for (int64_t d = 0; d < code_dim; ++d) {
      squares = add_squared_difference(squares, vertices[i * code_dim + d],
                                       vertices[(i - 1) * code_dim + d]);
    }
    lengths[static_cast<size_t>(i)] = lengths[static_cast<size_t>(i - 1)] + std::sqrt(squares);
  }
  return lengths;
}

}  // namespace

void path_codes(const float* vertices, int64_t vertex_count, int64_t code_dim,
                const int32_t* image_index, const int32_t* step, int64_t count, int64_t grid,
                float* out) {
  for (int64_t m = 0; m < count; ++m) {
    const float* path = vertices + image_index[m] * vertex_count * code_dim;
    const std::vector<double> lengths = arc_lengths(path, vertex_count, code_dim);
    const PathPoint point =
        locate_on_path([&](int64_t i) { return lengths[static_cast<size_t>(i)]; }, vertex_count - 1,
                       step[m], grid);
    const float* a = path + point.segment * code_dim;
    for (int64_t d = 0; d < code_dim; ++d) {
      // a[code_dim + d] does not exist behind the last vertex, which only u = 0 of a point names
      out[m * code_dim + d] =
          point.u == 0.0F ? a[d] : interpolate_on_path(point.u, a[d], a[code_dim + d]);
    }
  }
}

}  // namespace cae::cpu
