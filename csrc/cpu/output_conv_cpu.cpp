// SPDX-License-Identifier: Apache-2.0
// A task is a rectangle of outputs of one image, made row by row or in blocks of four rows: the
// input rows that they see are normalised, or transformed, into the task's scratch, borders
// included, just before they are needed.
#include <algorithm>
#include <cstring>

#include "core/ceil_div.h"
#include "cpu/border.h"
#include "cpu/isa_cpu.h"
#include "cpu/load_source.h"
#include "cpu/parallel_cpu.h"
#include "ops/output_conv.h"

namespace cae::cpu {
namespace {

typedef float Four __attribute__((vector_size(16)));

class OutputTask {
 public:
  OutputTask(const OutputConv& conv, const ConvSource& source, int64_t row, int64_t column,
             float* planes, float* scratch)
      : conv_(conv),
        source_(source),
        table_(kernels()),
        row_(row),
        rows_(std::min(conv.task_rows, conv.height - row)),
        column_(column),
        columns_(std::min(conv.task_columns, conv.width - column)),
        points_(columns_ + conv.kernel - 1),
        planes_(planes),
        band_(scratch),
        products_(band_ + conv.band_size()),
        sums_(products_ + conv.product_size()) {}

  void run() { conv_.winograd ? run_winograd() : run_direct(); }

 private:
  void run_direct() {
    const int64_t row = points_ * conv_.channels;
    int64_t loaded = 0;
    for (int64_t y = 0; y < rows_; ++y) {
      for (; loaded < y + conv_.kernel; ++loaded) {
        load_row(row_ + y_offset(loaded), band_ + loaded * row);
      }
      multiply(band_ + y * row, row, conv_.kernel, conv_.weights.data(), products_);
      finish_row(row_ + y, products_);
    }
  }

  void run_winograd() {
    constexpr int64_t kBlock = OutputConv::kBlockRows;
    constexpr int64_t kFrequencies = OutputConv::kFrequencies;
    const int64_t row = points_ * conv_.channels;
    const int64_t product = points_ * conv_.columns;
    float* block = band_;
    float* next = band_ + kFrequencies * row;
    transform_block(row_, block);
    for (int64_t y = 0; y < rows_; y += kBlock) {
      transform_block(row_ + y + kBlock, next);
      for (int64_t f = 0; f < kFrequencies; ++f) {
        multiply(block + f * row, next - block, 2,
                 conv_.weights.data() + f * 2 * conv_.channels * conv_.columns,
                 products_ + f * product);
      }
      table_.rows_output({products_, product, product});
      for (int64_t i = 0; i < std::min(kBlock, rows_ - y); ++i) {
        finish_row(row_ + y + i, products_ + i * product);
      }
      std::swap(block, next);
    }
  }

  int64_t y_offset(int64_t tap) const { return tap - conv_.kernel / 2; }

  /// The columns of the image that the task sees: [first, last).
  int64_t first_column() const { return std::max<int64_t>(column_ - conv_.kernel / 2, 0); }
  int64_t last_column() const {
    return std::min(column_ + columns_ + conv_.kernel / 2, conv_.width);
  }

  /// Column x of a row in the band.
  int64_t in_band(int64_t x) const { return (x - column_ + conv_.kernel / 2) * conv_.channels; }

  /// Fills what of a row of the band lies beyond the image's sides.
  void fill_sides(float* row) const {
    const int64_t begin = column_ - conv_.kernel / 2;
    for (int64_t x = begin; x < begin + points_; ++x) {
      if (x < 0 || x >= conv_.width) {
        std::copy_n(row + in_band(border_index(x, conv_.width, Padding::kReflect)), conv_.channels,
                    row + in_band(x));
      }
    }
  }

  /// Offset of row y of the image, which may lie beyond its edge, from where the task sees it on.
  int64_t row_offset(int64_t y) const {
    return (border_index(y, conv_.height, Padding::kReflect) * conv_.width + first_column()) *
           conv_.channels;
  }

  /// Row y, normalised.
  void load_row(int64_t y, float* row) const {
    load_source(table_, source_, row_offset(y), last_column() - first_column(), conv_.channels,
                row + in_band(first_column()));
    fill_sides(row);
  }

