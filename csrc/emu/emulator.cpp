// SPDX-License-Identifier: Apache-2.0
// Runs the threads of blocks: which fiber is next, what happens when none is.
#include "emu/emulator.h"

#include <algorithm>
#include <cstdlib>

#include "emu/fault.h"
#include "emu/hopper_emu.h"
#include "emu/shared_memory.h"

namespace cae::emu {

__thread Lane* current_lane __attribute__((tls_model("initial-exec"))) = nullptr;

void fail(const Lane& me, const std::string& what) {
  const Block& block = *me.block;
  throw Fault("kernel of " + block.worker->launch->kernel + ", block (" + std::to_string(block.x) +
              ", " + std::to_string(block.y) + ", " + std::to_string(block.z) + "), thread " +
              std::to_string(me.thread) + ": " + what);
}

namespace {

/// xorshift: the order of warps and of landing copies varies, and repeats with the block.
uint32_t draw(Worker& worker) {
  worker.random ^= worker.random << 13;
  worker.random ^= worker.random >> 7;
  worker.random ^= worker.random << 17;
  return static_cast<uint32_t>(worker.random >> 32);
}

Warp* ready_warp(Worker& worker) {
  const auto warps = worker.blocks[0].warps;
  const auto count = warps * static_cast<uint32_t>(worker.blocks.size());
  const uint32_t first = draw(worker) % count;
  for (uint32_t i = 0; i < count; ++i) {
    const uint32_t index = (first + i) % count;
    Warp& warp = worker.blocks[index / warps].warp[index % warps];
    if (warp.runnable != 0) {
      return &warp;
    }
  }
  return nullptr;
}

}  // namespace

Lane& next_lane(Lane& me) {
  Warp* warp = me.warp;
  Worker& worker = *me.block->worker;
  while (warp->runnable == 0) {
    // Copies land now and then, and where nothing else is left to happen.
    if (draw(worker) % 4 == 0) {
      land_bulk_copy(worker);
    }
    Warp* ready = ready_warp(worker);
    if (ready != nullptr) {
      warp = ready;
    } else if (!land_bulk_copy(worker)) {
      fail(me, describe_deadlock(worker));
    }
  }
  const int index = __builtin_ctz(warp->runnable);
  warp->runnable &= warp->runnable - 1;
  Lane& next = warp->lanes[index];
  next.waiting = Waiting::kNothing;
  return next;
}

namespace {

void end_lane(Lane& me) {
  if (me.copies.size() > (me.groups.empty() ? 0 : me.groups.back())) {
    fail(me, "ends with asynchronous copies that were never committed");
  }
  const size_t group = me.warp->index / 4;
  if (group < me.block->warpgroups.size() && !me.block->warpgroups[group].issued.empty()) {
    fail(me, "ends with wgmma under way that was not waited for");
  }
  if (me.block->worker->launch->overlap && !me.pdl_waited) {
    fail(me, "ends without pdl_wait(), in a launch that overlaps the kernel before it");
  }
  me.ended = true;
  if (--me.block->worker->alive == 0) {
    check_cluster_done(me);
    check_registers(me);
  }
}

/// What a fiber does: the kernel once, then the next thread.
void run_lane() {
  fiber_entered();
  Lane& me = *current_lane;
  Worker& worker = *me.block->worker;
  Fiber* next = &worker.host;
  try {
    worker.launch->run(worker.launch->closure);
    end_lane(me);
    if (worker.alive != 0) {
      current_lane = &next_lane(me);
      next = &current_lane->fiber;
    }
  } catch (...) {
    worker.failure = std::current_exception();
  }
  switch_fiber(me.fiber, *next, true);
  std::abort();  // an ended thread was continued
}

void prepare_lanes(Worker& worker, Block& block) {
  const auto threads = static_cast<uint32_t>(worker.launch->threads);
  block.lanes.resize(threads);
  for (uint32_t t = 0; t < threads; ++t) {
    Lane& lane = block.lanes[t];
    const Fiber fiber = lane.fiber;
    std::vector<AsyncCopy> copies = std::move(lane.copies);
    std::vector<uint32_t> groups = std::move(lane.groups);
    copies.clear();
    groups.clear();
    lane = Lane{};
    lane.fiber = fiber;
    lane.copies = std::move(copies);
    lane.groups = std::move(groups);
    lane.block = &block;
    lane.warp = &block.warp[t / kWarp];
    lane.thread = static_cast<uint16_t>(t);
    lane.index = static_cast<uint8_t>(t % kWarp);
    lane.bit = 1U << lane.index;
    const size_t stack = block.rank * threads + t;
    start_fiber(lane.fiber, worker.stacks.stack(stack), FiberStacks::usable(stack), &run_lane);
  }
}

void prepare_block(Worker& worker, uint32_t rank, int64_t number) {
  const Launch& launch = *worker.launch;
  Block& block = worker.blocks[rank];
  block.worker = &worker;
  block.rank = rank;
  block.number = static_cast<uint32_t>(number);
  block.x = static_cast<int>(number % launch.grid_x);
  block.y = static_cast<int>(number / launch.grid_x % launch.grid_y);
  block.z = static_cast<int>(number / launch.grid_x / launch.grid_y);
  block.warps = static_cast<uint32_t>(launch.threads / kWarp);
  block.shared_bytes = launch.shared_bytes;
  block.tick = block.barrier_tick = 1;
  block.cluster_tick = block.remote_tick = 0;
  block.partly_ordered = false;
  // No address is aligned by luck to more than a kernel may expect.
  block.shared.assign(launch.shared_bytes, 0xff);
  block.cells.assign((launch.shared_bytes + 3) / 4, Cell{});
  block.barriers.fill(Barrier{});
  block.mbarriers.clear();
  block.warpgroups.assign(block.warps / 4, Warpgroup{});
  block.warp.resize(block.warps);
  prepare_lanes(worker, block);
  for (uint32_t i = 0; i < block.warps; ++i) {
    Warp& warp = block.warp[i];
    warp.lanes = &block.lanes[static_cast<size_t>(i) * kWarp];
    warp.index = i;
    warp.bit = 1U << i;
    warp.runnable = kAllLanes;
    warp.arrived = warp.sync_tick = warp.trace_rows = 0;
    warp.trace.resize(kTraceRows);
  }
}

/// One cluster, to its end or to the first fault.
void run_cluster(Worker& worker, int64_t group) {
  const Launch& launch = *worker.launch;
  const auto size = static_cast<uint32_t>(launch.cluster);
  worker.stacks.reserve(static_cast<size_t>(launch.threads) * size);
  worker.blocks.resize(size);
  worker.alive = static_cast<uint32_t>(launch.threads) * size;
  worker.cluster_arrived = 0;
  worker.random = 88172645463325252ULL + static_cast<uint64_t>(group) * 2654435761ULL;
  worker.bulk.clear();
  worker.failure = nullptr;
  for (uint32_t rank = 0; rank < size; ++rank) {
    prepare_block(worker, rank, group * size + rank);
  }
  adopt_thread(worker.host);
  Warp& first = worker.blocks[0].warp[0];
  first.runnable &= ~1U;
  current_lane = first.lanes;
  switch_fiber(worker.host, current_lane->fiber);
  current_lane = nullptr;
  if (worker.failure != nullptr) {
    std::rethrow_exception(worker.failure);
  }
  for (Block& block : worker.blocks) {
    for (Warp& warp : block.warp) {
      count_trace(block, warp);
    }
  }
  worker.counts.blocks += size;
}

}  // namespace

void run_worker(Launch& launch, Worker& worker) {
  worker.launch = &launch;
  worker.counts = Counts{};
  int64_t group = 0;
  // In order, and all before the first that fails: it is the same one however many threads run.
  while ((group = launch.next.fetch_add(1)) < std::min(launch.groups, launch.failed.load())) {
    try {
      run_cluster(worker, group);
    } catch (...) {
      const std::lock_guard<std::mutex> lock(launch.mutex);
      if (group < launch.failed.load()) {
        launch.failed = group;
        launch.failure = std::current_exception();
      }
    }
  }
  const std::lock_guard<std::mutex> lock(launch.mutex);
  launch.counts.add(worker.counts);
}

void meet_barrier(Lane& me, int number, int threads) {
  Block& block = *me.block;
  const bool whole = threads == static_cast<int>(block.lanes.size());
  if (number < 0 || number >= kBarriers || threads <= 0 || threads % kWarp != 0 ||
      threads > static_cast<int>(block.lanes.size())) {
    fail(me, "barrier " + std::to_string(number) + " of " + std::to_string(threads) + " threads");
  }
  Barrier& barrier = block.barriers[static_cast<size_t>(number)];
  if (barrier.arrived != 0 && barrier.expected != static_cast<uint32_t>(threads)) {
    fail(me, "barrier " + std::to_string(number) + " of " + std::to_string(threads) +
                 " threads, where others wait for " + std::to_string(barrier.expected));
  }
  barrier.expected = static_cast<uint32_t>(threads);
  barrier.lanes[me.warp->index] |= me.bit;
  if (++barrier.arrived != barrier.expected) {
    me.waiting = Waiting::kBarrier;
    me.waits_on = static_cast<uint32_t>(number);
    suspend(me);
    return;
  }
  ++block.tick;
  if (whole) {
    block.barrier_tick = block.tick;
  } else {
    order_partly(block);
  }
  join_warps(block, barrier.lanes.data());
  for (uint32_t w = 0; w < block.warps; ++w) {
    if (barrier.lanes[w] == kAllLanes) {
      block.warp[w].sync_tick = block.tick;
      count_trace(block, block.warp[w]);
    }
    wake(block.warp[w], barrier.lanes[w] & ~(w == me.warp->index ? me.bit : 0));
  }
  barrier = Barrier{};
}

void meet_cluster(Lane& me) {
  Worker& worker = *me.block->worker;
  if (++worker.cluster_arrived != worker.blocks.size() * me.block->lanes.size()) {
    me.waiting = Waiting::kCluster;
    suspend(me);
    return;
  }
  worker.cluster_arrived = 0;
  for (Block& block : worker.blocks) {
    block.barrier_tick = block.cluster_tick = ++block.tick;
    for (Mbarrier& m : block.mbarriers) {
      m.known_phase = int64_t{m.phase} + 1;
    }
    for (Warp& warp : block.warp) {
      warp.sync_tick = block.tick;
      wake(warp, &warp == me.warp ? ~me.bit : kAllLanes);
    }
  }
}

}  // namespace cae::emu
