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
  // Starts while the kernel before it on the stream ends (programmatic dependent launch), and maybe
  // those before that: every thread calls dev::pdl_wait() before its first access to memory that is
  // not constant, and also where it leaves early, for who waits for this kernel relies on this
  // one's having waited for all before it. dev::pdl_launch() says from where on the next may start.
  // Only where gpu::kernels_wait(). After anything but a kernel the order is the usual one.
  bool overlap = false;
  int cluster = 1;  // blocks along x that share a cluster; divides grid.x
};

}  // namespace cae::cuda

#ifdef CAE_EMU
#include "emu/launch_emu.h"
#else
#include "simt/launch_ptx.cuh"
#endif
