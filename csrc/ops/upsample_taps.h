// SPDX-License-Identifier: Apache-2.0
// Nearest upsampling x2 followed by a 5x5 convolution, as 3x3 convolutions of the small image.
#pragma once

#include <cstdint>
#include <vector>

#include "core/tensor_view.h"

namespace cae {

/// Along one axis, what some of the outputs see of the small image: up to three of its rows (or
/// columns), each with a sum of the five taps.
struct AxisTaps {
  int64_t begin;      // first low-resolution index
  int64_t count;      // of low-resolution indices
  int64_t parity;     // output index = 2 * low-resolution index + parity
  int64_t first_tap;  // row a of `sum` is low-resolution offset a - 1; the first that is not zero
  int64_t taps;
  double sum[3][5];
};

/// The outputs of an axis of `size` low-resolution indices. Both outputs of an index see three
/// indices. Reflecting the upsampled image equals replicating the small one but for the first and
/// the last output, where two indices remain:
///   first: x[0] * (w1 + w2 + w3) + x[1] * (w0 + w4); the last one mirrored.
enum class AxisOutput { kFirst, kEven, kOdd, kLast };
AxisTaps axis_taps(AxisOutput output, int64_t size);

/// Difference even - odd: w1 * (x[i-1] - x[i]) + w3 * (x[i] - x[i+1]).
AxisTaps axis_difference(int64_t size);

/// Sums the taps of weight [O, C, 5, 5] to rows [O][tap y, tap x, C].
std::vector<float> sum_taps(const TensorView<const float>& weight, const AxisTaps& vertical,
                            const AxisTaps& horizontal);

}  // namespace cae
