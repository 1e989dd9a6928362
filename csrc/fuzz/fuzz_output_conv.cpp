// SPDX-License-Identifier: Apache-2.0
// The network's ends, of any small sizes: the last layer is refused, or writes its planes and
// nothing behind them, what the sums of products say; images are padded to what their borders say,
// and turned to planes and back.
#include <algorithm>
#include <cmath>

#include "cpu/border.h"
#include "fuzz_input.h"
#include "ops/output_conv.h"
#include "ops/pad_image.h"

namespace {

using cae::Arithmetic;
using cae::ConvSource;
using cae::OutputConv;
using cae::PaddedShape;
using cae::Padding;
using cae::cpu::border_index;
using cae::fuzz::Bytes;

constexpr float kUnwritten = 1e30F;

std::vector<float> whole_numbers(int64_t count, uint8_t seed) {
  std::vector<float> values(static_cast<size_t>(count));
  for (size_t i = 0; i < values.size(); ++i) {
    values[i] = static_cast<float>(static_cast<int64_t>((i * 13 + seed) % 11) - 5);
  }
  return values;
}

/// Images in memory of their own, normalised by whole numbers, so that every value is exact.
class Sources {
 public:
  Sources(Bytes& bytes, int64_t images, int64_t pixels, int64_t channels) : channels_(channels) {
    const uint8_t kind = bytes.byte() % 3;
    relu_ = kind == 1;
    scale_ = whole_numbers(channels, bytes.byte());
    shift_ = whole_numbers(channels, bytes.byte());
    for (int64_t n = 0; n < images; ++n) {
      in_.push_back(whole_numbers(pixels * channels, bytes.byte()));
      residual_.push_back(whole_numbers(kind == 2 ? pixels * channels : 0, bytes.byte()));
    }
    for (size_t n = 0; n < in_.size(); ++n) {
      sources_.push_back({in_[n].data(), scale_.data(), shift_.data(),
                          kind == 2 ? residual_[n].data() : nullptr, relu_});
    }
  }

  const std::vector<ConvSource>& all() const { return sources_; }

  float value(size_t image, int64_t pixel, int64_t c) const {
    const auto at = static_cast<size_t>(pixel * channels_ + c);
    const auto channel = static_cast<size_t>(c);
    const float affine = scale_[channel] * in_[image][at] + shift_[channel];
    return residual_[image].empty() ? (relu_ ? std::max(affine, 0.0F) : affine)
                                    : residual_[image][at] + affine;
  }

