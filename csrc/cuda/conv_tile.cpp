// SPDX-License-Identifier: Apache-2.0
#include "core/check.h"
#include "cuda/conv_tile_launch.h"

namespace cae::cuda {
namespace {

void check_params(const ConvParams& p) {
  constexpr int64_t kMost = INT32_MAX;  // offsets inside one row are 32 bits
  const int64_t pixels = static_cast<int64_t>(p.in_height) * p.in_width;
  CAE_CHECK(p.in_height >= 2 && p.in_width >= 2 && p.out_height >= 1 && p.out_width >= 1,
            "convolution of ", p.in_height, " x ", p.in_width, " pixels");
  CAE_CHECK(pixels * p.in_channels <= kMost, "an image of ", pixels, " pixels and ", p.in_channels,
            " channels is too large for one row");
  CAE_CHECK(conv_tile_runs(p, p.tile), "no tile of ", p.tile.pixels, " pixels x ", p.tile.columns,
            " columns for ", conv_columns(p.epilogue, p.out_channels),
            " columns of this kind of convolution by this path");
  CAE_CHECK(p.out_channels % 8 == 0 && p.real_channels <= p.out_channels,
            "out_channels must be a multiple of 8, got ", p.out_channels);
  const bool image = p.kind == ConvKind::kImage7x7;
  CAE_CHECK(image ? p.in_channels >= 1 && p.in_channels <= 4 : p.in_channels % 8 == 0,
            "in_channels is ", p.in_channels);
  CAE_CHECK((p.kind == ConvKind::kUpsample) == (p.epilogue == ConvEpilogue::kShuffle),
            "pixels are shuffled by upsampling only");
  CAE_CHECK(p.path == ConvPath::kPortable || !image, "a 7x7 of an image takes the portable path");
  CAE_CHECK(p.path == ConvPath::kPortable || conv_wgmma_built(),
            "this build has no kernels for compute capability 9.0 (sm_90a)");
  CAE_CHECK(p.cluster == 1 || p.cluster == 2 || p.cluster == 4, "cluster must be 1, 2 or 4, got ",
            p.cluster);
}

void conv_wgmma(const ConvParams& p, void* stream) {
  if (p.kind == ConvKind::kStride2) {
    conv_wgmma_stride2(p, stream);
  } else if (p.tile == ConvTile{128, 256}) {
    conv_wgmma_widest(p, stream);
  } else if (p.tile == ConvTile{64, 128}) {
    conv_wgmma_half(p, stream);
  } else if (p.tile == ConvTile{128, 128}) {
    conv_wgmma_wide(p, stream);
  } else {
    conv_wgmma_narrow(p, stream);
  }
}

}  // namespace

bool conv_wgmma_built() {
#ifdef CAE_WITH_SM90A
  return true;
#else
  return false;
#endif
}

bool conv_tile_runs(const ConvParams& p, const ConvTile& tile) {
  if (tile == ConvTile{128, 64}) {
    return true;
  }
  if (p.kind != ConvKind::kConv3x3 && p.kind != ConvKind::kUpsample) {
    return false;
  }
  const bool wide = tile == ConvTile{128, 128};
  const bool hopper = tile == ConvTile{64, 128} || tile == ConvTile{128, 256};
  const int pieces = conv_pieces(conv_columns(p.epilogue, p.out_channels));
  return (wide || (hopper && p.path == ConvPath::kWgmma)) &&
         pieces % (tile.columns / kConvColumns) == 0;
}

void conv_tile(const ConvParams& params, void* stream) {
  check_params(params);
  if (params.rows == 0) {
    return;
  }
  if (params.path == ConvPath::kWgmma) {
    return conv_wgmma(params, stream);
  }
  switch (params.kind) {
    case ConvKind::kConv3x3:
    case ConvKind::kUpsample:
      return params.tile.columns == 128 ? conv_tile_wide(params, stream)
                                        : conv_tile_narrow(params, stream);
    case ConvKind::kStride2:
      return conv_tile_stride2(params, stream);
    case ConvKind::kImage7x7:
      return conv_tile_image(params, stream);
  }
}

}  // namespace cae::cuda
