// SPDX-License-Identifier: Apache-2.0
// Configurations and the names and shapes of weights: check_config and check_weights accept exactly
// what build_network can build, and an engine made of it runs.
#include <algorithm>
#include <iterator>
#include <map>
#include <memory>
#include <sstream>

#include "engine/engine.h"
#include "fuzz_input.h"

namespace {

using cae::NetworkConfig;
using cae::TensorView;
using cae::WeightMap;
using cae::fuzz::Bytes;

NetworkConfig read_config(Bytes& bytes) {
  NetworkConfig config{16, 1, 1, 1, 1, 1};
  config.image_size = bytes.byte() % 4 == 3 ? bytes.size() : 16 + 4 * bytes.small(0, 1);
  for (int64_t* field : {&config.in_channels, &config.channels, &config.num_blocks,
                         &config.code_dim, &config.modulation_width}) {
    *field = bytes.byte() % 8 == 7 ? bytes.size() : bytes.small(1, 3);
  }
  return config;
}

/// What check_weights says of some weights, complaint by complaint.
std::vector<std::string> complaints(const NetworkConfig& config, const WeightMap& weights) {
  std::vector<std::string> all;
  try {
    cae::check_weights(config, weights);
  } catch (const std::invalid_argument& error) {
    const std::string text = error.what();
    size_t begin = text.find(": ");
    while (begin != std::string::npos) {
      begin += 2;
      const size_t end = text.find("; ", begin);
      all.push_back(text.substr(begin, end == std::string::npos ? end : end - begin));
      begin = end;
    }
  }
  return all;
}

/// The tensors that a configuration wants, without data. The errors tell: one names what is
/// missing, the next one what shapes it should have.
WeightMap wanted_weights(const NetworkConfig& config) {
  WeightMap weights;
  for (const std::string& text : complaints(config, {})) {
    weights[text.substr(0, text.find(" is missing"))] = {};
  }
  for (const std::string& text : complaints(config, WeightMap(weights))) {
    const size_t end = text.find(" must be [");
    CAE_FUZZ_CHECK(end != std::string::npos);
    std::istringstream sizes(text.substr(end + 10));
    std::vector<int64_t>& shape = weights[text.substr(0, end)].shape;
    char separator = ',';
    for (int64_t size = 0; separator == ',' && sizes >> size; sizes >> separator) {
      shape.push_back(size);
    }
  }
  CAE_FUZZ_CHECK(weights.size() > 40);
  return weights;
}

/// Takes away, adds or changes some. Returns whether any was.
bool spoil(Bytes& bytes, WeightMap& weights) {
  const int64_t changes = std::max<int64_t>(0, bytes.small(-6, 3));
  for (int64_t i = 0; i < changes; ++i) {
    auto entry = weights.begin();
    std::advance(entry, bytes.raw<uint16_t>() % weights.size());
    const uint8_t kind = bytes.byte();
    if (kind % 4 == 0 && weights.size() > 1) {
      weights.erase(entry);
    } else if (kind % 4 == 1) {
      std::string name = entry->first;
      name[bytes.byte() % name.size()] = static_cast<char>(kind);
      weights[name + "\x01"] = entry->second;
    } else if (kind % 4 == 2 || entry->second.shape.empty()) {
      entry->second.shape.push_back(bytes.size());
    } else {
      entry->second.shape[bytes.byte() % entry->second.shape.size()] += 1 + bytes.byte();
    }
  }
  return changes > 0;
}

void run_engine(Bytes& bytes, const NetworkConfig& config, WeightMap weights) {
  std::map<std::string, std::vector<float>> storage;
  for (auto& entry : weights) {
    std::vector<float>& values = storage[entry.first];
    values.resize(static_cast<size_t>(entry.second.numel()));
    for (size_t i = 0; i < values.size(); ++i) {
      values[i] = static_cast<float>(static_cast<int64_t>(i * 37 % 19) - 9) / 32.0F;
    }
    values[bytes.byte() % values.size()] = bytes.number();
    entry.second.data = values.data();
  }
  const auto engine = std::make_shared<cae::Engine>(config, weights, bytes.small(1, 3));
  const int64_t count = bytes.small(0, 2);
  std::vector<float> images(static_cast<size_t>(count * config.image_numel()), 0.25F);
  std::fill_n(images.begin(), images.empty() ? 0 : 1, bytes.number());
  std::vector<float> individual(static_cast<size_t>(count * config.individual_numel()));
  std::vector<float> codes(static_cast<size_t>(count * config.code_dim));
  const std::vector<int64_t> individual_shape{count, config.code_channels(), config.code_size(),
                                              config.code_size()};
  engine->encode({images.data(), {count, config.in_channels, config.image_size, config.image_size}},
                 {individual.data(), individual_shape}, {codes.data(), {count, config.code_dim}});
  const int64_t points = bytes.small(0, 3);
  std::vector<int32_t> index;
  std::vector<int32_t> step;
  for (int64_t m = 0; m < points; ++m) {
    const bool wild = bytes.byte() % 16 == 15;
    index.push_back(wild ? bytes.raw<int32_t>() : static_cast<int32_t>(bytes.small(0, 1)));
    step.push_back(wild ? bytes.raw<int32_t>() : static_cast<int32_t>(bytes.small(0, 8)));
  }
  std::vector<float> decoded(static_cast<size_t>(points * config.image_numel()));
  const int64_t grid = bytes.byte() % 8 == 7 ? bytes.raw<int64_t>() : 8;
  const bool done = cae::fuzz::accepts([&] {
    cae::DecodeSession session(engine, {individual.data(), individual_shape},
                               {codes.data(), {count, 1, config.code_dim}}, grid);
    session.decode(
        {index.data(), {points}}, {step.data(), {points}},
        {decoded.data(), {points, config.in_channels, config.image_size, config.image_size}});
  });
  for (size_t m = 0; done && m < index.size(); ++m) {
    CAE_FUZZ_CHECK(index[m] >= 0 && index[m] < count && step[m] >= 0 && step[m] <= grid);
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  Bytes bytes(data, size);
  const NetworkConfig config = read_config(bytes);
  if (!cae::fuzz::accepts([&] { cae::check_config(config); })) {
    return 0;
  }
  CAE_FUZZ_CHECK(config.image_size >= 16 && config.image_size % 4 == 0 && config.channels >= 1);
  if (config.num_blocks > 64) {  // nothing but a long list of names
    return 0;
  }
  WeightMap weights = wanted_weights(config);
  const bool spoiled = spoil(bytes, weights);
  const bool accepted = cae::fuzz::accepts([&] { cae::check_weights(config, weights); });
  CAE_FUZZ_CHECK(accepted || spoiled);
  const int64_t largest = std::max({config.image_size / 8, config.channels, config.num_blocks,
                                    config.code_dim, config.modulation_width / 4});
  if (accepted && largest <= 4) {
    run_engine(bytes, config, weights);
  }
  return 0;
}
