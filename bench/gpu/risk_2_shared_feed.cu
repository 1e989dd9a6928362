// SPDX-License-Identifier: Apache-2.0
// Risk 2: does shared memory feed m64n64k16, which needs 128 bytes a clock, also while patches are
// being stored; how does m64n128k16 (96 bytes a clock) do; and at which clock.
#include "risk_wgmma.cuh"

int main() {
  const int blocks = risk::device().multiProcessorCount;
  constexpr int kIterations = 2000;
  risk::Report report("2 shared feed");
  const auto n64 = risk::run_loop<risk::LoopConfig<64, risk::kPatch, false>>(blocks, kIterations);
  const auto n64s = risk::run_loop<risk::LoopConfig<64, risk::kPatch, true>>(blocks, kIterations);
  const auto n128 = risk::run_loop<risk::LoopConfig<128, risk::kPatch, false>>(blocks, kIterations);
  const auto n128s = risk::run_loop<risk::LoopConfig<128, risk::kPatch, true>>(blocks, kIterations);
  const auto lasting =
      risk::run_loop<risk::LoopConfig<128, risk::kPatch, false>>(blocks, 40 * kIterations);
  report.number("n64 clocks (32 is full rate)", n64.clocks_per_wgmma);
  report.number("n64 with stores clocks", n64s.clocks_per_wgmma);
  report.number("n128 clocks (64 is full rate)", n128.clocks_per_wgmma);
  report.number("n128 with stores clocks", n128s.clocks_per_wgmma);
  report.number("n64 TFLOP/s", n64.tflops);
  report.number("n128 TFLOP/s", n128.tflops);
  report.number("clock in short loops GHz", n128.ghz);
  report.number("clock in long loops GHz", lasting.ghz);
  report.number("long n128 TFLOP/s", lasting.tflops);
  const double n64_share = 32 / n64s.clocks_per_wgmma;
  const double n128_share = 64 / n128s.clocks_per_wgmma;
  report.number("n64 with stores share of full rate", n64_share);
  report.number("n128 with stores share of full rate", n128_share);
  const bool fine = n64_share > 0.93 * n128_share;
  return report.finish(fine, fine ? "m64n64k16 is fed as well as m64n128k16"
                                  : "m64n64k16 starves: take 64 pixels x 128 channels");
}
