// SPDX-License-Identifier: Apache-2.0
// The decoder's last layer: normalise, reflect, convolve to a few channels, tanh, planes.
//
// With so few output channels the taps of a filter row count as channels as well: one product makes
//   P[y, x, (j, o)] = sum over i, c of in[y + i, x, c] * weight[o, c, i, j]
// and the output is the sum of k of these, P[y, x + j, (j, o)] over j.
#pragma once

#include <cstdint>
#include <vector>

#include "core/aligned_buffer.h"
#include "core/tensor_view.h"
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
  int64_t columns = 0;    // of P: kernel * out_channels, rounded up to a multiple of 8
  AlignedBuffer weights;  // [i, c][columns]
  int64_t task_rows = 0;  // output rows of a task

  int64_t padded_width() const { return width + kernel - 1; }
  /// Floats that a task works in: a band of padded rows, the products of a row, and its sums.
  int64_t band_size() const { return (task_rows + kernel - 1) * padded_width() * channels; }
  int64_t scratch_size() const {
    return band_size() + padded_width() * columns + width * out_channels;
  }
};

/// weight [O, C, k, k] with k odd and O k <= 32, bias [O]; reflect padding k / 2.
OutputConv plan_output_conv(const TensorView<const float>& weight, const float* bias,
                            int64_t height, int64_t width);

/// images[n] -> planes [N, O, H, W] = tanh(convolution + bias); tanh to within 4e-7.
void output_conv(const OutputConv& conv, const std::vector<ConvSource>& images, float* planes,
                 Scratch& scratch);

namespace cpu {
void output_conv(const OutputConv& conv, const std::vector<ConvSource>& images, float* planes,
                 Scratch& scratch);
}  // namespace cpu

}  // namespace cae
