// SPDX-License-Identifier: Apache-2.0
// Convolution as an implicit matrix product. In channels-last layout with the border in place, the
// values under one kernel row are consecutive, so the product reads the image where it lies: no
// patches are packed. A task is some panels of weights for one chunk of lines of one image; within
// it a panel stays in the second-level cache for all lines. Moments are taken while the outputs are
// cached.
#include <algorithm>

#include "cpu/isa_cpu.h"
#include "cpu/parallel_cpu.h"
#include "ops/conv2d.h"

namespace cae::cpu {
namespace {

void run_task(const KernelTable& table, const ConvPlan& plan, const ConvTask& task,
              const ConvImage& image) {
  const ConvChunk& chunk = plan.chunks[static_cast<size_t>(task.chunk)];
  const ConvPhase& phase = plan.phases[static_cast<size_t>(chunk.phase)];
  const float* in = image.in + phase.in_offset + chunk.line * phase.in_line_stride;
  float* out = image.out + phase.out_offset + chunk.line * phase.out_line_stride;
  for (int64_t i = task.panel; i < task.panel + task.panels; ++i) {
    const ConvPanel& panel = phase.panels[static_cast<size_t>(i)];
    StripArgs strip{};
    strip.a_point_stride = phase.in_point_stride;
    strip.a_segment_stride = phase.in_segment_stride;
    strip.segments = phase.segments;
    strip.segment_length = phase.segment_length;
    strip.b = phase.weights.data() + panel.offset;
    strip.out_point_stride = phase.out_point_stride;
    strip.points = phase.points;
    strip.channels = panel.channels;
    for (int64_t line = 0; line < chunk.lines; ++line) {
      strip.a = in + line * phase.in_line_stride;
      strip.out = out + line * phase.out_line_stride + panel.channel;
      table.strip(strip);
    }
    if (image.partials != nullptr) {
      float* partials = image.partials + task.chunk * 2 * plan.out_channels + panel.channel;
      table.moments({out + panel.channel, phase.out_line_stride, phase.out_point_stride,
                     chunk.lines, phase.points, panel.channels, partials,
                     partials + plan.out_channels});
    }
  }
}

}  // namespace

void pack_panels(const float* rows, int64_t out_channels, ConvPhase& phase) {
  const KernelTable& table = kernels();
  const int64_t depth = phase.segments * phase.segment_length;
  int64_t size = 0;
  for (int64_t channel = 0; channel < out_channels; channel += table.panel_width) {
    const int64_t channels = std::min(table.panel_width, out_channels - channel);
    const int64_t width = channels <= table.vector_width ? table.vector_width : table.panel_width;
    phase.panels.push_back({channel, channels, size});
    size += depth * width;
  }
  phase.weights = AlignedBuffer(size);
  std::fill_n(phase.weights.data(), size, 0.0f);
  for (const ConvPanel& panel : phase.panels) {
    const int64_t width =
        panel.channels <= table.vector_width ? table.vector_width : table.panel_width;
    float* packed = phase.weights.data() + panel.offset;
    for (int64_t c = 0; c < panel.channels; ++c) {
      for (int64_t k = 0; k < depth; ++k) {
        packed[k * width + c] = rows[(panel.channel + c) * depth + k];
      }
    }
  }
}

void conv2d(const ConvPlan& plan, const std::vector<ConvImage>& images) {
  const KernelTable& table = kernels();
  const auto tasks = static_cast<int64_t>(plan.tasks.size());
  parallel_for(tasks * static_cast<int64_t>(images.size()), [&](int64_t i) {
    run_task(table, plan, plan.tasks[static_cast<size_t>(i % tasks)],
             images[static_cast<size_t>(i / tasks)]);
  });
}

}  // namespace cae::cpu
