// SPDX-License-Identifier: Apache-2.0
// The output convolution of the emulated GPU against a plain sum in double.
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <stdexcept>
#include <vector>

#include "core/half_bits.h"
#include "cuda/output_conv_cuda.h"
#include "device_values.h"
#include "tests/check_test.h"

namespace {

using cae::cuda::NormKind;
using cae::cuda::output_tiles;
using cae::cuda::OutputConvParams;
using cae::testing::DeviceArray;

// Operands and weights are rounded to halves, 2^-11 relative each: noise in a sum of size about 1.
constexpr double kTolerance = 2e-3;
constexpr float kUntouched = 7.5F;
constexpr int32_t kSlots = 3;  // the one in the middle is not active

/// Index of a pixel that may lie outside, by walking back and forth; not the kernel's formula.
int reflected(int i, int n) {
  while (i < 0 || i >= n) {
    i = i < 0 ? -i : 2 * (n - 1) - i;
  }
  return i;
}

struct Problem {
  int size, channels, image_channels;
  NormKind kind;
  int stored;
  std::vector<uint16_t> raw;
  std::vector<float> weight, bias, partials, counts, eps, gamma, beta;
  std::vector<double> operand;  // [kSlots][size][size][channels]
  std::mt19937 random;

  Problem(int side, int inputs, int outputs, NormKind norm)
      : size(side),
        channels(inputs),
        image_channels(outputs),
        kind(norm),
        stored((inputs + 7) / 8 * 8),
        random(static_cast<unsigned>(side * 1000 + inputs * 10 + outputs)) {
    const size_t pixels = static_cast<size_t>(kSlots) * size * size;
    raw.assign(pixels * stored, 0);
    for (size_t i = 0; i < pixels; ++i) {
      for (int c = 0; c < channels; ++c) {
        raw[i * stored + c] = cae::half_bits(0.3F * static_cast<float>(c % 3) + normal());
      }
    }
    const float spread = 0.5F / std::sqrt(49.0F * static_cast<float>(channels));
    for (int i = 0; i < image_channels * channels * 49; ++i) {
      weight.push_back(spread * normal() * (i % 3 == 0 ? 3.0F : 1.0F));
    }
    for (int o = 0; o < image_channels; ++o) {
      bias.push_back(0.2F * normal());
    }
    for (int c = 0; c < stored; ++c) {
      gamma.push_back(c < channels ? 1.0F + 0.2F * normal() : 0.0F);
      beta.push_back(c < channels ? 0.3F * normal() : 0.0F);
      eps.push_back(1e-5F);
    }
    make_moments();
    make_operand();
  }

  float normal() { return std::normal_distribution<float>()(random); }
  double value(int64_t pixel, int c) const { return cae::half_value(raw[pixel * stored + c]); }

  /// Partial moments of bands of rows: of all channels, or of each.
  void make_moments() {
    const int parts = 3;
    const int64_t groups = kind == NormKind::kInstance ? stored : 1;
    partials.assign(static_cast<size_t>(kSlots * parts * groups * 2), 0.0F);
    for (int part = 0; part < parts; ++part) {
      const int64_t first = size * part / parts * static_cast<int64_t>(size);
      const int64_t last = size * (part + 1) / parts * static_cast<int64_t>(size);
      counts.push_back(
          static_cast<float>((last - first) * (kind == NormKind::kInstance ? 1 : channels)));
      for (int slot = 0; slot < kSlots; ++slot) {
        for (int64_t group = 0; group < groups; ++group) {
          const int c0 = kind == NormKind::kInstance ? static_cast<int>(group) : 0;
          const int c1 = kind == NormKind::kInstance ? c0 + 1 : channels;
          double mean = 0.0;
          double m2 = 0.0;
          for (int pass = 0; pass < 2; ++pass) {
            for (int64_t i = first; i < last; ++i) {
              for (int c = c0; c < c1; ++c) {
                const double v = value(slot * size * size + i, c);
                (pass == 0 ? mean : m2) += pass == 0 ? v / counts.back() : (v - mean) * (v - mean);
              }
            }
          }
          const size_t at = static_cast<size_t>(((slot * parts + part) * groups + group) * 2);
          partials[at] = static_cast<float>(mean);
          partials[at + 1] = static_cast<float>(m2);
        }
      }
    }
  }

