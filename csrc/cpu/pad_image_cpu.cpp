// SPDX-License-Identifier: Apache-2.0
// A task is a few rows of one image. Whoever writes a row also writes its side borders and the
// border rows that repeat it, so one pass suffices.
#include <algorithm>

#include "cpu/border.h"
#include "cpu/isa_cpu.h"
#include "cpu/load_source.h"
#include "cpu/parallel_cpu.h"
#include "ops/pad_image.h"

namespace cae::cpu {
namespace {

constexpr int64_t kRowsPerTask = 8;

/// Fills the side borders of row y and copies it to the border rows that repeat it.
void fill_border(const PaddedShape& shape, int64_t y, float* out) {
  const int64_t pad = shape.pad;
  const int64_t row = shape.row_stride();
  float* line = out + (y + pad) * row;
  for (int64_t i = 0; i < 2 * pad; ++i) {
    const int64_t x = i < pad ? i - pad : shape.width + i - pad;
    const float* from = line + (border_index(x, shape.width, shape.padding) + pad) * shape.channels;
    std::copy_n(from, shape.channels, line + (x + pad) * shape.channels);
  }
  for (int64_t i = 0; i < 2 * pad; ++i) {
    const int64_t border = i < pad ? i - pad : shape.height + i - pad;
    if (border_index(border, shape.height, shape.padding) == y) {
      std::copy_n(line, row, out + (border + pad) * row);
    }
  }
}

/// Runs body(image, row) for every row of every image.
template <class Body>
void for_rows(const PaddedShape& shape, size_t images, const Body& body) {
  const int64_t tasks = (shape.height + kRowsPerTask - 1) / kRowsPerTask;
  parallel_for(tasks * static_cast<int64_t>(images), [&](int64_t task) {
    const int64_t first = task % tasks * kRowsPerTask;
    const int64_t last = std::min(first + kRowsPerTask, shape.height);
    for (int64_t y = first; y < last; ++y) {
      body(static_cast<size_t>(task / tasks), y);
    }
  });
}

constexpr int64_t kTransposeBlock = 16;  // floats of a cache line

/// to[c * to_stride + x] = from[x * channels + c] in blocks of cache lines.
void row_to_planes(const float* from, int64_t width, int64_t channels, float* to,
                   int64_t to_stride) {
  for (int64_t x0 = 0; x0 < width; x0 += kTransposeBlock) {
    const int64_t x1 = std::min(x0 + kTransposeBlock, width);
    for (int64_t c = 0; c < channels; ++c) {
      for (int64_t x = x0; x < x1; ++x) {
        to[c * to_stride + x] = from[x * channels + c];
      }
    }
  }
}

void planes_to_row(const float* from, int64_t from_stride, int64_t width, int64_t channels,
                   float* to) {
  for (int64_t c0 = 0; c0 < channels; c0 += kTransposeBlock) {
    const int64_t c1 = std::min(c0 + kTransposeBlock, channels);
    for (int64_t x = 0; x < width; ++x) {
      for (int64_t c = c0; c < c1; ++c) {
        to[x * channels + c] = from[c * from_stride + x];
      }
    }
  }
}

/// Row y of a source.
void load_row(const PaddedShape& shape, const ConvSource& source, int64_t y, float* out) {
  load_source(kernels(), source, y * shape.width * shape.channels, shape.width, shape.channels,
              out);
}

}  // namespace

void pad_image(const PaddedShape& shape, const std::vector<PadImage>& images) {
  for_rows(shape, images.size(), [&](size_t n, int64_t y) {
    const PadImage& image = images[n];
    float* row = image.out + shape.interior() + y * shape.row_stride();
    const int64_t floats = shape.width * shape.channels;
    load_row(shape, image.source, y, row);
    if (image.stream != nullptr) {
      std::copy_n(row, floats, image.stream + y * floats);
    }
    fill_border(shape, y, image.out);
  });
}

void pad_planes(const PaddedShape& shape, const std::vector<PadPlanes>& images) {
  const int64_t plane = shape.height * shape.width;
  for_rows(shape, images.size(), [&](size_t n, int64_t y) {
    float* to = images[n].out + shape.interior() + y * shape.row_stride();
    planes_to_row(images[n].planes + y * shape.width, plane, shape.width, shape.channels, to);
    fill_border(shape, y, images[n].out);
  });
}

void source_planes(const PaddedShape& shape, const std::vector<ConvSource>& sources, float* planes,
                   Scratch& scratch) {
  const int64_t plane = shape.height * shape.width;
  const PoolTurn turn;
  scratch.reserve(shape.width * shape.channels, turn.threads());
  const int64_t tasks = shape.height * static_cast<int64_t>(sources.size());
  parallel_for(tasks, [&](int64_t task, int worker) {
    const int64_t n = task / shape.height;
    const int64_t y = task % shape.height;
    float* row = scratch.worker(worker);
    load_row(shape, sources[static_cast<size_t>(n)], y, row);
    row_to_planes(row, shape.width, shape.channels,
                  planes + n * shape.channels * plane + y * shape.width, plane);
  });
}

void relu_mean(const PaddedShape& shape, const std::vector<const float*>& in, const float* bias,
               float* out) {
  const int64_t pixels = shape.height * shape.width;
  parallel_for(static_cast<int64_t>(in.size()), [&](int64_t n) {
    const float* image = in[static_cast<size_t>(n)];
    for (int64_t c = 0; c < shape.channels; ++c) {
      double sum = 0.0;
      for (int64_t p = 0; p < pixels; ++p) {
        const float value = image[p * shape.channels + c] + bias[c];
        sum += 0.0f > value ? 0.0f : value;
      }
      out[n * shape.channels + c] = static_cast<float>(sum / static_cast<double>(pixels));
    }
  });
}

}  // namespace cae::cpu
