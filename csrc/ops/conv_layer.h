// SPDX-License-Identifier: Apache-2.0
// A convolution layer of the network, by whichever algorithm suits it. It normalises its input
// while loading it and leaves the moments of its output.
#pragma once

#include <cstdint>
#include <vector>

#include "core/aligned_buffer.h"
#include "core/tensor_view.h"
#include "ops/arithmetic.h"
#include "ops/conv2d.h"
#include "ops/conv_source.h"
#include "ops/scratch.h"
#include "ops/upsample_edge.h"
#include "ops/winograd.h"

namespace cae {

struct ConvLayer {
  int64_t height = 0;  // of the input
  int64_t width = 0;
  int64_t channels = 0;
  int64_t out_height = 0;
  int64_t out_width = 0;
  int64_t out_channels = 0;
  bool winograd = false;
  ConvPlan direct;              // unless winograd
  WinogradPlan tiles;           // if winograd
  UpsampleEdge edge;            // if winograd and upsampling, else without sides
  std::vector<int64_t> chunks;  // outputs whose moments are taken together

  int64_t in_size() const { return height * width * channels; }
  int64_t out_pixels() const { return out_height * out_width; }
  int64_t out_size() const { return out_pixels() * out_channels; }
  /// Floats of scratch per image: the padded input of a direct convolution.
  int64_t padded_size() const { return winograd ? 0 : direct.in.size(); }
  /// Floats that a thread works in, see Scratch.
  int64_t scratch_size() const;
  /// Floats of partial moments per image: [chunks][mean, M2][out_channels].
  int64_t partials_size() const { return static_cast<int64_t>(chunks.size()) * 2 * out_channels; }
};

/// What a layer reads and writes for one image; all memory is distinct.
struct LayerImage {
  ConvSource source;          // source.in null (direct layers): `padded` holds the padded input
  float* stream = nullptr;    // where the source's values are kept, [H, W, C], or null; stride 1
  float* padded = nullptr;    // padded_size() floats of scratch
  float* out = nullptr;       // [out_height, out_width, out_channels]
  float* partials = nullptr;  // partials_size() floats, or null if no moments are wanted
};

/// Square convolution, weight [O, C, k, k], with symmetric reflect padding.
/// Throws std::invalid_argument if the weight's shape or the image size does not fit.
ConvLayer plan_layer(const TensorView<const float>& weight, int64_t height, int64_t width,
                     int64_t stride, int64_t pad, Arithmetic arithmetic);

/// Nearest upsampling x2, reflect padding 2, 5x5 convolution; weight [O, C, 5, 5].
ConvLayer plan_upsample_layer(const TensorView<const float>& weight, int64_t height, int64_t width,
                              Arithmetic arithmetic);

/// Runs a layer on each image. The caller holds a PoolTurn where others use the scratch; not from
/// within a task. Throws std::invalid_argument if a source has both a ReLU and a residual.
void run_layer(const ConvLayer& layer, const std::vector<LayerImage>& images, Scratch& scratch);

namespace cpu {
void run_winograd(const ConvLayer& layer, const std::vector<LayerImage>& images, Scratch& scratch);
}  // namespace cpu

}  // namespace cae
