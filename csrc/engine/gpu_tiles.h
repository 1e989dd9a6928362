// SPDX-License-Identifier: Apache-2.0
// Which tile convolves a layer on a GPU: pixels times columns of the product.
#pragma once

#include <cstdint>
#include <vector>

#include "cuda/conv_tile_cuda.h"

namespace cae::gpu {

/// Of a layer, as its convolution has it, from so many rows of a launch on.
struct TileRow {
  cuda::ConvPath path;
  cuda::ConvKind kind;
  int32_t in_channels;
  int32_t columns;  // of the product
  int32_t height;   // of the convolution's output grid
  int32_t width;
  int32_t from_rows;
  cuda::ConvTile tile;
};

struct TileTable {
  const char* source;   // how it was found
  int multiprocessors;  // of the GPU that it is for
  std::vector<TileRow> rows;
};

struct TileStep {
  int32_t from_rows;
  cuda::ConvTile tile;
};

/// gpu_tile_table.inc, which bench/gpu/tune.py writes.
const TileTable& tile_table();

/// Tiles of ConvPath::kWgmma that a layer may get: what arithmetic chooses among, and what the
/// table names besides.
std::vector<cuda::ConvTile> tiles_to_check(const TileTable& table);

/// True where blocks of that tile can run the layer on every GPU that has its path.
bool tile_fits(const cuda::ConvParams& layer, const cuda::ConvTile& tile);

/// What the table says of a layer, by rows; nothing where it is for GPUs of another size.
std::vector<TileStep> tiles_of(const TileTable& table, const cuda::ConvParams& layer,
                               int multiprocessors);

/// The tile for `rows` rows: what `steps` say, else what arithmetic gives.
cuda::ConvTile choose_tile(const std::vector<TileStep>& steps, const cuda::ConvParams& layer,
                           int32_t rows, int multiprocessors);

/// The tile that takes fewest steps, counted in waves of blocks; of several the smallest.
cuda::ConvTile tile_by_arithmetic(const cuda::ConvParams& layer, int32_t rows, int multiprocessors);

}  // namespace cae::gpu
