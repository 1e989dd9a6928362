// SPDX-License-Identifier: Apache-2.0
// Every convolution layer against sums in double: kinds, ragged sizes and widths, what it reads
// (affine, ReLU, residual), what it leaves (outputs, stream, moments), and the same bits for any
// number of threads and images.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <limits>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "check_test.h"
#include "cpu/isa_cpu.h"
#include "cpu/parallel_cpu.h"
#include "ops/conv_layer.h"
#include "ops/norm_affine.h"
#include "ops/output_conv.h"

namespace {

using cae::Arithmetic;
using cae::ConvLayer;
using cae::ConvSource;
using cae::LayerImage;

std::mt19937 generator(20240611);

std::vector<float> random_values(int64_t count, float scale, float mean = 0.0F) {
  std::normal_distribution<float> normal(mean, scale);
  std::vector<float> values(static_cast<size_t>(count));
  for (float& value : values) {
    value = normal(generator);
  }
  return values;
}

struct Case {
  int64_t kernel;
  int64_t stride;
  int64_t pad;
  bool upsample;
  int64_t height;
  int64_t width;
  int64_t channels;
  int64_t out_channels;
};

int64_t reflect(int64_t i, int64_t size) {
  i = i < 0 ? -i : i;
  return i < size ? i : 2 * size - 2 - i;
}

/// What a layer reads, in memory of its own.
struct Input {
  std::vector<float> in;
  std::vector<float> scale;
  std::vector<float> shift;
  std::vector<float> residual;
  bool relu;

  Input(const Case& c, bool with_relu, bool with_residual)
      : in(random_values(c.height * c.width * c.channels, 1.0F, 0.3F)),
        scale(random_values(c.channels, 0.5F, 1.0F)),
        shift(random_values(c.channels, 0.5F)),
        residual(with_residual ? random_values(c.height * c.width * c.channels, 1.0F)
                               : std::vector<float>()),
        relu(with_relu) {}

  ConvSource source() const {
    return {in.data(), scale.data(), shift.data(), residual.empty() ? nullptr : residual.data(),
            relu};
  }

  double value(size_t i) const {
    const size_t c = i % scale.size();
    double value = static_cast<double>(scale[c]) * in[i] + shift[c];
    value = relu ? std::max(value, 0.0) : value;
    return residual.empty() ? value : value + residual[i];
  }
};

std::vector<double> reference(const Case& c, const Input& input, const std::vector<float>& weight,
                              int64_t out_height, int64_t out_width) {
  const int64_t grow = c.upsample ? 2 : 1;
  std::vector<double> out;
  for (int64_t y = 0; y < out_height; ++y) {
    for (int64_t x = 0; x < out_width; ++x) {
      for (int64_t o = 0; o < c.out_channels; ++o) {
        double sum = 0;
        for (int64_t i = 0; i < c.kernel; ++i) {
          for (int64_t j = 0; j < c.kernel; ++j) {
            const int64_t row = reflect(y * c.stride + i - c.pad, grow * c.height) / grow;
            const int64_t column = reflect(x * c.stride + j - c.pad, grow * c.width) / grow;
            for (int64_t k = 0; k < c.channels; ++k) {
              const auto at = static_cast<size_t>((row * c.width + column) * c.channels + k);
              const auto tap =
                  static_cast<size_t>(((o * c.channels + k) * c.kernel + i) * c.kernel + j);
              sum += input.value(at) * weight[tap];
            }
          }
        }
        out.push_back(sum);
      }
    }
  }
  return out;
}

template <class Values>
double relative_error(const Values& values, const std::vector<double>& expected) {
  double error = 0;
  double norm = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    error += (values[i] - expected[i]) * (values[i] - expected[i]);
    norm += expected[i] * expected[i];
  }
  return std::sqrt(error / norm);
}

ConvLayer plan(const Case& c, const std::vector<float>& weight, Arithmetic arithmetic) {
  const cae::TensorView<const float> view(weight.data(),
                                          {c.out_channels, c.channels, c.kernel, c.kernel});
  return c.upsample ? cae::plan_upsample_layer(view, c.height, c.width, arithmetic)
                    : cae::plan_layer(view, c.height, c.width, c.stride, c.pad, arithmetic);
}

struct Output {
  std::vector<float> out;
  std::vector<float> stream;
  std::vector<float> partials;
  bool operator==(const Output& other) const {
    return out == other.out && stream == other.stream && partials == other.partials;
  }
};

