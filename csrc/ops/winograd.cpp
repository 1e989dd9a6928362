// SPDX-License-Identifier: Apache-2.0
#include "ops/winograd.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "core/ceil_div.h"
#include "cpu/isa_cpu.h"
#include "cpu/parallel_cpu.h"
#include "ops/filter_transform.h"
#include "ops/upsample_taps.h"

namespace cae {
namespace {

constexpr int64_t kTile = 4;                    // outputs of a tile along an axis, per phase
constexpr int64_t kProductFloats = 150 * 1024;  // of a block: 600 KiB of the second-level cache
constexpr int64_t kUpsampleProductFloats = 300 * 1024;  // more, so that weights pass by less often
constexpr int64_t kInputFloats = 640 * 1024;    // of a chunk: 2.5 MiB of the last-level cache
constexpr int64_t kBlockChannels = 64;          // output channels of a task, at most
constexpr int64_t kUpsampleBlockChannels = 32;  // times four phases
constexpr int kMaxPoints = 6;

/// Filters of one phase, [O][r][r][C], which fill columns of depth [depth, depth + C).
struct PhaseFilters {
  std::vector<float> rows;
  int64_t depth = 0;
  int64_t phase = 0;  // of the output
};

/// G g G^T for the channels of one output channel: filter [r][r][C] -> transformed [f][C].
void transform_filter(const float* filter, int64_t r, int64_t channels, const FilterTransform& g,
                      std::vector<float>& transformed) {
  const int64_t points = r + 3;
  for (int64_t i = 0; i < points; ++i) {
    for (int64_t j = 0; j < points; ++j) {
      float* out = transformed.data() + (i * points + j) * channels;
      for (int64_t c = 0; c < channels; ++c) {
        double sum = 0;
        for (int64_t a = 0; a < r; ++a) {
          for (int64_t b = 0; b < r; ++b) {
            const double factor = g[static_cast<size_t>(i)][static_cast<size_t>(a)] *
                                  g[static_cast<size_t>(j)][static_cast<size_t>(b)];
            sum += factor * filter[(a * r + b) * channels + c];
          }
        }
        out[c] = static_cast<float>(sum);
      }
    }
  }
}

bool vanishes(const WinogradPlan& plan, int64_t phase, int64_t frequency) {
  constexpr int64_t kPointOne = 1;
  const int64_t points = kMaxPoints;
  const bool column_difference = phase % 2 == 1;
  const bool row_difference = phase / 2 == 1;
  return plan.kind == WinogradKind::kUpsample &&
         ((row_difference && frequency / points == kPointOne) ||
          (column_difference && frequency % points == kPointOne));
}

/// Cuts the output channels into blocks and lays out their weights in the order of use.
int64_t cut_blocks(WinogradPlan& plan) {
  const cpu::KernelTable& table = cpu::kernels();
  const bool upsample = plan.kind == WinogradKind::kUpsample;
  const int64_t phases = upsample ? 4 : 1;
  const int64_t most = upsample ? kUpsampleBlockChannels : kBlockChannels;
  const int64_t quarter = ceil_div(ceil_div(plan.out_channels, 4), table.panel_width);
  const int64_t channels = std::max(table.panel_width, std::min(most, quarter * table.panel_width));
  int64_t size = 0;
  for (int64_t channel = 0; channel < plan.out_channels; channel += channels) {
    WinogradBlock block;
    block.channel = channel;
    block.channels = std::min(channels, plan.out_channels - channel);
    block.phase_width = ceil_div(block.channels, table.vector_width) * table.vector_width;
    block.columns = phases * block.phase_width;
    for (int64_t frequency = 0; frequency < plan.frequencies; ++frequency) {
      for (int64_t phase = 0; phase < phases; ++phase) {
        if (vanishes(plan, phase, frequency)) {
          continue;
        }
        for (int64_t column = 0; column < block.phase_width; column += table.panel_width) {
          const int64_t width = std::min(table.panel_width, block.phase_width - column);
          block.products.push_back({frequency, phase * block.phase_width + column, width, size});
          size += plan.depth * width;
        }
      }
    }
    plan.blocks.push_back(std::move(block));
  }
  return size;
}

void pack_weights(WinogradPlan& plan, int64_t r, const std::vector<PhaseFilters>& filters,
                  int64_t size) {
  plan.weights = AlignedBuffer(size);
  std::fill_n(plan.weights.data(), size, 0.0f);
  const FilterTransform transform = filter_transform(
      r == 3 ? std::vector<double>{0, 1, -1, 0.5, -2} : std::vector<double>{0, 1, -1, 0.5}, r);
  const int64_t channels = plan.channels;
  // channels of a cache line together, so that two tasks do not write to the same line
  constexpr int64_t kTaskChannels = 16;
  cpu::parallel_for(ceil_div(plan.out_channels, kTaskChannels), [&](int64_t task) {
    std::vector<float> transformed(static_cast<size_t>(plan.frequencies * channels));
    const int64_t end = std::min((task + 1) * kTaskChannels, plan.out_channels);
    for (int64_t o = task * kTaskChannels; o < end; ++o) {
      const WinogradBlock& block =
          plan.blocks[static_cast<size_t>(o / plan.blocks.front().channels)];
      for (const PhaseFilters& phase : filters) {
        transform_filter(phase.rows.data() + o * r * r * channels, r, channels, transform,
                         transformed);
        const int64_t column = phase.phase * block.phase_width + o - block.channel;
        for (const WinogradProduct& product : block.products) {
          if (column < product.column || column >= product.column + product.width) {
            continue;
          }
          const float* from = transformed.data() + product.frequency * channels;
          float* to = plan.weights.data() + product.offset + phase.depth * product.width +
                      (column - product.column);
          for (int64_t c = 0; c < channels; ++c) {
            to[c * product.width] = from[c];
          }
        }
      }
    }
  });
}

/// Cuts the tiles into chunks of nearly equal size: few, since each passes all weights by, but of
/// no more tiles than the caches hold.
void cut_chunks(WinogradPlan& plan) {
  const int64_t tiles = plan.tile_rows * plan.tile_columns;
  const int64_t product_floats =
      plan.kind == WinogradKind::kUpsample ? kUpsampleProductFloats : kProductFloats;
  const int64_t most = std::min(product_floats / (plan.frequencies * plan.blocks.front().columns),
                                kInputFloats / (plan.frequencies * plan.depth));
  int64_t count = ceil_div(tiles, std::max<int64_t>(1, most));
  if (count > 1) {
    count = ceil_div(count, 4) * 4;  // the same for two threads or four
  }
  plan.chunk_tiles = ceil_div(tiles, count);
  for (int64_t tile = 0; tile < tiles; tile += plan.chunk_tiles) {
    WinogradChunk chunk{tile, std::min(plan.chunk_tiles, tiles - tile), 0};
    for (int64_t t = tile; t < tile + chunk.tiles; ++t) {
      const WinogradPlan::Range rows = plan.output_rows(t / plan.tile_columns);
      const WinogradPlan::Range columns_range = plan.output_columns(t % plan.tile_columns);
      chunk.pixels += (rows.end - rows.begin) * (columns_range.end - columns_range.begin);
    }
    plan.chunks.push_back(chunk);
  }
}

void check_sizes(const TensorView<const float>& weight, int64_t height, int64_t width) {
  CAE_CHECK(weight.numel() >= 1, "weight must not be empty, got ", shape_string(weight.shape));
  CAE_CHECK(height >= 2 && width >= 2, "a Winograd convolution needs an image of at least 2 x 2, ",
            "got ", height, " x ", width);
}

void finish_plan(WinogradPlan& plan, int64_t r, const std::vector<PhaseFilters>& filters) {
  const int64_t scale = plan.kind == WinogradKind::kUpsample ? 2 : 1;
  plan.tile_rows = ceil_div(plan.out_height, kTile * scale);
  plan.tile_columns = ceil_div(plan.out_width, kTile * scale);
  plan.frequencies = (r + 3) * (r + 3);
  const int64_t size = cut_blocks(plan);
  pack_weights(plan, r, filters, size);
  cut_chunks(plan);
}

/// Valid outputs of tile `index` on an axis of `size` outputs, all but `margin` at both ends.
WinogradPlan::Range valid_range(int64_t index, int64_t tile, int64_t size, int64_t margin) {
  const int64_t begin = std::max<int64_t>(margin - index * tile, 0);
  return {begin, std::max(begin, std::min(tile, size - margin - index * tile))};
}

}  // namespace

int64_t WinogradPlan::product_size() const { return frequencies * product_stride(blocks.front()); }

WinogradPlan::Range WinogradPlan::output_rows(int64_t tile_row) const {
  const bool upsample = kind == WinogradKind::kUpsample;
  return valid_range(tile_row, upsample ? 2 * kTile : kTile, out_height, upsample ? 1 : 0);
}

WinogradPlan::Range WinogradPlan::output_columns(int64_t tile_column) const {
  const bool upsample = kind == WinogradKind::kUpsample;
  return valid_range(tile_column, upsample ? 2 * kTile : kTile, out_width, upsample ? 1 : 0);
}

WinogradPlan plan_winograd(const TensorView<const float>& weight, int64_t height, int64_t width) {
  CAE_CHECK(weight.rank() == 4 && weight.dim(2) == weight.dim(3) &&
                (weight.dim(2) == 3 || weight.dim(2) == 4),
            "weight must be [O, C, 3, 3] or [O, C, 4, 4], got ", shape_string(weight.shape));
  check_sizes(weight, height, width);
  const int64_t out_channels = weight.dim(0);
  const int64_t channels = weight.dim(1);
  const int64_t kernel = weight.dim(2);
  const int64_t step = kernel == 3 ? 1 : 2;
  const int64_t r = kernel / step;
  WinogradPlan plan;
  plan.kind = kernel == 3 ? WinogradKind::kConv3x3 : WinogradKind::kStride2;
  plan.height = height;
  plan.width = width;
  plan.channels = channels;
  plan.out_height = (height + 2 - kernel) / step + 1;
  plan.out_width = (width + 2 - kernel) / step + 1;
  plan.out_channels = out_channels;
  plan.depth = step * step * channels;
  std::vector<PhaseFilters> filters;
  for (int64_t phase = 0; phase < step * step; ++phase) {
    PhaseFilters part{{}, phase * channels, 0};
    part.rows.reserve(static_cast<size_t>(out_channels * r * r * channels));
    for (int64_t o = 0; o < out_channels; ++o) {
      for (int64_t a = 0; a < r; ++a) {
        for (int64_t b = 0; b < r; ++b) {
          for (int64_t c = 0; c < channels; ++c) {
            const int64_t y = a * step + phase / step;
            const int64_t x = b * step + phase % step;
            part.rows.push_back(weight.data[((o * channels + c) * kernel + y) * kernel + x]);
          }
        }
      }
    }
    filters.push_back(std::move(part));
  }
  finish_plan(plan, r, filters);
  return plan;
}

WinogradPlan plan_winograd_upsample(const TensorView<const float>& weight, int64_t height,
                                    int64_t width) {
  check_shape(weight.shape, "weight", {"O", "C", 5, 5});
  check_sizes(weight, height, width);
  WinogradPlan plan;
  plan.kind = WinogradKind::kUpsample;
  plan.height = height;
  plan.width = width;
  plan.channels = weight.dim(1);
  plan.out_height = 2 * height;
  plan.out_width = 2 * width;
  plan.out_channels = weight.dim(0);
  plan.depth = plan.channels;
  std::vector<PhaseFilters> filters;
  const AxisTaps vertical[] = {axis_taps(AxisOutput::kEven, height), axis_difference(height)};
  const AxisTaps horizontal[] = {axis_taps(AxisOutput::kEven, width), axis_difference(width)};
  for (int64_t phase = 0; phase < 4; ++phase) {
    filters.push_back({sum_taps(weight, vertical[phase / 2], horizontal[phase % 2]), 0, phase});
  }
  finish_plan(plan, 3, filters);
  return plan;
}

}  // namespace cae
