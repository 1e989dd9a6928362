// SPDX-License-Identifier: Apache-2.0
// Every convolution of the networks but the last as one family of implicit matrix products on
// tensor cores: fp16 operands, fp32 accumulation.
#pragma once

#include <cstdint>

#include "core/host_device.h"
#include "cuda/norm_input.h"

namespace cae::cuda {

/// What is convolved.
enum class ConvKind : int32_t {
  kConv3x3 = 0,   // stride 1, reflection 1
  kStride2 = 1,   // 4x4, stride 2, reflection 1: 2x2 taps of the four parities of the pixels
  kImage7x7 = 2,  // 7x7, reflection 3, of a float32 NCHW image of at most four channels
  kUpsample = 3,  // nearest x2, then 5x5, reflection 2: four phases of 3x3, border replicated, and
                  // what upsample_ring_cuda.h computes for the outermost ring
};

/// What happens to the raw input on its way in.
enum class ConvPrologue : int32_t {
  kPlain = 0,
  kAffineRelu = 1,  // relu(scale * y + shift)
  kResidual = 2,    // stream_in + scale * y + shift
};

/// What is stored.
enum class ConvEpilogue : int32_t {
  kMoments = 0,   // the sums as they are, and their moments per tile and channel
  kBiasRelu = 1,  // relu(sum + bias), and the moments of that
  kShuffle = 2,   // kUpsample: sum + bias + ring, pixels shuffled; one pair of moments per block
};

/// Which instructions multiply.
enum class ConvPath : int32_t {
  kPortable = 0,  // mma.sync: every GPU
  kWgmma = 1,     // warpgroups, bulk copies, clusters: compute capability 9.0; no kImage7x7
};

/// What a block makes: pixels times columns of the product. The same results, bit for bit, of one
/// path, as far as the GPU's products of other widths add alike. 64 x 128 and 128 x 256 are for
/// kWgmma, and as 128 x 128 for kConv3x3 and kUpsample.
struct ConvTile {
  int32_t pixels = 128;
  int32_t columns = 64;
};
CAE_HD constexpr bool operator==(const ConvTile& a, const ConvTile& b) {
  return a.pixels == b.pixels && a.columns == b.columns;
}
CAE_HD constexpr bool operator!=(const ConvTile& a, const ConvTile& b) { return !(a == b); }

// Of the tiles whose moments are kept, whatever a block makes of them.
constexpr int kConvTileHeight = 8;
constexpr int kConvTileWidth = 16;
constexpr int kConvColumns = 64;      // of a piece of the weights, and of a pair of block moments
constexpr int kConvKBlock = 64;       // input channels per step, 32 for kImage7x7
constexpr int kConvImageKBlock = 32;  // four pairs of pixels of four channels

/// Rows ("slots") are independent. Sizes are those of the convolution's own grid: for kUpsample
/// the image before it is enlarged.
struct ConvParams {
  ConvKind kind = ConvKind::kConv3x3;
  ConvPrologue prologue = ConvPrologue::kPlain;
  ConvEpilogue epilogue = ConvEpilogue::kMoments;
  int32_t rows = 0;
  int32_t in_height = 0;
  int32_t in_width = 0;
  int32_t in_channels = 0;  // as stored: a multiple of 8; kImage7x7: 1 to 4
  int32_t out_height = 0;
  int32_t out_width = 0;
  int32_t out_channels = 0;   // as stored, a multiple of 8; kShuffle: of each phase
  int32_t real_channels = 0;  // of them, how many are not padding
  ConvTile tile;
  NormInput norm;
  const uint16_t* y = nullptr;          // [.][in_height][in_width][in_channels] half
  const float* image = nullptr;         // kImage7x7: [.][in_channels][in_height][in_width]
  const uint16_t* stream_in = nullptr;  // kResidual: as y
  uint16_t* stream_out = nullptr;       // [rows][..] keeps the input as convolved, but for kPlain
                                        // and kStride2; null: not kept
  const uint16_t* weights = nullptr;    // packed, see conv_pack.h
  const float* bias = nullptr;          // [columns of all blocks]
  const float* ring_rows = nullptr;     // kShuffle: [rows][2][2 * width][out_channels]
  const float* ring_columns = nullptr;  //           [rows][2][2 * height][out_channels]
  uint16_t* out = nullptr;  // [rows][out_height][out_width][out_channels], kShuffle: twice the size
  float* partials = nullptr;            // (mean, M2): [rows][tiles][out_channels][2], kShuffle:
                                        // [rows][tiles][pieces][2]
  const int32_t* y_row = nullptr;       // row of y and its moments; null: the slot itself
  const int32_t* stream_row = nullptr;  // row of stream_in
  const int32_t* mod_row = nullptr;     // row of gamma and beta
  const int32_t* active = nullptr;      // [rows], 0: nothing to do; null: all
  ConvPath path = ConvPath::kPortable;  // results agree as sums in another order do
  int32_t cluster = 2;  // kWgmma: blocks that share their weights, 1, 2 or 4, where they divide the
                        // tiles, else fewer; of 64 pixels at least 2; the same results
  bool overlap = false;  // LaunchOptions
};

CAE_HD constexpr int conv_tiles_across(int width) {
  return (width + kConvTileWidth - 1) / kConvTileWidth;
}
CAE_HD constexpr int conv_tiles(int height, int width) {
  return (height + kConvTileHeight - 1) / kConvTileHeight * conv_tiles_across(width);
}
/// Columns of the product.
CAE_HD constexpr int conv_columns(ConvEpilogue epilogue, int out_channels) {
  return epilogue == ConvEpilogue::kShuffle ? 4 * out_channels : out_channels;
}
/// Pieces of kConvColumns columns.
CAE_HD constexpr int conv_pieces(int columns) {
  return (columns + kConvColumns - 1) / kConvColumns;
}
/// Steps of kConvKBlock (kImage7x7: of kConvImageKBlock) inputs.
CAE_HD constexpr int conv_k_blocks(ConvKind kind, int in_channels) {
  const int blocks = (in_channels + kConvKBlock - 1) / kConvKBlock;
  return kind == ConvKind::kImage7x7 ? 1 : kind == ConvKind::kStride2 ? 4 * blocks : blocks;
}
CAE_HD constexpr int conv_taps(ConvKind kind) {
  return kind == ConvKind::kImage7x7 ? 7 : kind == ConvKind::kStride2 ? 4 : 9;
}

/// True where the build holds what ConvPath::kWgmma runs.
bool conv_wgmma_built();

/// True where there is such a tile for the path and kind, and its columns divide those of the
/// product.
bool conv_tile_runs(const ConvParams& params, const ConvTile& tile);

/// Launches on `stream`; returns at once for no rows. Throws std::invalid_argument if sizes do not
/// fit each other, std::runtime_error if the launch is refused.
void conv_tile(const ConvParams& params, void* stream);

}  // namespace cae::cuda
