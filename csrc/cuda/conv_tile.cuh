// SPDX-License-Identifier: Apache-2.0
// The main loop of the convolutions. A block makes 8 x 16 or 8 x 8 pixels times kColumns columns.
// The patch of inputs it needs, halo included, lies in shared memory in cells of 8 channels and
// serves all taps: a tap is a constant address offset. So what the inputs go through (normalise,
// ReLU, residual, reflection) is paid once per cell. The pitch between groups of channels is odd in
// cells, which makes stores and matrix loads free of bank conflicts.
#pragma once

#include "cuda/conv_tile_cuda.h"
#include "cuda/norm_input.cuh"

namespace cae::cuda {

/// Patch and taps of a kind of convolution, for 8 x kTileWidth pixels.
template <ConvKind kKind_, int kTileWidth_ = kConvTileWidth>
struct ConvShape {
  static constexpr ConvKind kKind = kKind_;
  static constexpr int kTileWidth = kTileWidth_;
  static constexpr bool kImage = kKind == ConvKind::kImage7x7;
  static constexpr int kStep = kKind == ConvKind::kStride2 ? 2 : 1;
  static constexpr int kTapsY = kImage ? 7 : kStep == 2 ? 2 : 3;
  static constexpr int kTapsX = kImage ? 1 : kStep == 2 ? 2 : 3;
  static constexpr int kTaps = kTapsY * kTapsX;
  static constexpr int kPad = kImage ? 3 : 1;
  static constexpr int kBlock = kImage ? kConvImageKBlock : kConvKBlock;
  static constexpr int kGroups = kBlock / 8;
  static constexpr int kPatchWidth = kTileWidth + kTapsX - 1;
  static constexpr int kPatchPixels = (kConvTileHeight + kTapsY - 1) * kPatchWidth;
  static constexpr int kGroupPitch = (kPatchPixels | 1) * 16;  // bytes
  static constexpr int kPatchBytes = kGroups * kGroupPitch;
};

/// Warps kWarpsM x kWarpsN x kWarpsK: a warp owns 8 / kWarpsM rows of 16 pixels, a share of the
/// columns, and every kWarpsK-th part of each k-block.
template <class PatchShape, int kColumns_, int kWarpsM_, int kWarpsN_, int kWarpsK_, int kStages_>
struct ConvConfig {
  using Shape = PatchShape;
  static constexpr int kColumns = kColumns_;
  static constexpr int kWarpsM = kWarpsM_;
  static constexpr int kWarpsN = kWarpsN_;
  static constexpr int kWarpsK = kWarpsK_;
  static constexpr int kStages = kStages_;
  static constexpr int kThreads = kWarpsM * kWarpsN * kWarpsK * 32;
  static constexpr int kRowTiles = kConvTileHeight / kWarpsM;  // m16 tiles of a warp
  static constexpr int kWarpColumns = kColumns / kWarpsN;
  static constexpr int kN8 = kWarpColumns / 8;
  static constexpr int kK16 = Shape::kBlock / 16 / kWarpsK;  // k16 steps per stage of a warp
  // Weights are packed in pieces of kConvColumns columns, whatever a block takes of them.
  static constexpr int kPieces = kColumns / kConvColumns;
  static constexpr int kPieceBytes = kConvColumns * Shape::kBlock * 2;
  static constexpr int kStageBytes = kPieces * kPieceBytes;
  static constexpr int kVectors =
      (Shape::kPatchPixels * Shape::kGroups + kThreads - 1) / kThreads;  // of a thread and patch
  static constexpr int kStagingPitch = kColumns * 2 + 16;                // bytes per pixel
  static constexpr int kWeightsAt = 2 * Shape::kPatchBytes;
  static constexpr int kNormAt = kWeightsAt + kStages * kStageBytes;
  static constexpr int kPixels = kConvTileHeight * kConvTileWidth;
  // The epilogue reuses patches and weights: sums exchanged between k-groups or the staged tile,
  // then sums of columns.
  static constexpr int kExchange = kWarpsK > 1 ? kThreads * (kRowTiles / 2) * kN8 * 16 : 0;
  static constexpr int kStaged = kPixels * kStagingPitch;
  static constexpr int kSumsAt = kExchange > kStaged ? kExchange : kStaged;
  static constexpr int kSumRows = kWarpsM * kWarpsK;
  static constexpr bool kTallFragments = false;
  static constexpr int kShares = 1;                  // blocks that make a tile together
  static KFN_MEMBER void barrier() { dev::sync(); }  // of the threads of the epilogue
  static KFN_MEMBER void sums_barrier() { barrier(); }
  static KFN_MEMBER void leave(uint32_t address, float sum) { dev::stsf(address, sum); }
  static_assert(kSumsAt + 2 * kSumRows * kColumns * 4 <= kNormAt, "the epilogue must fit");
  static_assert(kWarpsK == 1 || (kWarpsK == 2 && kRowTiles % 2 == 0), "k-groups swap halves");
  static_assert(kPieceBytes % (kThreads * 16) == 0, "a piece is whole vectors of all threads");
  static_assert(kConvColumns % kWarpColumns == 0, "a warp's columns lie in one piece");
  static_assert(kK16 >= 1 && kN8 % 2 == 0, "matrix loads come in fours");
};

/// Index mirrored at 0 and size - 1, clamped where a tile reaches far beyond the image.
HDFN constexpr int reflect_index(int i, int size) {
  const int mirrored = i < 0 ? -i : (i >= size ? 2 * size - 2 - i : i);
  return mirrored < 0 ? 0 : (mirrored >= size ? size - 1 : mirrored);
}
HDFN constexpr int clamp_index(int i, int size) { return i < 0 ? 0 : (i >= size ? size - 1 : i); }

/// Eight raw halves -> eight operands.
template <ConvPrologue kPrologue>
KFN uint4 make_operand(uint4 y, uint4 x, const float (&scale)[8], const float (&shift)[8]) {
  if (kPrologue == ConvPrologue::kPlain) {
    return y;
  }
  const uint32_t raw[4] = {y.x, y.y, y.z, y.w};
  const uint32_t add[4] = {x.x, x.y, x.z, x.w};
  uint32_t out[4];
  UNROLL for (int i = 0; i < 4; ++i) {
    float lo, hi;
    dev::unpack_half2(raw[i], lo, hi);
    lo = dev::fma(lo, scale[2 * i], shift[2 * i]);
    hi = dev::fma(hi, scale[2 * i + 1], shift[2 * i + 1]);
    if (kPrologue == ConvPrologue::kAffineRelu) {
      lo = dev::relu(lo);
      hi = dev::relu(hi);
    } else {
      float a, b;
      dev::unpack_half2(add[i], a, b);
      lo += a;
      hi += b;
    }
    out[i] = dev::pack_half2(lo, hi);
  }
  uint4 r;
  r.x = out[0];
  r.y = out[1];
  r.z = out[2];
  r.w = out[3];
  return r;
}

/// Eight floats of shared memory.
KFN void load_eight(uint32_t address, float (&v)[8]) {
  const uint4 a = dev::lds128(address);
  const uint4 b = dev::lds128(address + 16);
  v[0] = dev::fbits(a.x);
  v[1] = dev::fbits(a.y);
  v[2] = dev::fbits(a.z);
  v[3] = dev::fbits(a.w);
  v[4] = dev::fbits(b.x);
  v[5] = dev::fbits(b.y);
  v[6] = dev::fbits(b.z);
  v[7] = dev::fbits(b.w);
}

/// Two neighbouring pixels of up to four channels: one cell of a kImage7x7 patch.
KFN uint4 load_pixel_pair(const ConvParams& p, int64_t plane0, int y, int x0, int x1) {
  const int64_t plane = static_cast<int64_t>(p.in_height) * p.in_width;
  float v[8];
  UNROLL for (int c = 0; c < 4; ++c) {
    v[c] = v[c + 4] = 0.0F;
    if (c < p.in_channels) {
      const float* row = p.image + plane0 + c * plane + static_cast<int64_t>(y) * p.in_width;
      v[c] = dev::load(row + x0);
      v[c + 4] = dev::load(row + x1);
    }
  }
  uint4 r;
  r.x = dev::pack_half2(v[0], v[1]);
  r.y = dev::pack_half2(v[2], v[3]);
  r.z = dev::pack_half2(v[4], v[5]);
  r.w = dev::pack_half2(v[6], v[7]);
  return r;
}

/// Where a block works and what it reads.
struct ConvPlace {
  int slot;
  int block;  // of columns
  int tile;
  int h0;
  int w0;
  int64_t y_base;       // elements
  int64_t stream_base;  // elements
  int64_t out_base;     // of stream_out, elements
};

/// Brings inputs into the patch: thread `tid` owns channel group tid % kGroups of every
/// (kThreads / kGroups)-th pixel.
template <class Config, ConvPrologue kPrologue, bool kReplicate>
struct PatchLoader {
  using Shape = typename Config::Shape;
  static constexpr int kPixelStep = Config::kThreads / Shape::kGroups;

