// SPDX-License-Identifier: Apache-2.0
// The ring of upsampled images in the emulator, against what it is to be: plain upsampling and
// reflection, less the form with a replicated border, in double. Then the convolution with it.
#include <algorithm>
#include <cmath>
#include <stdexcept>

#include "cuda/upsample_ring_cuda.h"
#include "cuda/upsample_ring_pack.h"
#include "emu/external_memory.h"
#include "tests/check_test.h"
#include "tests/emu/small_case.h"

namespace {

using cae::cuda::ConvEpilogue;
using cae::cuda::ConvKind;
using cae::cuda::ConvPrologue;
using cae::cuda::NormKind;
using cae::cuda::stored_channels;
using cae::cuda::UpsampleRingParams;
using cae::test::DeviceArray;
using cae::test::from_half;
using cae::test::NormCase;
using cae::test::Random;
using cae::test::reflected;

// Weights and differences are rounded to halves, 2^-11 each; with a single channel nothing of that
// averages out. Relative to the root mean square of the layer.
constexpr double kTolerance = 2.5e-3;

struct RingCase {
  ConvPrologue prologue;
  int height, width, in, out;
  NormKind norm = NormKind::kInstance;
};

/// One image [height][width][stored] of operands, convolved with weight [out][in][5][5].
struct RingImage {
  const double* operand;
  const std::vector<float>& weight;
  int height, width, in, stored;

  /// Plain: the image enlarged, reflected, convolved.
  double exact(int o, int oy, int ox) const { return sum(o, oy, ox, &RingImage::reflect); }
  /// What the phases of a 3x3 convolution with a replicated border give.
  double replicated(int o, int oy, int ox) const { return sum(o, oy, ox, &RingImage::replicate); }

 private:
  static int reflect(int i, int n) { return reflected(i, 2 * n) / 2; }
  static int replicate(int i, int n) { return std::min(std::max((i + 2) / 2 - 1, 0), n - 1); }

