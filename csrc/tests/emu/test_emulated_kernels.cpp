// SPDX-License-Identifier: Apache-2.0
// Kernels of csrc/cuda in the emulator, through the launchers and the memory that the engine uses.
#include <cmath>
#include <stdexcept>
#include <utility>
#include <vector>

#include "cuda/gpu_runtime.h"
#include "cuda/lerp_codes_cuda.h"
#include "tests/check_test.h"

namespace {

using cae::gpu::DeviceBuffer;

DeviceBuffer upload(const std::vector<float>& values) {
  DeviceBuffer buffer(0, values.size() * sizeof(float));
  cae::gpu::copy_to_device(buffer.data(), values.data(), buffer.bytes(), nullptr);
  return buffer;
}

void test_lerp_codes() {
  constexpr int64_t kPoints = 251;
  constexpr int64_t kCodeDim = 7;
  std::vector<float> start;
  std::vector<float> end;
  std::vector<float> t;
  for (int64_t i = 0; i < kPoints * kCodeDim; ++i) {
    start.push_back(std::sin(static_cast<float>(i)));
    end.push_back(10.0F * std::cos(static_cast<float>(i)));
  }
  for (int64_t i = 0; i < kPoints; ++i) {
    t.push_back(static_cast<float>(i) / static_cast<float>(kPoints - 1));
  }
  const DeviceBuffer start_d = upload(start);
  const DeviceBuffer end_d = upload(end);
  const DeviceBuffer t_d = upload(t);
  const DeviceBuffer out_d(0, start_d.bytes());
  cae::cuda::lerp_codes(start_d.as<float>(), end_d.as<float>(), t_d.as<float>(), out_d.as<float>(),
                        kPoints, kCodeDim, nullptr);
  std::vector<float> got(start.size());
  cae::gpu::copy_to_host(got.data(), out_d.data(), out_d.bytes(), nullptr);
  cae::gpu::synchronize(nullptr);
  for (size_t i = 0; i < got.size(); ++i) {
    const float u = t[i / kCodeDim];
    CAE_TEST_CHECK(got[i] == std::fmaf(u, end[i], (1.0F - u) * start[i]));
  }
}

void test_memory() {
  CAE_TEST_CHECK(cae::gpu::is_emulated());
  DeviceBuffer a(0, 100);
  const void* data = a.data();
  CAE_TEST_CHECK(reinterpret_cast<uintptr_t>(data) % 256 == 0);
  DeviceBuffer b = std::move(a);
  CAE_TEST_CHECK(b.data() == data);
  CAE_TEST_CHECK(b.bytes() == 100);
  CAE_TEST_CHECK(DeviceBuffer(0, 0).data() == nullptr);
  CAE_TEST_CHECK(cae::testing::throws<std::runtime_error>([] { DeviceBuffer(1, 4); }));
}

}  // namespace

int main() {
  test_lerp_codes();
  test_memory();
  return cae::testing::finish("test_emulated_kernels");
}