  const ConvParams& p;
  const ConvPlace& at;
  uint32_t smem;
  uint32_t norm;
  int group;
  int pixel0;

  KFN_MEMBER int pixel(int j) const { return pixel0 + j * kPixelStep; }
  KFN_MEMBER bool has(int j) const {
    return (j + 1) * kPixelStep <= Shape::kPatchPixels || pixel(j) < Shape::kPatchPixels;
  }

  /// Element offset of pixel j inside one row of y. `parity` is 2 * (odd y) + (odd x).
  KFN_MEMBER int offset(int j, int parity) const {
    const int py = pixel(j) / Shape::kPatchWidth;
    const int px = pixel(j) - py * Shape::kPatchWidth;
    const int y = (at.h0 + py) * Shape::kStep + (parity >> 1) - Shape::kPad;
    const int x = (at.w0 + px) * Shape::kStep + (parity & 1) - Shape::kPad;
    const int row = kReplicate ? clamp_index(y, p.in_height) : reflect_index(y, p.in_height);
    const int column = kReplicate ? clamp_index(x, p.in_width) : reflect_index(x, p.in_width);
    return (row * p.in_width + column) * p.in_channels;
  }
  /// True where pixel j is not halo: its stream is this block's to keep.
  KFN_MEMBER bool is_inner(int j) const {
    const int py = pixel(j) / Shape::kPatchWidth;
    const int px = pixel(j) - py * Shape::kPatchWidth;
    return py >= 1 && py <= kConvTileHeight && px >= 1 && px <= Shape::kTileWidth &&
           at.h0 + py - 1 < p.in_height && at.w0 + px - 1 < p.in_width;
  }

