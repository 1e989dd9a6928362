// SPDX-License-Identifier: Apache-2.0
// A GPU as far as a kernel can tell: blocks whose threads are fibers, warps that meet at
// collectives, barriers. One host thread runs a block (or a cluster) at a time; several run blocks
// of one launch. What the kernels call is in simt_emu.h; the checks of memory in shared_memory.h,
// device_memory.h.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <exception>
#include <limits>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "emu/device_memory.h"
#include "emu/emu_counts.h"
#include "emu/fiber.h"

namespace cae::emu {

struct Block;
struct Worker;

constexpr int kWarp = 32;
constexpr uint32_t kAllLanes = 0xffffffff;
constexpr uint32_t kSharedBase = 1024;  // address of a block's shared memory
constexpr int kMaxThreads = 1024;
constexpr int kMaxCluster = 8;
constexpr int kBarriers = 16;

enum class WarpOp : uint8_t { kSyncWarp, kShuffle, kShuffle8, kLoadMatrix, kMultiply, kUniform };
enum class Waiting : uint8_t { kNothing, kWarpOp, kBarrier, kMbarrier, kCluster, kWarpgroup };

struct AsyncCopy {
  uint32_t to;
  const uint8_t* from;
};

struct SharedTrace {  // one load or store instruction of a warp, as far as lanes keep in step
  std::array<uint32_t, kWarp> address;
  uint32_t lanes;
  uint32_t bytes;
};

struct Warp;

struct Lane {
  Fiber fiber;
  Warp* warp = nullptr;
  Block* block = nullptr;
  uint32_t bit = 0;  // of the warp's lanes
  uint16_t thread = 0;
  uint8_t index = 0;  // in the warp
  Waiting waiting = Waiting::kNothing;
  bool ended = false;
  uint32_t waits_on = 0;  // barrier's number, or address of the mbarrier
  uint32_t waits_parity = 0;
  uint32_t fence_tick = 0;       // of the last fence between the proxies
  bool products_fenced = false;  // wg_fence() since products were last all waited for
  bool pdl_waited = false;
  uint32_t traced = 0;
  std::vector<AsyncCopy> copies;  // cp.async issued, not complete; `copied` of them are
  std::vector<uint32_t> groups;   // where each committed group ends; `waited` of them were
  uint32_t copied = 0;
  uint32_t waited = 0;
};

// Operands and results of a collective, by lane; a lane reads its own results when it runs again.
struct WarpRegisters {
  std::array<std::array<uint32_t, kWarp>, 6> in;
  std::array<std::array<uint32_t, kWarp>, 4> out;
  std::array<std::array<std::array<float, 2>, kWarp>, 2> sums;  // mma: rows 0-7, rows 8-15
};

struct Warp {
  Lane* lanes = nullptr;
  uint32_t index = 0;
  uint32_t bit = 0;        // of the block's warps
  uint32_t runnable = 0;   // lanes that wait for nothing, but the one that runs
  uint32_t arrived = 0;    // lanes in the collective `op`
  uint32_t sync_tick = 0;  // what any lane did before is seen by all
  uint32_t trace_rows = 0;
  WarpOp op = WarpOp::kSyncWarp;
  WarpRegisters registers;
  std::vector<SharedTrace> trace;
};

struct Barrier {
  uint32_t arrived = 0;
  uint32_t expected = 0;
  std::array<uint32_t, kMaxThreads / kWarp> lanes = {};  // those that wait, by warp
};

struct Mbarrier {
  uint32_t address = 0;
  int64_t count = 0;
  int64_t pending = 0;
  int64_t bytes = 0;  // expected, not yet landed
  uint32_t phase = 0;
  // Phases in which another block arrived last, and up to which this block knows the others' work:
  // it must not end before it knows of all arrivals.
  int64_t remote_phase = -1;
  int64_t known_phase = 0;
  std::vector<uint32_t> seen;  // what was released to it, as Block::seen
};

struct WarpgroupProduct {
  uint64_t a;
  uint64_t b;
  int accumulate;
  int columns;
  std::array<float*, 128> sums;
};

// Registers of a warpgroup that products under way add to; meanwhile the threads' own hold NaN.
struct WarpgroupSums {
  std::array<float*, 128> registers;
  std::vector<float> values;  // [128][columns / 2]
};

struct Warpgroup {
  uint32_t arrived = 0;
  int registers = 0;  // of a thread, where it changed them
  uint8_t op = 0;
  std::vector<WarpgroupSums> held;
  WarpgroupProduct call;  // of the threads that have arrived
  std::vector<WarpgroupProduct> issued;
  std::vector<uint32_t> groups;  // where each committed group ends
};

// What happened to four bytes of shared memory.
struct Cell {
  uint32_t write_tick;
  uint32_t read_tick;
  uint32_t read_warps;  // since the last barrier of the whole block
  uint16_t writer;
  uint16_t reader;
  uint8_t flags;
  uint8_t several_readers;  // of one warp, not in step since
};

struct Block {
  Worker* worker = nullptr;
  int x = 0;
  int y = 0;
  int z = 0;
  uint32_t rank = 0;    // in the cluster
  uint32_t number = 0;  // in the grid
  uint32_t warps = 0;
  uint32_t shared_bytes = 0;
  // Time in this block: counts events that order its threads. An access remembers it.
  uint32_t tick = 1;
  uint32_t barrier_tick = 1;    // of the last barrier of all threads
  uint32_t cluster_tick = 0;    // of the last barrier of all threads of the cluster; 0: none yet
  uint32_t remote_tick = 0;     // of the last store by another block
  bool partly_ordered = false;  // there were others: `seen` counts
  std::vector<uint32_t> seen;   // [warps][warps + 1]: before which tick another's accesses are seen
  std::vector<uint32_t> warp_reads;  // [cells][warps], where partly_ordered
  std::vector<Cell> cells;
  std::vector<uint8_t> shared;
  std::vector<Warp> warp;
  std::vector<Lane> lanes;
  std::array<Barrier, kBarriers> barriers;
  std::vector<Mbarrier> mbarriers;
  std::vector<Warpgroup> warpgroups;
};

struct Launch {
  std::string kernel;
  int grid_x = 1;
  int grid_y = 1;
  int grid_z = 1;
  int threads = 0;
  uint32_t shared_bytes = 0;
  int cluster = 1;
  bool overlap = false;
  void (*run)(const void*) = nullptr;  // the kernel, once for each thread
  const void* closure = nullptr;

