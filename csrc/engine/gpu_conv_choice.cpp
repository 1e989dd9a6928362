// SPDX-License-Identifier: Apache-2.0
#include "engine/gpu_conv_choice.h"

#include <cmath>
#include <cstdlib>
#include <map>
#include <mutex>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "core/check.h"
#include "core/half_bits.h"
#include "cuda/conv_pack.h"

namespace cae::gpu {
namespace {

constexpr int kHopper = 90;

// Four tiles; two k-blocks, the second partly filled; stages of weights that come round.
constexpr int kSize = 16;
constexpr int kWidth = 32;
constexpr int kIn = 72;
constexpr int kOut = 256;
constexpr int kParts = cuda::conv_tiles(kSize, kWidth);
constexpr cuda::ConvTile kTiles[] = {{128, 64}, {128, 128}, {64, 128}, {128, 256}};

/// Numbers in [-1, 1), the same everywhere.
class Numbers {
 public:
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
  Trial(int device, int32_t cluster) : device_(device) {
    Numbers numbers;
    std::vector<float> weight(static_cast<size_t>(kOut) * kIn * 9);
    for (float& w : weight) {
      w = numbers.next();
    }
    const cuda::PackedConv packed =
        cuda::pack_conv(cuda::ConvKind::kConv3x3, weight.data(), nullptr, kOut, kIn, nullptr);
    std::vector<uint16_t> input(static_cast<size_t>(kSize) * kWidth * kIn);
    for (uint16_t& value : input) {
      value = half_bits(numbers.next());
    }
    input_ = upload(input);
    weights_ = upload(packed.weights);
    output_ = DeviceBuffer(device, static_cast<size_t>(kSize) * kWidth * kOut * 2);
    partials_ = DeviceBuffer(device, static_cast<size_t>(kParts) * kOut * 2 * sizeof(float));
    params_.rows = 1;
    params_.in_height = params_.out_height = kSize;
    params_.in_width = params_.out_width = kWidth;
    params_.in_channels = packed.in_channels;
    params_.out_channels = packed.out_channels;
    params_.real_channels = packed.real_channels;
    params_.cluster = cluster;
    params_.y = input_.as<const uint16_t>();
    params_.weights = weights_.as<const uint16_t>();
    params_.out = output_.as<uint16_t>();
    params_.partials = partials_.as<float>();
  }

  /// Values, then moments.
  std::vector<float> run(cuda::ConvPath path, cuda::ConvTile tile, ConvLauncher launch) {
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
  cuda::ConvParams params_;
};

/// Values are about 1 and rounded to halves: sums in another order may round to the next one, 2^-10
/// away at 2 and above. Moments are sums of about a hundred.
bool close(const std::vector<float>& one, const std::vector<float>& other) {
  for (size_t i = 0; i < one.size(); ++i) {
    const float most = 4e-3F * (1.0F + std::fabs(one[i]));
    if (!(std::fabs(one[i] - other[i]) <= most)) {  // nor NaN
      return false;
    }
  }
  return true;
}

ConvAgreement agree_once(int device, int32_t cluster) {
  static std::mutex mutex;
  static std::map<std::pair<int, int32_t>, ConvAgreement> known;
  const std::lock_guard<std::mutex> lock(mutex);
  const auto found = known.find({device, cluster});
  if (found != known.end()) {
    return found->second;
  }
  const ConvAgreement agree = conv_paths_agree(device, cluster);
  known[{device, cluster}] = agree;
  return agree;
}

std::string environment(const char* name, const char* usual) {
  const char* value = std::getenv(name);
  return value == nullptr || *value == '\0' ? usual : value;
}

}  // namespace

ConvAgreement conv_paths_agree(int device, int32_t cluster, ConvLauncher launch) {
  const DeviceGuard guard(device);
  Trial trial(device, cluster);
  ConvAgreement agreement;
  std::string at = "first launches";
  try {
    const std::vector<float> wanted = trial.run(cuda::ConvPath::kPortable, {128, 64}, launch);
    const std::vector<float> first = trial.run(cuda::ConvPath::kWgmma, kTiles[0], launch);
    agreement.same_bits = true;
    for (const cuda::ConvTile& tile : kTiles) {
      at = std::to_string(tile.pixels) + " x " + std::to_string(tile.columns);
      const std::vector<float> got = trial.run(cuda::ConvPath::kWgmma, tile, launch);
      if (!close(wanted, got)) {
        agreement.wrong += (agreement.wrong.empty() ? "tile " : ", ") + at;
      }
      agreement.same_bits = agreement.same_bits && first == got;
    }
  } catch (const std::runtime_error& error) {
    if (is_emulated()) {
      throw;  // a fault, to be seen
    }
    agreement.wrong += (agreement.wrong.empty() ? "" : "; ") + at + ": " + error.what();
  }
  return agreement;
}

ConvChoice choose_conv(int device) {
  // Not "auto" as long as the wgmma path has never run on a GPU: a barrier that never comes there
  // alone would end the check, and with it the process's CUDA context.
  const std::string path = environment("CAE_GPU_CONV", "portable");
  const std::string cluster = environment("CAE_GPU_CLUSTER", "2");
  CAE_CHECK(path == "auto" || path == "portable" || path == "wgmma",
            "CAE_GPU_CONV must be auto, portable or wgmma, got ", path);
  CAE_CHECK(cluster == "1" || cluster == "2" || cluster == "4",
            "CAE_GPU_CLUSTER must be 1, 2 or 4, got ", cluster);
  ConvChoice choice;
  choice.cluster = cluster[0] - '0';
  const int capability = compute_capability(device);
  const bool can = capability == kHopper && cuda::conv_wgmma_built();
  CAE_CHECK(can || path != "wgmma",
            "CAE_GPU_CONV=wgmma needs compute capability 9.0 and a build for sm_90a; this GPU has ",
            capability / 10, ".", capability % 10, ", this build ",
            cuda::conv_wgmma_built() ? "has sm_90a" : "has none");
  if (!can || path == "portable") {
    return choice;
  }
  const ConvAgreement agree = agree_once(device, choice.cluster);
  if (path == "wgmma" && !agree.wrong.empty()) {
    throw std::runtime_error(
        "CAE_GPU_CONV=wgmma: on this GPU its convolutions differ from the portable ones: " +
        agree.wrong);
  }
  choice.one_tile = !agree.same_bits;
  choice.path = agree.wrong.empty() ? cuda::ConvPath::kWgmma : cuda::ConvPath::kPortable;
  return choice;
}

bool choose_overlap(int device) {
  // Not 1 as long as no overlapping launch has run on a GPU.
  const std::string overlap = environment("CAE_GPU_OVERLAP", "0");
  CAE_CHECK(overlap == "0" || overlap == "1", "CAE_GPU_OVERLAP must be 0 or 1, got ", overlap);
  return overlap == "1" && kernels_wait(device);
}

}  // namespace cae::gpu
