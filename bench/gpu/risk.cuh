// SPDX-License-Identifier: Apache-2.0
// What the programs of the study's risks share: checks, timing, one line of JSON at the end.
#pragma once

#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "simt/simt.h"

namespace risk {

constexpr int kNoGpu = 77;

inline void check(cudaError_t error, const char* what) {
  if (error != cudaSuccess) {
    std::printf("%s: %s\n", what, cudaGetErrorString(error));
    std::exit(1);
  }
}
#define RISK_CHECK(call) ::risk::check((call), #call)

/// The properties of GPU 0; ends the program where there is none or it is no Hopper GPU.
inline cudaDeviceProp device() {
  int count = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess || count == 0) {
    std::printf("no GPU\n");
    std::exit(kNoGpu);
  }
  cudaDeviceProp properties;
  RISK_CHECK(cudaGetDeviceProperties(&properties, 0));
  if (properties.major != 9) {
    std::printf("not a Hopper GPU: %s\n", properties.name);
    std::exit(kNoGpu);
  }
  return properties;
}

/// Median milliseconds of `body`, which queues work on the default stream.
template <class Body>
double milliseconds(const Body& body, int rounds = 9) {
  cudaEvent_t start;
  cudaEvent_t stop;
  RISK_CHECK(cudaEventCreate(&start));
  RISK_CHECK(cudaEventCreate(&stop));
  body();
  RISK_CHECK(cudaGetLastError());
  RISK_CHECK(cudaDeviceSynchronize());
  std::vector<float> times;
  for (int i = 0; i < rounds; ++i) {
    RISK_CHECK(cudaEventRecord(start));
    body();
    RISK_CHECK(cudaEventRecord(stop));
    RISK_CHECK(cudaEventSynchronize(stop));
    float taken = 0;
    RISK_CHECK(cudaEventElapsedTime(&taken, start, stop));
    times.push_back(taken);
  }
  RISK_CHECK(cudaGetLastError());
  std::sort(times.begin(), times.end());
  return times[times.size() / 2];
}

/// Small values that halves and their products hold exactly enough: (-1, 1) in steps of 1/64.
inline __half random_half(uint32_t& state) {
  state = state * 1664525u + 1013904223u;
  return __float2half(static_cast<float>(static_cast<int>(state >> 25) - 64) / 64.0F);
}

/// Collects numbers and prints them as one line of JSON, the program's last.
class Report {
 public:
  explicit Report(const char* name) : text_(std::string("{\"risk\": \"") + name + "\"") {}

  void number(const char* name, double value) {
    char buffer[160];
    std::snprintf(buffer, sizeof buffer, ", \"%s\": %.6g", name, value);
    numbers_ += buffer;
    std::printf("%s: %.6g\n", name, value);
    std::fflush(stdout);
  }

  /// Returns the exit status: an answered risk is no failure, whatever the answer.
  int finish(bool fine, const std::string& verdict) {
    std::printf("%s, \"fine\": %s, \"verdict\": \"%s\", \"numbers\": {%s}}\n", text_.c_str(),
                fine ? "true" : "false", verdict.c_str(),
                numbers_.empty() ? "" : numbers_.c_str() + 2);
    return 0;
  }

 private:
  std::string text_;
  std::string numbers_;
};

}  // namespace risk
