// SPDX-License-Identifier: Apache-2.0
// Lets emulated kernels touch memory of the caller.
#pragma once

#include <cstddef>
#include <memory>

namespace cae::emu {

struct Allocation;

/// What kernels do with memory: kRead is written by nobody here, but for all they know an earlier
/// kernel did so.
enum class ExternalUse { kWritten, kRead, kConstant };

/// While it lives, kernels may read `bytes` at `data`, and write them where that is the use. A GPU
/// has no counterpart: for tests.
class ExternalMemory {
 public:
  ExternalMemory(const void* data, size_t bytes, ExternalUse use);
  ~ExternalMemory();
  ExternalMemory(const ExternalMemory&) = delete;
  ExternalMemory& operator=(const ExternalMemory&) = delete;

 private:
  std::unique_ptr<Allocation> memory_;
};

}  // namespace cae::emu
