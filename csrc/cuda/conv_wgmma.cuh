// SPDX-License-Identifier: Apache-2.0
// The convolutions of conv_tile.cuh for Hopper (sm_90a): the same patch, prologue, packed weights
// and epilogue about products of whole warpgroups, which read both operands from shared memory.
//
//   first   two warpgroups, or one, that multiply and store, 8 x 8 pixels times kColumns columns
//           each
//   next    loaders, warps that bring inputs into the patches
//   last    one warp that brings weights into a ring of stages, one tap of a k-block each, by bulk
//           copies shared by the blocks of a cluster: each fetches a part and sends it to all
//
// Eight neighbouring cells of a patch row are one core matrix of an operand (no swizzle): from one
// to the next along M is one row of the patch, along K one group of channels. A tap shifts the
// start address, which 16-byte cells keep aligned. Order between the crews comes from mbarriers:
//
//   weights: full   one arrival and the bytes of a stage         empty  a thread of each warpgroup
//                                                                       of each block of the
//                                                                       cluster
//   patches: full   every loader, each behind fence_async()      empty  a thread of each warpgroup
//
// Blocks of 8 x 8 pixels make one tile of moments in pairs, neighbours in a cluster: each warp
// leaves its sums to both, so that both add the same numbers in the order of one block of 8 x 16.
// Blocks of 256 columns hold 128 sums a thread: the warpgroup of loaders and the copying warp gives
// registers to those that multiply.
#pragma once

#include "cuda/conv_tile_epilogue.cuh"

namespace cae::cuda {

constexpr int kMostCluster = 4;

template <class PatchShape, int kColumns_, int kStages_>
struct WgmmaConfig {
  using Shape = PatchShape;
  static constexpr int kColumns = kColumns_;
  static constexpr int kStages = kStages_;
  static constexpr int kWarpgroups = Shape::kTileWidth / 8;           // that multiply and store
  static constexpr int kThreads = kWarpgroups * 128;                  // of them
  static constexpr int kShares = kConvTileWidth / Shape::kTileWidth;  // blocks that make a tile
  static constexpr bool kMovesRegisters = kColumns > 128;
  // Of a thread, where they are moved: so many that nothing is spilled.
  template <ConvEpilogue kEpilogue>
  static constexpr int kMultiplyRegisters = kEpilogue == ConvEpilogue::kShuffle ? 208 : 200;
  template <ConvEpilogue kEpilogue>
  static constexpr int kFetchRegisters = kEpilogue == ConvEpilogue::kShuffle ? 88 : 104;
  static constexpr int kLoaders = kMovesRegisters ? 96 : 128;
  static constexpr int kLoaderBatch = kMovesRegisters ? 3 : 6;  // vectors of a loader under way
  static constexpr int kCopyWarp = (kThreads + kLoaders) / 32;
  static constexpr int kBlockThreads = kThreads + kLoaders + 32;
  static_assert(!kMovesRegisters || kLoaders + 32 == 128, "whole warpgroups change registers");
  // Weights are packed in pieces of kConvColumns columns; a stage has the columns of all pieces
  // side by side in each group of 8 inputs.
  static constexpr int kPieces = kColumns / kConvColumns;
  static constexpr int kPieceBytes = kConvColumns * Shape::kBlock * 2;
  static constexpr int kStageBytes = kPieces * kPieceBytes;
  static constexpr int kChunks = kPieces == 1 ? kMostCluster : kPieces * Shape::kGroups;
  static constexpr int kChunkBytes = kStageBytes / kChunks;
  static constexpr int kWeightsAt = 2 * Shape::kPatchBytes;
  static constexpr int kRingEnd = kWeightsAt + kStages * kStageBytes;
  static constexpr int kSumRows = 4 * kWarpgroups * kShares;  // warps that make a tile
  static constexpr int kSumsBytes = 2 * kSumRows * kColumns * 4;
  // The other block of a pair leaves its sums while this one may be multiplying.
  static constexpr int kBarriersAt = kRingEnd + (kShares == 1 ? 0 : kSumsBytes);
  static constexpr int kNormAt = kBarriersAt + (2 * kStages + 4) * 8;
  static_assert(kChunks <= 32 && kChunks % kMostCluster == 0, "a chunk for each lane that copies");
  static_assert(Shape::kPatchBytes % 16 == 0 && kNormAt % 16 == 0, "vectors are aligned");

