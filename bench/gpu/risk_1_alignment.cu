// SPDX-License-Identifier: Apache-2.0
// Risk 1: is wgmma as fast on operands aligned to 16 bytes only, as the patch layout has them, as
// on core matrices aligned to 128?
#include "risk_wgmma.cuh"

int main() {
  const int blocks = risk::device().multiProcessorCount;
  constexpr int kIterations = 2000;
  risk::Report report("1 alignment");
  const auto plain64 =
      risk::run_loop<risk::LoopConfig<64, risk::kAligned, false>>(blocks, kIterations);
  const auto patch64 =
      risk::run_loop<risk::LoopConfig<64, risk::kPatch, false>>(blocks, kIterations);
  const auto plain128 =
      risk::run_loop<risk::LoopConfig<128, risk::kAligned, false>>(blocks, kIterations);
  const auto patch128 =
      risk::run_loop<risk::LoopConfig<128, risk::kPatch, false>>(blocks, kIterations);
  report.number("aligned n64 TFLOP/s", plain64.tflops);
  report.number("patch n64 TFLOP/s", patch64.tflops);
  report.number("aligned n128 TFLOP/s", plain128.tflops);
  report.number("patch n128 TFLOP/s", patch128.tflops);
  report.number("aligned n64 clocks", plain64.clocks_per_wgmma);
  report.number("patch n64 clocks", patch64.clocks_per_wgmma);
  report.number("aligned n128 clocks", plain128.clocks_per_wgmma);
  report.number("patch n128 clocks", patch128.clocks_per_wgmma);
  const double worst = std::max(patch64.clocks_per_wgmma / plain64.clocks_per_wgmma,
                                patch128.clocks_per_wgmma / plain128.clocks_per_wgmma);
  report.number("worst patch / aligned clocks", worst);
  const bool fine = worst < 1.05;
  return report.finish(fine, fine ? "16-byte alignment costs nothing: keep the patch layout"
                                  : "16-byte alignment costs time: three x-shifted patch copies");
}
