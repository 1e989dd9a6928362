// SPDX-License-Identifier: Apache-2.0
// Arrays in device memory and random numbers for the tests of small kernels.
#pragma once

#include <cmath>
#include <cstdint>
#include <memory>
#include <random>
#include <vector>

#include "core/half_bits.h"
#include "cuda/conv_pack.h"
#include "cuda/gpu_runtime.h"
#include "cuda/norm_input.h"
#include "tests/emu/conv_case.h"

namespace cae::test {

/// An array in device memory; where nothing was written, NaN.
template <class T>
class DeviceArray {
 public:
  explicit DeviceArray(size_t size) : size_(size), buffer_(0, size * sizeof(T)) {}
  explicit DeviceArray(const std::vector<T>& values) : DeviceArray(values.size()) {
    gpu::copy_to_device(buffer_.data(), values.data(), buffer_.bytes(), nullptr);
  }
  T* data() const { return buffer_.template as<T>(); }
  void seal() const { buffer_.seal(); }
  std::vector<T> read() const {
    std::vector<T> values(size_);
    gpu::copy_to_host(values.data(), buffer_.data(), buffer_.bytes(), nullptr);
    gpu::synchronize(nullptr);
    return values;
  }

 private:
  size_t size_;
  gpu::DeviceBuffer buffer_;
};

class Random {
 public:
  explicit Random(unsigned seed) : engine_(seed) {}
  float normal() { return distribution_(engine_); }
  std::vector<float> normals(size_t count, float scale = 1.0F, float mean = 0.0F) {
    std::vector<float> values(count);
    for (float& value : values) {
      value = mean + scale * normal();
    }
    return values;
  }
  /// [pixels][stored] halves, zeros from `channels` on.
  std::vector<uint16_t> halves(size_t pixels, int channels, int stored) {
    std::vector<uint16_t> values(pixels * stored, 0);
    for (size_t i = 0; i < values.size(); ++i) {
      if (static_cast<int>(i % stored) < channels) {
        values[i] = half_bits(1.5F * normal() + 0.7F);
      }
    }
    return values;
  }

 private:
  std::mt19937 engine_;
  std::normal_distribution<float> distribution_;
};

inline bool is_nan_half(uint16_t bits) { return (bits & 0x7fffU) > 0x7c00U; }

/// Made-up moments and modulation of `rows` rows in `kParts` parts, in device memory.
struct NormCase {
  static constexpr int kParts = 3;
  static constexpr double kTotal = 200.0;

  NormCase(Random& random, int norm_rows, int mod_rows, int stored,
           cuda::NormKind norm_kind = cuda::NormKind::kInstance)
      : kind(norm_kind),
        channels(stored),
        pairs(kind == cuda::NormKind::kLayer ? 1 : stored),
        partials(random.normals(static_cast<size_t>(norm_rows) * kParts * pairs * 2, 0.1F, 0.7F)),
        gamma(random.normals(static_cast<size_t>(mod_rows) * stored, 0.3F, 1.0F)),
        beta(random.normals(gamma.size(), 0.3F)),
        counts{100.0F, 60.0F, 40.0F},
        eps(stored, 1e-5F) {
    for (size_t i = 1; i < partials.size(); i += 2) {
      partials[i] = 200.0F * std::fabs(partials[i]);
    }
    device_partials = std::make_unique<DeviceArray<float>>(partials);
    device_gamma = std::make_unique<DeviceArray<float>>(gamma);
    device_beta = std::make_unique<DeviceArray<float>>(beta);
    device_counts = std::make_unique<DeviceArray<float>>(counts);
    device_eps = std::make_unique<DeviceArray<float>>(eps);
  }

  cuda::NormInput input() const {
    cuda::NormInput norm;
    norm.kind = kind;
    norm.channels = channels;
    norm.parts = kParts;
    norm.partials = device_partials->data();
    norm.counts = device_counts->data();
    norm.total = static_cast<float>(kTotal);
    norm.eps = device_eps->data();
    norm.gamma = device_gamma->data();
    norm.beta = device_beta->data();
    norm.mod_stride = channels;
    return norm;
  }

  /// scale * value + shift.
  double normalised(int norm_row, int mod_row, int channel, double value) const {
    const int pair = kind == cuda::NormKind::kLayer ? 0 : channel;
    const float* parts = &partials[(static_cast<size_t>(norm_row) * kParts * pairs + pair) * 2];
    double mean = 0.0;
    double m2 = 0.0;
    for (int t = 0; t < kParts; ++t) {
      mean += static_cast<double>(parts[t * pairs * 2]) * counts[t] / kTotal;
    }
    for (int t = 0; t < kParts; ++t) {
      const double d = parts[t * pairs * 2] - mean;
      m2 += parts[t * pairs * 2 + 1] + d * d * counts[t];
    }
    const double deviation = kind == cuda::NormKind::kLayer ? std::sqrt(m2 / (kTotal - 1.0)) + 1e-5
                                                            : std::sqrt(m2 / kTotal + 1e-5);
    const double scale = gamma[mod_row * channels + channel] / deviation;
    return scale * (value - mean) + beta[mod_row * channels + channel];
  }

  cuda::NormKind kind;
  int channels;
  int pairs;  // of moments per part
  std::vector<float> partials, gamma, beta, counts, eps;
  std::unique_ptr<DeviceArray<float>> device_partials, device_gamma, device_beta, device_counts,
      device_eps;
};

}  // namespace cae::test
