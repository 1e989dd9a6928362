// SPDX-License-Identifier: Apache-2.0
// The arithmetic of path_codes, one source for CPU and CUDA, which make the same points bit for
// bit: roundings are spelled out, and the CPU is compiled without contraction.
#pragma once

#include <cmath>
#include <cstdint>

#if defined(__CUDACC__)
#define CAE_PATH_FN __device__  // there, kernels alone call these
#else
#define CAE_PATH_FN
#endif

namespace cae {

/// Where on a polyline: between vertices `segment` and `segment + 1`, at `u` of the way.
struct PathPoint {
  int64_t segment = 0;
  float u = 0.0F;
};

/// sum + (a - b)^2, the squared length of a segment element by element.
CAE_PATH_FN inline double add_squared_difference(double sum, float a, float b) {
  const double difference = static_cast<double>(a) - static_cast<double>(b);
#if defined(__CUDACC__)
  return __dadd_rn(sum, __dmul_rn(difference, difference));
#else
  return sum + difference * difference;
#endif
}

/// arc_length(i) is the length from the first vertex to vertex i, in [0, segments].
template <class ArcLength>
CAE_PATH_FN inline PathPoint locate_on_path(const ArcLength& arc_length, int64_t segments,
                                            int64_t step, int64_t grid) {
  const double total = arc_length(segments);
  if (step == 0 || segments == 0 || total == 0.0) {
    return {};
  }
  if (step == grid) {
    return {segments - 1, 1.0F};
  }
  const double t = static_cast<double>(step) / static_cast<double>(grid);
  if (segments == 1) {
    return {0, static_cast<float>(t)};
  }
#if defined(__CUDACC__)
  const double target = __dmul_rn(t, total);  // differences are taken of it: keep its rounding
#else
  const double target = t * total;
#endif
  int64_t segment = 0;
  while (segment + 1 < segments && arc_length(segment + 1) <= target) {
    ++segment;
  }
  const double begin = arc_length(segment);
  const double length = arc_length(segment + 1) - begin;
  return {segment, static_cast<float>(length > 0.0 ? (target - begin) / length : 0.0)};
}

/// (1 - u) * a + u * b with the last product fused.
CAE_PATH_FN inline float interpolate_on_path(float u, float a, float b) {
#if defined(__CUDACC__)
  return __fmaf_rn(u, b, __fmul_rn(__fsub_rn(1.0F, u), a));
#else
  return std::fma(u, b, (1.0F - u) * a);
#endif
}

}  // namespace cae
