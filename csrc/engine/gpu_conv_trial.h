// SPDX-License-Identifier: Apache-2.0
// Whether the paths and tiles of the convolutions agree on a GPU: small convolutions of random
// numbers by each.
#pragma once

#include <string>
#include <vector>

#include "cuda/conv_tile_cuda.h"
#include "cuda/gpu_runtime.h"

namespace cae::gpu {

using ConvLauncher = void (*)(const cuda::ConvParams&, Stream);

struct ConvAgreement {
  std::string wrong;       // tiles that another order of sums does not explain, or an error
  bool same_bits = false;  // of all tiles by warpgroups
};

/// Convolves a small random image on `device` by both paths, by warpgroups in each of `tiles`, and
/// compares values and moments: a 3x3 of what was stored, and an upsampling of what is normalised.
/// Each has k-blocks enough that both patches and all stages of weights come round.
ConvAgreement conv_paths_agree(int device, int32_t cluster,
                               const std::vector<cuda::ConvTile>& tiles,
                               ConvLauncher launch = cuda::conv_tile);

}  // namespace cae::gpu