  // What the epilogue asks.
  static constexpr int kRowTiles = 1;
  static constexpr int kWarpsK = 1;
  static constexpr int kN8 = kColumns / 8;
  static constexpr bool kTallFragments = true;
  static constexpr int kPixels = kConvTileHeight * Shape::kTileWidth;
  static constexpr int kStagingPitch = kColumns * 2 + 16;
  static constexpr int kSumsAt = kShares == 1 ? kPixels * kStagingPitch : kRingEnd;
  static_assert(kPixels * kStagingPitch <= kRingEnd && kSumsAt + kSumsBytes <= kBarriersAt,
                "the epilogue must fit into patches and ring: all copies have been waited for");
  static KFN_MEMBER void barrier() { dev::named_bar(1, kThreads); }
  /// After sums were left. Of a pair, all other threads of the cluster meet as often.
  static KFN_MEMBER void sums_barrier() {
#ifdef SIMT_HOPPER
    if constexpr (kShares != 1) {
      return dev::cluster_sync();
    }
#endif
    barrier();
  }
  static constexpr int kSumsBarriers = 2;  // of the epilogue
  static KFN_MEMBER void leave(uint32_t address, float sum) {
    dev::stsf(address, sum);
#ifdef SIMT_HOPPER
    if constexpr (kShares == 2) {
      dev::stsf_cluster(dev::mapa(address, dev::ctarank() ^ 1), sum);
    }
#endif
  }
};

/// kThreads_ threads that bring in patches, as PatchLoader asks.
template <class PatchShape, int kThreads_>
struct LoaderCrew {
  using Shape = PatchShape;
  static constexpr int kThreads = kThreads_;
  static constexpr int kVectors =
      (Shape::kPatchPixels * Shape::kGroups + kThreads - 1) / kThreads;  // of a thread and patch
};

#ifdef SIMT_HOPPER
/// Addresses of the mbarriers.
template <class Config>
struct RingBarriers {
  uint32_t base;
  KFN_MEMBER uint32_t full(int place) const { return base + place * 8; }
  KFN_MEMBER uint32_t empty(int place) const { return base + (Config::kStages + place) * 8; }
  KFN_MEMBER uint32_t patch_full(int kb) const {
    return base + (2 * Config::kStages + (kb & 1)) * 8;
  }
  KFN_MEMBER uint32_t patch_empty(int kb) const {
    return base + (2 * Config::kStages + 2 + (kb & 1)) * 8;
  }
  /// By one thread.
  KFN_MEMBER void init(int blocks) const {
    for (int s = 0; s < Config::kStages; ++s) {
      dev::mbar_init(full(s), 1);
      dev::mbar_init(empty(s), Config::kWarpgroups * blocks);
    }
    for (int buffer = 0; buffer < 2; ++buffer) {
      dev::mbar_init(patch_full(buffer), Config::kLoaders);
      dev::mbar_init(patch_empty(buffer), Config::kWarpgroups);
    }
    dev::mbar_init_fence();
  }
};

/// A place of the ring and how often it came round.
template <int kStages>
struct RingPlace {
  int place = 0;
  uint32_t phase = 0;
  KFN_MEMBER void next() {
    if (++place == kStages) {
      place = 0;
      phase ^= 1;
    }
  }
};

/// The warp that brings in weights: every lane calls.
template <class Config>
struct WeightFeed {
  const char* weights;  // of the block's first piece
  uint32_t ring;
  RingBarriers<Config> bars;
  int stages;
  int lane;
  int rank;
  int blocks;

  /// Stage `stage` into a free place: this block's share of it, to all blocks of the cluster.
  KFN_MEMBER void copy(int stage, int place) const {
    if (lane == 0) {
      dev::mbar_expect(bars.full(place), Config::kStageBytes);
    }
    if (lane >= Config::kChunks || lane % blocks != rank) {
      return;
    }
    const int piece = lane % Config::kPieces;
    const int part = lane / Config::kPieces;
    const char* source = weights +
                         (static_cast<int64_t>(piece) * stages + stage) * Config::kPieceBytes +
                         part * Config::kChunkBytes;
    const uint32_t target = ring + place * Config::kStageBytes + lane * Config::kChunkBytes;
    if (blocks == 1) {
      dev::bulk_g2s(target, source, Config::kChunkBytes, bars.full(place));
    } else {
      dev::bulk_g2s_mc(target, source, Config::kChunkBytes, bars.full(place),
                       static_cast<uint16_t>((1 << blocks) - 1));
    }
  }

  /// Fills the ring for the first time.
  KFN_MEMBER void begin() const {
    for (int s = 0; s < Config::kStages && s < stages; ++s) {
      copy(s, s);
    }
  }

