// SPDX-License-Identifier: Apache-2.0
// The inner loops for AVX-512F: 14 points x 32 channels in 28 of 32 registers.
#include <immintrin.h>

#include "cpu/tile_kernels.h"

namespace cae::cpu {
namespace {

struct Avx512 {
  using Vec = __m512;
  static constexpr int64_t kWidth = 16;
  static constexpr int kMaxPoints = 14;
  static Vec load(const float* p) { return _mm512_loadu_ps(p); }
  static void store(float* p, Vec v) { _mm512_storeu_ps(p, v); }
  static Vec broadcast(float x) { return _mm512_set1_ps(x); }
  static Vec fma(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }
};

}  // namespace

constexpr KernelTable kAvx512Kernels = make_table<Avx512>("avx512");

}  // namespace cae::cpu
