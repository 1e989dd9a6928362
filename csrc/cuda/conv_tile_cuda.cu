// SPDX-License-Identifier: Apache-2.0
#include "cuda/conv_tile_cuda.h"

#include "core/check.h"
#include "cuda/conv_tile_kernel.cuh"
#include "simt/launch.h"

namespace cae::cuda {
namespace {

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
         Config::kNormAt + norm, stream, p);
}

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

void launch_image(const ConvParams& p, void* stream) {
  CAE_CHECK(p.prologue == ConvPrologue::kPlain, "an image is taken as it is");
  if (p.epilogue == ConvEpilogue::kMoments) {
    launch_config<ConvKind::kImage7x7, 64, ConvPrologue::kPlain, ConvEpilogue::kMoments>(p, stream);
  } else {
    launch_config<ConvKind::kImage7x7, 64, ConvPrologue::kPlain, ConvEpilogue::kBiasRelu>(p,
                                                                                          stream);
  }
}

void launch_stride2(const ConvParams& p, void* stream) {
  if (p.prologue == ConvPrologue::kAffineRelu && p.epilogue == ConvEpilogue::kMoments) {
    launch_config<ConvKind::kStride2, 64, ConvPrologue::kAffineRelu, ConvEpilogue::kMoments>(
        p, stream);
  } else {
    CAE_CHECK(p.prologue == ConvPrologue::kPlain && p.epilogue == ConvEpilogue::kBiasRelu,
              "4x4 convolutions take a normalised input and keep moments, or neither");
    launch_config<ConvKind::kStride2, 64, ConvPrologue::kPlain, ConvEpilogue::kBiasRelu>(p, stream);
  }
}

void check_params(const ConvParams& p) {
  constexpr int64_t kMost = INT32_MAX;  // offsets inside one row are 32 bits
  const int64_t pixels = static_cast<int64_t>(p.in_height) * p.in_width;
  CAE_CHECK(p.in_height >= 2 && p.in_width >= 2 && p.out_height >= 1 && p.out_width >= 1,
            "convolution of ", p.in_height, " x ", p.in_width, " pixels");
  CAE_CHECK(pixels * p.in_channels <= kMost, "an image of ", pixels, " pixels and ", p.in_channels,
            " channels is too large for one row");
  CAE_CHECK(p.block_columns == 64 ||
                (p.block_columns == 128 &&
                 (p.kind == ConvKind::kConv3x3 || p.kind == ConvKind::kUpsample) &&
                 conv_pieces(conv_columns(p.epilogue, p.out_channels)) % 2 == 0),
            "block_columns must be 64, or 128 for 3x3 and upsampling where it divides the columns, "
            "got ", p.block_columns);
  CAE_CHECK(p.out_channels % 8 == 0 && p.real_channels <= p.out_channels,
            "out_channels must be a multiple of 8, got ", p.out_channels);
  const bool image = p.kind == ConvKind::kImage7x7;
  CAE_CHECK(image ? p.in_channels >= 1 && p.in_channels <= 4 : p.in_channels % 8 == 0,
            "in_channels is ", p.in_channels);
  CAE_CHECK((p.kind == ConvKind::kUpsample) == (p.epilogue == ConvEpilogue::kShuffle),
            "pixels are shuffled by upsampling only");
}

}  // namespace

void conv_tile(const ConvParams& params, void* stream) {
  check_params(params);
  if (params.rows == 0) {
    return;
  }
  const bool wide = params.block_columns == 128;
  switch (params.kind) {
    case ConvKind::kConv3x3:
      return wide ? launch_moments<128>(params, stream) : launch_moments<64>(params, stream);
    case ConvKind::kStride2:
      return launch_stride2(params, stream);
    case ConvKind::kImage7x7:
      return launch_image(params, stream);
    case ConvKind::kUpsample:
      return wide ? launch_upsample<128>(params, stream) : launch_upsample<64>(params, stream);
  }
}

}  // namespace cae::cuda
