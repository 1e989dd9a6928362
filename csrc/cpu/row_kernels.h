// SPDX-License-Identifier: Apache-2.0
// Transforms of Winograd's minimal filtering along y only, F(4, 4) at the points 0, 1, -1, 1/2,
// -1/2, 2 and infinity, for filters of seven rows: rows 0 to 3 and 4 to 6 see the same transformed
// rows, one block of four apart. Plain loops, which the compiler turns into vectors of its target.
// Everything has internal linkage: each including file compiles its own copy for its target.
#pragma once

#include "cpu/kernel_table.h"

// Before a loop whose iterations touch separate elements.
#if defined(__clang__)
#define CAE_INDEPENDENT_ITERATIONS _Pragma("clang loop vectorize(assume_safety)")
#else
#define CAE_INDEPENDENT_ITERATIONS _Pragma("GCC ivdep")
#endif

namespace cae::cpu {
namespace {

template <bool kRelu, bool kResidual>
void transform_rows(const RowsInputArgs& args) {
  const float* scale = args.scale;
  const float* shift = args.shift;
  const int64_t stride = args.frequency_stride;
  for (int64_t p = 0; p < args.pixels; ++p) {
    const int64_t offset = p * args.channels;
    float* out = args.out + offset;
    CAE_INDEPENDENT_ITERATIONS
    for (int64_t c = 0; c < args.channels; ++c) {
      float d[7];
      for (int i = 0; i < 7; ++i) {
        float value = scale[c] * args.in[i][offset + c] + shift[c];
        if constexpr (kRelu) {
          value = 0.0f > value ? 0.0f : value;
        }
        if constexpr (kResidual) {
          value = args.residual[i][offset + c] + value;
        }
        d[i] = value;
      }
      const float u0 = (d[4] + 0.25f * d[0]) - 1.25f * d[2];
      const float u1 = (d[5] + 0.25f * d[1]) - 1.25f * d[3];
      const float u2 = (d[6] + 0.25f * d[2]) - 1.25f * d[4];
      const float w0 = d[2] - 2.0f * d[1];
      const float w1 = d[3] - 2.0f * d[2];
      const float w2 = d[4] - 2.0f * d[3];
      const float w3 = d[5] - 2.0f * d[4];
      const float whole0 = w2 - 0.25f * w0;
      const float whole1 = w3 - 0.25f * w1;
      const float half0 = w2 - w0;
      const float half1 = w3 - w1;
      out[c] = u1 - 2.0f * u0;
      out[stride + c] = whole1 + whole0;
      out[2 * stride + c] = whole1 - whole0;
      out[3 * stride + c] = half1 + 0.5f * half0;
      out[4 * stride + c] = half1 - 0.5f * half0;
      out[5 * stride + c] = u1;
      out[6 * stride + c] = u2 - 2.0f * u1;
    }
  }
}

inline void rows_input(const RowsInputArgs& args) {
  if (args.residual[0] != nullptr) {
    transform_rows<false, true>(args);
  } else if (args.relu) {
    transform_rows<true, false>(args);
  } else {
    transform_rows<false, false>(args);
  }
}

/// Seven products of each float to the four rows that they make, in place of the first four.
inline void rows_output(const RowsOutputArgs& args) {
  const int64_t stride = args.frequency_stride;
  float* m = args.products;
  CAE_INDEPENDENT_ITERATIONS
  for (int64_t i = 0; i < args.count; ++i) {
    const float last = m[5 * stride + i];
    const float whole = m[stride + i] + m[2 * stride + i];
    const float whole_difference = m[stride + i] - m[2 * stride + i];
    const float half = m[3 * stride + i] + m[4 * stride + i];
    const float half_difference = m[3 * stride + i] - m[4 * stride + i];
    m[i] = (m[i] + whole) + (half + last);
    m[stride + i] = whole_difference + 0.5f * half_difference + 2.0f * last;
    m[2 * stride + i] = whole + 0.25f * half + 4.0f * last;
    m[3 * stride + i] =
        (whole_difference + m[6 * stride + i]) + 0.125f * half_difference + 8.0f * last;
  }
}

}  // namespace
}  // namespace cae::cpu
