// SPDX-License-Identifier: Apache-2.0
// Seeded bugs that the emulator must find: shared and global memory, barriers, warps. Each kernel
// is right as it stands; `bug` takes something away.
#include <cstdint>
#include <cstdlib>
#include <string>
#include <vector>

#include "emu/external_memory.h"
#include "emu_case.h"

namespace {

using cae::cuda::Grid;
using cae::testing::Case;
using cae::testing::check_bugs;
using cae::testing::run_case;

// Threads hand a value to their neighbour, twice through the same words.
KERNEL void __launch_bounds__(128) exchange_kernel(const Case p) {
  const int tid = dev::tid();
  const uint32_t mine = dev::smem_base() + tid * 4;
  const uint32_t other = dev::smem_base() + (tid + 127) % 128 * 4;
  dev::stsf(mine, 0.0F);
  dev::sync();
  dev::stsf(p.bug == 3 ? dev::smem_base() : mine, dev::load(p.in + tid));
  if (p.bug != 1) {
    dev::sync();
  }
  const float first = dev::ldsf(other);
  if (p.bug != 2) {
    dev::sync();
  }
  dev::stsf(mine, first);
  dev::sync();
  dev::store(p.out + tid, dev::ldsf(other));
}

void test_exchange() {
  check_bugs("exchange", exchange_kernel, {},
             {{1, "race: reads what thread"},
              {2, "race: "},  // who finds it depends on which warp is first
              {3, "race: overwrites what thread"}});
  std::vector<float> out;
  CAE_TEST_CHECK(run_case(exchange_kernel, {}, 0, &out).empty());
  for (int i = 0; i < 128; ++i) {
    CAE_TEST_CHECK(out[i] == static_cast<float>((i + 126) % 128));
  }
}

// The same inside each warp, ordered by syncwarp alone.
KERNEL void __launch_bounds__(128) warp_exchange_kernel(const Case p) {
  const int tid = dev::tid();
  const int lane = tid % 32;
  const uint32_t mine = dev::smem_base() + tid * 4;
  const uint32_t other = dev::smem_base() + (tid - lane + (lane + 31) % 32) * 4;
  dev::stsf(mine, 0.0F);
  dev::sync();
  dev::stsf(mine, dev::load(p.in + tid));
  if (p.bug != 1) {
    dev::syncwarp();
  }
  // Bug 2: syncwarp does not order warps.
  const float first = dev::ldsf(p.bug == 2 ? dev::smem_base() + (tid + 32) % 128 * 4 : other);
  if (p.bug != 3) {
    dev::syncwarp();
  }
  dev::stsf(mine, first);
  if (p.bug == 4 && lane >= 16) {
    return;
  }
  dev::syncwarp();
  dev::store(p.out + tid, dev::ldsf(other));
}

void test_warp_exchange() {
  check_bugs("warp exchange", warp_exchange_kernel, {},
             {{1, "race: reads what thread"},
              {2, "race: "},
              {3, "race: "},
              {4, "divergent collective: warp"}});
}

// A ring of three stages filled by cp.async: each thread copies 16 bytes, reads its neighbour's.
KERNEL void __launch_bounds__(128) ring_kernel(const Case p) {
  constexpr int kStages = 3;
  constexpr int kSteps = 8;
  const int tid = dev::tid();
  const uint32_t ring = dev::smem_base();
  const auto fill = [&](int step) {
    if (step < kSteps) {
      dev::cp_async16(ring + (step % kStages * 128 + tid) * 16,
                      p.in + (step * 128 + tid) % 1024 * 4);
    }
    dev::cp_commit();
  };
  fill(0);
  fill(1);
  float sum = 0.0F;
  for (int step = 0; step < kSteps; ++step) {
    if (p.bug == 1) {
      dev::cp_wait<kStages - 1>();
    } else {
      dev::cp_wait<kStages - 2>();
    }
    if (p.bug != 2) {
      dev::sync();
    }
    fill(step + (p.bug == 3 ? kStages : kStages - 1));
    const uint4 value = dev::lds128(ring + (step % kStages * 128 + (tid + 1) % 128) * 16);
    sum += dev::fbits(value.x);
  }
  if (p.bug == 4) {
    dev::sync();
    dev::cp_async16(ring + tid * 16, p.in);
    dev::cp_commit();
    dev::sts128(ring + tid * 16, uint4{});
  }
  dev::store(p.out + tid, sum);
}

void test_ring() {
  cae::testing::CaseShape shape;
  shape.shared_bytes = 3 * 128 * 16;
  check_bugs("ring", ring_kernel, shape,
             {{1, "has not completed"},
              {2, "nobody has written so far"},  // by its neighbour's wait
              {3, "may not have read yet"},
              {4, "overwrites what an asynchronous copy"}});
}

KERNEL void __launch_bounds__(32) uncommitted_kernel(const Case p) {
  dev::cp_async16(dev::smem_base() + dev::tid() * 16, p.in);
  if (p.bug == 0) {
    dev::cp_commit();
    dev::cp_wait<0>();
  }
}

// Addresses, by bug, in up to six blocks, each of which writes words of its own.
KERNEL void __launch_bounds__(128) address_kernel(const Case p) {
  const int tid = dev::tid();
  constexpr int kEnd = cae::testing::kCaseFloats;
  const uint32_t shared = dev::smem_base();
  dev::stsf(shared + tid * 4, 1.0F);
  dev::store(p.out + (dev::by() * 3 + dev::bx()) * 128 + tid, dev::load(p.in + tid));
  if (tid != 77) {
    return;
  }
  switch (p.bug) {
    case 1:
      return dev::store(p.out, dev::load(p.in + kEnd));
    case 2:
      return dev::store(p.out, dev::load(p.in - 1));
    case 3:
      return dev::store(p.out + kEnd, 1.0F);
    case 4:
      return dev::stg128(p.out + 1, dev::ldg128(p.in));
    case 5:
      return dev::stsf(shared + 4096, 1.0F);
    case 6:
      return dev::stsf(shared - 4, 1.0F);
    case 7:
      return dev::sts128(shared + 77 * 4, uint4{});
    case 8:
      return dev::store(p.out, dev::ldsf(shared + 128 * 4));
    case 9:
      return dev::store(p.out, dev::load<float>(nullptr));
    case 10:
      return dev::store(const_cast<float*>(p.in) + kEnd - 1, dev::load(p.in + (int64_t{1} << 40)));
    default:
      return;
  }
}

void test_addresses() {
  check_bugs("addresses", address_kernel, {},
             {{1, "global access out of bounds: 4 bytes at byte 0 beyond the end of allocation"},
              {2, "global access out of bounds: 4 bytes at 4 bytes before allocation"},
              {3, "global access out of bounds"},
              {4, "misaligned global access"},
              {5, "access out of bounds to 4 bytes at byte 4096 of 4096 bytes of shared memory"},
              {6, "access out of bounds to 4 bytes at byte -4"},
              {7, "misaligned access to 16 bytes at byte 308"},
              {8, "byte 512, which nobody has written so far"},
              {9, "no device address"},
              {10, "global access out of bounds"}});
  const std::string found = run_case(address_kernel, {Grid{3, 2, 1}}, 5);
  CAE_TEST_CHECK(found.find("block (0, 0, 0), thread 77") != std::string::npos);
  CAE_TEST_CHECK(found.find("testing::Case") != std::string::npos);
  check_bugs("uncommitted", uncommitted_kernel, {Grid{}, 32}, {{1, "never committed"}});
}

KERNEL void __launch_bounds__(128) barrier_kernel(const Case p) {
  const int tid = dev::tid();
  if (p.bug != 1 || tid < 64) {
    dev::sync();
  }
  if (p.bug != 2 || tid % 32 < 16) {
    dev::sync();
  }
  if (tid < 64) {
    dev::named_bar(1, p.bug == 3 ? 96 : 64);
  }
  dev::named_bar(2, p.bug == 4 && tid < 32 ? 64 : 128);
  if (p.bug == 5) {
    dev::named_bar(2, 100);
  }
}

KERNEL void __launch_bounds__(64) collective_kernel(const Case p) {
  const int lane = dev::tid() % 32;
  uint32_t matrix[4];
  dev::sts128(dev::smem_base() + dev::tid() * 16, uint4{1, 2, 3, 4});
  dev::sync();
  float value = 1.0F;
  if (p.bug == 1) {
    value = lane < 16 ? dev::shfl_xor(value, 1) : value;
  } else if (p.bug == 2 && lane >= 16) {
    dev::ldsm4(matrix, dev::smem_base() + dev::tid() * 16);
  } else if (p.bug == 3 && lane == 5) {
    return;
  } else {
    value = dev::shfl(value, 3);
  }
  dev::store(p.out + dev::bx() * 64 + dev::tid(), value);
}

void test_collectives() {
  check_bugs("barriers", barrier_kernel, {},
             {{1, "deadlock: block 0 has 64 threads at barrier 0, 64 threads"},
              {2, "deadlock"},
              {3, "deadlock"},
              {4, "barrier 2 of "},
              {5, "barrier 2 of 100 threads"}});
  check_bugs("collectives", collective_kernel, {Grid{2, 1, 1}, 64},
             {{1, "divergent collective: warp"}, {2, "divergent collective: in"}, {3, "ended"}});
}

// Blocks of one launch, which nothing orders.
KERNEL void __launch_bounds__(32) blocks_kernel(const Case p) {
  const int tid = dev::tid();
  const int mine = dev::bx() * 32 + tid;
  auto* bytes = reinterpret_cast<uint8_t*>(p.out + 1024);
  dev::store(bytes + mine, static_cast<uint8_t>(dev::load(p.in)));
  switch (p.bug) {
    case 0:
      dev::store(p.out + mine, dev::load(p.in + 5));
      return dev::store(p.out + mine, dev::load(p.out + mine));
    case 1:
      return dev::store(p.out + tid, 1.0F);
    case 2:
      dev::store(p.out + mine, 1.0F);
      return dev::store(p.out + 512 + mine, dev::load(p.out + (mine + 32) % 128));
    case 3:
      return dev::store(p.out + mine, dev::load(p.out + (mine + 32) % 128));
    case 4:
      dev::stg128(p.out + mine * 4, uint4{});
      return dev::stg128(p.out + mine * 4, dev::ldg128(p.out + mine * 4));
    case 5:
      return dev::store(bytes + (mine + 16) % 128, uint8_t{1});
    default:
      return;
  }
}

void test_blocks() {
  for (const char* threads : {"1", "3"}) {
    setenv("CAE_EMU_THREADS", threads, 1);
    check_bugs("blocks", blocks_kernel, {Grid{4, 1, 1}, 32},
               {{1, "race between blocks: writes what another block wrote"},
                {2, "race between blocks"},
                {3, "race between blocks"},
                {4, "read-only path"},
                {5, "race between blocks: writes what another block wrote"}});
  }
  unsetenv("CAE_EMU_THREADS");
}

KERNEL void __launch_bounds__(32) touch_kernel(const Case p) {
  dev::store(p.out + dev::tid(), dev::load(p.in + dev::tid()));
}

std::string launch_touch(const float* in, float* out, int threads = 32, size_t shared = 0,
                         Grid grid = {}, int cluster = 1) {
  try {
    cae::cuda::launch(touch_kernel, grid, threads, shared, nullptr, Case{0, in, out},
                      {false, cluster});
  } catch (const cae::emu::Fault& fault) {
    return fault.what();
  }
  return "";
}

void test_memory() {
  std::vector<float> values(64, 2.0F);
  const auto said = [](const std::string& text, const std::string& part) {
    return text.find(part) != std::string::npos;
  };
  CAE_TEST_CHECK(said(launch_touch(values.data(), values.data() + 32), "out of bounds"));
  {
    const cae::emu::ExternalMemory in(values.data(), 128, cae::emu::ExternalUse::kRead);
    CAE_TEST_CHECK(said(launch_touch(values.data(), values.data()), "write to read-only memory"));
    const cae::emu::ExternalMemory out(values.data() + 32, 128, cae::emu::ExternalUse::kWritten);
    CAE_TEST_CHECK(launch_touch(values.data(), values.data() + 32).empty());
  }
  CAE_TEST_CHECK(said(launch_touch(values.data(), values.data() + 32), "no device address"));

  cae::gpu::DeviceBuffer buffer(0, 256);
  auto* data = buffer.as<float>();
  CAE_TEST_CHECK(launch_touch(data, data + 32).empty());
  CAE_TEST_CHECK(said(launch_touch(data, data, 33), "threads must be a multiple of 32"));
  CAE_TEST_CHECK(said(launch_touch(data, data, 32, 300000), "shared memory must be at most"));
  const std::pair<const char*, int> kilobytes_of[] = {
      {"80", 163}, {"86", 99}, {"89", 99}, {"90", 227}, {"120", 99}};
  for (const auto& [arch, kilobytes] : kilobytes_of) {
    setenv("CAE_EMU_ARCH", arch, 1);
    const std::string limit = "at most " + std::to_string(kilobytes * 1024) + " bytes";
    CAE_TEST_CHECK(launch_touch(data, data + 32, 32, kilobytes * 1024).empty());
    CAE_TEST_CHECK(said(launch_touch(data, data, 32, kilobytes * 1024 + 4), limit));
  }
  setenv("CAE_EMU_ARCH", "75", 1);
  CAE_TEST_CHECK(
      cae::testing::throws<std::invalid_argument>([&] { launch_touch(data, data, 32, 1024); }));
  unsetenv("CAE_EMU_ARCH");
  CAE_TEST_CHECK(said(launch_touch(data, data, 32, 0, Grid{0, 1, 1}), "grid of 0"));
  CAE_TEST_CHECK(said(launch_touch(data, data, 32, 0, Grid{3, 1, 1}, 2), "clusters of 2"));
  buffer = cae::gpu::DeviceBuffer();
  CAE_TEST_CHECK(said(launch_touch(data, data + 32), "freed allocation"));
  CAE_TEST_CHECK(cae::testing::throws<cae::emu::Fault>(
      [&] { cae::gpu::copy_to_host(values.data(), data, 4, nullptr); }));
  const cae::gpu::DeviceBuffer other(0, 16);
  CAE_TEST_CHECK(cae::testing::throws<cae::emu::Fault>(
      [&] { cae::gpu::copy_to_host(values.data(), other.data(), 17, nullptr); }));
  CAE_TEST_CHECK(cae::testing::throws<cae::emu::Fault>(
      [&] { cae::gpu::copy_to_device(values.data(), values.data(), 4, nullptr); }));
  cae::emu::set_memory_limit(cae::emu::memory_in_use() + 100);
  CAE_TEST_CHECK(cae::testing::throws<cae::gpu::OutOfDeviceMemory>(
      [] { const cae::gpu::DeviceBuffer big(0, 101); }));
  cae::emu::set_memory_limit(SIZE_MAX);
}

}  // namespace

int main() {
  test_exchange();
  test_warp_exchange();
  test_ring();
  test_addresses();
  test_collectives();
  test_blocks();
  test_memory();
  return cae::testing::finish("test_emulator_faults");
}
