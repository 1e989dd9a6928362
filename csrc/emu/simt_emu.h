// SPDX-License-Identifier: Apache-2.0
// The intrinsic layer in the emulator. Included through simt/simt.h.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "emu/emulator.h"
#include "emu/half_emu.h"
#include "emu/hopper_emu.h"
#include "emu/shared_memory.h"
#include "emu/warp_ops.h"

// Names of CUDA, and those that simt_ptx.cuh defines.
// NOLINTBEGIN(readability-identifier-naming,bugprone-reserved-identifier)
#define KFN static inline
#define KFN_MEMBER inline
#define HDFN static inline
#define KERNEL
#define UNROLL
#define NOUNROLL
#define UNROLL_BY(n)
#define SIMT_HOPPER
#define __launch_bounds__(...)
#define __cluster_dims__(...)

struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};
// NOLINTEND(readability-identifier-naming,bugprone-reserved-identifier)

namespace dev {

using cae::emu::Access;
using cae::emu::current_lane;
using cae::emu::Lane;
using cae::emu::WarpOp;
using cae::emu::WarpRegisters;

KFN int tid() { return current_lane->thread; }
KFN int bx() { return current_lane->block->x; }
KFN int by() { return current_lane->block->y; }
KFN int bz() { return current_lane->block->z; }
KFN int gx() { return current_lane->block->worker->launch->grid_x; }
KFN int gy() { return current_lane->block->worker->launch->grid_y; }
KFN int gz() { return current_lane->block->worker->launch->grid_z; }
KFN int threads() { return current_lane->block->worker->launch->threads; }
KFN uint32_t smem_base() { return cae::emu::kSharedBase; }

KFN void named_bar(int id, int n) { cae::emu::meet_barrier(*current_lane, id, n); }
KFN void sync() { named_bar(0, threads()); }
KFN void syncwarp() {
  Lane& me = *current_lane;
  cae::emu::meet(me, WarpOp::kSyncWarp,
                 [&me](cae::emu::Warp& warp) { warp.sync_tick = ++me.block->tick; });
}

KFN void cp_async16(uint32_t s, const void* g) { cae::emu::issue_copy(*current_lane, s, g); }
KFN void cp_commit() { cae::emu::commit_copies(*current_lane); }
template <int N>
KFN void cp_wait() {
  cae::emu::wait_copies(*current_lane, N);
}

KFN void ldsm4(uint32_t (&r)[4], uint32_t a) {
  Lane& me = *current_lane;
  cae::emu::shared_bytes(me, a, 16);
  cae::emu::check_read(me, a, 16);
  WarpRegisters& w = me.warp->registers;
  w.in[0][me.index] = a;
  cae::emu::meet(me, WarpOp::kLoadMatrix, [&me](cae::emu::Warp& warp) {
    cae::emu::load_matrices(*me.block, warp.registers);
  });
  for (int i = 0; i < 4; ++i) {
    r[i] = w.out[i][me.index];
  }
}

KFN void mma16816(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  Lane& me = *current_lane;
  WarpRegisters& w = me.warp->registers;
  const int i = me.index;
  for (int j = 0; j < 4; ++j) {
    w.in[j][i] = a[j];
  }
  w.in[4][i] = b0;
  w.in[5][i] = b1;
  w.sums[0][i] = {d[0], d[1]};
  w.sums[1][i] = {d[2], d[3]};
  cae::emu::meet(me, WarpOp::kMultiply, [&me](cae::emu::Warp& warp) {
    cae::emu::multiply_matrices(warp.registers);
    ++me.block->worker->counts.multiplies;
  });
  d[0] = w.sums[0][i][0];
  d[1] = w.sums[0][i][1];
  d[2] = w.sums[1][i][0];
  d[3] = w.sums[1][i][1];
}

// Global memory, 1 to 16 bytes.
template <class T>
KFN T read_global(const void* p, Access access) {
  static_assert(std::is_trivially_copyable_v<T> && sizeof(T) <= 16 &&
                (sizeof(T) & (sizeof(T) - 1)) == 0);
  T value;
  std::memcpy(&value, cae::emu::global_bytes(*current_lane, p, sizeof(T), access), sizeof(T));
  return value;
}
template <class T>
KFN T load(const T* p) {
  return read_global<T>(p, Access::kRead);
}
template <class T>
KFN void store(T* p, T v) {
  static_assert(std::is_trivially_copyable_v<T> && sizeof(T) <= 16 &&
                (sizeof(T) & (sizeof(T) - 1)) == 0);
  std::memcpy(cae::emu::global_bytes(*current_lane, p, sizeof(T), Access::kWrite), &v, sizeof(T));
}
KFN uint4 ldg128(const void* p) { return read_global<uint4>(p, Access::kReadOnly); }
KFN uint4 ldg128_stream(const void* p) { return read_global<uint4>(p, Access::kRead); }
KFN void stg128(void* p, uint4 v) { store(static_cast<uint4*>(p), v); }

KFN void sts128(uint32_t a, uint4 v) { cae::emu::store_shared(*current_lane, a, v); }
KFN uint4 lds128(uint32_t a) { return cae::emu::load_shared<uint4>(*current_lane, a); }
KFN void sts32(uint32_t a, uint32_t v) { cae::emu::store_shared(*current_lane, a, v); }
KFN uint32_t lds32(uint32_t a) { return cae::emu::load_shared<uint32_t>(*current_lane, a); }
KFN float fbits(uint32_t u) { return cae::emu::bits_float(u); }
KFN uint32_t ubits(float f) { return cae::emu::float_bits(f); }
KFN float ldsf(uint32_t a) { return fbits(lds32(a)); }
KFN void stsf(uint32_t a, float v) { sts32(a, ubits(v)); }
KFN double ldsd(uint32_t a) { return cae::emu::load_shared<double>(*current_lane, a); }
KFN void stsd(uint32_t a, double v) { cae::emu::store_shared(*current_lane, a, v); }

// 4 or 8 bytes of the lane that each lane names.
template <class T>
KFN T shuffle(T v, int from, WarpOp op) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8);
  constexpr int kWords = sizeof(T) / 4;
  Lane& me = *current_lane;
  WarpRegisters& w = me.warp->registers;
  uint32_t words[kWords];
  std::memcpy(words, &v, sizeof(T));
  for (int i = 0; i < kWords; ++i) {
    w.in[i][me.index] = words[i];
  }
  w.in[2][me.index] = static_cast<uint32_t>(from) & 31;
  cae::emu::meet(me, op, [](cae::emu::Warp& warp) {
    WarpRegisters& r = warp.registers;
    for (int i = 0; i < kWords; ++i) {
      for (int lane = 0; lane < cae::emu::kWarp; ++lane) {
        r.out[i][lane] = r.in[i][r.in[2][lane]];
      }
    }
  });
  for (int i = 0; i < kWords; ++i) {
    words[i] = w.out[i][me.index];
  }
  std::memcpy(&v, words, sizeof(T));
  return v;
}
KFN float shfl(float v, int lane) { return shuffle(v, lane, WarpOp::kShuffle); }
KFN int32_t shfl(int32_t v, int lane) { return shuffle(v, lane, WarpOp::kShuffle); }
KFN float shfl_xor(float v, int m) { return shuffle(v, current_lane->index ^ m, WarpOp::kShuffle); }
KFN int32_t shfl_xor(int32_t v, int m) {
  return shuffle(v, current_lane->index ^ m, WarpOp::kShuffle);
}
KFN double shfl_xor(double v, int m) {
  return shuffle(v, current_lane->index ^ m, WarpOp::kShuffle8);
}
KFN int uniform(int v) { return shuffle(v, 0, WarpOp::kUniform); }

