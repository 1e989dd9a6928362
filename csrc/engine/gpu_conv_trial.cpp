// SPDX-License-Identifier: Apache-2.0
#include "engine/gpu_conv_trial.h"

#include <cmath>
#include <stdexcept>

#include "core/check.h"
#include "core/half_bits.h"
#include "cuda/conv_pack.h"

namespace cae::gpu {
namespace {

using cuda::ConvKind;
using cuda::ConvTile;

// Four tiles; three k-blocks, the last partly filled; 256 columns of the product.
constexpr int kHeight = 16;
constexpr int kWidth = 32;
constexpr int kIn = 136;
constexpr int kColumns = 256;
constexpr int kParts = cuda::conv_tiles(kHeight, kWidth);

/// Numbers in [-1, 1), the same everywhere.
class Numbers {
 public:
  std::vector<float> take(size_t count) {
    std::vector<float> values(count);
    for (float& value : values) {
      value = next();
    }
    return values;
  }
  float next() {
    state_ = state_ * 1664525U + 1013904223U;
    return static_cast<float>(state_ >> 8) / 8388608.0F - 1.0F;
  }

 private:
  uint32_t state_ = 1;
};

/// One convolution of random numbers, and memory for what it gives.
class Trial {
 public:
  Trial(int device, ConvKind kind, int32_t cluster) : device_(device) {
    const bool up = kind == ConvKind::kUpsample;
    const int kernel = up ? 5 : 3;
    const int out = up ? kColumns / 4 : kColumns;
    Numbers numbers;
    const std::vector<float> weight =
        numbers.take(static_cast<size_t>(out) * kIn * kernel * kernel);
    const cuda::PackedConv packed =
        cuda::pack_conv(kind, weight.data(), nullptr, out, kIn, nullptr);
    std::vector<uint16_t> input(static_cast<size_t>(kHeight) * kWidth * kIn);
    for (uint16_t& value : input) {
      value = half_bits(numbers.next());
    }
    input_ = upload(input);
    weights_ = upload(packed.weights);
    output_ = DeviceBuffer(device, static_cast<size_t>(kHeight) * kWidth * kColumns * 2);
    const int pairs = up ? cuda::conv_pieces(kColumns) : kColumns;
    partials_ = DeviceBuffer(device, static_cast<size_t>(kParts) * pairs * 2 * sizeof(float));
    params_.kind = kind;
    params_.rows = 1;
    params_.in_height = params_.out_height = kHeight;
    params_.in_width = params_.out_width = kWidth;
    params_.in_channels = packed.in_channels;
    params_.out_channels = packed.out_channels;
    params_.real_channels = packed.real_channels;
    params_.cluster = cluster;
    params_.y = input_.as<const uint16_t>();
    params_.weights = weights_.as<const uint16_t>();
    params_.out = output_.as<uint16_t>();
    params_.partials = partials_.as<float>();
    if (up) {
      normalise(numbers);
    }
  }

  /// Values, then moments.
  std::vector<float> run(cuda::ConvPath path, const ConvTile& tile, ConvLauncher launch) {
    params_.path = path;
    params_.tile = tile;
    fill_zero(output_.data(), output_.bytes(), nullptr);
    fill_zero(partials_.data(), partials_.bytes(), nullptr);
    launch(params_, nullptr);
    std::vector<uint16_t> halves(output_.bytes() / 2);
    std::vector<float> moments(partials_.bytes() / sizeof(float));
    copy_to_host(halves.data(), output_.data(), output_.bytes(), nullptr);
    copy_to_host(moments.data(), partials_.data(), partials_.bytes(), nullptr);
    synchronize(nullptr);
    std::vector<float> values;
    values.reserve(halves.size() + moments.size());
    for (const uint16_t bits : halves) {
      values.push_back(half_value(bits));
    }
    values.insert(values.end(), moments.begin(), moments.end());
    return values;
  }