  /// The other stages. Ends when all that any block of the cluster read is read: until then they
  /// signal this block's mbarriers, and what it sent may be under way.
  KFN_MEMBER void run() const {
    RingPlace<Config::kStages> at;
    NOUNROLL for (int stage = 0; stage < stages; ++stage) {
      dev::mbar_wait(bars.empty(at.place), at.phase);
      if (stage + Config::kStages < stages) {
        copy(stage + Config::kStages, at.place);
      }
      at.next();
    }
  }
};

/// The loaders: patches of all k-blocks but the first.
template <class Config, class Loader>
KFN void load_patches(const Loader& loader, const RingBarriers<Config>& bars, int k_blocks) {
  constexpr int kVectors = LoaderCrew<typename Config::Shape, Config::kLoaders>::kVectors;
  constexpr int kBatch = Config::kLoaderBatch;
  NOUNROLL for (int kb = 1; kb < k_blocks; ++kb) {
    UNROLL for (int first = 0; first < kVectors; first += kBatch) {
      uint4 y[kBatch];
      uint4 x[kBatch];
      UNROLL for (int j = 0; j < kBatch; ++j) { loader.fetch(first + j, kb, y[j], x[j]); }
      if (first == 0 && kb >= 2) {
        dev::mbar_wait(bars.patch_empty(kb), ((kb - 2) >> 1) & 1);
      }
      UNROLL for (int j = 0; j < kBatch; ++j) { loader.put(first + j, kb, kb & 1, y[j], x[j]); }
    }
    dev::fence_async();
    dev::mbar_arrive(bars.patch_full(kb));
  }
}

KFN void multiply_group(float (&sums)[32], uint64_t a, uint64_t b) {
  dev::wgmma_n64(sums, a, b, 1);
}
KFN void multiply_group(float (&sums)[64], uint64_t a, uint64_t b) {
  dev::wgmma_n128(sums, a, b, 1);
}

KFN void multiply_group(float (&sums)[128], uint64_t a, uint64_t b) {
  dev::wgmma_n256(sums, a, b, 1);
}

/// The main loop of warpgroup `group`; `thread` of its 128. While a stage is multiplied the one
/// before it is released.
template <class Config>
KFN void multiply_patches(float (&sums)[Config::kColumns / 2], const RingBarriers<Config>& bars,
                          uint32_t smem, int group, int thread, int k_blocks, int blocks) {
  using Shape = typename Config::Shape;
  constexpr int kAlongK = 2 * Shape::kGroupPitch;  // of a k16 step in the patch
  constexpr int kWeightsAlongK = 2 * Config::kColumns * 16;
  const uint64_t patches =
      gmma_desc(smem + group * 8 * 16, Shape::kGroupPitch, Shape::kPatchWidth * 16);
  const uint64_t weights = gmma_desc(smem + Config::kWeightsAt, Config::kColumns * 16, 8 * 16);
  RingPlace<Config::kStages> at;
  int last = 0;
  const auto release = [&] {
    if (thread < blocks) {
      dev::mbar_arrive_cluster(dev::mapa(bars.empty(last), thread));
    }
  };
  NOUNROLL for (int kb = 0; kb < k_blocks; ++kb) {
    if (kb != 0) {
      dev::mbar_wait(bars.patch_full(kb), ((kb - 1) >> 1) & 1);
    }
    UNROLL for (int tap = 0; tap < Shape::kTaps; ++tap) {
      dev::mbar_wait(bars.full(at.place), at.phase);
      const int shift = tap / Shape::kTapsX * Shape::kPatchWidth + tap % Shape::kTapsX;
      const uint64_t a = patches + (((kb & 1) * Shape::kPatchBytes + shift * 16) >> 4);
      const uint64_t b = weights + ((at.place * Config::kStageBytes) >> 4);
      dev::wg_touch(sums);
      dev::wg_fence();
      UNROLL for (int kk = 0; kk < Shape::kGroups / 2; ++kk) {
        multiply_group(sums, a + ((kk * kAlongK) >> 4), b + ((kk * kWeightsAlongK) >> 4));
      }
      dev::wg_commit();
      dev::wg_touch(sums);
      if (kb != 0 || tap != 0) {
        dev::wg_wait<1>();
        release();
        if (tap == 0 && thread == 0) {
          dev::mbar_arrive(bars.patch_empty(kb - 1));
        }
      }
      last = at.place;
      at.next();
    }
  }
  dev::wg_wait<0>();
  dev::wg_touch(sums);
  release();
}
#endif

template <class Config, ConvPrologue kPrologue, ConvEpilogue kEpilogue>
KERNEL void __launch_bounds__(Config::kBlockThreads, 1) conv_wgmma_kernel(const ConvParams p) {
#ifdef SIMT_HOPPER
  using Shape = typename Config::Shape;
  constexpr bool kReplicate = kEpilogue == ConvEpilogue::kShuffle;
  const int slot = dev::bz();
  if (p.active != nullptr) {
    dev::pdl_wait();
    if (dev::load(p.active + slot) == 0) {
      return;  // and with it the cluster, whose blocks are tiles of one row
    }
  }
  const int tid = dev::tid();
  const int warp = dev::uniform(tid >> 5);
  const uint32_t smem = dev::smem_base();
  const int blocks = dev::clustersize();
  const int k_blocks = conv_k_blocks(Shape::kKind, p.in_channels);
  const int stages = k_blocks * Shape::kTaps;
  const RingBarriers<Config> bars{smem + Config::kBarriersAt};
  if (tid == 0) {
    bars.init(blocks);
  }
  dev::cluster_sync();
  const WeightFeed<Config> feed{reinterpret_cast<const char*>(p.weights) +
                                    static_cast<int64_t>(dev::by()) * stages * Config::kStageBytes,
                                smem + Config::kWeightsAt,
                                bars,
                                stages,
                                tid & 31,
                                static_cast<int>(dev::ctarank()),
                                blocks};
  if (warp == Config::kCopyWarp) {
    feed.begin();  // weights depend on no kernel before this one
  }
  dev::pdl_wait();
  const int across = conv_tiles_across(p.out_width);
  const int64_t input = static_cast<int64_t>(p.in_height) * p.in_width * p.in_channels;
  const int64_t y_row = p.y_row == nullptr ? slot : dev::load(p.y_row + slot);
  const int64_t stream_row = p.stream_row == nullptr ? slot : dev::load(p.stream_row + slot);
  const int tile = dev::bx() / Config::kShares;
  const ConvPlace at{slot,
                     dev::by(),
                     tile,
                     tile / across * kConvTileHeight,
                     tile % across * kConvTileWidth + dev::bx() % Config::kShares * 8,
                     y_row * input,
                     stream_row * input,
                     slot * input};
  {
    // The first patch, by all; under way while the moments are merged.
    using Crew = LoaderCrew<Shape, Config::kBlockThreads>;
    const PatchLoader<Crew, kPrologue, kReplicate> loader{
        p, at, smem, smem + Config::kNormAt, tid % Shape::kGroups, tid / Shape::kGroups};
    uint4 y[Crew::kVectors];
    uint4 x[Crew::kVectors];
    UNROLL for (int j = 0; j < Crew::kVectors; ++j) { loader.fetch(j, 0, y[j], x[j]); }
    if (kPrologue != ConvPrologue::kPlain) {
      const int64_t mod_row = p.mod_row == nullptr ? slot : dev::load(p.mod_row + slot);
      finalise_norm<Config::kBlockThreads>(p.norm, y_row, mod_row, tid, smem + Config::kNormAt);
    }
    dev::sync();
    UNROLL for (int j = 0; j < Crew::kVectors; ++j) { loader.put(j, 0, 0, y[j], x[j]); }
    dev::fence_async();
    dev::sync();
  }
  if (tid >= Config::kThreads) {
    if constexpr (Config::kMovesRegisters) {
      dev::give_registers<Config::template kFetchRegisters<kEpilogue>>();
    }
    if (warp == Config::kCopyWarp) {
      feed.run();
    } else {
      using Crew = LoaderCrew<Shape, Config::kLoaders>;
      const int t = tid - Config::kThreads;
      const PatchLoader<Crew, kPrologue, kReplicate> loader{
          p, at, smem, smem + Config::kNormAt, t % Shape::kGroups, t / Shape::kGroups};
      load_patches<Config>(loader, bars, k_blocks);
    }
    if constexpr (Config::kShares != 1) {
      dev::syncwarp();
      UNROLL for (int i = 0; i < Config::kSumsBarriers; ++i) { dev::cluster_sync(); }
    }
  } else {
    if constexpr (Config::kMovesRegisters) {
      dev::take_registers<Config::template kMultiplyRegisters<kEpilogue>>();
    }
    const int group = warp >> 2;
    float sums[Config::kColumns / 2];
    UNROLL for (int i = 0; i < Config::kColumns / 2; ++i) { sums[i] = 0.0F; }
    multiply_patches<Config>(sums, bars, smem, group, tid & 127, k_blocks, blocks);
    dev::pdl_launch();
    Config::barrier();  // both warpgroups have read the patches
    float r[1][Config::kN8][4];
    UNROLL for (int j = 0; j < Config::kN8; ++j) UNROLL for (int q = 0; q < 4; ++q) {
      r[0][j][q] = sums[j * 4 + q];
    }
    const int lane = tid & 31;
    const int sum_row = warp + dev::bx() % Config::kShares * 4;
    const TileEpilogue<Config, kEpilogue> epilogue{
        p, at, smem, tid, lane, (warp & 3) * 2, (lane & 3) * 2, sum_row, group * 8};
    epilogue.run(r);
  }
#endif
}

}  // namespace cae::cuda
