// SPDX-License-Identifier: Apache-2.0
// Launches that overlap the kernel before them: what a thread may touch before it has waited, and
// that all wait.
#include <cstdlib>
#include <string>
#include <vector>

#include "emu/emu_counts.h"
#include "emu_case.h"
#include "engine/gpu_conv_choice.h"

namespace {

using cae::testing::Case;
using cae::testing::check_bugs;
using cae::testing::run_case;

// `in` is constant. Right: reads it, waits, writes.
KERNEL void __launch_bounds__(128) overlapping_kernel(const Case p) {
  const int tid = dev::tid();
  dev::pdl_launch();
  const float early = dev::load(p.in + tid);
  dev::cp_async16(dev::smem_base() + tid * 16, p.in + tid * 4);
  dev::cp_commit();
  if (p.bug == 1) {
    dev::store(p.out + tid, early);
  }
  if (p.bug == 2) {
    dev::store(p.out + 128 + tid, dev::load(p.out + tid));
  }
  if (p.bug == 3) {
    dev::cp_async16(dev::smem_base() + 2048 + tid * 16, p.out + tid * 4);
    dev::cp_commit();
  }
  if (p.bug == 4 && dev::bx() == 1) {
    return;  // the whole block
  }
  if (p.bug == 5 && tid == 77) {
    return;  // one thread
  }
  if (p.bug != 6 || tid < 64) {
    dev::pdl_wait();
  }
  if (p.bug == 6) {
    dev::sync();  // that others have waited does not count
  }
  dev::cp_wait<0>();
  dev::store(p.out + dev::bx() * 128 + tid, early);
  dev::pdl_wait();  // once more changes nothing
}

void test_access() {
  cae::testing::CaseShape shape;
  shape.grid = {2};
  shape.overlap = true;
  check_bugs("overlap", overlapping_kernel, shape,
             {{1, "thread 0: global access before pdl_wait(), in a launch that overlaps"},
              {2, "global access before pdl_wait()"},
              {3, "global access before pdl_wait()"},
              {4, "block (1, 0, 0), thread 0: ends without pdl_wait()"},
              {5, "thread 77: ends without pdl_wait()"},
              {6, "global access before pdl_wait()"}});
  // Where launches do not overlap, nothing needs to wait.
  shape.overlap = false;
  for (const int bug : {4, 5, 6}) {
    CAE_TEST_CHECK(run_case(overlapping_kernel, shape, bug).empty());
  }
}

KERNEL void __launch_bounds__(32) writing_kernel(const Case p) {
  dev::store(p.out + dev::tid(), 1.0F);
}

void test_sealed() {
  const cae::gpu::DeviceBuffer buffer(0, 128);
  const auto write = [&buffer] {
    cae::cuda::launch(writing_kernel, {}, 32, 0, nullptr, Case{0, nullptr, buffer.as<float>()});
  };
  write();
  buffer.seal();
  CAE_TEST_CHECK(cae::testing::throws<cae::emu::Fault>(write));
  cae::gpu::DeviceBuffer().seal();
}

void test_counts() {
  cae::emu::reset_counts();
  cae::testing::CaseShape shape;
  CAE_TEST_CHECK(run_case(overlapping_kernel, shape, 0).empty());
  shape.overlap = true;
  CAE_TEST_CHECK(run_case(overlapping_kernel, shape, 0).empty());
  const cae::emu::Counts counts = cae::emu::launch_counts().begin()->second;
  CAE_TEST_CHECK(counts.launches == 2 && counts.overlapped == 1);
}

bool chosen(const char* arch, const char* wanted) {
  setenv("CAE_EMU_ARCH", arch, 1);
  setenv("CAE_GPU_OVERLAP", wanted, 1);
  return cae::gpu::choose_overlap(0);
}

void test_choice() {
  for (const char* arch : {"80", "86", "89"}) {
    CAE_TEST_CHECK(!chosen(arch, "1"));
  }
  for (const char* arch : {"90", "120"}) {
    CAE_TEST_CHECK(chosen(arch, "1"));
    CAE_TEST_CHECK(!chosen(arch, "0") && !chosen(arch, ""));
  }
  for (const char* arch : {"80", "90"}) {
    std::string said;
    try {
      chosen(arch, "yes");
    } catch (const std::invalid_argument& error) {
      said = error.what();
    }
    CAE_TEST_CHECK(said.find("CAE_GPU_OVERLAP must be 0 or 1, got yes") != std::string::npos);
  }
}

}  // namespace

int main() {
  test_access();
  test_sealed();
  test_counts();
  test_choice();
  return cae::testing::finish("test_emulator_overlap");
}
