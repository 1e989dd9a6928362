// SPDX-License-Identifier: Apache-2.0
// Lets emulated kernels touch memory of the caller.
#pragma once

#include <cstddef>
#include <memory>

namespace cae::emu {

struct Allocation;

/// While it lives, kernels may read `bytes` at `data`, and write them if `writable`. A GPU has no
/// counterpart: for tests.
class ExternalMemory {
 public:
  ExternalMemory(const void* data, size_t bytes, bool writable);
  ~ExternalMemory();
  ExternalMemory(const ExternalMemory&) = delete;
  ExternalMemory& operator=(const ExternalMemory&) = delete;

 private:
  std::unique_ptr<Allocation> memory_;
};

}  // namespace cae::emu
