// SPDX-License-Identifier: Apache-2.0
// Convolution of padded channels-last images, planned once per layer and run on many images.
//
//   out[y, x, o] = sum over i, j, c of in[y * stride + i, x * stride + j, c] * weight[o, c, i, j]
//
// No bias: what follows each convolution is an affine map per channel, which takes the bias up.
// A plan is a list of phases; each fills a regular grid of output pixels with its own weights from
// the same padded image. A plain convolution is one phase; an upsampling one has sixteen.
#pragma once

#include <cstdint>
#include <vector>

#include "core/aligned_buffer.h"
#include "core/tensor_view.h"

namespace cae {

enum class Padding { kReflect, kReplicate };

/// Image in channels-last layout with a border of `pad` pixels: [H + 2 pad, W + 2 pad, C].
struct PaddedShape {
  int64_t height = 0;  // without the border
  int64_t width = 0;
  int64_t channels = 0;
  int64_t pad = 0;
  Padding padding = Padding::kReflect;

  int64_t row_stride() const { return (width + 2 * pad) * channels; }
  int64_t size() const { return (height + 2 * pad) * row_stride(); }
  int64_t interior() const { return pad * row_stride() + pad * channels; }
};

/// Eight, sixteen or thirty-two output channels whose weights lie together (widths of the machine).
struct ConvPanel {
  int64_t channel = 0;   // first output channel
  int64_t channels = 0;  // valid ones
  int64_t offset = 0;    // in ConvPhase::weights
};

/// A grid of output pixels, lines x points, and what each reads: `segments` runs of
/// `segment_length` consecutive floats. Offsets and strides are in floats.
struct ConvPhase {
  int64_t lines = 0;
  int64_t points = 0;
  int64_t in_offset = 0;
  int64_t in_line_stride = 0;
  int64_t in_point_stride = 0;
  int64_t in_segment_stride = 0;
  int64_t segments = 0;
  int64_t segment_length = 0;
  int64_t out_offset = 0;
  int64_t out_line_stride = 0;
  int64_t out_point_stride = 0;
  std::vector<ConvPanel> panels;
  AlignedBuffer weights;
};

/// Lines of one phase whose moments are taken together. Depends on the layer only, never on the
/// number of threads or images: moments are rounded chunk by chunk.
struct ConvChunk {
  int64_t phase = 0;
  int64_t line = 0;
  int64_t lines = 0;
  int64_t pixels = 0;
};

/// What one thread computes at a time: some panels of one chunk. Fixed with the plan as well.
struct ConvTask {
  int64_t chunk = 0;
  int64_t panel = 0;
  int64_t panels = 0;
};

struct ConvPlan {
  PaddedShape in;
  int64_t out_height = 0;
  int64_t out_width = 0;
  int64_t out_channels = 0;
  std::vector<ConvPhase> phases;
  std::vector<ConvChunk> chunks;
  std::vector<ConvTask> tasks;
};

/// What conv2d reads and writes for one image.
struct ConvImage {
  const float* in = nullptr;  // plan.in.size() floats
  float* out = nullptr;       // [out_height, out_width, out_channels]
  float* partials = nullptr;  // moments, [chunks][mean, M2][out_channels], or null
};

/// Plan of a square convolution: weight [O, C, k, k], symmetric reflect padding `pad`, any stride.
/// Throws std::invalid_argument if the weight's shape or the image size does not fit.
ConvPlan plan_conv2d(const TensorView<const float>& weight, int64_t height, int64_t width,
                     int64_t stride, int64_t pad);

/// Plan of [nearest upsampling x2, reflect padding 2, 5x5 convolution] on the low-resolution image,
/// weight [O, C, 5, 5]. The image must carry a *replicated* border of one pixel (plan.in says so).
///
/// Each of the 2 x 2 output phases is a 3x3 convolution with summed weights, 36 instead of 100
/// products per low-resolution pixel; the outermost ring of outputs has its own sums.
ConvPlan plan_upsample_conv(const TensorView<const float>& weight, int64_t height, int64_t width);

/// Runs a plan on each image. All pointers of an image are distinct memory.
void conv2d(const ConvPlan& plan, const std::vector<ConvImage>& images);

namespace cpu {
void conv2d(const ConvPlan& plan, const std::vector<ConvImage>& images);

/// Packs weights [O, taps of the phase in (segment, k) order] into panels of this machine's width.
/// `rows` is [O][segments * segment_length].
void pack_panels(const float* rows, int64_t out_channels, ConvPhase& phase);
}  // namespace cpu

}  // namespace cae
