// SPDX-License-Identifier: Apache-2.0
// What the emulator counts, by kernel.
#pragma once

#include <cstdint>
#include <map>
#include <string>

namespace cae::emu {

struct Counts {
  int64_t launches = 0;
  int64_t overlapped = 0;  // of them, launched with LaunchOptions::overlap
  int64_t blocks = 0;
  int64_t multiplies = 0;         // m16n8k16 by a warp
  int64_t matrix_loads = 0;       // 8 x 8 matrices by ldmatrix
  int64_t matrix_wavefronts = 0;  // the same number where no banks conflict
  int64_t shared_accesses = 0;    // wavefronts that loads and stores of shared memory need at least
  int64_t shared_wavefronts = 0;  // and those they take; lanes out of step are left out
  int64_t async_copies = 0;       // 16 bytes each
  int64_t shared_bytes = 0;       // the most that a launch asked for
  int64_t bulk_bytes = 0;         // read from global memory by bulk copies

  void add(const Counts& other);
};

/// By the name of the kernel's parameters, since the process began or since reset_counts().
std::map<std::string, Counts> launch_counts();
void reset_counts();

}  // namespace cae::emu
