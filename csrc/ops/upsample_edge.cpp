// SPDX-License-Identifier: Apache-2.0
#include "ops/upsample_edge.h"

#include <algorithm>

#include "ops/upsample_taps.h"

namespace cae {
namespace {

/// The outputs along one side of one phase, `vertical` x `horizontal`, as a line of points.
ConvPhase edge_phase(const TensorView<const float>& weight, const EdgeSide& side,
                     const AxisTaps& vertical, const AxisTaps& horizontal, int64_t out_width) {
  const int64_t channels = weight.dim(1);
  const int64_t out_channels = weight.dim(0);
  const bool column = horizontal.count == 1 && vertical.count > 1;
  const int64_t strip_row = side.columns * channels;
  ConvPhase phase;
  phase.lines = 1;
  phase.points = column ? vertical.count : horizontal.count;
  phase.in_offset = (vertical.begin + vertical.first_tap - 1 - side.row) * strip_row +
                    (horizontal.begin + horizontal.first_tap - 1 - side.column) * channels;
  phase.in_point_stride = column ? strip_row : channels;
  phase.in_segment_stride = strip_row;
  phase.segments = vertical.taps;
  phase.segment_length = horizontal.taps * channels;
  const int64_t row = 2 * vertical.begin + vertical.parity;
  phase.out_offset = (row * out_width + 2 * horizontal.begin + horizontal.parity) * out_channels;
  phase.out_point_stride = 2 * out_channels * (column ? out_width : 1);
  const std::vector<float> rows = sum_taps(weight, vertical, horizontal);
  cpu::pack_panels(rows.data(), out_channels, phase);
  return phase;
}

}  // namespace

int64_t UpsampleEdge::strip_size() const {
  int64_t size = 0;
  for (const EdgeSide& side : sides) {
    size = std::max(size, side.rows * side.columns * channels);
  }
  return size;
}

std::vector<int64_t> UpsampleEdge::chunk_pixels() const {
  std::vector<int64_t> pixels;
  for (const EdgeSide& side : sides) {
    for (const ConvPhase& phase : side.phases) {
      pixels.push_back(phase.points);
    }
  }
  return pixels;
}

UpsampleEdge plan_upsample_edge(const TensorView<const float>& weight, int64_t height,
                                int64_t width) {
  check_shape(weight.shape, "weight", {"O", "C", 5, 5});
  UpsampleEdge edge{weight.dim(1), {}};
  for (const AxisOutput end : {AxisOutput::kFirst, AxisOutput::kLast}) {
    const int64_t row = end == AxisOutput::kFirst ? 0 : height - 2;
    EdgeSide side{row, 2, -1, width + 2, {}};
    for (const AxisOutput along :
         {AxisOutput::kFirst, AxisOutput::kEven, AxisOutput::kOdd, AxisOutput::kLast}) {
      side.phases.push_back(
          edge_phase(weight, side, axis_taps(end, height), axis_taps(along, width), 2 * width));
    }
    edge.sides.push_back(std::move(side));
  }
  for (const AxisOutput end : {AxisOutput::kFirst, AxisOutput::kLast}) {
    const int64_t column = end == AxisOutput::kFirst ? 0 : width - 2;
    EdgeSide side{-1, height + 2, column, 2, {}};
    for (const AxisOutput along : {AxisOutput::kEven, AxisOutput::kOdd}) {
      side.phases.push_back(
          edge_phase(weight, side, axis_taps(along, height), axis_taps(end, width), 2 * width));
    }
    edge.sides.push_back(std::move(side));
  }
  return edge;
}

}  // namespace cae
