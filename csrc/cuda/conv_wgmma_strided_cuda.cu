// SPDX-License-Identifier: Apache-2.0
#include "cuda/conv_wgmma_launch.cuh"

namespace cae::cuda {

void conv_wgmma_stride2(const ConvParams& p, void* stream) {
  using Shape = ConvShape<ConvKind::kStride2>;
  if (p.prologue == ConvPrologue::kAffineRelu && p.epilogue == ConvEpilogue::kMoments) {
    launch_wgmma<Shape, 64, ConvPrologue::kAffineRelu, ConvEpilogue::kMoments>(p, stream);
  } else {
    CAE_CHECK(p.prologue == ConvPrologue::kPlain && p.epilogue == ConvEpilogue::kBiasRelu,
              "4x4 convolutions take a normalised input and keep moments, or neither");
    launch_wgmma<Shape, 64, ConvPrologue::kPlain, ConvEpilogue::kBiasRelu>(p, stream);
  }
}

}  // namespace cae::cuda
