// SPDX-License-Identifier: Apache-2.0
// A task is a band of output rows of one image, made one by one: the input rows that they see are
// normalised into the task's scratch, borders included, just before they are needed.
#include <algorithm>

#include "cpu/border.h"
#include "cpu/isa_cpu.h"
#include "cpu/load_source.h"
#include "cpu/parallel_cpu.h"
#include "ops/output_conv.h"

namespace cae::cpu {
namespace {

/// Row y of the normalised image, which may lie beyond its edge, with its side borders.
void load_row(const KernelTable& table, const OutputConv& conv, const ConvSource& source, int64_t y,
              float* row) {
  const int64_t pad = conv.kernel / 2;
  const int64_t channels = conv.channels;
  const int64_t offset = border_index(y, conv.height, Padding::kReflect) * conv.width * channels;
  load_source(table, source, offset, conv.width, channels, row + pad * channels);
  for (int64_t x = 0; x < pad; ++x) {
    std::copy_n(row + (pad + border_index(x - pad, conv.width, Padding::kReflect)) * channels,
                channels, row + x * channels);
    const int64_t right = conv.width + x;
    std::copy_n(row + (pad + border_index(right, conv.width, Padding::kReflect)) * channels,
                channels, row + (pad + right) * channels);
  }
}

/// sums[o][x] = bias[o] + sum over j of products[x + j][(j, o)]
void sum_products(const OutputConv& conv, const float* products, float* sums) {
  const int64_t columns = conv.columns;
  for (int64_t o = 0; o < conv.out_channels; ++o) {
    float* row = sums + o * conv.width;
    for (int64_t x = 0; x < conv.width; ++x) {
      const float* from = products + x * columns + o;
      float sum = conv.bias[static_cast<size_t>(o)];
      for (int64_t j = 0; j < conv.kernel; ++j) {
        sum += from[j * (columns + conv.out_channels)];
      }
      row[x] = sum;
    }
  }
}

}  // namespace

void output_conv(const OutputConv& conv, const std::vector<ConvSource>& images, float* planes,
                 Scratch& scratch) {
  const KernelTable& table = kernels();
  const PoolTurn turn;
  scratch.reserve(conv.scratch_size(), turn.threads());
  const int64_t tasks = (conv.height + conv.task_rows - 1) / conv.task_rows;
  const int64_t plane = conv.height * conv.width;
  const int64_t row = conv.padded_width() * conv.channels;
  parallel_for(tasks * static_cast<int64_t>(images.size()), [&](int64_t task, int worker) {
    const int64_t image = task / tasks;
    const int64_t first = task % tasks * conv.task_rows;
    const int64_t rows = std::min(conv.task_rows, conv.height - first);
    float* band = scratch.worker(worker);
    float* products = band + conv.band_size();
    float* sums = products + conv.padded_width() * conv.columns;
    int64_t loaded = 0;
    for (int64_t y = 0; y < rows; ++y) {
      for (; loaded < y + conv.kernel; ++loaded) {
        load_row(table, conv, images[static_cast<size_t>(image)], first - conv.kernel / 2 + loaded,
                 band + loaded * row);
      }
      StripArgs strip{};
      strip.a = band + y * row;
      strip.a_point_stride = conv.channels;
      strip.a_segment_stride = row;
      strip.segments = conv.kernel;
      strip.segment_length = conv.channels;
      strip.b = conv.weights.data();
      strip.out = products;
      strip.out_point_stride = conv.columns;
      strip.points = conv.padded_width();
      strip.channels = conv.columns;
      table.narrow_strip(strip);
      sum_products(conv, products, sums);
      for (int64_t o = 0; o < conv.out_channels; ++o) {
        float* out = planes + (image * conv.out_channels + o) * plane + (first + y) * conv.width;
        table.tanh({sums + o * conv.width, out, conv.width});
      }
    }
  });
}

}  // namespace cae::cpu
