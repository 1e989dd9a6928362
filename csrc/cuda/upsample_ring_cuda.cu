// SPDX-License-Identifier: Apache-2.0
// A product on tensor cores: 64 positions along a side times 64 of the 2 x out_channels columns
// (two phases), over 3 taps of all channels. The patch of differences, two positions longer than
// the block, lies in shared memory in cells of 8 channels, so a tap is an offset of one cell.
// Weights arrive in a ring of three stages; the next patch is fetched to registers while the
// present one is multiplied. Warps: 4 x 16 positions times 2 x 32 columns.
#include "core/check.h"
#include "cuda/conv_tile.cuh"
#include "cuda/upsample_ring_cuda.h"
#include "cuda/upsample_ring_pack.h"
#include "simt/launch.h"

namespace cae::cuda {
namespace {

constexpr int kRingThreads = 256;
constexpr int kRingPositions = 64;  // of a block
constexpr int kRingCells = kRingPositions + 2;
constexpr int kRingGroupPitch = kRingCells * 16;  // 66 cells: stores and matrix loads without
constexpr int kRingPatchBytes = kRingGroups * kRingGroupPitch;  // conflicts of banks
constexpr int kRingStages = 3;
constexpr int kRingStageBytes = kRingStageHalves * 2;
constexpr int kRingPatchAt = kRingStages * kRingStageBytes;
constexpr int kRingNormAt = kRingPatchAt + 2 * kRingPatchBytes;
constexpr int kRingVectors = (kRingCells * kRingGroups + kRingThreads - 1) / kRingThreads;

/// Where a block works.
struct RingPlace {
  int64_t slot;
  int side;
  int block;          // of columns
  int first;          // position
  int length;         // of the side, in positions
  int step;           // elements from one position to the next
  int64_t outer;      // element of y at position 0: on the edge
  int64_t inner;      // one further in
  int64_t to_stream;  // what to add for stream_in
};

HDFN constexpr int ring_tiles(int length) { return (length + kRingPositions - 1) / kRingPositions; }

/// Blocks of a row: top, bottom, left, right; of a side: tiles of positions, then columns.
KFN RingPlace ring_place(const UpsampleRingParams& p, int64_t slot, int block) {
  RingPlace at;
  const int blocks = ring_blocks(p.out_channels);
  const int horizontal = ring_tiles(p.width) * blocks;
  const int vertical = ring_tiles(p.height) * blocks;
  const bool is_column = block >= 2 * horizontal;
  block = is_column ? block - 2 * horizontal : block;
  const int of_side = is_column ? vertical : horizontal;
  const bool far = block >= of_side;
  block = far ? block - of_side : block;
  at.slot = slot;
  at.side = (is_column ? 2 : 0) + (far ? 1 : 0);
  at.length = is_column ? p.height : p.width;
  at.block = block / ring_tiles(at.length);
  at.first = block % ring_tiles(at.length) * kRingPositions;
  const int row = p.width * p.in_channels;
  const int across = is_column ? p.in_channels : row;
  at.step = is_column ? row : p.in_channels;
  const int depth = is_column ? p.width : p.height;
  const int64_t image = static_cast<int64_t>(p.height) * row;
  const int64_t y_row = p.y_row == nullptr ? slot : dev::load(p.y_row + slot);
  const int64_t stream_row = p.stream_row == nullptr ? slot : dev::load(p.stream_row + slot);
  at.outer = y_row * image + (far ? depth - 1 : 0) * across;
  at.inner = y_row * image + (far ? depth - 2 : 1) * across;
  at.to_stream = (stream_row - y_row) * image;
  return at;
}

/// a - b of eight halves.
KFN uint4 subtract_eight(uint4 a, uint4 b) {
  const uint32_t from[4] = {a.x, a.y, a.z, a.w};
  const uint32_t take[4] = {b.x, b.y, b.z, b.w};
  uint32_t out[4];
  UNROLL for (int i = 0; i < 4; ++i) {
    float lo, hi, x, y;
    dev::unpack_half2(from[i], lo, hi);
    dev::unpack_half2(take[i], x, y);
    out[i] = dev::pack_half2(lo - x, hi - y);
  }
  uint4 r;
  r.x = out[0];
  r.y = out[1];
  r.z = out[2];
  r.w = out[3];
  return r;
}

/// Brings differences into the patch: cell v of a thread is group v % kRingGroups of position
/// v / kRingGroups - 1.
template <ConvPrologue kPrologue>
struct RingLoader {
  struct Cell {
    uint4 outer, inner;
    uint4 add_outer, add_inner;
  };
  const UpsampleRingParams& p;
  const RingPlace& at;
  uint32_t smem;
  int tid;

