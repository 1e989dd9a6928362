// SPDX-License-Identifier: Apache-2.0
// A loop of wgmma on operands that stay in shared memory, in the layouts that matter here.
#pragma once

#include "risk.cuh"

namespace risk {

// The patch of kernels.md: 10 x 18 pixels in cells of 16 bytes (8 channels), 8 groups of channels.
constexpr int kPatchWidth = 18;
constexpr int kGroupPitch = (10 * kPatchWidth + 1) * 16;
constexpr int kPatchBytes = 8 * kGroupPitch;
constexpr int kTaps = 9;

enum Layout {
  kPatch = 0,    // taps shift the start by cells: aligned to 16 bytes, rows 288 bytes apart
  kAligned = 1,  // core matrices of 128 contiguous bytes, aligned to 128
};

struct LoopParams {
  int iterations = 0;
  const uint4* source = nullptr;  // fills shared memory
  float* sink = nullptr;
  long long* clocks = nullptr;  // [blocks] of the loop
};

template <int kColumns_, Layout kLayout_, bool kStores_>
struct LoopConfig {
  static constexpr int kColumns = kColumns_;
  static constexpr Layout kLayout = kLayout_;
  static constexpr bool kStores = kStores_;  // four more warps store as patch loaders would
  static constexpr int kThreads = kStores ? 384 : 256;
  static constexpr int kWeightBytes = 64 * kColumns * 2;  // one tap, 64 channels
  static constexpr int kWeightsAt = 2 * 24576;            // behind two patches
  static constexpr int kBytes = kWeightsAt + 4 * kWeightBytes;
};

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
KFN void multiply(float (&d)[32], uint64_t a, uint64_t b) { dev::wgmma_n64(d, a, b, 1); }
KFN void multiply(float (&d)[64], uint64_t a, uint64_t b) { dev::wgmma_n128(d, a, b, 1); }
#endif

/// Two warpgroups, 64 pixels x kColumns each: the main loop of the convolution without its loads.
template <class Config>
KERNEL void __launch_bounds__(Config::kThreads, 1) wgmma_loop(const LoopParams p) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  const int tid = dev::tid();
  const uint32_t smem = dev::smem_base();
  for (int i = tid; i < Config::kBytes / 16; i += Config::kThreads) {
    dev::sts128(smem + i * 16, dev::ldg128(p.source + i));
  }
  dev::fence_async();
  dev::sync();
  const int group = dev::uniform(tid >> 5) >> 2;
  const long long start = clock64();
  if (group == 2) {
    // About the patch bytes of a k-block for each of its nine taps of multiplication.
    const uint32_t at = smem + Config::kWeightsAt + 3 * Config::kWeightBytes;
    NOUNROLL for (int i = 0; i < p.iterations; ++i) {
      NOUNROLL for (int j = 0; j < 12; ++j) {
        dev::sts128(at + (tid & 127) * 16, uint4{0, 0, 0, 0});
        __nanosleep(60);
      }
    }
  } else {
    float d[Config::kColumns / 2];
    UNROLL for (int i = 0; i < Config::kColumns / 2; ++i) { d[i] = 0; }
    constexpr bool kIsPatch = Config::kLayout == kPatch;
    constexpr uint32_t kStep = kIsPatch ? kGroupPitch : 64 * 16;  // to the next 8 channels
    const uint64_t a0 = kIsPatch ? gmma_desc(smem + group * 8 * 16, kGroupPitch, kPatchWidth * 16)
                                 : gmma_desc(smem + group * 8192, 64 * 16, 128);
    const uint64_t b0 = gmma_desc(smem + Config::kWeightsAt, Config::kColumns * 16, 128);
    NOUNROLL for (int i = 0; i < p.iterations; ++i) {
      UNROLL for (int tap = 0; tap < kTaps; ++tap) {
        const uint32_t shift =
            kIsPatch ? (tap / 3 * kPatchWidth + tap % 3) * 16 : (tap & 1) * 16384;
        const uint64_t a = a0 + (shift >> 4);
        const uint64_t b = b0 + ((tap % 3 * Config::kWeightBytes) >> 4);
        dev::wg_touch(d);
        dev::wg_fence();
        UNROLL for (int k = 0; k < 4; ++k) {
          multiply(d, a + ((k * 2 * kStep) >> 4), b + ((k * 2 * Config::kColumns * 16) >> 4));
        }
        dev::wg_commit();
        dev::wg_touch(d);
        dev::wg_wait<1>();
      }
    }
    dev::wg_wait<0>();
    dev::wg_touch(d);
    float sum = 0;
    UNROLL for (int i = 0; i < Config::kColumns / 2; ++i) { sum += d[i]; }
    if (tid == 0) {
      p.clocks[dev::bx()] = clock64() - start;
    }
    p.sink[dev::bx() * 256 + tid] = sum;
  }
#endif
}

struct LoopResult {
  double tflops = 0;
  double clocks_per_wgmma = 0;  // of one warpgroup's pair: 2 in flight, m64nNk16 each
  double ghz = 0;               // clock during the loop
};

template <class Config>
LoopResult run_loop(int blocks, int iterations) {
  std::vector<__half> host(Config::kBytes / 2);
  uint32_t state = 7;
  std::generate(host.begin(), host.end(), [&] { return random_half(state); });
  LoopParams p;
  p.iterations = iterations;
  void* source = nullptr;
  RISK_CHECK(cudaMalloc(&source, Config::kBytes));
  RISK_CHECK(cudaMemcpy(source, host.data(), Config::kBytes, cudaMemcpyHostToDevice));
  RISK_CHECK(cudaMalloc(&p.sink, blocks * 256 * sizeof(float)));
  RISK_CHECK(cudaMalloc(&p.clocks, blocks * sizeof(long long)));
  p.source = static_cast<const uint4*>(source);
  RISK_CHECK(cudaFuncSetAttribute(wgmma_loop<Config>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                  Config::kBytes));
  const double ms =
      milliseconds([&] { wgmma_loop<Config><<<blocks, Config::kThreads, Config::kBytes>>>(p); });
  std::vector<long long> clocks(blocks);
  RISK_CHECK(
      cudaMemcpy(clocks.data(), p.clocks, blocks * sizeof(long long), cudaMemcpyDeviceToHost));
  std::sort(clocks.begin(), clocks.end());
  const double wgmmas = 2.0 * iterations * kTaps * 4;  // of a block
  LoopResult result;
  result.tflops = blocks * wgmmas * 2 * 64 * Config::kColumns * 16 / ms / 1e9;
  const double middle = static_cast<double>(clocks[blocks / 2]);
  result.clocks_per_wgmma = middle / wgmmas;
  result.ghz = middle / (ms * 1e6);
  RISK_CHECK(cudaFree(source));
  RISK_CHECK(cudaFree(p.sink));
  RISK_CHECK(cudaFree(p.clocks));
  return result;
}

}  // namespace risk
