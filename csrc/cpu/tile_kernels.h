// SPDX-License-Identifier: Apache-2.0
// Inner loops shared by all instruction sets, templated on a traits class `Isa`:
//   Vec (with + - *), kWidth, kRegisters, load, store, store_past (the caches, to whole lines),
//   broadcast, fma(a, b, c) = a * b + c, relu (which lets NaN pass).
// A tile holds points x vectors of sums in registers for the whole reduction, so each output
// is rounded in the same order whatever the tile it falls into: results do not depend on tiling.
// Everything has internal linkage: each including file compiles its own copy for its target.
#pragma once

#include "cpu/kernel_table.h"
#include "cpu/row_kernels.h"
#include "cpu/winograd_kernels.h"

namespace cae::cpu {
namespace {

constexpr int64_t kPanelVectors = 2;
constexpr int64_t kLine = 16;     // floats of a cache line
constexpr int64_t kAddends = 64;  // summed in registers

/// Stores a tile of sums, or adds it to what lies there.
template <class Isa, int kPoints, int kVectors>
inline void store_tile(const StripArgs& args, const typename Isa::Vec (&sums)[kPoints][kVectors],
                       float* out, bool add) {
  constexpr int64_t kWidth = kVectors * Isa::kWidth;
#pragma GCC unroll 16
  for (int p = 0; p < kPoints; ++p) {
    float* row = out + p * args.out_point_stride;
    if (args.channels == kWidth) {
      for (int v = 0; v < kVectors; ++v) {
        float* to = row + v * Isa::kWidth;
        Isa::store(to, add ? Isa::load(to) + sums[p][v] : sums[p][v]);
      }
    } else {
      float whole[kWidth];
      for (int v = 0; v < kVectors; ++v) {
        Isa::store(whole + v * Isa::kWidth, sums[p][v]);
      }
      for (int64_t c = 0; c < args.channels; ++c) {
        row[c] = add ? row[c] + whole[c] : whole[c];
      }
    }
  }
}

/// Cuts a sum into parts of at most kAddends: pieces of a segment of nearly equal length, or as
/// many whole segments as there is room for.
struct Parts {
  explicit Parts(const StripArgs& args) {
    pieces = (args.segment_length + kAddends - 1) / kAddends;
    length = (args.segment_length + pieces - 1) / pieces;
    segments = pieces > 1 ? 1 : kAddends / args.segment_length;
  }
  int64_t pieces;    // of a segment
  int64_t length;    // of a piece
  int64_t segments;  // of a part
};

/// `next`: floats into args.next_a and args.next_b from where `fetches` cache lines of each are
/// fetched while each piece is summed.
template <class Isa, int kPoints, int kVectors>
void tile(const StripArgs& args, const Parts& parts, const float* a_tile, float* out, int64_t next,
          int64_t fetches) {
  using Vec = typename Isa::Vec;
  const int64_t stride = args.a_point_stride;
  const float* b = args.b;
  int64_t begin = 0;  // of the piece
  for (int64_t first = 0; first < args.segments;) {
    Vec sums[kPoints][kVectors];
    for (int p = 0; p < kPoints; ++p) {
      for (int v = 0; v < kVectors; ++v) {
        sums[p][v] = Isa::broadcast(0.0f);
      }
    }
    const bool add = first > 0 || begin > 0;
    const int64_t last =
        first + parts.segments < args.segments ? first + parts.segments : args.segments;
    const int64_t length =
        begin + parts.length < args.segment_length ? parts.length : args.segment_length - begin;
    for (int64_t s = first; s < last; ++s) {
      const float* a = a_tile + s * args.a_segment_stride + begin;
      for (int64_t k = 0; k < length; ++k, ++a) {
        if (k < fetches) {
          __builtin_prefetch(args.next_a + next);
          __builtin_prefetch(args.next_b + next);
          next += kLine;
        }
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
    store_tile<Isa, kPoints, kVectors>(args, sums, out, add);
    begin += length;
    if (begin == args.segment_length) {
      begin = 0;
      first = last;
    }
  }
}

using TileFunction = void (*)(const StripArgs&, const Parts&, const float*, float*, int64_t,
                              int64_t);

/// Points of a tile: as many sums as registers beside one value and the weights.
template <class Isa, int kVectors>
constexpr int most_points() {
  constexpr int kMost = (Isa::kRegisters - 1 - kVectors) / kVectors;
  return kMost < 1 ? 1 : kMost < 14 ? kMost : 14;
}

template <class Isa, int kVectors, int kPoints = most_points<Isa, kVectors>()>
TileFunction select_tile(int64_t points) {
  if constexpr (kPoints > 1) {
    if (points < kPoints) {
      return select_tile<Isa, kVectors, kPoints - 1>(points);
    }
  }
  return &tile<Isa, kPoints, kVectors>;
}

/// Cuts the line into tiles of nearly equal size, so that none is narrow.
template <class Isa, int kVectors>
void strip_of(const StripArgs& args) {
  constexpr int64_t kMost = most_points<Isa, kVectors>();
  const int64_t tiles = (args.points + kMost - 1) / kMost;
  const int64_t small = args.points / tiles;
  const int64_t larger = args.points % tiles;  // tiles of small + 1 points
  const Parts parts(args);
  const int64_t pieces = parts.pieces * args.segments;
  const int64_t fetches = args.next_a == nullptr
                              ? 0
                              : (args.next_floats / kLine + tiles * pieces - 1) / (tiles * pieces);
  int64_t point = 0;
  for (int64_t i = 0; i < tiles; ++i) {
    const int64_t points = small + (i < larger ? 1 : 0);
    select_tile<Isa, kVectors>(points)(args, parts, args.a + point * args.a_point_stride,
                                       args.out + point * args.out_point_stride,
                                       i * fetches * pieces * kLine, fetches);
    point += points;
  }
}

template <class Isa>
void strip(const StripArgs& args) {
  args.channels <= Isa::kWidth ? strip_of<Isa, 1>(args) : strip_of<Isa, kPanelVectors>(args);
}

/// `channels` a multiple of 8, at most 32.
template <class Isa>
void narrow_strip(const StripArgs& args) {
  constexpr int kEight = 8 / Isa::kWidth;
  switch (args.channels / 8) {
    case 1:
      return strip_of<Isa, kEight>(args);
    case 2:
      return strip_of<Isa, 2 * kEight>(args);
    case 3:
      return strip_of<Isa, 3 * kEight>(args);
    default:
      return strip_of<Isa, 4 * kEight>(args);
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
  if (args.residual != nullptr) {
    affine_pixels<false, true>(args);
  } else if (args.relu) {
    affine_pixels<true, false>(args);
  } else {
    affine_pixels<false, false>(args);
  }
}

/// x P(x^2) / Q(x^2), a least-squares fit of the relative error on |x| <= 7.905, where tanh becomes
/// 1 in float32. NaN passes through.
inline void tanh_all(const TanhArgs& args) {
  constexpr float kLimit = 7.905f;
  const float* in = args.in;
  float* out = args.out;
  CAE_INDEPENDENT_ITERATIONS
  for (int64_t i = 0; i < args.count; ++i) {
    float x = in[i];
    x = x > kLimit ? kLimit : x;
    x = x < -kLimit ? -kLimit : x;
    const float z = x * x;
    float p = 1.5418266534008178e-08f;
    p = p * z + 2.2016973608754697e-05f;
    p = p * z + 3.578632893824672e-03f;
    p = p * z + 0.13450323592972016f;
    p = p * z + 0.9999999943317188f;
    float q = 8.59504470653663e-07f;
    q = q * z + 3.423049279971451e-04f;
    q = q * z + 2.6190889207531695e-02f;
    q = q * z + 0.4678365156679079f;
    q = q * z + 1.0f;
    float y = x * p / q;
    y = y > 1.0f ? 1.0f : y;
    out[i] = y < -1.0f ? -1.0f : y;
  }
}

/// `Narrow`: the instruction set for products of few columns.
template <class Isa, class Narrow>
constexpr KernelTable make_table(const char* name, void (*fence)()) {
  return KernelTable{name,
                     Isa::kWidth,
                     kPanelVectors * Isa::kWidth,
                     &strip<Isa>,
                     &narrow_strip<Narrow>,
                     &moments<Isa>,
                     &affine,
                     &tanh_all,
                     &residual_pixels<Isa>,
                     &winograd_input3<Isa>,
                     &winograd_input2<Isa>,
                     &winograd_output<Isa, 6>,
                     &winograd_output<Isa, 5>,
                     &winograd_upsample<Isa>,
                     &rows_input,
                     &rows_output,
                     fence};
}

}  // namespace
}  // namespace cae::cpu
