// SPDX-License-Identifier: Apache-2.0
#include "emu/hopper_emu.h"

#include <algorithm>
#include <cstring>

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
  if (&block != me.block) {
    m.remote_phase = m.phase;
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
  Mbarrier& m = mbarrier(me, block, address);
  m.known_phase = m.phase;
  join(seen_by(block, me.warp->index), m.seen.data(), block.warps + 1);
}

void store_in_cluster(Lane& me, uint32_t address, uint32_t value) {
  Block& block = block_of(me, address);
  const uint32_t offset = address & kOffsetMask;
  uint8_t* to = block.shared.data() + (shared_bytes(me, offset, 4) - me.block->shared.data());
  if (&block == me.block) {
    check_write(me, offset, 4, kInitialised | kGeneric);
    std::memcpy(to, &value, 4);
    return;
  }
  if (block.cluster_tick == 0) {
    fail(me, "stores into block " + std::to_string(block.rank) +
                 " of the cluster, which may not have started: no barrier of the cluster so far");
  }
  Cell& cell = block.cells[(offset - kSharedBase) / 4];
  if ((cell.flags & (kPending | kMbarrier)) != 0) {
    fail_write(me, offset, cell);
  }
  if (cell.write_tick >= block.cluster_tick || cell.read_tick >= block.cluster_tick) {
    fail(me, "race: stores into block " + std::to_string(block.rank) +
                 " of the cluster over what is in use there, no barrier of the cluster between: " +
                 "shared memory at byte " + std::to_string(offset - kSharedBase));
  }
  cell.writer = kOtherBlock;
  cell.write_tick = block.remote_tick = block.tick;
  cell.flags = kInitialised | kGeneric;
  std::memcpy(to, &value, 4);
}

void check_cluster_done(const Lane& me) {
  for (const Block& block : me.block->worker->blocks) {
    if (block.remote_tick != 0 && block.remote_tick >= block.cluster_tick) {
      fail(me, "block " + std::to_string(block.rank) + " of the cluster may end before others " +
                   "store into its shared memory");
    }
    for (const Mbarrier& m : block.mbarriers) {
      if (m.remote_phase >= m.known_phase) {
        fail(me, "block " + std::to_string(block.rank) + " of the cluster may end before others " +
                     "arrive at " + mbarrier_at(m.address));
      }
    }
  }
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

}  // namespace cae::emu
