// SPDX-License-Identifier: Apache-2.0
// Accesses of a kernel's threads to shared memory, each checked: bounds, alignment, whether what is
// read was written, is complete, and ordered after its writer; whether what is overwritten has been
// read. Order comes from barriers, syncwarp and mbarriers only, never from how threads happen to
// run.
#pragma once

#include <cstdint>
#include <cstring>

#include "emu/emulator.h"

namespace cae::emu {

// Flags of a cell.
constexpr uint8_t kInitialised = 1;
constexpr uint8_t kPending = 2;   // an asynchronous copy is under way
constexpr uint8_t kMbarrier = 4;  // part of an mbarrier
constexpr uint8_t kGeneric = 8;   // written by a thread, not by the asynchronous proxy
// As writers: not of the block's threads.
constexpr uint16_t kAsyncProxy = 0xffff;
constexpr uint16_t kOtherBlock = 0xfffe;  // of the cluster

constexpr uint32_t kTraceRows = 64;

[[noreturn]] void fail_shared(const Lane& me, uint32_t address, uint32_t bytes);
[[noreturn]] void fail_read(const Lane& me, uint32_t address, const Cell& cell);
[[noreturn]] void fail_write(const Lane& me, uint32_t address, const Cell& cell);

/// Have all of `warps` finished reading the cell, as far as this thread's warp knows?
bool reads_seen(const Lane& me, uint32_t cell, uint32_t warps);

/// An access of the past that is ordered before this thread.
inline bool is_seen(const Lane& me, uint16_t by, uint32_t tick) {
  const Block& block = *me.block;
  if (by == kOtherBlock) {
    return tick < block.cluster_tick;
  }
  if (tick < block.barrier_tick || by == me.thread) {
    return true;
  }
  const uint32_t warp = by == kAsyncProxy ? block.warps : by / kWarp;
  if (warp == me.warp->index) {
    return tick < me.warp->sync_tick;
  }
  return block.partly_ordered && tick < block.seen[me.warp->index * (block.warps + 1) + warp];
}

inline uint8_t* shared_bytes(const Lane& me, uint32_t address, uint32_t bytes) {
  Block& block = *me.block;
  if (address % bytes != 0 || address < kSharedBase ||
      address - kSharedBase + bytes > block.shared_bytes) {
    fail_shared(me, address, bytes);
  }
  return block.shared.data() + (address - kSharedBase);
}

inline void check_cell_read(const Lane& me, uint32_t address, Cell& cell) {
  const Block& block = *me.block;
  if ((cell.flags & (kInitialised | kPending | kMbarrier)) != kInitialised ||
      !is_seen(me, cell.writer, cell.write_tick)) {
    fail_read(me, address, cell);
  }
  if (cell.read_tick < block.barrier_tick) {
    cell.read_warps = 0;
  }
  cell.read_warps |= me.warp->bit;
  const bool in_step = cell.read_tick < me.warp->sync_tick;
  if (cell.reader != me.thread) {
    cell.several_readers = !in_step && cell.reader / kWarp == me.warp->index ? 1 : 0;
    cell.reader = me.thread;
  } else if (in_step) {
    cell.several_readers = 0;
  }
  cell.read_tick = block.tick;
}

/// Before `bytes` (a multiple of 4) at `address` are read.
inline void check_read(const Lane& me, uint32_t address, uint32_t bytes) {
  Block& block = *me.block;
  const uint32_t first = (address - kSharedBase) / 4;
  for (uint32_t i = 0; i < bytes / 4; ++i) {
    check_cell_read(me, address + i * 4, block.cells[first + i]);
    if (block.partly_ordered) {
      block.warp_reads[(first + i) * block.warps + me.warp->index] = block.tick;
    }
  }
}

/// Before `bytes` (a multiple of 4) at `address` are written.
inline void check_write(const Lane& me, uint32_t address, uint32_t bytes, uint8_t flags) {
  Block& block = *me.block;
  const uint32_t first = (address - kSharedBase) / 4;
  for (uint32_t i = 0; i < bytes / 4; ++i) {
    Cell& cell = block.cells[first + i];
    bool wrong =
        (cell.flags & (kPending | kMbarrier)) != 0 || !is_seen(me, cell.writer, cell.write_tick);
    if (cell.read_tick >= block.barrier_tick) {
      const uint32_t others = cell.read_warps & ~me.warp->bit;
      wrong = wrong || (others != 0 && !reads_seen(me, first + i, others)) ||
              (cell.reader / kWarp == me.warp->index && cell.read_tick >= me.warp->sync_tick &&
               (cell.reader != me.thread || cell.several_readers != 0));
    }
    if (wrong) {
      fail_write(me, address + i * 4, cell);
    }
    cell.writer = me.thread;
    cell.write_tick = block.tick;
    cell.flags = flags;
  }
}

/// Remembers the access for the count of bank conflicts.
inline void trace_shared(Lane& me, uint32_t address, uint32_t bytes) {
  const uint32_t row = me.traced++;
  Warp& warp = *me.warp;
  if (row >= kTraceRows) {
    return;
  }
  if (row >= warp.trace_rows) {
    warp.trace[row].lanes = 0;
    warp.trace[row].bytes = bytes;
    warp.trace_rows = row + 1;
  }
  SharedTrace& trace = warp.trace[row];
  if (trace.bytes == bytes) {
    trace.lanes |= me.bit;
    trace.address[me.index] = address;
  }
}

template <class T>
inline T load_shared(Lane& me, uint32_t address) {
  const uint8_t* from = shared_bytes(me, address, sizeof(T));
  check_read(me, address, sizeof(T));
  trace_shared(me, address, sizeof(T));
  T value;
  std::memcpy(&value, from, sizeof(T));
  return value;
}

template <class T>
inline void store_shared(Lane& me, uint32_t address, T value) {
  uint8_t* to = shared_bytes(me, address, sizeof(T));
  check_write(me, address, sizeof(T), kInitialised | kGeneric);
  trace_shared(me, address, sizeof(T));
  std::memcpy(to, &value, sizeof(T));
}

/// cp.async of 16 bytes: they land when their group is waited for, not earlier.
void issue_copy(Lane& me, uint32_t address, const void* from);
void commit_copies(Lane& me);
/// All but the last `remaining` groups are complete, for this thread.
void wait_copies(Lane& me, uint32_t remaining);

/// Host memory behind `bytes` of global memory that this thread touches. Throws Fault if it must
/// not.
uint8_t* global_bytes(const Lane& me, const void* data, uint32_t bytes, Access access);

/// Before which tick each other warp's accesses are seen by `warp`; the last entry: bulk copies'.
inline uint32_t* seen_by(Block& block, uint32_t warp) {
  return block.seen.data() + static_cast<size_t>(warp) * (block.warps + 1);
}

/// Lanes of a warp from here on keep a record of who read what: the block is not ordered by
/// barriers of all its threads alone.
void order_partly(Block& block);

}  // namespace cae::emu
