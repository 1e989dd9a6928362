// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace cae {

/// Winograd's transform of a filter of `taps` <= 4 taps: a row for each finite interpolation point
/// p, p^k / product of (p - other points), and a last one for the point at infinity.
/// [points + 1][taps].
using FilterTransform = std::vector<std::array<double, 4>>;

inline FilterTransform filter_transform(const std::vector<double>& points, int64_t taps) {
  FilterTransform rows(points.size() + 1);
  for (size_t i = 0; i < points.size(); ++i) {
    double divisor = 1;
    for (size_t j = 0; j < points.size(); ++j) {
      divisor *= i == j ? 1 : points[i] - points[j];
    }
    double power = 1;
    for (int64_t k = 0; k < taps; ++k) {
      rows[i][static_cast<size_t>(k)] = power / divisor;
      power *= points[i];
    }
  }
  rows[points.size()][static_cast<size_t>(taps - 1)] = 1;
  return rows;
}

}  // namespace cae
