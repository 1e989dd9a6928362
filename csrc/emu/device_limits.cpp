// SPDX-License-Identifier: Apache-2.0
#include "emu/device_limits.h"

#include <cstdlib>
#include <string>

#include "core/check.h"

namespace cae::emu {
namespace {

// Shared memory of a block: CUDA C++ Programming Guide, technical specifications by compute
// capability. Multiprocessors: A100, RTX 3090 (and A40: 84), RTX 4090, H100 SXM, B200, RTX 5090.
constexpr DeviceLimits kLimits[] = {{80, 163 * 1024, 108},  {86, 99 * 1024, 82},
                                    {89, 99 * 1024, 128},   {90, 227 * 1024, 132},
                                    {100, 227 * 1024, 148}, {120, 99 * 1024, 170}};
constexpr const char* kUsual = "90";

}  // namespace

const DeviceLimits& device_limits() {
  const char* wanted = std::getenv("CAE_EMU_ARCH");
  const std::string arch = wanted == nullptr ? kUsual : wanted;
  for (const DeviceLimits& limits : kLimits) {
    if (arch == std::to_string(limits.arch)) {
      return limits;
    }
  }
  CAE_CHECK(false, "CAE_EMU_ARCH must be 80, 86, 89, 90, 100 or 120, got ", arch);
  return kLimits[0];
}

}  // namespace cae::emu
