// SPDX-License-Identifier: Apache-2.0
// Serial: a few numbers per image.
#include <cmath>

#include "ops/lerp_codes.h"

namespace cae::cpu {

void lerp_codes(const float* start, const float* end, const float* t, int64_t count,
                int64_t code_dim, float* out) {
  for (int64_t n = 0; n < count; ++n) {
    for (int64_t d = 0; d < code_dim; ++d) {
      const int64_t i = n * code_dim + d;
      out[i] = std::fma(t[n], end[i], (1.0f - t[n]) * start[i]);
    }
  }
}

}  // namespace cae::cpu
