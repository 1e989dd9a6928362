// SPDX-License-Identifier: Apache-2.0
#include "emu/warp_ops.h"

#include <algorithm>
#include <cstring>

#include "emu/half_emu.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace cae::emu {

// Lanes 4 g .. 4 g + 3 hold row g of A and column g of B, two values of rising k each, and row g of
// the sums: one after the other they are eight values in order.
void multiply_portable(WarpRegisters& r) {
  float b[16][8];
  for (int n = 0; n < 8; ++n) {
    for (int k = 0; k < 16; ++k) {
      const uint32_t pair = r.in[4 + k / 8][n * 4 + k % 8 / 2];
      b[k][n] = half_to_float(static_cast<uint16_t>(pair >> (k % 2 * 16)));
    }
  }
  for (int row = 0; row < 16; ++row) {
    float* sums = r.sums[row / 8][row % 8 * 4].data();
    for (int k = 0; k < 16; ++k) {
      const uint32_t pair = r.in[row / 8 + k / 8 * 2][row % 8 * 4 + k % 8 / 2];
      const float a = half_to_float(static_cast<uint16_t>(pair >> (k % 2 * 16)));
      for (int n = 0; n < 8; ++n) {
        sums[n] += a * b[k][n];
      }
    }
  }
}

namespace {

#if defined(__x86_64__)
#define CAE_EMU_FAST __attribute__((target("avx2,fma,f16c")))

CAE_EMU_FAST inline __m256 halves(const uint32_t* pairs) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(pairs)));
}

/// rows[n][k] -> columns[k][n], 8 x 8.
CAE_EMU_FAST inline void transpose(__m256 (&m)[8]) {
  __m256 t[8];
  for (int i = 0; i < 8; i += 2) {
    t[i] = _mm256_unpacklo_ps(m[i], m[i + 1]);
    t[i + 1] = _mm256_unpackhi_ps(m[i], m[i + 1]);
  }
  __m256 u[8];
  for (int i = 0; i < 8; i += 4) {
    u[i] = _mm256_shuffle_ps(t[i], t[i + 2], 0x44);
    u[i + 1] = _mm256_shuffle_ps(t[i], t[i + 2], 0xee);
    u[i + 2] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0x44);
    u[i + 3] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0xee);
  }
  for (int i = 0; i < 4; ++i) {
    m[i] = _mm256_permute2f128_ps(u[i], u[i + 4], 0x20);
    m[i + 4] = _mm256_permute2f128_ps(u[i], u[i + 4], 0x31);
  }
}

/// The same values bit for bit: the product of two halves is exact, so fusing it changes nothing.
CAE_EMU_FAST void multiply_fast(WarpRegisters& r) {
  alignas(32) float a[16][16];
  for (int row = 0; row < 16; ++row) {
    const int lane = row % 8 * 4;
    _mm256_store_ps(a[row], halves(&r.in[row / 8][lane]));
    _mm256_store_ps(a[row] + 8, halves(&r.in[row / 8 + 2][lane]));
  }
  __m256 sums[16];
  for (int row = 0; row < 16; ++row) {
    sums[row] = _mm256_loadu_ps(r.sums[row / 8][row % 8 * 4].data());
  }
  for (int half = 0; half < 2; ++half) {
    __m256 b[8];
    for (int n = 0; n < 8; ++n) {
      b[n] = halves(&r.in[4 + half][n * 4]);
    }
    transpose(b);
    for (int row = 0; row < 16; ++row) {
      __m256 sum = sums[row];
      for (int k = 0; k < 8; ++k) {
        sum = _mm256_fmadd_ps(_mm256_broadcast_ss(&a[row][half * 8 + k]), b[k], sum);
      }
      sums[row] = sum;
    }
  }
  for (int row = 0; row < 16; ++row) {
    _mm256_storeu_ps(r.sums[row / 8][row % 8 * 4].data(), sums[row]);
  }
}

bool is_fast() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
         __builtin_cpu_supports("f16c");
}
#endif

}  // namespace

void multiply_matrices(WarpRegisters& r) {
#if defined(__x86_64__)
  static const bool fast = is_fast();
  if (fast) {
    multiply_fast(r);
    return;
  }
#endif
  multiply_portable(r);
}

void load_matrices(Block& block, WarpRegisters& r) {
  Counts& counts = block.worker->counts;
  const uint8_t* shared = block.shared.data() - kSharedBase;
  counts.matrix_loads += 4;
  for (int m = 0; m < 4; ++m) {
    std::array<uint8_t, 8> in_bank = {};  // of 16 bytes
    int most = 0;
    for (int row = 0; row < 8; ++row) {
      const uint32_t address = r.in[0][m * 8 + row];
      bool again = false;  // the same row twice is read once
      for (int before = 0; before < row; ++before) {
        again = again || r.in[0][m * 8 + before] == address;
      }
      if (!again) {
        most = std::max<int>(most, ++in_bank[address / 16 % 8]);
      }
      std::memcpy(&r.out[m][row * 4], shared + address, 16);
    }
    counts.matrix_wavefronts += most;
  }
}

}  // namespace cae::emu
