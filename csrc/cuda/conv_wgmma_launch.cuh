// SPDX-License-Identifier: Apache-2.0
// Launches of the convolutions for Hopper, compiled in several files for they take long.
#pragma once

#include "core/check.h"
#include "cuda/conv_tile_launch.h"
#include "cuda/conv_wgmma.cuh"
#include "simt/launch.h"

namespace cae::cuda {

template <class Shape, int kColumns, ConvPrologue kPrologue, ConvEpilogue kEpilogue>
void launch_wgmma(const ConvParams& p, void* stream) {
  // As many stages as cover the time that weights take to come.
  constexpr int kStages = kColumns == 64 ? 8 : kColumns == 128 ? 6 : 4;
  using Config = WgmmaConfig<Shape, kColumns, kStages>;
  const int tiles = conv_tiles(p.out_height, p.out_width) * Config::kShares;
  const int blocks =
      conv_pieces(conv_columns(p.epilogue, p.out_channels)) / (kColumns / kConvColumns);
  LaunchOptions options;
  options.overlap = p.overlap;
  options.cluster = p.cluster < Config::kShares ? Config::kShares : p.cluster;
  while (tiles % options.cluster != 0) {
    options.cluster /= 2;
  }
  const uint32_t norm = kPrologue == ConvPrologue::kPlain ? 0 : norm_bytes(p.in_channels);
  launch(conv_wgmma_kernel<Config, kPrologue, kEpilogue>, Grid{tiles, blocks, p.rows},
         Config::kBlockThreads, Config::kNormAt + norm, stream, p, options);
}

/// 3x3 and upsampling.
template <int kTileWidth, int kColumns>
void launch_wgmma_3x3(const ConvParams& p, void* stream) {
  using Shape = ConvShape<ConvKind::kConv3x3, kTileWidth>;
  constexpr auto kPlain = ConvPrologue::kPlain;
  constexpr auto kAffine = ConvPrologue::kAffineRelu;
  constexpr auto kResidual = ConvPrologue::kResidual;
  if (p.epilogue == ConvEpilogue::kShuffle) {
    constexpr auto kShuffle = ConvEpilogue::kShuffle;
    CAE_CHECK(p.prologue != kPlain, "an upsampling input is normalised");
    return p.prologue == kResidual ? launch_wgmma<Shape, kColumns, kResidual, kShuffle>(p, stream)
                                   : launch_wgmma<Shape, kColumns, kAffine, kShuffle>(p, stream);
  }
  constexpr auto kMoments = ConvEpilogue::kMoments;
  switch (p.prologue) {
    case kPlain:
      return launch_wgmma<Shape, kColumns, kPlain, kMoments>(p, stream);
    case kAffine:
      return launch_wgmma<Shape, kColumns, kAffine, kMoments>(p, stream);
    case kResidual:
      return launch_wgmma<Shape, kColumns, kResidual, kMoments>(p, stream);
  }
}

}  // namespace cae::cuda
