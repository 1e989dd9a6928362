// SPDX-License-Identifier: Apache-2.0
// What happens to a block's sums: the k-groups are added, biases and the ring too, moments taken
// about the block's own mean in two passes and a fixed order, and halves stored in whole vectors.
#pragma once

#include "cuda/conv_tile.cuh"

namespace cae::cuda {

/// A warp's results: rows row0 .. of 16 pixels, columns of its share. Element q of a fragment is
/// pixel (lane >> 2) + 8 * (q >> 1), column 2 * (lane & 3) + (q & 1); with kTallFragments, pixel
/// x0 + (lane >> 2) of row row0 + (q >> 1).
template <class Config, ConvEpilogue kEpilogue>
struct TileEpilogue {
  static constexpr int kRows = Config::kRowTiles / Config::kWarpsK;
  static constexpr int kN8 = Config::kN8;
  using Sums = float[kRows][kN8][4];

  const ConvParams& p;
  const ConvPlace& at;
  uint32_t smem;
  int tid;
  int lane;
  int row0;    // of the tile, first pixel row of this warp
  int column;  // of the block, first column of this thread
  int sum_row;
  int x0 = 0;

  KFN_MEMBER int pixel_x(int q) const {
    return (lane >> 2) + (Config::kTallFragments ? x0 : 8 * (q >> 1));
  }
  KFN_MEMBER int pixel_y(int i, int q) const {
    return row0 + i + (Config::kTallFragments ? q >> 1 : 0);
  }
  KFN_MEMBER bool inside(int i, int q) const {
    return at.h0 + pixel_y(i, q) < p.out_height && at.w0 + pixel_x(q) < p.out_width;
  }
  /// Column of the whole product.
  KFN_MEMBER int global_column(int j, int q) const {
    return at.block * Config::kColumns + column + j * 8 + (q & 1);
  }

  /// What the outermost ring of an upsampled image gets beyond the replicated form.
  KFN_MEMBER float ring(int i, int q, int n) const {
    const int phase = n / p.out_channels;
    const int channel = n - phase * p.out_channels;
    const int height = 2 * p.out_height;
    const int width = 2 * p.out_width;
    const int y = 2 * (at.h0 + pixel_y(i, q)) + (phase >> 1);
    const int x = 2 * (at.w0 + pixel_x(q)) + (phase & 1);
    float sum = 0.0F;
    if (y == 0 || y == height - 1) {
      const int64_t line = static_cast<int64_t>(at.slot) * 2 + (y == 0 ? 0 : 1);
      sum += dev::load(p.ring_rows + (line * width + x) * p.out_channels + channel);
    }
    if (x == 0 || x == width - 1) {
      const int64_t line = static_cast<int64_t>(at.slot) * 2 + (x == 0 ? 0 : 1);
      sum += dev::load(p.ring_columns + (line * height + y) * p.out_channels + channel);
    }
    return sum;
  }

  KFN_MEMBER void add_terms(Sums& r) const {
    if constexpr (kEpilogue != ConvEpilogue::kMoments) {
      UNROLL for (int j = 0; j < kN8; ++j) UNROLL for (int e = 0; e < 2; ++e) {
        const float bias = dev::load(p.bias + global_column(j, e));
        UNROLL for (int i = 0; i < kRows; ++i) UNROLL for (int h = 0; h < 2; ++h) {
          float& value = r[i][j][2 * h + e];
          value += bias;
          if (kEpilogue == ConvEpilogue::kBiasRelu) {
            value = dev::relu(value);
          }
        }
      }
    }
    if constexpr (kEpilogue == ConvEpilogue::kShuffle) {
      const bool border = at.h0 == 0 || at.w0 == 0 || at.h0 + kConvTileHeight >= p.out_height ||
                          at.w0 + Config::Shape::kTileWidth >= p.out_width;
      if (border) {
        UNROLL for (int i = 0; i < kRows; ++i) UNROLL for (int j = 0; j < kN8; ++j)
            UNROLL for (int q = 0; q < 4; ++q) {
          const int n = global_column(j, q);
          if (inside(i, q) && n < 4 * p.out_channels) {
            r[i][j][q] += ring(i, q, n);
          }
        }
      }
    }
  }

