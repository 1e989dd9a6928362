// SPDX-License-Identifier: Apache-2.0
#include "ops/conv_layer.h"

#include <algorithm>

#include "ops/pad_image.h"

namespace cae {
namespace {

constexpr int64_t kFewTiles = 32;  // below, reading the larger weights costs what the sums save
constexpr int64_t kLargeWeights = 1 << 22;  // transformed weights that no cache holds: 16 MiB

void finish_direct(ConvLayer& layer) {
  for (const ConvChunk& chunk : layer.direct.chunks) {
    layer.chunks.push_back(chunk.pixels);
  }
}

void finish_winograd(ConvLayer& layer) {
  for (const WinogradChunk& chunk : layer.tiles.chunks) {
    layer.chunks.push_back(chunk.pixels);
  }
  for (const int64_t pixels : layer.edge.chunk_pixels()) {
    layer.chunks.push_back(pixels);
  }
}

/// Whether Winograd's filtering is worth its larger weights.
bool is_worthwhile(int64_t kernel, int64_t stride, int64_t pad, int64_t height, int64_t width,
                   int64_t weights) {
  if (pad != 1 || height < 2 || width < 2 ||
      !((kernel == 3 && stride == 1) || (kernel == 4 && stride == 2))) {
    return false;
  }
  const int64_t tiles = (height / stride + 3) / 4 * ((width / stride + 3) / 4);
  const int64_t transformed = weights * (kernel == 3 ? 4 : 25) / (kernel == 3 ? 1 : 4);
  return transformed < kLargeWeights || tiles >= kFewTiles;
}

}  // namespace

int64_t ConvLayer::scratch_size() const {
  return winograd ? std::max(tiles.input_size() + tiles.product_size(), edge.strip_size()) : 0;
}

ConvLayer plan_layer(const TensorView<const float>& weight, int64_t height, int64_t width,
                     int64_t stride, int64_t pad, Arithmetic arithmetic) {
  CAE_CHECK(weight.rank() == 4 && weight.dim(2) == weight.dim(3),
            "weight must be [O, C, k, k], got ", shape_string(weight.shape));
  ConvLayer layer;
  layer.height = height;
  layer.width = width;
  layer.channels = weight.dim(1);
  layer.out_channels = weight.dim(0);
  layer.winograd =
      arithmetic == Arithmetic::kFast &&
      is_worthwhile(weight.dim(2), stride, pad, height, width, layer.channels * layer.out_channels);
  if (layer.winograd) {
    layer.tiles = plan_winograd(weight, height, width);
    layer.out_height = layer.tiles.out_height;
    layer.out_width = layer.tiles.out_width;
    finish_winograd(layer);
  } else {
    layer.direct = plan_conv2d(weight, height, width, stride, pad);
    layer.out_height = layer.direct.out_height;
    layer.out_width = layer.direct.out_width;
    finish_direct(layer);
  }
  return layer;
}

ConvLayer plan_upsample_layer(const TensorView<const float>& weight, int64_t height, int64_t width,
                              Arithmetic arithmetic) {
  check_shape(weight.shape, "weight", {"O", "C", 5, 5});
  ConvLayer layer;
  layer.height = height;
  layer.width = width;
  layer.channels = weight.dim(1);
  layer.out_height = 2 * height;
  layer.out_width = 2 * width;
  layer.out_channels = weight.dim(0);
  layer.winograd = arithmetic == Arithmetic::kFast;
  if (layer.winograd) {
    layer.tiles = plan_winograd_upsample(weight, height, width);
    layer.edge = plan_upsample_edge(weight, height, width);
    finish_winograd(layer);
  } else {
    layer.direct = plan_upsample_conv(weight, height, width);
    finish_direct(layer);
  }
  return layer;
}

void run_layer(const ConvLayer& layer, const std::vector<LayerImage>& images, Scratch& scratch) {
  if (layer.winograd) {
    cpu::winograd(layer, images, scratch);
    return;
  }
  std::vector<PadImage> pads;
  std::vector<ConvImage> convs;
  for (const LayerImage& image : images) {
    if (image.source.in != nullptr) {
      pads.push_back({image.source, image.padded, image.stream});
    }
    convs.push_back({image.padded, image.out, image.partials});
  }
  pad_image(layer.direct.in, pads);
  conv2d(layer.direct, convs);
}

}  // namespace cae
