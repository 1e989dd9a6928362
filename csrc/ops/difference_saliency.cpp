// SPDX-License-Identifier: Apache-2.0
#include "ops/difference_saliency.h"

namespace cae {

void difference_saliency(const TensorView<const float>& a, const TensorView<const float>& b,
                         const TensorView<float>& difference, const TensorView<float>& saliency) {
  check_shape(a.shape, "a", {"N", "C", "H", "W"});
  check_shape(b.shape, "b", {a.dim(0), a.dim(1), a.dim(2), a.dim(3)});
  check_shape(difference.shape, "difference", {a.dim(0), a.dim(1), a.dim(2), a.dim(3)});
  check_shape(saliency.shape, "saliency", {a.dim(0), a.dim(2), a.dim(3)});
  cpu::difference_saliency(a.data, b.data, a.dim(0), a.dim(1), a.dim(2) * a.dim(3), difference.data,
                           saliency.data);
}

}  // namespace cae