  KFN_MEMBER uint32_t sums_at(int pass) const {
    return smem + Config::kSumsAt + pass * Config::kSumRows * Config::kColumns * 4;
  }
  KFN_MEMBER float column_sum(int pass, int c) const {
    float sum = 0.0F;
    UNROLL for (int s = 0; s < Config::kSumRows; ++s) {
      sum += dev::ldsf(sums_at(pass) + (s * Config::kColumns + c) * 4);
    }
    return sum;
  }
  /// Adds what the eight groups of lanes hold of a column and leaves it to this warp's row.
  KFN_MEMBER void leave_sum(int pass, int j, int e, float value) const {
    UNROLL for (int m = 4; m < 32; m <<= 1) { value += dev::shfl_xor(value, m); }
    if (lane < 4) {
      Config::leave(sums_at(pass) + (sum_row * Config::kColumns + column + j * 8 + e) * 4, value);
    }
  }

  /// Pixels of the tile that lie inside the image.
  KFN_MEMBER float pixel_count() const {
    const int h = p.out_height - at.h0;
    const int w = p.out_width - (at.w0 & -kConvTileWidth);
    return static_cast<float>((h < kConvTileHeight ? h : kConvTileHeight) *
                              (w < kConvTileWidth ? w : kConvTileWidth));
  }

  /// Column sums, then sums of squares about the column means, in shared memory.
  KFN_MEMBER void take_moments(const Sums& r) const {
    UNROLL for (int j = 0; j < kN8; ++j) UNROLL for (int e = 0; e < 2; ++e) {
      float v = 0.0F;
      UNROLL for (int i = 0; i < kRows; ++i) {
        v += (inside(i, e) ? r[i][j][e] : 0.0F) + (inside(i, e + 2) ? r[i][j][e + 2] : 0.0F);
      }
      leave_sum(0, j, e, v);
    }
    Config::sums_barrier();
    const float count = pixel_count();
    UNROLL for (int j = 0; j < kN8; ++j) UNROLL for (int e = 0; e < 2; ++e) {
      const float mean = column_sum(0, column + j * 8 + e) / count;
      float m2 = 0.0F;
      UNROLL for (int i = 0; i < kRows; ++i) UNROLL for (int h = 0; h < 2; ++h) {
        const float d = inside(i, 2 * h) ? r[i][j][2 * h + e] - mean : 0.0F;
        m2 = dev::fma(d, d, m2);
      }
      leave_sum(1, j, e, m2);
    }
  }

  KFN_MEMBER void stage(const Sums& r) const {
    UNROLL for (int i = 0; i < kRows; ++i) UNROLL for (int j = 0; j < kN8; ++j)
        UNROLL for (int h = 0; h < 2; ++h) {
      const int pixel = pixel_y(i, 2 * h) * Config::Shape::kTileWidth + pixel_x(2 * h);
      dev::sts32(smem + pixel * Config::kStagingPitch + (column + j * 8) * 2,
                 dev::pack_half2(r[i][j][2 * h], r[i][j][2 * h + 1]));
    }
  }

  /// Place of the tile's moments among all.
  KFN_MEMBER int64_t part() const {
    return static_cast<int64_t>(at.slot) * (dev::gx() / Config::kShares) + at.tile;
  }

  /// Moments of each channel of the tile.
  KFN_MEMBER void store_channel_moments() const {
    const float count = pixel_count();
    for (int c = tid; c < Config::kColumns; c += Config::kThreads) {
      const int channel = at.block * Config::kColumns + c;
      if (channel < p.out_channels) {
        float* moments = p.partials + (part() * p.out_channels + channel) * 2;
        dev::store(moments, column_sum(0, c) / count);
        dev::store(moments + 1, column_sum(1, c));
      }
    }
  }

  /// Moments of all values of each piece of columns that are no padding, by a warp a piece.
  KFN_MEMBER void store_block_moments() const {
    const int piece = tid / 32;
    if (piece >= Config::kPieces) {
      return;
    }
    const int first = piece * kConvColumns;
    const float count = pixel_count();
    float sum = 0.0F;
    float columns = 0.0F;
    UNROLL for (int c = first + lane; c < first + kConvColumns; c += 32) {
      if (is_real(c)) {
        sum += column_sum(0, c);
        columns += 1.0F;
      }
    }
    UNROLL for (int m = 1; m < 32; m <<= 1) {
      sum += dev::shfl_xor(sum, m);
      columns += dev::shfl_xor(columns, m);
    }
    const float mean = columns > 0.0F ? sum / (count * columns) : 0.0F;
    float m2 = 0.0F;
    UNROLL for (int c = first + lane; c < first + kConvColumns; c += 32) {
      if (is_real(c)) {
        const float d = column_sum(0, c) / count - mean;
        m2 += dev::fma(d * d, count, column_sum(1, c));
      }
    }
    UNROLL for (int m = 1; m < 32; m <<= 1) { m2 += dev::shfl_xor(m2, m); }
    if (lane == 0) {
      float* moments = p.partials + ((part() * dev::gy() + at.block) * Config::kPieces + piece) * 2;
      dev::store(moments, mean);
      dev::store(moments + 1, m2);
    }
  }
  KFN_MEMBER bool is_real(int c) const {
    const int n = at.block * Config::kColumns + c;
    return n < 4 * p.out_channels && n % p.out_channels < p.real_channels;
  }

