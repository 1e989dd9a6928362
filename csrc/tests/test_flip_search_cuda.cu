// SPDX-License-Identifier: Apache-2.0
// The flip search and the device check on a GPU: each thread runs one random search to its end,
// and every state equals the host's. Without a GPU it is skipped (exit status 77), unless
// CAE_REQUIRE names cuda.
#include <cuda_runtime_api.h>

#include <cmath>
#include <cstdio>
#include <string>
#include <vector>

#include "check_test.h"
#include "cuda/device_cuda.h"
#include "gpu_test.h"
#include "random_path.h"
#include "search/flip_search.h"
#include "simt/cuda_check.cuh"

namespace {

using cae::search::FlipMethod;
using cae::search::FlipState;
using cae::testing::random_case;
using cae::testing::RandomCase;

constexpr int32_t kCases = 20000;
constexpr int32_t kMaxPoints = 257;  // of random_case
constexpr int32_t kMaxClasses = 5;

/// Both methods, every depth, several ways to scan.
CAE_HD RandomCase test_case(int32_t index) {
  const bool margin = index % 3 == 0;
  RandomCase test = random_case(static_cast<uint64_t>(index), margin ? 1 : 1 + index % 4);
  test.rules.method = margin ? FlipMethod::kMargin : FlipMethod::kBisection;
  test.rules.coarse_batch = index % 5 == 0 ? cae::search::kWholeScan : index % 5;
  return test;
}

CAE_HD FlipState run_search(int32_t index) {
  const RandomCase test = test_case(index);
  FlipState state = cae::search::start_search(test.source_class, test.target_class);
  cae::search::PointVerdict verdicts[kMaxPoints];
  float logits[kMaxClasses];
  for (;;) {
    const int32_t points = cae::search::num_points(test.rules, state);
    if (points == 0) {
      return state;
    }
    for (int32_t slot = 0; slot < points; ++slot) {
      test.path.logits(cae::search::point_step(test.rules, state, slot), logits);
      verdicts[slot] = cae::search::judge_point(test.rules, state, logits);
    }
    cae::search::advance_search(test.rules, state, verdicts);
  }
}

__global__ void run_searches(FlipState* states) {
  const int32_t index = static_cast<int32_t>(blockIdx.x * blockDim.x + threadIdx.x);
  if (index < kCases) {
    states[index] = run_search(index);
  }
}

bool near(double a, double b) { return std::fabs(a - b) <= 1e-12 * (1.0 + std::fabs(a)); }

/// Equal, but for the rounding of exp and log in what only ranks points.
bool same_state(const FlipState& a, const FlipState& b) {
  return a.status == b.status && a.source_class == b.source_class &&
         a.target_class == b.target_class && a.lo == b.lo && a.hi == b.hi &&
         a.reported_step == b.reported_step && a.reached_class == b.reached_class &&
         a.evaluations == b.evaluations && a.allowance == b.allowance && near(a.record, b.record) &&
         near(a.margin_lo, b.margin_lo) && near(a.margin_hi, b.margin_hi);
}

void test_same_as_host() {
  FlipState* device_states = nullptr;
  CAE_CUDA_CHECK(cudaMalloc(&device_states, kCases * sizeof(FlipState)));
  run_searches<<<(kCases + 127) / 128, 128>>>(device_states);
  CAE_LAUNCH_CHECK();
  std::vector<FlipState> states(kCases);
  CAE_CUDA_CHECK(
      cudaMemcpy(states.data(), device_states, kCases * sizeof(FlipState), cudaMemcpyDeviceToHost));
  CAE_CUDA_CHECK(cudaFree(device_states));
  for (int32_t i = 0; i < kCases; ++i) {
    const FlipState expected = run_search(i);
    CAE_TEST_CHECK(same_state(states[static_cast<size_t>(i)], expected));
  }
}

}  // namespace

int main() {
  const cae::CudaStatus status = cae::cuda_status();
  if (status.devices.empty()) {
    return cae::testing::without_gpu(status);
  }
  for (size_t device = 0; device < status.devices.size(); ++device) {
    cae::check_cuda_device(static_cast<int32_t>(device));
  }
  test_same_as_host();
  return cae::testing::finish("test_flip_search_cuda");
}
