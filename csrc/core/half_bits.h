// SPDX-License-Identifier: Apache-2.0
// IEEE half precision on the host, as bits: weights are packed in it.
#pragma once

#include <cstdint>
#include <cstring>

namespace cae {

/// Rounds to nearest even. Beyond the range: infinity. NaN stays NaN.
inline uint16_t half_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  const uint32_t sign = (bits >> 16) & 0x8000U;
  const uint32_t magnitude = bits & 0x7fffffffU;
  if (magnitude > 0x7f800000U) {
    return static_cast<uint16_t>(sign | 0x7e00U);
  }
  if (magnitude >= 0x477ff000U) {  // 65520 and more round to infinity
    return static_cast<uint16_t>(sign | 0x7c00U);
  }
  if (magnitude < 0x38800000U) {  // subnormal halves are multiples of 2^-24
    float scaled;
    std::memcpy(&scaled, &magnitude, sizeof(scaled));
    scaled += 0.5F;  // its last place is 2^-24: this addition rounds
    uint32_t rounded;
    std::memcpy(&rounded, &scaled, sizeof(rounded));
    return static_cast<uint16_t>(sign | (rounded - 0x3f000000U));
  }
  const uint32_t odd = (magnitude >> 13) & 1U;
  return static_cast<uint16_t>(sign | ((magnitude - 0x38000000U + 0xfffU + odd) >> 13));
}

inline float half_value(uint16_t bits) {
  const uint32_t sign = (bits & 0x8000U) << 16;
  const uint32_t exponent = (bits >> 10) & 0x1fU;
  const uint32_t fraction = bits & 0x3ffU;
  uint32_t out;
  if (exponent == 0) {
    const float magnitude = static_cast<float>(fraction) * 0x1p-24F;
    std::memcpy(&out, &magnitude, sizeof(out));
    out |= sign;
  } else if (exponent == 31) {
    out = sign | 0x7f800000U | (fraction << 13);
  } else {
    out = sign | ((exponent + 112U) << 23) | (fraction << 13);
  }
  float value;
  std::memcpy(&value, &out, sizeof(value));
  return value;
}

}  // namespace cae
