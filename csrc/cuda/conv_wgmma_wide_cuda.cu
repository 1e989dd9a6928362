// SPDX-License-Identifier: Apache-2.0
#include "cuda/conv_wgmma_launch.cuh"

namespace cae::cuda {

void conv_wgmma_wide(const ConvParams& params, void* stream) {
  launch_wgmma_3x3<16, 128>(params, stream);
}

}  // namespace cae::cuda
