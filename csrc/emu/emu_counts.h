// SPDX-License-Identifier: Apache-2.0
// What the emulator counted since the process began, and whose turn it is.
#pragma once

#include <atomic>
#include <cstdint>
#include <mutex>

namespace cae::emu {

inline std::atomic<int64_t> launches{0};

/// Held by a launch and by whoever changes what memory there is: the emulator has one state for all
/// threads.
inline std::mutex turn;

}  // namespace cae::emu
