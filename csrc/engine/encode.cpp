// SPDX-License-Identifier: Apache-2.0
// The two encoders.
#include <algorithm>

#include "cpu/parallel_cpu.h"
#include "engine/engine.h"
#include "engine/layer_chain.h"
#include "ops/pad_image.h"

namespace cae {
namespace {

/// Instance norm of the last layer's outputs.
void normalise(const ConvLayer& layer, LayerChain& chain) {
  for (int64_t i = 0; i < chain.count(); ++i) {
    WorkspaceSlot& slot = chain.slot(i);
    instance_norm_affine(merge_moments(layer, slot.partials.data()), slot.scale.data(),
                         slot.shift.data());
  }
}

/// The first layer's sources: it finds its padded input in place.
std::vector<ConvSource> load_images(const ConvLayer& layer, const float* images,
                                    LayerChain& chain) {
  std::vector<PadPlanes> pads;
  for (int64_t i = 0; i < chain.count(); ++i) {
    pads.push_back({images + i * layer.in_size(), chain.slot(i).padded.data()});
  }
  pad_planes(layer.direct.in, pads);
  return std::vector<ConvSource>(static_cast<size_t>(chain.count()));
}

}  // namespace

void Engine::encode(const TensorView<const float>& images, const TensorView<float>& individual,
                    const TensorView<float>& class_code) {
  check_images(images.shape);
  const int64_t count = images.dim(0);
  for (int64_t first = 0; first < count; first += workspace_.wave()) {
    const cpu::PoolTurn turn;
    const int64_t wave = std::min(workspace_.wave(), count - first);
    const float* from = images.data + first * config().image_numel();
    encode_individual_wave(from, wave, individual.data + first * config().individual_numel());
    encode_class_wave(from, wave, class_code.data + first * config().code_dim);
  }
}

void Engine::encode_class(const TensorView<const float>& images,
                          const TensorView<float>& class_code) {
  check_images(images.shape);
  const int64_t count = images.dim(0);
  for (int64_t first = 0; first < count; first += workspace_.wave()) {
    const cpu::PoolTurn turn;
    encode_class_wave(images.data + first * config().image_numel(),
                      std::min(workspace_.wave(), count - first),
                      class_code.data + first * config().code_dim);
  }
}

void Engine::encode_individual_wave(const float* images, int64_t count, float* individual) {
  LayerChain chain(workspace_, count);
  const auto& convs = network_.individual_convs;
  const auto& blocks = network_.individual_blocks;
  for (size_t i = 0; i < convs.size(); ++i) {
    chain.run(convs[i], i == 0 ? load_images(convs[0], images, chain) : chain.sources(true), true);
    normalise(convs[i], chain);
  }
  for (size_t i = 0; i < blocks.size(); ++i) {
    const bool first_of_block = i % 2 == 0;
    chain.run(blocks[i], first_of_block && i > 0 ? chain.residual_sources() : chain.sources(true),
              true, first_of_block);
    normalise(blocks[i], chain);
  }
  const ConvLayer& last = blocks.back();
  source_planes({last.out_height, last.out_width, last.out_channels, 0, Padding::kReflect},
                chain.residual_sources(), individual, workspace_.scratch);
}

void Engine::encode_class_wave(const float* images, int64_t count, float* class_code) {
  LayerChain chain(workspace_, count);
  const auto& convs = network_.class_convs;
  for (size_t i = 0; i < convs.size(); ++i) {
    std::vector<ConvSource> sources =
        i == 0 ? load_images(convs[0].layer, images, chain) : chain.sources(true);
    for (size_t n = 0; i > 0 && n < sources.size(); ++n) {
      sources[n].scale = workspace_.ones.data();
      sources[n].shift = convs[i - 1].bias.data();
    }
    chain.run(convs[i].layer, sources, false);
  }
  const ConvLayer& last = convs.back().layer;
  std::vector<const float*> raws;
  for (const ConvSource& source : chain.sources(true)) {
    raws.push_back(source.in);
  }
  // the mean over pixels and the 1x1 head are both linear, so the mean goes first
  relu_mean({last.out_height, last.out_width, last.out_channels, 0, Padding::kReflect}, raws,
            convs.back().bias.data(), workspace_.features.data());
  linear(network_.class_head, workspace_.features.data(), count, false, class_code);
}

}  // namespace cae
