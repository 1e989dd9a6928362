// SPDX-License-Identifier: Apache-2.0
// The CUDA status of a build without CUDA; CMake says why in CAE_CUDA_REASON.
#include <stdexcept>

#include "cuda/device_cuda.h"

#ifndef CAE_CUDA_REASON
#error "CMake must define CAE_CUDA_REASON, the reason why CUDA is not built"
#endif

namespace cae {

CudaStatus cuda_status() {
  CudaStatus status;
  status.reason = CAE_CUDA_REASON;
  status.error = "built without CUDA: " + status.reason;
  return status;
}

void check_cuda_device(int32_t /*device*/) { throw std::runtime_error(cuda_status().error); }

}  // namespace cae
