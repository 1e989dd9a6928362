// SPDX-License-Identifier: Apache-2.0
#include "engine/gpu_tiles.h"

#include <algorithm>

namespace cae::gpu {
namespace {

using cuda::ConvKind;
using cuda::ConvPath;

// What a block spends besides products, in steps of one tap and 64 inputs: merging moments, the
// first patch, the epilogue. An estimate until it is measured.
constexpr int64_t kHeadSteps = 20;
// With more input channels a wide block's shared memory exceeds the 99 KB that every GPU has.
constexpr int32_t kMostWideInputs = 704;

constexpr int32_t kNarrow = 64;
constexpr int32_t kWide = 128;

bool is_of(const TileRow& row, const cuda::ConvParams& p) {
  return row.path == p.path && row.kind == p.kind && row.in_channels == p.in_channels &&
         row.columns == cuda::conv_columns(p.epilogue, p.out_channels) &&
         row.height == p.out_height && row.width == p.out_width;
}

}  // namespace

const TileTable& tile_table() {
  static const TileTable table = {
#include "engine/gpu_tile_table.inc"
  };
  return table;
}

bool tile_fits(const cuda::ConvParams& p, int32_t block_columns) {
  const bool can = p.kind == ConvKind::kConv3x3 || p.kind == ConvKind::kUpsample;
  const int pieces = cuda::conv_pieces(cuda::conv_columns(p.epilogue, p.out_channels));
  return block_columns == kNarrow ||
         (block_columns == kWide && can && pieces % 2 == 0 && p.in_channels <= kMostWideInputs);
}

std::vector<TileStep> tiles_of(const TileTable& table, const cuda::ConvParams& p,
                               int multiprocessors) {
  std::vector<TileStep> steps;
  for (const TileRow& row : table.rows) {
    if (table.multiprocessors == multiprocessors && is_of(row, p) &&
        tile_fits(p, row.block_columns)) {
      steps.push_back({row.from_rows, row.block_columns});
    }
  }
  std::sort(steps.begin(), steps.end(),
            [](const TileStep& a, const TileStep& b) { return a.from_rows < b.from_rows; });
  return steps;
}

int32_t choose_tile(const std::vector<TileStep>& steps, const cuda::ConvParams& p, int32_t rows,
                    int multiprocessors) {
  for (auto step = steps.rbegin(); step != steps.rend(); ++step) {
    if (step->from_rows <= rows) {
      return step->block_columns;
    }
  }
  return tile_by_arithmetic(p, rows, multiprocessors);
}

int32_t tile_by_arithmetic(const cuda::ConvParams& p, int32_t rows, int multiprocessors) {
  if (!tile_fits(p, kWide)) {
    return kNarrow;
  }
  const int pieces = cuda::conv_pieces(cuda::conv_columns(p.epilogue, p.out_channels));
  const int64_t tiles = static_cast<int64_t>(rows) * cuda::conv_tiles(p.out_height, p.out_width);
  const int64_t steps =
      static_cast<int64_t>(cuda::conv_k_blocks(p.kind, p.in_channels)) * cuda::conv_taps(p.kind);
  const auto cost = [&](int64_t blocks, int64_t work) {
    return (blocks + multiprocessors - 1) / multiprocessors * (kHeadSteps + work);
  };
  return cost(tiles * pieces / 2, 2 * steps) < cost(tiles * pieces, steps) ? kWide : kNarrow;
}

}  // namespace cae::gpu
