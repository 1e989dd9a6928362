// SPDX-License-Identifier: Apache-2.0
#include "ops/upsample_taps.h"

#include <algorithm>

namespace cae {

AxisTaps axis_taps(AxisOutput output, int64_t size) {
  switch (output) {
    case AxisOutput::kFirst:
      return {0, 1, 0, 1, 2, {{0, 0, 0, 0, 0}, {0, 1, 1, 1, 0}, {1, 0, 0, 0, 1}}};
    case AxisOutput::kEven:
      return {1, size - 1, 0, 0, 3, {{1, 1, 0, 0, 0}, {0, 0, 1, 1, 0}, {0, 0, 0, 0, 1}}};
    case AxisOutput::kOdd:
      return {0, size - 1, 1, 0, 3, {{1, 0, 0, 0, 0}, {0, 1, 1, 0, 0}, {0, 0, 0, 1, 1}}};
    case AxisOutput::kLast:
      break;
  }
  return {size - 1, 1, 1, 0, 2, {{1, 0, 0, 0, 1}, {0, 1, 1, 1, 0}, {0, 0, 0, 0, 0}}};
}

AxisTaps axis_difference(int64_t size) {
  AxisTaps difference = axis_taps(AxisOutput::kEven, size);
  const AxisTaps odd = axis_taps(AxisOutput::kOdd, size);
  for (int64_t a = 0; a < 3; ++a) {
    std::transform(difference.sum[a], difference.sum[a] + 5, odd.sum[a], difference.sum[a],
                   [](double even_tap, double odd_tap) { return even_tap - odd_tap; });
  }
  return difference;
}

std::vector<float> sum_taps(const TensorView<const float>& weight, const AxisTaps& vertical,
                            const AxisTaps& horizontal) {
  const int64_t out_channels = weight.dim(0);
  const int64_t channels = weight.dim(1);
  std::vector<float> rows(
      static_cast<size_t>(out_channels * vertical.taps * horizontal.taps * channels));
  float* row = rows.data();
  for (int64_t o = 0; o < out_channels; ++o) {
    for (int64_t a = vertical.first_tap; a < vertical.first_tap + vertical.taps; ++a) {
      for (int64_t b = horizontal.first_tap; b < horizontal.first_tap + horizontal.taps; ++b) {
        for (int64_t c = 0; c < channels; ++c) {
          const float* taps = weight.data + (o * channels + c) * 25;
          double sum = 0.0;
          for (int64_t i = 0; i < 5; ++i) {
            for (int64_t j = 0; j < 5; ++j) {
              sum += vertical.sum[a][i] * horizontal.sum[b][j] * taps[i * 5 + j];
            }
          }
          *row++ = static_cast<float>(sum);
        }
      }
    }
  }
  return rows;
}

}  // namespace cae
