// SPDX-License-Identifier: Apache-2.0
// The barriers and fences of the convolution by warpgroups: its source as it is, with one intrinsic
// at a time that does not do its work. The emulator finds each for what it is.
#include <cstdlib>
#include <string>

#include "emu/fault.h"
#include "simt/simt.h"
#include "tests/check_test.h"
#include "tests/emu/conv_case.h"

namespace {

enum class Bug {
  kNone,
  kNoProxyFence,
  kNoWaitForPatch,
  kNoWaitForFreePatch,
  kNoWaitForWeights,
  kNoWaitForFreeStage,
  kWrongPhase,
  kReleasedEarly,
  kNoWgmmaFence,
  kNotWaitedFor,
  kTooManyExpected,
  kHalfExpected,
  kNoFirstBarrier,
  kNoBarrierBeforeEpilogue,
  kNoBarrierInEpilogue,
  kReleasedHereOnly,
  kClusterNotMet,
  kEndsEarly,
  kNoPdlWait,
  kLoadersDoNotPdlWait,
  kPairNotMet,
  kPairMeetsLateOnly,
  kPairMeetsEarlyOnly,
  kSumsNotSent,
  kLoadersDoNotMeet,
  kRegistersKept,
};

struct Seed {
  Bug bug = Bug::kNone;
  uint32_t barriers_at = 0;
  int stages = 0;
};
Seed seed;
thread_local int block_barriers = 0;  // that threads of a launch on this host thread passed
thread_local int epilogue_barriers = 0;
thread_local int cluster_barriers = 0;
thread_local int free_stages = 0;  // that lanes waited for

constexpr int kStages = 3;
constexpr int kSteps = 4 * 9;  // k-blocks, taps

bool is(Bug bug) { return seed.bug == bug; }

enum class Ring { kFull, kEmpty, kPatchFull, kPatchEmpty };
Ring ring_of(uint32_t mbarrier) {
  const int index = static_cast<int>(mbarrier - dev::smem_base() - seed.barriers_at) / 8;
  return index < seed.stages           ? Ring::kFull
         : index < 2 * seed.stages     ? Ring::kEmpty
         : index < 2 * seed.stages + 2 ? Ring::kPatchFull
                                       : Ring::kPatchEmpty;
}

}  // namespace

