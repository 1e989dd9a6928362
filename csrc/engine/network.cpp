// SPDX-License-Identifier: Apache-2.0
#include "engine/network.h"

#include <set>

namespace cae {
namespace {

/// Looks tensors up by name, remembers which were asked for and collects what is wrong. Layers of
/// tensors without data are left unplanned.
class WeightReader {
 public:
  explicit WeightReader(const WeightMap& weights) : weights_(weights) {}

  TensorView<const float> get(const std::string& name, const std::vector<int64_t>& shape) {
    asked_.insert(name);
    const auto found = weights_.find(name);
    if (found == weights_.end()) {
      complain(name + " is missing");
    } else if (found->second.shape != shape) {
      complain(name + " must be " + shape_string(shape) + ", got " +
               shape_string(found->second.shape));
    } else {
      return found->second;
    }
    return {nullptr, {}};
  }

  std::vector<float> vector(const std::string& name, int64_t size) {
    const TensorView<const float> view = get(name, {size});
    return view.data == nullptr ? std::vector<float>()
                                : std::vector<float>(view.data, view.data + size);
  }

  /// Throws if any tensor was missing, mis-shaped or never asked for.
  void finish() {
    for (const auto& entry : weights_) {
      if (asked_.count(entry.first) == 0) {
        complain(entry.first + " is unknown");
      }
    }
    CAE_CHECK(problems_.empty(), "weights do not fit the configuration: ", problems_);
  }

 private:
  void complain(const std::string& problem) {
    problems_ += (problems_.empty() ? "" : "; ") + problem;
  }

  const WeightMap& weights_;
  std::set<std::string> asked_;
  std::string problems_;
};

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

TensorView<const float> read_weight(WeightReader& reader, const ConvSpec& spec) {
  return reader.get(spec.name + ".weight",
                    {spec.out_channels, spec.in_channels, spec.kernel, spec.kernel});
}

ConvLayer plan(const TensorView<const float>& weight, const ConvSpec& spec, Arithmetic arithmetic) {
  return plan_layer(weight, spec.size, spec.size, spec.stride, spec.pad, arithmetic);
}

/// Convolutions whose biases an instance norm takes off again.
std::vector<ConvLayer> unbiased_convs(WeightReader& reader, const std::vector<ConvSpec>& specs,
                                      Arithmetic arithmetic) {
  std::vector<ConvLayer> layers;
  for (const ConvSpec& spec : specs) {
    const TensorView<const float> weight = read_weight(reader, spec);
    const auto bias = reader.vector(spec.name + ".bias", spec.out_channels);
    if (weight.data != nullptr) {
      layers.push_back(plan(weight, spec, arithmetic));
    }
  }
  return layers;
}

BiasedConv biased_conv(WeightReader& reader, const ConvSpec& spec, Arithmetic arithmetic) {
  BiasedConv conv;
  const TensorView<const float> weight = read_weight(reader, spec);
  conv.bias = reader.vector(spec.name + ".bias", spec.out_channels);
  if (weight.data != nullptr) {
    conv.layer = plan(weight, spec, arithmetic);
  }
  return conv;
}

/// A 1x1 convolution counts as linear: `tail` holds the extra dimensions.
LinearPlan read_linear(WeightReader& reader, const std::string& name, int64_t out, int64_t in,
                       const std::vector<int64_t>& tail = {}) {
  std::vector<int64_t> shape = {out, in};
  shape.insert(shape.end(), tail.begin(), tail.end());
  const TensorView<const float> weight = reader.get(name + ".weight", shape);
  const TensorView<const float> bias = reader.get(name + ".bias", {out});
  if (weight.data == nullptr || bias.data == nullptr) {
    return {};
  }
  return plan_linear({weight.data, {out, in}}, bias);
}

UpsampleLayer read_upsample(WeightReader& reader, const NetworkConfig& config, int index,
                            Arithmetic arithmetic) {
  const int64_t in_channels = config.code_channels() >> index;
  const int64_t out_channels = in_channels / 2;
  const int64_t size = config.code_size() << index;
  const std::string name = concat("decoder.up", index);
  const std::string norm = concat("decoder.norm", index);
  UpsampleLayer layer;
  const auto weight = reader.get(name + ".weight", {out_channels, in_channels, 5, 5});
  layer.bias = reader.vector(name + ".bias", out_channels);
  layer.gamma = reader.vector(norm + ".gamma", out_channels);
  layer.beta = reader.vector(norm + ".beta", out_channels);
  if (weight.data != nullptr) {
    layer.layer = plan_upsample_layer(weight, size, size, arithmetic);
  }
  return layer;
}

OutputConv read_output(WeightReader& reader, const NetworkConfig& config, Arithmetic arithmetic) {
  const auto weight = reader.get("decoder.out.weight", {config.in_channels, config.channels, 7, 7});
  const auto bias = reader.vector("decoder.out.bias", config.in_channels);
  if (weight.data == nullptr || bias.empty()) {
    return {};
  }
  return plan_output_conv(weight, bias.data(), config.image_size, config.image_size, arithmetic);
}

void check_range(const char* field, int64_t value, int64_t least, int64_t most) {
  CAE_CHECK(value >= least && value <= most, field, " must be in ", least, "..", most, ", got ",
            value);
}

Network read_network(const NetworkConfig& config, WeightReader& reader, Arithmetic arithmetic) {
  Network network;
  network.config = config;
  for (const ConvSpec& spec : class_specs(config)) {
    network.class_convs.push_back(biased_conv(reader, spec, arithmetic));
  }
  network.class_head =
      read_linear(reader, "class_encoder.head", config.code_dim, config.code_channels(), {1, 1});
  network.individual_convs = unbiased_convs(reader, individual_specs(config), arithmetic);
  network.individual_blocks =
      unbiased_convs(reader, block_specs(config, "individual_encoder"), arithmetic);
  const int64_t hidden = config.modulation_width;
  network.modulation.push_back(read_linear(reader, "modulation.linear0", hidden, config.code_dim));
  network.modulation.push_back(read_linear(reader, "modulation.linear1", hidden, hidden));
  network.modulation.push_back(
      read_linear(reader, "modulation.linear2", config.modulation_numel(), hidden));
  network.decoder_blocks = unbiased_convs(reader, block_specs(config, "decoder"), arithmetic);
  for (int i = 0; i < 2; ++i) {
    network.upsamples.push_back(read_upsample(reader, config, i, arithmetic));
  }
  network.out = read_output(reader, config, arithmetic);
  return network;
}

}  // namespace

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

void check_weights(const NetworkConfig& config, const WeightMap& weights) {
  check_config(config);
  WeightMap shapes;
  for (const auto& entry : weights) {
    shapes.emplace(entry.first, TensorView<const float>(nullptr, entry.second.shape));
  }
  WeightReader reader(shapes);
  read_network(config, reader, Arithmetic::kFast);
  reader.finish();
}

Network build_network(const NetworkConfig& config, const WeightMap& weights,
                      Arithmetic arithmetic) {
  check_weights(config, weights);
  WeightReader reader(weights);
  return read_network(config, reader, arithmetic);
}

}  // namespace cae
