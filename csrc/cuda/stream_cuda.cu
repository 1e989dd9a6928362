// SPDX-License-Identifier: Apache-2.0
// Eight neighbouring pixels and four groups of eight channels make a warp: it reads and writes
// whole 32-byte sectors in either layout, so nothing goes through shared memory.
#include "core/check.h"
#include "cuda/conv_tile.cuh"
#include "cuda/stream_cuda.h"
#include "simt/launch.h"

namespace cae::cuda {
namespace {

constexpr int kStreamThreads = 256;
constexpr int kStreamWarps = kStreamThreads / 32;
constexpr int kStreamPixels = 256;   // of a block
constexpr int kStreamChannels = 32;  // of a block

/// Where a block works. Blocks of a row: pixel blocks, then channel blocks.
struct StreamPlace {
  int64_t row;
  int pixel0;
  int channel0;
};

KFN StreamPlace stream_place(int pixels, int stored_channels) {
  const int pixel_blocks = (pixels + kStreamPixels - 1) / kStreamPixels;
  const int blocks = pixel_blocks * ((stored_channels + kStreamChannels - 1) / kStreamChannels);
  const int block = dev::bx() % blocks;
  return {dev::bx() / blocks, block % pixel_blocks * kStreamPixels,
          block / pixel_blocks * kStreamChannels};
}

int stream_blocks(int rows, int height, int width, int stored_channels) {
  CAE_CHECK(rows > 0 && height > 0 && width > 0, "rows, height and width must be positive, got ",
            rows, ", ", height, ", ", width);
  const int64_t pixels = static_cast<int64_t>(height) * width;
  const int64_t blocks = rows * ((pixels + kStreamPixels - 1) / kStreamPixels) *
                         ((stored_channels + kStreamChannels - 1) / kStreamChannels);
  CAE_CHECK(pixels * stored_channels <= INT32_MAX && blocks <= INT32_MAX, "a stream of ", rows,
            " x ", height, " x ", width, " x ", stored_channels, " is too large for one launch");
  return static_cast<int>(blocks);
}

void check_stream_channels(int channels, int stored_channels) {
  CAE_CHECK(channels >= 1 && stored_channels >= channels && stored_channels % 8 == 0,
            "stored channels must be a multiple of 8 and at least the ", channels,
            " channels, got ", stored_channels);
}

KFN uint4 pack_eight(const float (&v)[8]) {
  uint4 r;
  r.x = dev::pack_half2(v[0], v[1]);
  r.y = dev::pack_half2(v[2], v[3]);
  r.z = dev::pack_half2(v[4], v[5]);
  r.w = dev::pack_half2(v[6], v[7]);
  return r;
}

KFN void unpack_eight(uint4 packed, float (&v)[8]) {
  dev::unpack_half2(packed.x, v[0], v[1]);
  dev::unpack_half2(packed.y, v[2], v[3]);
  dev::unpack_half2(packed.z, v[4], v[5]);
  dev::unpack_half2(packed.w, v[6], v[7]);
}

KERNEL void __launch_bounds__(kStreamThreads) import_stream_kernel(const ImportStreamParams p) {
  dev::pdl_launch();
  dev::pdl_wait();
  const int pixels = p.height * p.width;
  const StreamPlace at = stream_place(pixels, p.stored_channels);
  const int lane = dev::tid() & 31;
  const int c = at.channel0 + (lane >> 3) * 8;
  if (c >= p.stored_channels) {
    return;
  }
  const float* in = p.in + (at.row * p.channels + c) * pixels;
  uint16_t* out = p.out + at.row * pixels * p.stored_channels + c;
  const int first = at.pixel0 + (dev::tid() >> 5) * 8 + (lane & 7);
  UNROLL_BY(2) for (int i = 0; i < kStreamPixels / (kStreamWarps * 8); ++i) {
    const int pixel = first + i * kStreamWarps * 8;
    if (pixel < pixels) {
      float v[8];
      UNROLL for (int e = 0; e < 8; ++e) {
        v[e] = c + e < p.channels ? dev::load(in + static_cast<int64_t>(e) * pixels + pixel) : 0.0F;
      }
      dev::stg128(out + static_cast<int64_t>(pixel) * p.stored_channels, pack_eight(v));
    }
  }
}

KERNEL void __launch_bounds__(kStreamThreads) finish_stream_kernel(const FinishStreamParams p) {
  dev::pdl_launch();
  dev::pdl_wait();
  const int pixels = p.height * p.width;
  const int stored = p.norm.channels;
  const StreamPlace at = stream_place(pixels, stored);
  if (p.active != nullptr && dev::load(p.active + at.row) == 0) {
    return;
  }
  const int tid = dev::tid();
  const int lane = tid & 31;
  const uint32_t norm = dev::smem_base();
  const int64_t y_row = p.y_row == nullptr ? at.row : dev::load(p.y_row + at.row);
  const int64_t stream_row = p.stream_row == nullptr ? at.row : dev::load(p.stream_row + at.row);
  const int64_t mod_row = p.mod_row == nullptr ? at.row : dev::load(p.mod_row + at.row);
  const int count = stored - at.channel0 < kStreamChannels ? stored - at.channel0 : kStreamChannels;
  finalise_channels<kStreamThreads>(p.norm, y_row, mod_row, tid, norm, at.channel0, count);
  dev::sync();
  const int c = at.channel0 + (lane >> 3) * 8;
  if (c >= stored) {
    return;
  }
  float scale[8];
  float shift[8];
  load_eight(norm + (c - at.channel0) * 4, scale);
  load_eight(norm + (count + c - at.channel0) * 4, shift);
  const int64_t size = static_cast<int64_t>(pixels) * stored;
  const int first = at.pixel0 + (tid >> 5) * 8 + (lane & 7);
  UNROLL_BY(2) for (int i = 0; i < kStreamPixels / (kStreamWarps * 8); ++i) {
    const int pixel = first + i * kStreamWarps * 8;
    if (pixel < pixels) {
      const int64_t offset = static_cast<int64_t>(pixel) * stored + c;
      float v[8];
      float add[8] = {};
      unpack_eight(dev::ldg128_stream(p.y + y_row * size + offset), v);
      if (p.stream_in != nullptr) {
        unpack_eight(dev::ldg128_stream(p.stream_in + stream_row * size + offset), add);
      }
      UNROLL for (int e = 0; e < 8; ++e) {
        v[e] = c + e < p.channels ? dev::fma(v[e], scale[e], shift[e]) + add[e] : 0.0F;
      }
      if (p.stream != nullptr) {
        dev::stg128(p.stream + at.row * size + offset, pack_eight(v));
      }
      if (p.image != nullptr) {
        float* image = p.image + (at.row * p.channels + c) * pixels + pixel;
        UNROLL for (int e = 0; e < 8; ++e) {
          if (c + e < p.channels) {
            dev::store(image + static_cast<int64_t>(e) * pixels, v[e]);
          }
        }
      }
    }
  }
}

}  // namespace

void import_stream(const ImportStreamParams& params, void* stream) {
  if (params.rows == 0) {
    return;
  }
  check_stream_channels(params.channels, params.stored_channels);
  const int blocks =
      stream_blocks(params.rows, params.height, params.width, params.stored_channels);
  launch(import_stream_kernel, Grid{blocks, 1, 1}, kStreamThreads, 0, stream, params,
         {params.overlap});
}

void finish_stream(const FinishStreamParams& params, void* stream) {
  if (params.rows == 0) {
    return;
  }
  check_stream_channels(params.channels, params.norm.channels);
  const int blocks = stream_blocks(params.rows, params.height, params.width, params.norm.channels);
  launch(finish_stream_kernel, Grid{blocks, 1, 1}, kStreamThreads, norm_bytes(kStreamChannels),
         stream, params, {params.overlap});
}

}  // namespace cae::cuda
