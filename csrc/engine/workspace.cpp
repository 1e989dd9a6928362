// SPDX-License-Identifier: Apache-2.0
#include "engine/workspace.h"

#include <algorithm>

namespace cae {
namespace {

constexpr int64_t kWaveFloats = 8 << 20;  // 32 MiB

}  // namespace

SharedImage make_shared_image(const Network& network) {
  const ConvPlan& plan = network.decoder_blocks.front();
  return {AlignedBuffer(plan.in.size()), AlignedBuffer(plan.out_size()), {}};
}

Workspace make_workspace(const Network& network, int64_t max_batch) {
  CAE_CHECK(max_batch >= 1, "max_batch must be at least 1, got ", max_batch);
  const NetworkConfig& config = network.config;
  int64_t padded = 0;
  int64_t raw = 0;
  int64_t partials = 0;
  int64_t channels = 0;
  for (const ConvPlan* plan : network.plans()) {
    padded = std::max(padded, plan->in.size());
    raw = std::max(raw, plan->out_size());
    partials = std::max(partials, plan->partials_size());
    channels = std::max(channels, plan->out_channels);
  }
  const ConvPlan& first = network.decoder_blocks.front();
  const int64_t stream = first.in.size();
  const int64_t image_floats = padded + raw + stream + first.in.size() + first.out_size();
  const int64_t wave = std::clamp<int64_t>(kWaveFloats / image_floats, 1, max_batch);
  Workspace workspace;
  for (int64_t i = 0; i < wave; ++i) {
    workspace.slots.push_back({AlignedBuffer(stream), AlignedBuffer(padded), AlignedBuffer(raw),
                               AlignedBuffer(partials),
                               std::vector<float>(static_cast<size_t>(channels)),
                               std::vector<float>(static_cast<size_t>(channels))});
    workspace.shared.push_back(make_shared_image(network));
  }
  workspace.ones.assign(static_cast<size_t>(channels), 1.0f);
  workspace.features = AlignedBuffer(wave * config.code_channels());
  for (AlignedBuffer& hidden : workspace.hidden) {
    hidden = AlignedBuffer(wave * config.modulation_width);
  }
  workspace.modulation = AlignedBuffer(wave * config.modulation_numel());
  return workspace;
}

void run_conv(const ConvPlan& plan, ConvInput input, bool moments,
              std::vector<WorkspaceSlot>& slots, int64_t count) {
  std::vector<ConvImage> images;
  for (int64_t i = 0; i < count; ++i) {
    WorkspaceSlot& slot = slots[static_cast<size_t>(i)];
    const AlignedBuffer& in = input == ConvInput::kStream ? slot.stream : slot.padded;
    images.push_back({in.data(), slot.raw.data(), moments ? slot.partials.data() : nullptr});
  }
  conv2d(plan, images);
}

}  // namespace cae
