// SPDX-License-Identifier: Apache-2.0
#include "ops/conv2d.h"

#include <algorithm>

#include "core/ceil_div.h"
#include "ops/upsample_taps.h"

namespace cae {
namespace {

constexpr int64_t kChunkFloats = 96 * 1024;  // input of a chunk: 384 KiB, beside a panel in L2
constexpr int64_t kChunkPixels = 1024;       // bounds the sequential sums of moments
constexpr int64_t kTaskProducts = 1 << 20;   // tens of microseconds, many times what a task costs
constexpr int64_t kPhaseTasks = 32;          // wanted of one image, to keep as many cores busy
constexpr int64_t kTaskChannels = 32;        // assumed per task, whatever the machine's panels

/// Lines of a chunk: what fits the cache, or less where a small image would make too few tasks.
int64_t chunk_lines(const ConvPhase& phase, int64_t out_channels) {
  const int64_t by_input = kChunkFloats / std::max<int64_t>(1, phase.in_line_stride);
  const int64_t by_pixels = kChunkPixels / std::max<int64_t>(1, phase.points);
  const int64_t lines = std::clamp<int64_t>(std::min(by_input, by_pixels), 1, phase.lines);
  const int64_t chunks = ceil_div(kPhaseTasks, ceil_div(out_channels, kTaskChannels));
  const int64_t line_products =
      phase.points * phase.segments * phase.segment_length * std::min(out_channels, kTaskChannels);
  const int64_t by_tasks =
      std::max(ceil_div(phase.lines, chunks), ceil_div(kTaskProducts, line_products));
  return std::min(lines, by_tasks);
}

/// Cuts each phase into chunks of lines, and those into tasks of panels.
void cut_tasks(ConvPlan& plan) {
  for (size_t i = 0; i < plan.phases.size(); ++i) {
    const ConvPhase& phase = plan.phases[i];
    const auto panels = static_cast<int64_t>(phase.panels.size());
    const int64_t lines = chunk_lines(phase, plan.out_channels);
    for (int64_t line = 0; line < phase.lines; line += lines) {
      const int64_t count = std::min(lines, phase.lines - line);
      const auto chunk = static_cast<int64_t>(plan.chunks.size());
      plan.chunks.push_back({static_cast<int64_t>(i), line, count, count * phase.points});
      const int64_t products = count * phase.points * phase.segments * phase.segment_length *
                               ceil_div(plan.out_channels, panels);
      const int64_t group = std::clamp<int64_t>(ceil_div(kTaskProducts, products), 1, panels);
      for (int64_t panel = 0; panel < panels; panel += group) {
        plan.tasks.push_back({chunk, panel, std::min(group, panels - panel)});
      }
    }
  }
}

void check_image(const PaddedShape& in) {
  const int64_t least = in.padding == Padding::kReflect ? in.pad + 1 : 1;
  CAE_CHECK(in.height >= least && in.width >= least, "a convolution with padding ", in.pad,
            " needs an image of at least ", least, " x ", least, ", got ", in.height, " x ",
            in.width);
}

// -- upsampling ------------------------------------------------------------------------------

ConvPhase upsample_phase(const ConvPlan& plan, const AxisTaps& vertical,
                         const AxisTaps& horizontal) {
  ConvPhase phase;
  const int64_t channels = plan.in.channels;
  const int64_t row = plan.in.row_stride();
  const int64_t out_row = plan.out_width * plan.out_channels;
  phase.lines = vertical.count;
  phase.points = horizontal.count;
  phase.in_offset = (vertical.begin + vertical.first_tap) * row +
                    (horizontal.begin + horizontal.first_tap) * channels;
  phase.in_line_stride = row;
  phase.in_point_stride = channels;
  phase.out_offset = (2 * vertical.begin + vertical.parity) * out_row +
                     (2 * horizontal.begin + horizontal.parity) * plan.out_channels;
  phase.out_line_stride = 2 * out_row;
  phase.out_point_stride = 2 * plan.out_channels;
  if (phase.points == 1) {  // a column: walk down it, so that tiles stay wide
    std::swap(phase.lines, phase.points);
    std::swap(phase.in_line_stride, phase.in_point_stride);
    std::swap(phase.out_line_stride, phase.out_point_stride);
  }
  phase.in_segment_stride = row;
  phase.segments = vertical.taps;
  phase.segment_length = horizontal.taps * channels;
  return phase;
}

}  // namespace

ConvPlan plan_conv2d(const TensorView<const float>& weight, int64_t height, int64_t width,
                     int64_t stride, int64_t pad) {
  CAE_CHECK(weight.rank() == 4 && weight.dim(2) == weight.dim(3),
            "weight must be [O, C, k, k], got ", shape_string(weight.shape));
  CAE_CHECK(weight.numel() >= 1, "weight must not be empty, got ", shape_string(weight.shape));
  CAE_CHECK(stride >= 1, "stride must be at least 1, got ", stride);
  CAE_CHECK(pad >= 0, "pad must be at least 0, got ", pad);
  const int64_t out_channels = weight.dim(0);
  const int64_t channels = weight.dim(1);
  const int64_t kernel = weight.dim(2);
  ConvPlan plan;
  plan.in = {height, width, channels, pad, Padding::kReflect};
  check_image(plan.in);
  CAE_CHECK(height + 2 * pad >= kernel && width + 2 * pad >= kernel, "a kernel of ", kernel, " x ",
            kernel, " needs a padded image of that size, got ", height + 2 * pad, " x ",
            width + 2 * pad);
  plan.out_height = (height + 2 * pad - kernel) / stride + 1;
  plan.out_width = (width + 2 * pad - kernel) / stride + 1;
  plan.out_channels = out_channels;

  ConvPhase phase;
  phase.lines = plan.out_height;
  phase.points = plan.out_width;
  phase.in_line_stride = stride * plan.in.row_stride();
  phase.in_point_stride = stride * channels;
  phase.in_segment_stride = plan.in.row_stride();
  phase.segments = kernel;
  phase.segment_length = kernel * channels;
  phase.out_line_stride = plan.out_width * out_channels;
  phase.out_point_stride = out_channels;

  std::vector<float> rows(static_cast<size_t>(weight.numel()));
  float* row = rows.data();
  for (int64_t o = 0; o < out_channels; ++o) {
    for (int64_t tap = 0; tap < kernel * kernel; ++tap) {
      for (int64_t c = 0; c < channels; ++c) {
        *row++ = weight.data[(o * channels + c) * kernel * kernel + tap];
      }
    }
  }
  cpu::pack_panels(rows.data(), out_channels, phase);
  plan.phases.push_back(std::move(phase));
  cut_tasks(plan);
  return plan;
}

ConvPlan plan_upsample_conv(const TensorView<const float>& weight, int64_t height, int64_t width) {
  check_shape(weight.shape, "weight", {"O", "C", 5, 5});
  CAE_CHECK(weight.numel() >= 1, "weight must not be empty, got ", shape_string(weight.shape));
  CAE_CHECK(height >= 2 && width >= 2, "an upsampling convolution needs an image of at least 2 x 2",
            ", got ", height, " x ", width);
  ConvPlan plan;
  plan.in = {height, width, weight.dim(1), 1, Padding::kReplicate};
  plan.out_height = 2 * height;
  plan.out_width = 2 * width;
  plan.out_channels = weight.dim(0);
  for (const AxisOutput row :
       {AxisOutput::kFirst, AxisOutput::kEven, AxisOutput::kOdd, AxisOutput::kLast}) {
    for (const AxisOutput column :
         {AxisOutput::kFirst, AxisOutput::kEven, AxisOutput::kOdd, AxisOutput::kLast}) {
      const AxisTaps vertical = axis_taps(row, height);
      const AxisTaps horizontal = axis_taps(column, width);
      ConvPhase phase = upsample_phase(plan, vertical, horizontal);
      const std::vector<float> rows = sum_taps(weight, vertical, horizontal);
      cpu::pack_panels(rows.data(), plan.out_channels, phase);
      plan.phases.push_back(std::move(phase));
    }
  }
  cut_tasks(plan);
  return plan;
}

void conv2d(const ConvPlan& plan, const std::vector<ConvImage>& images) {
  cpu::conv2d(plan, images);
}

}  // namespace cae
