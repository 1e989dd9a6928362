// SPDX-License-Identifier: Apache-2.0
// A convolution with random inputs, its launch, and what it should give in double.
#pragma once

#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "core/half_bits.h"
#include "cuda/conv_pack.h"
#include "cuda/conv_tile_cuda.h"

namespace cae::test {

inline float from_half(uint16_t bits) { return half_value(bits); }

/// Index of a pixel that may lie outside, by walking back and forth; not the kernel's formula.
inline int reflected(int i, int n) {
  while (i < 0 || i >= n) {
    i = i < 0 ? -i : 2 * (n - 1) - i;
  }
  return i;
}

constexpr uint16_t kUnwritten = 0x7e55;  // a NaN that nothing computes

struct ConvCase {
  cuda::ConvKind kind;
  cuda::ConvPrologue prologue;
  cuda::ConvEpilogue epilogue;
  int rows, height, width, in, out;
  cuda::ConvTile tile;
  cuda::ConvPath path = cuda::ConvPath::kPortable;
  int cluster = 2;
};

/// Buffers of a case. `operand` [rows][height][width][in] is what the convolution sees, in double,
/// rounded to halves as the kernel rounds.
struct ConvProblem {
  explicit ConvProblem(const ConvCase& c, unsigned seed);

  ConvCase c;
  int stored_in, stored_out, out_height, out_width;
  cuda::PackedConv packed;
  std::vector<float> weight, bias, image, partials_in, counts, eps, gamma, beta;
  std::vector<float> ring_rows, ring_columns, partials, padded_bias;
  std::vector<uint16_t> y, stream_in, stream_out, output;
  std::vector<double> operand;
  cuda::ConvParams params;

  /// Points `params` at this object's buffers, as after a copy.
  void rebind();

  float normal() { return distribution_(random_); }
  /// Sum of the convolution at one output of its own grid (kUpsample: of the enlarged image, border
  /// replicated before enlarging), as scaled.
  double sum_at(int row, int y0, int x0, int o) const;

 private:
  void make_norm();
  void make_operand();
  std::mt19937 random_;
  std::normal_distribution<float> distribution_;
};

/// Caller's memory that a kernel may touch.
struct Memory {
  const void* data;
  size_t bytes;
};

/// Launches the case on the emulated GPU.
void run_conv(ConvProblem& problem, const std::vector<Memory>& more = {},
              void (*launch)(const cuda::ConvParams&, void*) = cuda::conv_tile);

}  // namespace cae::test
