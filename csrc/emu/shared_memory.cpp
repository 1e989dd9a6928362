// SPDX-License-Identifier: Apache-2.0
#include "emu/shared_memory.h"

#include <algorithm>

namespace cae::emu {
namespace {

std::string at(uint32_t address) {
  return "shared memory at byte " + std::to_string(address - kSharedBase);
}

std::string who(uint16_t thread) {
  return thread == kAsyncProxy   ? "a bulk copy"
         : thread == kOtherBlock ? "another block"
                                 : "thread " + std::to_string(thread);
}

void poison(uint8_t* to, uint32_t bytes) { std::memset(to, 0xff, bytes); }

}  // namespace

void fail_shared(const Lane& me, uint32_t address, uint32_t bytes) {
  const uint32_t size = me.block->shared_bytes;
  const int64_t offset = static_cast<int64_t>(address) - kSharedBase;
  const bool inside = offset >= 0 && offset + bytes <= size;
  fail(me, (inside ? "misaligned access to " : "access out of bounds to ") + std::to_string(bytes) +
               " bytes at byte " + std::to_string(offset) + " of " + std::to_string(size) +
               " bytes of shared memory");
}

void fail_read(const Lane& me, uint32_t address, const Cell& cell) {
  if ((cell.flags & kMbarrier) != 0) {
    fail(me, "reads an mbarrier as data: " + at(address));
  }
  if ((cell.flags & kPending) != 0) {
    fail(me, "reads what an asynchronous copy of " + who(cell.writer) +
                 " has not completed: " + at(address));
  }
  if ((cell.flags & kInitialised) == 0) {
    fail(me, "reads " + at(address) + ", which nobody has written so far");
  }
  fail(me, "race: reads what " + who(cell.writer) + " wrote, no barrier between: " + at(address));
}

void fail_write(const Lane& me, uint32_t address, const Cell& cell) {
  if ((cell.flags & kMbarrier) != 0) {
    fail(me, "overwrites an mbarrier: " + at(address));
  }
  if ((cell.flags & kPending) != 0) {
    fail(me, "overwrites what an asynchronous copy of " + who(cell.writer) +
                 " has not completed: " + at(address));
  }
  if (!is_seen(me, cell.writer, cell.write_tick)) {
    fail(me, "race: overwrites what " + who(cell.writer) +
                 " wrote, no barrier between: " + at(address));
  }
  fail(me, "race: overwrites what " + who(cell.reader) +
               " or its warp may not have read yet, no barrier between: " + at(address));
}

bool reads_seen(const Lane& me, uint32_t cell, uint32_t warps) {
  const Block& block = *me.block;
  if (!block.partly_ordered) {
    return false;
  }
  for (uint32_t warp = 0; warp < block.warps; ++warp) {
    if ((warps >> warp & 1) != 0 && block.warp_reads[cell * block.warps + warp] >=
                                        block.seen[me.warp->index * (block.warps + 1) + warp]) {
      return false;
    }
  }
  return true;
}

void order_partly(Block& block) {
  if (!block.partly_ordered) {
    block.partly_ordered = true;
    block.seen.assign(block.warps * (block.warps + 1), 0);
    block.warp_reads.assign(block.cells.size() * block.warps, 0);
  }
}

void issue_copy(Lane& me, uint32_t address, const void* from) {
  uint8_t* to = shared_bytes(me, address, 16);
  const uint8_t* source = global_bytes(me, from, 16, Access::kRead);
  check_write(me, address, 16, kPending | kGeneric);
  poison(to, 16);
  me.copies.push_back({address, source});
  ++me.block->worker->counts.async_copies;
}

void commit_copies(Lane& me) { me.groups.push_back(static_cast<uint32_t>(me.copies.size())); }

void wait_copies(Lane& me, uint32_t remaining) {
  Block& block = *me.block;
  const auto committed = static_cast<uint32_t>(me.groups.size());
  if (committed - me.waited <= remaining) {
    return;
  }
  const uint32_t end = me.groups[committed - remaining - 1];
  for (; me.copied < end; ++me.copied) {
    const AsyncCopy& copy = me.copies[me.copied];
    const uint32_t first = (copy.to - kSharedBase) / 4;
    std::memcpy(block.shared.data() + first * 4, copy.from, 16);
    for (uint32_t i = first; i < first + 4; ++i) {
      block.cells[i].flags = kInitialised | kGeneric;
      block.cells[i].write_tick = block.tick;  // others see it after a barrier that follows
    }
  }
  me.waited = committed - remaining;
  if (me.copied == me.copies.size()) {  // starts afresh: the lists stay short
    me.copies.clear();
    me.copied = 0;
    me.groups.assign(remaining, 0);
    me.waited = 0;
  }
}

uint8_t* global_bytes(const Lane& me, const void* data, uint32_t bytes, Access access) {
  const auto address = reinterpret_cast<uint64_t>(data);
  const Launch& launch = *me.block->worker->launch;
  const uint64_t window = (address - kDeviceAddresses) >> kWindowBits;
  Allocation* memory = nullptr;
  if (window < kWindows) {
    memory = windows[window].load(std::memory_order_acquire);
  } else {
    const auto found =
        std::find_if(launch.external.begin(), launch.external.end(),
                     [address](const Allocation* a) { return address - a->address < a->bytes; });
    memory = found == launch.external.end() ? nullptr : *found;
  }
  const char* wrong = nullptr;
  if (memory == nullptr || memory->freed || address - memory->address + bytes > memory->bytes) {
    wrong = "global access out of bounds";
  } else if (address % bytes != 0) {
    wrong = "misaligned global access";
  } else if (access == Access::kWrite && !memory->writable) {
    wrong = "write to read-only memory";
  } else if (launch.overlap && !me.pdl_waited && !memory->constant) {
    wrong = "global access before pdl_wait(), in a launch that overlaps the kernel before it";
  } else {
    wrong =
        record_access(*memory, address, bytes, access, launch.id, me.block->number, launch.shared);
  }
  if (wrong != nullptr) {
    fail(me, std::string(wrong) + ": " + std::to_string(bytes) + " bytes at " +
                 describe_address(address, launch.external));
  }
  return memory->host + (address - memory->address);
}

namespace {

/// How often the banks must be read for `lanes` (at most 32 accesses of 4 bytes, 8 of 16 bytes).
int wavefronts(const SharedTrace& trace, uint32_t first, uint32_t count) {
  std::array<uint32_t, kWarp> words;
  std::array<uint8_t, kWarp> in_bank = {};
  const uint32_t banks = 128 / trace.bytes;
  uint32_t distinct = 0;
  int most = 0;
  for (uint32_t lane = first; lane < first + count; ++lane) {
    if ((trace.lanes >> lane & 1) == 0) {
      continue;
    }
    const uint32_t word = trace.address[lane] / trace.bytes;
    if (std::find(words.begin(), words.begin() + distinct, word) != words.begin() + distinct) {
      continue;
    }
    words[distinct++] = word;
    most = std::max<int>(most, ++in_bank[word % banks]);
  }
  return most;
}

}  // namespace

void count_trace(Block& block, Warp& warp) {
  Counts& counts = block.worker->counts;
  for (uint32_t row = 0; row < warp.trace_rows; ++row) {
    const SharedTrace& trace = warp.trace[row];
    const uint32_t at_once = 128 / trace.bytes;  // lanes served by one wavefront
    for (uint32_t first = 0; first < kWarp; first += at_once) {
      const int taken = wavefronts(trace, first, at_once);
      counts.shared_wavefronts += taken;
      counts.shared_accesses += taken != 0 ? 1 : 0;
    }
  }
  warp.trace_rows = 0;
  for (int lane = 0; lane < kWarp; ++lane) {
    warp.lanes[lane].traced = 0;
  }
}

}  // namespace cae::emu
