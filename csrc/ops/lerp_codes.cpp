// SPDX-License-Identifier: Apache-2.0
#include "ops/lerp_codes.h"

namespace cae {

void lerp_codes(const TensorView<const float>& start, const TensorView<const float>& end,
                const TensorView<const float>& t, const TensorView<float>& out) {
  check_shape(start.shape, "start", {"N", "D"});
  check_shape(end.shape, "end", {start.dim(0), start.dim(1)});
  check_shape(t.shape, "t", {start.dim(0)});
  check_shape(out.shape, "out", {start.dim(0), start.dim(1)});
  cpu::lerp_codes(start.data, end.data, t.data, start.dim(0), start.dim(1), out.data);
}

}  // namespace cae