  void make_operand() {
    const int64_t pixels = static_cast<int64_t>(size) * size;
    operand.resize(static_cast<size_t>(kSlots * pixels * channels));
    for (int64_t slot = 0; slot < kSlots; ++slot) {
      for (int c = 0; c < channels; ++c) {
        double mean = 0.0;
        double scale = 1.0;
        if (kind != NormKind::kNone) {
          const int c0 = kind == NormKind::kInstance ? c : 0;
          const int c1 = kind == NormKind::kInstance ? c + 1 : channels;
          const double count = static_cast<double>(pixels) * (c1 - c0);
          double m2 = 0.0;
          for (int pass = 0; pass < 2; ++pass) {
            for (int64_t i = 0; i < pixels; ++i) {
              for (int d = c0; d < c1; ++d) {
                const double v = value(slot * pixels + i, d);
                (pass == 0 ? mean : m2) += pass == 0 ? v / count : (v - mean) * (v - mean);
              }
            }
          }
          scale = kind == NormKind::kInstance ? 1.0 / std::sqrt(m2 / count + 1e-5)
                                              : 1.0 / (std::sqrt(m2 / (count - 1.0)) + 1e-5);
        }
        for (int64_t i = 0; i < pixels; ++i) {
          const double v = (value(slot * pixels + i, c) - mean) * scale * gamma[c] + beta[c];
          operand[static_cast<size_t>((slot * pixels + i) * channels + c)] =
              cae::half_value(cae::half_bits(static_cast<float>(v > 0.0 ? v : 0.0)));
        }
      }
    }
  }

