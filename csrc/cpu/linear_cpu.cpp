// SPDX-License-Identifier: Apache-2.0
// The convolution's inner loop with rows as points. A task is a few panels of output features, for
// all rows, so that each panel of weights is read from memory once.
#include <algorithm>

#include "cpu/isa_cpu.h"
#include "cpu/parallel_cpu.h"
#include "ops/linear.h"

namespace cae::cpu {
namespace {

constexpr int64_t kPanelsPerTask = 8;

void run_panel(const KernelTable& table, const LinearPlan& plan, const ConvPanel& panel,
               const float* in, int64_t rows, bool relu, float* out) {
  StripArgs strip{};
  strip.a = in;
  strip.a_point_stride = plan.in_features;
  strip.a_segment_stride = 0;
  strip.segments = 1;
  strip.segment_length = plan.in_features;
  strip.b = plan.phase.weights.data() + panel.offset;
  strip.out = out + panel.channel;
  strip.out_point_stride = plan.out_features;
  strip.points = rows;
  strip.channels = panel.channels;
  table.strip(strip);
  const float* bias = plan.bias.data() + panel.channel;
  for (int64_t m = 0; m < rows; ++m) {
    float* row = strip.out + m * plan.out_features;
    for (int64_t c = 0; c < panel.channels; ++c) {
      const float value = row[c] + bias[c];
      row[c] = relu && 0.0f > value ? 0.0f : value;
    }
  }
}

}  // namespace

void linear(const LinearPlan& plan, const float* in, int64_t rows, bool relu, float* out) {
  if (rows == 0) {
    return;
  }
  const KernelTable& table = kernels();
  const auto panels = static_cast<int64_t>(plan.phase.panels.size());
  parallel_for((panels + kPanelsPerTask - 1) / kPanelsPerTask, [&](int64_t task) {
    const int64_t last = std::min((task + 1) * kPanelsPerTask, panels);
    for (int64_t i = task * kPanelsPerTask; i < last; ++i) {
      run_panel(table, plan, plan.phase.panels[static_cast<size_t>(i)], in, rows, relu, out);
    }
  });
}

}  // namespace cae::cpu