std::vector<Output> run(const ConvLayer& layer, const std::vector<const Input*>& inputs,
                        bool keep) {
  constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
  std::vector<Output> outputs(inputs.size());
  std::vector<std::vector<float>> padded(inputs.size());
  std::vector<cae::AlignedBuffer> outs;
  std::vector<cae::AlignedBuffer> streams;
  std::vector<LayerImage> images;
  for (size_t i = 0; i < inputs.size(); ++i) {
    Output& output = outputs[i];
    outs.emplace_back(layer.out_size());
    std::fill_n(outs.back().data(), layer.out_size(), kNan);
    streams.emplace_back(keep ? layer.in_size() : 0);
    std::fill_n(streams.back().data(), streams.back().size(), kNan);
    output.partials.assign(static_cast<size_t>(layer.partials_size()), kNan);
    padded[i].assign(static_cast<size_t>(layer.padded_size()), kNan);
    images.push_back({inputs[i]->source(), keep ? streams[i].data() : nullptr, padded[i].data(),
                      outs[i].data(), output.partials.data()});
  }
  cae::Scratch scratch;
  cae::run_layer(layer, images, scratch);
  for (size_t i = 0; i < inputs.size(); ++i) {
    outputs[i].out.assign(outs[i].data(), outs[i].data() + layer.out_size());
    outputs[i].stream.assign(streams[i].data(), streams[i].data() + streams[i].size());
  }
  return outputs;
}

void check_moments(const ConvLayer& layer, const Output& output) {
  const cae::ChannelMoments moments = cae::merge_moments(layer, output.partials.data());
  const auto channels = static_cast<size_t>(layer.out_channels);
  for (size_t c = 0; c < channels; ++c) {
    double mean = 0;
    double m2 = 0;
    const auto pixels = static_cast<double>(layer.out_pixels());
    for (size_t i = c; i < output.out.size(); i += channels) {
      mean += output.out[i] / pixels;
    }
    for (size_t i = c; i < output.out.size(); i += channels) {
      m2 += (output.out[i] - mean) * (output.out[i] - mean);
    }
    const double deviation = std::sqrt(m2 / pixels);
    CAE_TEST_CHECK(std::abs(moments.mean[c] - mean) <= 1e-5 * (deviation + std::abs(mean)));
    CAE_TEST_CHECK(std::abs(moments.m2[c] - m2) <= 1e-4 * m2 + 1e-9);
  }
}

/// Direct sums stay near float32's rounding however long they are (a sum of 2304 addends in a row
/// would be 9e-7 off); Winograd's transforms add to that, see the plans.
void test_layer(const Case& c) {
  const auto fan_in = static_cast<float>(c.channels * c.kernel * c.kernel);
  const std::vector<float> weight =
      random_values(c.out_channels * c.channels * c.kernel * c.kernel, std::sqrt(2.0F / fan_in));
  for (const Arithmetic arithmetic : {Arithmetic::kFast, Arithmetic::kExact}) {
    const ConvLayer layer = plan(c, weight, arithmetic);
    CAE_TEST_CHECK(arithmetic == Arithmetic::kFast || !layer.winograd);
    for (const bool residual : {false, true}) {
      if (residual && c.stride == 2) {
        continue;  // no stream passes a layer that halves the image
      }
      const Input first(c, !residual, residual);
      const Input second(c, !residual, residual);
      const bool keep = c.kernel == 3;
      cae::cpu::set_num_threads(1);
      const Output alone = run(layer, {&first}, keep)[0];
      const std::vector<double> expected =
          reference(c, first, weight, layer.out_height, layer.out_width);
      const double error = relative_error(alone.out, expected);
      CAE_TEST_CHECK(error < (layer.winograd ? 3e-6 : 3e-7));
      check_moments(layer, alone);
      for (size_t i = 0; i < alone.stream.size(); ++i) {
        CAE_TEST_CHECK(std::abs(alone.stream[i] - first.value(i)) < 1e-5);
      }
      for (const int threads : {2, 3, 7}) {
        cae::cpu::set_num_threads(threads);
        CAE_TEST_CHECK(run(layer, {&second, &first}, keep)[1] == alone);
        CAE_TEST_CHECK(run(layer, {&first}, keep)[0] == alone);
      }
    }
  }
}

