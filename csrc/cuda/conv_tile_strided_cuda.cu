// SPDX-License-Identifier: Apache-2.0
#include "cuda/conv_tile_launch.cuh"

namespace cae::cuda {

void conv_tile_image(const ConvParams& p, void* stream) {
  CAE_CHECK(p.prologue == ConvPrologue::kPlain, "an image is taken as it is");
  if (p.epilogue == ConvEpilogue::kMoments) {
    launch_config<ConvKind::kImage7x7, 64, ConvPrologue::kPlain, ConvEpilogue::kMoments>(p, stream);
  } else {
    launch_config<ConvKind::kImage7x7, 64, ConvPrologue::kPlain, ConvEpilogue::kBiasRelu>(p,
                                                                                          stream);
  }
}

void conv_tile_stride2(const ConvParams& p, void* stream) {
  if (p.prologue == ConvPrologue::kAffineRelu && p.epilogue == ConvEpilogue::kMoments) {
    launch_config<ConvKind::kStride2, 64, ConvPrologue::kAffineRelu, ConvEpilogue::kMoments>(
        p, stream);
  } else {
    CAE_CHECK(p.prologue == ConvPrologue::kPlain && p.epilogue == ConvEpilogue::kBiasRelu,
              "4x4 convolutions take a normalised input and keep moments, or neither");
    launch_config<ConvKind::kStride2, 64, ConvPrologue::kPlain, ConvEpilogue::kBiasRelu>(p, stream);
  }
}

}  // namespace cae::cuda
