// SPDX-License-Identifier: Apache-2.0
// What tests of the emulator share: a small kernel is right, and each seeded bug is found.
#pragma once

#include <cstdio>
#include <string>
#include <vector>

#include "cuda/gpu_runtime.h"
#include "emu/fault.h"
#include "simt/launch.h"
#include "simt/simt.h"
#include "tests/check_test.h"

namespace cae::testing {

/// What every kernel of these tests is given: bug 0 is the right version.
struct Case {
  int bug = 0;
  const float* in = nullptr;
  float* out = nullptr;
};

struct CaseShape {
  cuda::Grid grid;
  int threads = 128;
  size_t shared_bytes = 4096;
  int cluster = 1;
  bool overlap = false;
};

using CaseKernel = void (*)(Case);

constexpr size_t kCaseFloats = 4096;  // of `in` and of `out`

/// Runs one version. Returns what it ended with, empty where nothing was wrong.
inline std::string run_case(CaseKernel kernel, const CaseShape& shape, int bug,
                            std::vector<float>* result = nullptr) {
  std::vector<float> values(kCaseFloats);
  for (size_t i = 0; i < values.size(); ++i) {
    values[i] = static_cast<float>(i);
  }
  const gpu::DeviceBuffer in(0, kCaseFloats * sizeof(float));
  const gpu::DeviceBuffer out(0, kCaseFloats * sizeof(float));
  gpu::copy_to_device(in.data(), values.data(), in.bytes(), nullptr);
  in.seal();
  try {
    cuda::launch(kernel, shape.grid, shape.threads, shape.shared_bytes, nullptr,
                 Case{bug, in.as<float>(), out.as<float>()}, {shape.overlap, shape.cluster});
  } catch (const emu::Fault& fault) {
    return fault.what();
  }
  if (result != nullptr) {
    result->resize(kCaseFloats);
    gpu::copy_to_host(result->data(), out.data(), out.bytes(), nullptr);
  }
  return "";
}

struct SeededBug {
  int bug;
  const char* message;  // part of what the fault says
};

/// The right version passes before and after each bug, and each bug is found for what it is.
inline void check_bugs(const char* name, CaseKernel kernel, const CaseShape& shape,
                       const std::vector<SeededBug>& bugs) {
  const std::string right = run_case(kernel, shape, 0);
  check(right.empty(), (std::string(name) + ": " + right).c_str(), __FILE__, __LINE__);
  for (const SeededBug& seeded : bugs) {
    const std::string found = run_case(kernel, shape, seeded.bug);
    const std::string what = std::string(name) + ", bug " + std::to_string(seeded.bug) +
                             " should say \"" + seeded.message + "\", said \"" + found + "\"";
    check(found.find(seeded.message) != std::string::npos, what.c_str(), __FILE__, __LINE__);
    check(run_case(kernel, shape, 0).empty(), "usable after a fault", __FILE__, __LINE__);
  }
}

}  // namespace cae::testing
