// SPDX-License-Identifier: Apache-2.0
#include "emu/hopper_emu.h"

#include <algorithm>
#include <cstring>

#include "emu/half_emu.h"
#include "emu/shared_memory.h"

namespace cae::emu {
namespace {

std::string mbarrier_at(uint32_t address) {
  return "the mbarrier at byte " + std::to_string((address & kOffsetMask) - kSharedBase);
}

Block& block_of(const Lane& me, uint32_t address) {
  Worker& worker = *me.block->worker;
  const uint32_t above = address >> kRankShift;
  if (above > worker.blocks.size()) {
    fail(me, "no block " + std::to_string(above - 1) + " in the cluster");
  }
  return above == 0 ? *me.block : worker.blocks[above - 1];
}

Mbarrier* find_mbarrier(Block& block, uint32_t address) {
  const auto found = std::find_if(block.mbarriers.begin(), block.mbarriers.end(),
                                  [address](const Mbarrier& m) { return m.address == address; });
  return found == block.mbarriers.end() ? nullptr : &*found;
}

Mbarrier& mbarrier(const Lane& me, Block& block, uint32_t address) {
  Mbarrier* found = find_mbarrier(block, address & kOffsetMask);
  if (found == nullptr) {
    fail(me, mbarrier_at(address) + " is not initialised");
  }
  return *found;
}

uint32_t* seen_by(Block& block, uint32_t warp) {
  return block.seen.data() + static_cast<size_t>(warp) * (block.warps + 1);
}

void join(uint32_t* into, const uint32_t* from, uint32_t count) {
  for (uint32_t i = 0; i < count; ++i) {
    into[i] = std::max(into[i], from[i]);
  }
}

/// Ends the phase once all have arrived and all bytes have landed.
void settle(Block& block, Mbarrier& m) {
  if (m.pending != 0 || m.bytes != 0) {
    return;
  }
  ++m.phase;
  m.pending = m.count;
  for (Warp& warp : block.warp) {
    for (int i = 0; i < kWarp; ++i) {
      const Lane& lane = warp.lanes[i];
      if (lane.waiting == Waiting::kMbarrier && lane.waits_on == m.address &&
          ((m.phase - 1) & 1) == lane.waits_parity) {
        wake(warp, lane.bit);
      }
    }
  }
}

}  // namespace

void join_warps(Block& block, const uint32_t* lanes) {
  if (!block.partly_ordered) {
    return;
  }
  const uint32_t width = block.warps + 1;
  std::vector<uint32_t> all(width, 0);
  for (uint32_t w = 0; w < block.warps; ++w) {
    if (lanes[w] != 0) {
      join(all.data(), seen_by(block, w), width);
      all[w] = block.tick;
    }
  }
  for (uint32_t w = 0; w < block.warps; ++w) {
    if (lanes[w] != 0) {
      join(seen_by(block, w), all.data(), width);
    }
  }
}

void init_mbarrier(Lane& me, uint32_t address, uint32_t count) {
  Block& block = *me.block;
  shared_bytes(me, address, 8);
  if (count == 0 || count >= 1U << 20) {
    fail(me, mbarrier_at(address) + " for " + std::to_string(count) + " arrivals");
  }
  if (find_mbarrier(block, address) != nullptr) {
    fail(me, mbarrier_at(address) + " is initialised twice");
  }
  check_write(me, address, 8, kMbarrier);
  order_partly(block);
  Mbarrier m;
  m.address = address;
  m.count = m.pending = count;
  m.seen.assign(block.warps + 1, 0);
  block.mbarriers.push_back(m);
}

void arrive_mbarrier(Lane& me, uint32_t address) {
  Block& block = block_of(me, address);
  Mbarrier& m = mbarrier(me, block, address);
  if (m.pending == 0) {
    fail(me, "one arrival too many at " + mbarrier_at(address));
  }
  if (&block == me.block) {  // releases what its warp did so far
    join(m.seen.data(), seen_by(block, me.warp->index), block.warps + 1);
    m.seen[me.warp->index] = ++block.tick;
  }
  --m.pending;
  settle(block, m);
}

void expect_bytes(Lane& me, uint32_t address, uint32_t bytes) {
  mbarrier(me, *me.block, address).bytes += bytes;
  arrive_mbarrier(me, address);
}

void wait_mbarrier(Lane& me, uint32_t address, uint32_t parity) {
  Block& block = *me.block;
  {
    const Mbarrier& m = mbarrier(me, block, address);
    if (((m.phase - 1) & 1) != (parity & 1)) {
      me.waiting = Waiting::kMbarrier;
      me.waits_on = address;
      me.waits_parity = parity & 1;
      suspend(me);
    }
  }
  join(seen_by(block, me.warp->index), mbarrier(me, block, address).seen.data(), block.warps + 1);
}

void fence_proxies(Lane& me) { me.fence_tick = ++me.block->tick; }

void issue_bulk(Lane& me, uint32_t to, const void* from, uint32_t bytes, uint32_t mbarrier_address,
                uint32_t mask) {
  Worker& worker = *me.block->worker;
  if (bytes == 0 || to % 16 != 0 || bytes % 16 != 0) {
    fail(me, "bulk copy of " + std::to_string(bytes) + " bytes, not all aligned to 16");
  }
  const uint8_t* source = nullptr;
  for (uint32_t i = 0; i < bytes; i += 16) {
    const uint8_t* part = global_bytes(me, static_cast<const char*>(from) + i, 16, Access::kRead);
    source = i == 0 ? part : source;
  }
  worker.counts.bulk_bytes += bytes;
  for (Block& block : worker.blocks) {
    if ((mask >> block.rank & 1) == 0) {
      continue;
    }
    const uint32_t offset = to & kOffsetMask;
    shared_bytes(me, offset, 16);
    shared_bytes(me, offset + bytes - 16, 16);
    mbarrier(me, block, mbarrier_address);
    if (&block == me.block) {
      check_write(me, offset, bytes, kPending);
    }
    for (uint32_t i = 0; i < bytes / 4; ++i) {
      Cell& cell = block.cells[(offset - kSharedBase) / 4 + i];
      if (&block != me.block && (cell.flags & (kPending | kMbarrier)) != 0) {
        fail_write(me, offset + i * 4, cell);
      }
      cell.flags = kPending;
      cell.writer = kAsyncProxy;
    }
    std::memset(block.shared.data() + (offset - kSharedBase), 0xff, bytes);
    worker.bulk.push_back({&block, offset, source, bytes, mbarrier_address & kOffsetMask});
  }
}

bool land_bulk_copy(Worker& worker) {
  if (worker.bulk.empty()) {
    return false;
  }
  worker.random = worker.random * 6364136223846793005ULL + 1442695040888963407ULL;
  std::swap(worker.bulk[(worker.random >> 33) % worker.bulk.size()], worker.bulk.back());
  const BulkCopy copy = worker.bulk.back();
  worker.bulk.pop_back();
  Block& block = *copy.block;
  std::memcpy(block.shared.data() + (copy.to - kSharedBase), copy.from, copy.bytes);
  for (uint32_t i = 0; i < copy.bytes / 4; ++i) {
    Cell& cell = block.cells[(copy.to - kSharedBase) / 4 + i];
    cell.flags = kInitialised;
    cell.write_tick = block.tick;
  }
  Mbarrier& m = *find_mbarrier(block, copy.mbarrier);
  m.seen[block.warps] = ++block.tick;
  m.bytes -= copy.bytes;
  settle(block, m);
  return true;
}

namespace {

/// All 128 threads of a warpgroup meet; the last to come runs `exec`.
template <class Exec>
void meet_warpgroup(Lane& me, uint8_t op, Exec&& exec) {
  Block& block = *me.block;
  const uint32_t first = me.warp->index / 4 * 4;
  if (first / 4 >= block.warpgroups.size()) {
    fail(me, "an operation of a warpgroup in a warp that is in none");
  }
  Warpgroup& group = block.warpgroups[first / 4];
  if (group.arrived != 0 && group.op != op) {
    fail(me, "divergent collective: threads of a warpgroup are in different operations");
  }
  group.op = op;
  if (++group.arrived != 128) {
    me.waiting = Waiting::kWarpgroup;
    suspend(me);
    return;
  }
  group.arrived = 0;
  exec(group);
  for (uint32_t w = first; w < first + 4; ++w) {
    wake(block.warp[w], w == me.warp->index ? ~me.bit : kAllLanes);
  }
}

/// One row of 8 halves of an operand, after the checks that a thread's read gets, and the proxy's.
void load_row(Lane& me, uint64_t descriptor, int row, int k, float* to) {
  const auto start = static_cast<uint32_t>(descriptor & 0x3fff) << 4;
  const auto along_k = static_cast<uint32_t>(descriptor >> 16 & 0x3fff) << 4;
  const auto along_rows = static_cast<uint32_t>(descriptor >> 32 & 0x3fff) << 4;
  const uint32_t address = start + row / 8 * along_rows + row % 8 * 16 + k / 8 * along_k;
  Block& block = *me.block;
  const uint8_t* from = shared_bytes(me, address, 16);
  for (uint32_t i = 0; i < 4; ++i) {
    const Cell& cell = block.cells[(address - kSharedBase) / 4 + i];
    if ((cell.flags & kGeneric) != 0 && block.lanes[cell.writer].fence_tick <= cell.write_tick) {
      fail(me, "wgmma reads what thread " + std::to_string(cell.writer) +
                   " wrote without fence_async() after it: shared memory at byte " +
                   std::to_string(address + i * 4 - kSharedBase));
    }
  }
  check_read(me, address, 16);
  for (int i = 0; i < 8; ++i) {
    uint16_t half;
    std::memcpy(&half, from + i * 2, 2);
    to[i] = half_to_float(half);
  }
}

void multiply(Lane& me, const WarpgroupProduct& product) {
  if (product.a >> 46 != 0 || product.b >> 46 != 0) {
    fail(me, "wgmma descriptor with swizzle or base offset: not emulated");
  }
  std::vector<float> a(64 * 16);
  const auto columns = static_cast<size_t>(product.columns);
  std::vector<float> b(16 * columns);
  for (int row = 0; row < 64 * 2; ++row) {
    load_row(me, product.a, row / 2, row % 2 * 8, &a[row * 8]);
  }
  for (size_t row = 0; row < columns * 2; ++row) {
    float values[8];
    load_row(me, product.b, row / 2, row % 2 * 8, values);
    for (int k = 0; k < 8; ++k) {
      b[(row % 2 * 8 + k) * columns + row / 2] = values[k];
    }
  }
  // Rows by columns, so that the inner loop runs along memory.
  std::vector<float> sums(64 * columns);
  for (size_t row = 0; row < 64; ++row) {
    for (size_t k = 0; k < 16; ++k) {
      const float value = a[row * 16 + k];
      for (size_t n = 0; n < columns; ++n) {
        sums[row * columns + n] += value * b[k * columns + n];
      }
    }
  }
  for (int t = 0; t < 128; ++t) {
    for (size_t i = 0; i < columns / 2; ++i) {
      const size_t row = t / 32 * 16 + t % 32 / 4 + i % 4 / 2 * 8;
      const size_t column = i / 4 * 8 + t % 4 * 2 + i % 2;
      float& sum = product.sums[t][i];
      sum = (product.accumulate != 0 ? sum : 0.0F) + sums[row * columns + column];
    }
  }
  ++me.block->worker->counts.multiplies;
}

}  // namespace

void issue_product(Lane& me, float* sums, uint64_t a, uint64_t b, int accumulate, int columns) {
  Warpgroup* group = nullptr;
  const uint32_t index = me.warp->index / 4;
  if (index < me.block->warpgroups.size()) {
    group = &me.block->warpgroups[index];
    WarpgroupProduct& call = group->call;
    if (group->arrived == 0) {
      call.a = a;
      call.b = b;
      call.accumulate = accumulate;
      call.columns = columns;
    } else if (call.a != a || call.b != b || call.accumulate != accumulate) {
      fail(me, "wgmma operands differ in the warpgroup");
    }
    call.sums[me.thread % 128] = sums;
  }
  meet_warpgroup(me, static_cast<uint8_t>(columns == 64 ? 1 : 2),
                 [](Warpgroup& all) { all.issued.push_back(all.call); });
}

void commit_products(Lane& me) {
  meet_warpgroup(me, 3, [](Warpgroup& group) {
    group.groups.push_back(static_cast<uint32_t>(group.issued.size()));
  });
}

void wait_products(Lane& me, int remaining) {
  meet_warpgroup(me, 4, [&me, remaining](Warpgroup& group) {
    if (static_cast<int>(group.groups.size()) <= remaining) {
      return;
    }
    const auto done = static_cast<int>(group.groups.size()) - remaining;
    const uint32_t end = group.groups[done - 1];
    // The first warp stands for all four: each of them may tell others that the operands are read.
    Block& block = *me.block;
    const uint32_t first = me.warp->index / 4 * 4;
    order_partly(block);
    for (uint32_t i = 0; i < end; ++i) {
      multiply(*block.warp[first].lanes, group.issued[i]);
    }
    ++block.tick;
    for (uint32_t warp = first; warp < first + 4; ++warp) {
      seen_by(block, warp)[first] = block.tick;
    }
    group.issued.erase(group.issued.begin(), group.issued.begin() + end);
    group.groups.erase(group.groups.begin(), group.groups.begin() + done);
    for (uint32_t& later : group.groups) {
      later -= end;
    }
  });
}

}  // namespace cae::emu