void test_output_conv(int64_t channels, int64_t out_channels, int64_t height, int64_t width,
                      Arithmetic arithmetic) {
  const Case c{7, 1, 3, false, height, width, channels, out_channels};
  const std::vector<float> weight = random_values(
      out_channels * channels * 49, std::sqrt(0.5F / static_cast<float>(channels * 49)));
  const std::vector<float> bias = random_values(out_channels, 0.2F);
  const cae::OutputConv conv = cae::plan_output_conv(
      {weight.data(), {out_channels, channels, 7, 7}}, bias.data(), height, width, arithmetic);
  const Input first(c, true, false);
  const Input second(c, true, false);
  std::vector<double> expected = reference(c, first, weight, height, width);
  const int64_t pixels = height * width;
  std::vector<double> planes(expected.size());
  for (int64_t p = 0; p < pixels; ++p) {
    for (int64_t o = 0; o < out_channels; ++o) {
      planes[static_cast<size_t>(o * pixels + p)] = std::tanh(
          expected[static_cast<size_t>(p * out_channels + o)] + bias[static_cast<size_t>(o)]);
    }
  }
  std::vector<float> before;
  for (const int threads : {1, 2, 5}) {
    cae::cpu::set_num_threads(threads);
    cae::Scratch scratch;
    std::vector<float> out(2 * expected.size());
    cae::output_conv(conv, {first.source(), second.source()}, out.data(), scratch);
    CAE_TEST_CHECK(relative_error(out, planes) < (conv.winograd ? 1e-6 : 4e-7));
    CAE_TEST_CHECK(before.empty() || out == before);
    before = out;
  }
}

/// NaN and values beyond tanh's range pass as they should.
void test_output_range() {
  const std::vector<float> weight(49, 0.0F);
  for (const float value : {0.0F, -0.0F, 1e-30F, -3.0F, 7.9F, -50.0F, 1e38F}) {
    const cae::OutputConv conv =
        cae::plan_output_conv({weight.data(), {1, 1, 7, 7}}, &value, 4, 4, Arithmetic::kFast);
    const std::vector<float> zero(16, 0.0F);
    std::vector<float> out(16);
    cae::Scratch scratch;
    cae::output_conv(conv, {{zero.data(), zero.data(), zero.data(), nullptr, false}}, out.data(),
                     scratch);
    for (const float result : out) {
      CAE_TEST_CHECK(std::abs(result - std::tanh(value)) <= 4e-7F && std::abs(result) <= 1.0F);
    }
  }
  const float bad = std::numeric_limits<float>::quiet_NaN();
  const cae::OutputConv conv =
      cae::plan_output_conv({weight.data(), {1, 1, 7, 7}}, &bad, 4, 4, Arithmetic::kFast);
  const std::vector<float> zero(16, 0.0F);
  std::vector<float> out(16);
  cae::Scratch scratch;
  cae::output_conv(conv, {{zero.data(), zero.data(), zero.data(), nullptr, false}}, out.data(),
                   scratch);
  CAE_TEST_CHECK(std::all_of(out.begin(), out.end(), [](float v) { return std::isnan(v); }));
}

/// Large images are stored past the caches: too large for sums in double, so beside direct ones.
void test_large() {
  const Case c{3, 1, 1, false, 130, 127, 64, 64};
  const std::vector<float> weight = random_values(64 * 64 * 9, 0.06F);
  const Input input(c, false, true);
  cae::cpu::set_num_threads(2);
  const ConvLayer layer = plan(c, weight, Arithmetic::kFast);
  CAE_TEST_CHECK(layer.winograd && layer.chunks.size() > 1);
  const Output fast = run(layer, {&input}, true)[0];
  const Output exact = run(plan(c, weight, Arithmetic::kExact), {&input}, true)[0];
  CAE_TEST_CHECK(relative_error(fast.out, {exact.out.begin(), exact.out.end()}) < 3e-6);
  CAE_TEST_CHECK(relative_error(fast.stream, {exact.stream.begin(), exact.stream.end()}) < 1e-6);
  check_moments(layer, fast);
  cae::cpu::set_num_threads(5);
  CAE_TEST_CHECK(run(layer, {&input}, true)[0] == fast);
}

/// Small weights always, large ones where they serve a few tiles.
void test_choice() {
  const auto winograd = [](const Case& c) {
    const std::vector<float> weight(
        static_cast<size_t>(c.out_channels * c.channels * c.kernel * c.kernel), 0.1F);
    return plan(c, weight, Arithmetic::kFast).winograd;
  };
  CAE_TEST_CHECK(winograd({3, 1, 1, false, 4, 4, 32, 32}));
  CAE_TEST_CHECK(!winograd({3, 1, 1, false, 8, 8, 256, 256}));
  CAE_TEST_CHECK(winograd({3, 1, 1, false, 16, 16, 256, 256}));
  CAE_TEST_CHECK(!winograd({4, 2, 1, false, 16, 16, 256, 256}));
  CAE_TEST_CHECK(winograd({4, 2, 1, false, 32, 32, 256, 256}));
  CAE_TEST_CHECK(!winograd({3, 2, 1, false, 32, 32, 8, 8}));
  CAE_TEST_CHECK(!winograd({3, 1, 0, false, 32, 32, 8, 8}));
}

