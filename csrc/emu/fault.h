// SPDX-License-Identifier: Apache-2.0
// What the emulator throws when a kernel does what a GPU does not define.
#pragma once

#include <stdexcept>

namespace cae::emu {

/// Names the kernel's parameters, the block, the thread and what happened. The launch ended there;
/// the emulator may be used again, what the kernel wrote so far stays.
class Fault : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

}  // namespace cae::emu
