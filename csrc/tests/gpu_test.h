// SPDX-License-Identifier: Apache-2.0
// Native tests that need a GPU: skipped where there is none, unless CAE_REQUIRE names cuda.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "cuda/device_cuda.h"

namespace cae::testing {

/// Exit status of a program that finds no GPU: 77 says skipped. Says why.
inline int without_gpu(const CudaStatus& status) {
  const char* require = std::getenv("CAE_REQUIRE");
  const bool required = require != nullptr && std::strstr(require, "cuda") != nullptr;
  std::printf("%s: %s\n", required ? "failed" : "skipped", status.error.c_str());
  return required ? 1 : 77;
}

}  // namespace cae::testing