KFN float rsqrt(float v) { return 1.0F / std::sqrt(v); }
KFN float fma(float a, float b, float c) { return std::fma(a, b, c); }
KFN float mul(float a, float b) { return a * b; }
KFN float add(float a, float b) { return a + b; }
KFN double mul(double a, double b) { return a * b; }
KFN double add(double a, double b) { return a + b; }
KFN float sqrt(float v) { return std::sqrt(v); }
KFN float tanh(float v) { return std::tanh(v); }
KFN float max(float a, float b) { return std::fmax(a, b); }
KFN float relu(float v) { return v <= 0.0F ? 0.0F : v; }  // NaN stays NaN
KFN uint32_t pack_half2(float lo, float hi) {
  return cae::emu::float_to_half(lo) | static_cast<uint32_t>(cae::emu::float_to_half(hi)) << 16;
}
KFN void unpack_half2(uint32_t v, float& lo, float& hi) {
  lo = cae::emu::half_to_float(static_cast<uint16_t>(v & 0xffff));
  hi = cae::emu::half_to_float(static_cast<uint16_t>(v >> 16));
}
KFN void pdl_wait() { current_lane->pdl_waited = true; }
KFN void pdl_launch() {}

// ---- Hopper
KFN uint32_t ctarank() { return current_lane->block->rank; }
KFN int clustersize() { return current_lane->block->worker->launch->cluster; }
KFN uint32_t mapa(uint32_t a, uint32_t cta) {
  return (a & cae::emu::kOffsetMask) | (cta + 1) << cae::emu::kRankShift;
}
KFN void cluster_sync() { cae::emu::meet_cluster(*current_lane); }
KFN void stsf_cluster(uint32_t a, float v) {
  cae::emu::store_in_cluster(*current_lane, a, ubits(v));
}
template <int N>
KFN void take_registers() {
  cae::emu::change_registers(*current_lane, N, true);
}
template <int N>
KFN void give_registers() {
  cae::emu::change_registers(*current_lane, N, false);
}
KFN void mbar_init(uint32_t b, uint32_t n) { cae::emu::init_mbarrier(*current_lane, b, n); }
KFN void mbar_init_fence() {}
KFN void mbar_arrive(uint32_t b) { cae::emu::arrive_mbarrier(*current_lane, b); }
KFN void mbar_arrive_cluster(uint32_t b) { cae::emu::arrive_mbarrier(*current_lane, b); }
KFN void mbar_expect(uint32_t b, uint32_t bytes) {
  cae::emu::expect_bytes(*current_lane, b, bytes);
}
KFN void mbar_wait(uint32_t b, uint32_t parity) {
  cae::emu::wait_mbarrier(*current_lane, b, parity);
}
KFN void fence_async() { cae::emu::fence_proxies(*current_lane); }
KFN void bulk_g2s_mc(uint32_t dst, const void* src, uint32_t bytes, uint32_t bar, uint16_t mask) {
  cae::emu::issue_bulk(*current_lane, dst, src, bytes, bar, mask);
}
KFN void bulk_g2s(uint32_t dst, const void* src, uint32_t bytes, uint32_t bar) {
  cae::emu::issue_bulk(*current_lane, dst, src, bytes, bar, 1U << ctarank());
}
KFN void check_descriptor(uint32_t address, uint32_t along_k, uint32_t along_rows) {
  cae::emu::check_descriptor(*current_lane, address, along_k, along_rows);
}
KFN void wg_fence() { cae::emu::fence_products(*current_lane); }
KFN void wgmma_n64(float (&d)[32], uint64_t da, uint64_t db, int acc) {
  cae::emu::issue_product(*current_lane, d, da, db, acc, 64);
}
KFN void wgmma_n128(float (&d)[64], uint64_t da, uint64_t db, int acc) {
  cae::emu::issue_product(*current_lane, d, da, db, acc, 128);
}
KFN void wgmma_n256(float (&d)[128], uint64_t da, uint64_t db, int acc) {
  cae::emu::issue_product(*current_lane, d, da, db, acc, 256);
}
KFN void wg_commit() { cae::emu::commit_products(*current_lane); }
template <int N>
KFN void wg_wait() {
  cae::emu::wait_products(*current_lane, N);
}
template <int R>
KFN void wg_touch(float (&)[R]) {}

}  // namespace dev
