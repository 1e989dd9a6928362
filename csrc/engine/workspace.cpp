// SPDX-License-Identifier: Apache-2.0
#include "engine/workspace.h"

#include <algorithm>

#include "cpu/parallel_cpu.h"

namespace cae {
namespace {

constexpr int64_t kWaveFloats = 8 << 20;  // 32 MiB

/// Floats of the buffers of a slot.
struct SlotSizes {
  int64_t raw[2] = {0, 0};
  int64_t stream = 0;
  int64_t padded = 0;
  int64_t partials = 0;
  int64_t channels = 0;
  int64_t scratch = 0;

  void include(const ConvLayer& layer) {
    padded = std::max(padded, layer.padded_size());
    partials = std::max(partials, layer.partials_size());
    scratch = std::max(scratch, layer.scratch_size());
    channels = std::max({channels, layer.channels, layer.out_channels});
  }
};

SlotSizes slot_sizes(const Network& network) {
  SlotSizes sizes;
  const ConvLayer& first = network.decoder_blocks.front();
  sizes.stream = first.in_size();
  sizes.include(first);
  for (const auto& chain : network.chains()) {
    for (size_t i = 0; i < chain.size(); ++i) {
      sizes.include(*chain[i]);
      sizes.raw[i % 2] = std::max(sizes.raw[i % 2], chain[i]->out_size());
    }
  }
  return sizes;
}

}  // namespace

SharedImage make_shared_image(const Network& network) {
  const ConvLayer& layer = network.decoder_blocks.front();
  return {AlignedBuffer(layer.in_size()), AlignedBuffer(layer.out_size()), {}};
}

Workspace make_workspace(const Network& network, int64_t max_batch) {
  CAE_CHECK(max_batch >= 1, "max_batch must be at least 1, got ", max_batch);
  const NetworkConfig& config = network.config;
  const SlotSizes sizes = slot_sizes(network);
  const int64_t image_floats =
      sizes.raw[0] + sizes.raw[1] + 2 * sizes.stream + sizes.padded + 2 * sizes.stream;
  const int64_t wave = std::clamp<int64_t>(kWaveFloats / image_floats, 1, max_batch);
  Workspace workspace;
  const auto channels = static_cast<size_t>(sizes.channels);
  for (int64_t i = 0; i < wave; ++i) {
    WorkspaceSlot slot;
    for (int side = 0; side < 2; ++side) {
      slot.raw[side] = AlignedBuffer(sizes.raw[side]);
      slot.stream[side] = AlignedBuffer(sizes.stream);
    }
    slot.padded = AlignedBuffer(sizes.padded);
    slot.partials = AlignedBuffer(sizes.partials);
    slot.scale.resize(channels);
    slot.shift.resize(channels);
    workspace.slots.push_back(std::move(slot));
    workspace.shared.push_back(make_shared_image(network));
  }
  workspace.scratch.reserve(std::max(sizes.scratch, network.out.scratch_size()),
                            cpu::get_num_threads());
  workspace.ones.assign(channels, 1.0f);
  workspace.zeros.assign(channels, 0.0f);
  workspace.features = AlignedBuffer(wave * config.code_channels());
  for (AlignedBuffer& hidden : workspace.hidden) {
    hidden = AlignedBuffer(wave * config.modulation_width);
  }
  workspace.modulation = AlignedBuffer(wave * config.modulation_numel());
  return workspace;
}

}  // namespace cae
