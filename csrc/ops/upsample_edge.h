// SPDX-License-Identifier: Apache-2.0
// The outermost ring of outputs of an upsampling convolution, made directly: there the reflected
// upsampled image is no 3x3 convolution of the small one with a replicated border.
#pragma once

#include <cstdint>
#include <vector>

#include "ops/conv2d.h"

namespace cae {

/// One side of the ring. Its outputs see a strip of the image, two pixels deep:
/// rows [row, row + rows) x columns [column, column + columns), repeated beyond the image's edge.
struct EdgeSide {
  int64_t row = 0;
  int64_t rows = 0;
  int64_t column = 0;
  int64_t columns = 0;
  std::vector<ConvPhase> phases;  // on the strip [rows, columns, C]
};

struct UpsampleEdge {
  int64_t channels = 0;  // of the image
  std::vector<EdgeSide> sides;

  int64_t strip_size() const;
  /// Outputs of each phase of each side, in order: the moments of each are taken for themselves.
  std::vector<int64_t> chunk_pixels() const;
};

/// weight [O, C, 5, 5] for an image of at least 2 x 2.
UpsampleEdge plan_upsample_edge(const TensorView<const float>& weight, int64_t height,
                                int64_t width);

}  // namespace cae