/// A NaN reaches every output that sees it, whatever the algorithm.
void test_nan_is_not_lost() {
  const Case c{3, 1, 1, false, 9, 9, 5, 6};
  const std::vector<float> weight = random_values(6 * 5 * 9, 0.3F);
  Input input(c, true, false);
  input.in[static_cast<size_t>((4 * 9 + 4) * 5 + 2)] = std::numeric_limits<float>::quiet_NaN();
  const Output output = run(plan(c, weight, Arithmetic::kFast), {&input}, false)[0];
  for (int64_t y = 3; y <= 5; ++y) {
    for (int64_t x = 3; x <= 5; ++x) {
      for (int64_t o = 0; o < 6; ++o) {
        CAE_TEST_CHECK(std::isnan(output.out[static_cast<size_t>((y * 9 + x) * 6 + o)]));
      }
    }
  }
}

void test_errors() {
  const Case both{3, 1, 1, false, 8, 8, 4, 4};
  const Input input(both, true, true);
  const std::vector<float> ones(4 * 4 * 9, 1.0F);
  for (const Arithmetic arithmetic : {Arithmetic::kFast, Arithmetic::kExact}) {
    CAE_TEST_CHECK(cae::testing::throws<std::invalid_argument>(
        [&] { run(plan(both, ones, arithmetic), {&input}, false); }));
  }
  const std::vector<float> weight(64, 0.0F);
  const auto refused = [&](const std::vector<int64_t>& shape, int64_t size, int64_t stride,
                           int64_t pad) {
    return cae::testing::throws<std::invalid_argument>([&] {
      cae::plan_layer({weight.data(), shape}, size, size, stride, pad, Arithmetic::kFast);
    });
  };
  CAE_TEST_CHECK(refused({1, 1, 3, 4}, 8, 1, 1));
  CAE_TEST_CHECK(refused({1, 1, 3}, 8, 1, 1));
  CAE_TEST_CHECK(refused({1, 1, 3, 3}, 1, 1, 1));
  CAE_TEST_CHECK(refused({1, 1, 3, 3}, 8, 0, 1));
  CAE_TEST_CHECK(refused({1, 1, 7, 7}, 3, 1, 3));
  CAE_TEST_CHECK(cae::testing::throws<std::invalid_argument>([&] {
    cae::plan_output_conv({weight.data(), {5, 1, 7, 7}}, weight.data(), 8, 8, Arithmetic::kFast);
  }));
}

}  // namespace

int main() {
  const char* isa = std::getenv("CAE_CPU_ISA");
  const std::vector<std::string> isas = cae::cpu::available_isas();
  if (isa != nullptr && std::find(isas.begin(), isas.end(), isa) == isas.end()) {
    return 77;  // skipped: this machine lacks it
  }
  for (const Case& c : {
           Case{3, 1, 1, false, 16, 16, 64, 64}, Case{3, 1, 1, false, 13, 10, 20, 37},
           Case{3, 1, 1, false, 2, 2, 1, 1},     Case{3, 1, 1, false, 3, 5, 7, 3},
           Case{3, 1, 1, false, 33, 31, 9, 130}, Case{4, 2, 1, false, 16, 16, 16, 32},
           Case{4, 2, 1, false, 18, 14, 3, 50},  Case{4, 2, 1, false, 2, 2, 5, 4},
           Case{4, 2, 1, false, 7, 9, 12, 17},   Case{5, 1, 2, true, 8, 8, 32, 16},
           Case{5, 1, 2, true, 2, 2, 3, 2},      Case{5, 1, 2, true, 7, 9, 18, 35},
           Case{5, 1, 2, true, 5, 3, 4, 70},     Case{3, 1, 1, false, 50, 50, 16, 33},
           Case{3, 1, 1, false, 63, 61, 12, 40},  // several chunks of whole rows of tiles
           Case{4, 2, 1, false, 100, 90, 8, 40}, Case{5, 1, 2, true, 40, 35, 16, 16},
           Case{7, 1, 3, false, 12, 9, 3, 33},   Case{3, 1, 1, false, 4, 6, 256, 18},
       }) {
    test_layer(c);
  }
  for (int64_t out_channels = 1; out_channels <= 4; ++out_channels) {
    for (const Arithmetic arithmetic : {Arithmetic::kFast, Arithmetic::kExact}) {
      test_output_conv(16, out_channels, 20, 17, arithmetic);
      test_output_conv(5, out_channels, 4, 6, arithmetic);
    }
  }
  test_output_conv(70, 3, 39, 141, Arithmetic::kFast);  // several bands and strips
  test_output_range();
  test_large();
  test_choice();
  test_nan_is_not_lost();
  test_errors();
  return cae::testing::finish("test_conv_layer");
}
