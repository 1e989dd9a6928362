// SPDX-License-Identifier: Apache-2.0
// The inner loops that exist once per instruction set, as a table of function pointers.
// Included by translation units compiled with wider instruction sets: plain types only, no library
// templates, whose out-of-line copies the linker could otherwise share with the baseline code.
#pragma once

#include <stdint.h>

namespace cae::cpu {

/// One line of points times one panel of output channels:
///   out[p, c] = sum over s, k of a[p * a_point_stride + s * a_segment_stride + k] * b[(s, k), c]
/// for p < points, c < channels, s < segments, k < segment_length, summed in order of (s, k).
/// `b` is packed [segments * segment_length][width], width = channels rounded up to whole vectors.
struct StripArgs {
  const float* a;
  int64_t a_point_stride;
  int64_t a_segment_stride;
  int64_t segments;
  int64_t segment_length;
  const float* b;
  float* out;
  int64_t out_point_stride;
  int64_t points;
  int64_t channels;
};

/// Mean and sum of squared deviations from it, per channel, over lines x points.
struct MomentsArgs {
  const float* values;
  int64_t line_stride;
  int64_t point_stride;
  int64_t lines;
  int64_t points;
  int64_t channels;
  float* mean;  // [channels]
  float* m2;    // [channels]
};

/// out = [residual +] [relu](scale[c] * in + shift[c]) over pixels x channels; `out` may be
/// `residual`.
struct AffineArgs {
  const float* in;
  const float* scale;
  const float* shift;
  const float* residual;
  float* out;
  int64_t pixels;
  int64_t channels;
  bool relu;
};

struct KernelTable {
  const char* name;
  int64_t vector_width;  // floats
  int64_t panel_width;   // output channels of a full panel, a multiple of vector_width
  void (*strip)(const StripArgs&);
  void (*moments)(const MomentsArgs&);
  void (*affine)(const AffineArgs&);
};

extern const KernelTable kPortableKernels;
#if defined(CAE_X86_KERNELS)
extern const KernelTable kAvx2Kernels;
extern const KernelTable kAvx512Kernels;
#endif

}  // namespace cae::cpu
