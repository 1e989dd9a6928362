// SPDX-License-Identifier: Apache-2.0
// Serial: a few numbers per point.
#include <cmath>
#include <vector>

#include "ops/path_codes.h"

namespace cae::cpu {
namespace {

/// Where on the polyline: between vertices `segment` and `segment + 1`, at `u` of the way.
struct Position {
  int64_t segment = 0;
  float u = 0.0f;
};

/// lengths[i] = arc length from the first vertex to vertex i.
std::vector<double> arc_lengths(const float* vertices, int64_t vertex_count, int64_t code_dim) {
  std::vector<double> lengths(static_cast<size_t>(vertex_count), 0.0);
  for (int64_t i = 1; i < vertex_count; ++i) {
    double squares = 0.0;
    for (int64_t d = 0; d < code_dim; ++d) {
      const double difference = static_cast<double>(vertices[i * code_dim + d]) -
                                static_cast<double>(vertices[(i - 1) * code_dim + d]);
      squares += difference * difference;
    }
    lengths[static_cast<size_t>(i)] = lengths[static_cast<size_t>(i - 1)] + std::sqrt(squares);
  }
  return lengths;
}

Position locate(const std::vector<double>& lengths, int64_t step, int64_t grid) {
  const auto segments = static_cast<int64_t>(lengths.size()) - 1;
  const double total = lengths.back();
  if (step == 0 || segments == 0 || total == 0.0) {
    return {};
  }
  if (step == grid) {
    return {segments - 1, 1.0f};
  }
  const double t = static_cast<double>(step) / static_cast<double>(grid);
  if (segments == 1) {
    return {0, static_cast<float>(t)};
  }
  const double target = t * total;
  int64_t segment = 0;
  while (segment + 1 < segments && lengths[static_cast<size_t>(segment + 1)] <= target) {
    ++segment;
  }
  const double begin = lengths[static_cast<size_t>(segment)];
  const double length = lengths[static_cast<size_t>(segment + 1)] - begin;
  return {segment, static_cast<float>(length > 0.0 ? (target - begin) / length : 0.0)};
}

}  // namespace

void path_codes(const float* vertices, int64_t vertex_count, int64_t code_dim,
                const int32_t* image_index, const int32_t* step, int64_t count, int64_t grid,
                float* out) {
  for (int64_t m = 0; m < count; ++m) {
    const float* path = vertices + image_index[m] * vertex_count * code_dim;
    const Position position = locate(arc_lengths(path, vertex_count, code_dim), step[m], grid);
    const float* a = path + position.segment * code_dim;
    for (int64_t d = 0; d < code_dim; ++d) {
      // a[code_dim + d] does not exist behind the last vertex, which only u = 0 of a point names
      out[m * code_dim + d] =
          position.u == 0.0f ? a[d]
                             : std::fma(position.u, a[code_dim + d], (1.0f - position.u) * a[d]);
    }
  }
}

}  // namespace cae::cpu
