// SPDX-License-Identifier: Apache-2.0
// Launches of the convolutions for Hopper, compiled in several files for they take long.
#pragma once

#include "core/check.h"
#include "cuda/conv_tile_launch.h"
#include "cuda/conv_wgmma.cuh"
#include "simt/launch.h"

namespace cae::cuda {

template <ConvKind kKind, int kColumns, ConvPrologue kPrologue, ConvEpilogue kEpilogue>
void launch_wgmma(const ConvParams& p, void* stream) {
  // As many stages as cover the time that weights take to come.
  using Config = WgmmaConfig<ConvShape<kKind>, kColumns, kColumns == 64 ? 8 : 6>;
  const int tiles = conv_tiles(p.out_height, p.out_width);
  const int blocks =
      conv_pieces(conv_columns(p.epilogue, p.out_channels)) / (kColumns / kConvColumns);
  LaunchOptions options;
  options.overlap = p.overlap;
  for (options.cluster = p.cluster; tiles % options.cluster != 0;) {
    options.cluster /= 2;
  }
  const uint32_t norm = kPrologue == ConvPrologue::kPlain ? 0 : norm_bytes(p.in_channels);
  launch(conv_wgmma_kernel<Config, kPrologue, kEpilogue>, Grid{tiles, blocks, p.rows},
         Config::kBlockThreads, Config::kNormAt + norm, stream, p, options);
}

/// 3x3 and upsampling.
template <int kColumns>
void launch_wgmma_3x3(const ConvParams& p, void* stream) {
  constexpr auto k3 = ConvKind::kConv3x3;
  if (p.epilogue == ConvEpilogue::kShuffle) {
    CAE_CHECK(p.prologue != ConvPrologue::kPlain, "an upsampling input is normalised");
    return p.prologue == ConvPrologue::kResidual
               ? launch_wgmma<k3, kColumns, ConvPrologue::kResidual, ConvEpilogue::kShuffle>(p,
                                                                                             stream)
               : launch_wgmma<k3, kColumns, ConvPrologue::kAffineRelu, ConvEpilogue::kShuffle>(
                     p, stream);
  }
  switch (p.prologue) {
    case ConvPrologue::kPlain:
      return launch_wgmma<k3, kColumns, ConvPrologue::kPlain, ConvEpilogue::kMoments>(p, stream);
    case ConvPrologue::kAffineRelu:
      return launch_wgmma<k3, kColumns, ConvPrologue::kAffineRelu, ConvEpilogue::kMoments>(p,
                                                                                           stream);
    case ConvPrologue::kResidual:
      return launch_wgmma<k3, kColumns, ConvPrologue::kResidual, ConvEpilogue::kMoments>(p, stream);
  }
}

}  // namespace cae::cuda
