// SPDX-License-Identifier: Apache-2.0
#include "engine/gpu_tiles.h"

#include <algorithm>
#include <iterator>

namespace cae::gpu {
namespace {

using cuda::ConvKind;
using cuda::ConvPath;
using cuda::ConvTile;

// What a block spends besides products, in steps of one tap and 64 inputs: merging moments, the
// first patch, the epilogue. An estimate until it is measured.
constexpr int64_t kHeadSteps = 20;
// With more input channels a wide block's shared memory exceeds the 99 KB that every GPU has.
constexpr int32_t kMostWideInputs = 704;

// Smallest first. Arithmetic has no reason for 64 x 128: as many blocks and steps as 128 x 64.
constexpr ConvTile kTiles[] = {{128, 64}, {128, 128}, {128, 256}};

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

std::vector<ConvTile> tiles_to_check(const TileTable& table) {
  std::vector<ConvTile> tiles(std::begin(kTiles), std::end(kTiles));
  for (const TileRow& row : table.rows) {
    if (row.path == ConvPath::kWgmma &&
        std::find(tiles.begin(), tiles.end(), row.tile) == tiles.end()) {
      tiles.push_back(row.tile);
    }
  }
  return tiles;
}

bool tile_fits(const cuda::ConvParams& p, const ConvTile& tile) {
  return cuda::conv_tile_runs(p, tile) &&
         (p.path == ConvPath::kWgmma || tile.columns == 64 || p.in_channels <= kMostWideInputs);
}

std::vector<TileStep> tiles_of(const TileTable& table, const cuda::ConvParams& p,
                               int multiprocessors) {
  std::vector<TileStep> steps;
  for (const TileRow& row : table.rows) {
    if (table.multiprocessors == multiprocessors && is_of(row, p) && tile_fits(p, row.tile)) {
      steps.push_back({row.from_rows, row.tile});
    }
  }
  std::sort(steps.begin(), steps.end(),
            [](const TileStep& a, const TileStep& b) { return a.from_rows < b.from_rows; });
  return steps;
}

ConvTile choose_tile(const std::vector<TileStep>& steps, const cuda::ConvParams& p, int32_t rows,
                     int multiprocessors) {
  for (auto step = steps.rbegin(); step != steps.rend(); ++step) {
    if (step->from_rows <= rows) {
      return step->tile;
    }
  }
  return tile_by_arithmetic(p, rows, multiprocessors);
}

ConvTile tile_by_arithmetic(const cuda::ConvParams& p, int32_t rows, int multiprocessors) {
  const int64_t pieces = static_cast<int64_t>(rows) * cuda::conv_tiles(p.out_height, p.out_width) *
                         cuda::conv_pieces(cuda::conv_columns(p.epilogue, p.out_channels));
  const int64_t steps =
      static_cast<int64_t>(cuda::conv_k_blocks(p.kind, p.in_channels)) * cuda::conv_taps(p.kind);
  ConvTile best;
  int64_t least = INT64_MAX;
  for (const ConvTile& tile : kTiles) {
    if (!tile_fits(p, tile)) {
      continue;
    }
    const int32_t work = tile.pixels * tile.columns / (128 * 64);  // pieces of a block
    const int64_t waves = (pieces / work + multiprocessors - 1) / multiprocessors;
    const int64_t cost = waves * (kHeadSteps + work * steps);
    if (cost < least) {
      least = cost;
      best = tile;
    }
  }
  return best;
}

}  // namespace cae::gpu