  KFN_MEMBER int vector(int j) const { return tid + j * kRingThreads; }
  KFN_MEMBER bool has(int j) const { return vector(j) < kRingCells * kRingGroups; }
  KFN_MEMBER int channel(int j, int kb) const {
    return kb * kRingKBlock + vector(j) % kRingGroups * 8;
  }

  KFN_MEMBER void fetch(int j, int kb, Cell& cell) const {
    const int c = channel(j, kb);
    if (!has(j) || c >= p.in_channels) {
      return;
    }
    const int position = clamp_index(at.first + vector(j) / kRingGroups - 1, at.length);
    const int64_t along = static_cast<int64_t>(position) * at.step + c;
    cell.outer = dev::ldg128_stream(p.y + at.outer + along);
    cell.inner = dev::ldg128_stream(p.y + at.inner + along);
    if (kPrologue == ConvPrologue::kResidual) {
      cell.add_outer = dev::ldg128_stream(p.stream_in + at.to_stream + at.outer + along);
      cell.add_inner = dev::ldg128_stream(p.stream_in + at.to_stream + at.inner + along);
    }
  }

  KFN_MEMBER void put(int j, int kb, int buffer, const Cell& cell) const {
    if (!has(j)) {
      return;
    }
    const int c = channel(j, kb);
    uint4 difference;
    difference.x = difference.y = difference.z = difference.w = 0;
    if (c < p.in_channels) {
      float scale[8] = {};
      float shift[8] = {};
      if (kPrologue != ConvPrologue::kPlain) {
        load_eight(smem + kRingNormAt + c * 4, scale);
        load_eight(smem + kRingNormAt + (p.in_channels + c) * 4, shift);
      }
      difference =
          subtract_eight(make_operand<kPrologue>(cell.inner, cell.add_inner, scale, shift),
                         make_operand<kPrologue>(cell.outer, cell.add_outer, scale, shift));
    }
    dev::sts128(smem + kRingPatchAt + buffer * kRingPatchBytes +
                    vector(j) % kRingGroups * kRingGroupPitch + vector(j) / kRingGroups * 16,
                difference);
  }
};

/// Sums of a warp: 16 positions times 32 columns.
struct RingSums {
  float ring[4][4];
  float inner[4][4];  // a corner adds the fourth tap of its neighbour
  float outer[4][4];  // and takes that of itself
};

KFN void multiply_step(float (&sums)[4][4], uint32_t patch, uint32_t weights) {
  UNROLL for (int kk = 0; kk < kRingKBlock / 16; ++kk) {
    uint32_t a[4];
    uint32_t b[2][4];
    dev::ldsm4(a, patch + kk * 2 * kRingGroupPitch);
    UNROLL for (int j = 0; j < 2; ++j) {
      dev::ldsm4(b[j], weights + (kk * 2 * kRingColumns + j * 16) * 16);
    }
    UNROLL for (int j = 0; j < 4; ++j) {
      dev::mma16816(sums[j], a, b[j / 2][(j & 1) * 2], b[j / 2][(j & 1) * 2 + 1]);
    }
  }
}

/// Stage kb of the block's weights: all taps, or the three that columns have.
KFN void fetch_stage(const UpsampleRingParams& p, const RingPlace& at, uint32_t smem, int kb,
                     int k_blocks, int tid) {
  if (kb < k_blocks) {
    const int64_t block = at.side * ring_blocks(p.out_channels) + at.block;
    const uint16_t* stage = p.weights + (block * k_blocks + kb) * kRingStageHalves;
    const int vectors = kRingGroups * kRingColumns * (at.side < 2 ? kRingTaps : kRingTaps - 1);
    for (int v = tid; v < vectors; v += kRingThreads) {
      dev::cp_async16(smem + kb % kRingStages * kRingStageBytes + v * 16, stage + v * 8);
    }
  }
  dev::cp_commit();
}

KFN void store_ring(const UpsampleRingParams& p, const RingPlace& at, const RingSums& sums,
                    int warp_m, int warp_n, int lane) {
  float* side = (at.side < 2 ? p.ring_rows : p.ring_columns) +
                (at.slot * 2 + (at.side & 1)) * 2 * at.length * p.out_channels;
  UNROLL for (int h = 0; h < 2; ++h) {
    const int position = at.first + warp_m * 16 + (lane >> 2) + h * 8;
    UNROLL for (int j = 0; j < 4; ++j) {
      const int column = at.block * kRingColumns + warp_n * 32 + j * 8 + (lane & 3) * 2;
      const int phase = column >= p.out_channels ? 1 : 0;
      const int channel = column - phase * p.out_channels;
      const bool corner = at.side < 2 && position == (phase == 0 ? 0 : at.length - 1);
      if (position < at.length && channel < p.out_channels) {
        UNROLL for (int e = 0; e < 2; ++e) {
          float sum = sums.ring[j][h * 2 + e];
          if (corner) {
            sum += sums.inner[j][h * 2 + e] - sums.outer[j][h * 2 + e];
          }
          dev::store(
              side + (2 * position + phase) * static_cast<int64_t>(p.out_channels) + channel + e,
              channel + e < p.real_channels ? sum : 0.0F);
        }
      }
    }
  }
}

template <ConvPrologue kPrologue>
KERNEL void __launch_bounds__(kRingThreads, 1) upsample_ring_kernel(const UpsampleRingParams p) {
  const int blocks = 2 * ring_blocks(p.out_channels) * (ring_tiles(p.width) + ring_tiles(p.height));
  const int slot = dev::bx() / blocks;
  dev::pdl_launch();
  dev::pdl_wait();
  if (p.active != nullptr && dev::load(p.active + slot) == 0) {
    return;
  }
  const int tid = dev::tid();
  const int lane = tid & 31;
  const int warp_m = (tid >> 5) & 3;
  const int warp_n = tid >> 7;
  const uint32_t smem = dev::smem_base();
  const RingPlace at = ring_place(p, slot, dev::bx() % blocks);
  const int k_blocks = ring_k_blocks(p.in_channels);
  UNROLL for (int s = 0; s < kRingStages - 1; ++s) { fetch_stage(p, at, smem, s, k_blocks, tid); }
  const RingLoader<kPrologue> loader{p, at, smem, tid};
  typename RingLoader<kPrologue>::Cell cells[kRingVectors];
  UNROLL for (int j = 0; j < kRingVectors; ++j) { loader.fetch(j, 0, cells[j]); }
  if (kPrologue != ConvPrologue::kPlain) {
    const int64_t y_row = p.y_row == nullptr ? slot : dev::load(p.y_row + slot);
    const int64_t mod_row = p.mod_row == nullptr ? slot : dev::load(p.mod_row + slot);
    finalise_norm<kRingThreads>(p.norm, y_row, mod_row, tid, smem + kRingNormAt);
    dev::sync();
  }
  UNROLL for (int j = 0; j < kRingVectors; ++j) { loader.put(j, 0, 0, cells[j]); }

  RingSums sums = {};
  // Lane's row of the matrices of positions: itself, and for a corner its neighbour.
  const int row = warp_m * 16 + (lane & 15);
  const int position = at.first + row;
  const int neighbour = position == 0 ? row + 1 : (position == at.length - 1 ? row - 1 : row);
  const int last = at.length - 1 - at.first - warp_m * 16;
  const bool has_corner =
      at.side < 2 && (at.first + warp_m * 16 == 0 || (last >= 0 && last < 16));  // of the warp
  const uint32_t group = smem + kRingPatchAt + (lane >> 4) * kRingGroupPitch;
  const uint32_t weight_at =
      smem +
      (((lane >> 3) & 1) * kRingColumns + warp_n * 32 + ((lane >> 4) << 3) + (lane & 7)) * 16;
  NOUNROLL for (int kb = 0; kb < k_blocks; ++kb) {
    dev::cp_wait<kRingStages - 2>();
    dev::sync();
    fetch_stage(p, at, smem, kb + kRingStages - 1, k_blocks, tid);
    const bool more = kb + 1 < k_blocks;
    if (more) {
      UNROLL for (int j = 0; j < kRingVectors; ++j) { loader.fetch(j, kb + 1, cells[j]); }
    }
    const uint32_t patch = group + (kb & 1) * kRingPatchBytes;
    const uint32_t weights = weight_at + kb % kRingStages * kRingStageBytes;
    constexpr int kTapBytes = kRingGroups * kRingColumns * 16;
    UNROLL for (int tap = 0; tap < 3; ++tap) {
      multiply_step(sums.ring, patch + (row + tap) * 16, weights + tap * kTapBytes);
    }
    if (has_corner) {
      multiply_step(sums.inner, patch + (neighbour + 1) * 16, weights + 3 * kTapBytes);
      multiply_step(sums.outer, patch + (row + 1) * 16, weights + 3 * kTapBytes);
    }
    if (more) {
      UNROLL for (int j = 0; j < kRingVectors; ++j) {
        loader.put(j, kb + 1, (kb + 1) & 1, cells[j]);
      }
    }
  }
  store_ring(p, at, sums, warp_m, warp_n, lane);
}

template <ConvPrologue kPrologue>
void launch_ring(const UpsampleRingParams& p, void* stream) {
  const int64_t blocks = static_cast<int64_t>(p.rows) * 2 * ring_blocks(p.out_channels) *
                         (ring_tiles(p.width) + ring_tiles(p.height));
  CAE_CHECK(blocks <= INT32_MAX, p.rows, " rows are too many for one launch");
  launch(upsample_ring_kernel<kPrologue>, Grid{static_cast<int>(blocks), 1, 1}, kRingThreads,
         kRingNormAt + norm_bytes(p.in_channels), stream, p, {p.overlap});
}

}  // namespace

void upsample_ring(const UpsampleRingParams& params, void* stream) {
  if (params.rows == 0) {
    return;
  }
  CAE_CHECK(params.height >= 2 && params.width >= 2, "height and width must be at least 2, got ",
            params.height, " and ", params.width);
  CAE_CHECK(params.in_channels >= 8 && params.in_channels % 8 == 0 && params.out_channels >= 8 &&
                params.out_channels % 8 == 0,
            "channels as stored must be multiples of 8, got ", params.in_channels, " and ",
            params.out_channels);
  CAE_CHECK(static_cast<int64_t>(params.height) * params.width * params.in_channels <= INT32_MAX,
            "an image of ", params.height, " x ", params.width, " x ", params.in_channels,
            " is too large");
  switch (params.prologue) {
    case ConvPrologue::kPlain:
      return launch_ring<ConvPrologue::kPlain>(params, stream);
    case ConvPrologue::kAffineRelu:
      return launch_ring<ConvPrologue::kAffineRelu>(params, stream);
    case ConvPrologue::kResidual:
      return launch_ring<ConvPrologue::kResidual>(params, stream);
  }
}

}  // namespace cae::cuda
