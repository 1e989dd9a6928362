// SPDX-License-Identifier: Apache-2.0
// Which tile convolves a layer on a GPU: 128 pixels times 64 or 128 columns of the product.
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
  int32_t block_columns;
};

struct TileTable {
  const char* source;   // how it was found
  int multiprocessors;  // of the GPU that it is for
  std::vector<TileRow> rows;
};

struct TileStep {
  int32_t from_rows;
  int32_t block_columns;
};

/// gpu_tile_table.inc, which bench/gpu/tune.py writes.
const TileTable& tile_table();

/// True where blocks of so many columns can run the layer on every GPU.
bool tile_fits(const cuda::ConvParams& layer, int32_t block_columns);

/// What the table says of a layer, by rows; nothing where it is for GPUs of another size.
std::vector<TileStep> tiles_of(const TileTable& table, const cuda::ConvParams& layer,
                               int multiprocessors);

/// Columns of a block for `rows` rows: what `steps` say, else what arithmetic gives.
int32_t choose_tile(const std::vector<TileStep>& steps, const cuda::ConvParams& layer, int32_t rows,
                    int multiprocessors);

/// The width that takes fewer steps, counted in waves of blocks.
int32_t tile_by_arithmetic(const cuda::ConvParams& layer, int32_t rows, int multiprocessors);

}  // namespace cae::gpu
