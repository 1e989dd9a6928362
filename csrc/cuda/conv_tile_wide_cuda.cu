// SPDX-License-Identifier: Apache-2.0
#include "cuda/conv_tile_launch.cuh"

namespace cae::cuda {

void conv_tile_wide(const ConvParams& params, void* stream) {
  if (params.kind == ConvKind::kUpsample) {
    launch_upsample<128>(params, stream);
  } else {
    launch_moments<128>(params, stream);
  }
}

}  // namespace cae::cuda
