// SPDX-License-Identifier: Apache-2.0
#include "ops/path_codes.h"

namespace cae {

void check_image_index(const TensorView<const int32_t>& image_index, int64_t images) {
  for (int64_t m = 0; m < image_index.numel(); ++m) {
    CAE_CHECK(image_index.data[m] >= 0 && image_index.data[m] < images,
              "image_index must be in [0, ", images, "), got ", image_index.data[m]);
  }
}

void path_codes(const TensorView<const float>& vertices,
                const TensorView<const int32_t>& image_index, const TensorView<const int32_t>& step,
                int64_t grid, const TensorView<float>& out) {
  check_shape(vertices.shape, "vertices", {"N", "V", "D"});
  CAE_CHECK(vertices.dim(1) >= 1, "vertices must hold at least one vertex per path, got ",
            shape_string(vertices.shape));
  check_shape(image_index.shape, "image_index", {"M"});
  check_shape(step.shape, "step", {image_index.dim(0)});
  check_shape(out.shape, "out", {image_index.dim(0), vertices.dim(2)});
  CAE_CHECK(grid >= 1, "grid must be at least 1, got ", grid);
  check_image_index(image_index, vertices.dim(0));
  for (int64_t m = 0; m < step.numel(); ++m) {
    CAE_CHECK(step.data[m] >= 0 && step.data[m] <= grid, "step must be in [0, ", grid, "], got ",
              step.data[m]);
  }
  cpu::path_codes(vertices.data, vertices.dim(1), vertices.dim(2), image_index.data, step.data,
                  step.numel(), grid, out.data);
}

}  // namespace cae
