// SPDX-License-Identifier: Apache-2.0
#include "engine/gpu_layers.h"

#include "cuda/moments_cuda.h"

namespace cae::gpu {
namespace {

// What a block spends besides products, in steps of one tap and 64 inputs: merging moments, the
// first patch, the epilogue. An estimate until it is measured.
constexpr int64_t kHeadSteps = 20;
// With more input channels a wide block's shared memory exceeds the 99 KB that every GPU has.
constexpr int32_t kMostWideInputs = 704;

/// The width of blocks that takes fewer steps; what is computed does not depend on it.
int32_t choose_columns(const cuda::ConvParams& p, int32_t rows, int multiprocessors) {
  const bool can = p.kind == cuda::ConvKind::kConv3x3 || p.kind == cuda::ConvKind::kUpsample;
  const int pieces = cuda::conv_pieces(cuda::conv_columns(p.epilogue, p.out_channels));
  if (!can || pieces % 2 != 0 || p.in_channels > kMostWideInputs) {
    return 64;
  }
  const int64_t tiles = static_cast<int64_t>(rows) * cuda::conv_tiles(p.out_height, p.out_width);
  const int64_t steps =
      static_cast<int64_t>(cuda::conv_k_blocks(p.kind, p.in_channels)) * cuda::conv_taps(p.kind);
  const auto cost = [&](int64_t blocks, int64_t work) {
    return (blocks + multiprocessors - 1) / multiprocessors * (kHeadSteps + work);
  };
  return cost(tiles * pieces / 2, 2 * steps) < cost(tiles * pieces, steps) ? 128 : 64;
}

}  // namespace

cuda::NormInput reading(const cuda::NormInput& norm, const LayerOutput& output) {
  cuda::NormInput bound = norm;
  bound.partials = output.merged != nullptr ? output.merged : output.parts;
  return bound;
}

void run_conv(const GpuConv& conv, const LayerInput& input, const LayerOutput& output, int32_t rows,
              Stream queue) {
  cuda::ConvParams p = conv.params;
  p.rows = rows;
  p.prologue = input.prologue;
  p.norm = input.norm;
  p.y = input.y;
  p.image = input.image;
  p.stream_in = input.stream_in;
  p.stream_out = input.stream_out;
  p.y_row = input.y_row;
  p.stream_row = input.stream_row;
  p.mod_row = input.mod_row;
  p.active = input.active;
  p.ring_rows = input.ring_rows;
  p.ring_columns = input.ring_columns;
  p.out = output.values;
  p.partials = output.parts;
  p.block_columns = choose_columns(p, rows, conv.multiprocessors);
  cuda::conv_tile(p, queue);
  if (output.merged != nullptr) {
    cuda::MergeMomentsParams merge;
    merge.rows = rows;
    merge.parts = conv.moments.parts;
    merge.merged_parts = conv.moments.norm.parts;
    merge.channels = static_cast<int32_t>(conv.moments.floats_per_part / 2);
    merge.partials = output.parts;
    merge.counts = conv.moments.counts;
    merge.merged = output.merged;
    merge.active = input.active;
    merge.overlap = p.overlap;
    cuda::merge_moments(merge, queue);
  }
}

}  // namespace cae::gpu
