// SPDX-License-Identifier: Apache-2.0
// The launchers that conv_tile() chooses from. Sizes have been checked.
#pragma once

#include "cuda/conv_tile_cuda.h"

namespace cae::cuda {

void conv_tile_narrow(const ConvParams& params, void* stream);   // 3x3, upsampling; 64 columns
void conv_tile_wide(const ConvParams& params, void* stream);     // the same; 128 columns
void conv_tile_image(const ConvParams& params, void* stream);    // kImage7x7
void conv_tile_stride2(const ConvParams& params, void* stream);  // kStride2

// The same by ConvPath::kWgmma.
void conv_wgmma_narrow(const ConvParams& params, void* stream);
void conv_wgmma_wide(const ConvParams& params, void* stream);
void conv_wgmma_half(const ConvParams& params, void* stream);    // 64 pixels x 128 columns
void conv_wgmma_widest(const ConvParams& params, void* stream);  // 128 pixels x 256 columns
void conv_wgmma_stride2(const ConvParams& params, void* stream);

}  // namespace cae::cuda
