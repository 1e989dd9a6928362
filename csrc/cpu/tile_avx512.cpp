// SPDX-License-Identifier: Apache-2.0
// The inner loops for AVX-512 F and VL: 14 points x 32 channels in 28 of 32 registers; few columns
// in half registers.
#include <immintrin.h>

#include "cpu/tile_kernels.h"

namespace cae::cpu {
namespace {

struct Avx512 {
  using Vec = __m512;
  static constexpr int64_t kWidth = 16;
  static constexpr int kRegisters = 32;
  static Vec load(const float* p) { return _mm512_loadu_ps(p); }
  static void store(float* p, Vec v) { _mm512_storeu_ps(p, v); }
  static void store_past(float* p, Vec v) { _mm512_stream_ps(p, v); }
  static Vec broadcast(float x) { return _mm512_set1_ps(x); }
  static Vec fma(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }
  static Vec relu(Vec v) { return _mm512_maskz_max_ps(0xffff, Vec{}, v); }  // NaN: the second
};

struct Avx512Half {
  using Vec = __m256;
  static constexpr int64_t kWidth = 8;
  static constexpr int kRegisters = 32;
  static Vec load(const float* p) { return _mm256_loadu_ps(p); }
  static void store(float* p, Vec v) { _mm256_storeu_ps(p, v); }
  static Vec broadcast(float x) { return _mm256_set1_ps(x); }
  static Vec fma(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a, b, c); }
};

inline void fence() { _mm_sfence(); }

}  // namespace

constexpr KernelTable kAvx512Kernels = make_table<Avx512, Avx512Half>("avx512", &fence);

}  // namespace cae::cpu
