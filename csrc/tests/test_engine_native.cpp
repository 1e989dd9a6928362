// SPDX-License-Identifier: Apache-2.0
// The engine on small models of awkward sizes, for the sanitizers: values are compared with the
// specification by the Python tests, here with each other (alone and in a batch, threads,
// sessions).
#include <cmath>
#include <cstdint>
#include <map>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "check_test.h"
#include "cpu/parallel_cpu.h"
#include "engine/engine.h"
#include "ops/difference_saliency.h"
#include "search/flip_search_host.h"

namespace {

using cae::DecodeSession;
using cae::Engine;
using cae::NetworkConfig;
using cae::TensorView;

std::mt19937 generator(20240607);

std::vector<float> random_values(int64_t count, float scale) {
  std::normal_distribution<float> normal(0.0F, scale);
  std::vector<float> values(static_cast<size_t>(count));
  for (float& value : values) {
    value = normal(generator);
  }
  return values;
}

/// Owns the random weights of a configuration.
class RandomWeights {
 public:
  explicit RandomWeights(const NetworkConfig& config) {
    const int64_t w = config.channels;
    const int64_t wide = 4 * w;
    const int64_t hidden = config.modulation_width;
    add_conv("class_encoder.conv0", w, config.in_channels, 7);
    add_conv("class_encoder.conv1", 2 * w, w, 4);
    add_conv("class_encoder.conv2", wide, 2 * w, 4);
    add_conv("class_encoder.conv3", wide, wide, 4);
    add_conv("class_encoder.conv4", wide, wide, 4);
    add_conv("class_encoder.head", config.code_dim, wide, 1);
    add_conv("individual_encoder.conv0", w, config.in_channels, 7);
    add_conv("individual_encoder.conv1", 2 * w, w, 4);
    add_conv("individual_encoder.conv2", wide, 2 * w, 4);
    for (int64_t block = 0; block < config.num_blocks; ++block) {
      for (const char* part : {"individual_encoder", "decoder"}) {
        for (const char* conv : {".conv0", ".conv1"}) {
          add_conv(std::string(part) + ".block" + std::to_string(block) + conv, wide, wide, 3);
        }
      }
    }
    add_linear("modulation.linear0", hidden, config.code_dim);
    add_linear("modulation.linear1", hidden, hidden);
    add_linear("modulation.linear2", config.num_blocks * 4 * wide, hidden);
    add_conv("decoder.up0", 2 * w, wide, 5);
    add_conv("decoder.up1", w, 2 * w, 5);
    for (const auto& [name, size] : {std::pair("0", 2 * w), std::pair("1", w)}) {
      add(std::string("decoder.norm") + name + ".gamma", {size}, 1.0F);
      add(std::string("decoder.norm") + name + ".beta", {size}, 1.0F);
    }
    add_conv("decoder.out", config.in_channels, w, 7);
  }

  const cae::WeightMap& map() const { return map_; }

 private:
  void add(const std::string& name, const std::vector<int64_t>& shape, float scale) {
    int64_t count = 1;
    for (const int64_t size : shape) {
      count *= size;
    }
    std::vector<float>& values = storage_[name] = random_values(count, scale);
    map_[name] = TensorView<const float>(values.data(), shape);
  }

  void add_conv(const std::string& name, int64_t out, int64_t in, int64_t kernel) {
    const auto fan_in = static_cast<float>(in * kernel * kernel);
    add(name + ".weight", {out, in, kernel, kernel}, std::sqrt(2.0F / fan_in));
    add(name + ".bias", {out}, 0.1F);
  }

  void add_linear(const std::string& name, int64_t out, int64_t in) {
    add(name + ".weight", {out, in}, std::sqrt(2.0F / static_cast<float>(in)));
    add(name + ".bias", {out}, 0.1F);
  }

  std::map<std::string, std::vector<float>> storage_;
  cae::WeightMap map_;
};

bool all_finite(const std::vector<float>& values) {
  for (const float value : values) {
    if (!std::isfinite(value)) {
      return false;
    }
  }
  return !values.empty();
}

std::vector<float> slice(const std::vector<float>& values, int64_t index, int64_t size) {
  const auto first = values.begin() + index * size;
  return {first, first + size};
}

struct Codes {
  std::vector<float> individual;
  std::vector<float> class_code;
};

/// An engine with vectors for arguments.
class Model {
 public:
  Model(const NetworkConfig& config, const RandomWeights& weights, int64_t max_batch)
      : config_(config), engine_(std::make_shared<Engine>(config, weights.map(), max_batch)) {}

