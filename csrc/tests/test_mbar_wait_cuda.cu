// SPDX-License-Identifier: Apache-2.0
// A barrier that never comes is an error on a GPU, after seconds, and one that comes is none.
// Without a GPU it is skipped (exit status 77), unless CAE_REQUIRE names cuda; on a GPU that has no
// such barriers there is nothing to test.
#include <cuda_runtime_api.h>

#include <chrono>
#include <cstdio>

#include "check_test.h"
#include "cuda/conv_tile_cuda.h"
#include "cuda/device_cuda.h"
#include "gpu_test.h"
#include "simt/launch.h"
#include "simt/simt.h"

namespace {

struct WaitParams {
  int comes;
  int* passed;
};

KERNEL void __launch_bounds__(32) wait_kernel(const WaitParams p) {
#ifdef SIMT_HOPPER
  const uint32_t barrier = dev::smem_base();
  if (dev::tid() == 0) {
    dev::mbar_init(barrier, 1);
    dev::mbar_init_fence();
  }
  dev::sync();
  if (dev::tid() == 0 && p.comes != 0) {
    dev::mbar_arrive(barrier);
  }
  dev::mbar_wait(barrier, 0);
  if (dev::tid() == 0) {
    dev::store(p.passed, 1);
  }
#endif
}

void test_wait() {
  int* passed = nullptr;
  CAE_CUDA_CHECK(cudaMalloc(&passed, sizeof(int)));
  CAE_CUDA_CHECK(cudaMemset(passed, 0, sizeof(int)));
  cae::cuda::launch(wait_kernel, {}, 32, 16, nullptr, WaitParams{1, passed});
  int found = 0;
  CAE_CUDA_CHECK(cudaMemcpy(&found, passed, sizeof(int), cudaMemcpyDeviceToHost));
  CAE_TEST_CHECK(found == 1);
  const auto start = std::chrono::steady_clock::now();
  cae::cuda::launch(wait_kernel, {}, 32, 16, nullptr, WaitParams{0, passed});
  const cudaError_t error = cudaDeviceSynchronize();  // the context is lost: nothing is freed
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  std::printf("%s after %.1f s\n", cudaGetErrorString(error), seconds.count());
  CAE_TEST_CHECK(error != cudaSuccess);
  CAE_TEST_CHECK(seconds.count() > 4.0 && seconds.count() < 15.0);
}

}  // namespace

int main() {
  const cae::CudaStatus status = cae::cuda_status();
  if (status.devices.empty()) {
    return cae::testing::without_gpu(status);
  }
  if (status.devices[0].major != 9 || !cae::cuda::conv_wgmma_built()) {
    std::printf("nothing to test: compute capability %d.%d, sm_90a %s built\n",
                status.devices[0].major, status.devices[0].minor,
                cae::cuda::conv_wgmma_built() ? "is" : "is not");
    return 0;
  }
  test_wait();
  return cae::testing::finish("test_mbar_wait_cuda");
}
