// SPDX-License-Identifier: Apache-2.0
// Convolutions by Winograd's minimal filtering F(4x4, r x r): a tile of 4 x 4 outputs is made from
// (r + 3)^2 matrix products, one for each pair of interpolation points ("frequency"), in place of
// 16 r^2. Three kinds:
//   kConv3x3   r = 3, reflect padding 1:                                 36 products for 144
//   kStride2   4x4 of stride 2, reflect padding 1, r = 2: even and odd rows and columns of the
//              image are four images with a 2x2 filter each, summed:     25 products for 64, x 4
//   kUpsample  nearest upsampling x2, then 5x5, r = 3: even outputs E and the differences E - O to
//              the odd ones. The filter of a difference vanishes at the point 1, so a tile of
//              8 x 8 outputs takes 36 + 30 + 30 + 25 = 121 products for 1600. The outermost ring of
//              outputs is made directly, see upsample_edge.h.
#pragma once

#include <cstdint>
#include <vector>

#include "core/aligned_buffer.h"
#include "core/tensor_view.h"
#include "ops/conv2d.h"

namespace cae {

enum class WinogradKind { kConv3x3, kStride2, kUpsample };

/// Consecutive tiles (row by row) that a task works on, and whose moments are taken together.
/// Depends on the layer and the instruction set, never on the number of threads or images.
struct WinogradChunk {
  int64_t tile = 0;
  int64_t tiles = 0;
  int64_t pixels = 0;  // outputs
};

/// One matrix product: weights [depth][width] of one frequency, for one phase of upsampling.
struct WinogradProduct {
  int64_t frequency = 0;
  int64_t column = 0;  // of the block's products
  int64_t width = 0;
  int64_t offset = 0;  // in the plan's weights
};

/// Output channels that are computed together; its products are phases x channels wide.
struct WinogradBlock {
  int64_t channel = 0;
  int64_t channels = 0;
  int64_t phase_width = 0;  // columns of one phase
  int64_t columns = 0;
  std::vector<WinogradProduct> products;
};

struct WinogradPlan {
  WinogradKind kind = WinogradKind::kConv3x3;
  int64_t height = 0;  // of the input
  int64_t width = 0;
  int64_t channels = 0;
  int64_t out_height = 0;
  int64_t out_width = 0;
  int64_t out_channels = 0;
  int64_t tile_rows = 0;
  int64_t tile_columns = 0;
  int64_t frequencies = 0;
  int64_t depth = 0;  // of a product: channels x input phases
  int64_t chunk_tiles = 0;
  std::vector<WinogradChunk> chunks;
  std::vector<WinogradBlock> blocks;
  AlignedBuffer weights;

  /// Floats between frequencies of a chunk's transformed input, [frequency][tile][depth]; a cache
  /// line more than they take, so that the frequencies of a tile fall into different cache sets.
  int64_t input_stride() const { return chunk_tiles * depth + 16; }
  int64_t input_size() const { return frequencies * input_stride(); }
  /// The same for a block's products, [frequency][tile][column].
  int64_t product_stride(const WinogradBlock& block) const {
    return chunk_tiles * block.columns + 16;
  }
  int64_t product_size() const;
  /// Rows or columns of the image that a tile sees; the next one begins two before the last.
  int64_t patch() const { return kind == WinogradKind::kStride2 ? 10 : 6; }
  /// Floats of the image's rows that a row of tiles sees, where chunks are of whole rows: they are
  /// normalised row by row first. Else 0.
  int64_t rows_size() const {
    return chunk_tiles % tile_columns == 0 ? patch() * width * channels : 0;
  }
  /// Valid outputs of a tile along an axis of `tiles` tiles: [begin, end).
  struct Range {
    int64_t begin;
    int64_t end;
  };
  Range output_rows(int64_t tile_row) const;
  Range output_columns(int64_t tile_column) const;
};

/// Plan of a 3x3 convolution of stride 1 or a 4x4 convolution of stride 2, weight [O, C, k, k],
/// with reflect padding 1. Throws std::invalid_argument if the image is smaller than 2 x 2.
WinogradPlan plan_winograd(const TensorView<const float>& weight, int64_t height, int64_t width);

/// Plan of an upsampling convolution, weight [O, C, 5, 5], but for the outermost ring of outputs.
WinogradPlan plan_winograd_upsample(const TensorView<const float>& weight, int64_t height,
                                    int64_t width);

}  // namespace cae
