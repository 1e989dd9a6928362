// SPDX-License-Identifier: Apache-2.0
// Transforms of Winograd's minimal filtering, F(4x4, r x r), shared by all instruction sets and
// templated on `Isa` like tile_kernels.h; a tail of channels runs the same code on single floats.
// Interpolation points: 0, 1, -1, 1/2, -2 and infinity for r = 3, without -2 for r = 2. They keep
// the constants small: the error stays near twice that of a direct convolution.
// Everything has internal linkage: each including file compiles its own copy for its target.
#pragma once

#include "cpu/kernel_table.h"

namespace cae::cpu {
namespace {

/// One float as a vector of one.
struct Scalar {
  using Vec = float;
  static constexpr int64_t kWidth = 1;
  static Vec load(const float* p) { return *p; }
  static void store(float* p, Vec v) { *p = v; }
  static Vec broadcast(float x) { return x; }
  static void store_past(float* p, Vec v) { *p = v; }
  static Vec relu(Vec v) { return 0.0f > v ? 0.0f : v; }
};

// -- one-dimensional transforms ------------------------------------------------------------------

/// Inputs to products, r = 3.
template <class Isa>
inline void transform_input(const typename Isa::Vec (&d)[6], typename Isa::Vec (&out)[6]) {
  using Vec = typename Isa::Vec;
  const Vec half = Isa::broadcast(0.5f);
  const Vec three_halves = Isa::broadcast(1.5f);
  const Vec odd = d[3] - d[1];
  const Vec even = d[4] - d[2];
  out[0] = (d[0] - d[2]) + even + three_halves * odd;
  out[1] = (odd + even) + three_halves * (d[2] + d[3]);
  out[2] = (even - odd) + three_halves * (d[3] - d[2]);
  out[3] = (odd + odd) + even;
  out[4] = even - half * odd;
  out[5] = (d[5] - d[3]) - odd + three_halves * even;
}

/// Inputs to products, r = 2.
template <class Isa>
inline void transform_input(const typename Isa::Vec (&d)[5], typename Isa::Vec (&out)[5]) {
  using Vec = typename Isa::Vec;
  const Vec half = Isa::broadcast(0.5f);
  const Vec odd = d[3] - d[1];
  out[0] = odd + half * (d[0] - d[2]);
  out[1] = d[3] + half * (d[2] - d[1]);
  out[2] = (d[3] - d[2]) + half * (d[1] - d[2]);
  out[3] = odd;
  out[4] = (d[4] - d[2]) + half * (d[1] - d[3]);
}

/// Products to outputs, r = 3.
template <class Isa>
inline void transform_output(const typename Isa::Vec (&m)[6], typename Isa::Vec (&out)[4]) {
  using Vec = typename Isa::Vec;
  const Vec sum = m[1] + m[2];
  const Vec difference = m[1] - m[2];
  out[0] = (m[0] + sum) + (m[3] + m[4]);
  out[1] = difference + Isa::broadcast(0.5f) * m[3] - Isa::broadcast(2.0f) * m[4];
  out[2] = sum + Isa::broadcast(0.25f) * m[3] + Isa::broadcast(4.0f) * m[4];
  out[3] = (difference + m[5]) + Isa::broadcast(0.125f) * m[3] - Isa::broadcast(8.0f) * m[4];
}

/// Products to outputs, r = 2.
template <class Isa>
inline void transform_output(const typename Isa::Vec (&m)[5], typename Isa::Vec (&out)[4]) {
  using Vec = typename Isa::Vec;
  const Vec sum = m[1] + m[2];
  const Vec difference = m[1] - m[2];
  out[0] = (m[0] + sum) + m[3];
  out[1] = difference + Isa::broadcast(0.5f) * m[3];
  out[2] = sum + Isa::broadcast(0.25f) * m[3];
  out[3] = (difference + m[4]) + Isa::broadcast(0.125f) * m[3];
}

// -- inputs --------------------------------------------------------------------------------------

template <class Isa>
inline void residual_channels(const ResidualArgs& args, int64_t offset, int64_t begin,
                              int64_t end) {
  for (int64_t c = begin; c < end; c += Isa::kWidth) {
    typename Isa::Vec value =
        Isa::load(args.scale + c) * Isa::load(args.in + offset + c) + Isa::load(args.shift + c);
    value = Isa::load(args.residual + offset + c) + value;
    Isa::store(args.out + offset + c, value);
    if (args.stream != nullptr) {
      float* to = args.stream + offset + c;
      args.past_caches ? Isa::store_past(to, value) : Isa::store(to, value);
    }
  }
}

template <class Isa>
void residual_pixels(const ResidualArgs& args) {
  const int64_t whole = args.channels - args.channels % Isa::kWidth;
  for (int64_t p = 0; p < args.pixels; ++p) {
    residual_channels<Isa>(args, p * args.channels, 0, whole);
    residual_channels<Scalar>(args, p * args.channels, whole, args.channels);
  }
}

/// Value of one pixel as the convolution sees it.
template <class Isa, bool kRelu, bool kResidual, bool kAffine>
inline typename Isa::Vec input_value(const WinogradInputArgs& args, int64_t pixel, int64_t c,
                                     typename Isa::Vec scale, typename Isa::Vec shift) {
  typename Isa::Vec value = Isa::load(args.in + pixel * args.channels + c);
  if constexpr (kAffine) {
    value = scale * value + shift;
  }
  if constexpr (kRelu) {
    value = Isa::relu(value);
  }
  if constexpr (kResidual) {
    value = Isa::load(args.residual + pixel * args.channels + c) + value;
  }
  return value;
}

/// Channels [begin, end) of a patch of one input phase: rows[i * step], columns[j * step]. What is
/// computed must not depend on kStream: of tasks that share a chunk only one keeps the stream.
template <class Isa, int kPoints, bool kRelu, bool kResidual, bool kStream, bool kAffine>
void input_channels(const WinogradInputArgs& args, const int64_t* rows, const int64_t* columns,
                    int64_t step, float* products, int64_t begin, int64_t end) {
  using Vec = typename Isa::Vec;
  for (int64_t c = begin; c < end; c += Isa::kWidth) {
    const Vec scale = kAffine ? Isa::load(args.scale + c) : Vec{};
    const Vec shift = kAffine ? Isa::load(args.shift + c) : Vec{};
    Vec half[kPoints][kPoints];
#pragma GCC unroll 6
    for (int j = 0; j < kPoints; ++j) {
      Vec d[kPoints];
#pragma GCC unroll 6
      for (int i = 0; i < kPoints; ++i) {
        const int64_t pixel = rows[i * step] + columns[j * step];
        d[i] = input_value<Isa, kRelu, kResidual, kAffine>(args, pixel, c, scale, shift);
        if constexpr (kStream) {
          if (i >= 1 && i <= 4 && j >= 1 && j <= 4 && i <= args.stream_rows &&
              j <= args.stream_columns) {
            float* to = args.stream + pixel * args.channels + c;
            args.past_caches ? Isa::store_past(to, d[i]) : Isa::store(to, d[i]);
          }
        }
      }
      Vec out[kPoints];
      transform_input<Isa>(d, out);
#pragma GCC unroll 6
      for (int i = 0; i < kPoints; ++i) {
        half[i][j] = out[i];
      }
    }
#pragma GCC unroll 6
    for (int i = 0; i < kPoints; ++i) {
      Vec out[kPoints];
      transform_input<Isa>(half[i], out);
#pragma GCC unroll 6
      for (int j = 0; j < kPoints; ++j) {
        Isa::store(products + (i * kPoints + j) * args.frequency_stride + c, out[j]);
      }
    }
  }
}

template <class Isa, int kPoints, bool kRelu, bool kResidual, bool kStream, bool kAffine = true>
void input_patch(const WinogradInputArgs& args, const int64_t* rows, const int64_t* columns,
                 int64_t step, float* products) {
  const int64_t whole = args.channels - args.channels % Isa::kWidth;
  input_channels<Isa, kPoints, kRelu, kResidual, kStream, kAffine>(args, rows, columns, step,
                                                                   products, 0, whole);
  input_channels<Scalar, kPoints, kRelu, kResidual, kStream, kAffine>(
      args, rows, columns, step, products, whole, args.channels);
}

template <class Isa>
void winograd_input3(const WinogradInputArgs& args) {
  const auto patch = [&](auto function) {
    function(args, args.rows, args.columns, int64_t{1}, args.products);
  };
  const bool stream = args.stream != nullptr;
  if (args.scale == nullptr) {
    patch(&input_patch<Isa, 6, false, false, false, false>);
  } else if (args.residual != nullptr) {
    stream ? patch(&input_patch<Isa, 6, false, true, true>)
           : patch(&input_patch<Isa, 6, false, true, false>);
  } else if (args.relu) {
    stream ? patch(&input_patch<Isa, 6, true, false, true>)
           : patch(&input_patch<Isa, 6, true, false, false>);
  } else {
    stream ? patch(&input_patch<Isa, 6, false, false, true>)
           : patch(&input_patch<Isa, 6, false, false, false>);
  }
}

/// Even and odd rows and columns of the patch lie behind each other in the depth of the product.
template <class Isa>
void winograd_input2(const WinogradInputArgs& args) {
  const auto patch = [&](auto function) {
    for (int64_t row = 0; row < 2; ++row) {
      for (int64_t column = 0; column < 2; ++column) {
        function(args, args.rows + row, args.columns + column, int64_t{2},
                 args.products + (2 * row + column) * args.channels);
      }
    }
  };
  if (args.scale == nullptr) {
    patch(&input_patch<Isa, 5, false, false, false, false>);
  } else if (args.relu) {
    patch(&input_patch<Isa, 5, true, false, false>);
  } else {
    patch(&input_patch<Isa, 5, false, false, false>);
  }
}

// -- outputs -------------------------------------------------------------------------------------

/// Stores the valid pixels of a tile and merges their moments into the running ones (Chan).
/// `kPast`: past the caches.
template <class Isa, int kSize, bool kWhole, bool kPast>
inline void finish_tile(const WinogradOutputArgs& args,
                        const typename Isa::Vec (&tile)[kSize][kSize], int64_t c) {
  using Vec = typename Isa::Vec;
  const int64_t row_begin = kWhole ? 0 : args.row_begin;
  const int64_t row_end = kWhole ? kSize : args.row_end;
  const int64_t column_begin = kWhole ? 0 : args.column_begin;
  const int64_t column_end = kWhole ? kSize : args.column_end;
  Vec sum = Isa::broadcast(0.0f);
  for (int64_t y = row_begin; y < row_end; ++y) {
    float* row = args.out + y * args.out_row_stride + c;
    for (int64_t x = column_begin; x < column_end; ++x) {
      float* to = row + x * args.out_pixel_stride;
      kPast ? Isa::store_past(to, tile[y][x]) : Isa::store(to, tile[y][x]);
      sum = sum + tile[y][x];
    }
  }
  if (args.mean == nullptr) {
    return;
  }
  const Vec mean = sum * Isa::broadcast(args.inverse_pixels);
  Vec squares = Isa::broadcast(0.0f);
  for (int64_t y = row_begin; y < row_end; ++y) {
    for (int64_t x = column_begin; x < column_end; ++x) {
      const Vec deviation = tile[y][x] - mean;
      squares = squares + deviation * deviation;
    }
  }
  const Vec before = Isa::load(args.mean + c);
  const Vec delta = mean - before;
  Isa::store(args.mean + c, before + delta * Isa::broadcast(args.mean_weight));
  Isa::store(args.m2 + c,
             Isa::load(args.m2 + c) + squares + (delta * delta) * Isa::broadcast(args.m2_weight));
}

template <class Isa, int kSize>
inline void finish_any_tile(const WinogradOutputArgs& args,
                            const typename Isa::Vec (&tile)[kSize][kSize], int64_t c) {
  const bool whole = args.row_begin == 0 && args.row_end == kSize && args.column_begin == 0 &&
                     args.column_end == kSize;
  if (!whole) {
    finish_tile<Isa, kSize, false, false>(args, tile, c);
  } else if (args.past_caches) {
    finish_tile<Isa, kSize, true, true>(args, tile, c);
  } else {
    finish_tile<Isa, kSize, true, false>(args, tile, c);
  }
}

/// 4 x 4 outputs of one phase. Rows (columns) whose filter is a difference have no product at the
/// point 1, see upsample_differences in ops/winograd.cpp.
template <class Isa, int kPoints, bool kRowDifference, bool kColumnDifference>
inline void output_phase(const float* products, int64_t frequency_stride,
                         typename Isa::Vec (&tile)[4][4]) {
  using Vec = typename Isa::Vec;
  const Vec zero = Isa::broadcast(0.0f);
  Vec half[4][kPoints];
#pragma GCC unroll 6
  for (int j = 0; j < kPoints; ++j) {
    if (kColumnDifference && j == 1) {
      continue;
    }
    Vec m[kPoints];
#pragma GCC unroll 6
    for (int i = 0; i < kPoints; ++i) {
      m[i] = kRowDifference && i == 1 ? zero
                                      : Isa::load(products + (i * kPoints + j) * frequency_stride);
    }
    Vec out[4];
    transform_output<Isa>(m, out);
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      half[i][j] = out[i];
    }
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    if constexpr (kColumnDifference) {
      half[i][1] = zero;
    }
    transform_output<Isa>(half[i], tile[i]);
  }
}

template <class Isa, int kPoints>
void output_channels(const WinogradOutputArgs& args, int64_t begin, int64_t end) {
  for (int64_t c = begin; c < end; c += Isa::kWidth) {
    typename Isa::Vec tile[4][4];
    output_phase<Isa, kPoints, false, false>(args.products + c, args.frequency_stride, tile);
    finish_any_tile<Isa, 4>(args, tile, c);
  }
}

template <class Isa, int kPoints>
void winograd_output(const WinogradOutputArgs& args) {
  const int64_t whole = args.channels - args.channels % Isa::kWidth;
  output_channels<Isa, kPoints>(args, 0, whole);
  output_channels<Scalar, kPoints>(args, whole, args.channels);
}

/// 8 x 8 outputs: even rows and columns from the first phase; an odd one is the even one before it
/// minus their difference.
template <class Isa>
void upsample_channels(const WinogradOutputArgs& args, int64_t begin, int64_t end) {
  using Vec = typename Isa::Vec;
  for (int64_t c = begin; c < end; c += Isa::kWidth) {
    const float* products = args.products + c;
    Vec even[4][4];
    Vec columns[4][4];
    Vec rows[4][4];
    Vec both[4][4];
    output_phase<Isa, 6, false, false>(products, args.frequency_stride, even);
    output_phase<Isa, 6, false, true>(products + args.phase_stride, args.frequency_stride, columns);
    output_phase<Isa, 6, true, false>(products + 2 * args.phase_stride, args.frequency_stride,
                                      rows);
    output_phase<Isa, 6, true, true>(products + 3 * args.phase_stride, args.frequency_stride, both);
    Vec tile[8][8];
#pragma GCC unroll 4
    for (int y = 0; y < 4; ++y) {
#pragma GCC unroll 4
      for (int x = 0; x < 4; ++x) {
        const Vec odd_row = even[y][x] - rows[y][x];
        tile[2 * y][2 * x] = even[y][x];
        tile[2 * y][2 * x + 1] = even[y][x] - columns[y][x];
        tile[2 * y + 1][2 * x] = odd_row;
        tile[2 * y + 1][2 * x + 1] = odd_row - (columns[y][x] - both[y][x]);
      }
    }
    finish_any_tile<Isa, 8>(args, tile, c);
  }
}

template <class Isa>
void winograd_upsample(const WinogradOutputArgs& args) {
  const int64_t whole = args.channels - args.channels % Isa::kWidth;
  upsample_channels<Isa>(args, 0, whole);
  upsample_channels<Scalar>(args, whole, args.channels);
}

}  // namespace
}  // namespace cae::cpu
