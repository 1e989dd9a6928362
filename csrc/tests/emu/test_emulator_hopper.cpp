// SPDX-License-Identifier: Apache-2.0
// Hopper's primitives in the emulator: a ring filled by bulk copies and emptied by wgmma, with the
// bugs such rings get. What wgmma makes of a descriptor is the emulator's own reading: see docs.
#include <cstdint>
#include <string>
#include <vector>

#include "emu_case.h"

namespace {

using cae::cuda::Grid;
using cae::testing::Case;
using cae::testing::CaseShape;
using cae::testing::check_bugs;
using cae::testing::run_case;

// A [64][16] and B [64][16] halves as core matrices of 8 rows x 16 bytes; sums of kSteps products.
constexpr int kOperand = 64 * 16 * 2;  // bytes
constexpr int kStage = 2 * kOperand;
constexpr int kStages = 2;
constexpr int kSteps = 6;
constexpr int kThreads = 128 + 32;  // a warpgroup that multiplies, a warp that copies
constexpr uint32_t kBars = kStages * kStage;
constexpr uint32_t kAlongK = 64 * 16;  // from one 8 columns to the next
constexpr uint32_t kAlongRows = 8 * 16;

KFN void fill_ring(const Case& p, uint32_t stages, uint32_t full, uint32_t empty) {
  for (int i = 0; i < kSteps; ++i) {
    const int s = i % kStages;
    if (i >= kStages && p.bug != 2) {
      dev::mbar_wait(empty + s * 8, i / kStages - 1);
    }
    dev::mbar_expect(full + s * 8, kStage);
    dev::bulk_g2s(stages + s * kStage, reinterpret_cast<const char*>(p.in) + i % 2 * kStage, kStage,
                  full + s * 8);
  }
}

KERNEL void __launch_bounds__(kThreads) wgmma_kernel(const Case p) {
  const int tid = dev::tid();
  const uint32_t stages = dev::smem_base();
  const uint32_t full = stages + kBars;
  const uint32_t empty = full + kStages * 8;
  if (tid == 0 && p.bug != 1) {
    for (int s = 0; s < kStages; ++s) {
      dev::mbar_init(full + s * 8, 1);
      dev::mbar_init(empty + s * 8, p.bug == 8 ? 129 : 128);
    }
    dev::mbar_init_fence();
  }
  dev::sync();
  if (tid >= 128) {
    return tid == 128 ? fill_ring(p, stages, full, empty) : void();
  }
  float sums[32] = {};
  for (int i = 0; i < kSteps; ++i) {
    const int s = i % kStages;
    if (p.bug != 3) {
      dev::mbar_wait(full + s * 8, i / kStages);
    }
    const uint32_t a = stages + s * kStage;
    const uint64_t da =
        p.bug == 4 ? gmma_desc(a, kAlongRows, kAlongK) : gmma_desc(a, kAlongK, kAlongRows);
    dev::wg_fence();
    dev::wgmma_n64(sums, da, gmma_desc(a + kOperand, kAlongK, kAlongRows), 1);
    dev::wg_commit();
    if (p.bug == 5) {  // released before it is read
      dev::mbar_arrive(empty + s * 8);
    }
    dev::wg_wait<0>();
    if (p.bug != 5) {
      dev::mbar_arrive(empty + s * 8);
    }
    if (p.bug == 6 && i == 0) {
      dev::mbar_arrive(empty + s * 8);
    }
    if (p.bug == 7 && tid == 0 && i == 0) {
      dev::sts32(full, 0);
    }
  }
  for (int i = 0; i < 32; ++i) {
    const int row = tid / 32 * 16 + tid % 32 / 4 + i % 4 / 2 * 8;
    dev::store(p.out + row * 64 + i / 4 * 8 + tid % 4 * 2 + i % 2, sums[i]);
  }
}

CaseShape ring_shape() {
  CaseShape shape;
  shape.threads = kThreads;
  shape.shared_bytes = kBars + 2 * kStages * 8;
  return shape;
}

void test_ring() {
  check_bugs("wgmma ring", wgmma_kernel, ring_shape(),
             {{1, "is not initialised"},
              {2, "one arrival too many"},
              {3, "a bulk copy"},  // lands unseen, or has not landed
              {5, "may not have read yet"},
              {6, "one arrival too many"},
              {7, "overwrites an mbarrier"},
              {8, "deadlock: block 0 has"}});
  // Swapped strides leave the operand here, or find other numbers.
  std::vector<float> right;
  std::vector<float> swapped;
  CAE_TEST_CHECK(run_case(wgmma_kernel, ring_shape(), 0, &right).empty());
  const std::string found = run_case(wgmma_kernel, ring_shape(), 4, &swapped);
  CAE_TEST_CHECK(!found.empty() || swapped != right);
}

// Threads store what wgmma reads, so the proxies need a fence before the barrier.
KERNEL void __launch_bounds__(128) fence_kernel(const Case p) {
  const int tid = dev::tid();
  const uint32_t a = dev::smem_base();
  for (int i = 0; i < 4; ++i) {  // 64 rows x 16 columns: A[r][k] = r + 64 k, B[n][k] = (n == k)
    const int element = (tid * 4 + i) * 2;
    const int k = element / 512 * 8 + element % 8;
    const int row = element / 8 % 64;
    dev::sts32(a + element * 2, dev::pack_half2(static_cast<float>(row + 64 * k),
                                                static_cast<float>(row + 64 * (k + 1))));
    dev::sts32(a + kOperand + element * 2,
               dev::pack_half2(row == k ? 1.0F : 0.0F, row == k + 1 ? 1.0F : 0.0F));
  }
  if (p.bug != 1) {
    dev::fence_async();
  }
  if (p.bug == 2 && tid == 0) {
    dev::sts32(a, 0);
  }
  if (p.bug != 3) {
    dev::sync();
  }
  float sums[32] = {};
  dev::wg_fence();
  dev::wgmma_n64(sums, gmma_desc(a, kAlongK, kAlongRows),
                 gmma_desc(a + kOperand, kAlongK, kAlongRows), 0);
  dev::wg_commit();
  dev::wg_wait<0>();
  for (int i = 0; i < 32; ++i) {
    const int row = tid / 32 * 16 + tid % 32 / 4 + i % 4 / 2 * 8;
    dev::store(p.out + row * 64 + i / 4 * 8 + tid % 4 * 2 + i % 2, sums[i]);
  }
}

void test_fence() {
  CaseShape shape;
  shape.shared_bytes = kStage;
  check_bugs("proxy fence", fence_kernel, shape,
             {{1, "without fence_async() after it"},
              {2, "without fence_async() after it"},
              {3, "race: reads what thread"}});
  std::vector<float> out;
  CAE_TEST_CHECK(run_case(fence_kernel, shape, 0, &out).empty());
  for (int row = 0; row < 64; ++row) {
    for (int n = 0; n < 64; ++n) {
      CAE_TEST_CHECK(out[row * 64 + n] == (n < 16 ? static_cast<float>(row + 64 * n) : 0.0F));
    }
  }
}

// Products that own their registers from wg_fence() to wg_wait().
KERNEL void __launch_bounds__(128) registers_kernel(const Case p) {
  const int tid = dev::tid();
  const uint32_t a = dev::smem_base();
  for (int i = 0; i < kStage / 16 / 128; ++i) {  // ones
    const uint32_t ones = dev::pack_half2(1.0F, 1.0F);
    dev::sts128(a + (tid + i * 128) * 16, uint4{ones, ones, ones, ones});
  }
  dev::fence_async();
  dev::sync();
  const uint64_t da = gmma_desc(a + (p.bug == 5 ? 8 : 0), kAlongK, kAlongRows);
  const uint64_t db = gmma_desc(a + kOperand, p.bug == 6 ? 1U << 18 : kAlongK, kAlongRows);
  float sums[32] = {};
  float kept = 0.0F;
  for (int i = 0; i < 2; ++i) {
    if (p.bug != 1 && (p.bug != 7 || i == 0)) {
      dev::wg_fence();
    }
    if (p.bug == 2 && i == 1) {
      sums[3] = 0.0F;
    }
    dev::wgmma_n64(sums, da, db, 1);
    dev::wg_commit();
    if (p.bug == 3 && i == 0) {
      kept = sums[0];
    }
    if (p.bug == 7) {
      dev::wg_wait<0>();
    }
  }
  if (p.bug != 4) {
    dev::wg_wait<0>();
  }
  dev::store(p.out + tid, sums[31] + kept);
}

void test_registers() {
  CaseShape shape;
  shape.shared_bytes = kStage;
  check_bugs("registers", registers_kernel, shape,
             {{1, "wgmma without wg_fence()"},
              {2, "registers written that a wgmma under way adds to"},
              {4, "ends with wgmma under way"},
              {5, "not aligned to 16"},
              {6, "beyond 256 KB"},
              {7, "wgmma without wg_fence()"}});
  std::vector<float> out;
  CAE_TEST_CHECK(run_case(registers_kernel, shape, 0, &out).empty());
  std::vector<float> early;
  CAE_TEST_CHECK(run_case(registers_kernel, shape, 3, &early).empty());
  for (int t = 0; t < 128; ++t) {
    CAE_TEST_CHECK(out[t] == 32.0F);       // 2 products of 16 ones
    CAE_TEST_CHECK(early[t] != early[t]);  // read before it was waited for
  }
}

// Each block of a cluster sends its part to all, and reads all parts.
KERNEL void __launch_bounds__(32) cluster_kernel(const Case p) {
  constexpr uint32_t kPart = 256;
  const uint32_t all_here = dev::smem_base() + 4 * kPart;
  const uint32_t full = all_here + 8;
  const uint32_t rank = dev::ctarank();
  const int tid = dev::tid();
  if (tid == 0 && (p.bug != 1 || rank != 3)) {
    dev::mbar_init(all_here, 4);
    dev::mbar_init(full, 1);
    dev::mbar_init_fence();
  }
  dev::cluster_sync();
  if (tid < 4) {  // one arrival from each block at each block
    dev::mbar_arrive_cluster(dev::mapa(all_here, p.bug == 2 ? 0 : tid));
  }
  dev::mbar_wait(all_here, 0);
  if (tid == 0) {
    dev::mbar_expect(full, 4 * kPart);
    dev::bulk_g2s_mc(dev::smem_base() + rank * kPart,
                     reinterpret_cast<const char*>(p.in) + rank * kPart, kPart, full, 15);
  }
  if (p.bug != 3) {
    dev::mbar_wait(full, 0);
  } else {
    dev::cluster_sync();
  }
  const uint4 value = dev::lds128(dev::smem_base() + tid * 32);
  dev::store(p.out + dev::bx() * 32 + tid, dev::fbits(value.x));
  if (p.bug == 4) {
    dev::mbar_arrive_cluster(dev::mapa(full, 4));
  }
  if (p.bug == 5) {  // nobody waits for it, nor meets the others
    if (tid == 0) {
      dev::mbar_arrive_cluster(dev::mapa(all_here, rank ^ 1));
    }
    return;
  }
  dev::cluster_sync();
}

void test_cluster() {
  CaseShape shape;
  shape.grid = Grid{8, 1, 1};
  shape.threads = 32;
  shape.cluster = 4;
  check_bugs("cluster", cluster_kernel, shape,
             {{1, "is not initialised"},
              {2, "deadlock: block 0 has"},
              {3, "has not completed"},
              {4, "no block 4 in the cluster"},
              {5, "may end before others arrive"}});
}

// Each block of a pair stores into the other's shared memory, twice over the same place.
KERNEL void __launch_bounds__(32) exchange_kernel(const Case p) {
  const uint32_t mine = dev::smem_base() + dev::tid() * 4;
  const uint32_t theirs = dev::mapa(mine, p.bug == 1 ? 2 : dev::ctarank() ^ 1);
  dev::stsf(mine, -1.0F);
  if (p.bug != 2) {
    dev::cluster_sync();
  }
  dev::stsf_cluster(theirs, static_cast<float>(dev::tid() + 100 * dev::ctarank()));
  if (p.bug == 3) {
    dev::sync();  // orders nothing between blocks
  } else {
    dev::cluster_sync();
  }
  float sum = dev::ldsf(mine);
  if (p.bug != 4) {  // the other may still be reading
    dev::cluster_sync();
  }
  if (p.bug == 5) {
    dev::stsf(mine, 0.0F);
  }
  dev::stsf_cluster(p.bug == 6 ? theirs + 4096 : theirs, 1000.0F);
  if (p.bug == 7) {  // the other may have ended
    return dev::store(p.out + dev::bx() * 32 + dev::tid(), sum);
  }
  dev::cluster_sync();
  sum += dev::ldsf(mine);
  dev::store(p.out + dev::bx() * 32 + dev::tid(), sum);
}

void test_exchange() {
  CaseShape shape;
  shape.grid = Grid{4, 1, 1};
  shape.threads = 32;
  shape.cluster = 2;
  check_bugs("exchange", exchange_kernel, shape,
             {{1, "no block 2 in the cluster"},
              {2, "may not have started"},
              {3, "race: "},
              {4, "race: "},
              {5, "race: "},
              {6, "access out of bounds to 4 bytes at byte 4"},
              {7, "may end before others store into its shared memory"}});
  std::vector<float> out;
  CAE_TEST_CHECK(run_case(exchange_kernel, shape, 0, &out).empty());
  for (int i = 0; i < 128; ++i) {
    CAE_TEST_CHECK(out[i] == static_cast<float>(i % 32 + 100 * (1 - i / 32 % 2) + 1000));
  }
}

// Two warpgroups and a warp: 224 registers a thread at the launch.
KERNEL void __launch_bounds__(288) pool_kernel(const Case p) {
  if (dev::tid() < 128) {
    if (p.bug == 1) {
      dev::take_registers<232>();
    } else if (p.bug == 2) {
      dev::give_registers<232>();
    } else if (p.bug != 3 || dev::tid() != 0) {
      dev::give_registers<200>();
    }
  } else if (dev::tid() < 256) {
    p.bug == 4 ? dev::take_registers<256>() : dev::take_registers<248>();
  } else if (p.bug == 5) {
    dev::give_registers<200>();
  }
}

void test_registers_of_warpgroups() {
  CaseShape shape;
  shape.threads = 288;
  check_bugs("pool", pool_kernel, shape,
             {{1, "wait for 32 registers a thread"},
              {2, "gives back registers: from 224 to 232"},
              {3, "deadlock"},
              {4, "wait for 8 registers a thread"},
              {5, "in a warp that is in none"}});
}

}  // namespace

int main() {
  test_ring();
  test_fence();
  test_registers();
  test_cluster();
  test_exchange();
  test_registers_of_warpgroups();
  return cae::testing::finish("test_emulator_hopper");
}