  /// What a filter's rows 0 to 3 see of the image where they make output rows y to y + 3,
  /// transformed: [frequency][padded column, channel].
  void transform_block(int64_t y, float* block) const {
    RowsInputArgs args;
    for (int64_t i = 0; i < OutputConv::kFrequencies; ++i) {
      const int64_t offset = row_offset(y + y_offset(i));
      args.in[i] = source_.in + offset;
      args.residual[i] = source_.residual == nullptr ? nullptr : source_.residual + offset;
    }
    args.scale = source_.scale;
    args.shift = source_.shift;
    args.relu = source_.relu;
    args.pixels = last_column() - first_column();
    args.channels = conv_.channels;
    args.out = block + in_band(first_column());
    args.frequency_stride = points_ * conv_.channels;
    table_.rows_input(args);
    for (int64_t f = 0; f < OutputConv::kFrequencies; ++f) {
      fill_sides(block + f * args.frequency_stride);
    }
  }

  /// Products of `segments` rows of the band, `stride` apart.
  void multiply(const float* rows, int64_t stride, int64_t segments, const float* weights,
                float* products) const {
    StripArgs strip{};
    strip.a = rows;
    strip.a_point_stride = conv_.channels;
    strip.a_segment_stride = stride;
    strip.segments = segments;
    strip.segment_length = conv_.channels;
    strip.b = weights;
    strip.out = products;
    strip.out_point_stride = conv_.columns;
    strip.points = points_;
    strip.channels = conv_.columns;
    table_.narrow_strip(strip);
  }

  /// Output row y = tanh(bias[o] + sum over j of products[x + j][(j, o)]).
  void finish_row(int64_t y, const float* products) const {
    constexpr int64_t kTogether = 4;
    const int64_t step = conv_.columns + conv_.out_channels;
    for (int64_t first = 0; first < conv_.out_channels; first += kTogether) {
      const int64_t channels = std::min(kTogether, conv_.out_channels - first);
      Four bias{};
      for (int64_t o = 0; o < channels; ++o) {
        bias[o] = conv_.bias[static_cast<size_t>(first + o)];
      }
      for (int64_t x = 0; x < columns_; ++x) {
        const float* from = products + x * conv_.columns + first;
        Four sum = bias;
        for (int64_t j = 0; j < conv_.kernel; ++j, from += step) {
          Four product;  // beyond `channels`: not used
          std::memcpy(&product, from, sizeof(product));
          sum += product;
        }
        for (int64_t o = 0; o < channels; ++o) {
          sums_[(first + o) * columns_ + x] = sum[o];
        }
      }
    }
    for (int64_t o = 0; o < conv_.out_channels; ++o) {
      float* out = planes_ + (o * conv_.height + y) * conv_.width + column_;
      table_.tanh({sums_ + o * columns_, out, columns_});
    }
  }

  const OutputConv& conv_;
  const ConvSource& source_;
  const KernelTable& table_;
  int64_t row_;
  int64_t rows_;
  int64_t column_;
  int64_t columns_;
  int64_t points_;  // columns with their borders
  float* planes_;   // of the image
  float* band_;
  float* products_;
  float* sums_;
};

}  // namespace

void output_conv(const OutputConv& conv, const std::vector<ConvSource>& images, float* planes,
                 Scratch& scratch) {
  const PoolTurn turn;
  scratch.reserve(conv.scratch_size(), turn.threads());
  const int64_t bands = ceil_div(conv.height, conv.task_rows);
  const int64_t strips = ceil_div(conv.width, conv.task_columns);
  const int64_t tasks = bands * strips;
  const int64_t image_size = conv.out_channels * conv.height * conv.width;
  parallel_for(tasks * static_cast<int64_t>(images.size()), [&](int64_t task, int worker) {
    const int64_t image = task / tasks;
    OutputTask(conv, images[static_cast<size_t>(image)], task % tasks / strips * conv.task_rows,
               task % strips * conv.task_columns, planes + image * image_size,
               scratch.worker(worker))
        .run();
  });
}

}  // namespace cae::cpu
