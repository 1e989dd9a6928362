// SPDX-License-Identifier: Apache-2.0
// The three networks as planned layers: configuration, weights by canonical name, packed plans.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "core/tensor_view.h"
#include "ops/conv_layer.h"
#include "ops/linear.h"
#include "ops/output_conv.h"

namespace cae {

/// The fields of CAEConfig that fix shapes.
struct NetworkConfig {
  int64_t image_size = 256;
  int64_t in_channels = 3;
  int64_t channels = 64;
  int64_t num_blocks = 6;
  int64_t code_dim = 8;
  int64_t modulation_width = 256;

  int64_t code_channels() const { return 4 * channels; }
  int64_t code_size() const { return image_size / 4; }
  int64_t image_numel() const { return in_channels * image_size * image_size; }
  int64_t individual_numel() const { return code_channels() * code_size() * code_size(); }
  /// Shift and scale of every residual convolution of the decoder.
  int64_t modulation_numel() const { return num_blocks * 2 * 2 * code_channels(); }
};

/// Throws std::invalid_argument naming the first field that is out of range.
void check_config(const NetworkConfig& config);

using WeightMap = std::map<std::string, TensorView<const float>>;

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

/// Looks at names and shapes only; the views need no data. Throws std::invalid_argument listing
/// every tensor that is missing, unknown or mis-shaped.
void check_weights(const NetworkConfig& config, const WeightMap& weights);

/// Plans all layers and packs their weights. Throws std::invalid_argument listing every tensor
/// that is missing, unknown or mis-shaped.
Network build_network(const NetworkConfig& config, const WeightMap& weights, Arithmetic arithmetic);

}  // namespace cae
