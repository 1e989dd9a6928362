// SPDX-License-Identifier: Apache-2.0
// The inner loops for AVX2 and FMA: 6 points x 16 channels in 12 of 16 registers.
#include <immintrin.h>

#include "cpu/tile_kernels.h"

namespace cae::cpu {
namespace {

struct Avx2 {
  using Vec = __m256;
  static constexpr int64_t kWidth = 8;
  static constexpr int kRegisters = 16;
  static Vec load(const float* p) { return _mm256_loadu_ps(p); }
  static void store(float* p, Vec v) { _mm256_storeu_ps(p, v); }
  static void store_past(float* p, Vec v) { store(p, v); }
  static Vec broadcast(float x) { return _mm256_set1_ps(x); }
  static Vec fma(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a, b, c); }
  static Vec relu(Vec v) { return _mm256_max_ps(Vec{}, v); }  // NaN: the second
};

inline void nothing() {}

}  // namespace

constexpr KernelTable kAvx2Kernels = make_table<Avx2, Avx2>("avx2", &nothing);

}  // namespace cae::cpu