/// Intrinsics as the kernel below finds them.
namespace seeded {
using namespace dev;  // NOLINT(google-build-using-namespace)

KFN void fence_async() {
  if (!is(Bug::kNoProxyFence)) {
    dev::fence_async();
  }
}
KFN void mbar_wait(uint32_t mbarrier, uint32_t parity) {
  const Ring ring = ring_of(mbarrier);
  if ((is(Bug::kNoWaitForPatch) && ring == Ring::kPatchFull) ||
      (is(Bug::kNoWaitForFreePatch) && ring == Ring::kPatchEmpty) ||
      (is(Bug::kNoWaitForWeights) && ring == Ring::kFull) ||
      (is(Bug::kNoWaitForFreeStage) && ring == Ring::kEmpty)) {
    return;
  }
  if (is(Bug::kEndsEarly) && ring == Ring::kEmpty && ++free_stages > 2 * 32 * (kSteps - kStages)) {
    return;
  }
  dev::mbar_wait(mbarrier, is(Bug::kWrongPhase) && ring == Ring::kEmpty ? parity ^ 1 : parity);
}
KFN void mbar_init(uint32_t mbarrier, uint32_t count) {
  dev::mbar_init(mbarrier, is(Bug::kTooManyExpected) && ring_of(mbarrier) == Ring::kPatchFull
                               ? count + 1
                               : count);
}
KFN void mbar_expect(uint32_t mbarrier, uint32_t bytes) {
  dev::mbar_expect(mbarrier, is(Bug::kHalfExpected) ? bytes / 2 : bytes);
}
KFN uint32_t mapa(uint32_t address, uint32_t block) {
  return dev::mapa(address, is(Bug::kReleasedHereOnly) ? dev::ctarank() : block);
}
KFN void cluster_sync() {
  // The first is the kernel's, the others are those of a pair.
  const int number = cluster_barriers++ / (dev::clustersize() * dev::threads());
  const bool first = number == 0;
  if (is(Bug::kClusterNotMet) || (is(Bug::kPairNotMet) && !first) ||
      (is(Bug::kPairMeetsLateOnly) && number == 1) ||
      (is(Bug::kPairMeetsEarlyOnly) && number == 2) ||
      (is(Bug::kLoadersDoNotMeet) && !first && dev::tid() >= 128)) {
    return;
  }
  dev::cluster_sync();
}
KFN void stsf_cluster(uint32_t address, float value) {
  if (!is(Bug::kSumsNotSent)) {
    dev::stsf_cluster(address, value);
  }
}
template <int kCount>
KFN void give_registers() {
  if (!is(Bug::kRegistersKept)) {
    dev::give_registers<kCount>();
  }
}
KFN void wg_fence() {
  if (!is(Bug::kNoWgmmaFence)) {
    dev::wg_fence();
  }
}
template <int kLeft>
KFN void wg_wait() {
  if ((is(Bug::kReleasedEarly) && kLeft == 1) || (is(Bug::kNotWaitedFor) && kLeft == 0)) {
    return;
  }
  dev::wg_wait<kLeft>();
}
KFN void pdl_wait() {
  const bool loader = dev::tid() >= 256 && dev::tid() < 384;
  if (!is(Bug::kNoPdlWait) && !(is(Bug::kLoadersDoNotPdlWait) && loader)) {
    dev::pdl_wait();
  }
}
KFN void sync() {
  // The second of two, before the crews part.
  if (!(is(Bug::kNoFirstBarrier) && ++block_barriers > dev::threads())) {
    dev::sync();
  }
}
KFN void named_bar(int number, int threads) {
  ++epilogue_barriers;
  const bool first = epilogue_barriers <= threads;
  if (!(is(Bug::kNoBarrierBeforeEpilogue) && first) && !(is(Bug::kNoBarrierInEpilogue) && !first)) {
    dev::named_bar(number, threads);
  }
}
}  // namespace seeded

#define dev seeded  // NOLINT(readability-identifier-naming)
#include "cuda/conv_wgmma.cuh"
#undef dev
#include "simt/launch.h"

namespace {

using cae::cuda::ConvEpilogue;
using cae::cuda::ConvKind;
using cae::cuda::ConvParams;
using cae::cuda::ConvPrologue;

// Three stages: instances of the templates that no other file has.
template <int kWidth, int kColumns>
using Config =
    cae::cuda::WgmmaConfig<cae::cuda::ConvShape<ConvKind::kConv3x3, kWidth>, kColumns, kStages>;

template <class Config>
void launch_seeded(const ConvParams& p, void* stream) {
  seed.barriers_at = Config::kBarriersAt;
  cae::cuda::LaunchOptions options;
  options.cluster = p.cluster;
  options.overlap = p.overlap;
  cae::cuda::launch(
      cae::cuda::conv_wgmma_kernel<Config, ConvPrologue::kResidual, ConvEpilogue::kMoments>,
      cae::cuda::Grid{cae::cuda::conv_tiles(p.out_height, p.out_width) * Config::kShares,
                      cae::cuda::conv_pieces(p.out_channels) / Config::kPieces, p.rows},
      Config::kBlockThreads, Config::kNormAt + cae::cuda::norm_bytes(p.in_channels), stream, p,
      options);
}

struct Kernel {
  void (*launch)(const ConvParams&, void*);
  int columns;
};
constexpr Kernel kNarrow = {launch_seeded<Config<16, 64>>, 64};
constexpr Kernel kHalf = {launch_seeded<Config<8, 128>>, 128};  // in pairs
constexpr Kernel kWidest = {launch_seeded<Config<16, 256>>, 256};

/// What a launch ends with: empty, or the fault's words.
std::string run(Bug bug, int cluster, const Kernel& kernel = kNarrow) {
  // Four k-blocks: both patches and all stages come round.
  cae::test::ConvProblem p({ConvKind::kConv3x3,
                            ConvPrologue::kResidual,
                            ConvEpilogue::kMoments,
                            1,
                            9,
                            16,
                            200,
                            kernel.columns - 48,
                            {},
                            cae::cuda::ConvPath::kWgmma,
                            cluster},
                           3);
  cae::test::ConvProblem right = p;
  right.rebind();
  seed = {bug, 0, kStages};
  block_barriers = epilogue_barriers = cluster_barriers = free_stages = 0;
  try {
    cae::test::run_conv(p, {}, kernel.launch);
  } catch (const cae::emu::Fault& fault) {
    return fault.what();
  }
  cae::test::run_conv(right);
  return p.output == right.output && p.partials == right.partials &&
                 p.stream_out == right.stream_out
             ? ""
             : "other results";
}

void test_bug(Bug bug, const char* message, int cluster = 1, const Kernel& kernel = kNarrow) {
  const std::string found = run(bug, cluster, kernel);
  const std::string what = "bug " + std::to_string(static_cast<int>(bug)) + " should say \"" +
                           message + "\", said \"" + found + "\"";
  cae::testing::check(found.find(message) != std::string::npos, what.c_str(), __FILE__, __LINE__);
}

}  // namespace