 private:
  int64_t channels_;
  bool relu_ = false;
  std::vector<float> scale_;
  std::vector<float> shift_;
  std::vector<std::vector<float>> in_;
  std::vector<std::vector<float>> residual_;
  std::vector<ConvSource> sources_;
};

/// What output [y, x, o] is before its tanh, and the largest that such a sum can be.
struct Expected {
  double sum;
  double largest;
};

Expected expected_output(const OutputConv& conv, const Sources& sources, size_t image,
                         const std::vector<float>& weight, int64_t o, int64_t y, int64_t x) {
  Expected expected{conv.bias[static_cast<size_t>(o)], 1.0};
  for (int64_t i = 0; i < conv.kernel; ++i) {
    for (int64_t j = 0; j < conv.kernel; ++j) {
      const int64_t row = border_index(y + i - conv.kernel / 2, conv.height, Padding::kReflect);
      const int64_t column = border_index(x + j - conv.kernel / 2, conv.width, Padding::kReflect);
      for (int64_t c = 0; c < conv.channels; ++c) {
        const float tap = weight[static_cast<size_t>(
            ((o * conv.channels + c) * conv.kernel + i) * conv.kernel + j)];
        expected.sum += tap * sources.value(image, row * conv.width + column, c);
        expected.largest += std::fabs(tap) * 35.0;
      }
    }
  }
  return expected;
}

void fuzz_output(Bytes& bytes) {
  const int64_t kernel = bytes.byte() % 2 == 0 ? 7 : bytes.small(0, 9);
  const std::vector<int64_t> shape = {bytes.small(0, 5), bytes.small(0, 6), kernel,
                                      kernel + (bytes.byte() % 16 == 15 ? 1 : 0)};
  std::vector<float> weight =
      whole_numbers(shape[0] * shape[1] * shape[2] * shape[3], bytes.byte());
  for (float& tap : weight) {
    tap /= 2048.0F;
  }
  const std::vector<float> bias(static_cast<size_t>(shape[0]), bytes.number());
  const int64_t height = bytes.small(0, 45);
  const int64_t width = bytes.byte() % 8 == 7 ? bytes.small(100, 200) : bytes.small(0, 20);
  const Arithmetic arithmetic = bytes.byte() % 2 == 0 ? Arithmetic::kFast : Arithmetic::kExact;
  OutputConv conv;
  const bool planned = cae::fuzz::accepts([&] {
    conv = cae::plan_output_conv({weight.data(), shape}, bias.data(), height, width, arithmetic);
  });
  if (!planned) {
    return;
  }
  CAE_FUZZ_CHECK(kernel % 2 == 1 && shape[3] == kernel && kernel * shape[0] <= 32);
  CAE_FUZZ_CHECK(height > kernel / 2 && width > kernel / 2);
  const int64_t images = bytes.small(0, 2);
  const Sources sources(bytes, images, height * width, shape[1]);
  const auto size = static_cast<size_t>(images * shape[0] * height * width);
  std::vector<float> planes(size + 1, kUnwritten);
  cae::Scratch scratch;
  cae::output_conv(conv, sources.all(), planes.data(), scratch);
  CAE_FUZZ_CHECK(planes[size] == kUnwritten);
  const size_t step = 1 + bytes.byte() % 16;  // some outputs of a large image, all of a small one
  for (size_t at = 0; at < size; at += size < 500 ? 1 : step) {
    const auto pixel = static_cast<int64_t>(at) % (height * width);
    const int64_t plane = static_cast<int64_t>(at) / (height * width);
    const Expected expected =
        expected_output(conv, sources, static_cast<size_t>(plane / shape[0]), weight,
                        plane % shape[0], pixel / width, pixel % width);
    const double error = std::fabs(planes[at] - std::tanh(expected.sum));
    // a broken bias breaks its own plane, and nothing else is broken
    CAE_FUZZ_CHECK(std::isnan(expected.sum) ? std::isnan(planes[at])
                                            : error < 1e-6 + 1e-6 * expected.largest);
  }
}

/// Channels-last with its border, and a copy without.
void fuzz_padding(Bytes& bytes) {
  const Padding padding = bytes.byte() % 2 == 0 ? Padding::kReflect : Padding::kReplicate;
  const int64_t pad = bytes.small(0, 3);
  const int64_t least = padding == Padding::kReflect ? pad + 1 : 1;
  const PaddedShape shape{least + bytes.small(0, 20), least + bytes.small(0, 20),
                          bytes.small(1, 20), pad, padding};
  const int64_t pixels = shape.height * shape.width;
  const Sources sources(bytes, 1, pixels, shape.channels);
  const auto size = static_cast<size_t>(pixels * shape.channels);
  std::vector<float> padded(static_cast<size_t>(shape.size()) + 1, kUnwritten);
  std::vector<float> stream(size + 1, kUnwritten);
  cae::pad_image(shape, {{sources.all().front(), padded.data(), stream.data()}});
  CAE_FUZZ_CHECK(padded.back() == kUnwritten && stream.back() == kUnwritten);

  std::vector<float> planes(size + 1, kUnwritten);
  cae::Scratch scratch;
  cae::source_planes(shape, sources.all(), planes.data(), scratch);
  CAE_FUZZ_CHECK(planes.back() == kUnwritten);
  std::vector<float> again(padded.size(), kUnwritten);
  cae::pad_planes(shape, {{planes.data(), again.data()}});
  CAE_FUZZ_CHECK(again == padded);

  for (int64_t y = -pad; y < shape.height + pad; ++y) {
    for (int64_t x = -pad; x < shape.width + pad; ++x) {
      const int64_t pixel = border_index(y, shape.height, padding) * shape.width +
                            border_index(x, shape.width, padding);
      for (int64_t c = 0; c < shape.channels; ++c) {
        const float value = sources.value(0, pixel, c);
        const int64_t at = (y + pad) * shape.row_stride() + (x + pad) * shape.channels + c;
        CAE_FUZZ_CHECK(padded[static_cast<size_t>(at)] == value);
        CAE_FUZZ_CHECK(stream[static_cast<size_t>(pixel * shape.channels + c)] == value);
      }
    }
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  Bytes bytes(data, size);
  bytes.byte() % 2 == 0 ? fuzz_output(bytes) : fuzz_padding(bytes);
  return 0;
}
