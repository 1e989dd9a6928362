// SPDX-License-Identifier: Apache-2.0
// The inner loops in the compiler's vector extension: SSE2 on x86-64, NEON on AArch64.
#include "cpu/tile_kernels.h"

namespace cae::cpu {
namespace {

struct Portable {
  typedef float Vec __attribute__((vector_size(16)));
  static constexpr int64_t kWidth = 4;
  static constexpr int kRegisters = 16;
  static Vec load(const float* p) {
    Vec v;
    __builtin_memcpy(&v, p, sizeof(v));
    return v;
  }
  static void store(float* p, Vec v) { __builtin_memcpy(p, &v, sizeof(v)); }
  static void store_past(float* p, Vec v) { store(p, v); }
  static Vec broadcast(float x) { return Vec{x, x, x, x}; }
  static Vec fma(Vec a, Vec b, Vec c) { return a * b + c; }
  static Vec relu(Vec v) {
    typedef int32_t Mask __attribute__((vector_size(16)));
    return reinterpret_cast<Vec>(~reinterpret_cast<Mask>(v < 0.0f) & reinterpret_cast<Mask>(v));
  }
};

inline void nothing() {}

}  // namespace

constexpr KernelTable kPortableKernels = make_table<Portable, Portable>("portable", &nothing);

}  // namespace cae::cpu