int main() {
  setenv("CAE_EMU_THREADS", "1", 1);  // barriers are counted
  CAE_TEST_CHECK(run(Bug::kNone, 1).empty());
  CAE_TEST_CHECK(run(Bug::kNone, 2).empty());
  test_bug(Bug::kNoProxyFence, "without fence_async() after it");
  test_bug(Bug::kNoWaitForPatch, "race: reads what thread 256 wrote");
  test_bug(Bug::kNoWaitForFreePatch, "race: ");
  test_bug(Bug::kNoWaitForWeights, "race: reads what a bulk copy wrote");
  test_bug(Bug::kNoWaitForFreeStage, "one arrival too many");
  test_bug(Bug::kWrongPhase, "one arrival too many");
  test_bug(Bug::kReleasedEarly, "other results");
  test_bug(Bug::kNoWgmmaFence, "wgmma without wg_fence()");
  test_bug(Bug::kNotWaitedFor, "ends with wgmma under way");
  test_bug(Bug::kTooManyExpected, "deadlock");
  test_bug(Bug::kHalfExpected, "race: reads what a bulk copy wrote");
  test_bug(Bug::kNoFirstBarrier, "race: reads what thread");
  test_bug(Bug::kNoBarrierBeforeEpilogue, "race: ");
  test_bug(Bug::kNoBarrierInEpilogue, "race: reads what thread");
  test_bug(Bug::kReleasedHereOnly, "a bulk copy", 2);  // unseen, or under way
  test_bug(Bug::kClusterNotMet, "is not initialised", 2);
  test_bug(Bug::kEndsEarly, "of the cluster may end before others arrive", 2);
  test_bug(Bug::kNoPdlWait, "global access before pdl_wait()");
  test_bug(Bug::kLoadersDoNotPdlWait, "global access before pdl_wait()", 2);
  CAE_TEST_CHECK(run(Bug::kNone, 2).empty());

  CAE_TEST_CHECK(run(Bug::kNone, 2, kHalf).empty());
  CAE_TEST_CHECK(run(Bug::kNone, 4, kHalf).empty());
  test_bug(Bug::kPairNotMet, "which nobody has written so far", 2, kHalf);
  test_bug(Bug::kPairMeetsLateOnly, "which nobody has written so far", 2, kHalf);
  test_bug(Bug::kPairMeetsEarlyOnly, "race: ", 2, kHalf);
  test_bug(Bug::kSumsNotSent, "which nobody has written so far", 2, kHalf);
  test_bug(Bug::kLoadersDoNotMeet, "deadlock", 2, kHalf);
  test_bug(Bug::kNoWaitForPatch, "race: ", 2, kHalf);
  CAE_TEST_CHECK(run(Bug::kNone, 1, kWidest).empty());
  CAE_TEST_CHECK(run(Bug::kNone, 2, kWidest).empty());
  test_bug(Bug::kRegistersKept, "registers a thread that no other gave back", 1, kWidest);
  test_bug(Bug::kNoWaitForFreePatch, "race: ", 1, kWidest);
  test_bug(Bug::kNoBarrierBeforeEpilogue, "race: ", 1, kWidest);
  return cae::testing::finish("test_conv_wgmma_bugs");
}
