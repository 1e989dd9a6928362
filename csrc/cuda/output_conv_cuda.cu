// SPDX-License-Identifier: Apache-2.0
// With so few output channels the taps of a filter row count as columns of the product as well:
//   P[y, x, (kx, o)] = sum over ky, c of in[y + ky, x, c] * weight[o, c, ky, kx]
// where x runs over the padded columns, and the output is the sum over kx of P[y, x + kx, (kx, o)],
// made in shared memory.
//
// A block makes 8 rows of pixels. A warp owns 16 padded columns of 4 of them; it walks down the
// input rows and keeps the operands of 4 in registers, so each is loaded once for up to 4 filter
// rows. 16 channels at a time lie in shared memory, in cells of 8; while they are multiplied, the
// next 16 are on their way to the other buffer. The order of every sum is fixed, and the same for
// either width of tiles: channels by 16, filter rows, channels; then kx.
#include "core/check.h"
#include "cuda/conv_tile.cuh"
#include "cuda/output_conv_cuda.h"
#include "simt/launch.h"

namespace cae::cuda {
namespace {

template <int kTileWidth_, int kImageChannels_>
struct OutputConfig {
  static constexpr int kTileWidth = kTileWidth_;
  static constexpr int kImageChannels = kImageChannels_;
  static constexpr int kN8 = kImageChannels;  // groups of 8 columns
  static constexpr int kColumns = kOutputTaps * kImageChannels;
  static constexpr int kPatchWidth = kTileWidth + kOutputTaps - 1;
  static constexpr int kPatchPixels = (kOutputTileHeight + kOutputTaps - 1) * kPatchWidth;
  static constexpr int kColumnTiles = (kPatchWidth + 15) / 16;
  static constexpr int kRows = 4;  // of pixels per warp
  static constexpr int kThreads = kColumnTiles * (kOutputTileHeight / kRows) * 32;
  // Cells of a group of 8 channels: 4 modulo 8 makes stores free of bank conflicts, as neighbouring
  // threads have the two groups of the same pixel.
  static constexpr int kGroupPitch = ((kPatchPixels + 3) / 8 * 8 + 4) * 16;  // bytes
  static constexpr int kPatchBytes = 2 * kGroupPitch;
  static constexpr int kVectors = (2 * kPatchPixels + kThreads - 1) / kThreads;  // of a thread
  static constexpr int kFragments = kOutputTaps * kN8;  // 16 x 8 pieces of the weights of a chunk
  static constexpr int kWeightBytes = (kFragments + 1) / 2 * 512;
  static constexpr int kWeightsAt = 2 * kPatchBytes;
  static constexpr int kNormAt = kWeightsAt + 2 * kWeightBytes;
  // P, column by column: 4 modulo 16 makes its stores free of bank conflicts.
  static constexpr int kPlanePitch = (kOutputTileHeight * kPatchWidth + 11) / 16 * 16 + 4;
  static_assert(kPatchPixels * 16 <= kGroupPitch, "a group must fit");
  static_assert(kOutputTileHeight * kPatchWidth <= kPlanePitch, "a column must fit");
  static_assert(kColumns * kPlanePitch * 4 <= kNormAt, "P takes the place of patches and weights");
};

/// The block's weights of 16 channels, asynchronously.
template <class Cfg>
KFN void request_weights(const OutputConvParams& p, int chunk, int tid, uint32_t destination) {
  const auto* source =
      reinterpret_cast<const char*>(p.weights) + static_cast<int64_t>(chunk) * Cfg::kWeightBytes;
  for (int i = tid * 16; i < Cfg::kWeightBytes; i += Cfg::kThreads * 16) {
    dev::cp_async16(destination + i, source + i);
  }
  dev::cp_commit();
}

/// Adds the products of 16 channels: acc[row][n8] of the warp's four rows.
template <class Cfg>
KFN void multiply(uint32_t patch, uint32_t weights, float (&acc)[Cfg::kRows][Cfg::kN8][4]) {
  uint32_t rows[Cfg::kRows][4];
  UNROLL for (int i = 0; i < Cfg::kRows - 1; ++i) {
    dev::ldsm4(rows[i], patch + i * Cfg::kPatchWidth * 16);
  }
  uint4 pair;
  UNROLL for (int ky = 0; ky < kOutputTaps; ++ky) {
    const int below = ky + Cfg::kRows - 1;
    dev::ldsm4(rows[below % Cfg::kRows], patch + below * Cfg::kPatchWidth * 16);
    UNROLL for (int j = 0; j < Cfg::kN8; ++j) {
      const int fragment = ky * Cfg::kN8 + j;
      if (fragment % 2 == 0) {
        pair = dev::lds128(weights + fragment / 2 * 512);
      }
      const uint32_t b0 = fragment % 2 == 0 ? pair.x : pair.z;
      const uint32_t b1 = fragment % 2 == 0 ? pair.y : pair.w;
      UNROLL for (int i = 0; i < Cfg::kRows; ++i) {
        dev::mma16816(acc[i][j], rows[(ky + i) % Cfg::kRows], b0, b1);
      }
    }
  }
}

/// Lays P out in shared memory, column by column, [8][kPatchWidth] each.
template <class Cfg>
KFN void store_products(const float (&acc)[Cfg::kRows][Cfg::kN8][4], int row0, int column0,
                        int lane, uint32_t planes) {
  UNROLL for (int i = 0; i < Cfg::kRows; ++i) {
    UNROLL for (int j = 0; j < Cfg::kN8; ++j) {
      UNROLL for (int q = 0; q < 4; ++q) {
        const int n = j * 8 + (lane & 3) * 2 + (q & 1);
        const int x = column0 + (lane >> 2) + (q >> 1) * 8;
        if (n < Cfg::kColumns && x < Cfg::kPatchWidth) {
          dev::stsf(planes + (n * Cfg::kPlanePitch + (row0 + i) * Cfg::kPatchWidth + x) * 4,
                    acc[i][j][q]);
        }
      }
    }
  }
}

/// Stores what the classifier gets of a pixel of image channel `o`.
template <class Cfg>
KFN void store_classifier_input(const ClassifierInput& c, int size, int64_t slot, int o, int y,
                                int x, float pixel) {
  const bool grey = Cfg::kImageChannels == 1;
  const int first = grey ? 0 : o;
  const int last = grey ? c.channels : o + 1;
  for (int channel = first; channel < last; ++channel) {
    float value = pixel;
    if (c.normalise) {
      value = dev::mul(dev::add(pixel, 1.0F), 0.5F);
      value = dev::add(value, -c.mean[channel]) / c.std_dev[channel];
    }
    const int64_t at = c.channels_last ? ((slot * size + y) * size + x) * c.channels + channel
                                       : ((slot * c.channels + channel) * size + y) * size + x;
    if (c.half) {
      dev::store(static_cast<uint16_t*>(c.values) + at,
                 static_cast<uint16_t>(dev::pack_half2(value, 0.0F)));
    } else {
      dev::store(static_cast<float*>(c.values) + at, value);
    }
  }
}

/// Sums over kx, adds the bias, takes tanh of that, and stores it and what else is wanted of it.
/// Returns 1 if all of it is finite.
template <class Cfg>
KFN int32_t store_pixels(const OutputConvParams& p, int64_t slot, int y0, int x0, int tid,
                         uint32_t planes) {
  constexpr int kPixels = kOutputTileHeight * Cfg::kTileWidth;
  int32_t finite = 1;
  for (int i = tid; i < Cfg::kImageChannels * kPixels; i += Cfg::kThreads) {
    const int o = i / kPixels;
    const int y = i % kPixels / Cfg::kTileWidth;
    const int x = i % Cfg::kTileWidth;
    if (y0 + y >= p.size || x0 + x >= p.size) {
      continue;
    }
    float sum = 0.0F;
    UNROLL for (int kx = 0; kx < kOutputTaps; ++kx) {
      const int n = kx * Cfg::kImageChannels + o;
      sum += dev::ldsf(planes + (n * Cfg::kPlanePitch + y * Cfg::kPatchWidth + x + kx) * 4);
    }
    sum = dev::fma(sum, dev::load(p.scale + o), dev::load(p.bias + o));
    finite = sum - sum == 0.0F ? finite : 0;  // before tanh, which makes pixels of what overflowed
    const float value = dev::tanh(sum);
    const int64_t in_image = (static_cast<int64_t>(o) * p.size + y0 + y) * p.size + x0 + x;
    const int64_t numel = static_cast<int64_t>(Cfg::kImageChannels) * p.size * p.size;
    dev::store(p.images + slot * numel + in_image, value);
    if (p.difference != nullptr) {
      const int64_t row = p.reference_row == nullptr ? slot : dev::load(p.reference_row + slot);
      dev::store(p.difference + slot * numel + in_image,
                 dev::add(value, -dev::load(p.reference + row * numel + in_image)));
    }
    if (p.classifier.values != nullptr) {
      store_classifier_input<Cfg>(p.classifier, p.size, slot, o, y0 + y, x0 + x, value);
    }
  }
  return finite;
}

template <class Cfg>
KERNEL void __launch_bounds__(Cfg::kThreads, 1) output_conv_kernel(const OutputConvParams p) {
  const int tid = dev::tid();
  const int lane = tid & 31;
  const int warp = tid >> 5;
  const int tiles = output_tiles(p.size);
  const int64_t slot = dev::bx() / tiles;
  const int tile = dev::bx() % tiles;
  if (p.active != nullptr) {
    dev::pdl_wait();
    if (dev::load(p.active + slot) == 0) {
      return;
    }
  }
  const int across = (p.size + Cfg::kTileWidth - 1) / Cfg::kTileWidth;
  const int y0 = tile / across * kOutputTileHeight;
  const int x0 = tile % across * Cfg::kTileWidth;
  const uint32_t shared = dev::smem_base();
  request_weights<Cfg>(p, 0, tid, shared + Cfg::kWeightsAt);
  dev::pdl_wait();  // weights depend on no kernel before this one

  const int group = tid & 1;
  const int pixel0 = tid >> 1;
  int from[Cfg::kVectors];  // where a vector of the patch is in the slot's values
  UNROLL for (int i = 0; i < Cfg::kVectors; ++i) {
    const int pixel = pixel0 + i * (Cfg::kThreads / 2);
    const int y = reflect_index(y0 + pixel / Cfg::kPatchWidth - 3, p.size);
    const int x = reflect_index(x0 + pixel % Cfg::kPatchWidth - 3, p.size);
    from[i] = pixel < Cfg::kPatchPixels ? (y * p.size + x) * p.channels : -1;
  }
  const uint16_t* values = p.raw + slot * p.size * p.size * p.channels;
  const uint4 zero = {0, 0, 0, 0};
  uint4 raw[Cfg::kVectors];
  const auto fetch = [&](int c) {
    UNROLL for (int i = 0; i < Cfg::kVectors; ++i) {
      raw[i] = from[i] >= 0 && c < p.channels ? dev::ldg128_stream(values + from[i] + c) : zero;
    }
  };
  const auto put = [&](int c, uint32_t patch) {
    float scale[8], shift[8];
    if (c < p.channels) {
      load_eight(shared + Cfg::kNormAt + c * 4, scale);
      load_eight(shared + Cfg::kNormAt + (p.channels + c) * 4, shift);
    }
    UNROLL for (int i = 0; i < Cfg::kVectors; ++i) {
      if (from[i] >= 0) {
        const uint4 operand =
            c < p.channels ? make_operand<ConvPrologue::kAffineRelu>(raw[i], zero, scale, shift)
                           : zero;
        dev::sts128(patch + group * Cfg::kGroupPitch + (pixel0 + i * (Cfg::kThreads / 2)) * 16,
                    operand);
      }
    }
  };
  fetch(group * 8);
  finalise_norm<Cfg::kThreads>(p.norm, slot, slot, tid, shared + Cfg::kNormAt);
  dev::sync();
  put(group * 8, shared);

  const int row0 = warp / Cfg::kColumnTiles * Cfg::kRows;
  const int column0 = warp % Cfg::kColumnTiles * 16;
  // Columns of the last matrix that are beyond the patch repeat its last one; they are not stored.
  const int reached = column0 + (lane & 15);
  const int column = reached < Cfg::kPatchWidth ? reached : Cfg::kPatchWidth - 1;
  const uint32_t patch =
      shared + (lane >> 4) * Cfg::kGroupPitch + (row0 * Cfg::kPatchWidth + column) * 16;
  const uint32_t weights = shared + Cfg::kWeightsAt + lane * 16;
  float acc[Cfg::kRows][Cfg::kN8][4] = {};
  const int chunks = (p.channels + 15) / 16;
  NOUNROLL for (int chunk = 0; chunk < chunks; ++chunk) {
    const int buffer = chunk & 1;
    const int other = buffer ^ 1;
    const bool more = chunk + 1 < chunks;
    const int c = (chunk + 1) * 16 + group * 8;
    dev::cp_wait<0>();
    dev::sync();
    if (more) {
      request_weights<Cfg>(p, chunk + 1, tid, shared + Cfg::kWeightsAt + other * Cfg::kWeightBytes);
      fetch(c);
    }
    multiply<Cfg>(patch + buffer * Cfg::kPatchBytes, weights + buffer * Cfg::kWeightBytes, acc);
    if (more) {
      put(c, shared + other * Cfg::kPatchBytes);
    }
  }
  dev::pdl_launch();
  dev::sync();
  store_products<Cfg>(acc, row0, column0, lane, shared);
  dev::sync();
  int32_t finite = store_pixels<Cfg>(p, slot, y0, x0, tid, shared);
  UNROLL for (int m = 1; m < 32; m <<= 1) { finite &= dev::shfl_xor(finite, m); }
  const uint32_t flags = shared + Cfg::kNormAt;  // scale and shift have been used
  if (lane == 0) {
    dev::sts32(flags + warp * 4, static_cast<uint32_t>(finite));
  }
  dev::sync();
  if (tid == 0) {
    UNROLL for (int w = 0; w < Cfg::kThreads / 32; ++w) {
      finite &= static_cast<int32_t>(dev::lds32(flags + w * 4));
    }
    dev::store(p.finite + slot * tiles + tile, finite);
  }
}

template <class Cfg>
void launch_output_conv(const OutputConvParams& p, void* stream) {
  launch(output_conv_kernel<Cfg>, Grid{p.slots * output_tiles(p.size)}, Cfg::kThreads,
         Cfg::kNormAt + norm_bytes(p.channels), stream, p, {p.overlap});
}

template <int kTileWidth>
void choose_channels(const OutputConvParams& p, void* stream) {
  switch (p.image_channels) {
    case 1:
      return launch_output_conv<OutputConfig<kTileWidth, 1>>(p, stream);
    case 2:
      return launch_output_conv<OutputConfig<kTileWidth, 2>>(p, stream);
    case 3:
      return launch_output_conv<OutputConfig<kTileWidth, 3>>(p, stream);
    default:
      return launch_output_conv<OutputConfig<kTileWidth, 4>>(p, stream);
  }
}

}  // namespace

void output_conv(const OutputConvParams& p, void* stream) {
  if (p.slots == 0) {
    return;
  }
  CAE_CHECK(p.size >= 16 && p.size % 4 == 0 && p.size <= 4096,
            "size must be a multiple of 4 in [16, 4096], got ", p.size);
  CAE_CHECK(p.channels >= 8 && p.channels % 8 == 0 && p.channels <= 1024,
            "channels must be a multiple of 8 in [8, 1024], got ", p.channels);
  CAE_CHECK(p.norm.channels == p.channels, "norm.channels must be ", p.channels, ", got ",
            p.norm.channels);
  CAE_CHECK(p.image_channels >= 1 && p.image_channels <= kMaxImageChannels,
            "image_channels must be in [1, ", kMaxImageChannels, "], got ", p.image_channels);
  const int64_t blocks = static_cast<int64_t>(p.slots) * output_tiles(p.size);
  const int64_t values = static_cast<int64_t>(p.size) * p.size * p.channels;
  CAE_CHECK(p.slots > 0 && blocks <= INT32_MAX && values <= INT32_MAX, "an output of ", p.slots,
            " x ", p.size, " x ", p.size, " from ", p.channels,
            " channels is too large for one launch");
  CAE_CHECK((p.difference == nullptr) == (p.reference == nullptr),
            "a difference needs a reference, and a reference a difference");
  const ClassifierInput& classifier = p.classifier;
  if (classifier.values != nullptr) {
    CAE_CHECK(classifier.channels == p.image_channels ||
                  (p.image_channels == 1 && classifier.channels == 3),
              "a classifier of ", classifier.channels, " channels cannot take images of ",
              p.image_channels);
    for (int c = 0; c < classifier.channels && classifier.normalise; ++c) {
      CAE_CHECK(classifier.std_dev[c] > 0.0F, "std_dev must be positive, got ",
                classifier.std_dev[c]);
    }
  }
  if (output_tile_width(p.size) == 64) {
    choose_channels<64>(p, stream);
  } else {
    choose_channels<16>(p, stream);
  }
}

}  // namespace cae::cuda