  KFN_MEMBER void store_pixels() const {
    constexpr int kCells = Config::kColumns / 8;
    const int columns = conv_columns(kEpilogue, p.out_channels);
    UNROLL for (int i = 0; i < Config::kPixels * kCells / Config::kThreads; ++i) {
      const int v = tid + i * Config::kThreads;
      const int pixel = v / kCells;
      const int n = at.block * Config::kColumns + v % kCells * 8;
      const int y = at.h0 + pixel / Config::Shape::kTileWidth;
      const int x = at.w0 + pixel % Config::Shape::kTileWidth;
      if (n >= columns || y >= p.out_height || x >= p.out_width) {
        continue;
      }
      int64_t row = static_cast<int64_t>(at.slot) * p.out_height + y;
      int64_t place = row * p.out_width + x;
      int channel = n;
      if (kEpilogue == ConvEpilogue::kShuffle) {
        const int phase = n / p.out_channels;
        channel = n - phase * p.out_channels;
        row = 2 * row + (phase >> 1);
        place = row * 2 * p.out_width + 2 * x + (phase & 1);
      }
      dev::stg128(p.out + place * p.out_channels + channel,
                  dev::lds128(smem + pixel * Config::kStagingPitch + v % kCells * 16));
    }
  }

  /// Every thread of Config::barrier() calls; one before has made sure that shared memory is free.
  KFN_MEMBER void run(Sums& r) const {
    add_terms(r);
    take_moments(r);
    stage(r);
    Config::sums_barrier();
    if (dev::bx() % Config::kShares == 0) {
      if (kEpilogue == ConvEpilogue::kShuffle) {
        store_block_moments();
      } else {
        store_channel_moments();
      }
    }
    store_pixels();
  }
};

/// The two k-groups swap halves of their sums through shared memory: each keeps kRowTiles / 2 row
/// tiles, always first group + second group.
template <class Config>
KFN void merge_k_groups(const float (&acc)[Config::kRowTiles][Config::kN8][4],
                        float (&r)[Config::kRowTiles / Config::kWarpsK][Config::kN8][4],
                        uint32_t smem, int warp, int lane, int k_group) {
  constexpr int kRows = Config::kRowTiles / Config::kWarpsK;
  if constexpr (Config::kWarpsK == 1) {
    UNROLL for (int i = 0; i < kRows; ++i) UNROLL for (int j = 0; j < Config::kN8; ++j)
        UNROLL for (int q = 0; q < 4; ++q) {
      r[i][j][q] = acc[i][j][q];
    }
  } else {
    constexpr int kPeers = Config::kWarpsM * Config::kWarpsN;
    const int other = k_group == 0 ? warp + kPeers : warp - kPeers;
    const uint32_t mine = smem + (warp * kRows * Config::kN8 * 4) * 128 + lane * 4;
    const uint32_t theirs = smem + (other * kRows * Config::kN8 * 4) * 128 + lane * 4;
    UNROLL for (int i = 0; i < kRows; ++i) UNROLL for (int j = 0; j < Config::kN8; ++j)
        UNROLL for (int q = 0; q < 4; ++q) {
      dev::stsf(mine + ((i * Config::kN8 + j) * 4 + q) * 128,
                k_group == 0 ? acc[i + kRows][j][q] : acc[i][j][q]);
    }
    dev::sync();
    UNROLL for (int i = 0; i < kRows; ++i) UNROLL for (int j = 0; j < Config::kN8; ++j)
        UNROLL for (int q = 0; q < 4; ++q) {
      const float given = dev::ldsf(theirs + ((i * Config::kN8 + j) * 4 + q) * 128);
      r[i][j][q] = k_group == 0 ? acc[i][j][q] + given : given + acc[i + kRows][j][q];
    }
  }
}

}  // namespace cae::cuda