  uint32_t id = 0;
  bool shared = false;  // by several host threads
  std::vector<Allocation*> external;
  int64_t groups = 0;  // clusters
  std::atomic<int64_t> next{0};
  std::atomic<int64_t> failed{std::numeric_limits<int64_t>::max()};  // the first that did
  std::mutex mutex;                                                  // of all below
  std::exception_ptr failure;
  Counts counts;
};

struct BulkCopy {
  Block* block;
  uint32_t to;
  const uint8_t* from;
  uint32_t bytes;
  uint32_t mbarrier;
};

/// What one host thread needs to run blocks; kept for the next launch.
struct Worker {
  Fiber host;
  FiberStacks stacks;
  std::vector<Block> blocks;  // of the cluster
  Launch* launch = nullptr;
  uint32_t alive = 0;  // threads that have not ended
  uint32_t cluster_arrived = 0;
  uint64_t random = 1;
  std::vector<BulkCopy> bulk;  // land in any order
  std::exception_ptr failure;
  Counts counts;
};

// The thread of the kernel that runs on this host thread. The model spares a call at each access; a
// module that is loaded later finds room for one pointer.
extern __thread Lane* current_lane __attribute__((tls_model("initial-exec")));

/// Runs blocks of the launch until none is left or one fails.
void run_worker(Launch& launch, Worker& worker);

/// Throws Fault for this thread, with everything that tells where.
[[noreturn]] void fail(const Lane& me, const std::string& what);

/// Who runs when `me` cannot. Throws Fault where nobody can.
Lane& next_lane(Lane& me);

/// The calling lane waits until somebody makes it runnable; others run, those of its warp first.
inline void suspend(Lane& me) {
  Warp& warp = *me.warp;
  Lane* next = nullptr;
  if (warp.runnable != 0) {
    next = &warp.lanes[__builtin_ctz(warp.runnable)];
    warp.runnable &= warp.runnable - 1;
    next->waiting = Waiting::kNothing;
  } else {
    next = &next_lane(me);
  }
  if (next != &me) {
    current_lane = next;
    switch_fiber(me.fiber, next->fiber);
  }
}

/// Wakes the lanes of a warp.
inline void wake(Warp& warp, uint32_t lanes) { warp.runnable |= lanes; }

[[noreturn]] void fail_mixed(const Lane& me, WarpOp op);

/// Counts the bank conflicts of what a warp loaded and stored since it last met.
void count_trace(Block& block, Warp& warp);

/// All lanes of a warp meet; the last to come runs `exec(warp)` for all.
template <class Exec>
inline void meet(Lane& me, WarpOp op, Exec&& exec) {
  Warp& warp = *me.warp;
  if (warp.arrived == 0) {
    warp.op = op;
  } else if (warp.op != op) {
    fail_mixed(me, op);
  }
  warp.arrived |= me.bit;
  if (warp.arrived != kAllLanes) {
    me.waiting = Waiting::kWarpOp;
    suspend(me);
    return;
  }
  warp.arrived = 0;
  if (warp.trace_rows != 0) {
    count_trace(*me.block, warp);
  }
  exec(warp);
  wake(warp, ~me.bit);
}

/// All `threads` of barrier `number` meet.
void meet_barrier(Lane& me, int number, int threads);
void meet_cluster(Lane& me);

/// After a barrier of `lanes` (by warp): their warps know what each of them knew and did.
void join_warps(Block& block, const uint32_t* lanes);

/// Why no thread of the worker's blocks can go on.
std::string describe_deadlock(const Worker& worker);

/// Lets one bulk copy land. False: none is under way.
bool land_bulk_copy(Worker& worker);

}  // namespace cae::emu
