// SPDX-License-Identifier: Apache-2.0
#include "ops/conv_layer.h"

#include <algorithm>

#include "ops/pad_image.h"

namespace cae {
namespace {

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

/// Whether Winograd's filtering pays. Its weights are 4 (3x3) or 6.25 (4x4) times as large: where
/// no cache holds them, reading them takes as long as the products saved for a few tiles.
bool is_worthwhile(const TensorView<const float>& weight, int64_t height, int64_t width,
                   int64_t stride, int64_t pad) {
  constexpr int64_t kCached = 1 << 18;  // floats: 1 MiB
  const int64_t kernel = weight.dim(2);
  const bool known = (kernel == 3 && stride == 1) || (kernel == 4 && stride == 2);
  if (!known || pad != 1 || height < 2 || width < 2) {
    return false;
  }
  const int64_t tiles = (height / stride + 3) / 4 * ((width / stride + 3) / 4);
  const int64_t transformed = weight.numel() * (kernel == 3 ? 36 : 100) / (kernel * kernel);
  return transformed <= kCached || tiles >= (kernel == 3 ? 5 : 11);
}

}  // namespace

int64_t ConvLayer::scratch_size() const {
  return winograd ? std::max(tiles.input_size() + tiles.product_size() + tiles.rows_size(),
                             edge.strip_size())
                  : 0;
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
      arithmetic == Arithmetic::kFast && is_worthwhile(weight, height, width, stride, pad);
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
  for (const LayerImage& image : images) {
    CAE_CHECK(!(image.source.relu && image.source.residual != nullptr),
              "a layer reads a ReLU or a residual, not both");
    CAE_CHECK((image.stream == nullptr && image.source.residual == nullptr) ||
                  layer.out_height >= layer.height,
              "a layer that halves the image has no stream");
  }
  if (layer.winograd) {
    cpu::run_winograd(layer, images, scratch);
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
