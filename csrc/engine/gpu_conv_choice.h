// SPDX-License-Identifier: Apache-2.0
// How kernels run on a GPU where there is a choice: which of two paths convolves, and whether
// launches overlap.
#pragma once

#include "cuda/conv_tile_cuda.h"

namespace cae::gpu {

struct ConvChoice {
  cuda::ConvPath path = cuda::ConvPath::kPortable;
  int32_t cluster = 2;
  // Other tiles give other bits: all batches take the one that is best for one row, as a
  // result must not depend on the batch.
  bool one_tile = false;
};

/// Portable, unless the environment says otherwise. CAE_GPU_CONV=auto: by warpgroups
/// (ConvPath::kWgmma) where the device's compute capability is 9.0, the build has the kernels, and
/// conv_paths_agree(), asked once per process. CAE_GPU_CONV=wgmma: the same, or
/// std::invalid_argument where that cannot run and std::runtime_error where the paths disagree.
/// CAE_GPU_CLUSTER=1, 2 or 4 blocks that share their weights.
ConvChoice choose_conv(int device);

/// Whether kernels start while the one before them ends (LaunchOptions::overlap): not unless
/// CAE_GPU_OVERLAP=1, and then where kernels_wait(). Throws std::invalid_argument for other than 0
/// or 1.
bool choose_overlap(int device);

}  // namespace cae::gpu
