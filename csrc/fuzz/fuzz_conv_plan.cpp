// SPDX-License-Identifier: Apache-2.0
// Plans of convolutions: of any small sizes a plan is refused, or runs within its images and gives
// what the sum of products says; Winograd's filtering gives what direct sums do.
#include <algorithm>
#include <cmath>

#include "fuzz_input.h"
#include "ops/conv_layer.h"

namespace {

using cae::Arithmetic;
using cae::ConvLayer;
using cae::ConvPlan;
using cae::fuzz::Bytes;

constexpr float kBorder = 1e30F;  // marks what lies behind an output, or was not written

struct Layer {
  std::vector<int64_t> shape;  // [O, C, k, k]
  std::vector<float> weight;
};

Layer read_layer(Bytes& bytes, int64_t kernel) {
  Layer layer;
  layer.shape = {bytes.small(0, 40), bytes.small(0, 9), kernel, kernel};
  const int64_t count = layer.shape[0] * layer.shape[1] * kernel * kernel;
  layer.weight.resize(static_cast<size_t>(count));
  const uint8_t seed = bytes.byte();
  for (size_t i = 0; i < layer.weight.size(); ++i) {
    layer.weight[i] = static_cast<float>(static_cast<int64_t>((i * 31 + seed) % 17) - 8) / 16.0F;
  }
  if (bytes.byte() % 8 == 7) {
    layer.shape[bytes.byte() % layer.shape.size()] += 1;  // does not fit
    int64_t size = 1;
    for (const int64_t dim : layer.shape) {
      size *= dim;
    }
    layer.weight.resize(static_cast<size_t>(size));
  }
  return layer;
}

/// Runs the plan on an image of small whole numbers, so that every sum is exact.
std::vector<float> run(const ConvPlan& plan, const std::vector<float>& in) {
  const auto channels = static_cast<size_t>(plan.out_channels);
  const auto pixels = static_cast<size_t>(plan.out_height * plan.out_width);
  std::vector<float> out(pixels * channels + 1, kBorder);
  std::vector<float> partials(plan.chunks.size() * 2 * channels);
  cae::conv2d(plan, {{in.data(), out.data(), partials.data()}});
  CAE_FUZZ_CHECK(out.back() == kBorder);
  out.pop_back();
  return out;
}

std::vector<float> padded_image(Bytes& bytes, const ConvPlan& plan) {
  std::vector<float> in(static_cast<size_t>(plan.in.size()));
  const uint8_t seed = bytes.byte();
  for (size_t i = 0; i < in.size(); ++i) {
    in[i] = static_cast<float>(static_cast<int64_t>((i * 13 + seed) % 11) - 5);
  }
  return in;
}

void fuzz_plain(Bytes& bytes) {
  const int64_t kernel = bytes.small(0, 7);
  const Layer layer = read_layer(bytes, kernel);
  const int64_t pad = bytes.small(-1, 3);
  const int64_t height = bytes.small(-1, 12);
  const int64_t width = bytes.small(-1, 12);
  const int64_t stride = bytes.small(-1, 3);
  ConvPlan plan;
  const bool planned = cae::fuzz::accepts([&] {
    plan = cae::plan_conv2d({layer.weight.data(), layer.shape}, height, width, stride, pad);
  });
  if (!planned) {
    return;
  }
  CAE_FUZZ_CHECK(stride >= 1 && layer.shape[2] == layer.shape[3]);
  CAE_FUZZ_CHECK(pad >= 0 && height > pad && width > pad);
  if (layer.shape[2] != kernel) {
    return;
  }
  const std::vector<float> in = padded_image(bytes, plan);
  const std::vector<float> out = run(plan, in);
  const int64_t channels = layer.shape[1];
  size_t at = 0;
  for (int64_t y = 0; y < plan.out_height; ++y) {
    for (int64_t x = 0; x < plan.out_width; ++x) {
      for (int64_t o = 0; o < layer.shape[0]; ++o) {
        float sum = 0.0F;
        for (int64_t i = 0; i < kernel; ++i) {
          for (int64_t j = 0; j < kernel; ++j) {
            const int64_t pixel =
                (y * stride + i) * plan.in.row_stride() + (x * stride + j) * channels;
            for (int64_t c = 0; c < channels; ++c) {
              const int64_t tap = ((o * channels + c) * kernel + i) * kernel + j;
              sum += in[static_cast<size_t>(pixel + c)] * layer.weight[static_cast<size_t>(tap)];
            }
          }
        }
        CAE_FUZZ_CHECK(std::fabs(out[at++] - sum) < 1e-3F);
      }
    }
  }
}

void fuzz_upsampling(Bytes& bytes) {
  const Layer layer = read_layer(bytes, 5);
  const int64_t height = bytes.small(0, 8);
  const int64_t width = bytes.small(0, 8);
  ConvPlan plan;
  const bool planned = cae::fuzz::accepts(
      [&] { plan = cae::plan_upsample_conv({layer.weight.data(), layer.shape}, height, width); });
  if (!planned) {
    return;
  }
  CAE_FUZZ_CHECK(height >= 2 && width >= 2 && layer.shape[2] == 5 && layer.shape[3] == 5);
  CAE_FUZZ_CHECK(plan.out_height == 2 * height && plan.out_width == 2 * width);
  for (const float value : run(plan, padded_image(bytes, plan))) {
    CAE_FUZZ_CHECK(value != kBorder && std::isfinite(value));  // every output is written
  }
}

std::vector<float> run_layer(const ConvLayer& layer, const std::vector<float>& in) {
  const std::vector<float> ones(static_cast<size_t>(layer.channels), 1.0F);
  const std::vector<float> zeros(static_cast<size_t>(layer.channels), 0.0F);
  std::vector<float> padded(static_cast<size_t>(layer.padded_size()));
  std::vector<float> stream(in.size());  // of any alignment
  std::vector<float> partials(static_cast<size_t>(layer.partials_size()));
  cae::AlignedBuffer out(layer.out_size());
  std::fill_n(out.data(), layer.out_size(), kBorder);
  cae::Scratch scratch;
  cae::run_layer(layer,
                 {{{in.data(), ones.data(), zeros.data(), nullptr, true},
                   layer.out_height == layer.height && layer.winograd ? stream.data() : nullptr,
                   padded.data(),
                   out.data(),
                   partials.data()}},
                 scratch);
  return {out.data(), out.data() + layer.out_size()};
}

/// Layers of the three kinds that Winograd's filtering knows, and of others.
void fuzz_layer(Bytes& bytes) {
  const int64_t kernel = bytes.small(1, 6);
  const Layer layer = read_layer(bytes, kernel);
  const int64_t height = bytes.small(0, 13);
  const int64_t width = bytes.small(0, 13);
  const int64_t stride = bytes.small(1, 2);
  const int64_t pad = bytes.small(0, 2);
  const auto plan = [&](Arithmetic arithmetic) {
    const cae::TensorView<const float> weight(layer.weight.data(), layer.shape);
    return kernel == 5 ? cae::plan_upsample_layer(weight, height, width, arithmetic)
                       : cae::plan_layer(weight, height, width, stride, pad, arithmetic);
  };
  ConvLayer fast;
  ConvLayer exact;
  const bool planned = cae::fuzz::accepts([&] { fast = plan(Arithmetic::kFast); });
  CAE_FUZZ_CHECK(cae::fuzz::accepts([&] { exact = plan(Arithmetic::kExact); }) == planned);
  if (!planned) {
    return;
  }
  std::vector<float> in(static_cast<size_t>(fast.in_size()));
  const uint8_t seed = bytes.byte();
  for (size_t i = 0; i < in.size(); ++i) {
    in[i] = static_cast<float>(static_cast<int64_t>((i * 13 + seed) % 11) - 5);
  }
  const std::vector<float> values = run_layer(fast, in);
  const std::vector<float> expected = run_layer(exact, in);
  CAE_FUZZ_CHECK(values.size() == expected.size());
  // of the largest sum that such values can make: |weight| <= 1/2, |in| <= 5
  const float largest = 2.5F * static_cast<float>(kernel * kernel * layer.shape[1]);
  for (size_t i = 0; i < values.size(); ++i) {
    CAE_FUZZ_CHECK(std::fabs(values[i] - expected[i]) < 1e-5F * largest);
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  Bytes bytes(data, size);
  switch (bytes.byte() % 3) {
    case 0:
      fuzz_plain(bytes);
      break;
    case 1:
      fuzz_upsampling(bytes);
      break;
    default:
      fuzz_layer(bytes);
      break;
  }
  return 0;
}