  Codes encode(const std::vector<float>& images) const {
    const int64_t count = static_cast<int64_t>(images.size()) / config_.image_numel();
    Codes codes;
    codes.individual.resize(static_cast<size_t>(count * config_.individual_numel()));
    codes.class_code.resize(static_cast<size_t>(count * config_.code_dim));
    engine_->encode({images.data(), image_shape(count)},
                    {codes.individual.data(), individual_shape(count)},
                    {codes.class_code.data(), {count, config_.code_dim}});
    return codes;
  }

  std::vector<float> decode(const Codes& codes, const std::vector<float>& class_code,
                            const std::vector<int32_t>& image_index) const {
    const auto points = static_cast<int64_t>(image_index.size());
    const int64_t count = static_cast<int64_t>(codes.class_code.size()) / config_.code_dim;
    std::vector<float> images(static_cast<size_t>(points * config_.image_numel()));
    engine_->decode({codes.individual.data(), individual_shape(count)},
                    {class_code.data(), {points, config_.code_dim}}, {image_index.data(), {points}},
                    {images.data(), image_shape(points)});
    return images;
  }

  DecodeSession session(const Codes& codes, const std::vector<float>& vertices,
                        int64_t grid) const {
    const int64_t count = static_cast<int64_t>(codes.class_code.size()) / config_.code_dim;
    const int64_t per_path =
        count == 0 ? 2 : static_cast<int64_t>(vertices.size()) / (count * config_.code_dim);
    return {engine_,
            {codes.individual.data(), individual_shape(count)},
            {vertices.data(), {count, per_path, config_.code_dim}},
            grid};
  }

  std::vector<float> decode(DecodeSession& session, const std::vector<int32_t>& image_index,
                            const std::vector<int32_t>& step) const {
    const auto points = static_cast<int64_t>(image_index.size());
    std::vector<float> images(static_cast<size_t>(points * config_.image_numel()));
    session.decode({image_index.data(), {points}}, {step.data(), {points}},
                   {images.data(), image_shape(points)});
    return images;
  }

  const NetworkConfig& config() const { return config_; }

 private:
  std::vector<int64_t> image_shape(int64_t count) const {
    return {count, config_.in_channels, config_.image_size, config_.image_size};
  }
  std::vector<int64_t> individual_shape(int64_t count) const {
    return {count, config_.code_channels(), config_.code_size(), config_.code_size()};
  }

