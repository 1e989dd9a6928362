// SPDX-License-Identifier: Apache-2.0
// What the emulator counted since the process began.
#pragma once

#include <atomic>
#include <cstdint>

namespace cae::emu {

inline std::atomic<int64_t> launches{0};

}  // namespace cae::emu
