// SPDX-License-Identifier: Apache-2.0
#include "ops/output_conv.h"

#include <algorithm>
#include <vector>

#include "core/ceil_div.h"
#include "ops/filter_transform.h"

namespace cae {
namespace {

constexpr int64_t kTaskRows = 16;  // the rows around them are normalised twice
constexpr int64_t kWinogradTaskRows = 32;
constexpr int64_t kBandFloats = 128 * 1024;  // of transformed rows: half a second-level cache

/// Columns of a task: strips of nearly equal width, of which two blocks fit the cache.
int64_t strip_columns(const OutputConv& conv) {
  const int64_t fitting = kBandFloats / (2 * OutputConv::kFrequencies * conv.channels);
  const int64_t most = std::max<int64_t>(fitting - (conv.kernel - 1), 32);
  return ceil_div(conv.width, ceil_div(conv.width, most));
}

/// weights[(i, c)][(j, o)]
void pack_direct(const TensorView<const float>& weight, OutputConv& conv) {
  const int64_t kernel = conv.kernel;
  for (int64_t o = 0; o < conv.out_channels; ++o) {
    for (int64_t c = 0; c < conv.channels; ++c) {
      for (int64_t i = 0; i < kernel; ++i) {
        for (int64_t j = 0; j < kernel; ++j) {
          conv.weights.data()[(i * conv.channels + c) * conv.columns + j * conv.out_channels + o] =
              weight.data[((o * conv.channels + c) * kernel + i) * kernel + j];
        }
      }
    }
  }
}

/// weights[(frequency, filter, c)][(j, o)], where the filters are rows 0 to 3 and 4 to 6.
void pack_winograd(const TensorView<const float>& weight, OutputConv& conv) {
  const int64_t kernel = conv.kernel;
  const FilterTransform transform = filter_transform({0, 1, -1, 0.5, -0.5, 2}, 4);
  for (int64_t f = 0; f < OutputConv::kFrequencies; ++f) {
    for (int64_t o = 0; o < conv.out_channels; ++o) {
      for (int64_t c = 0; c < conv.channels; ++c) {
        for (int64_t i = 0; i < kernel; ++i) {
          const double factor = transform[static_cast<size_t>(f)][static_cast<size_t>(i % 4)];
          const int64_t row = (f * 2 + i / 4) * conv.channels + c;
          for (int64_t j = 0; j < kernel; ++j) {
            const float tap = weight.data[((o * conv.channels + c) * kernel + i) * kernel + j];
            float& sum = conv.weights.data()[row * conv.columns + j * conv.out_channels + o];
            sum = static_cast<float>(sum + factor * tap);
          }
        }
      }
    }
  }
}

}  // namespace

OutputConv plan_output_conv(const TensorView<const float>& weight, const float* bias,
                            int64_t height, int64_t width, Arithmetic arithmetic) {
  CAE_CHECK(weight.rank() == 4 && weight.dim(2) == weight.dim(3) && weight.dim(2) % 2 == 1 &&
                weight.numel() >= 1,
            "weight must be [O, C, k, k] with k odd, got ", shape_string(weight.shape));
  OutputConv conv;
  conv.height = height;
  conv.width = width;
  conv.out_channels = weight.dim(0);
  conv.channels = weight.dim(1);
  conv.kernel = weight.dim(2);
  const int64_t kernel = conv.kernel;
  CAE_CHECK(height > kernel / 2 && width > kernel / 2, "a convolution with padding ", kernel / 2,
            " needs an image of at least ", kernel / 2 + 1, " x ", kernel / 2 + 1, ", got ", height,
            " x ", width);
  conv.columns = ceil_div(kernel * conv.out_channels, 8) * 8;
  CAE_CHECK(conv.columns <= 32, "a convolution of ", kernel, " x ", kernel, " to ",
            conv.out_channels, " channels is none to a few channels");
  conv.bias.assign(bias, bias + conv.out_channels);
  conv.winograd = arithmetic == Arithmetic::kFast && kernel == 7;
  conv.task_rows = std::min(conv.winograd ? kWinogradTaskRows : kTaskRows, height);
  conv.task_columns = conv.winograd ? strip_columns(conv) : width;
  conv.weights = AlignedBuffer((conv.winograd ? 2 * OutputConv::kFrequencies : kernel) *
                               conv.channels * conv.columns);
  std::fill_n(conv.weights.data(), conv.weights.size(), 0.0f);
  conv.winograd ? pack_winograd(weight, conv) : pack_direct(weight, conv);
  return conv;
}

void output_conv(const OutputConv& conv, const std::vector<ConvSource>& images, float* planes,
                 Scratch& scratch) {
  cpu::output_conv(conv, images, planes, scratch);
}

}  // namespace cae
