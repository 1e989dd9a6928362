// SPDX-License-Identifier: Apache-2.0
// IEEE half precision, by integer arithmetic.
#pragma once

#include <cstdint>
#include <cstring>

namespace cae::emu {

inline uint32_t float_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}

inline float bits_float(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

inline float half_to_float(uint16_t half) {
  const uint32_t sign = (half & 0x8000U) << 16;
  const uint32_t rest = half & 0x7fffU;
  if (rest >= 0x7c00U) {  // infinite, or not a number
    return bits_float(sign | 0x7f800000U | (rest & 0x3ffU) << 13);
  }
  // The exponent's bias by a product: right for subnormal numbers too.
  const float value = bits_float(rest << 13) * 0x1p112F;
  return bits_float(sign | float_bits(value));
}

/// To the nearest, ties to even.
inline uint16_t float_to_half(float value) {
  const uint32_t bits = float_bits(value);
  const uint32_t sign = bits >> 16 & 0x8000U;
  const uint32_t rest = bits & 0x7fffffffU;
  uint32_t half;
  if (rest > 0x7f800000U) {
    half = 0x7fffU;  // what the GPU makes of any that is not a number
  } else if (rest >= 0x47800000U) {
    half = 0x7c00U;
  } else if (rest >= 0x38800000U) {
    half = (rest - 0x38000000U + 0xfffU + (rest >> 13 & 1)) >> 13;
  } else {  // subnormal: the sum's last bit is worth the half's
    half = float_bits(bits_float(rest) + 0.5F) - float_bits(0.5F);
  }
  return static_cast<uint16_t>(sign | half);
}

}  // namespace cae::emu