  NetworkConfig config_;
  std::shared_ptr<Engine> engine_;
};

/// Vertices [N, 2, D]: from each image's class code to the next image's.
std::vector<float> ring_of_paths(const Codes& codes, int64_t count, int64_t code_dim) {
  std::vector<float> vertices;
  for (int64_t i = 0; i < count; ++i) {
    for (const int64_t end : {i, (i + 1) % count}) {
      const std::vector<float> code = slice(codes.class_code, end, code_dim);
      vertices.insert(vertices.end(), code.begin(), code.end());
    }
  }
  return vertices;
}

void test_results_do_not_depend_on_company(const NetworkConfig& config) {
  constexpr int64_t kImages = 3;
  const RandomWeights weights(config);
  const std::vector<float> images = random_values(kImages * config.image_numel(), 0.4F);
  cae::cpu::set_num_threads(1);
  const Model reference(config, weights, 16);
  const Codes codes = reference.encode(images);
  const std::vector<int32_t> index{2, 0, 1, 2, 0};
  const std::vector<float> points =
      random_values(static_cast<int64_t>(index.size()) * config.code_dim, 1.0F);
  const std::vector<float> decoded = reference.decode(codes, points, index);
  CAE_TEST_CHECK(all_finite(codes.individual) && all_finite(codes.class_code));
  CAE_TEST_CHECK(all_finite(decoded));
  for (const float value : decoded) {
    CAE_TEST_CHECK(std::fabs(value) <= 1.0F);
  }

  for (const int threads : {2, 3}) {
    for (const int64_t max_batch : {1, 2, 16}) {
      cae::cpu::set_num_threads(threads);
      const Model model(config, weights, max_batch);
      const Codes again = model.encode(images);
      CAE_TEST_CHECK(again.individual == codes.individual);
      CAE_TEST_CHECK(again.class_code == codes.class_code);
      CAE_TEST_CHECK(model.decode(codes, points, index) == decoded);
    }
  }
  const Codes alone = reference.encode(slice(images, 1, config.image_numel()));
  CAE_TEST_CHECK(alone.individual == slice(codes.individual, 1, config.individual_numel()));
  CAE_TEST_CHECK(alone.class_code == slice(codes.class_code, 1, config.code_dim));

  const std::vector<float> vertices = ring_of_paths(codes, kImages, config.code_dim);
  DecodeSession session = reference.session(codes, vertices, 8);
  const std::vector<float> ends = reference.decode(session, {0, 1, 0}, {0, 0, 8});
  std::vector<float> end_codes;
  for (const int64_t image : {0, 1, 1}) {
    const std::vector<float> code = slice(codes.class_code, image, config.code_dim);
    end_codes.insert(end_codes.end(), code.begin(), code.end());
  }
  CAE_TEST_CHECK(ends == reference.decode(codes, end_codes, {0, 1, 0}));
}

void test_nothing() {
  const NetworkConfig config{16, 1, 2, 1, 3, 8};
  const RandomWeights weights(config);
  const Model model(config, weights, 4);
  const Codes none = model.encode({});
  CAE_TEST_CHECK(none.individual.empty() && model.decode(none, {}, {}).empty());
  DecodeSession session = model.session(none, {}, 4);
  CAE_TEST_CHECK(model.decode(session, {}, {}).empty());
}

/// Encode, search and saliency as an explanation runs them, from several threads on one engine.
void test_explanations_from_several_threads() {
  constexpr int64_t kImages = 3;
  constexpr int32_t kGrid = 16;
  const NetworkConfig config{16, 1, 2, 1, 3, 8};
  const RandomWeights weights(config);
  const Model model(config, weights, 2);
  const std::vector<float> images = random_values(kImages * config.image_numel(), 0.4F);
  cae::cpu::set_num_threads(2);

  // A "classifier" that looks at the brightness of two halves.
  const auto classify = [&config](const std::vector<float>& pictures) {
    std::vector<float> logits;
    for (int64_t i = 0; i * config.image_numel() < static_cast<int64_t>(pictures.size()); ++i) {
      const std::vector<float> picture = slice(pictures, i, config.image_numel());
      float sums[2] = {0.0F, 0.0F};
      for (size_t j = 0; j < picture.size(); ++j) {
        sums[2 * j / picture.size()] += picture[j];
      }
      logits.insert(logits.end(), {sums[0], sums[1]});
    }
    return logits;
  };
  const auto explain = [&] {
    const Codes codes = model.encode(images);
    const std::vector<float> logits = classify(images);
    std::vector<int32_t> source;
    for (size_t i = 0; i < kImages; ++i) {
      source.push_back(logits[2 * i + 1] > logits[2 * i]);
    }
    cae::search::FlipSearch search(source, std::vector<int32_t>(kImages, -1),
                                   {2, kGrid, 4, 2, 0.0});
    DecodeSession session =
        model.session(codes, ring_of_paths(codes, kImages, config.code_dim), kGrid);
    std::vector<float> frames;
    while (!search.done()) {
      const cae::search::PathPoints points = search.points();
      frames = model.decode(session, points.image_index, points.step);
      search.update(classify(frames).data(), static_cast<int64_t>(points.step.size()), 2);
    }
    std::vector<float> difference(frames.size());
    const int64_t shown = static_cast<int64_t>(frames.size()) / config.image_numel();
    std::vector<float> saliency(frames.size());
    const std::vector<int64_t> shape{shown, 1, config.image_size, config.image_size};
    const std::vector<float> zeros(frames.size(), 0.0F);
    cae::difference_saliency({frames.data(), shape}, {zeros.data(), shape},
                             {difference.data(), shape},
                             {saliency.data(), {shown, config.image_size, config.image_size}});
    return std::pair(difference, saliency);
  };

  const auto expected = explain();
  CAE_TEST_CHECK(all_finite(expected.first) && all_finite(expected.second));
  std::vector<int> same(4, 0);
  std::vector<std::thread> callers;
  for (int& result : same) {
    callers.emplace_back([&result, &explain, &expected] { result = explain() == expected; });
  }
  for (std::thread& caller : callers) {
    caller.join();
  }
  CAE_TEST_CHECK(same == std::vector<int>(4, 1));
}

/// Tasks of each chunk and panel, which must be one.
void test_tasks_cover_a_plan_once(const cae::ConvPlan& plan) {
  std::map<std::pair<int64_t, int64_t>, int> times;
  for (const cae::ConvTask& task : plan.tasks) {
    for (int64_t panel = task.panel; panel < task.panel + task.panels; ++panel) {
      ++times[{task.chunk, panel}];
    }
  }
  size_t wanted = 0;
  int64_t pixels = 0;
  for (size_t chunk = 0; chunk < plan.chunks.size(); ++chunk) {
    const auto phase = static_cast<size_t>(plan.chunks[chunk].phase);
    wanted += plan.phases[phase].panels.size();
    pixels += plan.chunks[chunk].pixels;
  }
  CAE_TEST_CHECK(pixels == plan.out_height * plan.out_width);
  CAE_TEST_CHECK(times.size() == wanted);
  for (const auto& entry : times) {
    CAE_TEST_CHECK(entry.second == 1);
  }
}

/// One small image is work for several cores; a tiny one is not cut into crumbs.
void test_tasks() {
  const auto plan = [](int64_t out, int64_t in, int64_t size) {
    const std::vector<float> weight = random_values(out * in * 9, 0.1F);
    return cae::plan_conv2d({weight.data(), {out, in, 3, 3}}, size, size, 1, 1);
  };
  const cae::ConvPlan small = plan(128, 128, 8);
  test_tasks_cover_a_plan_once(small);
  CAE_TEST_CHECK(small.tasks.size() >= 4);
  const cae::ConvPlan ragged = plan(70, 90, 19);
  test_tasks_cover_a_plan_once(ragged);
  CAE_TEST_CHECK(ragged.tasks.size() >= 4);
  const cae::ConvPlan tiny = plan(40, 8, 6);
  test_tasks_cover_a_plan_once(tiny);
  CAE_TEST_CHECK(tiny.tasks.size() == 1);
  const std::vector<float> weight = random_values(48 * 64 * 25, 0.1F);
  test_tasks_cover_a_plan_once(cae::plan_upsample_conv({weight.data(), {48, 64, 5, 5}}, 17, 17));
}

template <class Body>
bool refused(Body&& body) {
  return cae::testing::throws<std::invalid_argument>(body);
}

void test_errors() {
  const NetworkConfig config{16, 1, 2, 1, 3, 8};
  const RandomWeights weights(config);
  NetworkConfig other = config;
  other.code_dim = 4;
  CAE_TEST_CHECK(refused([&] { Model(other, weights, 4); }));
  other = config;
  other.image_size = 18;
  CAE_TEST_CHECK(refused([&] { Model(other, weights, 4); }));
  CAE_TEST_CHECK(refused([&] { Model(config, weights, 0); }));

  const Model model(config, weights, 4);
  const Codes codes = model.encode(random_values(2 * config.image_numel(), 0.4F));
  const std::vector<float> code(3, 0.0F);
  for (const int32_t bad : {-1, 2, 1 << 30}) {
    CAE_TEST_CHECK(refused([&] { model.decode(codes, code, {bad}); }));
  }
  const std::vector<float> vertices = ring_of_paths(codes, 2, config.code_dim);
  DecodeSession session = model.session(codes, vertices, 4);
  for (const int32_t bad : {-1, 5, 1 << 30}) {
    CAE_TEST_CHECK(refused([&] { model.decode(session, {0}, {bad}); }));
  }
  CAE_TEST_CHECK(refused([&] { model.decode(session, {2}, {0}); }));
  CAE_TEST_CHECK(refused([&] { model.session(codes, vertices, 0); }));
}

}  // namespace

int main() {
  // Fields: image_size, in_channels, channels, num_blocks, code_dim, modulation_width.
  for (const NetworkConfig& config :
       {NetworkConfig{16, 1, 1, 1, 1, 1}, NetworkConfig{20, 3, 3, 2, 8, 5},
        NetworkConfig{36, 4, 4, 1, 3, 16}}) {
    test_results_do_not_depend_on_company(config);
  }
  test_nothing();
  test_explanations_from_several_threads();
  test_tasks();
  test_errors();
  return cae::testing::finish("test_engine_native");
}
