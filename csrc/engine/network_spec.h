// SPDX-License-Identifier: Apache-2.0
// The networks of a configuration: layers, names and shapes of their tensors.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "core/tensor_view.h"

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

/// Layer sizes of one convolution.
struct ConvSpec {
  std::string name;
  int64_t out_channels;
  int64_t in_channels;
  int64_t kernel;
  int64_t size;  // height and width of the input
  int64_t stride;
  int64_t pad;
};

/// conv0 .. conv4 of the class encoder.
std::vector<ConvSpec> class_specs(const NetworkConfig& config);
/// conv0 .. conv2 of the individual encoder.
std::vector<ConvSpec> individual_specs(const NetworkConfig& config);
/// Both convolutions of each residual block of "individual_encoder" or "decoder".
std::vector<ConvSpec> block_specs(const NetworkConfig& config, const std::string& part);
/// up0, up1: sizes before enlarging.
std::vector<ConvSpec> upsample_specs(const NetworkConfig& config);
ConvSpec output_spec(const NetworkConfig& config);

/// Looks at names and shapes only; the views need no data. Throws std::invalid_argument listing
/// every tensor that is missing, unknown or mis-shaped, or naming a field that is out of range.
void check_weights(const NetworkConfig& config, const WeightMap& weights);

}  // namespace cae