  double expected(int slot, int o, int y, int x) const {
    double sum = bias[o];
    for (int ky = 0; ky < 7; ++ky) {
      for (int kx = 0; kx < 7; ++kx) {
        const int64_t pixel =
            (static_cast<int64_t>(slot) * size + reflected(y + ky - 3, size)) * size +
            reflected(x + kx - 3, size);
        for (int c = 0; c < channels; ++c) {
          sum += operand[static_cast<size_t>(pixel * channels + c)] *
                 weight[((o * channels + c) * 7 + ky) * 7 + kx];
        }
      }
    }
    return std::tanh(sum);
  }
};

/// What else is wanted of the pass.
struct Extras {
  cae::cuda::ClassifierInput classifier;
  const float* reference = nullptr;
  const int32_t* reference_row = nullptr;
  float* difference = nullptr;
};

struct Result {
  std::vector<float> images;
  std::vector<int32_t> finite;
};

Result run(const Problem& p, const Extras& extras = {}) {
  const cae::cuda::PackedOutputConv packed =
      cae::cuda::pack_output_conv(p.weight.data(), p.bias.data(), p.image_channels, p.channels);
  const DeviceArray<uint16_t> raw(p.raw), weights(packed.weights);
  const DeviceArray<float> scale(packed.scale), bias(packed.bias), partials(p.partials),
      counts(p.counts), eps(p.eps), gamma(p.gamma), beta(p.beta);
  const DeviceArray<float> images(static_cast<size_t>(kSlots) * p.image_channels * p.size * p.size,
                                  kUntouched);
  const DeviceArray<int32_t> finite(static_cast<size_t>(kSlots) * output_tiles(p.size), -5);
  const DeviceArray<int32_t> active(std::vector<int32_t>{1, 0, 1});
  OutputConvParams params;
  params.overlap = true;  // the emulator is strictest then
  weights.seal();
  params.slots = kSlots;
  params.size = p.size;
  params.channels = p.stored;
  params.image_channels = p.image_channels;
  params.norm.kind = p.kind;
  params.norm.channels = p.stored;
  params.norm.parts = static_cast<int32_t>(p.counts.size());
  params.norm.partials = partials.data();
  params.norm.counts = counts.data();
  for (float count : p.counts) {
    params.norm.total += count;
  }
  params.norm.eps = eps.data();
  params.norm.gamma = gamma.data();
  params.norm.beta = beta.data();
  params.raw = raw.data();
  params.weights = weights.data();
  params.scale = scale.data();
  params.bias = bias.data();
  params.images = images.data();
  params.finite = finite.data();
  params.active = active.data();
  params.classifier = extras.classifier;
  params.reference = extras.reference;
  params.reference_row = extras.reference_row;
  params.difference = extras.difference;
  cae::cuda::output_conv(params, nullptr);
  return {images.values(), finite.values()};
}

/// Compares every `step`-th pixel of each axis, and those near the border.
void test_values(int size, int channels, int image_channels, NormKind kind, int step) {
  const Problem problem(size, channels, image_channels, kind);
  const Result got = run(problem);
  const auto looked_at = [&](int i) { return i % step == 0 || i < 4 || i >= size - 4; };
  double worst = 0.0;
  for (int slot = 0; slot < kSlots; ++slot) {
    for (int o = 0; o < image_channels; ++o) {
      for (int y = 0; y < size; ++y) {
        for (int x = 0; x < size; ++x) {
          const float value = got.images[((slot * image_channels + o) * size + y) * size + x];
          if (slot == 1) {
            worst = value == kUntouched ? worst : 9.0;
          } else if (looked_at(y) && looked_at(x)) {
            const double error = std::fabs(value - problem.expected(slot, o, y, x));
            worst = error <= worst ? worst : error;
          }
        }
      }
    }
  }
  CAE_TEST_CHECK(worst < kTolerance);
  const int tiles = output_tiles(size);
  for (int i = 0; i < kSlots * tiles; ++i) {
    CAE_TEST_CHECK(got.finite[i] == (i / tiles == 1 ? -5 : 1));
  }
}

/// One value that is not finite shows in the 7 x 7 pixels around it, and in their tiles' flags.
void test_not_finite() {
  Problem problem(20, 8, 3, NormKind::kNone);
  const std::vector<float> whole = run(problem).images;
  problem.raw[((2 * 20 + 9) * 20 + 15) * 8 + 3] = 0x7e00;
  const Result got = run(problem);
  for (int slot : {0, 2}) {
    for (int i = 0; i < 3 * 400; ++i) {
      const int y = i % 400 / 20;
      const int x = i % 20;
      const float value = got.images[slot * 1200 + i];
      const bool touched = slot == 2 && y >= 6 && y <= 12 && x >= 12 && x <= 18;
      CAE_TEST_CHECK(touched ? std::isnan(value) : value == whole[slot * 1200 + i]);
    }
  }
  // Tiles of 8 x 16: three rows of two.
  const std::vector<int32_t> flags = {1, 1, 1, 1, 1, 1, -5, -5, -5, -5, -5, -5, 0, 0, 0, 0, 1, 1};
  CAE_TEST_CHECK(got.finite == flags);
  Problem moments(16, 8, 1, NormKind::kLayer);
  moments.partials[2] = std::numeric_limits<float>::quiet_NaN();
  const Result lost = run(moments);
  CAE_TEST_CHECK(std::isnan(lost.images[0]) && lost.finite[0] == 0 && lost.finite[1] == 0);
  CAE_TEST_CHECK(std::isfinite(lost.images[2 * 256]) && lost.finite[4] == 1);
}

/// What a classifier gets of pixel (y, x) of `channel`, as cae_fast.Classifier computes it.
float classifier_value(const cae::cuda::ClassifierInput& form, float pixel, int channel) {
  if (!form.normalise) {
    return pixel;
  }
  const float unit = (pixel + 1.0F) / 2.0F;
  const float centred = unit - form.mean[channel];
  return centred / form.std_dev[channel];
}

/// Differences and the classifier's input, bit for bit; images and flags as without them.
void test_other_outputs(int size, int image_channels, int channels, bool half, bool channels_last,
                        bool normalise) {
  const Problem problem(size, 8, image_channels, NormKind::kLayer);
  const Result plain = run(problem);
  const size_t pixels = static_cast<size_t>(size) * size;
  const size_t numel = pixels * image_channels;
  const size_t inputs = pixels * channels * kSlots;
  std::vector<float> others;
  std::mt19937 random(7);
  for (size_t i = 0; i < numel * kSlots; ++i) {
    others.push_back(std::uniform_real_distribution<float>(-1, 1)(random));
  }
  const std::vector<int32_t> rows = {2, 0, 1};
  const DeviceArray<float> reference(others), difference(numel * kSlots, kUntouched);
  const DeviceArray<int32_t> reference_row(rows);
  const DeviceArray<float> floats(half ? 0 : inputs, kUntouched);
  const DeviceArray<uint16_t> halves(half ? inputs : 0, uint16_t{0x4321});
  Extras extras;
  extras.reference = reference.data();
  extras.reference_row = reference_row.data();
  extras.difference = difference.data();
  extras.classifier.channels = channels;
  extras.classifier.half = half;
  extras.classifier.channels_last = channels_last;
  extras.classifier.normalise = normalise;
  extras.classifier.values =
      half ? static_cast<void*>(halves.data()) : static_cast<void*>(floats.data());
  for (int c = 0; c < channels; ++c) {
    extras.classifier.mean[c] = 0.4F + 0.05F * static_cast<float>(c);
    extras.classifier.std_dev[c] = 0.3F - 0.04F * static_cast<float>(c);
  }
  const Result got = run(problem, extras);
  CAE_TEST_CHECK(got.images == plain.images && got.finite == plain.finite);
  const std::vector<float> differences = difference.values();
  const std::vector<float> as_floats = floats.values();
  const std::vector<uint16_t> as_halves = halves.values();
  int wrong = 0;
  for (size_t slot = 0; slot < kSlots; ++slot) {
    for (size_t i = 0; i < numel; ++i) {
      const float wanted = plain.images[slot * numel + i] - others[rows[slot] * numel + i];
      wrong += differences[slot * numel + i] == (slot == 1 ? kUntouched : wanted) ? 0 : 1;
    }
    for (size_t i = 0; i < pixels * channels; ++i) {
      const size_t c = channels_last ? i % channels : i / pixels;
      const size_t pixel = channels_last ? i / channels : i % pixels;
      const size_t from = image_channels == 1 ? 0 : c;
      const float value =
          classifier_value(extras.classifier, plain.images[slot * numel + from * pixels + pixel],
                           static_cast<int>(c));
      const size_t at = slot * pixels * channels + i;
      if (half) {
        wrong += as_halves[at] == (slot == 1 ? 0x4321 : cae::half_bits(value)) ? 0 : 1;
      } else {
        wrong += as_floats[at] == (slot == 1 ? kUntouched : value) ? 0 : 1;
      }
    }
  }
  CAE_TEST_CHECK(wrong == 0);
}

void test_errors() {
  const std::vector<float> weight(8 * 49, 1.0F);
  const float bias = 0.0F;
  const auto pack = [&](int64_t image_channels, int64_t channels) {
    cae::cuda::pack_output_conv(weight.data(), &bias, image_channels, channels);
  };
  CAE_TEST_CHECK(cae::testing::throws<std::invalid_argument>([&] { pack(0, 8); }));
  CAE_TEST_CHECK(cae::testing::throws<std::invalid_argument>([&] { pack(5, 8); }));
  CAE_TEST_CHECK(cae::testing::throws<std::invalid_argument>([&] { pack(1, 0); }));
  std::vector<float> bad = weight;
  bad[5] = std::numeric_limits<float>::infinity();
  CAE_TEST_CHECK(cae::testing::throws<std::invalid_argument>(
      [&] { cae::cuda::pack_output_conv(bad.data(), &bias, 1, 8); }));
  OutputConvParams params;
  cae::cuda::output_conv(params, nullptr);  // no slots: nothing happens
  params.slots = 1;
  params.size = 18;
  params.channels = params.norm.channels = 8;
  params.image_channels = 3;
  const auto launch = [&] { cae::cuda::output_conv(params, nullptr); };
  CAE_TEST_CHECK(cae::testing::throws<std::invalid_argument>(launch));
  params.size = 16;
  params.norm.channels = 16;
  CAE_TEST_CHECK(cae::testing::throws<std::invalid_argument>(launch));
  params.norm.channels = 8;
  params.difference = params.images = &bad[0];  // never touched
  CAE_TEST_CHECK(cae::testing::throws<std::invalid_argument>(launch));
  params.difference = nullptr;
  params.classifier.values = &bad[0];
  params.classifier.channels = 1;
  CAE_TEST_CHECK(cae::testing::throws<std::invalid_argument>(launch));
  params.classifier.channels = 3;
  params.classifier.normalise = true;  // by 0
  CAE_TEST_CHECK(cae::testing::throws<std::invalid_argument>(launch));
}

}  // namespace

int main() {
  for (int image_channels = 1; image_channels <= 4; ++image_channels) {
    test_values(16, 3, image_channels, NormKind::kLayer, 1);
    test_values(20, 8, image_channels, NormKind::kLayer, 1);
    test_values(32, 24, image_channels, NormKind::kInstance, 1);
    test_values(200, 8, image_channels, NormKind::kLayer, 13);
  }
  test_values(32, 64, 3, NormKind::kLayer, 1);
  test_values(20, 40, 2, NormKind::kNone, 1);
  test_values(192, 64, 3, NormKind::kLayer, 29);
  test_not_finite();
  test_other_outputs(20, 3, 3, true, true, true);
  test_other_outputs(20, 3, 3, false, false, true);
  test_other_outputs(16, 1, 3, true, true, true);
  test_other_outputs(16, 1, 1, false, false, false);
  test_other_outputs(200, 4, 4, true, false, false);
  test_other_outputs(16, 2, 2, false, true, true);
  test_errors();
  return cae::testing::finish("test_output_conv_emu");
}
