// SPDX-License-Identifier: Apache-2.0
// The inner loops that exist once per instruction set, as a table of function pointers.
// Included by translation units compiled with wider instruction sets: plain types only, no library
// templates, whose out-of-line copies the linker could otherwise share with the baseline code.
#pragma once

#include <stdint.h>

namespace cae::cpu {

/// One line of points times one panel of output channels:
///   out[p, c] = sum over s, k of a[p * a_point_stride + s * a_segment_stride + k] * b[(s, k), c]
/// for p < points, c < channels, s < segments, k < segment_length, in order of (s, k); at most 64
/// addends are summed for themselves first, which loses fewer bits than one long sum.
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
  const float* next_a;  // what will be read soon: fetched into the cache meanwhile, or null
  const float* next_b;
  int64_t next_floats;  // of each
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

/// out = relu(affine), residual + affine or affine, where affine = scale[c] * in + shift[c], over
/// pixels x channels.
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

/// out = tanh(in), to within 4e-7.
struct TanhArgs {
  const float* in;
  float* out;
  int64_t count;
};

/// out = stream = residual + scale[c] * in + shift[c], over pixels x channels.
struct ResidualArgs {
  const float* in;
  const float* scale;
  const float* shift;
  const float* residual;
  float* out;
  float* stream;     // or null
  bool past_caches;  // for the stream, as in WinogradOutputArgs
  int64_t pixels;
  int64_t channels;
};

/// Input transform of one Winograd tile, all channels. Pixel (i, j) of its patch, 6 x 6 for 3x3
/// filters and 10 x 10 for 4x4 filters of stride 2, is number rows[i] + columns[j] of the image.
/// Its value is relu(affine), residual + affine or affine, where affine = scale[c] * in + shift[c],
/// or what lies there if scale is null;
/// the 10 x 10 patch has neither residual nor stream.
struct WinogradInputArgs {
  const float* in;        // [pixels, channels]
  const float* scale;     // [channels] or null
  const float* shift;     // [channels]
  const float* residual;  // [pixels, channels] or null
  float* stream;          // where the tile's own pixels are kept, [pixels, channels], or null
  int64_t stream_rows;    // of the tile's own 4 x 4 pixels, how many rows and columns exist
  int64_t stream_columns;
  bool past_caches;  // for the stream, as in WinogradOutputArgs
  bool relu;
  int64_t channels;
  const int64_t* rows;
  const int64_t* columns;
  float* products;  // of frequency 0; 4x4 filters: [4 phases][channels]
  int64_t frequency_stride;
};

/// Output transform of one Winograd tile for some channels: stores pixels [row_begin, row_end) x
/// [column_begin, column_end) of it and merges their moments into `mean` and `m2` unless null.
struct WinogradOutputArgs {
  const float* products;  // of frequency 0
  int64_t frequency_stride;
  int64_t phase_stride;  // between the four phases of an upsampling tile
  int64_t channels;
  float* out;        // the tile's first pixel
  bool past_caches;  // what is too large for them anyway; whole cache lines only
  int64_t out_row_stride;
  int64_t out_pixel_stride;
  int64_t row_begin;
  int64_t row_end;
  int64_t column_begin;
  int64_t column_end;
  float* mean;  // [channels]
  float* m2;    // [channels]
  float inverse_pixels;
  float mean_weight;  // pixels / (pixels + pixels before)
  float m2_weight;    // pixels before * mean_weight
};

/// Transform of seven rows for F(4, 4) along y, see row_kernels.h. Values as above, over pixels x
/// channels of each row.
struct RowsInputArgs {
  const float* in[7];
  const float* residual[7];  // of all rows or null for all
  const float* scale;        // [channels]
  const float* shift;        // [channels]
  bool relu;
  int64_t pixels;
  int64_t channels;
  float* out;  // of frequency 0, [pixels, channels]
  int64_t frequency_stride;
};

/// Transform back: the products of frequencies 0 to 6 to rows 0 to 3, in the same place.
struct RowsOutputArgs {
  float* products;
  int64_t frequency_stride;
  int64_t count;  // floats of each
};

struct KernelTable {
  const char* name;
  int64_t vector_width;  // floats
  int64_t panel_width;   // output channels of a full panel, a multiple of vector_width
  void (*strip)(const StripArgs&);
  void (*narrow_strip)(const StripArgs&);  // width = channels: 8, 16, 24 or 32
  void (*moments)(const MomentsArgs&);
  void (*affine)(const AffineArgs&);
  void (*tanh)(const TanhArgs&);
  void (*residual)(const ResidualArgs&);
  void (*winograd_input3)(const WinogradInputArgs&);  // 3x3 filters, 36 frequencies
  void (*winograd_input2)(const WinogradInputArgs&);  // 4x4 filters of stride 2, 25 frequencies
  void (*winograd_output3)(const WinogradOutputArgs&);
  void (*winograd_output2)(const WinogradOutputArgs&);
  void (*winograd_upsample)(const WinogradOutputArgs&);
  void (*rows_input)(const RowsInputArgs&);
  void (*rows_output)(const RowsOutputArgs&);
  void (*fence)();  // before other threads read what was stored past the caches
};

extern const KernelTable kPortableKernels;
#if defined(CAE_X86_KERNELS)
extern const KernelTable kAvx2Kernels;
extern const KernelTable kAvx512Kernels;
#endif

}  // namespace cae::cpu