  /// First channel of this thread's group in k-block kb.
  KFN_MEMBER int channel(int kb) const {
    return (Shape::kStep == 2 ? kb % channel_blocks() : kb) * Shape::kBlock + group * 8;
  }
  KFN_MEMBER int channel_blocks() const {
    return (p.in_channels + Shape::kBlock - 1) / Shape::kBlock;
  }
  KFN_MEMBER int parity(int kb) const { return Shape::kStep == 2 ? kb / channel_blocks() : 0; }

  KFN_MEMBER void fetch(int j, int kb, uint4& y, uint4& x) const {
    y.x = y.y = y.z = y.w = 0;
    x = y;
    if (!has(j)) {
      return;
    }
    if constexpr (Shape::kImage) {
      const int py = pixel(j) / Shape::kPatchWidth;
      const int px = pixel(j) - py * Shape::kPatchWidth;
      const int left = at.w0 + px - Shape::kPad + 2 * group;
      y = load_pixel_pair(p, at.y_base, reflect_index(at.h0 + py - Shape::kPad, p.in_height),
                          reflect_index(left, p.in_width), reflect_index(left + 1, p.in_width));
    } else {
      const int c = channel(kb);
      if (c < p.in_channels) {
        const int o = offset(j, parity(kb)) + c;
        y = dev::ldg128_stream(p.y + at.y_base + o);
        if (kPrologue == ConvPrologue::kResidual) {
          x = dev::ldg128_stream(p.stream_in + at.stream_base + o);
        }
      }
    }
  }

  KFN_MEMBER void put(int j, int kb, int buffer, uint4 y, uint4 x) const {
    if (!has(j)) {
      return;
    }
    const int c = channel(kb);
    uint4 operand = y;
    if (kPrologue != ConvPrologue::kPlain && c < p.in_channels) {
      float scale[8];
      float shift[8];
      load_eight(norm + c * 4, scale);
      load_eight(norm + (p.in_channels + c) * 4, shift);
      operand = make_operand<kPrologue>(y, x, scale, shift);
      if (Shape::kStep == 1 && p.stream_out != nullptr && kb % dev::gy() == at.block &&
          is_inner(j)) {
        dev::stg128(p.stream_out + at.out_base + offset(j, 0) + c, operand);
      }
    }
    dev::sts128(smem + buffer * Shape::kPatchBytes + group * Shape::kGroupPitch + pixel(j) * 16,
                operand);
  }
};

}  // namespace cae::cuda
