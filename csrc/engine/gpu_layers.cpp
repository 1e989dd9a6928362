// SPDX-License-Identifier: Apache-2.0
#include "engine/gpu_layers.h"

#include "cuda/moments_cuda.h"

namespace cae::gpu {

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
  p.tile = choose_tile(conv.tiles, p, conv.one_tile ? 1 : rows, conv.multiprocessors);
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
