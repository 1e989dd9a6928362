// SPDX-License-Identifier: Apache-2.0
// Risk 3: bandwidth from L2 to the multiprocessors by bulk copies, and what multicast to a cluster
// gains: every block streams the weights of its columns through a ring, as the convolution does.
#include "risk.cuh"

namespace {

constexpr int kStages = 6;
constexpr int kStageBytes = 8192;  // 64 columns x 64 channels of one tap
constexpr int kSteps = 36;         // 4 k-blocks x 9 taps
constexpr int kColumnBlocks = 4;
constexpr int kBarriers = kStages * kStageBytes;

struct StreamParams {
  const char* weights;
  int repeats;
  int* sink;
};

template <int kCluster>
KERNEL void __launch_bounds__(64, 1) stream_weights(const StreamParams p) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  const uint32_t smem = dev::smem_base();
  const uint32_t full = smem + kBarriers;
  const uint32_t empty = full + kStages * 8;
  const int warp = dev::uniform(dev::tid() >> 5);
  const int lane = dev::tid() & 31;
  if (dev::tid() == 0) {
    for (int s = 0; s < kStages; ++s) {
      dev::mbar_init(full + s * 8, 1);
      dev::mbar_init(empty + s * 8, kCluster);
    }
    dev::mbar_init_fence();
  }
  if (kCluster > 1) {
    dev::cluster_sync();
  } else {
    dev::sync();
  }
  const char* weights = p.weights + static_cast<size_t>(dev::by()) * kSteps * kStageBytes;
  const int steps = kSteps * p.repeats;
  if (warp == 0 && lane == 0) {
    const uint32_t rank = kCluster > 1 ? dev::ctarank() : 0;
    constexpr uint32_t kSlice = kStageBytes / kCluster;
    int stage = 0;
    int phase = 1;
    for (int i = 0; i < steps; ++i) {
      if (i >= kStages) {
        dev::mbar_wait(empty + stage * 8, phase);
      }
      dev::mbar_expect(full + stage * 8, kStageBytes);
      const char* from = weights + (i % kSteps) * kStageBytes + rank * kSlice;
      const uint32_t to = smem + stage * kStageBytes + rank * kSlice;
      if (kCluster > 1) {
        dev::bulk_g2s_mc(to, from, kSlice, full + stage * 8,
                         static_cast<uint16_t>((1 << kCluster) - 1));
      } else {
        dev::bulk_g2s(to, from, kSlice, full + stage * 8);
      }
      if (++stage == kStages) {
        stage = 0;
        phase ^= 1;
      }
    }
  } else if (warp == 1) {
    int stage = 0;
    int phase = 0;
    uint32_t sum = 0;
    for (int i = 0; i < steps; ++i) {
      dev::mbar_wait(full + stage * 8, phase);
      sum += dev::lds32(smem + stage * kStageBytes + lane * 4);
      dev::syncwarp();
      if (lane < kCluster) {
        if (kCluster > 1) {
          dev::mbar_arrive_cluster(dev::mapa(empty + stage * 8, lane));
        } else {
          dev::mbar_arrive(empty + stage * 8);
        }
      }
      if (++stage == kStages) {
        stage = 0;
        phase ^= 1;
      }
    }
    if (sum == 1) {
      p.sink[0] = 1;
    }
  }
  dev::syncwarp();  // the barriers below want whole warps
  if (kCluster > 1) {
    dev::cluster_sync();
  } else {
    dev::sync();
  }
#endif
}

/// Bytes a second that arrive in shared memory, summed over the GPU.
template <int kCluster>
double delivered(const char* weights, int* sink) {
  StreamParams p{weights, 100, sink};
  constexpr int kBytes = kBarriers + 2 * kStages * 8;
  RISK_CHECK(cudaFuncSetAttribute(stream_weights<kCluster>,
                                  cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes));
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(32, kColumnBlocks);  // 128 blocks, one image
  config.blockDim = dim3(64);
  config.dynamicSmemBytes = kBytes;
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim.x = kCluster;
  attribute.val.clusterDim.y = 1;
  attribute.val.clusterDim.z = 1;
  config.attrs = &attribute;
  config.numAttrs = kCluster > 1 ? 1 : 0;
  const double ms = risk::milliseconds(
      [&] { RISK_CHECK(cudaLaunchKernelEx(&config, stream_weights<kCluster>, p)); });
  return 128.0 * kSteps * p.repeats * kStageBytes / ms * 1e3;
}

}  // namespace

int main() {
  risk::device();
  risk::Report report("3 multicast");
  char* weights = nullptr;
  int* sink = nullptr;
  RISK_CHECK(cudaMalloc(&weights, kColumnBlocks * kSteps * kStageBytes));
  RISK_CHECK(cudaMemset(weights, 0x5a, kColumnBlocks * kSteps * kStageBytes));
  RISK_CHECK(cudaMalloc(&sink, sizeof(int)));
  const double single = delivered<1>(weights, sink);
  report.number("no cluster TB/s from L2", single / 1e12);
  const double pair = delivered<2>(weights, sink);
  report.number("cluster 2 TB/s delivered", pair / 1e12);
  report.number("cluster 2 TB/s from L2", pair / 2e12);
  const double four = delivered<4>(weights, sink);
  report.number("cluster 4 TB/s delivered", four / 1e12);
  report.number("cluster 4 TB/s from L2", four / 4e12);
  const double best = std::max(pair, four) / single;
  report.number("best gain", best);
  // The convolution of one image takes 37.7 MB of weights this way.
  report.number("weights of a layer, no cluster us", 37.7e6 / single * 1e6);
  report.number("weights of a layer, cluster 4 us", 37.7e6 / four * 1e6);
  const bool fine = best > 1.2;
  return report.finish(
      fine, fine ? "multicast pays: use clusters" : "multicast gains little: plain bulk copies");
}
