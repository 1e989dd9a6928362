// SPDX-License-Identifier: Apache-2.0
#include "engine/network_spec.h"

#include <set>

namespace cae {
namespace {

void check_range(const char* field, int64_t value, int64_t least, int64_t most) {
  CAE_CHECK(value >= least && value <= most, field, " must be in ", least, "..", most, ", got ",
            value);
}

/// Name and shape of a tensor.
struct TensorSpec {
  std::string name;
  std::vector<int64_t> shape;
};

void add_conv(std::vector<TensorSpec>& tensors, const ConvSpec& spec) {
  tensors.push_back(
      {spec.name + ".weight", {spec.out_channels, spec.in_channels, spec.kernel, spec.kernel}});
  tensors.push_back({spec.name + ".bias", {spec.out_channels}});
}

void add_linear(std::vector<TensorSpec>& tensors, const std::string& name, int64_t out,
                int64_t in) {
  tensors.push_back({name + ".weight", {out, in}});
  tensors.push_back({name + ".bias", {out}});
}

std::vector<TensorSpec> tensor_specs(const NetworkConfig& config) {
  std::vector<TensorSpec> tensors;
  for (const ConvSpec& spec : class_specs(config)) {
    add_conv(tensors, spec);
  }
  add_conv(tensors, {"class_encoder.head", config.code_dim, config.code_channels(), 1, 1, 1, 0});
  for (const auto& specs : {individual_specs(config), block_specs(config, "individual_encoder")}) {
    for (const ConvSpec& spec : specs) {
      add_conv(tensors, spec);
    }
  }
  const int64_t hidden = config.modulation_width;
  add_linear(tensors, "modulation.linear0", hidden, config.code_dim);
  add_linear(tensors, "modulation.linear1", hidden, hidden);
  add_linear(tensors, "modulation.linear2", config.modulation_numel(), hidden);
  for (const ConvSpec& spec : block_specs(config, "decoder")) {
    add_conv(tensors, spec);
  }
  for (const ConvSpec& spec : upsample_specs(config)) {
    add_conv(tensors, spec);
  }
  for (int i = 0; i < 2; ++i) {
    const std::string norm = concat("decoder.norm", i);
    const int64_t channels = config.code_channels() >> (i + 1);
    tensors.push_back({norm + ".gamma", {channels}});
    tensors.push_back({norm + ".beta", {channels}});
  }
  add_conv(tensors, output_spec(config));
  return tensors;
}

}  // namespace

std::vector<ConvSpec> class_specs(const NetworkConfig& config) {
  const int64_t w = config.channels;
  std::vector<ConvSpec> specs = {
      {"class_encoder.conv0", w, config.in_channels, 7, config.image_size, 1, 3}};
  const int64_t widths[] = {w, 2 * w, 4 * w, 4 * w, 4 * w};
  int64_t size = config.image_size;
  for (int i = 1; i <= 4; ++i) {
    specs.push_back({concat("class_encoder.conv", i), widths[i], widths[i - 1], 4, size, 2, 1});
    size /= 2;
  }
  return specs;
}

std::vector<ConvSpec> individual_specs(const NetworkConfig& config) {
  const int64_t w = config.channels;
  const int64_t size = config.image_size;
  return {{"individual_encoder.conv0", w, config.in_channels, 7, size, 1, 3},
          {"individual_encoder.conv1", 2 * w, w, 4, size, 2, 1},
          {"individual_encoder.conv2", 4 * w, 2 * w, 4, size / 2, 2, 1}};
}

std::vector<ConvSpec> block_specs(const NetworkConfig& config, const std::string& part) {
  std::vector<ConvSpec> specs;
  const int64_t w = config.code_channels();
  for (int64_t r = 0; r < config.num_blocks; ++r) {
    for (int i = 0; i < 2; ++i) {
      specs.push_back({concat(part, ".block", r, ".conv", i), w, w, 3, config.code_size(), 1, 1});
    }
  }
  return specs;
}

std::vector<ConvSpec> upsample_specs(const NetworkConfig& config) {
  const int64_t w = config.code_channels();
  const int64_t size = config.code_size();
  return {{"decoder.up0", w / 2, w, 5, size, 1, 2},
          {"decoder.up1", w / 4, w / 2, 5, 2 * size, 1, 2}};
}

ConvSpec output_spec(const NetworkConfig& config) {
  return {"decoder.out", config.in_channels, config.channels, 7, config.image_size, 1, 3};
}

void check_config(const NetworkConfig& config) {
  constexpr int64_t kLargest = 1 << 16;  // keeps every product of sizes far from overflow
  check_range("image_size", config.image_size, 16, kLargest);
  CAE_CHECK(config.image_size % 4 == 0, "image_size must be a multiple of 4, got ",
            config.image_size);
  check_range("in_channels", config.in_channels, 1, 4);
  check_range("channels", config.channels, 1, kLargest);
  check_range("num_blocks", config.num_blocks, 1, 1024);
  check_range("code_dim", config.code_dim, 1, kLargest);
  check_range("modulation_width", config.modulation_width, 1, kLargest);
}

void check_weights(const NetworkConfig& config, const WeightMap& weights) {
  check_config(config);
  std::string problems;
  const auto complain = [&problems](const std::string& problem) {
    problems += (problems.empty() ? "" : "; ") + problem;
  };
  std::set<std::string> known;
  for (const TensorSpec& tensor : tensor_specs(config)) {
    known.insert(tensor.name);
    const auto found = weights.find(tensor.name);
    if (found == weights.end()) {
      complain(tensor.name + " is missing");
    } else if (found->second.shape != tensor.shape) {
      complain(tensor.name + " must be " + shape_string(tensor.shape) + ", got " +
               shape_string(found->second.shape));
    }
  }
  for (const auto& entry : weights) {
    if (known.count(entry.first) == 0) {
      complain(entry.first + " is unknown");
    }
  }
  CAE_CHECK(problems.empty(), "weights do not fit the configuration: ", problems);
}

}  // namespace cae
