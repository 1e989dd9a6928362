// SPDX-License-Identifier: Apache-2.0
// The GPU that is emulated, as far as launches depend on it.
#pragma once

#include <cstdint>

namespace cae::emu {

struct DeviceLimits {
  int arch;               // compute capability, 10 * major + minor
  uint32_t shared_bytes;  // of a block, at most
  int multiprocessors;    // of a GPU of that kind
};

/// Of compute capability CAE_EMU_ARCH (80, 86, 89, 90, 100 or 120), which is read at each call; of
/// 90 where it is not set. Throws std::invalid_argument for another.
const DeviceLimits& device_limits();

}  // namespace cae::emu
