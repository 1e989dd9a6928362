// SPDX-License-Identifier: Apache-2.0
// The convolution for ldmatrix and mma.sync: every GPU since sm_80.
#pragma once

#include "cuda/conv_tile_epilogue.cuh"

namespace cae::cuda {

/// Stage `stage` of `stages` of a block's weights into place `place` of the ring.
template <class Config>
KFN void fetch_weights(const char* weights, uint32_t ring, int stage, int stages, int place,
                       int tid) {
  UNROLL for (int piece = 0; piece < Config::kPieces; ++piece) {
    const char* source =
        weights + (static_cast<int64_t>(piece) * stages + stage) * Config::kPieceBytes;
    const uint32_t target = ring + place * Config::kStageBytes + piece * Config::kPieceBytes;
    UNROLL for (int i = 0; i < Config::kPieceBytes / (Config::kThreads * 16); ++i) {
      const int o = (tid + i * Config::kThreads) * 16;
      dev::cp_async16(target + o, source + o);
    }
  }
}

/// One tap of one k-block: sums += patch at `patch` * weights at `weights`.
template <class Config>
KFN void multiply_tap(float (&acc)[Config::kRowTiles][Config::kN8][4], uint32_t patch,
                      uint32_t weights) {
  using Shape = typename Config::Shape;
  UNROLL for (int kk = 0; kk < Config::kK16; ++kk) {
    uint32_t a[Config::kRowTiles][4];
    uint32_t b[Config::kN8 / 2][4];
    UNROLL for (int i = 0; i < Config::kRowTiles; ++i) {
      dev::ldsm4(a[i], patch + kk * 2 * Shape::kGroupPitch + i * Shape::kPatchWidth * 16);
    }
    UNROLL for (int j = 0; j < Config::kN8 / 2; ++j) {
      dev::ldsm4(b[j], weights + (kk * 2 * kConvColumns + j * 16) * 16);
    }
    UNROLL for (int i = 0; i < Config::kRowTiles; ++i)
        UNROLL for (int j = 0; j < Config::kN8; ++j) {
      dev::mma16816(acc[i][j], a[i], b[j / 2][(j & 1) * 2], b[j / 2][(j & 1) * 2 + 1]);
    }
  }
}

/// The loop over k-blocks and taps. While one k-block is multiplied, the next patch is fetched to
/// registers at the first taps and put into the other buffer kLag taps later.
template <class Config, class Loader>
KFN void accumulate(float (&acc)[Config::kRowTiles][Config::kN8][4], const Loader& loader,
                    const char* weights, uint32_t smem, uint32_t patch_at, uint32_t weight_at,
                    int k_blocks, int tid) {
  using Shape = typename Config::Shape;
  constexpr int kTaps = Shape::kTaps;
  constexpr int kStages = Config::kStages;
  constexpr int kLag = kTaps >= 9 ? 3 : 2;
  constexpr int kPerTap = (Config::kVectors + kTaps - kLag - 1) / (kTaps - kLag);
  const uint32_t ring = smem + Config::kWeightsAt;
  const int stages = k_blocks * kTaps;
  int rd = 0;
  int wr = kStages - 1;
  int stage = 0;
  NOUNROLL for (int kb = 0; kb < k_blocks; ++kb) {
    const uint32_t patch = smem + (kb & 1) * Shape::kPatchBytes + patch_at;
    uint4 y[kTaps * kPerTap];  // indexed when compiling, kLag * kPerTap alive at once
    uint4 x[kTaps * kPerTap];
    UNROLL for (int tap = 0; tap < kTaps; ++tap, ++stage) {
      dev::cp_wait<kStages - 2>();
      dev::sync();
      if (stage + kStages - 1 < stages) {
        fetch_weights<Config>(weights, ring, stage + kStages - 1, stages, wr, tid);
      }
      dev::cp_commit();
      wr = wr + 1 == kStages ? 0 : wr + 1;
      if (!Shape::kImage && kb + 1 < k_blocks) {
        UNROLL for (int e = 0; e < kPerTap; ++e) {
          const int j = tap * kPerTap + e;
          if (tap < kTaps - kLag && j < Config::kVectors) {
            loader.fetch(j, kb + 1, y[j], x[j]);
          }
        }
        UNROLL for (int e = 0; e < kPerTap; ++e) {
          const int j = (tap - kLag) * kPerTap + e;
          if (tap >= kLag && j < Config::kVectors) {
            loader.put(j, kb + 1, (kb + 1) & 1, y[j], x[j]);
          }
        }
      }
      const int shift = tap / Shape::kTapsX * Shape::kPatchWidth + tap % Shape::kTapsX;
      multiply_tap<Config>(acc, patch + shift * 16, ring + rd * Config::kStageBytes + weight_at);
      rd = rd + 1 == kStages ? 0 : rd + 1;
    }
  }
}

template <class Config, ConvPrologue kPrologue, ConvEpilogue kEpilogue>
KERNEL void __launch_bounds__(Config::kThreads) conv_tile_kernel(const ConvParams p) {
  using Shape = typename Config::Shape;
  constexpr bool kReplicate = kEpilogue == ConvEpilogue::kShuffle;
  const int slot = dev::bz();
  if (p.active != nullptr) {
    dev::pdl_wait();
    if (dev::load(p.active + slot) == 0) {
      return;
    }
  }
  const int tid = dev::tid();
  const int lane = tid & 31;
  const int warp = tid >> 5;
  const int warp_m = warp % Config::kWarpsM;
  const int warp_n = warp / Config::kWarpsM % Config::kWarpsN;
  const int k_group = warp / (Config::kWarpsM * Config::kWarpsN);
  const uint32_t smem = dev::smem_base();
  const int k_blocks = conv_k_blocks(Shape::kKind, p.in_channels);
  const int stages = k_blocks * Shape::kTaps;
  const char* weights = reinterpret_cast<const char*>(p.weights) +
                        static_cast<int64_t>(dev::by()) * stages * Config::kStageBytes;
  // Weights depend on no kernel before this one.
  UNROLL for (int s = 0; s < Config::kStages - 1; ++s) {
    fetch_weights<Config>(weights, smem + Config::kWeightsAt, s, stages, s, tid);
    dev::cp_commit();
  }
  dev::pdl_wait();
  const int across = conv_tiles_across(p.out_width);
  const int64_t input = static_cast<int64_t>(p.in_height) * p.in_width * p.in_channels;
  const int64_t y_row = p.y_row == nullptr ? slot : dev::load(p.y_row + slot);
  const int64_t stream_row = p.stream_row == nullptr ? slot : dev::load(p.stream_row + slot);
  const ConvPlace at{slot,
                     dev::by(),
                     dev::bx(),
                     dev::bx() / across * kConvTileHeight,
                     dev::bx() % across * kConvTileWidth,
                     y_row * input,
                     stream_row * input,
                     slot * input};
  const PatchLoader<Config, kPrologue, kReplicate> loader{
      p, at, smem, smem + Config::kNormAt, tid % Shape::kGroups, tid / Shape::kGroups};
  {
    // Under way while the moments are merged.
    uint4 y[Config::kVectors];
    uint4 x[Config::kVectors];
    UNROLL for (int j = 0; j < Config::kVectors; ++j) { loader.fetch(j, 0, y[j], x[j]); }
    if (kPrologue != ConvPrologue::kPlain) {
      const int64_t mod_row = p.mod_row == nullptr ? slot : dev::load(p.mod_row + slot);
      finalise_norm<Config::kThreads>(p.norm, y_row, mod_row, tid, smem + Config::kNormAt);
    }
    dev::sync();
    UNROLL for (int j = 0; j < Config::kVectors; ++j) { loader.put(j, 0, 0, y[j], x[j]); }
  }
  float acc[Config::kRowTiles][Config::kN8][4];
  UNROLL for (int i = 0; i < Config::kRowTiles; ++i) UNROLL for (int j = 0; j < Config::kN8; ++j)
      UNROLL for (int q = 0; q < 4; ++q) {
    acc[i][j][q] = 0.0F;
  }
  const uint32_t k_offset = k_group * Config::kK16 * 2;
  const uint32_t patch_at = (k_offset + (lane >> 4)) * Shape::kGroupPitch +
                            (warp_m * Config::kRowTiles * Shape::kPatchWidth + (lane & 15)) * 16;
  const int warp_column = warp_n * Config::kWarpColumns;
  const uint32_t weight_at = warp_column / kConvColumns * Config::kPieceBytes +
                             ((k_offset + ((lane >> 3) & 1)) * kConvColumns +
                              warp_column % kConvColumns + ((lane >> 4) << 3) + (lane & 7)) *
                                 16;
  accumulate<Config>(acc, loader, weights, smem, patch_at, weight_at, k_blocks, tid);
  dev::pdl_launch();
  dev::cp_wait<0>();
  dev::sync();

  constexpr int kRows = Config::kRowTiles / Config::kWarpsK;
  float r[kRows][Config::kN8][4];
  merge_k_groups<Config>(acc, r, smem, warp, lane, k_group);
  const TileEpilogue<Config, kEpilogue> epilogue{p,
                                                 at,
                                                 smem,
                                                 tid,
                                                 lane,
                                                 warp_m * Config::kRowTiles + k_group * kRows,
                                                 warp_n * Config::kWarpColumns + (lane & 3) * 2,
                                                 warp_m * Config::kWarpsK + k_group};
  epilogue.run(r);
}

}  // namespace cae::cuda
