// SPDX-License-Identifier: Apache-2.0
// The ends of the residual stream, merged moments and the class head in the emulator, against plain
// sums in double.
#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>

#include "cuda/class_head_cuda.h"
#include "cuda/moments_cuda.h"
#include "cuda/stream_cuda.h"
#include "tests/check_test.h"
#include "tests/emu/small_case.h"

namespace {

using cae::cuda::FinishStreamParams;
using cae::cuda::ImportStreamParams;
using cae::cuda::NormKind;
using cae::cuda::stored_channels;
using cae::test::DeviceArray;
using cae::test::from_half;
using cae::test::is_nan_half;
using cae::test::NormCase;
using cae::test::Random;

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

bool is_close(double got, double want, double tolerance) {
  return std::fabs(got - want) <= tolerance * (1.0 + std::fabs(want));
}

void test_import(int rows, int channels, int size) {
  Random random(static_cast<unsigned>(channels * 100 + size));
  const int stored = stored_channels(channels);
  const int pixels = size * size;
  std::vector<float> image = random.normals(static_cast<size_t>(rows) * channels * pixels);
  image[1] = kNan;
  const DeviceArray<float> in(image);
  const DeviceArray<uint16_t> out(static_cast<size_t>(rows) * pixels * stored);
  ImportStreamParams params;
  params.overlap = true;  // the emulator is strictest then
  params.rows = rows;
  params.height = size;
  params.width = size;
  params.channels = channels;
  params.stored_channels = stored;
  params.in = in.data();
  params.out = out.data();
  cae::cuda::import_stream(params, nullptr);
  const std::vector<uint16_t> got = out.read();
  for (int row = 0; row < rows; ++row) {
    for (int i = 0; i < pixels; ++i) {
      for (int c = 0; c < stored; ++c) {
        const uint16_t value = got[(static_cast<size_t>(row) * pixels + i) * stored + c];
        const float from =
            c < channels ? image[(static_cast<size_t>(row) * channels + c) * pixels + i] : 0.0F;
        CAE_TEST_CHECK(std::isnan(from) ? is_nan_half(value) : value == cae::half_bits(from));
      }
    }
  }
}

/// Row r of three reads row (r + 1) % 2 of two streams; row 1 is not active.
void test_finish(int channels, int height, int width, bool has_stream,
                 NormKind kind = NormKind::kInstance) {
  Random random(static_cast<unsigned>(channels * 1000 + height));
  constexpr int kRows = 3;
  const int stored = stored_channels(channels);
  const int pixels = height * width;
  const NormCase norm(random, kRows, kRows, stored, kind);
  std::vector<uint16_t> y = random.halves(static_cast<size_t>(kRows) * pixels, channels, stored);
  const std::vector<uint16_t> x = random.halves(static_cast<size_t>(2) * pixels, channels, stored);
  y[0] = 0x7e00;  // NaN
  const DeviceArray<uint16_t> device_y(y);
  const DeviceArray<uint16_t> device_x(x);
  const std::vector<int32_t> stream_rows = {1, 0, 1};
  const DeviceArray<int32_t> stream_row(stream_rows);
  const DeviceArray<int32_t> active(std::vector<int32_t>{1, 0, 1});
  const DeviceArray<uint16_t> stream(y.size());
  const DeviceArray<float> image(static_cast<size_t>(kRows) * channels * pixels);
  FinishStreamParams params;
  params.overlap = true;  // the emulator is strictest then
  params.rows = kRows;
  params.height = height;
  params.width = width;
  params.channels = channels;
  params.norm = norm.input();
  params.y = device_y.data();
  params.stream_in = has_stream ? device_x.data() : nullptr;
  params.stream_row = stream_row.data();
  params.active = active.data();
  params.stream = stream.data();
  params.image = image.data();
  cae::cuda::finish_stream(params, nullptr);
  const std::vector<uint16_t> got = stream.read();
  const std::vector<float> planes = image.read();
  for (int row = 0; row < kRows; ++row) {
    for (int i = 0; i < pixels; ++i) {
      for (int c = 0; c < stored; ++c) {
        const size_t at = (static_cast<size_t>(row) * pixels + i) * stored + c;
        if (row == 1) {
          CAE_TEST_CHECK(got[at] == 0xffff);  // as it was
          continue;
        }
        if (c >= channels) {
          CAE_TEST_CHECK(got[at] == 0);
          continue;
        }
        const float plane = planes[(static_cast<size_t>(row) * channels + c) * pixels + i];
        if (at == 0) {
          CAE_TEST_CHECK(is_nan_half(got[at]) && std::isnan(plane));
          continue;
        }
        double want = norm.normalised(row, row, c, from_half(y[at]));
        if (has_stream) {
          want += from_half(x[(static_cast<size_t>(stream_rows[row]) * pixels + i) * stored + c]);
        }
        CAE_TEST_CHECK(is_close(plane, want, 4e-6));
        CAE_TEST_CHECK(got[at] == cae::half_bits(plane));
      }
    }
  }
  // One output alone is the same.
  const DeviceArray<uint16_t> alone(y.size());
  params.stream = alone.data();
  params.image = nullptr;
  cae::cuda::finish_stream(params, nullptr);
  CAE_TEST_CHECK(alone.read() == got);
}

void test_stream_refusals() {
  ImportStreamParams params;
  cae::cuda::import_stream(params, nullptr);  // no rows: nothing
  cae::cuda::finish_stream(FinishStreamParams{}, nullptr);
  params.rows = 1;
  params.height = 4;
  params.width = 4;
  params.channels = 3;
  params.stored_channels = 3;
  CAE_TEST_CHECK(cae::testing::throws<std::invalid_argument>(
      [&] { cae::cuda::import_stream(params, nullptr); }));
}

struct Moments {
  double mean = 0.0;
  double m2 = 0.0;
};

/// Mean and M2 of values of parts [begin, end), from the values that they were taken from.
Moments moments_of(const std::vector<double>& values) {
  Moments moments;
  for (const double v : values) {
    moments.mean += v / static_cast<double>(values.size());
  }
  for (const double v : values) {
    moments.m2 += (v - moments.mean) * (v - moments.mean);
  }
  return moments;
}

void test_moments(int rows, int parts, int merged_parts, int channels) {
  Random random(static_cast<unsigned>(parts * 10 + channels));
  std::vector<float> counts;
  for (int t = 0; t < parts; ++t) {
    counts.push_back(static_cast<float>(2 + t * 7 % 5));
  }
  std::vector<std::vector<double>> values(static_cast<size_t>(rows) * parts * channels);
  std::vector<float> partials(values.size() * 2);
  for (size_t i = 0; i < values.size(); ++i) {
    const auto part = i / channels % parts;
    for (int n = 0; n < static_cast<int>(counts[part]); ++n) {
      values[i].push_back(5.0 + random.normal());
    }
    const Moments moments = moments_of(values[i]);
    partials[2 * i] = static_cast<float>(moments.mean);
    partials[2 * i + 1] = static_cast<float>(moments.m2);
  }
  partials[0] = kNan;
  const DeviceArray<float> device_partials(partials);
  const DeviceArray<float> device_counts(counts);
  const DeviceArray<float> merged(static_cast<size_t>(rows) * merged_parts * channels * 2);
  cae::cuda::MergeMomentsParams params;
  params.overlap = true;  // the emulator is strictest then
  params.rows = rows;
  params.parts = parts;
  params.merged_parts = merged_parts;
  params.channels = channels;
  params.partials = device_partials.data();
  params.counts = device_counts.data();
  params.merged = merged.data();
  cae::cuda::merge_moments(params, nullptr);
  const std::vector<float> got = merged.read();
  const std::vector<float> got_counts = cae::cuda::merged_counts(counts, merged_parts);
  double total = 0.0;
  for (int row = 0; row < rows; ++row) {
    for (int g = 0; g < merged_parts; ++g) {
      for (int c = 0; c < channels; ++c) {
        std::vector<double> all;
        for (int64_t t = cae::cuda::merged_begin(parts, merged_parts, g);
             t < cae::cuda::merged_begin(parts, merged_parts, g + 1); ++t) {
          const auto& part = values[(static_cast<size_t>(row) * parts + t) * channels + c];
          all.insert(all.end(), part.begin(), part.end());
        }
        const float* pair =
            &got[((static_cast<size_t>(row) * merged_parts + g) * channels + c) * 2];
        if (row == 0 && g == 0 && c == 0) {
          CAE_TEST_CHECK(std::isnan(pair[0]) && std::isnan(pair[1]));
          continue;
        }
        const Moments want = moments_of(all);
        CAE_TEST_CHECK(is_close(pair[0], want.mean, 1e-6));
        CAE_TEST_CHECK(is_close(pair[1], want.m2, 1e-5));
        CAE_TEST_CHECK(got_counts[g] == static_cast<float>(all.size()));
        total += static_cast<double>(all.size());
      }
    }
  }
  CAE_TEST_CHECK(total > 0.0);
  // A row is the same alone.
  params.rows = 1;
  params.partials += static_cast<int64_t>(rows - 1) * parts * channels * 2;
  const DeviceArray<float> last(static_cast<size_t>(merged_parts) * channels * 2);
  params.merged = last.data();
  cae::cuda::merge_moments(params, nullptr);
  const std::vector<float> alone = last.read();
  CAE_TEST_CHECK(rows == 1 || std::equal(alone.begin(), alone.end(), got.end() - alone.size()));
}

void test_moments_refusals() {
  cae::cuda::MergeMomentsParams params;
  cae::cuda::merge_moments(params, nullptr);
  params.rows = 1;
  params.channels = 8;
  params.parts = 3;
  params.merged_parts = 4;
  CAE_TEST_CHECK(cae::testing::throws<std::invalid_argument>(
      [&] { cae::cuda::merge_moments(params, nullptr); }));
  CAE_TEST_CHECK(
      cae::testing::throws<std::invalid_argument>([] { cae::cuda::merged_counts({1.0F}, 2); }));
}

void test_class_head(int rows, int parts, int channels, int code_dim) {
  Random random(static_cast<unsigned>(parts * 10 + channels));
  const int stored = stored_channels(channels);
  std::vector<float> partials = random.normals(static_cast<size_t>(rows) * parts * stored * 2);
  if (rows > 1) {
    partials[0] = kNan;
  }
  std::vector<float> counts;
  float total = 0.0F;
  for (int t = 0; t < parts; ++t) {
    counts.push_back(static_cast<float>(3 + t % 4));
    total += counts.back();
  }
  const std::vector<float> unscale = random.normals(channels, 0.3F, 1.0F);
  const std::vector<float> weight = random.normals(static_cast<size_t>(code_dim) * channels);
  const std::vector<float> bias = random.normals(code_dim);
  const DeviceArray<float> device_partials(partials);
  const DeviceArray<float> device_counts(counts);
  const DeviceArray<float> device_unscale(unscale);
  const DeviceArray<float> device_weight(weight);
  const DeviceArray<float> device_bias(bias);
  const DeviceArray<float> code(static_cast<size_t>(rows) * code_dim);
  cae::cuda::ClassHeadParams params;
  params.overlap = true;  // the emulator is strictest then
  params.rows = rows;
  params.parts = parts;
  params.channels = channels;
  params.stored_channels = stored;
  params.code_dim = code_dim;
  params.partials = device_partials.data();
  params.counts = device_counts.data();
  params.total = total;
  params.unscale = device_unscale.data();
  params.weight = device_weight.data();
  params.bias = device_bias.data();
  params.class_code = code.data();
  cae::cuda::class_head(params, nullptr);
  const std::vector<float> got = code.read();
  for (int row = 0; row < rows; ++row) {
    for (int d = 0; d < code_dim; ++d) {
      double want = bias[d];
      double size = 1.0;
      for (int c = 0; c < channels; ++c) {
        double mean = 0.0;
        for (int t = 0; t < parts; ++t) {
          mean += static_cast<double>(
                      partials[((static_cast<size_t>(row) * parts + t) * stored + c) * 2]) *
                  counts[t] / total;
        }
        const double term = mean * unscale[c] * weight[static_cast<size_t>(d) * channels + c];
        want += term;
        size += std::fabs(term);
      }
      const float value = got[static_cast<size_t>(row) * code_dim + d];
      CAE_TEST_CHECK(std::isnan(want) ? std::isnan(value) : std::fabs(value - want) <= 1e-6 * size);
    }
  }
}

void test_class_head_refusals() {
  cae::cuda::ClassHeadParams params;
  cae::cuda::class_head(params, nullptr);
  params.rows = 1;
  params.parts = 1;
  params.code_dim = 1;
  params.channels = 9000;
  params.stored_channels = 9000;
  CAE_TEST_CHECK(
      cae::testing::throws<std::invalid_argument>([&] { cae::cuda::class_head(params, nullptr); }));
}

}  // namespace

int main() {
  for (const int channels : {1, 3, 8, 20, 72}) {
    for (const int size : {4, 5, 17}) {
      test_import(size == 5 ? 3 : 1, channels, size);
    }
    test_finish(channels, 5, 12, true);
    test_finish(channels, 17, 17, channels != 8);
  }
  test_finish(72, 4, 4, true, NormKind::kLayer);
  test_stream_refusals();
  test_moments(3, 65, 16, 20);
  test_moments(1, 512, 16, 8);
  test_moments(2, 70, 70, 40);
  test_moments(2, 9, 1, 1);
  test_moments_refusals();
  test_class_head(1, 1, 1, 1);
  test_class_head(3, 4, 20, 8);
  test_class_head(2, 2, 300, 17);
  test_class_head_refusals();
  return cae::testing::finish("test_small_kernels");
}
