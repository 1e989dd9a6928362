// SPDX-License-Identifier: Apache-2.0
// The decoder. Its first residual convolution sees only the individual code, so the path points of
// an image share it and its moments.
#include <algorithm>
#include <map>

#include "cpu/parallel_cpu.h"
#include "engine/engine.h"
#include "engine/layer_chain.h"
#include "ops/pad_image.h"
#include "ops/path_codes.h"

namespace cae {
namespace {

/// Rows of one point's modulation table: shift, then scale, of each residual convolution.
struct Modulation {
  const float* row;
  int64_t channels;
  const float* shift(size_t conv) const { return row + static_cast<int64_t>(conv) * 2 * channels; }
  const float* scale(size_t conv) const { return shift(conv) + channels; }
};

void layer_norm(const UpsampleLayer& layer, LayerChain& chain) {
  for (int64_t i = 0; i < chain.count(); ++i) {
    WorkspaceSlot& slot = chain.slot(i);
    layer_norm_affine(merge_moments(layer.layer, slot.partials.data()), layer.bias.data(),
                      layer.gamma.data(), layer.beta.data(), slot.scale.data(), slot.shift.data());
  }
}

}  // namespace

void Engine::share_wave(const std::vector<const float*>& individual,
                        const std::vector<SharedImage*>& images) {
  const ConvLayer& layer = network_.decoder_blocks.front();
  std::vector<PadPlanes> pads;
  std::vector<LayerImage> convs;
  for (size_t i = 0; i < images.size(); ++i) {
    WorkspaceSlot& slot = workspace_.slots[i];
    pads.push_back({individual[i], images[i]->stream.data()});
    const ConvSource source{images[i]->stream.data(), workspace_.ones.data(),
                            workspace_.zeros.data(), nullptr, false};
    convs.push_back(
        {source, nullptr, slot.padded.data(), images[i]->first.data(), slot.partials.data()});
  }
  pad_planes({layer.height, layer.width, layer.channels, 0, Padding::kReflect}, pads);
  run_layer(layer, convs, workspace_.scratch);
  for (size_t i = 0; i < images.size(); ++i) {
    images[i]->moments = merge_moments(layer, convs[i].partials);
  }
}

std::vector<SharedImage> Engine::share(const TensorView<const float>& individual) {
  check_individual(individual.shape);
  const int64_t count = individual.dim(0);
  std::vector<SharedImage> images;
  for (int64_t i = 0; i < count; ++i) {
    images.push_back(make_shared_image(network_));
  }
  for (int64_t first = 0; first < count; first += workspace_.wave()) {
    const cpu::PoolTurn turn;
    std::vector<const float*> codes;
    std::vector<SharedImage*> wave;
    for (int64_t i = first; i < std::min(first + workspace_.wave(), count); ++i) {
      codes.push_back(individual.data + i * config().individual_numel());
      wave.push_back(&images[static_cast<size_t>(i)]);
    }
    share_wave(codes, wave);
  }
  return images;
}

void Engine::decode_wave(const SharedImage* const* points, int64_t count, const float* class_code,
                         float* images) {
  const auto& blocks = network_.decoder_blocks;
  linear(network_.modulation[0], class_code, count, true, workspace_.hidden[0].data());
  linear(network_.modulation[1], workspace_.hidden[0].data(), count, true,
         workspace_.hidden[1].data());
  linear(network_.modulation[2], workspace_.hidden[1].data(), count, false,
         workspace_.modulation.data());

  LayerChain chain(workspace_, count);
  std::vector<ConvSource> sources;
  for (size_t conv = 0; conv < blocks.size(); ++conv) {
    if (conv > 0) {
      chain.run(blocks[conv], sources, true, conv % 2 == 0);
    }
    for (int64_t i = 0; i < count; ++i) {
      WorkspaceSlot& slot = chain.slot(i);
      const Modulation modulation{workspace_.modulation.data() + i * config().modulation_numel(),
                                  config().code_channels()};
      adain_affine(
          conv == 0 ? points[i]->moments : merge_moments(blocks[conv], slot.partials.data()),
          modulation.scale(conv), modulation.shift(conv), slot.scale.data(), slot.shift.data());
    }
    sources = conv % 2 == 0 ? chain.sources(true) : chain.residual_sources();
    for (size_t i = 0; i < sources.size() && conv < 2; ++i) {
      (conv == 0 ? sources[i].in : sources[i].residual) =
          conv == 0 ? points[i]->first.data() : points[i]->stream.data();
    }
  }
  for (const UpsampleLayer& upsample : network_.upsamples) {
    chain.run(upsample.layer, sources, true);
    layer_norm(upsample, chain);
    sources = chain.sources(true);
  }
  output_conv(network_.out, sources, images, workspace_.scratch);
}

void Engine::decode_points(const std::vector<const SharedImage*>& points, const float* class_code,
                           float* images) {
  const auto count = static_cast<int64_t>(points.size());
  for (int64_t first = 0; first < count; first += workspace_.wave()) {
    const cpu::PoolTurn turn;
    decode_wave(points.data() + first, std::min(workspace_.wave(), count - first),
                class_code + first * config().code_dim, images + first * config().image_numel());
  }
}

void Engine::decode(const TensorView<const float>& individual,
                    const TensorView<const float>& class_code,
                    const TensorView<const int32_t>& image_index, const TensorView<float>& images) {
  check_individual(individual.shape);
  check_shape(class_code.shape, "class_code", {"M", config().code_dim});
  check_shape(image_index.shape, "image_index", {class_code.dim(0)});
  check_image_index(image_index, individual.dim(0));
  const int64_t count = class_code.dim(0);
  for (int64_t first = 0; first < count; first += workspace_.wave()) {
    const cpu::PoolTurn turn;
    const int64_t wave = std::min(workspace_.wave(), count - first);
    std::map<int32_t, SharedImage*> distinct;
    std::vector<const float*> codes;
    std::vector<SharedImage*> shared;
    std::vector<const SharedImage*> points;
    for (int64_t m = first; m < first + wave; ++m) {
      const int32_t index = image_index.data[m];
      SharedImage*& image = distinct[index];
      if (image == nullptr) {
        image = &workspace_.shared[shared.size()];
        shared.push_back(image);
        codes.push_back(individual.data + index * config().individual_numel());
      }
      points.push_back(image);
    }
    share_wave(codes, shared);
    decode_wave(points.data(), wave, class_code.data + first * config().code_dim,
                images.data + first * config().image_numel());
  }
}

}  // namespace cae
