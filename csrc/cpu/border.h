// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstdint>

#include "ops/conv2d.h"

namespace cae::cpu {

/// Index inside [0, size) that position `i` of an axis with a border repeats. Farther out than a
/// border may reach, any.
inline int64_t border_index(int64_t i, int64_t size, Padding padding) {
  if (padding == Padding::kReflect) {
    i = i < 0 ? -i : i;
    i = i < size ? i : 2 * size - 2 - i;
  }
  return std::clamp<int64_t>(i, 0, size - 1);
}

}  // namespace cae::cpu
