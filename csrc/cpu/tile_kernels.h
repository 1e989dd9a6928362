// SPDX-License-Identifier: Apache-2.0
// Inner loops shared by all instruction sets, templated on a traits class `Isa`:
//   Vec, kWidth, kMaxPoints, load, store, broadcast, fma(a, b, c) = a * b + c.
// A tile holds kMaxPoints x 2 vectors of sums in registers for the whole reduction, so each output
// is rounded in the same order whatever the tile it falls into: results do not depend on tiling.
// Everything has internal linkage: each including file compiles its own copy for its target.
#pragma once

#include "cpu/kernel_table.h"

// Before a loop whose iterations touch separate elements, which `out` being `residual` hides.
#if defined(__clang__)
#define CAE_INDEPENDENT_ITERATIONS _Pragma("clang loop vectorize(assume_safety)")
#else
#define CAE_INDEPENDENT_ITERATIONS _Pragma("GCC ivdep")
#endif

namespace cae::cpu {
namespace {

constexpr int64_t kPanelVectors = 2;

template <class Isa, int kPoints, int kVectors>
void tile(const StripArgs& args, const float* a_tile, float* out) {
  using Vec = typename Isa::Vec;
  Vec sums[kPoints][kVectors];
  for (int p = 0; p < kPoints; ++p) {
    for (int v = 0; v < kVectors; ++v) {
      sums[p][v] = Isa::broadcast(0.0f);
    }
  }
  const int64_t stride = args.a_point_stride;
  const float* b = args.b;
  for (int64_t s = 0; s < args.segments; ++s) {
    const float* a = a_tile + s * args.a_segment_stride;
    for (int64_t k = 0; k < args.segment_length; ++k, ++a) {
      Vec weights[kVectors];
      for (int v = 0; v < kVectors; ++v) {
        weights[v] = Isa::load(b + v * Isa::kWidth);
      }
      b += kVectors * Isa::kWidth;
#pragma GCC unroll 16
      for (int p = 0; p < kPoints; ++p) {
        const Vec value = Isa::broadcast(a[p * stride]);
        for (int v = 0; v < kVectors; ++v) {
          sums[p][v] = Isa::fma(value, weights[v], sums[p][v]);
        }
      }
    }
  }
  constexpr int64_t kWidth = kVectors * Isa::kWidth;
  for (int p = 0; p < kPoints; ++p) {
    float* row = out + p * args.out_point_stride;
    if (args.channels == kWidth) {
      for (int v = 0; v < kVectors; ++v) {
        Isa::store(row + v * Isa::kWidth, sums[p][v]);
      }
    } else {
      float whole[kWidth];
      for (int v = 0; v < kVectors; ++v) {
        Isa::store(whole + v * Isa::kWidth, sums[p][v]);
      }
      for (int64_t c = 0; c < args.channels; ++c) {
        row[c] = whole[c];
      }
    }
  }
}

using TileFunction = void (*)(const StripArgs&, const float*, float*);

template <class Isa, int kVectors, int kPoints = Isa::kMaxPoints>
TileFunction select_tile(int64_t points) {
  if constexpr (kPoints > 1) {
    if (points < kPoints) {
      return select_tile<Isa, kVectors, kPoints - 1>(points);
    }
  }
  return &tile<Isa, kPoints, kVectors>;
}

/// Cuts the line into tiles of nearly equal size, so that none is narrow.
template <class Isa>
void strip(const StripArgs& args) {
  const int64_t tiles = (args.points + Isa::kMaxPoints - 1) / Isa::kMaxPoints;
  const int64_t small = args.points / tiles;
  const int64_t larger = args.points % tiles;  // tiles of small + 1 points
  const bool narrow = args.channels <= Isa::kWidth;
  int64_t point = 0;
  for (int64_t i = 0; i < tiles; ++i) {
    const int64_t points = small + (i < larger ? 1 : 0);
    const TileFunction function =
        narrow ? select_tile<Isa, 1>(points) : select_tile<Isa, kPanelVectors>(points);
    function(args, args.a + point * args.a_point_stride, args.out + point * args.out_point_stride);
    point += points;
  }
}

/// Moments of kWidth channels (or one) at a time; two passes over values that are still in cache.
template <class Isa>
void moments(const MomentsArgs& args) {
  using Vec = typename Isa::Vec;
  const float inverse_count = 1.0f / static_cast<float>(args.lines * args.points);
  int64_t c = 0;
  for (; c + Isa::kWidth <= args.channels; c += Isa::kWidth) {
    Vec sum = Isa::broadcast(0.0f);
    const Vec one = Isa::broadcast(1.0f);
    for (int64_t y = 0; y < args.lines; ++y) {
      const float* value = args.values + y * args.line_stride + c;
      for (int64_t x = 0; x < args.points; ++x, value += args.point_stride) {
        sum = Isa::fma(one, Isa::load(value), sum);
      }
    }
    const Vec minus_mean = Isa::fma(sum, Isa::broadcast(-inverse_count), Isa::broadcast(0.0f));
    Vec squares = Isa::broadcast(0.0f);
    for (int64_t y = 0; y < args.lines; ++y) {
      const float* value = args.values + y * args.line_stride + c;
      for (int64_t x = 0; x < args.points; ++x, value += args.point_stride) {
        const Vec deviation = Isa::fma(one, Isa::load(value), minus_mean);
        squares = Isa::fma(deviation, deviation, squares);
      }
    }
    Isa::store(args.mean + c, Isa::fma(minus_mean, Isa::broadcast(-1.0f), Isa::broadcast(0.0f)));
    Isa::store(args.m2 + c, squares);
  }
  for (; c < args.channels; ++c) {
    float sum = 0.0f;
    for (int64_t y = 0; y < args.lines; ++y) {
      const float* value = args.values + y * args.line_stride + c;
      for (int64_t x = 0; x < args.points; ++x, value += args.point_stride) {
        sum += *value;
      }
    }
    const float mean = sum * inverse_count;
    float squares = 0.0f;
    for (int64_t y = 0; y < args.lines; ++y) {
      const float* value = args.values + y * args.line_stride + c;
      for (int64_t x = 0; x < args.points; ++x, value += args.point_stride) {
        squares += (*value - mean) * (*value - mean);
      }
    }
    args.mean[c] = mean;
    args.m2[c] = squares;
  }
}

/// NaN passes through the ReLU, as in PyTorch: a broken pixel must not look sound.
template <bool kRelu, bool kResidual>
void affine_pixels(const AffineArgs& args) {
  const float* scale = args.scale;
  const float* shift = args.shift;
  for (int64_t p = 0; p < args.pixels; ++p) {
    const float* in = args.in + p * args.channels;
    const float* residual = kResidual ? args.residual + p * args.channels : nullptr;
    float* out = args.out + p * args.channels;
    CAE_INDEPENDENT_ITERATIONS
    for (int64_t c = 0; c < args.channels; ++c) {
      float value = scale[c] * in[c] + shift[c];
      if constexpr (kRelu) {
        value = 0.0f > value ? 0.0f : value;
      }
      if constexpr (kResidual) {
        value = residual[c] + value;
      }
      out[c] = value;
    }
  }
}

inline void affine(const AffineArgs& args) {
  if (args.relu) {
    args.residual != nullptr ? affine_pixels<true, true>(args) : affine_pixels<true, false>(args);
  } else {
    args.residual != nullptr ? affine_pixels<false, true>(args) : affine_pixels<false, false>(args);
  }
}

template <class Isa>
constexpr KernelTable make_table(const char* name) {
  return KernelTable{name,        Isa::kWidth,   kPanelVectors * Isa::kWidth,
                     &strip<Isa>, &moments<Isa>, &affine};
}

}  // namespace
}  // namespace cae::cpu
