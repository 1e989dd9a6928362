// SPDX-License-Identifier: Apache-2.0
#include "engine/gpu_conv_choice.h"

#include <cstdlib>
#include <map>
#include <mutex>
#include <stdexcept>
#include <string>
#include <utility>

#include "core/check.h"
#include "engine/gpu_conv_trial.h"
#include "engine/gpu_tiles.h"

namespace cae::gpu {
namespace {

constexpr int kHopper = 90;

ConvAgreement agree_once(int device, int32_t cluster) {
  static std::mutex mutex;
  static std::map<std::pair<int, int32_t>, ConvAgreement> known;
  const std::lock_guard<std::mutex> lock(mutex);
  const auto found = known.find({device, cluster});
  if (found != known.end()) {
    return found->second;
  }
  const ConvAgreement agree = conv_paths_agree(device, cluster, tiles_to_check(tile_table()));
  known[{device, cluster}] = agree;
  return agree;
}

std::string environment(const char* name, const char* usual) {
  const char* value = std::getenv(name);
  return value == nullptr || *value == '\0' ? usual : value;
}

}  // namespace

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
