// SPDX-License-Identifier: Apache-2.0
// The decoder's last layer: normalise, reflect, convolve to a few channels, tanh, planes.
//
// With so few output channels the taps of a filter row count as channels as well: one product makes
//   P[y, x, (j, o)] = sum over i, c of in[y + i, x, c] * weight[o, c, i, j]
// and the output is the sum of k of these, P[y, x + j, (j, o)] over j.
//
// Winograd's filtering along y makes four rows of P of a 7x7 filter at once: two F(4, 4), for its
// rows 0 to 3 and 4 to 6. What the second sees of the image is what the first sees of it four rows
// further down, so that each block of seven rows is transformed once: 14 products for 28.
#pragma once

#include <cstdint>
#include <vector>

#include "core/aligned_buffer.h"
#include "core/tensor_view.h"
#include "ops/arithmetic.h"
#include "ops/conv_source.h"
#include "ops/scratch.h"

namespace cae {

struct OutputConv {
  int64_t height = 0;
  int64_t width = 0;
  int64_t channels = 0;
  int64_t out_channels = 0;
  int64_t kernel = 0;
  std::vector<float> bias;
  bool winograd = false;
  int64_t columns = 0;    // of P: kernel * out_channels, rounded up to a multiple of 8
  AlignedBuffer weights;  // [i, c][columns]; if winograd [frequency][filter][c][columns]
  int64_t task_rows = 0;  // outputs of a task
  int64_t task_columns = 0;

  static constexpr int64_t kBlockRows = 4;    // if winograd: rows made at once,
  static constexpr int64_t kFrequencies = 7;  // and products for them

  int64_t padded_columns() const { return task_columns + kernel - 1; }
  /// Floats of what a task loads: a band of padded rows, or two blocks of transformed ones.
  int64_t band_size() const {
    return (winograd ? 2 * kFrequencies : task_rows + kernel - 1) * padded_columns() * channels;
  }
  /// Floats of its products, with room for vectors that begin within them.
  int64_t product_size() const {
    return (winograd ? kFrequencies : 1) * padded_columns() * columns + 8;
  }
  /// All that a task works in, with the sums of a row.
  int64_t scratch_size() const {
    return band_size() + product_size() + task_columns * out_channels;
  }
};

/// weight [O, C, k, k] with k odd and O k <= 32, bias [O]; reflect padding k / 2.
OutputConv plan_output_conv(const TensorView<const float>& weight, const float* bias,
                            int64_t height, int64_t width, Arithmetic arithmetic);

/// images[n] -> planes [N, O, H, W] = tanh(convolution + bias); tanh to within 4e-7.
void output_conv(const OutputConv& conv, const std::vector<ConvSource>& images, float* planes,
                 Scratch& scratch);

namespace cpu {
void output_conv(const OutputConv& conv, const std::vector<ConvSource>& images, float* planes,
                 Scratch& scratch);
}  // namespace cpu

}  // namespace cae
