// SPDX-License-Identifier: Apache-2.0
// Risk 4: do wgmma's shared-memory descriptors mean what the emulator takes them to mean? Products
// in the layouts of the kernels, against sums on the CPU.
#include <cmath>

#include "risk_wgmma.cuh"

namespace {

constexpr int kBytes = 98304;
constexpr int kWeightsAt = 49152;

struct ProductParams {
  const uint4* source;
  float* out;  // [128 threads][kColumns / 2]
  uint32_t a_at;
  uint32_t a_lbo;
  uint32_t a_sbo;
};

template <int kColumns>
KERNEL void __launch_bounds__(128) product(const ProductParams p) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  const uint32_t smem = dev::smem_base();
  for (int i = dev::tid(); i < kBytes / 16; i += 128) {
    dev::sts128(smem + i * 16, dev::ldg128(p.source + i));
  }
  dev::fence_async();
  dev::sync();
  float d[kColumns / 2];
  UNROLL for (int i = 0; i < kColumns / 2; ++i) { d[i] = 0; }
  const uint64_t a = gmma_desc(smem + p.a_at, p.a_lbo, p.a_sbo);
  const uint64_t b = gmma_desc(smem + kWeightsAt, kColumns * 16, 128);
  dev::wg_touch(d);
  dev::wg_fence();
  risk::multiply(d, a, b);
  dev::wg_commit();
  dev::wg_touch(d);
  dev::wg_wait<0>();
  dev::wg_touch(d);
  UNROLL for (int i = 0; i < kColumns / 2; ++i) { p.out[dev::tid() * (kColumns / 2) + i] = d[i]; }
#endif
}

struct Place {
  const char* name;
  uint32_t at;
  uint32_t lbo;  // to the next 8 of k
  uint32_t sbo;  // to the next 8 rows
};

/// Largest error of a product in one layout; `swapped` gives the hardware the offsets exchanged.
template <int kColumns>
double error_of(const std::vector<__half>& memory, const uint4* source, float* out,
                const Place& place, bool swapped) {
  const ProductParams p{source, out, place.at, swapped ? place.sbo : place.lbo,
                        swapped ? place.lbo : place.sbo};
  RISK_CHECK(
      cudaFuncSetAttribute(product<kColumns>, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes));
  RISK_CHECK(cudaMemset(out, 0xff, 128 * kColumns / 2 * sizeof(float)));
  product<kColumns><<<1, 128, kBytes>>>(p);
  RISK_CHECK(cudaGetLastError());
  std::vector<float> result(128 * kColumns / 2);
  RISK_CHECK(cudaMemcpy(result.data(), out, result.size() * sizeof(float), cudaMemcpyDeviceToHost));
  double worst = 0;
  for (int m = 0; m < 64; ++m) {
    for (int n = 0; n < kColumns; ++n) {
      double sum = 0;
      for (int k = 0; k < 16; ++k) {
        const size_t a = place.at + m / 8 * place.sbo + m % 8 * 16 + k / 8 * place.lbo + k % 8 * 2;
        const size_t b = kWeightsAt + k / 8 * kColumns * 16 + n * 16 + k % 8 * 2;
        sum += static_cast<double>(__half2float(memory[a / 2])) * __half2float(memory[b / 2]);
      }
      const int thread = m / 16 * 32 + m % 8 * 4 + n % 8 / 2;
      const float got = result[thread * (kColumns / 2) + n / 8 * 4 + m / 8 % 2 * 2 + n % 2];
      const double error = std::fabs(got - sum);
      worst = error > worst || std::isnan(got) ? (std::isnan(got) ? 1e30 : error) : worst;
    }
  }
  return worst;
}

}  // namespace

int main() {
  risk::device();
  risk::Report report("4 descriptors");
  std::vector<__half> memory(kBytes / 2);
  uint32_t state = 3;
  std::generate(memory.begin(), memory.end(), [&] { return risk::random_half(state); });
  void* source = nullptr;
  float* out = nullptr;
  RISK_CHECK(cudaMalloc(&source, kBytes));
  RISK_CHECK(cudaMemcpy(source, memory.data(), kBytes, cudaMemcpyHostToDevice));
  RISK_CHECK(cudaMalloc(&out, 128 * 64 * sizeof(float)));
  const auto* vectors = static_cast<const uint4*>(source);

  const Place plain{"aligned", 0, 64 * 16, 128};
  double errors[2] = {};
  errors[0] = std::max(error_of<64>(memory, vectors, out, plain, false),
                       error_of<128>(memory, vectors, out, plain, false));
  double exchanged = error_of<64>(memory, vectors, out, plain, true);
  for (int tap = 0; tap < risk::kTaps; ++tap) {
    for (int side = 0; side < 2; ++side) {
      const uint32_t at = (tap / 3 * risk::kPatchWidth + tap % 3 + side * 8) * 16;
      const Place patch{"patch", at, risk::kGroupPitch, risk::kPatchWidth * 16};
      errors[1] = std::max({errors[1], error_of<64>(memory, vectors, out, patch, false),
                            error_of<128>(memory, vectors, out, patch, false)});
      exchanged = std::min(exchanged, error_of<64>(memory, vectors, out, patch, true));
    }
  }
  report.number("largest error, aligned", errors[0]);
  report.number("largest error, patch and taps", errors[1]);
  report.number("least error, offsets exchanged", exchanged);
  const bool fine = errors[0] < 1e-3 && errors[1] < 1e-3 && exchanged > 1e-2;
  return report.finish(fine, fine ? "descriptors mean what the emulator takes them to mean"
                             : exchanged < 1e-3 ? "leading and stride offsets are exchanged"
                                                : "descriptors mean something else");
}
