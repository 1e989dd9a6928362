// SPDX-License-Identifier: Apache-2.0
#include "ops/output_conv.h"

#include <algorithm>

namespace cae {
namespace {

constexpr int64_t kTaskRows = 16;  // the rows around them are normalised twice

}  // namespace

OutputConv plan_output_conv(const TensorView<const float>& weight, const float* bias,
                            int64_t height, int64_t width) {
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
  conv.bias.assign(bias, bias + conv.out_channels);
  conv.task_rows = std::min(kTaskRows, height);

  conv.columns = (kernel * conv.out_channels + 7) / 8 * 8;
  CAE_CHECK(conv.columns <= 32, "a convolution of ", kernel, " x ", kernel, " to ",
            conv.out_channels, " channels is none to a few channels");
  conv.weights = AlignedBuffer(kernel * conv.channels * conv.columns);
  std::fill_n(conv.weights.data(), conv.weights.size(), 0.0f);
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
  return conv;
}

void output_conv(const OutputConv& conv, const std::vector<ConvSource>& images, float* planes,
                 Scratch& scratch) {
  cpu::output_conv(conv, images, planes, scratch);
}

}  // namespace cae
