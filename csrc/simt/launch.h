// SPDX-License-Identifier: Apache-2.0
// Starts a kernel: on a GPU through the CUDA runtime, in the emulator (CAE_EMU) on the CPU.
// Included by kernel sources only; what they export is plain C++ in their own headers.
#pragma once

#include <cstddef>

namespace cae::cuda {

using Stream = void*;  // a cudaStream_t; null is the default stream

struct Grid {
  int x = 1;
  int y = 1;
  int z = 1;
};

struct LaunchOptions {
  // Starts while the kernel before it ends: the kernel calls dev::pdl_wait() before it touches what
  // that one wrote, and dev::pdl_launch() where its own successor may start.
  bool overlap = false;
  int cluster = 1;  // blocks along x that share a cluster; divides grid.x
};

}  // namespace cae::cuda

#ifdef CAE_EMU
#include "emu/launch_emu.h"
#else
#include "simt/launch_ptx.cuh"
#endif