 private:
  /// What an upsampling layer reads besides: moments of its input, biases, the ring.
  void normalise(Numbers& numbers) {
    constexpr float kPixels = kHeight * kWidth;
    std::vector<float> parts;
    for (int c = 0; c < kIn; ++c) {
      parts.insert(parts.end(), {0.2F * numbers.next(), kPixels / 3});  // mean, M2
    }
    norm_parts_ = upload(parts);
    norm_counts_ = upload(std::vector<float>{kPixels});
    norm_eps_ = upload(std::vector<float>(kIn, 1e-5F));
    bias_ = upload(numbers.take(kColumns));
    ring_rows_ = upload(numbers.take(static_cast<size_t>(2) * 2 * kWidth * kColumns / 4));
    ring_columns_ = upload(numbers.take(static_cast<size_t>(2) * 2 * kHeight * kColumns / 4));
    params_.prologue = cuda::ConvPrologue::kAffineRelu;
    params_.epilogue = cuda::ConvEpilogue::kShuffle;
    params_.norm.kind = cuda::NormKind::kInstance;
    params_.norm.channels = kIn;
    params_.norm.parts = 1;
    params_.norm.total = kPixels;
    params_.norm.partials = norm_parts_.as<const float>();
    params_.norm.counts = norm_counts_.as<const float>();
    params_.norm.eps = norm_eps_.as<const float>();
    params_.bias = bias_.as<const float>();
    params_.ring_rows = ring_rows_.as<const float>();
    params_.ring_columns = ring_columns_.as<const float>();
  }

  template <class T>
  DeviceBuffer upload(const std::vector<T>& values) const {
    DeviceBuffer buffer(device_, values.size() * sizeof(T));
    copy_to_device(buffer.data(), values.data(), buffer.bytes(), nullptr);
    synchronize(nullptr);  // `values` may go
    return buffer;
  }

  int device_;
  DeviceBuffer input_;
  DeviceBuffer weights_;
  DeviceBuffer output_;
  DeviceBuffer partials_;
  DeviceBuffer norm_parts_;
  DeviceBuffer norm_counts_;
  DeviceBuffer norm_eps_;
  DeviceBuffer bias_;
  DeviceBuffer ring_rows_;
  DeviceBuffer ring_columns_;
  cuda::ConvParams params_;
};

/// Values are about 1 and rounded to halves: sums in another order may round to the next one, 2^-10
/// away at 2 and above. Moments are sums of hundreds or thousands.
bool close(const std::vector<float>& one, const std::vector<float>& other) {
  for (size_t i = 0; i < one.size(); ++i) {
    const float most = 4e-3F * (1.0F + std::fabs(one[i]));
    if (!(std::fabs(one[i] - other[i]) <= most)) {  // nor NaN
      return false;
    }
  }
  return true;
}

std::string name_of(const ConvTile& tile) {
  return std::to_string(tile.pixels) + " x " + std::to_string(tile.columns);
}

}  // namespace

ConvAgreement conv_paths_agree(int device, int32_t cluster, const std::vector<ConvTile>& tiles,
                               ConvLauncher launch) {
  const DeviceGuard guard(device);
  ConvAgreement agreement{"", true};
  const auto separator = [&agreement] { return agreement.wrong.empty() ? "" : ", "; };
  for (const ConvKind kind : {ConvKind::kConv3x3, ConvKind::kUpsample}) {
    const std::string of =
        kind == ConvKind::kConv3x3 ? "3x3 in tiles of " : "upsampling in tiles of ";
    std::string at = "portable";
    try {
      Trial trial(device, kind, cluster);
      const std::vector<float> wanted = trial.run(cuda::ConvPath::kPortable, ConvTile{}, launch);
      std::vector<float> first;
      for (const ConvTile& tile : tiles) {
        at = name_of(tile);
        const std::vector<float> got = trial.run(cuda::ConvPath::kWgmma, tile, launch);
        if (!close(wanted, got)) {
          agreement.wrong += concat(separator(), of, at);
        }
        first = first.empty() ? got : first;
        agreement.same_bits = agreement.same_bits && first == got;
      }
    } catch (const std::runtime_error& error) {
      if (is_emulated()) {
        throw;  // a fault, to be seen
      }
      agreement.wrong += concat(separator(), of, at, ": ", error.what());
      return agreement;
    }
  }
  return agreement;
}

}  // namespace cae::gpu
