// SPDX-License-Identifier: Apache-2.0
// Which tile a layer gets: what the table says, arithmetic where it says nothing, and one for all
// batches where tiles give other bits.
#include <string>
#include <vector>

#include "emu/emu_counts.h"
#include "engine/gpu_layers.h"
#include "engine/gpu_tiles.h"
#include "tests/check_test.h"
#include "tests/emu/conv_case.h"

namespace {

using cae::cuda::ConvEpilogue;
using cae::cuda::ConvKind;
using cae::cuda::ConvParams;
using cae::cuda::ConvPath;
using cae::cuda::ConvTile;
using cae::gpu::choose_tile;
using cae::gpu::tile_by_arithmetic;
using cae::gpu::tile_fits;
using cae::gpu::tile_table;
using cae::gpu::TileRow;
using cae::gpu::tiles_of;
using cae::gpu::TileTable;

constexpr int kGpu = 132;  // multiprocessors
constexpr ConvTile kNarrow = {128, 64};
constexpr ConvTile kHalf = {64, 128};
constexpr ConvTile kWide = {128, 128};
constexpr ConvTile kWidest = {128, 256};

ConvParams layer_of(const TileRow& row) {
  ConvParams p;
  p.path = row.path;
  p.kind = row.kind;
  p.epilogue = row.kind == ConvKind::kUpsample ? ConvEpilogue::kShuffle : ConvEpilogue::kMoments;
  p.in_channels = row.in_channels;
  p.out_channels = row.kind == ConvKind::kUpsample ? row.columns / 4 : row.columns;
  p.in_height = p.out_height = row.height;
  p.in_width = p.out_width = row.width;
  return p;
}

/// Every row is of a layer that its tile can run; rows of a layer begin with one image.
void test_table() {
  const TileTable& table = tile_table();
  CAE_TEST_CHECK(!table.rows.empty() && table.multiprocessors > 0);
  const bool calculated = std::string(table.source) == "by arithmetic, not measured";
  for (const TileRow& row : table.rows) {
    const ConvParams layer = layer_of(row);
    CAE_TEST_CHECK(tile_fits(layer, row.tile));
    const auto steps = tiles_of(table, layer, table.multiprocessors);
    CAE_TEST_CHECK(!steps.empty() && steps.front().from_rows == 1);
    for (int32_t rows = 1; rows <= 64 && calculated; ++rows) {
      CAE_TEST_CHECK(choose_tile(steps, layer, rows, table.multiprocessors) ==
                     tile_by_arithmetic(layer, rows, table.multiprocessors));
    }
  }
}

void test_choice() {
  const TileRow row = {ConvPath::kWgmma, ConvKind::kConv3x3, 256, 256, 64, 64, 1, kWide};
  TileRow later = row;
  later.from_rows = 5;
  later.tile = kHalf;
  const TileTable table = {"made up", kGpu, {later, row}};  // in any order
  ConvParams layer = layer_of(row);
  const auto chosen = [&](int32_t rows, int multiprocessors = kGpu) {
    return choose_tile(tiles_of(table, layer, multiprocessors), layer, rows, multiprocessors);
  };
  CAE_TEST_CHECK(chosen(1) == kWide && chosen(4) == kWide && chosen(5) == kHalf &&
                 chosen(700) == kHalf);
  // Another GPU, path or layer: arithmetic, whose one image takes narrow blocks here.
  CAE_TEST_CHECK(chosen(1, 108) == tile_by_arithmetic(layer, 1, 108));
  layer.path = ConvPath::kPortable;
  CAE_TEST_CHECK(chosen(1) == kNarrow && chosen(2) == kWide);
  layer = layer_of(row);
  layer.out_height = 72;
  CAE_TEST_CHECK(tiles_of(table, layer, kGpu).empty());
}

/// What no such block can run is not taken from a table either.
void test_fit() {
  constexpr auto kPortable = ConvPath::kPortable;
  constexpr auto kWgmma = ConvPath::kWgmma;
  constexpr auto k3 = ConvKind::kConv3x3;
  const TileRow refused[] = {
      {kPortable, k3, 64, 192, 16, 16, 1, kWide},  // an odd number of pieces
      {kWgmma, k3, 64, 192, 16, 16, 1, kHalf},
      {kWgmma, k3, 64, 384, 16, 16, 1, kWidest},
      {kPortable, k3, 712, 256, 16, 16, 1, kWide},  // too deep for the memory of some
      {kPortable, k3, 64, 256, 16, 16, 1, kHalf},   // of the other path
      {kPortable, k3, 64, 256, 16, 16, 1, kWidest},
      {kPortable, ConvKind::kStride2, 64, 256, 16, 16, 1, kWide},
      {kWgmma, ConvKind::kStride2, 64, 256, 16, 16, 1, kWidest},
      {kWgmma, k3, 64, 256, 16, 16, 1, {128, 96}},  // there is none
      {kWgmma, k3, 64, 256, 16, 16, 1, {64, 64}},
  };
  for (const TileRow& row : refused) {
    const ConvParams layer = layer_of(row);
    CAE_TEST_CHECK(tile_fits(layer, kNarrow) && !tile_fits(layer, row.tile));
    CAE_TEST_CHECK(tiles_of({"made up", kGpu, {row}}, layer, kGpu).empty());
    CAE_TEST_CHECK(tile_by_arithmetic(layer, 64, kGpu) != row.tile);
  }
  const ConvParams deep = layer_of({kWgmma, k3, 2048, 256, 16, 16, 1, kNarrow});
  for (const ConvTile& tile : {kNarrow, kHalf, kWide, kWidest}) {
    CAE_TEST_CHECK(tile_fits(deep, tile));
  }
}

/// Fewest waves of work; a block's head is paid less often by larger ones.
void test_arithmetic() {
  const ConvParams layer =
      layer_of({ConvPath::kWgmma, ConvKind::kConv3x3, 256, 256, 64, 64, 1, {}});
  CAE_TEST_CHECK(tile_by_arithmetic(layer, 1, kGpu) == kNarrow);  // one wave of small blocks
  CAE_TEST_CHECK(tile_by_arithmetic(layer, 2, kGpu) == kWide);
  CAE_TEST_CHECK(tile_by_arithmetic(layer, 4, kGpu) == kWidest);  // one wave of 128 blocks
}

bool one_tile = false;

/// By a layer whose table asks for wide blocks from two rows on.
void launch_layer(const ConvParams& p, void* stream) {
  cae::gpu::GpuConv conv;
  conv.params = p;
  conv.moments.parts = conv.moments.norm.parts = 1;
  conv.tiles = {{1, kNarrow}, {2, kWide}};
  conv.one_tile = one_tile;
  cae::gpu::LayerInput input;
  input.prologue = p.prologue;
  input.norm = p.norm;
  input.y = p.y;
  cae::gpu::run_conv(conv, input, {p.out, p.partials, nullptr}, p.rows, stream);
}

/// Blocks of a launch with so many rows of one tile and 128 columns.
int64_t blocks_of(int rows, ConvPath path) {
  cae::test::ConvProblem problem({ConvKind::kConv3x3, cae::cuda::ConvPrologue::kAffineRelu,
                                  ConvEpilogue::kMoments, rows, 8, 16, 16, 128, kNarrow, path},
                                 7);
  cae::emu::reset_counts();
  cae::test::run_conv(problem, {}, launch_layer);
  return cae::emu::launch_counts().begin()->second.blocks;
}

void test_one_tile() {
  for (const ConvPath path : {ConvPath::kPortable, ConvPath::kWgmma}) {
    one_tile = false;
    CAE_TEST_CHECK(blocks_of(1, path) == 2);
    CAE_TEST_CHECK(blocks_of(2, path) == 2);  // wide
    one_tile = true;
    CAE_TEST_CHECK(blocks_of(1, path) == 2);
    CAE_TEST_CHECK(blocks_of(2, path) == 4);
  }
}

}  // namespace

int main() {
  test_table();
  test_choice();
  test_fit();
  test_arithmetic();
  test_one_tile();
  return cae::testing::finish("test_gpu_tiles_emu");
}