  double sum(int o, int oy, int ox, int (*index)(int, int)) const {
    double total = 0.0;
    for (int ky = 0; ky < 5; ++ky) {
      for (int kx = 0; kx < 5; ++kx) {
        const double* pixel = operand + (static_cast<int64_t>(index(oy + ky - 2, height)) * width +
                                         index(ox + kx - 2, width)) *
                                            stored;
        for (int c = 0; c < in; ++c) {
          total += pixel[c] * weight[((static_cast<size_t>(o) * in + c) * 5 + ky) * 5 + kx];
        }
      }
    }
    return total;
  }
};

/// Row 0 reads row 2 of y, row 1 is not active, row 2 reads row 0.
void test_ring(const RingCase& c) {
  constexpr int kRows = 3;
  constexpr float kScale = 4.0F;
  const std::vector<int32_t> y_rows = {2, 1, 0};
  const std::vector<int32_t> stream_rows = {1, 0, 1};
  const std::vector<int32_t> mod_rows = {0, 1, 1};
  Random random(static_cast<unsigned>(c.height * 100 + c.in));
  const int stored_in = stored_channels(c.in);
  const int stored_out = stored_channels(c.out);
  const size_t pixels = static_cast<size_t>(c.height) * c.width;
  const NormCase norm(random, kRows, 2, stored_in, c.norm);
  std::vector<uint16_t> y = random.halves(kRows * pixels, c.in, stored_in);
  const std::vector<uint16_t> x = random.halves(2 * pixels, c.in, stored_in);
  const std::vector<float> weight = random.normals(static_cast<size_t>(c.out) * c.in * 25, 0.05F);
  const std::vector<uint16_t> packed =
      cae::cuda::pack_upsample_ring(weight.data(), c.out, c.in, kScale);

  const DeviceArray<uint16_t> device_y(y);
  const DeviceArray<uint16_t> device_x(x);
  const DeviceArray<uint16_t> weights(packed);
  const DeviceArray<int32_t> y_row(y_rows);
  const DeviceArray<int32_t> stream_row(stream_rows);
  const DeviceArray<int32_t> mod_row(mod_rows);
  const DeviceArray<int32_t> active(std::vector<int32_t>{1, 0, 1});
  const DeviceArray<float> ring_rows(static_cast<size_t>(kRows) * 4 * c.width * stored_out);
  const DeviceArray<float> ring_columns(static_cast<size_t>(kRows) * 4 * c.height * stored_out);
  UpsampleRingParams params;
  params.overlap = true;  // the emulator is strictest then
  params.prologue = c.prologue;
  params.rows = kRows;
  params.height = c.height;
  params.width = c.width;
  params.in_channels = stored_in;
  params.out_channels = stored_out;
  params.real_channels = c.out;
  params.norm = norm.input();
  params.y = device_y.data();
  params.stream_in = device_x.data();
  params.weights = weights.data();
  params.ring_rows = ring_rows.data();
  params.ring_columns = ring_columns.data();
  params.y_row = y_row.data();
  params.stream_row = stream_row.data();
  params.mod_row = mod_row.data();
  params.active = active.data();
  cae::cuda::upsample_ring(params, nullptr);
  const std::vector<float> got_rows = ring_rows.read();
  const std::vector<float> got_columns = ring_columns.read();

  for (int row = 0; row < kRows; ++row) {
    std::vector<double> operand(pixels * stored_in, 0.0);
    for (size_t i = 0; i < operand.size(); ++i) {
      const int ch = static_cast<int>(i % stored_in);
      const double raw = from_half(y[y_rows[row] * pixels * stored_in + i]);
      const double normalised = norm.normalised(y_rows[row], mod_rows[row], ch, raw);
      const double value =
          c.prologue == ConvPrologue::kPlain ? raw
          : c.prologue == ConvPrologue::kAffineRelu
              ? std::max(0.0, normalised)
              : normalised + from_half(x[stream_rows[row] * pixels * stored_in + i]);
      operand[i] = from_half(cae::half_bits(static_cast<float>(value)));
    }
    const RingImage image{operand.data(), weight, c.height, c.width, c.in, stored_in};
    const int height = 2 * c.height;
    const int width = 2 * c.width;
    double size = 0.0;  // mean square of the exact form
    for (int o = 0; o < c.out; ++o) {
      for (int ox = 0; ox < width; ++ox) {
        size += std::pow(image.exact(o, 0, ox), 2) / (c.out * width);
      }
    }
    const double tolerance = kTolerance * std::sqrt(size);
    for (int oy = 0; oy < height; ++oy) {
      for (int ox = 0; ox < width; ++ox) {
        const bool on_row = oy == 0 || oy == height - 1;
        const bool on_column = ox == 0 || ox == width - 1;
        for (int o = 0; o < stored_out; ++o) {
          double got = 0.0;
          if (on_row) {
            got += got_rows[((static_cast<size_t>(row) * 2 + (oy == 0 ? 0 : 1)) * width + ox) *
                                stored_out +
                            o];
          }
          if (on_column) {
            got += got_columns[((static_cast<size_t>(row) * 2 + (ox == 0 ? 0 : 1)) * height + oy) *
                                   stored_out +
                               o];
          }
          if (row == 1) {
            CAE_TEST_CHECK(!(on_row || on_column) || std::isnan(got));  // as it was
          } else if (o >= c.out) {
            CAE_TEST_CHECK(got == 0.0);
          } else {
            const double want = image.exact(o, oy, ox) - image.replicated(o, oy, ox);
            CAE_TEST_CHECK(std::fabs(got / kScale - want) <= tolerance);
          }
        }
      }
    }
  }
}

/// A NaN in a corner reaches what it touches, and no padding.
void test_nan() {
  constexpr int kSize = 4;
  constexpr int kChannels = 8;
  constexpr int kOut = 3;
  Random random(9);
  std::vector<uint16_t> y = random.halves(kSize * kSize, kChannels, kChannels);
  y[0] = 0x7e00;
  const NormCase norm(random, 1, 1, kChannels);
  const DeviceArray<uint16_t> device_y(y);
  const DeviceArray<uint16_t> weights(cae::cuda::pack_upsample_ring(
      random.normals(kOut * kChannels * 25).data(), kOut, kChannels, 1.0F));
  const DeviceArray<float> ring_rows(4 * kSize * 8);
  const DeviceArray<float> ring_columns(4 * kSize * 8);
  UpsampleRingParams params;
  params.prologue = ConvPrologue::kAffineRelu;
  params.rows = 1;
  params.height = kSize;
  params.width = kSize;
  params.in_channels = kChannels;
  params.out_channels = 8;
  params.real_channels = kOut;
  params.norm = norm.input();
  params.y = device_y.data();
  params.weights = weights.data();
  params.ring_rows = ring_rows.data();
  params.ring_columns = ring_columns.data();
  cae::cuda::upsample_ring(params, nullptr);
  for (const auto& got : {ring_rows.read(), ring_columns.read()}) {
    CAE_TEST_CHECK(std::isnan(got[0]));
    CAE_TEST_CHECK(got[kOut] == 0.0F);
    CAE_TEST_CHECK(std::isfinite(got[(2 * kSize - 1) * 8]));
  }
}

/// Ring and convolution together: the upsampling layer as it is specified.
void test_layer() {
  cae::test::ConvProblem p({ConvKind::kUpsample,
                            ConvPrologue::kAffineRelu,
                            ConvEpilogue::kShuffle,
                            1,
                            9,
                            17,
                            12,
                            20,
                            {}},
                           3);
  UpsampleRingParams params;
  params.prologue = p.c.prologue;
  params.rows = p.c.rows;
  params.height = p.c.height;
  params.width = p.c.width;
  params.in_channels = p.stored_in;
  params.out_channels = p.stored_out;
  params.real_channels = p.c.out;
  params.norm = p.params.norm;
  params.y = p.y.data();
  params.ring_rows = p.ring_rows.data();
  params.ring_columns = p.ring_columns.data();
  {
    const DeviceArray<uint16_t> weights(
        cae::cuda::pack_upsample_ring(p.weight.data(), p.c.out, p.c.in, p.packed.scale[0]));
    params.weights = weights.data();
    std::vector<std::unique_ptr<cae::emu::ExternalMemory>> guards;
    const auto guard = [&](const auto& values) {
      guards.push_back(std::make_unique<cae::emu::ExternalMemory>(
          values.data(), values.size() * sizeof(values[0]), cae::emu::ExternalUse::kWritten));
    };
    guard(p.y);
    guard(p.partials_in);
    guard(p.counts);
    guard(p.eps);
    guard(p.gamma);
    guard(p.beta);
    guard(p.ring_rows);
    guard(p.ring_columns);
    cae::cuda::upsample_ring(params, nullptr);
  }
  cae::test::run_conv(p);
  const RingImage image{p.operand.data(), p.weight, p.c.height, p.c.width, p.c.in, p.stored_in};
  for (int oy = 0; oy < 2 * p.c.height; ++oy) {
    for (int ox = 0; ox < 2 * p.c.width; ++ox) {
      for (int o = 0; o < p.c.out; ++o) {
        const double got =
            from_half(p.output[(static_cast<size_t>(oy) * 2 * p.c.width + ox) * p.stored_out + o]);
        const double want = image.exact(o, oy, ox) * p.packed.scale[o] + p.padded_bias[o];
        CAE_TEST_CHECK(std::fabs(got - want) <= 2e-3 * (1.0 + std::fabs(want)));
      }
    }
  }
}

void test_refusals() {
  UpsampleRingParams params;
  cae::cuda::upsample_ring(params, nullptr);  // no rows: nothing
  params.rows = 1;
  params.height = 1;
  params.width = 4;
  params.in_channels = 8;
  params.out_channels = 8;
  CAE_TEST_CHECK(cae::testing::throws<std::invalid_argument>(
      [&] { cae::cuda::upsample_ring(params, nullptr); }));
  params.height = 4;
  params.out_channels = 12;
  CAE_TEST_CHECK(cae::testing::throws<std::invalid_argument>(
      [&] { cae::cuda::upsample_ring(params, nullptr); }));
  CAE_TEST_CHECK(cae::testing::throws<std::invalid_argument>(
      [] { cae::cuda::pack_upsample_ring(nullptr, 0, 1, 1.0F); }));
}

}  // namespace

int main() {
  test_ring({ConvPrologue::kAffineRelu, 4, 4, 8, 8});
  test_ring({ConvPrologue::kResidual, 5, 12, 20, 3});
  test_ring({ConvPrologue::kPlain, 2, 2, 1, 1});
  test_ring({ConvPrologue::kAffineRelu, 17, 17, 72, 20, NormKind::kLayer});
  test_ring({ConvPrologue::kResidual, 65, 3, 3, 40});
  test_ring({ConvPrologue::kPlain, 2, 130, 40, 33});
  test_ring({ConvPrologue::kAffineRelu, 3, 32, 8, 8});  // corners last and first of a warp
  test_ring({ConvPrologue::kPlain, 2, 65, 8, 8});
  test_nan();
  test_layer();
  test_refusals();
  return cae::testing::finish("test_upsample_ring");
}
