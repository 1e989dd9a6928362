// SPDX-License-Identifier: Apache-2.0
#include "engine/network.h"

namespace cae {
namespace {

std::vector<float> copy(const TensorView<const float>& view) {
  return {view.data, view.data + view.numel()};
}

ConvLayer plan(const WeightMap& weights, const ConvSpec& spec, Arithmetic arithmetic) {
  return plan_layer(weights.at(spec.name + ".weight"), spec.size, spec.size, spec.stride, spec.pad,
                    arithmetic);
}

/// Convolutions whose biases an instance norm takes off again.
std::vector<ConvLayer> unbiased_convs(const WeightMap& weights, const std::vector<ConvSpec>& specs,
                                      Arithmetic arithmetic) {
  std::vector<ConvLayer> layers;
  layers.reserve(specs.size());
  for (const ConvSpec& spec : specs) {
    layers.push_back(plan(weights, spec, arithmetic));
  }
  return layers;
}

/// A 1x1 convolution counts as linear.
LinearPlan read_linear(const WeightMap& weights, const std::string& name) {
  const TensorView<const float>& weight = weights.at(name + ".weight");
  return plan_linear({weight.data, {weight.dim(0), weight.dim(1)}}, weights.at(name + ".bias"));
}

UpsampleLayer read_upsample(const WeightMap& weights, const ConvSpec& spec, int index,
                            Arithmetic arithmetic) {
  const std::string norm = concat("decoder.norm", index);
  return {plan_upsample_layer(weights.at(spec.name + ".weight"), spec.size, spec.size, arithmetic),
          copy(weights.at(spec.name + ".bias")), copy(weights.at(norm + ".gamma")),
          copy(weights.at(norm + ".beta"))};
}

}  // namespace

std::vector<std::vector<const ConvLayer*>> Network::chains() const {
  std::vector<std::vector<const ConvLayer*>> chains(3);
  for (const auto* group : {&individual_convs, &individual_blocks}) {
    for (const ConvLayer& layer : *group) {
      chains[0].push_back(&layer);
    }
  }
  for (const BiasedConv& conv : class_convs) {
    chains[1].push_back(&conv.layer);
  }
  for (size_t i = 1; i < decoder_blocks.size(); ++i) {
    chains[2].push_back(&decoder_blocks[i]);
  }
  for (const UpsampleLayer& upsample : upsamples) {
    chains[2].push_back(&upsample.layer);
  }
  return chains;
}

Network build_network(const NetworkConfig& config, const WeightMap& weights,
                      Arithmetic arithmetic) {
  check_weights(config, weights);
  Network network;
  network.config = config;
  for (const ConvSpec& spec : class_specs(config)) {
    network.class_convs.push_back(
        {plan(weights, spec, arithmetic), copy(weights.at(spec.name + ".bias"))});
  }
  network.class_head = read_linear(weights, "class_encoder.head");
  network.individual_convs = unbiased_convs(weights, individual_specs(config), arithmetic);
  network.individual_blocks =
      unbiased_convs(weights, block_specs(config, "individual_encoder"), arithmetic);
  for (int i = 0; i < 3; ++i) {
    network.modulation.push_back(read_linear(weights, concat("modulation.linear", i)));
  }
  network.decoder_blocks = unbiased_convs(weights, block_specs(config, "decoder"), arithmetic);
  const std::vector<ConvSpec> upsamples = upsample_specs(config);
  for (int i = 0; i < 2; ++i) {
    network.upsamples.push_back(
        read_upsample(weights, upsamples[static_cast<size_t>(i)], i, arithmetic));
  }
  network.out =
      plan_output_conv(weights.at("decoder.out.weight"), weights.at("decoder.out.bias").data,
                       config.image_size, config.image_size, arithmetic);
  return network;
}

}  // namespace cae
