// SPDX-License-Identifier: Apache-2.0
// Launches of the convolutions, compiled in several files for they take long.
#pragma once

#include "core/check.h"
#include "cuda/conv_tile_kernel.cuh"
#include "cuda/conv_tile_launch.h"
#include "simt/launch.h"

namespace cae::cuda {

template <ConvKind kKind, int kColumns>
struct ConfigOf;
// 64 columns: 32 x 16 outputs a warp and half of each k-block, four stages: a single image fills
// the GPU. 128 columns: fewer reads per product, for batches.
template <ConvKind kKind>
struct ConfigOf<kKind, 64> {
  using Type = ConvConfig<ConvShape<kKind>, 64, 2, 2, 2, 4>;
};
template <ConvKind kKind>
struct ConfigOf<kKind, 128> {
  using Type = ConvConfig<ConvShape<kKind>, 128, 2, 2, 2, 3>;
};

template <ConvKind kShapeKind, int kColumns, ConvPrologue kPrologue, ConvEpilogue kEpilogue>
void launch_config(const ConvParams& p, void* stream) {
  using Config = typename ConfigOf<kShapeKind, kColumns>::Type;
  const int blocks =
      conv_pieces(conv_columns(p.epilogue, p.out_channels)) / (kColumns / kConvColumns);
  const uint32_t norm = kPrologue == ConvPrologue::kPlain ? 0 : norm_bytes(p.in_channels);
  launch(conv_tile_kernel<Config, kPrologue, kEpilogue>,
         Grid{conv_tiles(p.out_height, p.out_width), blocks, p.rows}, Config::kThreads,
         Config::kNormAt + norm, stream, p, {p.overlap});
}

/// 3x3 and upsampling.
template <int kColumns, ConvPrologue kPrologue, ConvEpilogue kEpilogue>
void launch_3x3(const ConvParams& p, void* stream) {
  launch_config<ConvKind::kConv3x3, kColumns, kPrologue, kEpilogue>(p, stream);
}

template <int kColumns>
void launch_moments(const ConvParams& p, void* stream) {
  switch (p.prologue) {
    case ConvPrologue::kPlain:
      return launch_3x3<kColumns, ConvPrologue::kPlain, ConvEpilogue::kMoments>(p, stream);
    case ConvPrologue::kAffineRelu:
      return launch_3x3<kColumns, ConvPrologue::kAffineRelu, ConvEpilogue::kMoments>(p, stream);
    case ConvPrologue::kResidual:
      return launch_3x3<kColumns, ConvPrologue::kResidual, ConvEpilogue::kMoments>(p, stream);
  }
}

template <int kColumns>
void launch_upsample(const ConvParams& p, void* stream) {
  CAE_CHECK(p.prologue != ConvPrologue::kPlain, "an upsampling input is normalised");
  if (p.prologue == ConvPrologue::kResidual) {
    launch_3x3<kColumns, ConvPrologue::kResidual, ConvEpilogue::kShuffle>(p, stream);
  } else {
    launch_3x3<kColumns, ConvPrologue::kAffineRelu, ConvEpilogue::kShuffle>(p, stream);
  }
}

}  // namespace cae::cuda
