// SPDX-License-Identifier: Apache-2.0
// The thin layer of intrinsics that kernels are written against, with two back ends: PTX where nvcc
// compiles, and the emulator (CAE_EMU) that runs the same kernel source on the CPU and checks it.
// SIMT_HOPPER is defined where there is what Hopper adds: for sm_90a, and in the emulator.
#pragma once

#include <cstddef>
#include <cstdint>

#ifdef CAE_EMU
#include "emu/simt_emu.h"
#else
#include "simt/simt_ptx.cuh"
#endif

typedef uint16_t half_t;  // bits of an IEEE half
// wgmma shared-memory descriptor, no swizzle ("interleave"), K-major:
//   8-row x 16-byte core matrices stored as 128 contiguous bytes; sbo = bytes from one 8-row group
//   to the next along M/N, lbo = bytes from the first to the second 8-element group along K.
HDFN uint64_t gmma_desc(uint32_t saddr, uint32_t lbo, uint32_t sbo) {
#ifdef CAE_EMU
  dev::check_descriptor(saddr, lbo, sbo);
#endif
  return (uint64_t)((saddr & 0x3ffff) >> 4) | ((uint64_t)(lbo >> 4) << 16) |
         ((uint64_t)(sbo >> 4) << 32);
}
