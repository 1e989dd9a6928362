// SPDX-License-Identifier: Apache-2.0
// The three networks as planned layers of the CPU: packed weights by place.
#pragma once

#include <vector>

#include "engine/network_spec.h"
#include "ops/conv_layer.h"
#include "ops/linear.h"
#include "ops/output_conv.h"

namespace cae {

/// Convolution followed by bias and ReLU (class encoder).
struct BiasedConv {
  ConvLayer layer;
  std::vector<float> bias;
};

/// Upsampling convolution followed by bias, layer norm and ReLU (decoder).
struct UpsampleLayer {
  ConvLayer layer;
  std::vector<float> bias;
  std::vector<float> gamma;
  std::vector<float> beta;
};

/// Convolutions before an instance norm carry no bias: the norm's mean takes it off again.
struct Network {
  NetworkConfig config;
  std::vector<BiasedConv> class_convs;  // conv0 .. conv4
  LinearPlan class_head;
  std::vector<ConvLayer> individual_convs;   // conv0 .. conv2
  std::vector<ConvLayer> individual_blocks;  // two per block
  std::vector<LinearPlan> modulation;        // linear0 .. linear2
  std::vector<ConvLayer> decoder_blocks;     // two per block
  std::vector<UpsampleLayer> upsamples;      // up0, up1
  OutputConv out;

  /// The convolutions in the order in which one reads what the one before wrote: individual
  /// encoder, class encoder, and the decoder behind the one that its path points share.
  std::vector<std::vector<const ConvLayer*>> chains() const;
};

/// Plans all layers and packs their weights. Throws std::invalid_argument listing every tensor
/// that is missing, unknown or mis-shaped.
Network build_network(const NetworkConfig& config, const WeightMap& weights, Arithmetic arithmetic);

}  // namespace cae
